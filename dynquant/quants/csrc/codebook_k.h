/* Super-blocks of the codebook types: the scales of groups on a lattice, l = 1, 3, 5 ..., under one
 * d.
 *
 * Each group walks the lattice from its target, the scale that it would have with free levels, one
 * step at a time in the better direction. The cost of each step is that of the best points for it
 * (codebook.h). Then d is scanned to both sides, and at the vertex of the parabola through the
 * errors found.
 */
#pragma once

#include <math.h>

#include "codebook_points.h"
#include "opened.h"

/* Constants of one codebook type. The efforts are from sweeps over the data of
 * bench_encoders.py, as sweep_efforts.py makes them: the least error at the speed wanted. */
struct codebook_format {
    struct codebook book;
    int n, group_count; /* weights in a group, groups in a super-block */
    float l_most;       /* l = 1, 3, 5 ... l_most */
    struct codebook_effort {
        int tries; float first, step; /* of fit_free_levels */
        int scales;                   /* lattice points that each group walks at the first d */
        int scans, scan_scales;       /* scans of d, and lattice points for each d in them */
    } effort[N_EFFORTS];
};

/* The scales of sixteen groups: 16 / group_count super-blocks. */
struct codebook_scales {
    uint16_t d[LANES]; /* per super-block: w = d * l * point */
    uint8_t l[LANES];  /* per group */
    f32x16 s;          /* per group: d * l in normalised units */
};

/* Sixteen groups, encoded. */
struct codebook_blocks {
    uint16_t d[LANES];
    uint8_t l[LANES];
    struct codebook_codes codes;
};

/* The scale of each group if every coordinate could take any level: for scales `first`, first +
 * step ... of the one that maps the largest magnitude to the largest level. */
