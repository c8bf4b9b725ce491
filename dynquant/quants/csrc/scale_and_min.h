/* The types whose block is 32 weights with an f16 scale and an f16 min, w = d * q + m with m of any
 * sign: sixteen blocks at a time. */
#pragma once

#include "fit.h"

/* Constants of one of these types. The efforts are from sweeps over the data of
 * bench_encoders.py, as sweep_efforts.py makes them: the least error at the speed wanted. */
struct scale_and_min_format {
    float q_most;
    struct affine_tries effort[N_EFFORTS];
};

/* Scales and mins of sixteen blocks: as stored, and as the decoder reads them, in normalised units
 * and from the least weight of each block upwards. */
struct scale_and_min {
    uint16_t d[LANES], m[LANES];
    struct affine affine;
};

struct scale_and_min_codes {
    uint16_t d[LANES], m[LANES];
    _Alignas(4) uint8_t q[LANES * 32]; /* in weight order */
};

/* Subtract the least weight of each group from all of it, and return it. The sums of a fit then
 * hold the differences that codes distinguish, however far from zero the weights are. */
static ALWAYS_INLINE f32x16 subtract_least(struct groups *g, int n)
{
    f32x16 lo = g->x[0];
    for (int i = 1; i < n; i++)
        lo = least(lo, g->x[i]);
    for (int i = 0; i < n; i++)
        g->x[i] = sub(g->x[i], lo);
    return lo;
}

/* Subtracts the least weight of each block from g->x, which round_affine then takes. Scale and min
 * are zero where zeros are better: f16 cannot hold the smallest of them well. */
static ALWAYS_INLINE struct scale_and_min fit_scale_and_min(struct groups *g,
                                                            struct scale_and_min_format f,
                                                            enum effort effort)
{
    struct scale_and_min r;
    f32x16 zeros = error_of_zeros(sum_group(g, 32).xx), lo = subtract_least(g, 32);
    struct group_sums t = sum_group(g, 32);
    struct affine a = fit_affine(g, 32, f.q_most, OFFSET_FREE, t, f.effort[effort]);
    float d[LANES], m[LANES];
    store(d, a.s);
    for (int l = 0; l < LANES; l++)
        d[l] = rounded_scale(d[l], g->unit[l], &r.d[l]);

    /* The best min for the rounded scale. */
    struct affine_sums u =
        sum_affine(g, 32, f.q_most, quotient_or_zero(splat(1), load(d)), a.b);
    store(m, add(lo, quotient(sub(t.x, mul(load(d), u.q)), t.w)));
    for (int l = 0; l < LANES; l++)
        m[l] = rounded_scale(m[l], g->unit[l], &r.m[l]);

    r.affine = (struct affine){load(d), sub(load(m), lo)};
    mask16 useful = below(error_of_affine(g, 32, f.q_most, r.affine), zeros);
    r.affine.s = choose(useful, r.affine.s, splat(0));
    float is_useful[LANES];
    store(is_useful, choose(useful, splat(1), splat(0)));
    for (int l = 0; l < LANES; l++)
        if (is_useful[l] == 0)
            r.d[l] = r.m[l] = 0;
    return r;
}

/* Changes g->x. */
static ALWAYS_INLINE void encode_scale_and_min(struct groups *g, struct scale_and_min_format f,
                                               enum effort effort, struct scale_and_min_codes *out)
{
    struct scale_and_min scale = fit_scale_and_min(g, f, effort);
    f32x16 q[32];
    round_affine(g, 32, f.q_most, scale.affine, q);
    memcpy(out->d, scale.d, sizeof out->d);
    memcpy(out->m, scale.m, sizeof out->m);
    scatter_codes(q, 32, out->q);
}
