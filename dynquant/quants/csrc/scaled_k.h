/* The K types without mins: super-blocks whose groups have a signed scale on a lattice.
 *
 *   w = d * ls * q        d f16 of the super-block; ls a small integer of the group; q the
 *                         weight's level
 *
 * As in affine_k.h, ls is chosen by trying the lattice around the optimum with codes chosen again
 * for each try, and then d is solved for by least squares, in turn.
 */
#pragma once

#include <math.h>

#include "fit.h"

/* Constants of one of these types. The efforts are from sweeps over the data of
 * bench_encoders.py, as sweep_efforts.py makes them: the least error at the speed wanted. */
struct scaled_format {
    int n;           /* weights in a group */
    int group_count; /* groups in a super-block */
    struct levels levels;
    float l_least, l_most;
    struct scaled_effort {
        struct scale_tries tries; /* of fit_scale */
        int starts, rounds;       /* first values of d; rounds of lattice and refit from each */
        int reach;                /* steps of the lattice searched to both sides of the target */
    } effort[N_EFFORTS];
};

/* The scales of sixteen groups: 16 / group_count super-blocks. */
struct scaled_scales {
    uint16_t d[LANES]; /* per super-block */
    int8_t ls[LANES];  /* per group */
    f32x16 s;          /* per group: d * ls in normalised units */
};

struct scaled_codes {
    uint16_t d[LANES];
    int8_t ls[LANES];
    _Alignas(4) uint8_t q[LANES * MAX_GROUP]; /* in weight order */
};

/* A try of d for each super-block, in normalised units and as stored. */
struct d_tries { float d[LANES]; uint16_t stored[LANES]; };

/* The best scales so far, and their error in each super-block. */
struct scaled_best {
    float error[LANES];
    struct d_tries d;
    f32x16 ls;
};

/* The best ls near each group's target scale, zero included, for a given d. In: error of zeros;
 * out: the error of that ls. */
static ALWAYS_INLINE f32x16 choose_scale(const struct groups *g, struct scaled_format f, int reach,
                                         f32x16 target, f32x16 d, f32x16 *error)
{
    f32x16 ls_target = nearest(quotient_or_zero(target, d), f.l_least, f.l_most), ls = splat(0);
    for (int i = -reach; i <= reach; i++) {
        f32x16 l = add(ls_target, splat((float)i));
        l = least(most(l, splat(f.l_least)), splat(f.l_most));
        f32x16 e = error_of_scale(g, f.n, f.levels, mul(l, d));
        mask16 better = below(e, *error);
        *error = choose(better, e, *error);
        ls = choose(better, l, ls);
    }
    return ls;
}

/* The first d of a start: the widest scale of a super-block takes the longer end of the lattice,
 * whatever its sign, or the point `start` before it, which moves the other scales between
 * theirs. */
static ALWAYS_INLINE void first_d(const struct groups *g, struct scaled_format f, int start,
                                  const float *widest, struct d_tries *now)
{
    for (int k = 0; k < LANES / f.group_count; k++)
        now->d[k] = rounded_scale(widest[k] / (f.l_least + (float)start),
                                  g->unit[k * f.group_count], &now->stored[k]);
}

/* The least-squares d for given ls and levels. */
static ALWAYS_INLINE void solve_d(const struct groups *g, struct scaled_format f, f32x16 ls,
                                  struct scale_sums u, struct d_tries *now)
{
    float ll[LANES], lx[LANES];
    sums_of_blocks(mul(mul(ls, ls), u.qq), f.group_count, ll);
    sums_of_blocks(mul(ls, u.qx), f.group_count, lx);
    for (int k = 0; k < LANES / f.group_count; k++)
        now->d[k] = rounded_scale(ll[k] > 0 ? lx[k] / ll[k] : 0, g->unit[k * f.group_count],
                                  &now->stored[k]);
}

/* Take the scales of those super-blocks whose error they reduce. */
static ALWAYS_INLINE void keep_better_scales(struct scaled_best *best, int group_count,
                                             const struct d_tries *now, f32x16 ls, f32x16 error)
{
    float sum[LANES], reduction[LANES];
    sums_of_blocks(error, group_count, sum);
    for (int k = 0; k < LANES / group_count; k++) {
        reduction[k] = best->error[k] - sum[k];
        if (reduction[k] > 0) {
            best->error[k] = sum[k];
            best->d.d[k] = now->d[k];
            best->d.stored[k] = now->stored[k];
        }
    }
    mask16 better = below(splat(0), lanes_of_blocks(reduction, group_count));
    best->ls = choose(better, ls, best->ls);
}

static ALWAYS_INLINE struct scaled_scales fit_scaled(const struct groups *g, struct scaled_format f,
                                                     enum effort effort)
{
    struct scaled_effort e = f.effort[effort];
    f32x16 zeros = error_of_zeros(sum_group(g, f.n).xx);
    f32x16 unconstrained = fit_scale(g, f.n, f.levels, e.tries);
    float widest[LANES];
    widest_of_blocks(unconstrained, f.group_count, widest);

    struct scaled_best best = {.ls = splat(0)};
    for (int k = 0; k < LANES; k++)
        best.error[k] = INFINITY;
    for (int start = 0; start < e.starts; start++) {
        f32x16 target = unconstrained;
        struct d_tries now;
        first_d(g, f, start, widest, &now);
        for (int round = 0;; round++) {
            f32x16 d = lanes_of_blocks(now.d, f.group_count), error = zeros;
            f32x16 ls = choose_scale(g, f, e.reach, target, d, &error);
            keep_better_scales(&best, f.group_count, &now, ls, error);
            if (round == e.rounds)
                break;
            struct scale_sums u =
                sum_scale(g, f.n, f.levels, quotient_or_zero(splat(1), mul(ls, d)));
            target = quotient_or_zero(u.qx, u.qq);
            solve_d(g, f, ls, u, &now);
        }
    }

    struct scaled_scales r;
    float ls[LANES];
    store(ls, best.ls);
    for (int l = 0; l < LANES; l++)
        r.ls[l] = (int8_t)ls[l];
    memcpy(r.d, best.d.stored, sizeof r.d);
    r.s = mul(best.ls, lanes_of_blocks(best.d.d, f.group_count));
    return r;
}

static ALWAYS_INLINE void encode_scaled(const struct groups *g, struct scaled_format f,
                                        enum effort effort, struct scaled_codes *out)
{
    struct scaled_scales scales = fit_scaled(g, f, effort);
    f32x16 q[MAX_GROUP];
    round_scaled(g, f.n, f.levels, scales.s, q);
    memcpy(out->d, scales.d, sizeof out->d);
    memcpy(out->ls, scales.ls, sizeof out->ls);
    scatter_codes(q, f.n, out->q);
}
