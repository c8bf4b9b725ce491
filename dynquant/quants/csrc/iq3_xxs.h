/* IQ3_XXS: 256 weights in 98 bytes, 3.0625 bits per weight.
 *
 *   bytes  0..1    d      f16 scale of the scales
 *   bytes  2..65   qs     an 8-bit code for each 4 weights
 *   bytes 66..97   signs  a 32-bit word for each 32 weights: four times 7 signs of 8 weights, the
 *                         first lowest; bits 28..31 the scale s
 *
 *   w = d * (s + 1/2) / 2 * level,  levels 4, 12 .. 52, 62: 256 points of four, the signs of each
 *                                   8 weights even in number
 *
 * Source: block_iq3_xxs in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "codebook_k.h"

struct block_iq3_xxs { uint16_t d; uint8_t qs[64]; uint16_t signs[16]; } PACKED;
static_assert(sizeof(struct block_iq3_xxs) == 98, "IQ3_XXS is 98 bytes a block");

/* (s + 1/2) / 2 = (2 s + 1) / 4: levels are a quarter. */
static const struct codebook_format iq3_xxs_format = {
    .book = {
        .dim = 4, .n_levels = 8, .n_halves = 64,
        .chunk = IQ3_XXS_CHUNK, .n_chunks = IQ3_XXS_CHUNKS,
        .key = iq3_xxs_key, .code = iq3_xxs_code, .second = iq3_xxs_second, .first = iq3_xxs_first,
        .levels = {1, 3, 5, 7, 9, 11, 13, 15.5f}, .signs = EVEN_SIGNS, .shifted = NO_SHIFT,
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

static const struct code_space iq3_xxs_codes = {.group = 32, .book = &iq3_xxs_format.book};

static void open_iq3_xxs(const struct block_iq3_xxs *block, struct opened *o)
{
    float d = f32_of_f16(block->d);
    for (int j = 0; j < 8; j++) {
        uint32_t word;
        memcpy(&word, block->signs + 2 * j, sizeof word);
        o->scale[j] = scale_on_lattice(d, (int)(word >> 28));
        for (int u = 0; u < 4; u++)
            o->signs[4 * j + u] = even_signs(word >> 7 * u & 127);
    }
    for (int v = 0; v < 64; v++)
        o->code[v] = block->qs[v];
}

static void close_iq3_xxs(struct block_iq3_xxs *block, const struct opened *o)
{
    for (int j = 0; j < 8; j++) {
        uint32_t word;
        memcpy(&word, block->signs + 2 * j, sizeof word);
        word &= 15u << 28;
        for (int u = 0; u < 4; u++)
            word |= (uint32_t)(o->signs[4 * j + u] & 127) << 7 * u;
        memcpy(block->signs + 2 * j, &word, sizeof word);
    }
    for (int v = 0; v < 64; v++)
        block->qs[v] = (uint8_t)o->code[v];
}

static void encode_iq3_xxs(struct weights in, struct block_iq3_xxs *blocks,
                           int n_blocks, enum effort effort)
{
    struct groups g;
    struct codebook_blocks c;
    struct opened o;
    gather(&g, 32, 8, n_blocks, in);
    encode_codebook(&g, iq3_xxs_format, effort, &c);
    for (int k = 0; k < n_blocks; k++) {
        blocks[k].d = c.d[k];
        for (int j = 0; j < 8; j++) {
            uint32_t word = (uint32_t)(c.l[8 * k + j] / 2) << 28;
            memcpy(blocks[k].signs + 2 * j, &word, sizeof word);
        }
        codes_of_block(&c.codes, iq3_xxs_format, k, &o);
        close_iq3_xxs(blocks + k, &o);
    }
}

static void decode_iq3_xxs(const struct block_iq3_xxs *block, float *x)
{
    float d = f32_of_f16(block->d);
    for (int j = 0; j < 8; j++) {
        uint32_t word;
        memcpy(&word, block->signs + 2 * j, sizeof word);
        float scale = scale_on_lattice(d, (int)(word >> 28));
        for (int v = 0; v < 8; v++)
            decode_point(iq3_xxs_format.book, block->qs[8 * j + v], 0, scale,
                         even_signs(word >> 7 * (v / 2) & 127) >> 4 * (v % 2), x + 32 * j + 4 * v);
    }
}

static void regain_iq3_xxs(struct block_iq3_xxs *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
