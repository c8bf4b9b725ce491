/* The affine K types: super-blocks whose groups have a scale and a min on a lattice.
 *
 *   w = d * ls * q - dmin * lm        d, dmin f16 of the super-block; ls, lm small integers of the
 *                                     group; q the weight's code
 *
 * Rounding the scale and the min to the lattice costs more than rounding d, and the two errors
 * depend on each other: a scale that is rounded up needs a larger min. So ls and lm are chosen
 * jointly, by trying the lattice points around the optimum with codes chosen again for each. Then d
 * and dmin are solved for by least squares, and so on in turn.
 */
#pragma once

#include <math.h>

#include "fit.h"

/* Constants of one affine K type. The efforts are from sweeps over the data of
 * bench_encoders.py, as sweep_efforts.py makes them: the least error at the speed wanted. */
struct affine_format {
    int n;           /* weights in a group */
    int group_count; /* groups in a super-block */
    float q_most, l_most;
    struct affine_effort {
        struct affine_tries tries; /* of fit_affine */
        int starts, rounds; /* first values of d and dmin; rounds of lattice and refit from each */
        int ls_reach, lm_reach; /* steps of the lattice searched to both sides of the target */
        int lm_side_reach;      /* lm_reach for scales beside the target's own */
    } effort[N_EFFORTS];
};

/* The scales of sixteen groups: 16 / group_count super-blocks. */
struct affine_scales {
    uint16_t d[LANES], dmin[LANES]; /* per super-block */
    uint8_t ls[LANES], lm[LANES];   /* per group */
    struct affine affine;           /* per group: d * ls and -dmin * lm in normalised units */
};

struct affine_codes {
    uint16_t d[LANES], dmin[LANES];
    uint8_t ls[LANES], lm[LANES];
    _Alignas(4) uint8_t q[LANES * MAX_GROUP]; /* in weight order */
};

/* The scales of a super-block in normalised units, as the decoder reads them, and as stored. */
struct super_scales { float d, dmin; uint16_t d_stored, dmin_stored; };

static inline struct super_scales round_super_scales(float d, float dmin, float unit)
{
    struct super_scales r;
    r.d = rounded_scale(d, unit, &r.d_stored);
    r.dmin = rounded_scale(dmin, unit, &r.dmin_stored);
    return r;
}

/* d and dmin of each super-block, in all of its lanes. */
struct super_lanes { f32x16 d, dmin; };

static ALWAYS_INLINE struct super_lanes lanes_of_super_scales(const struct super_scales *super,
                                                              int group_count)
{
    float d[LANES], dmin[LANES];
    for (int k = 0; k < LANES / group_count; k++) {
        d[k] = super[k].d;
        dmin[k] = super[k].dmin;
    }
    return (struct super_lanes){lanes_of_blocks(d, group_count),
                                lanes_of_blocks(dmin, group_count)};
}

/* A lattice point for each group, and the error with the best codes for it. */
struct lattice_point { f32x16 ls, lm, error; };

static ALWAYS_INLINE f32x16 sum_in_levels(const struct groups *g, const f32x16 *y, int n,
                                          float q_most, f32x16 m, int is_weighted)
{
    f32x16 error = splat(0);
    for (int i = 0; i < n; i++) {
        f32x16 z = add(y[i], m), e = sub(z, nearest(z, 0, q_most));
        error = add(error, mul(times_importance(g, i, e, is_weighted), e));
    }
    return error;
}

/* sum w (x - s q + m)^2 / s^2, the codes nearest for this scale and min; y is x / s, and m is the
 * min over s. In units of s, the quotients serve all mins of one scale. */
static ALWAYS_INLINE f32x16 error_in_levels(const struct groups *g, const f32x16 *y, int n,
                                            float q_most, f32x16 m)
{
    return g->is_weighted ? sum_in_levels(g, y, n, q_most, m, 1)
                          : sum_in_levels(g, y, n, q_most, m, 0);
}

/* Replace `best` by the best of the points (ls, lm) with one ls and mins around the one that fits
 * ls best. */
