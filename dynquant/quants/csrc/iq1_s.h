/* IQ1_S: 256 weights in 50 bytes, 1.5625 bits per weight.
 *
 *   bytes  0..1    d    f16 scale of the scales
 *   bytes  2..33   qs   low 8 bits of the code of each 8 weights
 *   bytes 34..49   qh   a 16-bit word for each 32 weights: high 3 bits of the four codes, the first
 *                       lowest; bits 12..14 the scale s; bit 15 set: the shift is subtracted
 *
 *   w = d * (2 s + 1) * (level +- 1/8),  levels -1, 0, 1: 2048 points of eight
 *
 * Source: block_iq1_s in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "codebook_k.h"

struct block_iq1_s { uint16_t d; uint8_t qs[32]; uint16_t qh[8]; } PACKED;
static_assert(sizeof(struct block_iq1_s) == 50, "IQ1_S is 50 bytes a block");

static const struct codebook_format iq1_s_format = {
    .book = {
        .dim = 8, .n_levels = 3, .n_halves = 81,
        .chunk = IQ1_CHUNK, .n_chunks = IQ1_CHUNKS,
        .key = iq1_key, .code = iq1_code, .second = iq1_second, .first = iq1_first,
        .levels = {-1, 0, 1}, .signs = SIGNED_LEVELS, .shift = 0.125f, .shifted = SHIFT_OF_GROUP,
    },
    .n = 32, .group_count = 8, .l_most = 15,
    .effort = {
        [EFFORT_FAST] = {.tries = 10, .first = 0.3f, .step = 0.05f,
                         .scales = 1, .scans = 0, .scan_scales = 0},
        [EFFORT_NORMAL] = {.tries = 10, .first = 0.3f, .step = 0.05f,
                           .scales = 2, .scans = 0, .scan_scales = 0},
        [EFFORT_BEST] = {.tries = 20, .first = 0.25f, .step = 0.03f,
                         .scales = 6, .scans = 4, .scan_scales = 3},
    },
};

static void encode_iq1_s(struct weights in, struct block_iq1_s *blocks, int n_blocks,
                         enum effort effort)
{
    struct groups g;
    struct codebook_blocks c;
    gather(&g, 32, 8, n_blocks, in);
    encode_codebook(&g, iq1_s_format, effort, &c);
    for (int k = 0; k < n_blocks; k++) {
        blocks[k].d = c.d[k];
        for (int j = 0; j < 8; j++) {
            int l = 8 * k + j;
            int word = c.l[l] / 2 << 12 | c.codes.shifted_down[0][l] << 15;
            for (int v = 0; v < 4; v++) {
                blocks[k].qs[4 * j + v] = (uint8_t)c.codes.code[v][l];
                word |= c.codes.code[v][l] >> 8 << 3 * v;
            }
            blocks[k].qh[j] = (uint16_t)word;
        }
    }
}

static void decode_iq1_s(const struct block_iq1_s *block, float *x)
{
    for (int j = 0; j < 32; j++) {
        int word = block->qh[j / 4], code = block->qs[j] | (word >> 3 * (j % 4) & 7) << 8;
        float scale = f32_of_f16(block->d) * (float)(2 * (word >> 12 & 7) + 1);
        decode_point(iq1_s_format.book, (uint16_t)code, word >> 15 ? -0.125f : 0.125f, scale, 0,
                     x + 8 * j);
    }
}

static void regain_iq1_s(struct block_iq1_s *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
