/* The affine K types: super-blocks whose groups have a scale and a min on a lattice.
 *
 *   w = d * ls * q - dmin * lm        d, dmin f16 of the super-block; ls, lm small integers of the
 *                                     group; q the weight's code
 *
 * Rounding the scale and the min to the lattice costs more than rounding d, and they err together:
 * a scale that came out too large wants a larger min. So ls and lm are chosen jointly, by trying
 * the lattice points around the optimum with codes chosen anew for each; then d and dmin are
 * solved for by least squares, and so on in turn.
 */
#pragma once

#include <math.h>

#include "fit.h"

/* What one affine K type is made of; all fields are constants where they are used. The efforts are
 * from sweeps over the data of scripts/bench_encoders.py: least error at the speed wanted. */
struct affine_format {
    int n;           /* weights in a group */
    int group_count; /* groups in a super-block */
    float q_most, l_most;
    struct affine_effort {
        struct affine_tries tries; /* of fit_affine */
        int starts, rounds;        /* first values of d and dmin; rounds of lattice and refit of each */
        int ls_reach, lm_reach;    /* how far the lattice is searched around the wish, in steps */
        int lm_side_reach;         /* lm_reach beside the scales that are not the wish's own */
    } effort[N_EFFORTS];
};

/* Sixteen groups, encoded: 16 / group_count super-blocks. */
struct affine_codes {
    uint16_t d[LANES], dmin[LANES]; /* per super-block */
    uint8_t ls[LANES], lm[LANES];   /* per group */
    _Alignas(4) uint8_t q[LANES * MAX_GROUP]; /* per weight, in weight order */
};

/* The scales of a super-block in normalised units, as the decoder reads them. */
struct super_scales { float d, dmin; uint16_t d_stored, dmin_stored; };

static inline struct super_scales round_super_scales(float d, float dmin, float unit)
{
    struct super_scales r;
    r.d = rounded_scale(d, unit, &r.d_stored);
    r.dmin = rounded_scale(dmin, unit, &r.dmin_stored);
    return r;
}

struct lattice_point { f32x16 ls, lm, error; };

/* sum w (x - s q + m)^2 over s^2, the codes nearest for this scale and min; y is x / s, m is the
 * min over s. In levels, the quotients serve all mins of one scale. */
static ALWAYS_INLINE f32x16 error_in_levels(const struct groups *g, const f32x16 *y, int n,
                                            float q_most, f32x16 m)
{
    f32x16 error = splat(0);
    for (int i = 0; i < n; i++) {
        f32x16 z = add(y[i], m), e = sub(z, nearest(z, 0, q_most));
        error = add(error, mul(mul(g->w[i], e), e));
    }
    return error;
}

/* The best (ls, lm) near a group's wish (s, b): scales around the wish, and for each of them the
 * mins around the one that suits it best. */
static ALWAYS_INLINE struct lattice_point
choose_lattice(const struct groups *g, struct affine_format f, struct affine_effort e,
               struct group_sums t, f32x16 mean_code, struct affine wish, f32x16 d, f32x16 dmin)
{
    f32x16 zero = splat(0), mean_x = quotient(t.x, t.w);
    f32x16 per_dmin = quotient_or_zero(splat(1), dmin);
    f32x16 ls_wish = nearest(quotient_or_zero(wish.s, d), 0, f.l_most);
    struct lattice_point best = {zero, zero, error_of_zeros(t.xx)}; /* always to be had */
    for (int i = -e.ls_reach; i <= e.ls_reach; i++) {
        f32x16 ls = least(most(add(ls_wish, splat((float)i)), zero), splat(f.l_most));
        f32x16 s = mul(ls, d), inverse = quotient_or_zero(splat(1), s), y[MAX_GROUP];
        for (int k = 0; k < f.n; k++)
            y[k] = mul(g->x[k], inverse);
        f32x16 m_wish = sub(mul(s, mean_code), mean_x);
        f32x16 lm_wish = nearest(mul(m_wish, per_dmin), 0, f.l_most);
        int lm_reach = i == 0 ? e.lm_reach : e.lm_side_reach;
        for (int j = -lm_reach; j <= lm_reach; j++) {
            f32x16 lm = least(most(add(lm_wish, splat((float)j)), zero), splat(f.l_most));
            f32x16 m = mul(lm, dmin);
            f32x16 error = error_in_levels(g, y, f.n, f.q_most, mul(m, inverse));
            f32x16 constant = add(t.xx, mul(m, add(add(t.x, t.x), mul(m, t.w))));
            error = choose(below(zero, s), mul(mul(error, s), s), constant);
            mask16 better = below(error, best.error);
            best.error = choose(better, error, best.error);
            best.ls = choose(better, ls, best.ls);
            best.lm = choose(better, lm, best.lm);
        }
    }
    return best;
}

