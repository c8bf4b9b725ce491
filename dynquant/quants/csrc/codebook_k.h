/* Super-blocks of the codebook types: the scales of groups on a lattice, l = 1, 3, 5 ..., under one d.
 *
 * Each group walks the lattice from where its scale would be with free levels, one step at a time in
 * the better direction, every step priced with the best points for it (codebook.h). Then d is scanned
 * to both sides and to the vertex of the parabola through what that gave.
 */
#pragma once

#include <math.h>

#include "codebook_points.h"

/* What one codebook type is made of; all fields are constants where they are used.
 *
 *   tries, first, step   fit_free_levels
 *   scales               lattice points that each group walks at the first d
 *   scans, scan_scales   scans of d, and lattice points for each d in them
 */
struct codebook_format {
    struct codebook book;
    int n, group_count; /* weights in a group, groups in a super-block */
    float l_most;       /* l = 1, 3, 5 ... l_most */
    struct { int tries; float first, step; int scales, scans, scan_scales; } effort[N_EFFORTS];
};

/* Each group's scale on its own, were every coordinate free to take any level: for scales `first`,
 * first + step ... of the one that maps the largest magnitude to the largest level. */
static ALWAYS_INLINE f32x16 fit_free_levels(const struct groups *g, struct codebook_format f,
                                            const struct codebook_group *p, int tries, float first,
                                            float step)
{
    f32x16 per_level = mul(absolute(extreme(g, f.n)), splat(1 / f.book.levels[f.book.n_levels - 1]));
    f32x16 best = per_level, best_cost = splat(INFINITY);
    for (int c = 0; c < tries; c++) {
        f32x16 scale = mul(per_level, splat(first + step * (float)c)), cost = splat(INFINITY);
        for (int down = 0; down <= (f.book.shifted != NO_SHIFT); down++)
            cost = least(cost, cost_of_free_levels(g, p, f.book, scale,
                                                   splat(down ? -f.book.shift : f.book.shift), 0,
                                                   f.n));
        mask16 better = below(cost, best_cost);
        best_cost = choose(better, cost, best_cost);
        best = choose(better, scale, best);
    }
    return best;
}

/* Sixteen groups, encoded: 16 / group_count super-blocks. */
struct codebook_blocks {
    uint16_t d[LANES];   /* per super-block: w = d * l * point */
    uint8_t l[LANES];    /* per group */
    struct codebook_codes codes;
};

/* One super-block's search for d. */
struct d_search {
    float centre, errors[3]; /* of a scan: the middle d, and the errors below it, at it and above it */
    float d, error;          /* the best so far; d = 0, all zero, to begin with */
    uint16_t stored;
};

/* The first d leaves the widest group a step of l to grow by: measured, a few tenths of a percent of
 * error less than none. */
#define HEADROOM 1.06f

/* How far a scan looks to both sides of d. A tenth of a step of l at the usual l of 10 to 31 moves
 * few codes; half a step is what rounding l can be off by. */
#define SCAN_WIDTH 0.03f

/* The d to look at in a step of the search: first the one asked for, then scans of three: below,
 * above, and where a parabola through the errors has its vertex. */
static inline float next_d(struct d_search *s, int step)
{
    if (step == 0)
        return s->centre;
    switch ((step - 1) % 3) {
    case 0:
        s->centre = s->d;
        s->errors[1] = s->error;
        return s->centre * (1 - SCAN_WIDTH);
    case 1:
        return s->centre * (1 + SCAN_WIDTH);
    default: {
        float slope = s->errors[0] - s->errors[2];
        float bend = s->errors[0] - 2 * s->errors[1] + s->errors[2];
        float way = bend > 0 ? 0.5f * slope / bend : slope > 0 ? 1.5f : -1.5f;
        way = way > 1.5f ? 1.5f : way < -1.5f ? -1.5f : way;
        return s->centre * (1 + SCAN_WIDTH * way);
    }
    }
}

