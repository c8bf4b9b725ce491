/* Q6_K: 256 weights in 210 bytes, 6.5625 bits per weight.
 *
 *   bytes   0..127  ql      low 4 bits of the codes
 *   bytes 128..191  qh      high 2 bits of the codes
 *   bytes 192..207  scales  sixteen signed 8-bit scales, one per 16 weights
 *   bytes 208..209  d       f16 scale of the scales
 *
 * Each half h (128 weights) has 64 bytes of ql and 32 of qh. Weight 128 h + 32 k + i, k = 0..3:
 *
 *   low bits   ql[64 h + 32 (k % 2) + i], low half of the byte for k < 2, else high half
 *   high bits  bits 2 k, 2 k + 1 of qh[32 h + i]
 *
 *   w[16 g + i] = d * scale[g] * (q - 32),  q in 0..63
 *
 * Source: block_q6_K in ggml-common.h. Little-endian.
 */
#include "scaled_k.h"

struct block_q6_k { uint8_t ql[128], qh[64]; int8_t scales[16]; uint16_t d; };
static_assert(sizeof(struct block_q6_k) == 210, "Q6_K is 210 bytes a block");

static const struct scaled_format q6_k_format = {
    .n = 16, .levels = {-32, 31, NULL}, .l_least = -128, .l_most = 127,
    .effort = {{5, 27, 1.5f, 1, 0}, {8, 26, 1, 0, 1}, {40, 20, 0.375f, 2, 4}},
};

static void encode_q6_k(const float *x, const float *w, struct block_q6_k *blocks, int n_blocks,
                        enum effort effort)
{
    struct groups g;
    struct scaled_codes c;
    gather(&g, 16, 16, n_blocks, x, w);
    encode_scaled(&g, q6_k_format, effort, &c);
    struct block_q6_k block = {.d = c.d};
    memcpy(block.scales, c.ls, sizeof block.scales);
    for (int h = 0; h < 2; h++)
        for (int i = 0; i < 32; i++) {
            const int8_t *q = c.q + 128 * h + i;
            uint8_t q0 = (uint8_t)(q[0] + 32), q1 = (uint8_t)(q[32] + 32);
            uint8_t q2 = (uint8_t)(q[64] + 32), q3 = (uint8_t)(q[96] + 32);
            block.ql[64 * h + i] = (uint8_t)((q0 & 15) | q2 << 4);
            block.ql[64 * h + 32 + i] = (uint8_t)((q1 & 15) | q3 << 4);
            block.qh[32 * h + i] = (uint8_t)(q0 >> 4 | q1 >> 4 << 2 | q2 >> 4 << 4 | q3 >> 4 << 6);
        }
    *blocks = block;
}

static void decode_q6_k(const struct block_q6_k *block, float *x)
{
    float d = f32_of_f16(block->d);
    for (int h = 0; h < 2; h++)
        for (int k = 0; k < 4; k++)
            for (int i = 0; i < 32; i++) {
                int low = block->ql[64 * h + 32 * (k % 2) + i] >> 4 * (k / 2) & 15;
                int q = (low | (block->qh[32 * h + i] >> 2 * k & 3) << 4) - 32;
                x[128 * h + 32 * k + i] = d * block->scales[8 * h + 2 * k + i / 16] * (float)q;
            }
}

static void regain_q6_k(struct block_q6_k *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
