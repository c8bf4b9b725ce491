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

static inline uint16_t code_of_iq2_s(const struct block_iq2_s *block, int v)
{
    return (uint16_t)(block->qs[v] | (block->qh[v / 4] >> 2 * (v % 4) & 3) << 8);
}

static const struct code_space iq2_s_codes = {.group = 16, .book = &iq2_s_format.book};

static void open_iq2_s(const struct block_iq2_s *block, struct opened *o)
{
    float d = f32_of_f16(block->d);
    for (int j = 0; j < 16; j++)
        o->scale[j] = scale_on_lattice(d, scale_4bit(block->scales, j));
    for (int v = 0; v < 32; v++)
        o->code[v] = code_of_iq2_s(block, v);
    memcpy(o->signs, block->signs, sizeof block->signs);
}

static void close_iq2_s(struct block_iq2_s *block, const struct opened *o)
{
    memset(block->qh, 0, sizeof block->qh);
    for (int v = 0; v < 32; v++) {
        block->qs[v] = (uint8_t)o->code[v];
        block->qh[v / 4] |= (uint8_t)(o->code[v] >> 8 << 2 * (v % 4));
    }
    memcpy(block->signs, o->signs, sizeof block->signs);
}

static void encode_iq2_s(struct weights in, struct block_iq2_s *block, int n_blocks,
                         enum effort effort)
{
    struct groups g;
    struct codebook_blocks c;
    struct opened o;
    gather(&g, 16, 16, n_blocks, in);
    encode_codebook(&g, iq2_s_format, effort, &c);
    block->d = c.d[0];
    pack_scales_4bit(block->scales, c.l, 16);
    codes_of_block(&c.codes, iq2_s_format, 0, &o);
    close_iq2_s(block, &o);
}

static void decode_iq2_s(const struct block_iq2_s *block, float *x)
{
    float d = f32_of_f16(block->d);
    for (int j = 0; j < 32; j++) {
        float scale = scale_on_lattice(d, scale_4bit(block->scales, j / 2));
        decode_point(iq2_s_format.book, code_of_iq2_s(block, j), 0, scale, block->signs[j],
                     x + 8 * j);
    }
}

static void regain_iq2_s(struct block_iq2_s *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
