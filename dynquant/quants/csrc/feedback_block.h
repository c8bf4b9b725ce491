/* Error feedback inside one block: codes chosen again while its scales stay (feedback.h says why).
 *
 * Sixteen rows in the lanes. Columns are taken in units: one column of a scalar type, eight of a
 * codebook type.
 */
#pragma once

#include <float.h>

#include "codebook_k.h"
#include "codec.h"
#include "factoring.h"
#include "groups.h"
#include "lanes.h"
#include "opened.h"

/* Columns whose sums are kept in registers at a time. */
#if PARTS == 1
#define COLUMNS 16
#elif PARTS == 2
#define COLUMNS 4
#else
#define COLUMNS 2
#endif

/* f[c] += sum of e[k] * l[k][c], k < n, over the columns of a panel. */
static void add_products(f32x16 *f, const f32x16 *e, const float *l, int n)
{
    for (int first = 0; first < PANEL; first += COLUMNS) {
        f32x16 sum[COLUMNS];
        for (int c = 0; c < COLUMNS; c++)
            sum[c] = f[first + c];
        for (int k = 0; k < n; k++)
            for (int c = 0; c < COLUMNS; c++)
                sum[c] = add(sum[c], mul(e[k], splat(l[k * PANEL + first + c])));
        for (int c = 0; c < COLUMNS; c++)
            f[first + c] = sum[c];
    }
}

/* g[r] = sum of f[c] * l[r][c] over n_panels panels, for 16 rows r. */
static void products_with_rows(f32x16 *g, const f32x16 *f, const float *l, int64_t panel_size,
                               int64_t n_panels)
{
    for (int first = 0; first < PANEL; first += COLUMNS) {
        f32x16 sum[COLUMNS];
        for (int r = 0; r < COLUMNS; r++)
            sum[r] = splat(0);
        for (int64_t p = 0; p < n_panels; p++)
            for (int c = 0; c < PANEL; c++)
                for (int r = 0; r < COLUMNS; r++)
                    sum[r] = add(sum[r], mul(f[p * PANEL + c],
                                             splat(l[p * panel_size + (first + r) * PANEL + c])));
        for (int r = 0; r < COLUMNS; r++)
            g[first + r] = sum[r];
    }
}

/* The columns of one block: where they begin, and the panels of L and C that hold their rows. */
struct range {
    int64_t at, b;  /* the first column, and its row block of L */
    int n, row;     /* columns, and the first one's row in the row block */
    int64_t rows;   /* of the row block */
};

static struct range range_of(const struct metric *m, int64_t at, int n)
{
    int64_t b = at / TILE;
    return (struct range){at, b, n, (int)(at % TILE), rows_of_tile(m->n, b)};
}

/* Rows of the panel of L, or of C, with column c; column c's numbers of the rows from `row` on. */
static const float *upper_rows(const struct metric *m, struct range r, int64_t c, int row)
{
    return upper_panel((float *)m->upper, m->n, r.b, c) + (r.row + row) * PANEL;
}

/* A symmetric matrix over the columns of a range: panels of 16 of its columns, each `rows` rows. */
struct square { const float *at; int64_t rows; };

static struct square diagonal_of(const struct metric *m, struct range r)
{
    const float *panel = diagonal_panel((float *)m->diagonal, m->n, r.b, r.at);
    return (struct square){panel + r.row * PANEL, r.rows};
}

/* Rows from `row` on of the panel with column c of the range. */
static const float *square_rows(struct square c, int column, int row)
{
    return c.at + column / PANEL * PANEL * c.rows + row * PANEL;
}

/* ---- sixteen rows of one block --------------------------------------------------------------- */

/* Lane by lane:
 *
 *   w, y    weights, and the decoded ones
 *   f       before y is chosen: what the errors of earlier columns have added; in a sweep: the
 *           slope g
 *   e       scaled errors; in a sweep, their changes
 *   q, scale, offset   of scalar types
 */