static ALWAYS_INLINE f32x16 fit_free_levels(const struct groups *g, struct codebook_format f,
                                            const struct codebook_group *p,
                                            struct codebook_effort e)
{
    float largest_level = f.book.levels[f.book.n_levels - 1];
    f32x16 per_level = mul(absolute(extreme(g, f.n)), splat(1 / largest_level));
    f32x16 best = per_level, best_cost = splat(INFINITY);
    for (int c = 0; c < e.tries; c++) {
        f32x16 scale = mul(per_level, splat(e.first + e.step * (float)c)), cost = splat(INFINITY);
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

/* One super-block's search for d. */
struct d_search {
    float centre, errors[3]; /* of a scan: the middle d, and the errors below it, at it, above it */
    float d, error;          /* the best so far; at the start d = 0, all zero */
    uint16_t stored;
};

/* The first d lets the scale of the widest group grow by a step of l: measured, the error is a few
 * tenths of a percent less than without. */
#define HEADROOM 1.06f

/* How far a scan looks to both sides of d. A tenth of a step of l at the usual l of 10 to 31 moves
 * few codes; half a step is the most that rounding l can be off by. */
#define SCAN_WIDTH 0.03f

/* The d to try in a step of the search: first the given one, then scans of three: below, above, and
 * where a parabola through the errors has its vertex. */
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

/* The searches of the super-blocks in the lanes, and the best lattice point and scale of each
 * group. */
struct codebook_search {
    struct d_search block[LANES];
    float l[LANES], s[LANES];
};

static ALWAYS_INLINE void start_search(struct codebook_search *search, struct codebook_format f,
                                       f32x16 target, f32x16 error_of_zero)
{
    float widest[LANES], zeros[LANES];
    most_of_blocks(target, f.group_count, widest);
    sums_of_blocks(error_of_zero, f.group_count, zeros);
    for (int k = 0; k < LANES / f.group_count; k++)
        search->block[k] =
            (struct d_search){.centre = widest[k] * HEADROOM / f.l_most, .error = zeros[k]};
    for (int l = 0; l < LANES; l++) {
        search->l[l] = 1;
        search->s[l] = 0;
    }
}

/* A lattice point for each group, and the error with the best points of the codebook for it. */
struct l_point { f32x16 l, error; };

/* Walk the lattice l = 2 s + 1 from the target scale, n_scales points: the two around the target,
 * then onwards from the better end of the range walked so far. */
static ALWAYS_INLINE struct l_point walk_lattice(const struct groups *g, struct codebook_format f,
                                                 const struct codebook_group *p, f32x16 target,
                                                 f32x16 d, int n_scales)
{
    f32x16 best_error = splat(INFINITY), best_s = splat(0), one = splat(1);
    f32x16 s_most = splat((f.l_most - 1) / 2);
    /* Where d (2 s + 1) is the target. */
    f32x16 s_target = sub(mul(target, quotient_or_zero(splat(0.5f), d)), splat(0.5f));
    f32x16 s = nearest(s_target, 0, (f.l_most - 1) / 2), lowest = s, highest = s;
    for (int i = 0; i < n_scales; i++) {
        f32x16 in_lattice = least(most(s, splat(0)), s_most);
        f32x16 error = error_of_codebook(g, f.n, p, f.book,
                                         mul(d, add(add(in_lattice, in_lattice), one)));
        mask16 better = below(error, best_error);
        best_error = choose(better, error, best_error);
        best_s = choose(better, in_lattice, best_s);
        f32x16 above = add(highest, one), below_all = sub(lowest, one);
        mask16 go_up = i ? below(sub(highest, splat(0.5f)), best_s) : below(s, s_target);
        s = choose(go_up, above, below_all);
        highest = choose(go_up, above, highest);
        lowest = choose(go_up, lowest, below_all);
    }
    return (struct l_point){add(add(best_s, best_s), one), best_error};
}

/* Note the error of this step's d, and take the scales of those super-blocks whose error they
 * reduce. */
static ALWAYS_INLINE void keep_better_d(struct codebook_search *search, int group_count, int step,
                                        const float *d, const uint16_t *stored, struct l_point p)
{
    float sum[LANES], l[LANES];
    sums_of_blocks(p.error, group_count, sum);
    store(l, p.l);
    for (int k = 0; k < LANES / group_count; k++) {
        struct d_search *block = &search->block[k];
        if (step)
            block->errors[(step - 1) % 3 == 0 ? 0 : 2] = sum[k];
        if (sum[k] >= block->error)
            continue;
        block->error = sum[k];
        block->d = d[k];
        block->stored = stored[k];
        for (int i = k * group_count; i < (k + 1) * group_count; i++) {
            search->l[i] = l[i];
            search->s[i] = d[k] * l[i];
        }
    }
}

static ALWAYS_INLINE struct codebook_scales fit_codebook(const struct groups *g,
                                                         struct codebook_format f,
                                                         const struct codebook_group *p,
                                                         enum effort effort)
{
    struct codebook_effort e = f.effort[effort];
    struct codebook_search search;
    int n_blocks = LANES / f.group_count;
    f32x16 target = fit_free_levels(g, f, p, e);
    start_search(&search, f, target, p->xx);
    for (int step = 0; step < 1 + 3 * e.scans; step++) {
        float d[LANES];
        uint16_t stored[LANES];
        for (int k = 0; k < n_blocks; k++)
            d[k] = rounded_scale(next_d(&search.block[k], step), g->unit[k * f.group_count],
                                 &stored[k]);
        struct l_point point = walk_lattice(g, f, p, target, lanes_of_blocks(d, f.group_count),
                                            step ? e.scan_scales : e.scales);
        keep_better_d(&search, f.group_count, step, d, stored, point);
        target = load(search.s);
    }
    struct codebook_scales r = {.s = load(search.s)};
    for (int k = 0; k < n_blocks; k++)
        r.d[k] = search.block[k].stored;
    for (int l = 0; l < LANES; l++)
        r.l[l] = (uint8_t)search.l[l];
    return r;
}

static ALWAYS_INLINE void encode_codebook(const struct groups *g, struct codebook_format f,
                                          enum effort effort, struct codebook_blocks *out)
{
    struct codebook_group p = prepare(g, f.n, f.book);
    struct codebook_scales scales = fit_codebook(g, f, &p, effort);
    round_codebook(g, f.n, &p, f.book, scales.s, NULL, &out->codes);
    memcpy(out->d, scales.d, sizeof out->d);
    memcpy(out->l, scales.l, sizeof out->l);
}

/* The weights of one vector: scale * (point + shift) with signs (bit i: negative). */
static ALWAYS_INLINE void decode_point(struct codebook book, uint16_t code, float shift,
                                       float scale, uint8_t signs, float *x)
{
    uint8_t levels[8];
    levels_of_code(book, code, levels);
    for (int i = 0; i < book.dim; i++) {
        float w = scale * (book.levels[levels[i]] + shift);
        /* No branch: signs are random, and a CPU would predict every second one wrongly. */
        x[i] = f32_of_bits(bits_of_f32(w) ^ (uint32_t)(signs >> i & 1) << 31);
    }
}

/* The codes of the k-th super-block in the lanes, as an open one has them. */
static ALWAYS_INLINE void codes_of_block(const struct codebook_codes *codes,
                                         struct codebook_format f, int k, struct opened *o)
{
    const int n_vectors = f.n / f.book.dim, n_units = f.n / UNIT;
    for (int j = 0; j < f.group_count; j++) {
        int l = f.group_count * k + j;
        for (int v = 0; v < n_vectors; v++)
            o->code[n_vectors * j + v] = codes->code[v][l];
        for (int u = 0; u < n_units; u++)
            o->signs[n_units * j + u] = codes->signs[u][l];
        for (int v = 0; f.book.shifted != NO_SHIFT && v < n_vectors; v++) {
            int set = f.book.shifted == SHIFT_OF_VECTOR ? v : 0;
            o->down[n_vectors * j + v] = codes->shifted_down[set][l];
        }
    }
}

/* d * l from the s of l = 2 s + 1: exact, so that it is the same in any order of operations. */
static inline float scale_on_lattice(float d, int s)
{
    return d * (float)(2 * s + 1);
}

/* Eight neighbouring weights of each lane, for which codes are chosen at a given scale.
 *
 *   x, weight, scale   what the weights should be, the weights of their errors, relative to the
 *                      largest, and the scale
 *   down               the sign of the shift: given where a group shares it, else chosen
 *   y, code, signs     the answer: the weights, and their codes
 */
struct unit_choice {
    f32x16 x[UNIT], scale, y[UNIT];
    const float *weight;
    uint16_t code[2][LANES];
    uint8_t signs[LANES], down[LANES];
};

static ALWAYS_INLINE void choose_unit(struct unit_choice *u, struct codebook book)
{
    struct groups g;
    struct codebook_codes codes;
    float widest[LANES], inverse[LANES], shift[LANES], scale[LANES];
    f32x16 lane_widest = absolute(u->scale);
    for (int i = 0; i < UNIT; i++)
        lane_widest = most(lane_widest, absolute(u->x[i]));
    store(widest, lane_widest);
    store(scale, u->scale);
    for (int l = 0; l < LANES; l++) {
        inverse[l] = inverse_of_power(power_of_two_below(widest[l]));
        shift[l] = u->down[l] ? -book.shift : book.shift;
    }
    for (int i = 0; i < UNIT; i++) {
        g.x[i] = mul(u->x[i], load(inverse));
        g.w[i] = splat(u->weight[i]);
    }
    g.is_weighted = 1;
    struct codebook_group p = prepare(&g, UNIT, book);
    f32x16 given = load(shift);
    round_codebook(&g, UNIT, &p, book, mul(u->scale, load(inverse)),
                   book.shifted == SHIFT_OF_VECTOR ? NULL : &given, &codes);
    for (int l = 0; l < LANES; l++) {
        float y[UNIT];
        u->signs[l] = book.signs == SIGNED_LEVELS ? 0 : codes.signs[0][l];
        u->down[l] = codes.shifted_down[0][l];
        for (int v = 0; v < UNIT / book.dim; v++) {
            u->code[v][l] = codes.code[v][l];
            decode_point(book, u->code[v][l], u->down[l] ? -book.shift : book.shift, scale[l],
                         (uint8_t)(u->signs[l] >> v * book.dim), y + v * book.dim);
        }
        for (int i = 0; i < UNIT; i++)
            memcpy((float *)&u->y[i] + l, y + i, sizeof *y);
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

static inline int scale_4bit(const uint8_t *packed, int j)
{
    return packed[j / 2] >> 4 * (j % 2) & 15;
}
