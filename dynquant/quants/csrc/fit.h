/* The searches for scales that block formats share, for sixteen groups at a time.
 *
 * They minimise the sum of w * (x - decoded x)^2, w the importance. Everything here is written for
 * one lane and runs on sixteen. `n`, the code range and the number of tries are constants of a
 * format, so that the compiler sees straight loops.
 */
#pragma once

#include <math.h>

#include "round.h"

/* ---- x ~ s * q + b, q = 0..q_most --------------------------------------------------------------
 *
 * The K types store a min m = -b that is not negative, so b <= 0. Where b itself is stored, it is
 * free.
 */

enum offset { OFFSET_NOT_ABOVE_ZERO, OFFSET_FREE };

/* Sums of a group under one choice of codes: of w q, w q^2, w q x. */
struct affine_sums { f32x16 q, qq, qx; };

/* Sums of a group that do not depend on the codes: of w, w x, w x^2. */
struct group_sums { f32x16 w, x, xx; };

/* A fit is better than zeros if its error is below this, given sum w x^2: a little less than that,
 * by the rounding error of a sum, so that no scale is chosen that f16 cannot bring near the
 * weights. */
static ALWAYS_INLINE f32x16 error_of_zeros(f32x16 xx) { return mul(xx, splat(1 - 0x1p-20f)); }

static ALWAYS_INLINE struct group_sums sum_group(const struct groups *g, int n)
{
    struct group_sums t = {splat(0), splat(0), splat(0)};
    for (int i = 0; i < n; i++) {
        f32x16 wx = mul(g->w[i], g->x[i]);
        t.w = add(t.w, g->w[i]);
        t.x = add(t.x, wx);
        t.xx = add(t.xx, mul(wx, g->x[i]));
    }
    return t;
}

/* The sums for the codes nearest to (x - b) * inverse. */
static ALWAYS_INLINE struct affine_sums sum_affine(const struct groups *g, int n, float q_most,
                                                   f32x16 inverse, f32x16 b)
{
    struct affine_sums t = {splat(0), splat(0), splat(0)};
    for (int i = 0; i < n; i++) {
        f32x16 q = nearest(mul(sub(g->x[i], b), inverse), 0, q_most);
        f32x16 wq = mul(g->w[i], q);
        t.q = add(t.q, wq);
        t.qq = add(t.qq, mul(wq, q));
        t.qx = add(t.qx, mul(wq, g->x[i]));
    }
    return t;
}

/* The least-squares s and b for given codes. */
static ALWAYS_INLINE struct affine solve_affine(struct group_sums t, struct affine_sums u,
                                                enum offset offset)
{
    f32x16 zero = splat(0);
    f32x16 determinant = sub(mul(t.w, u.qq), mul(u.q, u.q));
    f32x16 s = quotient_or_zero(sub(mul(t.w, u.qx), mul(u.q, t.x)), determinant);
    f32x16 b = quotient(sub(t.x, mul(s, u.q)), t.w);
    if (offset == OFFSET_FREE)
        return (struct affine){s, b};
    mask16 above = below(zero, b);
    return (struct affine){choose(above, quotient_or_zero(u.qx, u.qq), s), choose(above, zero, b)};
}

/* sum w (x - s q - b)^2 at the least-squares s and b. */
static ALWAYS_INLINE f32x16 error_of_solution(struct group_sums t, struct affine_sums u,
                                              struct affine a)
{
    return sub(t.xx, add(mul(a.s, u.qx), mul(a.b, t.x)));
}

/* sum w (x - s q - b)^2 with the codes nearest for this s and b. */
static ALWAYS_INLINE f32x16 error_of_affine(const struct groups *g, int n, float q_most,
                                            struct affine a)
{
    f32x16 inverse = quotient_or_zero(splat(1), a.s), error = splat(0);
    for (int i = 0; i < n; i++) {
        f32x16 y = sub(g->x[i], a.b);
        f32x16 e = sub(y, mul(nearest(mul(y, inverse), 0, q_most), a.s));
        error = add(error, mul(mul(g->w[i], e), e));
    }
    return error;
}

