// The C interface of the CPU kernels.
//
// Feature maps are float32, channels-last (sample, row, column, channel), contiguous, with a multiple of 32
// channels; images, noise and error maps are planar. Sample n is draw n % draws of image n / draws. No pointer
// needs any alignment beyond that of a float. Nothing here allocates, and nothing is kept between calls:
// `space` is scratch memory of as many floats as the function of the same name with `_space` says for at least as many
// threads. Results depend neither on `threads` nor on the other samples of a call.
#pragma once

#include <stdint.h>

#define SPR_INTERFACE_VERSION 5  // of everything below

enum spr_source_kind {
    SPR_ACTIVATION = 0,  // swish(a·raw + b) + embedding
    SPR_POOLED = 1,      // its 2x2 maximum; the source has at least twice as many rows and columns
    SPR_UPSAMPLED = 2,   // its bilinear upsampling by 2 (align_corners), zero beyond
};

// What a convolution reads: another convolution's raw output, activated on the way.
struct spr_source {
    const float* raw;        // (samples, height, width, channels)
    const float* affine;     // (samples, 2, channels): a and b of the normalisation
    const float* embedding;  // (draws, channels) or null
    int32_t channels, height, width, kind;
};

// A 3x3 convolution with zero padding of one pixel, and the GroupNorm (eps 1e-5) behind it.
struct spr_conv3x3 {
    int32_t samples, draws;
    int32_t height, width;  // of input and output
    int32_t channels_in, channels_out, groups;
    const float* weight;               // packed
    const float *bias, *gamma, *beta;  // (channels_out): bias of the convolution, scale and shift of the normalisation
};

// The first convolution, of image + std·noise.
struct spr_perturb_conv3x3 {
    int32_t images, draws;
    int32_t height, width;
    int32_t channels_out, groups;
    int32_t noise_images;              // 1: all images share the noise; else `images`
    const float* image;                // (images, 3, height, width)
    const float* noise;                // (draws, noise_images, 3, height, width)
    const float* std;                  // (draws)
    const float* weight;               // (27, channels_out): row 9·channel + 3·(dy + 1) + dx + 1
    const float *bias, *gamma, *beta;  // as in spr_conv3x3
};

// Activation, 1x1 convolution, residual, square, mean over channels and weighted sum over draws.
struct spr_head {
    int32_t images, draws;
    int32_t height, width, channels;
    int32_t noise_images;  // as in spr_perturb_conv3x3
    const float* raw;      // (images·draws, height, width, channels)
    const float* affine;   // (images·draws, 2, channels)
    const float* weight;   // (3, channels)
    const float* bias;     // (draws, 3)
    const float* noise;    // (draws, noise_images, 3, height, width)
    const float* scale;    // (draws)
};

// Threads that work on one operator at a time.
struct spr_threads {
    void* pool;
    // Calls work(context, thread, threads) in each of `threads` threads, the caller among them, and returns when all
    // have ended.
    void (*run)(void* pool, void (*work)(void* context, int32_t thread, int32_t threads), void* context);
    // For `work`: returns when all its threads have called it.
    void (*barrier)(void* pool);
};

// The weights of a resampling of 8 bits to `outputs` places: of place o for `count[o]` pairs of pixels from pair
// `first[o]` on, at o·stride of `low` and `high`. A weight has 22 fractional bits, its upper 12 of 24 in `high`; two of
// them are the halves, the lower one first, of a number.
struct spr_taps {
    int32_t outputs, stride;
    const int32_t *first, *count;
    const uint32_t *low, *high;
};

// The same of 16 bits: for `count[o]` pixels from pixel `first[o]` on. Neither these nor the ends decrease from place
// to place.
struct spr_weights {
    int32_t outputs, stride;
    int32_t overlap;  // power of two, at least as many as the places that one pixel weighs in
    const int32_t *first, *count;
    const double* weights;
};

#define SPR_PIECE 64  // pixels

