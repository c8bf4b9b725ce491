/* Error feedback: codes that make the error of a matrix's outputs small, not that of its weights.
 *
 * The outputs of a row's errors e are off by e H e' in the mean square, H = E[x x'] of its inputs
 * x. With the scales S of the channels, H = S C S and C = L L' (factor.h), it is |f|^2, f = e S L.
 * L is upper triangular, so that f's columns up to c depend on the errors up to c only: blocks are
 * encoded in the order of the columns, and what is in f so far is taken back by each block as well
 * as it can: its target is w + f / L of its columns. In a block the scales of the encoder's answer
 * stay, and codes are chosen again, one unit of columns after another, with what the units before
 * have added to f.
 *
 * Then sweeps: all other codes fixed, the best number for a unit is y + (g / C of the unit), where
 * g = f L' is the slope of the error. A code is taken only where it reduces e H e'.
 *
 * Sixteen rows in the lanes, up to BUNDLE of these at a time, so that L is read less often. Rows
 * do not depend on each other.
 */
#pragma once

#include "codec.h"
#include "feedback_block.h"
#include "regain.h"
#include "rows.h"

/* Groups of sixteen rows that are encoded together. */
#define BUNDLE 4

/* Times that the codes of a block are chosen again before the next one. */
#define TURNS 2

/* f of all columns, [BUNDLE][n], and the rows of one block. */
struct bundle {
    f32x16 *f;
    struct block_lanes *lanes;
    struct prepared *prepared;
    int n_rows, n_groups;
};

/* Bytes of scratch, and a bundle in them; scratch is aligned to 64 bytes. */
static int64_t bundle_size(int64_t n)
{
    return (int64_t)sizeof(f32x16) * BUNDLE * n + (int64_t)sizeof(struct block_lanes) * BUNDLE +
           (int64_t)sizeof(struct prepared);
}

static struct bundle bundle_in(void *scratch, int64_t n, int n_rows)
{
    struct bundle k = {.f = scratch, .n_rows = n_rows, .n_groups = (n_rows + LANES - 1) / LANES};
    k.lanes = (struct block_lanes *)(k.f + BUNDLE * n);
    k.prepared = (struct prepared *)(k.lanes + BUNDLE);
    memset(k.f, 0, sizeof(f32x16) * (size_t)(BUNDLE * n));
    return k;
}

static int rows_of_group(const struct bundle *k, int g)
{
    return k->n_rows - g * LANES < LANES ? k->n_rows - g * LANES : LANES;
}

/* f of the columns from `from` on += e of the block's columns times L. */
static void add_to_all(const struct metric *m, struct range r, struct bundle *k, int64_t from)
{
    for (int64_t c = from; c < m->n; c += PANEL)
        for (int g = 0; g < k->n_groups; g++)
            add_products(k->f + g * m->n + c, k->lanes[g].e, upper_rows(m, r, c, 0), r.n);
}

/* L L' of the columns of a range. */
static struct square schur_of(const struct metric *m, struct range r, struct prepared *p)
{
    if (r.n == TILE)
        return (struct square){diagonal_panel((float *)m->schur, m->n, r.b, r.at), r.rows};
    multiply_by_transpose(upper_rows(m, r, r.at, 0), r.rows, r.n, p->own, r.n);
    return (struct square){p->own, r.n};
}

/* Choose the codes of a block again, before the next one: g = f L'. */
static void improve_block(const struct quant_type *type, const struct metric *m, struct range r,
                          const struct prepared *p, struct block_lanes *b)
{
    f32x16 f[MAX_BLOCK], e[MAX_BLOCK];
    memcpy(f, b->f, (size_t)r.n * sizeof *f);
    memcpy(e, b->e, (size_t)r.n * sizeof *e);
    for (int first = 0; first < r.n; first += PANEL)
        products_with_rows(b->f + first, f + first, upper_rows(m, r, r.at + first, first),
                           r.rows * PANEL, (r.n - first) / PANEL);
    memset(b->e, 0, sizeof b->e);
    for (int turn = 0; turn < TURNS; turn++)
        improve_codes(type, r, p, b);
    for (int c = 0; c < r.n; c += PANEL)
        add_products(f + c, b->e, upper_rows(m, r, r.at + c, 0), c + PANEL);
    for (int i = 0; i < r.n; i++)
        b->e[i] = add(e[i], b->e[i]);
    memcpy(b->f, f, (size_t)r.n * sizeof *f);
}

/* Encode a block of a group of rows whose weights are in the lanes. */
static void encode_lanes(const struct quant_type *type, const struct metric *m, struct range r,
                         const struct bundle *k, int g, const float *importance,
                         const struct search *search, uint8_t *blocks, int64_t stride)
{
    const int rows = rows_of_group(k, g);
    struct block_lanes *b = &k->lanes[g];
    uint8_t column[LANES * MAX_TYPE_SIZE];
    memcpy(b->f, k->f + g * m->n + r.at, (size_t)r.n * sizeof *b->f);
    targets_of(m, r, k->prepared, b);
    struct weights in = {b->rows, importance + r.at, r.n, 0};
    type->encode(in, column, rows, search->effort);
    for (int l = 0; l < rows; l++) {
        if (search->gain != 0 && type->regain)
            regain(type, search->gain, b->rows + l * r.n, importance + r.at,
                   column + l * type->type_size, r.n);
        memcpy(blocks + l * stride, column + l * type->type_size, (size_t)type->type_size);
    }
    open_lanes(type, b, blocks, stride, rows);
    choose_codes(type, m, r, k->prepared, b);
    improve_block(type, m, r, k->prepared, b);
    close_lanes(type, b, blocks, stride, rows);
    memcpy(k->f + g * m->n + r.at, b->f, (size_t)r.n * sizeof *b->f);
}