static ALWAYS_INLINE void encode_codebook(const struct groups *g, struct codebook_format f,
                                          enum effort effort, struct codebook_blocks *out)
{
    struct codebook_group p = prepare(g, f.n, f.book);
    f32x16 wish = fit_free_levels(g, f, &p, f.effort[effort].tries, f.effort[effort].first,
                                  f.effort[effort].step);
    int n_blocks = LANES / f.group_count;
    struct d_search search[LANES];
    float none[LANES], wishes[LANES], best_l[LANES], best_scale[LANES] = {0};
    store(none, p.xx);
    store(wishes, wish);
    for (int k = 0; k < n_blocks; k++) {
        float widest = 0, nothing = 0;
        for (int l = k * f.group_count; l < (k + 1) * f.group_count; l++) {
            widest = wishes[l] > widest ? wishes[l] : widest;
            nothing += none[l];
            best_l[l] = 1;
        }
        search[k] = (struct d_search){.centre = widest * HEADROOM / f.l_most, .error = nothing};
    }
    for (int step = 0; step < 1 + 3 * f.effort[effort].scans; step++) {
        float d[LANES], errors[LANES], ls[LANES];
        uint16_t stored[LANES];
        for (int l = 0; l < LANES; l++) {
            int k = l / f.group_count, first = l == k * f.group_count;
            if (first)
                d[l] = rounded_scale(next_d(&search[k], step), g->unit[l], &stored[k]);
            else
                d[l] = d[l - 1];
        }
        f32x16 d16 = load(d), best = splat(INFINITY), best_s = splat(0);
        f32x16 s_most = splat((f.l_most - 1) / 2), one = splat(1);
        /* Where S = d (2 s + 1) is what the group wishes, and the two whole numbers around it. After
         * these, each group goes on from the end of its range that is the better. */
        f32x16 s_wish = sub(mul(wish, quotient_or_zero(splat(0.5f), d16)), splat(0.5f));
        f32x16 s = nearest(s_wish, 0, (f.l_most - 1) / 2), lowest = s, highest = s;
        int n_scales = step ? f.effort[effort].scan_scales : f.effort[effort].scales;
        for (int i = 0; i < n_scales; i++) {
            f32x16 in_lattice = least(most(s, splat(0)), s_most);
            f32x16 error = error_of_codebook(g, f.n, &p, f.book,
                                             mul(d16, add(add(in_lattice, in_lattice), one)));
            mask16 better = below(error, best);
            best = choose(better, error, best);
            best_s = choose(better, in_lattice, best_s);
            f32x16 above = add(highest, one), below_all = sub(lowest, one);
            mask16 go_up = i ? below(sub(highest, splat(0.5f)), best_s) : below(s, s_wish);
            s = choose(go_up, above, below_all);
            highest = choose(go_up, above, highest);
            lowest = choose(go_up, lowest, below_all);
        }
        f32x16 l_best = add(add(best_s, best_s), one);
        store(errors, best);
        store(ls, l_best);
        for (int k = 0; k < n_blocks; k++) {
            int first = k * f.group_count, end = first + f.group_count;
            float sum = 0;
            for (int l = first; l < end; l++)
                sum += errors[l];
            if (step)
                search[k].errors[(step - 1) % 3 == 0 ? 0 : 2] = sum;
            if (sum >= search[k].error)
                continue;
            search[k].error = sum;
            search[k].d = d[first];
            search[k].stored = stored[k];
            for (int l = first; l < end; l++) {
                best_l[l] = ls[l];
                best_scale[l] = d[first] * ls[l];
            }
        }
        wish = load(best_scale);
    }
    choose_codes(g, f.n, &p, f.book, load(best_scale), &out->codes);
    for (int k = 0; k < n_blocks; k++)
        out->d[k] = search[k].stored;
    for (int l = 0; l < LANES; l++)
        out->l[l] = (uint8_t)best_l[l];
}

/* The weights of one vector: scale * (point + shift) with signs (bit i: negative). */
static ALWAYS_INLINE void decode_point(struct codebook book, uint16_t code, float shift, float scale,
                                       uint8_t signs, float *x)
{
    uint8_t levels[8];
    levels_of_code(book, code, levels);
    for (int i = 0; i < book.dim; i++) {
        float w = scale * (book.levels[levels[i]] + shift);
        /* No branch: signs are as good as random, and every second guess would be wrong. */
        x[i] = f32_of_bits(bits_of_f32(w) ^ (uint32_t)(signs >> i & 1) << 31);
    }
}

/* Eight signs from the seven that are stored: their number is even. */
static inline uint8_t even_signs(uint32_t seven)
{
    return (uint8_t)(seven | (uint32_t)__builtin_parity(seven) << 7);
}

/* The 4-bit scales s of l = 2 s + 1, two in a byte, the first lowest. */
static inline void pack_scales_4bit(uint8_t *packed, const uint8_t *l, int n)
{
    for (int j = 0; j < n; j += 2)
        packed[j / 2] = (uint8_t)(l[j] / 2 | l[j + 1] / 2 << 4);
}