// The operators as compiled for one instruction set. In bfloat16, inputs and weights of conv3x3 are rounded to it;
// everything else is float32.
struct spr_operators {
    // Floats of the packed weights.
    int64_t (*conv3x3_weights)(int32_t channels_in, int32_t channels_out);
    // weight: (channels_out, channels_in, 3, 3).
    void (*pack_conv3x3)(const float* weight, int32_t channels_in, int32_t channels_out, float* packed);
    int64_t (*conv3x3_space)(const struct spr_conv3x3*, int32_t threads);
    // The channels of the sources, one source after the other, are those of the input. raw: (samples, height, width,
    // channels_out), without the bias; affine: (samples, 2, channels_out), normalisation of raw with the bias folded
    // in.
    void (*conv3x3)(const struct spr_conv3x3*, const struct spr_source* sources, float* raw, float* affine,
                    float* space, const struct spr_threads* threads);
    int64_t (*perturb_conv3x3_space)(const struct spr_perturb_conv3x3*, int32_t threads);
    // raw: (images·draws, height, width, channels_out); raw and affine as of conv3x3.
    void (*perturb_conv3x3)(const struct spr_perturb_conv3x3*, float* raw, float* affine, float* space,
                            const struct spr_threads* threads);
    // errors: (images, height, width): sum over draws d and channels of
    // scale_d·(weight·activation + bias_d + noise_d)².
    void (*head)(const struct spr_head*, float* errors, const struct spr_threads* threads);
    int64_t (*anomaly_map_space)(int32_t images, int32_t height, int32_t width, int32_t size);
    // maps = rows · errors · columnsᵀ; errors: (images, height, width), rows: (size, height), columns: (size, width),
    // maps: (images, size, size).
    // Zeros at both ends of a row of `rows` or `columns` cost nothing.
    void (*anomaly_map)(int32_t images, int32_t height, int32_t width, int32_t size, const float* errors,
                        const float* rows, const float* columns, float* maps, float* space,
                        const struct spr_threads* threads);
    // x·sigmoid(x) as all of them compute it.
    void (*swish)(const float* x, float* y, int64_t count);
    // 16 rows of `width` pixels of 8 bits and 1 or 3 channels, resampled along the rows. pairs: rows 2i and 2i + 1 of
    // output o of a channel go to i·pairs_pitch + channel·outputs + o. space: 128·channels·ceil(width / 16) numbers.
    void (*resample_strip_8)(const struct spr_taps* taps, const uint8_t* rows, int64_t pitch, int32_t width,
                             int32_t channels, int32_t* space, int32_t* pairs, int64_t pairs_pitch);
    // Pairs of rows resampled along the columns: one row of the result, which has as many pixels as pairs_pitch, a
    // multiple of 16.
    void (*resample_row_8)(const struct spr_taps* taps, int32_t output, const int32_t* pairs, int64_t pairs_pitch,
                           uint8_t* result);
    // 16 rows of up to SPR_PIECE pixels of 16 bits, divided by `top`, which is 2^n - 1: turned[(channel·SPR_PIECE +
    // x)·16 + row]; what it has behind the pixels may be written too. Returns the bits that any value has.
    uint16_t (*turn_strip_16)(const uint8_t* rows, int64_t pitch, int32_t width, int32_t channels, float top,
                              float* turned);
    // Pixels [first, first + count) of a resampling, which come in order, beginning with 0. values: `lanes` numbers of
    // each pixel, a multiple of 16. done: outputs whose last pixel has come before; returns those of which it has come
    // now. sums: overlap·lanes, kept between the calls. Lane l of output o, when its last pixel has come, goes to
    // result[o·output_step + l·lane_step].
    int32_t (*resample_16)(const struct spr_weights* weights, const float* values, int32_t first, int32_t count,
                           int32_t done, int64_t lanes, double* sums, float* result, int64_t output_step,
                           int64_t lane_step);
};

// An operator of the network that has just run, for benchmarks; what it points to is valid until the observer returns.
struct spr_layer {
    const char* name;  // such as "down1.first"; "head"; "anomaly map"
    int32_t channels_in, channels_out;
    int32_t height, width;  // of the output
    int32_t images, sources_count;
    const struct spr_source* sources;  // what a 3x3 convolution or the head reads; not of the first one
    const float *output, *affine;      // as of the operator; affine is null where there is none
    double seconds;
};

#define SPR_ERROR_SIZE 512  // bytes of an error's text with its end

// Beside the public functions of sprfast.h, what the Python package and the tests of single operators call.
struct spr_interface {
    int32_t version;  // SPR_INTERFACE_VERSION; to be compared before anything else is read
    // sprfast::operators_for and amx_missing (dispatch.h).
    const struct spr_operators* (*operators)(const char* instruction_set, const char* precision);
    const char* (*amx_missing)(void);
    // Threads of a caller of single operators; null where there is no memory.
    const struct spr_threads* (*open_threads)(int32_t count);
    void (*close_threads)(const struct spr_threads*);
    // sprfast::Network (network.h) for C. Null after an error, whose text is then in `error`.
    void* (*open_network)(const struct spr_operators*, int32_t base_width, int32_t draws, int32_t window, int32_t count,
                          const char* const* names, const float* const* arrays, char* error);
    void (*close_network)(void* network);
    // 0, or sprfast::Code (failure.h) of an error, whose text is then in `error`. observe: null, or called after every
    // operator.
    int32_t (*maps)(const void* network, const float* x, int32_t images, int32_t height, int32_t width,
                    const float* noise, float* errors, float* maps, int32_t threads,
                    void (*observe)(const struct spr_layer*), char* error);
};

#ifdef __cplusplus
extern "C" {
#endif
extern __attribute__((visibility("default"))) const struct spr_interface spr_interface;
#ifdef __cplusplus
}
#endif
