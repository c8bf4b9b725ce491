/* From codes to weights: the last step of decoders, sixteen weights at a time. n is a multiple of
 * 16. The order of operations is that of ggml's decoders, so that the weights are the same floats.
 */
#pragma once

#include "lanes.h"

/* x = scale * (q - zero); zero is a whole number, so that the difference is exact. */
static inline void scaled_weights(const uint8_t *q, int n, float scale, float zero, float *x)
{
    for (int i = 0; i < n; i += LANES)
        store(x + i, mul(splat(scale), sub(load_bytes(q + i), splat(zero))));
}

/* x = scale * q + offset */
static inline void affine_weights(const uint8_t *q, int n, float scale, float offset, float *x)
{
    for (int i = 0; i < n; i += LANES)
        store(x + i, add(mul(splat(scale), load_bytes(q + i)), splat(offset)));
}

/* x = scale * levels[q], q < 16 */
static inline void level_weights(const uint8_t *q, int n, float scale, const float *levels,
                                 float *x)
{
    for (int i = 0; i < n; i += LANES)
        store(x + i, mul(splat(scale), look_up(levels, q + i)));
}
