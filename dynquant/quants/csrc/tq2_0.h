/* TQ2_0: 256 ternary weights in 66 bytes, 2.0625 bits per weight.
 *
 *   bytes  0..63   qs   2-bit codes
 *   bytes 64..65   d    f16 scale
 *
 * Each half h (128 weights) has 32 bytes of qs: bits 2 k, 2 k + 1 of qs[32 h + i], k = 0..3, are
 * the code of weight 128 h + 32 k + i.
 *
 *   w[i] = d * (q - 1),  q in 0..2; a decoder reads 3 as +2
 *
 * Source: block_tq2_0 in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "opened.h"
#include "packing.h"
#include "ternary.h"

struct block_tq2_0 { uint8_t qs[64]; uint16_t d; } PACKED;
static_assert(sizeof(struct block_tq2_0) == 66, "TQ2_0 is 66 bytes a block");

static void encode_tq2_0(struct weights in, struct block_tq2_0 *blocks, int n_blocks,
                         enum effort effort)
{
    struct ternary_codes c;
    encode_ternary(in, n_blocks, effort, &c);
    for (int h = 0; h < 2; h++) {
        f32x16 bytes[32];
        _Alignas(4) uint8_t qs[LANES * 32];
        for (int i = 0; i < 32; i++) {
            const f32x16 *q = c.q + 128 * h + i;
            f32x16 low = add(q[0], mul(q[32], splat(4)));
            bytes[i] = add(low, mul(add(q[64], mul(q[96], splat(4))), splat(16)));
        }
        scatter_codes(bytes, 32, qs);
        for (int k = 0; k < n_blocks; k++)
            memcpy(blocks[k].qs + 32 * h, qs + 32 * k, 32);
    }
    for (int k = 0; k < n_blocks; k++)
        blocks[k].d = c.d[k];
}

static const struct code_space tq2_0_codes = {.group = 256, .q_most = 2};

/* Code 3, which no encoder of ours writes, opens as 3 and closes as it was. */
static void open_tq2_0(const struct block_tq2_0 *block, struct opened *o)
{
    o->scale[0] = f32_of_f16(block->d);
    o->offset[0] = -o->scale[0];
    unpack_pairs(block->qs, o->q);
}

static void close_tq2_0(struct block_tq2_0 *block, const struct opened *o)
{
    pack_pairs(block->qs, o->q, 0);
}

static void decode_tq2_0(const struct block_tq2_0 *block, float *x)
{
    float d = f32_of_f16(block->d);
    for (int h = 0; h < 2; h++)
        for (int k = 0; k < 4; k++)
            for (int i = 0; i < 32; i++)
                x[128 * h + 32 * k + i] = d * (float)((block->qs[32 * h + i] >> 2 * k & 3) - 1);
}

static void regain_tq2_0(struct block_tq2_0 *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
