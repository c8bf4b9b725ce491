/* The types whose block is 32 weights with one f16 scale: sixteen blocks at a time. */
#pragma once

#include "fit.h"

struct one_scale_format {
    struct levels levels;
    struct scale_tries effort[N_EFFORTS];
};

struct one_scale_codes {
    uint16_t d[LANES];
    _Alignas(4) uint8_t q[LANES * 32]; /* in weight order */
};

static ALWAYS_INLINE void encode_one_scale(const struct groups *g, struct one_scale_format f,
                                           enum effort effort, struct one_scale_codes *out)
{
    float d[LANES];
    store(d, fit_scale(g, 32, f.levels, f.effort[effort]));
    for (int l = 0; l < LANES; l++)
        d[l] = rounded_scale(d[l], g->unit[l], &out->d[l]);

    /* A scale that f16 cannot hold well (the smallest weights) may be worse than none. */
    f32x16 none = error_of_zeros(sum_group(g, 32).xx);
    mask16 useful = below(error_of_scale(g, 32, f.levels, load(d)), none);
    store(d, choose(useful, load(d), splat(0)));

    f32x16 inverse = quotient_or_zero(splat(1), load(d));
    for (int l = 0; l < LANES; l++)
        out->d[l] = d[l] != 0 ? out->d[l] : 0;
    f32x16 q[32];
    for (int i = 0; i < 32; i++)
        q[i] = nearest_code(mul(g->x[i], inverse), f.levels);
    scatter_codes(q, 32, out->q);
}
