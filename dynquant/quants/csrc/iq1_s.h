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

/* The code of vector v from its low bits and the word of its group. */
static inline uint16_t iq1_s_code(uint8_t low, int word, int v)
{
    return (uint16_t)(low | (word >> 3 * (v % 4) & 7) << 8);
}

static const struct code_space iq1_s_codes = {.group = 32, .book = &iq1_s_format.book};

static void open_iq1_s(const struct block_iq1_s *block, struct opened *o)
{
    float d = f32_of_f16(block->d);
    for (int j = 0; j < 8; j++) {
        int word = block->qh[j];
        o->scale[j] = scale_on_lattice(d, word >> 12 & 7);
        for (int v = 0; v < 4; v++) {
            o->code[4 * j + v] = iq1_s_code(block->qs[4 * j + v], word, v);
            o->down[4 * j + v] = (uint8_t)(word >> 15);
        }
    }
}

static void close_iq1_s(struct block_iq1_s *block, const struct opened *o)
{
    for (int j = 0; j < 8; j++) {
        int word = (block->qh[j] & 7 << 12) | o->down[4 * j] << 15;
        for (int v = 0; v < 4; v++) {
            block->qs[4 * j + v] = (uint8_t)o->code[4 * j + v];
            word |= o->code[4 * j + v] >> 8 << 3 * v;
        }
        block->qh[j] = (uint16_t)word;
    }
}

static void encode_iq1_s(struct weights in, struct block_iq1_s *blocks, int n_blocks,
                         enum effort effort)
{
    struct groups g;
    struct codebook_blocks c;
    struct opened o;
    gather(&g, 32, 8, n_blocks, in);
    encode_codebook(&g, iq1_s_format, effort, &c);
    for (int k = 0; k < n_blocks; k++) {
        blocks[k].d = c.d[k];
        for (int j = 0; j < 8; j++)
            blocks[k].qh[j] = (uint16_t)(c.l[8 * k + j] / 2 << 12);
        codes_of_block(&c.codes, iq1_s_format, k, &o);
        close_iq1_s(blocks + k, &o);
    }
}

static void decode_iq1_s(const struct block_iq1_s *block, float *x)
{
    float d = f32_of_f16(block->d);
    for (int j = 0; j < 32; j++) {
        int word = block->qh[j / 4];
        float scale = scale_on_lattice(d, word >> 12 & 7);
        uint16_t code = iq1_s_code(block->qs[j], word, j);
        decode_point(iq1_s_format.book, code, word >> 15 ? -0.125f : 0.125f, scale, 0, x + 8 * j);
    }
}

static void regain_iq1_s(struct block_iq1_s *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