struct block_lanes {
    f32x16 w[MAX_BLOCK], y[MAX_BLOCK], f[MAX_BLOCK], e[MAX_BLOCK], q[MAX_BLOCK];
    f32x16 scale[16], offset[16];
    struct opened opened[LANES];
    float rows[LANES * MAX_BLOCK];
};

static void lanes_from_rows(f32x16 *to, const float *rows, int n)
{
    lanes_of_rows((float(*)[LANES])to, rows, n, 1, n);
}

static void rows_from_lanes(float *rows, const f32x16 *from, int n)
{
    const float(*lanes)[LANES] = (const float(*)[LANES])from;
    for (int i = 0; i < n; i++)
        for (int l = 0; l < LANES; l++)
            rows[l * n + i] = lanes[i][l];
}

/* Take the blocks of m rows apart; the lanes beyond them have scales of zero. */
static void open_lanes(const struct quant_type *type, struct block_lanes *b, const uint8_t *blocks,
                       int64_t stride, int m)
{
    const int n = type->block_size, n_groups = n / type->codes->group;
    float(*q)[LANES] = (float(*)[LANES])b->q;
    for (int l = 0; l < LANES; l++) {
        struct opened *o = &b->opened[l];
        if (l < m) {
            type->open(blocks + l * stride, o);
            type->decode(blocks + l * stride, b->rows + l * n, 1);
        } else {
            memset(o, 0, sizeof *o);
            memset(b->rows + l * n, 0, (size_t)n * sizeof *b->rows);
        }
        for (int g = 0; g < n_groups; g++) {
            ((float(*)[LANES])b->scale)[g][l] = o->scale[g];
            ((float(*)[LANES])b->offset)[g][l] = o->offset[g];
        }
        for (int i = 0; !type->choose && i < n; i++)
            q[i][l] = o->q[i];
    }
    lanes_from_rows(b->y, b->rows, n);
}

static void close_lanes(const struct quant_type *type, struct block_lanes *b, uint8_t *blocks,
                        int64_t stride, int m)
{
    const float(*q)[LANES] = (const float(*)[LANES])b->q;
    for (int l = 0; l < m; l++) {
        for (int i = 0; !type->choose && i < type->block_size; i++)
            b->opened[l].q[i] = (uint8_t)q[i][l];
        type->close(blocks + l * stride, &b->opened[l]);
    }
}

/* Each column's part in the sums of the columns of its panel from `from` on. */
static ALWAYS_INLINE void spread(f32x16 *f, f32x16 e, const float *l, int from)
{
    for (int c = from; c < PANEL; c++)
        f[c] = add(f[c], mul(e, splat(l[c])));
}

/* ---- units of columns ------------------------------------------------------------------------ */

/* L and C of the columns of a vector, and the weights of their errors. */
struct unit {
    float l[UNIT][UNIT], c[UNIT][UNIT], inverse[UNIT][UNIT]; /* of C */
    float scale[UNIT], per_scale[UNIT], weight[UNIT];
};

/* The inverse of a small positive matrix, by Gauss and Jordan. */
static void invert_small(float (*c)[UNIT], float (*inverse)[UNIT])
{
    double a[UNIT][2 * UNIT];
    for (int i = 0; i < UNIT; i++)
        for (int j = 0; j < UNIT; j++) {
            a[i][j] = c[i][j];
            a[i][UNIT + j] = i == j;
        }
    for (int k = 0; k < UNIT; k++) {
        double pivot = a[k][k];
        for (int j = 0; j < 2 * UNIT; j++)
            a[k][j] /= pivot;
        for (int i = 0; i < UNIT; i++) {
            double factor = a[i][k];
            for (int j = 0; i != k && j < 2 * UNIT; j++)
                a[i][j] -= factor * a[k][j];
        }
    }
    for (int i = 0; i < UNIT; i++)
        for (int j = 0; j < UNIT; j++)
            inverse[i][j] = (float)a[i][UNIT + j];
}

