/* IQ3_S: 256 weights in 110 bytes, 3.4375 bits per weight.
 *
 *   bytes   0..1    d       f16 scale of the scales
 *   bytes   2..65   qs      low 8 bits of the code of each 4 weights
 *   bytes  66..73   qh      bit i of byte j: high bit of code 8 j + i
 *   bytes  74..105  signs   bit i of byte j: weight 8 j + i is negative
 *   bytes 106..109  scales  4-bit scale s of each 32 weights, two in a byte, the first lowest
 *
 *   w = d * (2 s + 1) * level,  levels 1, 3 .. 15: 512 points of four, any signs
 *
 * Source: block_iq3_s in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "codebook_k.h"

struct block_iq3_s { uint16_t d; uint8_t qs[64], qh[8], signs[32], scales[4]; } PACKED;
static_assert(sizeof(struct block_iq3_s) == 110, "IQ3_S is 110 bytes a block");

static const struct codebook_format iq3_s_format = {
    .book = {
        .dim = 4, .n_levels = 8, .n_halves = 64,
        .chunk = IQ3_S_CHUNK, .n_chunks = IQ3_S_CHUNKS,
        .key = iq3_s_key, .code = iq3_s_code, .second = iq3_s_second, .first = iq3_s_first,
        .levels = {1, 3, 5, 7, 9, 11, 13, 15}, .signs = FREE_SIGNS, .shifted = NO_SHIFT,
    },
    .n = 32, .group_count = 8, .l_most = 31,
    .effort = {
        [EFFORT_FAST] = {.tries = 8, .first = 0.6f, .step = 0.08f,
                         .scales = 2, .scans = 0, .scan_scales = 0},
        [EFFORT_NORMAL] = {.tries = 8, .first = 0.6f, .step = 0.08f,
                           .scales = 6, .scans = 1, .scan_scales = 1},
        [EFFORT_BEST] = {.tries = 16, .first = 0.5f, .step = 0.05f,
                         .scales = 6, .scans = 4, .scan_scales = 3},
    },
};

static void encode_iq3_s(struct weights in, struct block_iq3_s *blocks, int n_blocks,
                         enum effort effort)
{
    struct groups g;
    struct codebook_blocks c;
    gather(&g, 32, 8, n_blocks, in);
    encode_codebook(&g, iq3_s_format, effort, &c);
    for (int k = 0; k < n_blocks; k++) {
        struct block_iq3_s block = {.d = c.d[k]};
        for (int j = 0; j < 64; j++) {
            uint16_t code = c.codes.code[j % 8][8 * k + j / 8];
            block.qs[j] = (uint8_t)code;
            block.qh[j / 8] |= (uint8_t)(code >> 8 << j % 8);
        }
        for (int j = 0; j < 32; j++)
            block.signs[j] = c.codes.signs[j % 4][8 * k + j / 4];
        pack_scales_4bit(block.scales, c.l + 8 * k, 8);
        blocks[k] = block;
    }
}

static void decode_iq3_s(const struct block_iq3_s *block, float *x)
{
    for (int j = 0; j < 64; j++) {
        int s = block->scales[j / 16] >> 4 * (j / 8 % 2) & 15;
        int code = block->qs[j] | (block->qh[j / 8] >> j % 8 & 1) << 8;
        float scale = f32_of_f16(block->d) * (float)(2 * s + 1);
        decode_point(iq3_s_format.book, (uint16_t)code, 0, scale,
                     block->signs[j / 2] >> 4 * (j % 2), x + 4 * j);
    }
}

static void regain_iq3_s(struct block_iq3_s *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
