// All operators for one instruction set: compiled once for each, with SPR_SET its name and the compiler's flags for it.
#include "anomaly_map.h"
#ifndef SPR_AMX  // for which there is bfloat16 alone
#include "conv3x3.h"
#endif
#include "direct3x3.h"
#include "head.h"
#include "interface.h"
#include "perturb.h"
#include "resample_16_bit.h"
#include "resample_8_bit.h"

static void swish_all(const float* x, float* y, int64_t count) {
    for (int64_t i = 0; i < count; i++) y[i] = swish(broadcast(x[i]))[0];
}

#define SPR_JOIN(a, b) a##b
#define SPR_NAME(start, set) SPR_JOIN(start, set)
#define SPR_AROUND_CONV3X3                                                                                     \
    perturb_conv3x3_space, perturb_conv3x3, head, anomaly_map_space, anomaly_map, swish_all, resample_strip_8, \
        resample_row_8, turn_strip_16, resample_16

#ifndef SPR_AMX
extern "C" const struct spr_operators SPR_NAME(spr_float32_, SPR_SET) = {conv3x3_weights, pack_conv3x3, conv3x3_space,
                                                                         conv3x3, SPR_AROUND_CONV3X3};
#endif
extern "C" const struct spr_operators SPR_NAME(spr_bfloat16_, SPR_SET) = {
    direct3x3_weights, pack_direct3x3, direct3x3_space, direct3x3, SPR_AROUND_CONV3X3};
