/* IQ1_M: 256 weights in 56 bytes, 1.75 bits per weight.
 *
 *   bytes  0..31   qs      low 8 bits of the code of each 8 weights
 *   bytes 32..47   qh      four bits for each 8 weights, two in a byte, the first lowest: high 3
 *                          bits of the code; bit 3 set: the shift is subtracted
 *   bytes 48..55   scales  four 16-bit words: 3-bit scales s of four groups of 16 weights, the
 *                          first lowest; bits 12..15 four bits of the f16 scale d, the first word
 *                          lowest
 *
 *   w = d * (2 s + 1) * (level +- 1/8),  levels -1, 0, 1: 2048 points of eight
 *
 * Source: block_iq1_m in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "codebook_k.h"

struct block_iq1_m { uint8_t qs[32], qh[16]; uint16_t scales[4]; } PACKED;
static_assert(sizeof(struct block_iq1_m) == 56, "IQ1_M is 56 bytes a block");

static const struct codebook_format iq1_m_format = {
    .book = {
        .dim = 8, .n_levels = 3, .n_halves = 81,
        .chunk = IQ1_CHUNK, .n_chunks = IQ1_CHUNKS,
        .key = iq1_key, .code = iq1_code, .second = iq1_second, .first = iq1_first,
        .levels = {-1, 0, 1}, .signs = SIGNED_LEVELS, .shift = 0.125f, .shifted = SHIFT_OF_VECTOR,
    },
    .n = 16, .group_count = 16, .l_most = 15,
    .effort = {
        [EFFORT_FAST] = {.tries = 10, .first = 0.3f, .step = 0.05f,
                         .scales = 1, .scans = 0, .scan_scales = 0},
        [EFFORT_NORMAL] = {.tries = 10, .first = 0.3f, .step = 0.05f,
                           .scales = 2, .scans = 0, .scan_scales = 0},
        [EFFORT_BEST] = {.tries = 20, .first = 0.25f, .step = 0.03f,
                         .scales = 6, .scans = 4, .scan_scales = 3},
    },
};

static uint16_t iq1_m_scale(const struct block_iq1_m *block)
{
    int d = 0;
    for (int k = 0; k < 4; k++)
        d |= block->scales[k] >> 12 << 4 * k;
    return (uint16_t)d;
}

static void set_iq1_m_scale(struct block_iq1_m *block, uint16_t d)
{
    for (int k = 0; k < 4; k++)
        block->scales[k] = (uint16_t)((block->scales[k] & 0xfff) | (d >> 4 * k & 15) << 12);
}

static void encode_iq1_m(struct weights in, struct block_iq1_m *block, int n_blocks,
                         enum effort effort)
{
    struct groups g;
    struct codebook_blocks c;
    gather(&g, 16, 16, n_blocks, in);
    encode_codebook(&g, iq1_m_format, effort, &c);
    memset(block, 0, sizeof *block);
    for (int j = 0; j < 32; j++) {
        int code = c.codes.code[j % 2][j / 2], down = c.codes.shifted_down[j % 2][j / 2];
        block->qs[j] = (uint8_t)code;
        block->qh[j / 2] |= (uint8_t)((code >> 8 | down << 3) << 4 * (j % 2));
    }
    for (int j = 0; j < 16; j++)
        block->scales[j / 4] |= (uint16_t)(c.l[j] / 2 << 3 * (j % 4));
    set_iq1_m_scale(block, c.d[0]);
}

static void decode_iq1_m(const struct block_iq1_m *block, float *x)
{
    float d = f32_of_f16(iq1_m_scale(block));
    for (int j = 0; j < 32; j++) {
        int high = block->qh[j / 2] >> 4 * (j % 2) & 15, code = block->qs[j] | (high & 7) << 8;
        float scale = d * (float)(2 * (block->scales[j / 8] >> 3 * (j / 2 % 4) & 7) + 1);
        decode_point(iq1_m_format.book, (uint16_t)code, high & 8 ? -0.125f : 0.125f, scale, 0,
                     x + 8 * j);
    }
}

static void regain_iq1_m(struct block_iq1_m *block, float factor)
{
    set_iq1_m_scale(block, scaled_f16(iq1_m_scale(block), factor));
}
