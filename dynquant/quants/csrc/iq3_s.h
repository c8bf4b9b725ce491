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

static inline uint16_t code_of_iq3_s(const struct block_iq3_s *block, int v)
{
    return (uint16_t)(block->qs[v] | (block->qh[v / 8] >> v % 8 & 1) << 8);
}

static const struct code_space iq3_s_codes = {.group = 32, .book = &iq3_s_format.book};

static void open_iq3_s(const struct block_iq3_s *block, struct opened *o)
{
    float d = f32_of_f16(block->d);
    for (int j = 0; j < 8; j++)
        o->scale[j] = scale_on_lattice(d, scale_4bit(block->scales, j));
    for (int v = 0; v < 64; v++)
        o->code[v] = code_of_iq3_s(block, v);
    memcpy(o->signs, block->signs, sizeof block->signs);
}

static void close_iq3_s(struct block_iq3_s *block, const struct opened *o)
{
    memset(block->qh, 0, sizeof block->qh);
    for (int v = 0; v < 64; v++) {
        block->qs[v] = (uint8_t)o->code[v];
        block->qh[v / 8] |= (uint8_t)(o->code[v] >> 8 << v % 8);
    }
    memcpy(block->signs, o->signs, sizeof block->signs);
}

static void encode_iq3_s(struct weights in, struct block_iq3_s *blocks, int n_blocks,
                         enum effort effort)
{
    struct groups g;
    struct codebook_blocks c;
    struct opened o;
    gather(&g, 32, 8, n_blocks, in);
    encode_codebook(&g, iq3_s_format, effort, &c);
    for (int k = 0; k < n_blocks; k++) {
        blocks[k].d = c.d[k];
        pack_scales_4bit(blocks[k].scales, c.l + 8 * k, 8);
        codes_of_block(&c.codes, iq3_s_format, k, &o);
        close_iq3_s(blocks + k, &o);
    }
}

static void decode_iq3_s(const struct block_iq3_s *block, float *x)
{
    float d = f32_of_f16(block->d);
    for (int j = 0; j < 64; j++) {
        float scale = scale_on_lattice(d, scale_4bit(block->scales, j / 8));
        decode_point(iq3_s_format.book, code_of_iq3_s(block, j), 0, scale,
                     block->signs[j / 2] >> 4 * (j % 2), x + 4 * j);
    }
}

static void regain_iq3_s(struct block_iq3_s *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