static ALWAYS_INLINE void choose_min(const struct groups *g, struct affine_format f, int reach,
                                     struct group_sums t, f32x16 mean_code, f32x16 ls,
                                     struct super_lanes super, f32x16 per_dmin,
                                     struct lattice_point *best)
{
    f32x16 zero = splat(0), mean_x = quotient(t.x, t.w);
    f32x16 s = mul(ls, super.d), inverse = quotient_or_zero(splat(1), s), y[MAX_GROUP];
    for (int k = 0; k < f.n; k++)
        y[k] = mul(g->x[k], inverse);
    f32x16 m_target = sub(mul(s, mean_code), mean_x);
    f32x16 lm_target = nearest(mul(m_target, per_dmin), 0, f.l_most);
    for (int j = -reach; j <= reach; j++) {
        f32x16 lm = least(most(add(lm_target, splat((float)j)), zero), splat(f.l_most));
        f32x16 m = mul(lm, super.dmin);
        f32x16 error = error_in_levels(g, y, f.n, f.q_most, mul(m, inverse));
        f32x16 constant = add(t.xx, mul(m, add(add(t.x, t.x), mul(m, t.w))));
        error = choose(below(zero, s), mul(mul(error, s), s), constant);
        mask16 better = below(error, best->error);
        best->error = choose(better, error, best->error);
        best->ls = choose(better, ls, best->ls);
        best->lm = choose(better, lm, best->lm);
    }
}

/* The best (ls, lm) near each group's target scale for given d and dmin, or zeros. mean_code: the
 * weighted mean of the group's codes. */
static ALWAYS_INLINE struct lattice_point
choose_lattice(const struct groups *g, struct affine_format f, struct affine_effort e,
               struct group_sums t, f32x16 mean_code, f32x16 target, struct super_lanes super)
{
    f32x16 zero = splat(0), per_dmin = quotient_or_zero(splat(1), super.dmin);
    f32x16 ls_target = nearest(quotient_or_zero(target, super.d), 0, f.l_most);
    struct lattice_point best = {zero, zero, error_of_zeros(t.xx)};
    for (int i = -e.ls_reach; i <= e.ls_reach; i++) {
        f32x16 ls = least(most(add(ls_target, splat((float)i)), zero), splat(f.l_most));
        choose_min(g, f, i == 0 ? e.lm_reach : e.lm_side_reach, t, mean_code, ls, super, per_dmin,
                   &best);
    }
    return best;
}

/* The d and dmin that fit the codes and lattice points of one super-block best: the normal
 * equations of x ~ d A - dmin B, A = ls q, B = lm, summed over its groups. Negative or unsolvable:
 * 0. */
static inline struct super_scales solve_super_scales(const float *ls, const float *lm,
                                                     const float *w, const float *x,
                                                     const float *q, const float *qq,
                                                     const float *qx, int group_count, float unit)
{
    double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0;
    for (int l = 0; l < group_count; l++) {
        aa += (double)ls[l] * ls[l] * qq[l];
        ab += (double)ls[l] * lm[l] * q[l];
        bb += (double)lm[l] * lm[l] * w[l];
        ax += (double)ls[l] * qx[l];
        bx += (double)lm[l] * x[l];
    }
    double determinant = aa * bb - ab * ab, d = 0, dmin = 0;
    if (determinant > 1e-9 * aa * bb) {
        d = (ax * bb - ab * bx) / determinant;
        dmin = (ab * ax - aa * bx) / determinant;
    } else if (aa > 0) {
        d = ax / aa;
    }
    return round_super_scales(d > 0 ? (float)d : 0, dmin > 0 ? (float)dmin : 0, unit);
}

/* The same for all super-blocks in the lanes. */
static ALWAYS_INLINE void solve_all_super_scales(const struct groups *g, int group_count,
                                                 struct lattice_point p, struct group_sums t,
                                                 struct affine_sums u, struct super_scales *super)
{
    float ls[LANES], lm[LANES], w[LANES], x[LANES], q[LANES], qq[LANES], qx[LANES];
    store(ls, p.ls);
    store(lm, p.lm);
    store(w, t.w);
    store(x, t.x);
    store(q, u.q);
    store(qq, u.qq);
    store(qx, u.qx);
    for (int k = 0; k < LANES / group_count; k++) {
        int l = k * group_count;
        super[k] = solve_super_scales(ls + l, lm + l, w + l, x + l, q + l, qq + l, qx + l,
                                      group_count, g->unit[l]);
    }
}

/* The best scales so far, and their error in each super-block. */
struct affine_best {
    float error[LANES];
    struct super_scales super[LANES];
    f32x16 ls, lm;
};