static void unit_of(struct unit *u, const struct metric *m, struct range r, struct square square,
                    int at)
{
    float most = 0;
    for (int i = 0; i < UNIT; i++) {
        float s = u->scale[i] = m->scale[r.at + at + i];
        u->per_scale[i] = s > 0 ? 1 / s : 0;
        most = s > most ? s : most;
        for (int j = 0; j < UNIT; j++) {
            int64_t c = r.at + at + j;
            u->l[i][j] = upper_rows(m, r, c, at + i)[c % PANEL];
            u->c[i][j] = square_rows(square, at + j, at + i)[c % PANEL];
        }
    }
    for (int i = 0; i < UNIT; i++) {
        float share = most > 0 ? u->scale[i] / most : 1;
        u->weight[i] = share * share > LEAST_IMPORTANCE ? share * share : LEAST_IMPORTANCE;
    }
    invert_small(u->c, u->inverse);
}

/* All that does not depend on the rows: C of the block, or what stands for it; of: a unit for each
 * eight columns of a codebook type. */
struct prepared {
    struct square square;
    float scale[MAX_BLOCK];
    float per_l[MAX_BLOCK], per_c[MAX_BLOCK]; /* 1 / (L or C of the column * its scale) */
    struct unit of[MAX_BLOCK / UNIT];
    float own[MAX_BLOCK * MAX_BLOCK]; /* a square that is computed here */
};

static void prepare_range(struct prepared *p, const struct metric *m, struct range r,
                          struct square square, int units)
{
    p->square = square;
    for (int i = 0; i < r.n; i++) {
        int64_t c = r.at + i;
        float s = p->scale[i] = m->scale[c];
        float l = upper_rows(m, r, c, i)[c % PANEL], d = square_rows(square, i, i)[c % PANEL];
        p->per_l[i] = s > 0 ? 1 / (l * s) : 0;
        p->per_c[i] = s > 0 ? 1 / (d * s) : 0;
    }
    for (int at = 0; units && at < r.n; at += UNIT)
        unit_of(&p->of[at / UNIT], m, r, square, at);
}

/* The code nearest to x, and its number. */
static ALWAYS_INLINE f32x16 nearest_open_code(const struct code_space *codes, f32x16 x,
                                              f32x16 scale, f32x16 offset, f32x16 *q)
{
    f32x16 level = mul(sub(x, offset), quotient_or_zero(splat(1), scale));
    if (!codes->levels) {
        *q = nearest(level, 0, (float)codes->q_most);
        return add(mul(scale, *q), offset);
    }
    f32x16 best = splat(codes->levels[0]), off = absolute(sub(level, best));
    *q = splat(0);
    for (int k = 1; k <= codes->q_most; k++) {
        f32x16 other = absolute(sub(level, splat(codes->levels[k])));
        mask16 better = below(other, off);
        off = choose(better, other, off);
        best = choose(better, splat(codes->levels[k]), best);
        *q = choose(better, splat((float)k), *q);
    }
    return add(mul(scale, best), offset);
}

/* Take the code nearest to x in the lanes where it is nearer than the one that is there. */
static ALWAYS_INLINE void take_nearest(const struct quant_type *type, struct block_lanes *b, int at,
                                       f32x16 x)
{
    int group = at / type->codes->group;
    f32x16 q, y = nearest_open_code(type->codes, x, b->scale[group], b->offset[group], &q);
    mask16 better = below(absolute(sub(x, y)), absolute(sub(x, b->y[at])));
    b->y[at] = choose(better, y, b->y[at]);
    b->q[at] = choose(better, q, b->q[at]);
}

