/* The types whose block is 32 weights with one f16 scale: sixteen blocks at a time. */
#pragma once

#include "fit.h"

/* Constants of one of these types. The efforts are from sweeps over the data of
 * bench_encoders.py, as sweep_efforts.py makes them: the least error at the speed wanted. */
struct one_scale_format {
    struct levels levels;
    struct scale_tries effort[N_EFFORTS];
};

/* The scales of sixteen blocks: as stored, and as the decoder reads them, in normalised units. */
struct one_scale {
    uint16_t d[LANES];
    f32x16 s;
};

struct one_scale_codes {
    uint16_t d[LANES];
    _Alignas(4) uint8_t q[LANES * 32]; /* in weight order */
};

/* A scale of zero where zeros are better: f16 cannot hold the smallest scales well. */
static ALWAYS_INLINE struct one_scale fit_one_scale(const struct groups *g,
                                                    struct one_scale_format f, enum effort effort)
{
    struct one_scale r;
    float d[LANES];
    store(d, fit_scale(g, 32, f.levels, f.effort[effort]));
    for (int l = 0; l < LANES; l++)
        d[l] = rounded_scale(d[l], g->unit[l], &r.d[l]);
    f32x16 error = error_of_scale(g, 32, f.levels, load(d));
    mask16 useful = below(error, error_of_zeros(sum_group(g, 32).xx));
    r.s = choose(useful, load(d), splat(0));
    store(d, r.s);
    for (int l = 0; l < LANES; l++)
        r.d[l] = d[l] != 0 ? r.d[l] : 0;
    return r;
}

static ALWAYS_INLINE void encode_one_scale(const struct groups *g, struct one_scale_format f,
                                           enum effort effort, struct one_scale_codes *out)
{
    struct one_scale scale = fit_one_scale(g, f, effort);
    f32x16 q[32];
    round_scaled(g, 32, f.levels, scale.s, q);
    memcpy(out->d, scale.d, sizeof out->d);
    scatter_codes(q, 32, out->q);
}
