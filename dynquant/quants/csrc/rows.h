/* Rows of a checkpoint as f32. */
#pragma once

#include <stdint.h>
#include <string.h>

#include "codec.h"
#include "floats.h"

/* Stored numbers as f32. Returns whether all of them are finite. */
static int weights_of_stored(enum stored_type stored, const uint8_t *from, int64_t n, float *x)
{
    uint32_t not_finite = 0;
    if (stored == STORED_F32)
        memcpy(x, from, (size_t)n * sizeof *x);
    else
        for (int64_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, from + 2 * i, sizeof h);
            x[i] = stored == STORED_BF16 ? f32_of_bf16(h) : f32_of_f16(h);
        }
    for (int64_t i = 0; i < n; i++)
        not_finite |= (bits_of_f32(x[i]) & 0x7f800000) == 0x7f800000;
    return !not_finite;
}
