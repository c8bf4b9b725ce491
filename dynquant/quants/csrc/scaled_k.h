/* The K types without mins: super-blocks whose groups have a signed scale on a lattice.
 *
 *   w = d * ls * q        d f16 of the super-block; ls a small integer of the group; q the
 *                         weight's level
 *
 * As in affine_k.h, ls is chosen by trying the lattice around the optimum with codes chosen anew,
 * and d is solved for by least squares in turn. One super-block is sixteen groups.
 */
#pragma once

#include "fit.h"

/* What one of these types is made of; all fields are constants where they are used. */
struct scaled_format {
    int n; /* weights in a group */
    struct levels levels;
    float l_least, l_most;
    struct { int tries; float first, step; int polish, rounds; } effort[N_EFFORTS];
};

struct scaled_codes {
    uint16_t d;
    int8_t ls[LANES];
    _Alignas(4) int8_t q[LANES * MAX_GROUP]; /* levels, in weight order */
};

static inline float sum_lanes(f32x16 a)
{
    float lane[LANES], sum = 0;
    store(lane, a);
    for (int l = 0; l < LANES; l++)
        sum += lane[l];
    return sum;
}

static ALWAYS_INLINE void encode_scaled(const struct groups *g, struct scaled_format f,
                                        enum effort effort, struct scaled_codes *out)
{
    int rounds = f.effort[effort].rounds;
    f32x16 zero = splat(0), none = error_of_scale(g, f.n, f.levels, zero);
    f32x16 wish = fit_scale(g, f.n, f.levels, f.effort[effort].tries, f.effort[effort].first,
                            f.effort[effort].step, f.effort[effort].polish);

    /* The largest scale takes the lattice's longer end, whatever its sign. */
    float lane[LANES], widest = 0;
    store(lane, wish);
    for (int l = 0; l < LANES; l++)
        widest = fabsf(lane[l]) > fabsf(widest) ? lane[l] : widest;
    uint16_t d_stored, best_d_stored = 0;
    float d = rounded_scale(widest / f.l_least, g->unit[0], &d_stored);

    float best_d = 0, best_error = INFINITY;
    f32x16 best_ls = zero;
    for (int round = 0;; round++) {
        f32x16 ls_wish = nearest(quotient_or_zero(wish, splat(d)), f.l_least, f.l_most);
        f32x16 ls = zero, error = none;
        for (int i = -1; i <= 1; i++) {
            f32x16 l = add(ls_wish, splat((float)i));
            l = least(most(l, splat(f.l_least)), splat(f.l_most));
            f32x16 e = error_of_scale(g, f.n, f.levels, mul(l, splat(d)));
            mask16 better = below(e, error);
            error = choose(better, e, error);
            ls = choose(better, l, ls);
        }
        float sum = sum_lanes(error);
        if (sum < best_error) {
            best_error = sum;
            best_d = d;
            best_d_stored = d_stored;
            best_ls = ls;
        }
        if (round == rounds)
            break;
        struct scale_sums u =
            sum_scale(g, f.n, f.levels, quotient_or_zero(splat(1), mul(ls, splat(d))));
        wish = quotient_or_zero(u.qx, u.qq);
        float ll = sum_lanes(mul(mul(ls, ls), u.qq)), lx = sum_lanes(mul(ls, u.qx));
        d = rounded_scale(ll > 0 ? lx / ll : 0, g->unit[0], &d_stored);
    }

    out->d = best_d_stored;
    float ls[LANES];
    store(ls, best_ls);
    for (int l = 0; l < LANES; l++)
        out->ls[l] = (int8_t)ls[l];
    f32x16 inverse = quotient_or_zero(splat(1), mul(best_ls, splat(best_d)));
    f32x16 q[MAX_GROUP];
    for (int i = 0; i < f.n; i++)
        q[i] = nearest_level(mul(g->x[i], inverse), f.levels);
    scatter_codes(q, f.n, out->q);
}