/* The sums of two tries. Two at a time keep the vector units busy, and weights are loaded once. */
static ALWAYS_INLINE void sum_tries(const struct groups *g, int n, float q_most,
                                    const f32x16 *inverse, const f32x16 *b, int is_weighted,
                                    struct affine_sums *sums)
{
    const struct affine_sums zero = {splat(0), splat(0), splat(0)};
    struct affine_sums t[2] = {zero, zero};
    const f32x16 start[2] = {b[0], b[1]}, steps[2] = {inverse[0], inverse[1]};
    for (int i = 0; i < n; i++) {
        const f32x16 x = g->x[i];
        for (int k = 0; k < 2; k++) {
            f32x16 q = nearest(mul(sub(x, start[k]), steps[k]), 0, q_most);
            f32x16 wq = times_importance(g, i, q, is_weighted);
            t[k].q = add(t[k].q, wq);
            t[k].qq = add(t[k].qq, mul(wq, q));
            t[k].qx = add(t[k].qx, mul(wq, x));
        }
    }
    sums[0] = t[0];
    sums[1] = t[1];
}

/* Replace the best scale and offset by those that fit the codes behind these sums, if they leave a
 * smaller error. */
static ALWAYS_INLINE void take_better(struct group_sums t, struct affine_sums u, enum offset offset,
                                      struct affine *best, f32x16 *best_error)
{
    struct affine a = solve_affine(t, u, offset);
    f32x16 error = error_of_solution(t, u, a);
    mask16 better = below(error, *best_error);
    *best_error = choose(better, error, *best_error);
    best->s = choose(better, a.s, best->s);
    best->b = choose(better, a.b, best->b);
}

/* The tries of fit_affine. The lowest and the highest level each take `ends` places, first + step k
 * levels inside the range of the group's weights (below 0: outside of it): ends^2 tries. Then codes
 * and solution are computed `polish` times more for the best. Moving both ends finds solutions that
 * moving one cannot: where the levels lie between their neighbours matters as much as how far apart
 * they are. Steps of a whole level would only repeat that, so they are not whole. */
struct affine_tries { int ends; float first, step; int polish; };

/* Scale and offset of each group, unconstrained by a lattice, each try solved for its codes. With
 * the offset not above zero, the range includes zero. A range of width zero gives s = 0. */
static ALWAYS_INLINE struct affine fit_affine(const struct groups *g, int n, float q_most,
                                              enum offset offset, struct group_sums t,
                                              struct affine_tries tries)
{
    f32x16 lo = offset == OFFSET_FREE ? g->x[0] : splat(0), hi = g->x[0];
    for (int i = 0; i < n; i++) {
        lo = least(lo, g->x[i]);
        hi = most(hi, g->x[i]);
    }
    f32x16 range = sub(hi, lo), per_range = quotient_or_zero(splat(1), range);
    struct affine best = {splat(0), lo};
    f32x16 best_error = splat(INFINITY);
    const int count = tries.ends * tries.ends;
    for (int c = 0; c < count; c += 2) {
        f32x16 b[2], inverse[2];
        for (int k = 0; k < 2; k++) {
            int place = c + k < count ? c + k : c; /* an odd last one is tried twice */
            float low = tries.first + tries.step * (float)(place / tries.ends);
            float high = tries.first + tries.step * (float)(place % tries.ends);
            float levels = q_most + low + high;
            b[k] = add(lo, mul(range, splat(low / levels)));
            inverse[k] = mul(splat(levels), per_range);
        }
        struct affine_sums u[2];
        if (g->is_weighted)
            sum_tries(g, n, q_most, inverse, b, 1, u);
        else
            sum_tries(g, n, q_most, inverse, b, 0, u);
        take_better(t, u[0], offset, &best, &best_error);
        take_better(t, u[1], offset, &best, &best_error);
    }
    for (int c = 0; c < tries.polish; c++)
        best = solve_affine(
            t, sum_affine(g, n, q_most, quotient_or_zero(splat(1), best.s), best.b), offset);
    return best;
}

/* ---- x ~ s * level, one of a fixed set of levels --------------------------------------------- */

