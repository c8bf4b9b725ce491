/* The types whose block is 32 weights with an f16 scale and an f16 min, w = d * q + m with m of any
 * sign: sixteen blocks at a time. */
#pragma once

#include "fit.h"

struct scale_and_min_format {
    float q_most;
    struct affine_tries effort[N_EFFORTS];
};

struct scale_and_min_codes {
    uint16_t d[LANES], m[LANES];
    _Alignas(4) uint8_t q[LANES * 32]; /* in weight order */
};

/* Changes g->x. */
static ALWAYS_INLINE void encode_scale_and_min(struct groups *g, struct scale_and_min_format f,
                                               enum effort effort, struct scale_and_min_codes *out)
{
    /* From the least weight upwards: the sums then hold what the codes are to tell apart, however
     * far from zero the weights are. */
    f32x16 none = error_of_zeros(sum_group(g, 32).xx), lo = g->x[0];
    for (int i = 1; i < 32; i++)
        lo = least(lo, g->x[i]);
    for (int i = 0; i < 32; i++)
        g->x[i] = sub(g->x[i], lo);

    struct group_sums t = sum_group(g, 32);
    struct affine a = fit_affine(g, 32, f.q_most, OFFSET_FREE, t, f.effort[effort]);
    float d[LANES], m[LANES];
    store(d, a.s);
    for (int l = 0; l < LANES; l++)
        d[l] = rounded_scale(d[l], g->unit[l], &out->d[l]);
    f32x16 inverse = quotient_or_zero(splat(1), load(d));

    /* The min that suits the rounded scale. */
    struct affine_sums u = sum_affine(g, 32, f.q_most, inverse, a.b);
    store(m, add(lo, quotient(sub(t.x, mul(load(d), u.q)), t.w)));
    for (int l = 0; l < LANES; l++)
        m[l] = rounded_scale(m[l], g->unit[l], &out->m[l]);
    f32x16 b = sub(load(m), lo);

    /* What f16 cannot hold well (the smallest weights) may be worse than nothing. */
    float useful[LANES];
    f32x16 error = error_of_affine(g, 32, f.q_most, (struct affine){load(d), b});
    store(useful, choose(below(error, none), splat(1), splat(0)));
    for (int l = 0; l < LANES; l++)
        if (useful[l] == 0)
            out->d[l] = out->m[l] = 0;

    f32x16 q[32];
    for (int i = 0; i < 32; i++)
        q[i] = mul(nearest(mul(sub(g->x[i], b), inverse), 0, f.q_most), load(useful));
    scatter_codes(q, 32, out->q);
}
