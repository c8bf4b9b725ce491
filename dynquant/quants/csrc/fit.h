/* The searches that block formats share, for sixteen groups at a time.
 *
 * Objective: sum of w * (x - decoded x)^2, w the importance. Everything here is written for one
 * lane and runs on sixteen; `n`, the code range and the number of tries are constants of a format,
 * so that the compiler sees straight loops.
 */
#pragma once

#include <math.h>

#include "groups.h"

/* ---- x ~ s * q + b, q = 0..q_most --------------------------------------------------------------
 *
 * The K types' scale and min have b <= 0 (the min is -b); where b is stored as it is, it is free.
 */

struct affine { f32x16 s, b; };

enum offset { OFFSET_NOT_ABOVE_ZERO, OFFSET_FREE };

/* Sums of a group under one choice of codes. */
struct affine_sums { f32x16 q, qq, qx; };

/* Sums of a group that no choice changes: of w, w * x, w * x^2. */
struct group_sums { f32x16 w, x, xx; };

/* What a fit has to stay below to be better than zeros, given sum w x^2: less by what rounding may
 * hide in a sum, lest a scale be chosen that f16 cannot bring near the weights. */
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

/* The codes nearest to (x - b) * inverse, summed. */
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

/* Where fit_affine looks: with the lowest and the highest level each at `ends` places, first +
 * step k levels inside the range of the group's weights (below 0: outside); ends^2 tries. The best
 * is polished by choosing codes again. Moving both ends finds what moving one cannot: where the
 * levels lie between their neighbours matters as much as how far apart they are. Steps of a whole
 * level would only repeat that, so they are not whole. */
struct affine_tries { int ends; float first, step; int polish; };

/* Scale and offset of each group on their own, each try solved for its codes. With the offset not
 * above zero, the range holds zero. A range of zero gives s = 0. */
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
    for (int c = 0; c < tries.ends * tries.ends; c++) {
        float low = tries.first + tries.step * (float)(c / tries.ends);
        float high = tries.first + tries.step * (float)(c % tries.ends);
        float levels = q_most + low + high;
        f32x16 b = add(lo, mul(range, splat(low / levels)));
        struct affine_sums u = sum_affine(g, n, q_most, mul(splat(levels), per_range), b);
        struct affine a = solve_affine(t, u, offset);
        f32x16 error = error_of_solution(t, u, a);
        mask16 better = below(error, best_error);
        best_error = choose(better, error, best_error);
        best.s = choose(better, a.s, best.s);
        best.b = choose(better, a.b, best.b);
    }
    for (int c = 0; c < tries.polish; c++)
        best = solve_affine(
            t, sum_affine(g, n, q_most, quotient_or_zero(splat(1), best.s), best.b), offset);
    return best;
}

/* ---- x ~ s * q, q on a fixed set of levels ----------------------------------------------------- */

/* The levels a code can mean. Whole numbers lo..hi where there is no table; a table has sixteen
 * levels in rising order, with lo and hi the first and the last. */
struct levels { float lo, hi; const float *table; };

/* The level nearest to a. For a table: one level up for every midpoint that a lies above. */
static ALWAYS_INLINE f32x16 nearest_level(f32x16 a, struct levels v)
{
    if (!v.table)
        return nearest(a, v.lo, v.hi);
    f32x16 level = splat(v.table[0]);
    for (int k = 1; k < 16; k++) {
        f32x16 midpoint = splat(0.5f * (v.table[k - 1] + v.table[k]));
        level = choose(below(midpoint, a), splat(v.table[k]), level);
    }
    return level;
}

/* The code of that level: its place among the levels, from 0. */
static ALWAYS_INLINE f32x16 nearest_code(f32x16 a, struct levels v)
{
    if (!v.table)
        return sub(nearest(a, v.lo, v.hi), splat(v.lo));
    f32x16 code = splat(0);
    for (int k = 1; k < 16; k++) {
        f32x16 midpoint = splat(0.5f * (v.table[k - 1] + v.table[k]));
        code = add(code, choose(below(midpoint, a), splat(1), splat(0)));
    }
    return code;
}

/* Sums of a group under one choice of codes. */
struct scale_sums { f32x16 qq, qx; };

static ALWAYS_INLINE struct scale_sums sum_scale(const struct groups *g, int n, struct levels v,
                                                 f32x16 inverse)
{
    struct scale_sums t = {splat(0), splat(0)};
    for (int i = 0; i < n; i++) {
        f32x16 q = nearest_level(mul(g->x[i], inverse), v), wq = mul(g->w[i], q);
        t.qq = add(t.qq, mul(wq, q));
        t.qx = add(t.qx, mul(wq, g->x[i]));
    }
    return t;
}

/* sum w (x - s q)^2 with the levels nearest for this s; counted in levels until the end, which is
 * the shortest way. Not a number where s is zero or next to it: never below another error. */
static ALWAYS_INLINE f32x16 error_of_scale(const struct groups *g, int n, struct levels v, f32x16 s)
{
    f32x16 inverse = quotient(splat(1), s), error = splat(0);
    for (int i = 0; i < n; i++) {
        f32x16 y = mul(g->x[i], inverse), e = sub(y, nearest_level(y, v));
        error = add(error, mul(mul(g->w[i], e), e));
    }
    return mul(mul(error, s), s); /* s * s alone may underflow */
}

/* The weight of largest magnitude of each group, with its sign. */
static ALWAYS_INLINE f32x16 extreme(const struct groups *g, int n)
{
    f32x16 r = splat(0);
    for (int i = 0; i < n; i++)
        r = choose(below(absolute(r), absolute(g->x[i])), g->x[i], r);
    return r;
}

/* Where fit_scale looks: scales that map the weight of largest magnitude to the levels first,
 * first + step and so on, `count` of them, around the outermost one. The best is polished by
 * choosing codes again. Where levels are many, whole ones are the better tries: the largest weight
 * then costs nothing. */
struct scale_tries { int count; float first, step; int polish; };

/* The scale of each group on its own, each try with both signs where the levels differ by sign, and
 * scored by what the least-squares scale for its codes leaves, sum w x^2 - qx^2 / qq. A group of
 * zeros gives 0. */
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