/* Take the scales of those super-blocks whose error they reduce. */
static ALWAYS_INLINE void keep_better_point(struct affine_best *best, int group_count,
                                            const struct super_scales *super,
                                            struct lattice_point p)
{
    float sum[LANES], reduction[LANES];
    sums_of_blocks(p.error, group_count, sum);
    for (int k = 0; k < LANES / group_count; k++) {
        reduction[k] = best->error[k] - sum[k];
        if (reduction[k] > 0) {
            best->error[k] = sum[k];
            best->super[k] = super[k];
        }
    }
    mask16 better = below(splat(0), lanes_of_blocks(reduction, group_count));
    best->ls = choose(better, p.ls, best->ls);
    best->lm = choose(better, p.lm, best->lm);
}

/* One start of the search: from the given d and dmin, lattice and refit in turn. */
static ALWAYS_INLINE void search_from(const struct groups *g, struct affine_format f,
                                      struct affine_effort e, struct group_sums t,
                                      f32x16 target, struct affine_sums u,
                                      struct super_scales *super, struct affine_best *best)
{
    for (int round = 0;; round++) {
        struct super_lanes lanes = lanes_of_super_scales(super, f.group_count);
        struct lattice_point p =
            choose_lattice(g, f, e, t, quotient(u.q, t.w), target, lanes);
        keep_better_point(best, f.group_count, super, p);
        if (round == e.rounds)
            break;
        f32x16 scale = mul(p.ls, lanes.d), offset = sub(splat(0), mul(p.lm, lanes.dmin));
        u = sum_affine(g, f.n, f.q_most, quotient_or_zero(splat(1), scale), offset);
        target = solve_affine(t, u, OFFSET_NOT_ABOVE_ZERO).s;
        solve_all_super_scales(g, f.group_count, p, t, u, super);
    }
}

static ALWAYS_INLINE struct affine_scales scales_of_best(const struct affine_best *best,
                                                         int group_count)
{
    struct affine_scales r;
    struct super_lanes lanes = lanes_of_super_scales(best->super, group_count);
    r.affine.s = mul(best->ls, lanes.d);
    r.affine.b = sub(splat(0), mul(best->lm, lanes.dmin));
    for (int k = 0; k < LANES / group_count; k++) {
        r.d[k] = best->super[k].d_stored;
        r.dmin[k] = best->super[k].dmin_stored;
    }
    float ls[LANES], lm[LANES];
    store(ls, best->ls);
    store(lm, best->lm);
    for (int l = 0; l < LANES; l++) {
        r.ls[l] = (uint8_t)ls[l];
        r.lm[l] = (uint8_t)lm[l];
    }
    return r;
}

static ALWAYS_INLINE struct affine_scales fit_affine_k(const struct groups *g,
                                                       struct affine_format f, enum effort effort)
{
    struct affine_effort e = f.effort[effort];
    struct group_sums t = sum_group(g, f.n);
    struct affine unconstrained =
        fit_affine(g, f.n, f.q_most, OFFSET_NOT_ABOVE_ZERO, t, e.tries);
    struct affine_sums u = sum_affine(
        g, f.n, f.q_most, quotient_or_zero(splat(1), unconstrained.s), unconstrained.b);
    float s_most[LANES], m_most[LANES];
    most_of_blocks(unconstrained.s, f.group_count, s_most);
    most_of_blocks(sub(splat(0), unconstrained.b), f.group_count, m_most);

    struct affine_best best = {.ls = splat(0), .lm = splat(0)};
    for (int k = 0; k < LANES; k++)
        best.error[k] = INFINITY;
    for (int start = 0; start < e.starts; start++) {
        struct super_scales super[LANES];
        for (int k = 0; k < LANES / f.group_count; k++)
            super[k] = round_super_scales(s_most[k] / (f.l_most - (float)start),
                                          m_most[k] / (f.l_most - (float)start),
                                          g->unit[k * f.group_count]);
        search_from(g, f, e, t, unconstrained.s, u, super, &best);
    }
    return scales_of_best(&best, f.group_count);
}

static ALWAYS_INLINE void encode_affine(const struct groups *g, struct affine_format f,
                                        enum effort effort, struct affine_codes *out)
{
    struct affine_scales scales = fit_affine_k(g, f, effort);
    f32x16 q[MAX_GROUP];
    round_affine(g, f.n, f.q_most, scales.affine, q);
    memcpy(out->d, scales.d, sizeof out->d);
    memcpy(out->dmin, scales.dmin, sizeof out->dmin);
    memcpy(out->ls, scales.ls, sizeof out->ls);
    memcpy(out->lm, scales.lm, sizeof out->lm);
    scatter_codes(q, f.n, out->q);
}
