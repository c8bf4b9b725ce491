/* Q4_0: 32 weights in 18 bytes, 4.5 bits per weight.
 *
 *   bytes 0..1    d    f16 scale
 *   bytes 2..17   qs   byte i holds weight i in its low half and weight 16 + i in its high half
 *
 *   w[i] = d * (q - 8),  q in 0..15
 *
 * Source: block_q4_0 in ggml-common.h. Little-endian.
 */
#include "one_scale.h"

struct block_q4_0 { uint16_t d; uint8_t qs[16]; };
static_assert(sizeof(struct block_q4_0) == 18, "Q4_0 is 18 bytes a block");

static const struct one_scale_format q4_0_format = {
    .levels = {-8, 7, NULL}, .tries = 10, .first = 6, .step = 0.3f, .polish = 1,
};

static void encode_q4_0(const float *x, const float *w, uint8_t *blocks, int64_t n_blocks)
{
    for (int64_t b = 0; b < n_blocks; b += LANES) {
        int64_t n = n_blocks - b < LANES ? n_blocks - b : LANES;
        struct groups g;
        struct one_scale_codes c;
        gather(&g, 32, 1, n, x + 32 * b, w ? w + 32 * b : NULL);
        encode_one_scale(&g, q4_0_format, &c);
        for (int k = 0; k < n; k++) {
            struct block_q4_0 block = {.d = c.d[k]};
            const int8_t *q = c.q + 32 * k;
            for (int i = 0; i < 16; i++)
                block.qs[i] = (uint8_t)((q[i] + 8) | (q[i + 16] + 8) << 4);
            memcpy(blocks + (b + k) * (int64_t)sizeof block, &block, sizeof block);
        }
    }
}

static void decode_q4_0(const uint8_t *blocks, float *x, int64_t n_blocks)
{
    for (int64_t b = 0; b < n_blocks; b++, x += 32) {
        struct block_q4_0 block;
        memcpy(&block, blocks + b * (int64_t)sizeof block, sizeof block);
        float d = f32_of_f16(block.d);
        for (int i = 0; i < 16; i++) {
            x[i] = d * (float)((block.qs[i] & 15) - 8);
            x[i + 16] = d * (float)((block.qs[i] >> 4) - 8);
        }
    }
}