/* d and dmin that fit the codes and lattice points of one super-block best: the normal equations
 * of x ~ d A - dmin B, A = ls q, B = lm, summed over its groups. Negative or unsolvable: 0. */
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

static ALWAYS_INLINE void encode_affine(const struct groups *g, struct affine_format f,
                                        enum effort effort, struct affine_codes *out)
{
    struct affine_effort e = f.effort[effort];
    int n_blocks = LANES / f.group_count;
    struct group_sums t = sum_group(g, f.n);
    struct affine alone =
        fit_affine(g, f.n, f.q_most, OFFSET_NOT_ABOVE_ZERO, t, e.tries);
    struct affine_sums u_alone =
        sum_affine(g, f.n, f.q_most, quotient_or_zero(splat(1), alone.s), alone.b);

    float s[LANES], b[LANES], group_w[LANES], group_x[LANES], best_error[LANES];
    float s_most[LANES], m_most[LANES];
    store(s, alone.s);
    store(b, alone.b);
    store(group_w, t.w);
    store(group_x, t.x);
    for (int k = 0; k < n_blocks; k++) {
        s_most[k] = m_most[k] = 0;
        for (int l = k * f.group_count; l < (k + 1) * f.group_count; l++) {
            s_most[k] = s[l] > s_most[k] ? s[l] : s_most[k];
            m_most[k] = -b[l] > m_most[k] ? -b[l] : m_most[k];
        }
        best_error[k] = INFINITY;
    }

    f32x16 best_ls = splat(0), best_lm = splat(0);
    float best_d[LANES] = {0}, best_dmin[LANES] = {0};
    for (int start = 0; start < e.starts; start++) {
        struct super_scales now[LANES];
        for (int k = 0; k < n_blocks; k++)
            now[k] = round_super_scales(s_most[k] / (f.l_most - (float)start),
                                        m_most[k] / (f.l_most - (float)start),
                                        g->unit[k * f.group_count]);
        struct affine wish = alone;
        struct affine_sums u = u_alone;
        for (int round = 0;; round++) {
            float d[LANES], dmin[LANES];
            for (int k = 0; k < n_blocks; k++) {
                d[k] = now[k].d;
                dmin[k] = now[k].dmin;
            }
            f32x16 d_lanes = lanes_of_blocks(d, f.group_count);
            f32x16 dmin_lanes = lanes_of_blocks(dmin, f.group_count);
            struct lattice_point p = choose_lattice(
                g, f, e, t, quotient(u.q, t.w), wish, d_lanes, dmin_lanes);
            float sum[LANES], gained[LANES];
            sums_of_blocks(p.error, f.group_count, sum);
            for (int k = 0; k < n_blocks; k++) {
                gained[k] = best_error[k] - sum[k];
                if (gained[k] > 0) {
                    best_error[k] = sum[k];
                    best_d[k] = now[k].d;
                    best_dmin[k] = now[k].dmin;
                    out->d[k] = now[k].d_stored;
                    out->dmin[k] = now[k].dmin_stored;
                }
            }
            mask16 better = below(splat(0), lanes_of_blocks(gained, f.group_count));
            best_ls = choose(better, p.ls, best_ls);
            best_lm = choose(better, p.lm, best_lm);
            if (round == e.rounds)
                break;
            f32x16 scale = mul(p.ls, d_lanes), offset = sub(splat(0), mul(p.lm, dmin_lanes));
            u = sum_affine(g, f.n, f.q_most, quotient_or_zero(splat(1), scale), offset);
            wish = solve_affine(t, u, OFFSET_NOT_ABOVE_ZERO);
            float ls[LANES], lm[LANES], q[LANES], qq[LANES], qx[LANES];
            store(ls, p.ls);
            store(lm, p.lm);
            store(q, u.q);
            store(qq, u.qq);
            store(qx, u.qx);
            for (int first = 0, k = 0; k < n_blocks; first += f.group_count, k++)
                now[k] = solve_super_scales(ls + first, lm + first, group_w + first,
                                            group_x + first, q + first, qq + first, qx + first,
                                            f.group_count, g->unit[first]);
        }
    }

    f32x16 scale = mul(best_ls, lanes_of_blocks(best_d, f.group_count));
    f32x16 min = mul(best_lm, lanes_of_blocks(best_dmin, f.group_count));
    f32x16 inverse = quotient_or_zero(splat(1), scale), q[MAX_GROUP];
    for (int i = 0; i < f.n; i++)
        q[i] = nearest(mul(add(g->x[i], min), inverse), 0, f.q_most);
    scatter_codes(q, f.n, out->q);
    float ls[LANES], lm[LANES];
    store(ls, best_ls);
    store(lm, best_lm);
    for (int l = 0; l < LANES; l++) {
        out->ls[l] = (uint8_t)ls[l];
        out->lm[l] = (uint8_t)lm[l];
    }
}
