/* F32, F16, BF16: each weight is one number, little-endian; a block is one weight. A
 * weight that is too large for F16 or BF16 becomes their largest number, never infinity. */
#include "codec.h"
#include "floats.h"

static void encode_f32(struct weights in, uint8_t *blocks, int64_t n_blocks,
                       enum effort effort)
{
    (void)effort;
    memcpy(blocks, in.x, (size_t)n_blocks * 4);
}

static void decode_f32(const uint8_t *blocks, float *x, int64_t n_blocks)
{
    memcpy(x, blocks, (size_t)n_blocks * 4);
}

#define PLAIN_16(name)                                                                             \
    static void encode_##name(struct weights in, uint8_t *blocks, int64_t n_blocks,                \
                              enum effort effort)                                                  \
    {                                                                                              \
        (void)effort;                                                                              \
        for (int64_t i = 0; i < n_blocks; i++) {                                                   \
            uint16_t h = name##_of_f32(in.x[i]);                                                   \
            memcpy(blocks + 2 * i, &h, sizeof h);                                                  \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    static void decode_##name(const uint8_t *blocks, float *x, int64_t n_blocks)                   \
    {                                                                                              \
        for (int64_t i = 0; i < n_blocks; i++) {                                                   \
            uint16_t h;                                                                            \
            memcpy(&h, blocks + 2 * i, sizeof h);                                                  \
            x[i] = f32_of_##name(h);                                                               \
        }                                                                                          \
    }

PLAIN_16(f16)
PLAIN_16(bf16)
