/* Rows of a checkpoint as f32. */
#pragma once

#include <stdint.h>
#include <string.h>

#include "codec.h"
#include "floats.h"

static inline uint32_t is_not_finite(float a)
{
    return (bits_of_f32(a) & 0x7f800000) == 0x7f800000;
}

/* Stored numbers as f32. Returns whether all of them are finite. */
static int weights_of_stored(enum stored_type stored, const uint8_t *from, int64_t n, float *x)
{
    uint32_t not_finite = 0;
    uint16_t h;
    if (stored == STORED_F32)
        for (int64_t i = 0; i < n; i++) {
            memcpy(x + i, from + 4 * i, sizeof *x);
            not_finite |= is_not_finite(x[i]);
        }
    else if (stored == STORED_BF16)
        for (int64_t i = 0; i < n; i++) {
            memcpy(&h, from + 2 * i, sizeof h);
            x[i] = f32_of_bf16(h);
            not_finite |= is_not_finite(x[i]);
        }
    else
        for (int64_t i = 0; i < n; i++) {
            memcpy(&h, from + 2 * i, sizeof h);
            x[i] = f32_of_f16(h);
            not_finite |= is_not_finite(x[i]);
        }
    return !not_finite;
}
