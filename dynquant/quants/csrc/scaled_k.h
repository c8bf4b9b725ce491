/* The K types without mins: super-blocks whose groups have a signed scale on a lattice.
 *
 *   w = d * ls * q        d f16 of the super-block; ls a small integer of the group; q the
 *                         weight's level
 *
 * As in affine_k.h, ls is chosen by trying the lattice around the optimum with codes chosen anew,
 * and d is solved for by least squares in turn.
 */
#pragma once

#include <math.h>

#include "fit.h"

/* What one of these types is made of; all fields are constants where they are used. The efforts
 * are from sweeps over the data of scripts/bench_encoders.py: least error at the speed wanted. */
struct scaled_format {
    int n;           /* weights in a group */
    int group_count; /* groups in a super-block */
    struct levels levels;
    float l_least, l_most;
    /* tries: of fit_scale; starts: first values of d; rounds of lattice and refit from each; reach:
     * how far the lattice is searched around the wish */
    struct { struct scale_tries tries; int starts, rounds, reach; } effort[N_EFFORTS];
};

/* Sixteen groups, encoded: 16 / group_count super-blocks. */
struct scaled_codes {
    uint16_t d[LANES];                        /* per super-block */
    int8_t ls[LANES];                         /* per group */
    _Alignas(4) uint8_t q[LANES * MAX_GROUP]; /* per weight, in weight order */
};

/* The best ls near each group's wish, or none, and what it leaves. */
static ALWAYS_INLINE f32x16 choose_scale(const struct groups *g, struct scaled_format f,
                                         int reach, f32x16 wish, f32x16 d, f32x16 *error)
{
    f32x16 ls_wish = nearest(quotient_or_zero(wish, d), f.l_least, f.l_most), ls = splat(0);
    for (int i = -reach; i <= reach; i++) {
        f32x16 l = add(ls_wish, splat((float)i));
        l = least(most(l, splat(f.l_least)), splat(f.l_most));
        f32x16 e = error_of_scale(g, f.n, f.levels, mul(l, d));
        mask16 better = below(e, *error);
        *error = choose(better, e, *error);
        ls = choose(better, l, ls);
    }
    return ls;
}

static ALWAYS_INLINE void encode_scaled(const struct groups *g, struct scaled_format f,
                                        enum effort effort, struct scaled_codes *out)
{
    int starts = f.effort[effort].starts, rounds = f.effort[effort].rounds;
    int n_blocks = LANES / f.group_count;
    f32x16 none = error_of_zeros(sum_group(g, f.n).xx);
    f32x16 alone = fit_scale(g, f.n, f.levels, f.effort[effort].tries);

    float lane[LANES], widest[LANES], best_error[LANES], best_d[LANES] = {0};
    store(lane, alone);
    for (int k = 0; k < n_blocks; k++) {
        widest[k] = 0;
        for (int l = k * f.group_count; l < (k + 1) * f.group_count; l++)
            widest[k] = fabsf(lane[l]) > fabsf(widest[k]) ? lane[l] : widest[k];
        best_error[k] = INFINITY;
    }

    f32x16 best_ls = splat(0);
    for (int start = 0; start < starts; start++) {
        /* The largest scale takes the lattice's longer end, whatever its sign; then points before
         * it, each of which puts the other scales elsewhere between theirs. */
        float d[LANES];
        uint16_t d_stored[LANES];
        for (int k = 0; k < n_blocks; k++)
            d[k] = rounded_scale(widest[k] / (f.l_least + (float)start), g->unit[k * f.group_count],
                                 &d_stored[k]);
        f32x16 wish = alone;
        for (int round = 0;; round++) {
            f32x16 d_lanes = lanes_of_blocks(d, f.group_count), error = none;
            f32x16 ls = choose_scale(g, f, f.effort[effort].reach, wish, d_lanes, &error);
            float sum[LANES], gained[LANES];
            sums_of_blocks(error, f.group_count, sum);
            for (int k = 0; k < n_blocks; k++) {
                gained[k] = best_error[k] - sum[k];
                if (gained[k] > 0) {
                    best_error[k] = sum[k];
                    best_d[k] = d[k];
                    out->d[k] = d_stored[k];
                }
            }
            mask16 better = below(splat(0), lanes_of_blocks(gained, f.group_count));
            best_ls = choose(better, ls, best_ls);
            if (round == rounds)
                break;
            struct scale_sums u =
                sum_scale(g, f.n, f.levels, quotient_or_zero(splat(1), mul(ls, d_lanes)));
            wish = quotient_or_zero(u.qx, u.qq);
            float ll[LANES], lx[LANES];
            sums_of_blocks(mul(mul(ls, ls), u.qq), f.group_count, ll);
            sums_of_blocks(mul(ls, u.qx), f.group_count, lx);
            for (int k = 0; k < n_blocks; k++)
                d[k] = rounded_scale(ll[k] > 0 ? lx[k] / ll[k] : 0, g->unit[k * f.group_count],
                                     &d_stored[k]);
        }
    }

    float ls[LANES];
    store(ls, best_ls);
    for (int l = 0; l < LANES; l++)
        out->ls[l] = (int8_t)ls[l];
    f32x16 scale = mul(best_ls, lanes_of_blocks(best_d, f.group_count));
    f32x16 inverse = quotient_or_zero(splat(1), scale), q[MAX_GROUP];
    for (int i = 0; i < f.n; i++)
        q[i] = nearest_code(mul(g->x[i], inverse), f.levels);
    scatter_codes(q, f.n, out->q);
}
