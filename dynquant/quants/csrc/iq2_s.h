/* IQ2_S: 256 weights in 82 bytes, 2.5625 bits per weight.
 *
 *   bytes  0..1    d       f16 scale of the scales
 *   bytes  2..33   qs      low 8 bits of the code of each 8 weights
 *   bytes 34..65   signs   bit i of byte j: weight 8 j + i is negative
 *   bytes 66..73   qh      high 2 bits of the codes, four in a byte, the first lowest
 *   bytes 74..81   scales  4-bit scale s of each 16 weights, two in a byte, the first lowest
 *
 *   w = d * (s + 1/2) / 4 * level,  levels 8, 25, 43: 1024 points of eight, any signs
 *
 * Source: block_iq2_s in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "codebook_k.h"

struct block_iq2_s { uint16_t d; uint8_t qs[32], signs[32], qh[8], scales[8]; } PACKED;
static_assert(sizeof(struct block_iq2_s) == 82, "IQ2_S is 82 bytes a block");

/* (s + 1/2) / 4 = (2 s + 1) / 8: levels are an eighth, as in iq2_xxs.h. */
static const struct codebook_format iq2_s_format = {
    .book = {
        .dim = 8, .n_levels = 3, .n_halves = 81,
        .chunk = IQ2_S_CHUNK, .n_chunks = IQ2_S_CHUNKS,
        .key = iq2_s_key, .code = iq2_s_code, .second = iq2_s_second, .first = iq2_s_first,
        .levels = {1, 3.125f, 5.375f}, .signs = FREE_SIGNS, .shifted = NO_SHIFT,
    },
    .n = 16, .group_count = 16, .l_most = 31,
    .effort = {
        [EFFORT_FAST] = {.tries = 8, .first = 0.5f, .step = 0.1f,
                         .scales = 2, .scans = 0, .scan_scales = 0},
        [EFFORT_NORMAL] = {.tries = 8, .first = 0.5f, .step = 0.1f,
                           .scales = 6, .scans = 0, .scan_scales = 0},
        [EFFORT_BEST] = {.tries = 16, .first = 0.4f, .step = 0.05f,
                         .scales = 6, .scans = 4, .scan_scales = 3},
    },
};

static void encode_iq2_s(struct weights in, struct block_iq2_s *block, int n_blocks,
                         enum effort effort)
{
    struct groups g;
    struct codebook_blocks c;
    gather(&g, 16, 16, n_blocks, in);
    encode_codebook(&g, iq2_s_format, effort, &c);
    memset(block->qh, 0, sizeof block->qh);
    block->d = c.d[0];
    for (int j = 0; j < 32; j++) {
        uint16_t code = c.codes.code[j % 2][j / 2];
        block->qs[j] = (uint8_t)code;
        block->qh[j / 4] |= (uint8_t)(code >> 8 << 2 * (j % 4));
        block->signs[j] = c.codes.signs[j % 2][j / 2];
    }
    pack_scales_4bit(block->scales, c.l, 16);
}

static void decode_iq2_s(const struct block_iq2_s *block, float *x)
{
    for (int j = 0; j < 32; j++) {
        int s = block->scales[j / 4] >> 4 * (j / 2 % 2) & 15;
        int code = block->qs[j] | (block->qh[j / 4] >> 2 * (j % 4) & 3) << 8;
        float scale = f32_of_f16(block->d) * (0.5f + (float)s) * 2;
        decode_point(iq2_s_format.book, (uint16_t)code, 0, scale, block->signs[j], x + 8 * j);
    }
}

static void regain_iq2_s(struct block_iq2_s *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
