/* The interface of a block format, and that of one ISA's build. */
#pragma once

#include <stdint.h>

/* Block structs lie over bytes at any address. PACKED takes away the alignment of their members, so
 * that the compiler loads them as it would load bytes; without it, an odd address is undefined. */
#define PACKED __attribute__((packed))

/* How much is searched, and what is minimised. Python knows the efforts by the names in
 * module.c. */
enum effort { EFFORT_FAST, EFFORT_NORMAL, EFFORT_BEST, N_EFFORTS };

struct search {
    enum effort effort;
    int by_magnitude; /* the weight of an error is importance * sqrt(mean x^2 + x^2) */
    float gain;       /* 0: least squares; 1: <x, decoded> = <x, x>; between: a share of the way */
};

/* Weights to encode: block b's begin at x + b * x_stride, their importances at w + b * w_stride.
 * w NULL: all importances are one.
 *
 *   a run of rows                 both strides are the block size
 *   one column range of n rows    x_stride is the length of a row, w_stride 0
 */
struct weights { const float *x, *w; int64_t x_stride, w_stride; };

static inline struct weights weights_from_block(struct weights in, int64_t b)
{
    in.x += b * in.x_stride;
    if (in.w)
        in.w += b * in.w_stride;
    return in;
}

/* No block has more weights, or more bytes. */
#define MAX_BLOCK 256
#define MAX_TYPE_SIZE 256

/* A block format. Blocks are independent: any run of them can be encoded or decoded separately.
 *
 *   encode   finite weights and importances >= 0 of n_blocks blocks; fills n_blocks * type_size
 *            bytes so that sum w (x - decoded)^2 is small. Types with a block size of one take
 *            runs of rows only
 *   decode   the inverse, without loss
 *   regain   multiply one block's decoded weights by a factor near one, as well as its scale can
 *            be rounded; NULL where the scale is too coarse for that
 *   open     take one block apart into scales and codes (opened.h)
 *   close    put the codes back into the block that was opened; all else in it stays. Blocks that
 *            are only opened and closed keep their bytes
 *   codes    the codes that blocks may have; NULL, as open and close, with a block size of one
 *   choose   codebook types: the points of eight weights at a given scale (codebook_k.h); else NULL
 */
struct opened;
struct code_space;
struct unit_choice;

struct quant_type {
    const char *name;
    int32_t block_size, type_size;
    void (*encode)(struct weights in, uint8_t *blocks, int64_t n_blocks, enum effort effort);
    void (*decode)(const uint8_t *blocks, float *x, int64_t n_blocks);
    void (*regain)(uint8_t *block, float factor);
    void (*open)(const uint8_t *block, struct opened *o);
    void (*close)(uint8_t *block, const struct opened *o);
    const struct code_space *codes;
    void (*choose)(struct unit_choice *unit);
};

/* How a checkpoint stores weights, little-endian. Python knows these by the names in module.c. */
enum stored_type { STORED_F32, STORED_F16, STORED_BF16, N_STORED };

/* Numbers that a checkpoint may hold with scales beside them, and how the 32-bit words of a
 * transposed matrix hold codes (stored.h). Python knows these by the names in module.c. */
enum number {
    NUMBER_E4M3, NUMBER_E5M2, NUMBER_E8M0, NUMBER_I8, NUMBER_FP4, NUMBER_BITS, N_NUMBERS
};
enum packing { PACKED_DOWN, PACKED_ACROSS, N_PACKINGS };

/* The scale, and the zero, of each weight: element [i, j] of a matrix of n_columns columns.
 *
 *   rows       i = (first + r) / block_rows for row r, j = c / block_columns or groups[c]
 *   transposed i = groups[c], j = output; n_columns is the number of outputs
 *   zero       NULL where zero_of_all is every weight's
 */
struct scales {
    const float *scale, *zero;
    float zero_of_all;
    const int32_t *groups;
    int64_t first, block_rows, block_columns, n_columns;
};

/* How far decoded weights y are from the original ones x: sums over weights with importance w of
 * w (x - y)^2, w x^2, w x y and w y^2, and the largest |x - y|. Python knows these by the names in
 * module.c. */
struct errors { double difference, original, product, decoded, largest; };

/* What the errors of a matrix are multiplied by: L, and the squares of its input channels
 * (factor.h), and the root of each channel's mean square. */
struct metric {
    int64_t n;
    const float *upper, *diagonal, *schur, *scale;
};