/* Sums of a group under one choice of levels q: of w q^2, w q x. */
struct scale_sums { f32x16 qq, qx; };

static ALWAYS_INLINE struct scale_sums sum_levels(const struct groups *g, int n, struct levels v,
                                                  f32x16 inverse, int is_weighted)
{
    struct scale_sums t = {splat(0), splat(0)};
    for (int i = 0; i < n; i++) {
        f32x16 q = nearest_level(mul(g->x[i], inverse), v);
        f32x16 wq = times_importance(g, i, q, is_weighted);
        t.qq = add(t.qq, mul(wq, q));
        t.qx = add(t.qx, mul(wq, g->x[i]));
    }
    return t;
}

/* The sums for the levels nearest to x * inverse. */
static ALWAYS_INLINE struct scale_sums sum_scale(const struct groups *g, int n, struct levels v,
                                                 f32x16 inverse)
{
    return g->is_weighted ? sum_levels(g, n, v, inverse, 1) : sum_levels(g, n, v, inverse, 0);
}

static ALWAYS_INLINE f32x16 sum_errors_of_levels(const struct groups *g, int n, struct levels v,
                                                 f32x16 inverse, int is_weighted)
{
    f32x16 error = splat(0);
    for (int i = 0; i < n; i++) {
        f32x16 y = mul(g->x[i], inverse), e = sub(y, nearest_level(y, v));
        error = add(error, mul(times_importance(g, i, e, is_weighted), e));
    }
    return error;
}

/* sum w (x - s q)^2 with the levels nearest for this s. The sum is in units of s until the end,
 * which takes the fewest operations. Not a number where s is zero or next to it: never below
 * another error. */
static ALWAYS_INLINE f32x16 error_of_scale(const struct groups *g, int n, struct levels v, f32x16 s)
{
    f32x16 inverse = quotient(splat(1), s);
    f32x16 error = g->is_weighted ? sum_errors_of_levels(g, n, v, inverse, 1)
                                  : sum_errors_of_levels(g, n, v, inverse, 0);
    return mul(mul(error, s), s); /* the product s * s may underflow */
}

/* The weight of largest magnitude of each group, with its sign. */
static ALWAYS_INLINE f32x16 extreme(const struct groups *g, int n)
{
    f32x16 r = splat(0);
    for (int i = 0; i < n; i++)
        r = choose(below(absolute(r), absolute(g->x[i])), g->x[i], r);
    return r;
}

/* The tries of fit_scale: `count` scales, which map the weight of largest magnitude to the levels
 * first, first + step and so on, around the outermost one. Then levels and solution are computed
 * `polish` times more for the best. Types with many levels take whole ones: the largest weight then
 * has no error. */
struct scale_tries { int count; float first, step; int polish; };

/* The scale of each group, unconstrained by a lattice. Each try is made with both signs where the
 * levels are not symmetric, and has the error that the least-squares scale for its levels leaves,
 * sum w x^2 - qx^2 / qq. A group of zeros gives 0. */
static ALWAYS_INLINE f32x16 fit_scale(const struct groups *g, int n, struct levels v,
                                      struct scale_tries tries)
{
    f32x16 per_extreme = quotient_or_zero(splat(1), extreme(g, n));
    f32x16 best = splat(0), best_gain = splat(0);
    int signs = v.lo == -v.hi ? 1 : 2;
    for (int c = 0; c < signs * tries.count; c++) {
        float level = tries.first + tries.step * (float)(c / signs);
        f32x16 inverse = mul(splat(c % signs ? level : -level), per_extreme);
        struct scale_sums u = sum_scale(g, n, v, inverse);
        f32x16 s = quotient_or_zero(u.qx, u.qq), gain = mul(s, u.qx);
        mask16 better = below(best_gain, gain);
        best_gain = choose(better, gain, best_gain);
        best = choose(better, s, best);
    }
    for (int c = 0; c < tries.polish; c++) {
        struct scale_sums u = sum_scale(g, n, v, quotient_or_zero(splat(1), best));
        best = quotient_or_zero(u.qx, u.qq);
    }
    return best;
}