/* The columns of a block of stored rows, in the lanes. Returns the first row that is not finite, or
 * `rows`; its columns are zeros. */
static int load_lanes(struct block_lanes *b, enum stored_type stored, const uint8_t *from,
                      int64_t row_bytes, int n, int rows)
{
    int bad = rows;
    memset(b->rows, 0, sizeof b->rows);
    for (int l = 0; l < rows; l++)
        if (!weights_of_stored(stored, from + l * row_bytes, n, b->rows + l * n)) {
            bad = l < bad ? l : bad;
            memset(b->rows + l * n, 0, (size_t)n * sizeof *b->rows);
        }
    lanes_from_rows(b->w, b->rows, n);
    return bad;
}

/* The codes of a bundle's rows, block after block. Returns the first row that is not finite, or
 * n_rows. */
static int encode_bundle(const struct quant_type *type, const struct metric *m, struct bundle *k,
                         enum stored_type stored, const uint8_t *rows, const float *importance,
                         const struct search *search, uint8_t *blocks)
{
    const int size = type->block_size;
    const int64_t stored_size = stored == STORED_F32 ? 4 : 2, row_bytes = m->n * stored_size;
    const int64_t stride = m->n / size * type->type_size;
    int bad = k->n_rows;
    for (int64_t at = 0; at < m->n; at += size) {
        struct range r = range_of(m, at, size);
        prepare_range(k->prepared, m, r, schur_of(m, r, k->prepared), type->choose != NULL);
        for (int g = 0; g < k->n_groups; g++) {
            int n = rows_of_group(k, g);
            const uint8_t *from = rows + g * LANES * row_bytes + at * stored_size;
            int first = load_lanes(&k->lanes[g], stored, from, row_bytes, size, n);
            if (first < n && g * LANES + first < bad)
                bad = g * LANES + first;
            encode_lanes(type, m, r, k, g, importance, search,
                         blocks + g * LANES * stride + at / size * type->type_size, stride);
        }
        add_to_all(m, r, k, at + size);
    }
    return bad;
}

/* g of a block's columns, in f of the lanes. */
static void slope_of_block(const struct metric *m, struct range r, struct bundle *k)
{
    for (int first = 0; first < r.n; first += PANEL) {
        int64_t c = r.at + first;
        for (int g = 0; g < k->n_groups; g++)
            products_with_rows(k->lanes[g].f + first, k->f + g * m->n + c,
                               upper_rows(m, r, c, first), r.rows * PANEL, (m->n - c) / PANEL);
    }
}

static void sweep(const struct quant_type *type, const struct metric *m, struct bundle *k,
                  uint8_t *blocks)
{
    const int size = type->block_size;
    const int64_t stride = m->n / size * type->type_size;
    for (int64_t at = 0; at < m->n; at += size) {
        struct range r = range_of(m, at, size);
        prepare_range(k->prepared, m, r, diagonal_of(m, r), type->choose != NULL);
        slope_of_block(m, r, k);
        for (int g = 0; g < k->n_groups; g++) {
            struct block_lanes *b = &k->lanes[g];
            uint8_t *its = blocks + g * LANES * stride + at / size * type->type_size;
            open_lanes(type, b, its, stride, rows_of_group(k, g));
            memset(b->e, 0, sizeof b->e);
            for (int turn = 0; turn < TURNS; turn++)
                improve_codes(type, r, k->prepared, b);
            close_lanes(type, b, its, stride, rows_of_group(k, g));
        }
        add_to_all(m, r, k, at);
    }
}

/* |f|^2 of each row of a bundle. */
static void losses_of(const struct metric *m, const struct bundle *k, double *losses)
{
    for (int g = 0; g < k->n_groups; g++) {
        double sum[LANES] = {0};
        for (int64_t c = 0; c < m->n; c++) {
            float f[LANES];
            store(f, k->f[g * m->n + c]);
            for (int l = 0; l < LANES; l++)
                sum[l] += (double)f[l] * f[l];
        }
        for (int l = 0; l < rows_of_group(k, g); l++)
            losses[g * LANES + l] = sum[l];
    }
}

/* |e S'|^2 of each row, e the errors of its blocks. sums: S in panels of 16 columns, each
 * [n_sums, PANEL]; n_sums a multiple of PANEL. e: [n] */
static void output_errors_of_group(const struct quant_type *type, enum stored_type stored,
                                   const uint8_t *rows, int n_rows, int64_t n,
                                   const uint8_t *blocks, const float *sums, int64_t n_sums,
                                   struct block_lanes *b, f32x16 *e, double *errors)
{
    const int size = type->block_size;
    const int64_t stored_size = stored == STORED_F32 ? 4 : 2, stride = n / size * type->type_size;
    double sum[LANES] = {0};
    for (int64_t at = 0; at < n; at += size) {
        load_lanes(b, stored, rows + at * stored_size, n * stored_size, size, n_rows);
        memset(b->rows, 0, sizeof b->rows);
        for (int l = 0; l < n_rows; l++)
            type->decode(blocks + l * stride + at / size * type->type_size, b->rows + l * size, 1);
        lanes_from_rows(b->y, b->rows, size);
        for (int i = 0; i < size; i++)
            e[at + i] = sub(b->w[i], b->y[i]);
    }
    for (int64_t r = 0; r < n_sums; r += PANEL) {
        f32x16 g[PANEL];
        products_with_rows(g, e, sums + r * PANEL, n_sums * PANEL, n / PANEL);
        for (int i = 0; i < PANEL; i++) {
            float lane[LANES];
            store(lane, g[i]);
            for (int l = 0; l < LANES; l++)
                sum[l] += (double)lane[l] * lane[l];
        }
    }
    for (int l = 0; l < n_rows; l++)
        errors[l] = sum[l];
}