/* One ISA's build of types.c. */
struct codec {
    const char *isa;
    int32_t n_types;
    const struct quant_type *types;

    /* Stored rows -> blocks. importance: n_per_row floats at any address, or NULL. mean: as many,
     * the mean of each input channel, or NULL; a type with blocks, an importance, and weights that
     * are not chosen by magnitude go with it. n_per_row is a multiple of the type's block size.
     * Returns -1, or the first row that holds a NaN or an infinity; the blocks from that row on are
     * then unspecified. */
    int64_t (*encode)(const struct quant_type *type, enum stored_type stored, const void *rows,
                      int64_t n_rows, int64_t n_per_row, const void *importance, const void *mean,
                      const struct search *search, uint8_t *blocks);

    /* Columns of rows of f32, whose first weights are `stride` apart -> n_columns / block_size
     * blocks of each row, the same as encode gives for a copy of these columns. importance: of the
     * columns, or NULL. n_columns is a multiple of the type's block size. Returns as encode
     * does. */
    int64_t (*encode_columns)(const struct quant_type *type, const float *x, int64_t n_rows,
                              int64_t stride, int64_t n_columns, const float *importance,
                              enum effort effort, uint8_t *blocks);

    /* As encode, but for the error of the matrix's outputs (feedback.h), with `sweeps` sweeps after
     * the first codes. n_per_row is a multiple of 16. losses: what tr(E H E') has of each row.
     * scratch: scratch_bytes(n_per_row) bytes, aligned to 64. Types with blocks only. */
    int64_t (*encode_with_feedback)(const struct quant_type *type, enum stored_type stored,
                                    const void *rows, int64_t n_rows, const struct metric *metric,
                                    const float *importance, const struct search *search,
                                    int sweeps, void *scratch, uint8_t *blocks, double *losses);
    int64_t (*scratch_bytes)(int64_t n_per_row);

    /* |e S'|^2 of each row, e the errors of its blocks. sums: S in panels of 16 columns, float
     * [n_per_row / 16, n_sums, 16], n_sums a multiple of 16. scratch as above. */
    void (*output_errors)(const struct quant_type *type, enum stored_type stored, const void *rows,
                          int64_t n_rows, int64_t n_per_row, const uint8_t *blocks,
                          const float *sums, int64_t n_sums, void *scratch, double *errors);

    /* The factor of a matrix's correlations, in its place (factor.h): place_correlations for each
     * row block, then factor_tiles from the last column block to the first, then place_schur for
     * each row block. scratch: 2 * TILE * TILE doubles. */
    void (*place_correlations)(int64_t n, const uint16_t *correlations, double damping, int64_t b,
                               float *upper, float *diagonal);
    void (*factor_tiles)(int64_t n, float *upper, double damping, int64_t b, int64_t first,
                         int64_t last, double *scratch);
    void (*place_schur)(int64_t n, const float *upper, int64_t b, float *schur);

    /* n weights as one type and the blocks of another -> how far apart they are. n is a multiple of
     * both block sizes; importance as for encode. The sums of one call are the same on every ISA.
     * The sums of two calls add up to those of one call for all, but not to the last bit. */
    struct errors (*errors)(const struct quant_type *original, const uint8_t *rows,
                            const struct quant_type *type, const uint8_t *blocks, int64_t n,
                            int64_t n_per_row, const void *importance);

    /* Rows of stored numbers -> f32; bits is the width of NUMBER_BITS. */
    void (*decode_rows)(enum number number, int bits, const uint8_t *codes, int64_t row_bytes,
                        int64_t n_rows, int64_t n_per_row, const struct scales *scales, float *x);

    /* Outputs from `first` on of a transposed matrix of words -> rows of f32; the codes themselves
     * where scales is NULL. */
    void (*decode_transposed)(enum packing packing, int bits, const uint8_t *words, int64_t width,
                              int64_t first, int64_t n_rows, int64_t n_per_row,
                              const struct scales *scales, float *x);

    /* Codes in order and scales -> blocks of MXFP4. */
    void (*mxfp4_of_codes)(const uint8_t *codes, const uint8_t *scales, int64_t n_blocks,
                           uint8_t *blocks);
};

#if defined(__x86_64__)
#define N_ISAS 3
#else
#define N_ISAS 1
#endif

/* All builds, slowest first; codec_runs(i): whether this CPU supports build i, as codecs_detect
 * found, which runs once when the module is loaded. */
extern const struct codec *const codecs[N_ISAS];
void codecs_detect(void);
int codec_runs(int i);
