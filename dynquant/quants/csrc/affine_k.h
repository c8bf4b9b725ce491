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

#include "fit.h"

/* What one affine K type is made of; all fields are constants where they are used. */
struct affine_format {
    int n;           /* weights in a group */
    int group_count; /* groups in a super-block */
    float q_most, l_most;
    float step;      /* of the tries of fit_affine */
    struct { int tries, polish, rounds; } effort[N_EFFORTS]; /* rounds of lattice and refit */
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

static inline f32x16 spread(const struct super_scales *s, int group_count, int which)
{
    float lane[LANES];
    for (int l = 0; l < LANES; l++)
        lane[l] = which ? s[l / group_count].dmin : s[l / group_count].d;
    return load(lane);
}

struct lattice_point { f32x16 ls, lm, error; };

/* The best (ls, lm) near a group's wish (s, b): three scales, and for each the three mins around
 * the one that suits it best. */
static ALWAYS_INLINE struct lattice_point choose_lattice(const struct groups *g,
                                                         struct affine_format f,
                                                         struct group_sums t, f32x16 mean_code,
                                                         struct affine wish, f32x16 d, f32x16 dmin)
{
    f32x16 zero = splat(0), mean_x = quotient(t.x, t.w);
    f32x16 per_dmin = quotient_or_zero(splat(1), dmin);
    f32x16 ls_wish = nearest(quotient_or_zero(wish.s, d), 0, f.l_most);
    struct lattice_point best = {zero, zero, t.xx}; /* all zero is always to be had */
    for (int i = -1; i <= 1; i++) {
        f32x16 ls = least(most(add(ls_wish, splat((float)i)), zero), splat(f.l_most));
        f32x16 s = mul(ls, d);
        f32x16 m_wish = sub(mul(s, mean_code), mean_x);
        f32x16 lm_wish = nearest(mul(m_wish, per_dmin), 0, f.l_most);
        for (int j = -1; j <= 1; j++) {
            f32x16 lm = least(most(add(lm_wish, splat((float)j)), zero), splat(f.l_most));
            struct affine a = {s, sub(zero, mul(lm, dmin))};
            f32x16 error = error_of_affine(g, f.n, f.q_most, a);
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
    int tries = f.effort[effort].tries, polish = f.effort[effort].polish;
    int rounds = f.effort[effort].rounds;
    struct group_sums t = sum_group(g, f.n);
    struct affine wish = fit_affine(g, f.n, f.q_most, t, tries, f.step, polish);
    struct affine_sums u =
        sum_affine(g, f.n, f.q_most, quotient_or_zero(splat(1), wish.s), wish.b);

    float s[LANES], b[LANES], group_w[LANES], group_x[LANES];
    store(s, wish.s);
    store(b, wish.b);
    store(group_w, t.w);
    store(group_x, t.x);

    struct super_scales now[LANES], best[LANES];
    float best_ls[LANES] = {0}, best_lm[LANES] = {0}, best_error[LANES];
    for (int first = 0, k = 0; first < LANES; first += f.group_count, k++) {
        float s_most = 0, m_most = 0;
        for (int l = first; l < first + f.group_count; l++) {
            s_most = s[l] > s_most ? s[l] : s_most;
            m_most = -b[l] > m_most ? -b[l] : m_most;
        }
        now[k] = round_super_scales(s_most / f.l_most, m_most / f.l_most, g->unit[first]);
        best[k] = now[k];
        best_error[k] = INFINITY;
    }
    for (int round = 0;; round++) {
        f32x16 d = spread(now, f.group_count, 0), dmin = spread(now, f.group_count, 1);
        struct lattice_point p =
            choose_lattice(g, f, t, quotient(u.q, t.w), wish, d, dmin);
        float ls[LANES], lm[LANES], error[LANES];
        store(ls, p.ls);
        store(lm, p.lm);
        store(error, p.error);
        for (int first = 0, k = 0; first < LANES; first += f.group_count, k++) {
            float sum = 0;
            for (int l = first; l < first + f.group_count; l++)
                sum += error[l];
            if (sum >= best_error[k])
                continue;
            best_error[k] = sum;
            best[k] = now[k];
            memcpy(best_ls + first, ls + first, f.group_count * sizeof *ls);
            memcpy(best_lm + first, lm + first, f.group_count * sizeof *lm);
        }
        if (round == rounds)
            break;
        f32x16 scale = mul(p.ls, d), offset = sub(splat(0), mul(p.lm, dmin));
        u = sum_affine(g, f.n, f.q_most, quotient_or_zero(splat(1), scale), offset);
        wish = solve_affine(t, u);
        float q[LANES], qq[LANES], qx[LANES];
        store(q, u.q);
        store(qq, u.qq);
        store(qx, u.qx);
        for (int first = 0, k = 0; first < LANES; first += f.group_count, k++)
            now[k] = solve_super_scales(ls + first, lm + first, group_w + first, group_x + first,
                                        q + first, qq + first, qx + first, f.group_count,
                                        g->unit[first]);
    }

    f32x16 scale = mul(load(best_ls), spread(best, f.group_count, 0));
    f32x16 min = mul(load(best_lm), spread(best, f.group_count, 1));
    f32x16 inverse = quotient_or_zero(splat(1), scale);
    f32x16 q[MAX_GROUP];
    for (int i = 0; i < f.n; i++)
        q[i] = nearest(mul(add(g->x[i], min), inverse), 0, f.q_most);
    scatter_codes(q, f.n, out->q);
    for (int l = 0; l < LANES; l++) {
        out->ls[l] = (uint8_t)best_ls[l];
        out->lm[l] = (uint8_t)best_lm[l];
    }
    for (int k = 0; k < LANES / f.group_count; k++) {
        out->d[k] = best[k].d_stored;
        out->dmin[k] = best[k].dmin_stored;
    }
}
