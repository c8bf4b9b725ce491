/* What a block format is to the rest of the core, and what one ISA's build offers. */
#pragma once

#include <stdint.h>

/* How hard to search, and for what. */
enum effort { EFFORT_FAST, EFFORT_NORMAL, EFFORT_BEST, N_EFFORTS };

struct search {
    enum effort effort;
    int by_magnitude; /* weigh by importance * sqrt(mean x^2 + x^2) and not by importance alone */
    float gain;       /* 0: least squares; 1: <x, decoded> = <x, x>; between: a share of the way */
};

/* A block format. Blocks are independent: any run of them can be encoded or decoded alone.
 *
 *   encode   x: n_blocks * block_size finite weights; w: as many importances >= 0, or NULL for all
 *            alike; fills n_blocks * type_size bytes so that sum w (x - decoded)^2 is small
 *   decode   the inverse, without loss
 *   regain   multiply one block's decoded weights by a factor near one, as well as its scale can
 *            be rounded; NULL where the scale is too coarse for that
 */
struct quant_type {
    const char *name;
    int32_t block_size, type_size;
    void (*encode)(const float *x, const float *w, uint8_t *blocks, int64_t n_blocks,
                   enum effort effort);
    void (*decode)(const uint8_t *blocks, float *x, int64_t n_blocks);
    void (*regain)(uint8_t *block, float factor);
};

/* How a checkpoint stores weights, little-endian. The order is known to module.c's caller. */
enum stored_type { STORED_F32, STORED_F16, STORED_BF16, N_STORED };

/* One ISA's build of types.c. */
struct codec {
    const char *isa;
    int32_t n_types;
    const struct quant_type *types;

    /* Stored rows -> blocks. importance: n_per_row values, or NULL. n_per_row is a multiple of the
     * type's block size. Returns -1, or the first row that holds a NaN or an infinity; the blocks
     * from that row on are then unspecified. */
    int64_t (*encode)(const struct quant_type *type, enum stored_type stored, const void *rows,
                      int64_t n_rows, int64_t n_per_row, const float *importance,
                      const struct search *search, uint8_t *blocks);
};

#if defined(__x86_64__)
#define N_ISAS 3
#else
#define N_ISAS 1
#endif

/* All builds, slowest first; runs(i) says whether this CPU has what build i needs. */
extern const struct codec *const codecs[N_ISAS];
int codec_runs(int i);