static void take_point(const struct quant_type *type, struct block_lanes *b, int at,
                       const struct unit_choice *found, mask16 better)
{
    const int dim = type->codes->book->dim;
    float taken[LANES];
    for (int i = 0; i < UNIT; i++)
        b->y[at + i] = choose(better, found->y[i], b->y[at + i]);
    store(taken, choose(better, splat(1), splat(0)));
    for (int l = 0; l < LANES; l++) {
        if (taken[l] == 0)
            continue;
        struct opened *o = &b->opened[l];
        for (int v = 0; v < UNIT / dim; v++)
            o->code[at / dim + v] = found->code[v][l];
        o->signs[at / UNIT] = found->signs[l];
        o->down[at / UNIT] = found->down[l];
    }
}

static void ask_for_points(const struct quant_type *type, const struct block_lanes *b, int at,
                           const struct unit *u, struct unit_choice *found)
{
    found->weight = u->weight;
    found->scale = b->scale[at / type->codes->group];
    for (int l = 0; l < LANES; l++)
        found->down[l] = b->opened[l].down[at / UNIT];
    type->choose(found);
}

/* ---- the way there --------------------------------------------------------------------------- */

/* e of a unit's columns -> f of the unit's own columns. */
static ALWAYS_INLINE void errors_of_unit(const struct unit *u, const f32x16 *f, const f32x16 *e,
                                         f32x16 *sum)
{
    for (int c = 0; c < UNIT; c++) {
        sum[c] = f[c];
        for (int i = 0; i <= c; i++)
            sum[c] = add(sum[c], mul(e[i], splat(u->l[i][c])));
    }
}

static ALWAYS_INLINE f32x16 squares(const f32x16 *a)
{
    f32x16 sum = mul(a[0], a[0]);
    for (int i = 1; i < UNIT; i++)
        sum = add(sum, mul(a[i], a[i]));
    return sum;
}

/* The codes of a unit that make its f smallest: those there are, or those nearest to the target. */
static void choose_point(const struct quant_type *type, struct block_lanes *b, int at,
                         const struct unit *u)
{
    struct unit_choice found;
    f32x16 left[UNIT], e[UNIT], was[UNIT], is[UNIT];
    memcpy(left, b->f + at, sizeof left);
    for (int i = 0; i < UNIT; i++) {
        f32x16 t = mul(left[i], splat(1 / u->l[i][i]));
        found.x[i] = add(b->w[at + i], mul(t, splat(u->per_scale[i])));
        for (int c = i + 1; c < UNIT; c++)
            left[c] = sub(left[c], mul(t, splat(u->l[i][c])));
    }
    ask_for_points(type, b, at, u, &found);
    for (int i = 0; i < UNIT; i++)
        e[i] = mul(sub(b->w[at + i], b->y[at + i]), splat(u->scale[i]));
    errors_of_unit(u, b->f + at, e, was);
    for (int i = 0; i < UNIT; i++)
        e[i] = mul(sub(b->w[at + i], found.y[i]), splat(u->scale[i]));
    errors_of_unit(u, b->f + at, e, is);
    take_point(type, b, at, &found, below(squares(is), squares(was)));
}

/* Choose the codes of a block's columns in their order; e and f are then those of the block. */
static void choose_codes(const struct quant_type *type, const struct metric *m, struct range r,
                         const struct prepared *p, struct block_lanes *b)
{
    const int unit = type->choose ? UNIT : 1;
    for (int first = 0; first < r.n; first += PANEL) {
        for (int at = first; at < first + PANEL; at += unit) {
            if (type->choose)
                choose_point(type, b, at, &p->of[at / UNIT]);
            else
                take_nearest(type, b, at, add(b->w[at], mul(b->f[at], splat(p->per_l[at]))));
            for (int i = at; i < at + unit; i++) {
                b->e[i] = mul(sub(b->w[i], b->y[i]), splat(p->scale[i]));
                spread(b->f + first, b->e[i], upper_rows(m, r, r.at + first, i), at - first);
            }
        }
        for (int c = first + PANEL; c < r.n; c += PANEL)
            add_products(b->f + c, b->e + first, upper_rows(m, r, r.at + c, first), PANEL);
    }
}

