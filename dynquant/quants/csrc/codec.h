/* What a block format is to the rest of the core, and what one ISA's build offers. */
#pragma once

#include <stdint.h>

/* A block format. Blocks are independent: any run of them can be encoded or decoded alone.
 *
 *   encode   x: n_blocks * block_size finite weights; w: as many importances >= 0, or NULL for all
 *            alike; writes n_blocks * type_size bytes
 *   decode   the inverse, without loss
 */
struct quant_type {
    const char *name;
    int32_t block_size, type_size;
    void (*encode)(const float *x, const float *w, uint8_t *blocks, int64_t n_blocks);
    void (*decode)(const uint8_t *blocks, float *x, int64_t n_blocks);
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
                      int64_t n_rows, int64_t n_per_row, const float *importance, uint8_t *blocks);
};

#if defined(__x86_64__)
#define N_ISAS 3
#else
#define N_ISAS 1
#endif

/* All builds, slowest first; runs(i) says whether this CPU has what build i needs. */
extern const struct codec *const codecs[N_ISAS];
int codec_runs(int i);
