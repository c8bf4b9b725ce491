/* Every quant type, compiled once per ISA (-DISA=name), behind one table. */
#include <assert.h>
#include <float.h>
#include <math.h>
#include <stddef.h>

#include "codec.h"
#include "errors.h"
#include "feedback.h"
#include "floats.h"
#include "means.h"
#include "opened.h"
#include "regain.h"
#include "rows.h"

#include "iq1_m.h"
#include "iq1_s.h"
#include "iq2_s.h"
#include "iq2_xs.h"
#include "iq2_xxs.h"
#include "iq3_s.h"
#include "iq3_xxs.h"
#include "iq4_nl.h"
#include "iq4_xs.h"
#include "mxfp4.h"
#include "nvfp4.h"
#include "plain.h"
#include "q1_0.h"
#include "q2_0.h"
#include "q2_k.h"
#include "q3_k.h"
#include "q4_0.h"
#include "q4_1.h"
#include "q4_k.h"
#include "q5_0.h"
#include "q5_1.h"
#include "q5_k.h"
#include "q6_k.h"
#include "q8_0.h"
#include "stored.h"
#include "tq1_0.h"
#include "tq2_0.h"

/* Block types: name, file, weights and bytes of a block, lanes that a block takes: its groups, and
 * in Q1_0 sixteenths of the block. An encoder takes as many blocks at a time as fill the lanes,
 * LANES / lanes; LOOPS checks that these are whole blocks. */
#define SCALAR_TYPES(T)                                                                            \
    T(Q8_0, q8_0, 32, 34, 1)                                                                       \
    T(Q6_K, q6_k, 256, 210, 16)                                                                    \
    T(Q5_1, q5_1, 32, 24, 1)                                                                       \
    T(Q5_K, q5_k, 256, 176, 8)                                                                     \
    T(Q5_0, q5_0, 32, 22, 1)                                                                       \
    T(Q4_1, q4_1, 32, 20, 1)                                                                       \
    T(Q4_K, q4_k, 256, 144, 8)                                                                     \
    T(IQ4_NL, iq4_nl, 32, 18, 1)                                                                   \
    T(Q4_0, q4_0, 32, 18, 1)                                                                       \
    T(IQ4_XS, iq4_xs, 256, 136, 8)                                                                 \
    T(Q3_K, q3_k, 256, 110, 16)                                                                    \
    T(Q2_K, q2_k, 256, 84, 16)                                                                     \
    T(Q2_0, q2_0, 64, 18, 1)                                                                       \
    T(TQ2_0, tq2_0, 256, 66, 1)                                                                    \
    T(TQ1_0, tq1_0, 256, 54, 1)                                                                    \
    T(Q1_0, q1_0, 128, 18, 16)

/* Those whose codes are points of a codebook; the columns are the same. */
#define CODEBOOK_TYPES(T)                                                                          \
    T(IQ3_S, iq3_s, 256, 110, 8)                                                                   \
    T(IQ3_XXS, iq3_xxs, 256, 98, 8)                                                                \
    T(IQ2_S, iq2_s, 256, 82, 16)                                                                   \
    T(IQ2_XS, iq2_xs, 256, 74, 16)                                                                 \
    T(IQ2_XXS, iq2_xxs, 256, 66, 8)                                                                \
    T(IQ1_M, iq1_m, 256, 56, 16)                                                                   \
    T(IQ1_S, iq1_s, 256, 50, 8)

#define BLOCK_TYPES(T) SCALAR_TYPES(T) CODEBOOK_TYPES(T)

/* Block types whose scales are too coarse for `regain`; the columns are the same. */
#define LATTICE_TYPES(T)                                                                           \
    T(NVFP4, nvfp4, 64, 36, 4)                                                                     \
    T(MXFP4, mxfp4, 32, 17, 1)

/* A block file knows its struct and a few blocks; the rest of the core knows bytes and any number
 * of blocks. */
