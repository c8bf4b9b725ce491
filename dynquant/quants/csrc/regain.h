/* The gain of a block: how long it is, decoded. */
#pragma once

#include "codec.h"

/* A block that is fitted badly, such as one whose only important weight is rounded to zero, would
 * be multiplied by any number. What the others lose is far less than this. */
static const double MOST_REGAINED = 0.5;

/* Move each block's scale from least squares the share `gain` of the way to the one that keeps
 * <x, decoded> = <x, x>, but at most by MOST_REGAINED. Codes stay. */
static void regain(const struct quant_type *type, float gain, const float *x, const float *w,
                   uint8_t *blocks, int64_t n)
{
    for (int64_t b = 0; b < n; b += type->block_size, blocks += type->type_size) {
        float decoded[MAX_BLOCK];
        double xx = 0, xy = 0;
        type->decode(blocks, decoded, 1);
        for (int i = 0; i < type->block_size; i++) {
            double wx = (w ? w[b + i] : 1) * (double)x[b + i];
            xx += wx * x[b + i];
            xy += wx * decoded[i];
        }
        if (xy > 0) {
            double lost = xx / xy - 1;
            if (lost > MOST_REGAINED)
                lost = MOST_REGAINED;
            type->regain(blocks, 1 + gain * (float)lost);
        }
    }
}
