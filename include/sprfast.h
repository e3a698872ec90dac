/* From a camera's frame to a verdict, in C99.
 *
 * Threads: every function may be called from any number of threads at the same time, on one engine too, but for
 * sprfast_close, which must be an engine's last call. After a fork the child may go on with the engines of its parent.
 * Nothing is kept but in an engine. No function throws or aborts. No thread may be cancelled (pthread_cancel) in one.
 *
 * Memory: whatever a pointer leads to is the caller's, before and after the call; nothing is read or written after the
 * call has returned. Memory of pixels needs no alignment, every other pointer that of its type. Where a pointer may be
 * null, it is said.
 *
 * Structs: `size` is set by the caller to sizeof, so that later versions can add fields at the end. Fields that a
 * library does not know must be 0. All structs of an array have the same size.
 *
 * Errors: a function that returns int32_t gives SPRFAST_OK or one of the codes below, and then has written into
 * `error`, which may be null, one sentence that names the file, the field or the argument. What is wrong with one frame
 * is in that frame's result alone.
 */
#ifndef SPRFAST_H
#define SPRFAST_H

#include <stddef.h>
#include <stdint.h>

#define SPRFAST_ABI_VERSION 1 /* of all structs, codes and functions here; later versions take callers of this one */

#ifdef __cplusplus
#define SPRFAST_NOEXCEPT noexcept
extern "C" {
#else
#define SPRFAST_NOEXCEPT
#endif
#if defined(__GNUC__)
#define SPRFAST_API __attribute__((visibility("default")))
#else
#define SPRFAST_API
#endif

/* Codes. */
enum {
    SPRFAST_OK = 0,
    SPRFAST_INVALID_ARGUMENT = 1,
    SPRFAST_BAD_FILE = 2,    /* missing, damaged, foreign, or from a newer version */
    SPRFAST_BAD_IMAGE = 3,   /* pixels that the export does not take */
    SPRFAST_UNSUPPORTED = 4, /* what this processor, this build or this export cannot do */
    SPRFAST_OUT_OF_MEMORY = 5,
    SPRFAST_INTERNAL = 6 /* the library or the machine is at fault: an export's probe is not computed as it should */
};

/* Verdicts. Memory of zeros is an ERROR. */
enum {
    SPRFAST_ERROR = 0, /* there is no finite score, or the export has no threshold */
    SPRFAST_PASS = 1,  /* a finite score, at most the threshold */
    SPRFAST_REJECT = 2
};

/* Formats of pixels; 16-bit values are in the byte order of the machine, and hold the export's `bit_depth` bits. */
enum {
    SPRFAST_GREY8 = 1,
    SPRFAST_GREY16 = 2,
    SPRFAST_RGB8 = 3,
    SPRFAST_BGR8 = 4,
    SPRFAST_RGB16 = 5,
    SPRFAST_BGR16 = 6
};

/* How a frame comes to the network's size. */
enum {
    SPRFAST_FIT = 1,     /* its shorter side is resized to the smaller one of `height` and `width`, its aspect kept */
    SPRFAST_STRETCH = 2, /* both sides are resized */
    SPRFAST_REFUSE = 3   /* square frames only */
};

#define SPRFAST_MAP_SIZE 256 /* pixels, both sides of an anomaly map */

typedef struct sprfast_engine sprfast_engine;

typedef struct sprfast_error {
    uint32_t size;
    int32_t code;
    char text[504]; /* UTF-8, ends with a 0 */
} sprfast_error;

typedef struct sprfast_options {
    uint32_t size;
    int32_t threads;             /* that a call computes with, up to 1024; 0: what the environment's OMP_NUM_THREADS
                                    says, else one for each processor that the process may use */
    const char* instruction_set; /* "amx", "avx512", "avx2", "neon" or "generic"; null: what the environment's
                                    SPRFAST_INSTRUCTION_SET says, else the best that runs here */
} sprfast_options;

typedef struct sprfast_info {
    uint32_t size;
    int32_t height, width; /* pixels of the network's input that every size policy takes */
    int32_t any_size;      /* 1: inputs of other sizes are taken too */
    int32_t size_policy;   /* SPRFAST_FIT, _STRETCH or _REFUSE */
    int32_t bit_depth;     /* significant bits of 16-bit formats */
    int32_t draws;         /* passes of the network for one frame */
    int32_t threads;
    double threshold;      /* NaN: the export is not calibrated, and no frame passes */
    double map_threshold;  /* above which a pixel of the anomaly map is marked; NaN: nothing says so */
    double probe_error;    /* relative RMS error of the export's probe on this machine */
    char model_sha256[72]; /* of the weights that the export was made from: 64 hexadecimal digits and a 0 */
    char instruction_set[16];
} sprfast_info;

typedef struct sprfast_frame {
    uint32_t size;
    int32_t format;        /* SPRFAST_GREY8, ... */
    const void* data;      /* the first row */
    uint64_t bytes;        /* that may be read at `data`: (height - 1) * pitch and one row, at least */
    int32_t height, width; /* pixels */
    int64_t pitch;         /* bytes from one row to the next, at least those of a row */
} sprfast_frame;

typedef struct sprfast_result {
    uint32_t size;
    int32_t verdict;   /* SPRFAST_PASS, SPRFAST_REJECT or SPRFAST_ERROR */
    double pred_score; /* NaN where there is none */
    double skipped;    /* share of the input's pixels that count for nothing: 0, since every pixel counts */
    int32_t code;      /* SPRFAST_OK, or what is wrong with this frame */
    int32_t passes;    /* of the network */
    char reason[480];  /* why the verdict is SPRFAST_ERROR, else empty; UTF-8, ends with a 0 */
} sprfast_result;

typedef struct sprfast_maps {
    uint32_t size;
    int32_t height, width; /* of `error_map`, as sprfast_input_size says */
    int32_t reserved;      /* 0 */
    float* error_map;      /* height * width floats, or null */
    float* anomaly_map;    /* SPRFAST_MAP_SIZE * SPRFAST_MAP_SIZE floats, or null */
    uint8_t* pred_mask;    /* as many bytes, 1 where the anomaly map is above map_threshold, else 0; or null */
} sprfast_maps;

/* Opens a file of `sprfast export --to plan`. It has computed the file's probe image when this returns, so that it
 * computes here what it should. `options` may be null. `*engine` is null after an error, else the caller's until
 * sprfast_close. */
SPRFAST_API int32_t sprfast_open(const char* path, const sprfast_options* options, sprfast_engine** engine,
                                 sprfast_error* error) SPRFAST_NOEXCEPT;

/* Releases an engine; null does nothing. No call on it may be under way, none may follow. */
SPRFAST_API void sprfast_close(sprfast_engine* engine) SPRFAST_NOEXCEPT;

SPRFAST_API int32_t sprfast_describe(const sprfast_engine* engine, sprfast_info* info,
                                     sprfast_error* error) SPRFAST_NOEXCEPT;

/* The size of the network's input, and so of the error map, for frames of `height` x `width` pixels. */
SPRFAST_API int32_t sprfast_input_size(const sprfast_engine* engine, int32_t height, int32_t width,
                                       int32_t* input_height, int32_t* input_width,
                                       sprfast_error* error) SPRFAST_NOEXCEPT;

/* Scores one frame. SPRFAST_OK says that `result` was written, not that the frame was good. */
SPRFAST_API int32_t sprfast_score(const sprfast_engine* engine, const sprfast_frame* frame, sprfast_result* result,
                                  sprfast_error* error) SPRFAST_NOEXCEPT;

/* Scores `count` frames, each as sprfast_score would, to the bit; one bad frame is an ERROR for itself only. */
SPRFAST_API int32_t sprfast_score_many(const sprfast_engine* engine, const sprfast_frame* frames, size_t count,
                                       sprfast_result* results, sprfast_error* error) SPRFAST_NOEXCEPT;

/* Scores one frame and writes those maps whose pointers are not null; nothing where `result->code` is not
 * SPRFAST_OK. */
SPRFAST_API int32_t sprfast_map(const sprfast_engine* engine, const sprfast_frame* frame, sprfast_result* result,
                                const sprfast_maps* maps, sprfast_error* error) SPRFAST_NOEXCEPT;

/* Of the library, such as "1.2.3"; lives as long as the library is loaded. */
SPRFAST_API const char* sprfast_version(void) SPRFAST_NOEXCEPT;

/* SPRFAST_ABI_VERSION of the library; one that is lower than the caller's may lack functions. */
SPRFAST_API uint32_t sprfast_abi_version(void) SPRFAST_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