#define LOOPS(NAME, name, block_size, type_size, lanes)                                            \
    static_assert(sizeof(struct block_##name) == type_size, #NAME " has its size");                \
    static_assert(block_size <= MAX_BLOCK && type_size <= MAX_TYPE_SIZE, #NAME " is too large");   \
    static_assert(lanes > 0 && LANES % lanes == 0, #NAME " has whole blocks in the lanes");        \
    static void encode_all_##name(struct weights in, uint8_t *blocks, int64_t n,                   \
                                  enum effort effort)                                              \
    {                                                                                              \
        struct block_##name *block = (struct block_##name *)blocks;                                \
        const int batch = LANES / lanes;                                                           \
        for (int64_t b = 0; b < n; b += batch)                                                     \
            encode_##name(weights_from_block(in, b), block + b,                                    \
                          n - b < batch ? (int)(n - b) : batch, effort);                           \
    }                                                                                              \
                                                                                                   \
    static void decode_all_##name(const uint8_t *blocks, float *x, int64_t n)                      \
    {                                                                                              \
        const struct block_##name *block = (const struct block_##name *)blocks;                    \
        for (int64_t b = 0; b < n; b++)                                                            \
            decode_##name(block + b, x + b * block_size);                                          \
    }

#define REGAIN(NAME, name, block_size, type_size, lanes)                                           \
    static void regain_one_##name(uint8_t *block, float factor)                                    \
    {                                                                                              \
        regain_##name((struct block_##name *)block, factor);                                       \
    }

#define OPENING(NAME, name, block_size, type_size, lanes)                                          \
    static void open_one_##name(const uint8_t *block, struct opened *o)                            \
    {                                                                                              \
        open_##name((const struct block_##name *)block, o);                                        \
    }                                                                                              \
                                                                                                   \
    static void close_one_##name(uint8_t *block, const struct opened *o)                           \
    {                                                                                              \
        close_##name((struct block_##name *)block, o);                                             \
    }

#define CHOOSING(NAME, name, block_size, type_size, lanes)                                         \
    static void choose_##name(struct unit_choice *unit)                                            \
    {                                                                                              \
        choose_unit(unit, name##_format.book);                                                     \
    }

BLOCK_TYPES(LOOPS)
BLOCK_TYPES(REGAIN)
BLOCK_TYPES(OPENING)
LATTICE_TYPES(LOOPS)
LATTICE_TYPES(OPENING)
CODEBOOK_TYPES(CHOOSING)

#define ROW(NAME, name, block_size, type_size, lanes)                                              \
    {#NAME, block_size, type_size, encode_all_##name, decode_all_##name, regain_one_##name,        \
     open_one_##name, close_one_##name, &name##_codes, NULL},
#define CODEBOOK_ROW(NAME, name, block_size, type_size, lanes)                                     \
    {#NAME, block_size, type_size, encode_all_##name, decode_all_##name, regain_one_##name,        \
     open_one_##name, close_one_##name, &name##_codes, choose_##name},
#define LATTICE_ROW(NAME, name, block_size, type_size, lanes)                                      \
    {#NAME, block_size, type_size, encode_all_##name, decode_all_##name, NULL,                     \
     open_one_##name, close_one_##name, &name##_codes, NULL},

static const struct quant_type types[] = {
    {"F32", 1, 4, encode_f32, decode_f32, NULL, NULL, NULL, NULL, NULL},
    {"F16", 1, 2, encode_f16, decode_f16, NULL, NULL, NULL, NULL, NULL},
    {"BF16", 1, 2, encode_bf16, decode_bf16, NULL, NULL, NULL, NULL, NULL},
    SCALAR_TYPES(ROW)
    CODEBOOK_TYPES(CODEBOOK_ROW)
    LATTICE_TYPES(LATTICE_ROW)
};

/* Weights converted and encoded at a time: a multiple of LANES times every block size; 2 x 16 KiB
 * of stack, inside the L1 cache. */
#define BATCH 4096

static int64_t first_not_finite(const float *x)
{
    int64_t i = 0;
    while ((bits_of_f32(x[i]) & 0x7f800000) != 0x7f800000)
        i++;
    return i;
}

/* The importances of n weights from position `at` of a run of rows; they may lie at any address. */
static void importance_of_run(const void *importance, int64_t n_per_row, int64_t at, int64_t n,
                              float *w)
{
    for (int64_t column = at % n_per_row; n > 0; column = 0) {
        int64_t m = n_per_row - column < n ? n_per_row - column : n;
        memcpy(w, (const uint8_t *)importance + 4 * column, (size_t)m * sizeof *w);
        w += m;
        n -= m;
    }
}

/* importance * sqrt(mean x^2 + x^2), the mean over the block, as in ggml. has_importance 0: w is
 * only written. In double, so that no square overflows; products too large for a float become the
 * largest one, as an infinite importance would leave nothing to compare. */
static void weigh_by_magnitude(const float *x, float *w, int has_importance, int64_t n,
                               int64_t block_size)
{
    for (int64_t b = 0; b < n; b += block_size) {
        double mean = 0;
        for (int64_t i = b; i < b + block_size; i++)
            mean += (double)x[i] * x[i] / (double)block_size;
        for (int64_t i = b; i < b + block_size; i++) {
            float magnitude = (float)fmin(sqrt(mean + (double)x[i] * x[i]), FLT_MAX);
            float weight = has_importance ? w[i] * magnitude : magnitude;
            w[i] = weight < FLT_MAX ? weight : FLT_MAX;
        }
    }
}

/* As encode, for the objective sum w err^2 + (sum mean err)^2 of each row: the second term is the
 * bias that the row's output has over all tokens. Blocks are taken in the order of the columns.
 * What those so far have added to the bias is taken back by all that follow, each weight as much as
 * its importance allows: the target of a weight becomes x + bias * pull / (1 + sum of the columns
 * from here on), by the matrix inversion lemma. Sixteen rows at a time. */
static int64_t encode_with_means(const struct quant_type *type, enum stored_type stored,
                                 const void *rows, int64_t n_rows, int64_t n_per_row,
                                 const void *importance, const void *mean,
                                 const struct search *search, uint8_t *blocks)
{
    const int size = type->block_size;
    const int64_t stored_size = stored == STORED_F32 ? 4 : 2, n_blocks = n_per_row / size;
    const double ridge = ridge_of(importance, n_per_row);
    struct channels c;
    double total = 0;
    for (int64_t b = 0; b < n_blocks; b++) {
        channels_of(&c, importance, mean, ridge, b * size, size);
        total += c.sum;
    }
    for (int64_t first = 0; first < n_rows; first += LANES) {
        const int m = n_rows - first < LANES ? (int)(n_rows - first) : LANES;
        double bias[LANES] = {0}, rest = total;
        int bad = m;
        for (int64_t b = 0; b < n_blocks; b++) {
            float x[LANES * MAX_BLOCK], target[LANES * MAX_BLOCK], decoded[LANES * MAX_BLOCK];
            uint8_t column[LANES * MAX_TYPE_SIZE];
            channels_of(&c, importance, mean, ridge, b * size, size);
            const double share = 1 / (1 + (rest > 0 ? rest : 0));
            rest -= c.sum;
            for (int r = 0; r < m; r++) {
                const uint8_t *from =
                    (const uint8_t *)rows + ((first + r) * n_per_row + b * size) * stored_size;
                float *its = x + r * size;
                if (!weights_of_stored(stored, from, size, its)) {
                    bad = r < bad ? r : bad;
                    memset(its, 0, (size_t)size * sizeof *its);
                }
                for (int i = 0; i < size; i++) {
                    double moved = its[i] + bias[r] * share * c.pull[i];
                    target[r * size + i] = fabs(moved) <= FLT_MAX ? (float)moved : its[i];
                }
            }
            struct weights in = {target, c.w, size, 0};
            type->encode(in, column, m, search->effort);
            for (int r = 0; r < m && search->gain != 0 && type->regain; r++)
                regain(type, search->gain, target + r * size, c.w, column + r * type->type_size,
                       size);
            type->decode(column, decoded, m);
            for (int r = 0; r < m; r++) {
                bias[r] += bias_of(x + r * size, decoded + r * size, c.mean, size);
                memcpy(blocks + ((first + r) * n_blocks + b) * type->type_size,
                       column + r * type->type_size, (size_t)type->type_size);
            }
        }
        if (bad < m)
            return first + bad;
    }
    return -1;
}

static int64_t encode(const struct quant_type *type, enum stored_type stored, const void *rows,
                      int64_t n_rows, int64_t n_per_row, const void *importance, const void *mean,
                      const struct search *search, uint8_t *blocks)
{
    if (mean)
        return encode_with_means(type, stored, rows, n_rows, n_per_row, importance, mean, search,
                                 blocks);
    int64_t total = n_rows * n_per_row, stored_size = stored == STORED_F32 ? 4 : 2;
    int by_magnitude = search->by_magnitude && type->block_size > 1;
    for (int64_t at = 0; at < total; at += BATCH) {
        int64_t n = total - at < BATCH ? total - at : BATCH, n_blocks = n / type->block_size;
        float x[BATCH], weights[BATCH], *w = importance || by_magnitude ? weights : NULL;
        if (!weights_of_stored(stored, (const uint8_t *)rows + at * stored_size, n, x))
            return (at + first_not_finite(x)) / n_per_row;
        if (importance)
            importance_of_run(importance, n_per_row, at, n, w);
        if (by_magnitude)
            weigh_by_magnitude(x, w, importance != NULL, n, type->block_size);
        struct weights in = {x, w, type->block_size, type->block_size};
        type->encode(in, blocks, n_blocks, search->effort);
        if (search->gain != 0 && type->regain)
            regain(type, search->gain, x, w, blocks, n);
        blocks += n_blocks * type->type_size;
    }
    return -1;
}

static int64_t encode_with_feedback(const struct quant_type *type, enum stored_type stored,
                                    const void *rows, int64_t n_rows, const struct metric *metric,
                                    const float *importance, const struct search *search,
                                    int sweeps, void *scratch, uint8_t *blocks, double *losses)
{
    const int64_t row_bytes = metric->n * (stored == STORED_F32 ? 4 : 2);
    const int64_t row_size = metric->n / type->block_size * type->type_size;
    for (int64_t at = 0; at < n_rows; at += BUNDLE * LANES) {
        int n = n_rows - at < BUNDLE * LANES ? (int)(n_rows - at) : BUNDLE * LANES;
        struct bundle bundle = bundle_in(scratch, metric->n, n);
        uint8_t *its = blocks + at * row_size;
        int bad = encode_bundle(type, metric, &bundle, stored,
                                (const uint8_t *)rows + at * row_bytes, importance, search, its);
        if (bad < n)
            return at + bad;
        for (int s = 0; s < sweeps; s++)
            sweep(type, metric, &bundle, its);
        losses_of(metric, &bundle, losses + at);
    }
    return -1;
}

static void output_errors(const struct quant_type *type, enum stored_type stored, const void *rows,
                          int64_t n_rows, int64_t n_per_row, const uint8_t *blocks,
                          const float *sums, int64_t n_sums, void *scratch, double *errors)
{
    const int64_t row_bytes = n_per_row * (stored == STORED_F32 ? 4 : 2);
    const int64_t row_size = n_per_row / type->block_size * type->type_size;
    struct bundle bundle = bundle_in(scratch, n_per_row, LANES);
    for (int64_t at = 0; at < n_rows; at += LANES) {
        int n = n_rows - at < LANES ? (int)(n_rows - at) : LANES;
        output_errors_of_group(type, stored, (const uint8_t *)rows + at * row_bytes, n, n_per_row,
                               blocks + at * row_size, sums, n_sums, bundle.lanes, bundle.f,
                               errors + at);
    }
}

/* The first row of columns that holds a number that is not finite, or -1. */
static int64_t first_not_finite_row(const float *x, int64_t n_rows, int64_t stride,
                                    int64_t n_columns)
{
    for (int64_t r = 0; r < n_rows; r++) {
        uint32_t not_finite = 0;
        for (int64_t c = 0; c < n_columns; c++)
            not_finite |= (bits_of_f32(x[r * stride + c]) & 0x7f800000) == 0x7f800000;
        if (not_finite)
            return r;
    }
    return -1;
}

/* Sixteen rows at a time: their blocks in one column range are encoded together and then moved to
 * their rows. */
static int64_t encode_columns(const struct quant_type *type, const float *x, int64_t n_rows,
                              int64_t stride, int64_t n_columns, const float *importance,
                              enum effort effort, uint8_t *blocks)
{
    int64_t block_size = type->block_size, type_size = type->type_size;
    int64_t row_size = n_columns / block_size * type_size;
    int64_t bad_row = first_not_finite_row(x, n_rows, stride, n_columns);
    if (bad_row >= 0)
        return bad_row;
    if (block_size == 1) {
        for (int64_t r = 0; r < n_rows; r++)
            type->encode((struct weights){x + r * stride, importance, 1, 1}, blocks + r * row_size,
                         n_columns, effort);
        return -1;
    }
    for (int64_t first = 0; first < n_rows; first += LANES) {
        int64_t m = n_rows - first < LANES ? n_rows - first : LANES;
        for (int64_t b = 0; b < n_columns / block_size; b++) {
            uint8_t column[LANES * MAX_TYPE_SIZE], *to = blocks + first * row_size + b * type_size;
            struct weights in = {x + first * stride + b * block_size,
                                 importance ? importance + b * block_size : NULL, stride, 0};
            type->encode(in, column, m, effort);
            for (int64_t r = 0; r < m; r++)
                memcpy(to + r * row_size, column + r * type_size, (size_t)type_size);
        }
    }
    return -1;
}

static struct errors errors(const struct quant_type *original, const uint8_t *rows,
                            const struct quant_type *type, const uint8_t *blocks, int64_t n,
                            int64_t n_per_row, const void *importance)
{
    struct lane_errors total = {0};
    for (int64_t at = 0; at < n; at += ERROR_BATCH) {
        int64_t m = n - at < ERROR_BATCH ? n - at : ERROR_BATCH;
        f32x16 in_x[ERROR_BATCH / LANES], in_y[ERROR_BATCH / LANES], in_w[ERROR_BATCH / LANES];
        float *x = (float *)in_x, *y = (float *)in_y, *w = (float *)in_w;
        original->decode(rows, x, m / original->block_size);
        type->decode(blocks, y, m / type->block_size);
        rows += m / original->block_size * original->type_size;
        blocks += m / type->block_size * type->type_size;
        if (importance)
            importance_of_run(importance, n_per_row, at, m, w);
        for (; m % LANES; m++)
            x[m] = y[m] = w[m] = 0;
        if (importance)
            add_batch(&total, in_x, in_y, in_w, 1, (int)(m / LANES));
        else
            add_batch(&total, in_x, in_y, NULL, 0, (int)(m / LANES));
    }
    return all_errors(&total);
}

#define NAME_(prefix, isa) prefix##isa
#define NAME(prefix, isa) NAME_(prefix, isa)
#define TEXT_(isa) #isa
#define TEXT(isa) TEXT_(isa)

const struct codec NAME(codec_, ISA) = {
    .isa = TEXT(ISA),
    .n_types = sizeof types / sizeof *types,
    .types = types,
    .encode = encode,
    .encode_columns = encode_columns,
    .encode_with_feedback = encode_with_feedback,
    .scratch_bytes = bundle_size,
    .output_errors = output_errors,
    .place_correlations = place_correlations,
    .factor_tiles = factor_tiles,
    .place_schur = place_schur,
    .errors = errors,
    .decode_rows = decode_rows,
    .decode_transposed = decode_transposed,
    .mxfp4_of_codes = mxfp4_of_codes,
};