/* The weights that would take back all of f: rows[l][i] = w + f / L. */
static void targets_of(const struct metric *m, struct range r, const struct prepared *p,
                       struct block_lanes *b)
{
    f32x16 left[MAX_BLOCK], t[MAX_BLOCK], x[MAX_BLOCK];
    memcpy(left, b->f, (size_t)r.n * sizeof *left);
    for (int first = 0; first < r.n; first += PANEL) {
        for (int i = first; i < first + PANEL; i++) {
            const float *l = upper_rows(m, r, r.at + first, i);
            t[i] = sub(splat(0), mul(left[i], splat(1 / l[i - first])));
            f32x16 moved = sub(b->w[i], mul(t[i], splat(p->scale[i] > 0 ? 1 / p->scale[i] : 0)));
            x[i] = choose(below(absolute(moved), splat(FLT_MAX)), moved, b->w[i]);
            spread(left + first, t[i], l, i - first);
        }
        for (int c = first + PANEL; c < r.n; c += PANEL)
            add_products(left + c, t + first, upper_rows(m, r, r.at + c, first), PANEL);
    }
    rows_from_lanes(b->rows, x, r.n);
}

/* ---- sweeps ---------------------------------------------------------------------------------- */

/* The codes of a unit, all others fixed; e is the change of the errors. */
static void improve_point(const struct quant_type *type, struct block_lanes *b, int at,
                          const struct unit *u, f32x16 *e)
{
    struct unit_choice found;
    f32x16 change = splat(0);
    for (int i = 0; i < UNIT; i++) {
        f32x16 t = splat(0);
        for (int j = 0; j < UNIT; j++)
            t = add(t, mul(b->f[at + j], splat(u->inverse[j][i])));
        found.x[i] = add(b->y[at + i], mul(t, splat(u->per_scale[i])));
    }
    ask_for_points(type, b, at, u, &found);
    for (int i = 0; i < UNIT; i++)
        e[i] = mul(sub(b->y[at + i], found.y[i]), splat(u->scale[i]));
    for (int i = 0; i < UNIT; i++) {
        f32x16 sum = add(b->f[at + i], b->f[at + i]);
        for (int j = 0; j < UNIT; j++)
            sum = add(sum, mul(e[j], splat(u->c[j][i])));
        change = add(change, mul(e[i], sum));
    }
    mask16 better = below(change, splat(0));
    take_point(type, b, at, &found, better);
    for (int i = 0; i < UNIT; i++)
        e[i] = choose(better, e[i], splat(0));
}

/* Choose each code of a block again, all others fixed. f is the slope; the changes of errors are
 * added to e. */
static void improve_codes(const struct quant_type *type, struct range r,
                          const struct prepared *p, struct block_lanes *b)
{
    const int unit = type->choose ? UNIT : 1;
    for (int first = 0; first < r.n; first += PANEL) {
        f32x16 change[PANEL];
        for (int at = first; at < first + PANEL; at += unit) {
            f32x16 *e = change + at - first;
            if (type->choose) {
                improve_point(type, b, at, &p->of[at / UNIT], e);
            } else {
                f32x16 was = b->y[at];
                take_nearest(type, b, at, add(was, mul(b->f[at], splat(p->per_c[at]))));
                *e = mul(sub(was, b->y[at]), splat(p->scale[at]));
            }
            for (int i = 0; i < unit; i++) {
                b->e[at + i] = add(b->e[at + i], e[i]);
                spread(b->f + first, e[i], square_rows(p->square, first, at + i), 0);
            }
        }
        for (int c = 0; c < r.n; c += PANEL)
            if (c != first)
                add_products(b->f + c, change, square_rows(p->square, c, first), PANEL);
    }
}
