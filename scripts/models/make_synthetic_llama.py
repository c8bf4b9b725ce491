"""Write a synthetic BF16 Llama checkpoint for benchmarks; by default, it has 1.007e9 weights.

    python scripts/models/make_synthetic_llama.py FOLDER
    python scripts/models/make_synthetic_llama.py FOLDER --layers 2 --hidden 256 --ffn 512 \
        --vocab 512

Rows differ in scale and a few weights are outliers, as in trained models. The same seed gives the
same bytes. The vocabulary is a synthetic SentencePiece model, because llama.cpp's converter accepts
byte-level BPE only if the hash of its ids is that of a published vocabulary.
"""

from __future__ import annotations

import argparse
import itertools
import json
import string
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CHUNK_WEIGHTS = 1 << 20

# SentencePiece.Type of sentencepiece_model.proto
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama, named as on the command line."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes in the order of the model."""
    kv = shape.hidden // shape.heads * shape.kv_heads
    yield "model.embed_tokens.weight", (shape.vocab, shape.hidden)
    for i in range(shape.layers):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (shape.hidden,)
        yield f"{layer}.self_attn.q_proj.weight", (shape.hidden, shape.hidden)
        yield f"{layer}.self_attn.k_proj.weight", (kv, shape.hidden)
        yield f"{layer}.self_attn.v_proj.weight", (kv, shape.hidden)
        yield f"{layer}.self_attn.o_proj.weight", (shape.hidden, shape.hidden)
        yield f"{layer}.post_attention_layernorm.weight", (shape.hidden,)
        yield f"{layer}.mlp.gate_proj.weight", (shape.ffn, shape.hidden)
        yield f"{layer}.mlp.up_proj.weight", (shape.ffn, shape.hidden)
        yield f"{layer}.mlp.down_proj.weight", (shape.hidden, shape.ffn)
    yield "model.norm.weight", (shape.hidden,)
    yield "lm_head.weight", (shape.vocab, shape.hidden)


def weights(shape: tuple[int, ...], rng: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """Yield a tensor's weights in pieces: norms near 1, matrices scaled by row, with outliers."""
    n = int(np.prod(shape))
    if len(shape) == 1:
        yield (1 + 0.1 * rng.standard_normal(n)).astype(np.float32)
        return
    n_rows, n_per_row = shape
    # In trained matrices, row scales differ by a factor of about 2, and about 1 weight in 5,000 is
    # six to twenty standard deviations from the mean.
    scales = (np.exp(0.3 * rng.standard_normal(n_rows)) / np.sqrt(n_per_row)).astype(np.float32)
    outliers = np.sort(rng.integers(0, n, n // 5000))
    step = max(1, CHUNK_WEIGHTS // n_per_row)
    for start in range(0, n_rows, step):
        stop = min(start + step, n_rows)
        rows = rng.standard_normal((stop - start, n_per_row), dtype=np.float32)
        first, last = np.searchsorted(outliers, (start * n_per_row, stop * n_per_row))
        here = outliers[first:last] - start * n_per_row
        rows.reshape(-1)[here] = rng.uniform(6, 20, len(here)) * rng.choice((-1, 1), len(here))
        yield rows * scales[start:stop, None]


def bfloat16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round finite float32 to the nearest BF16, ties to even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_shard(path: Path, members: list[tuple[int, str, tuple[int, ...]]], seed: int) -> int:
    """Write one safetensors file piece by piece; return the bytes of its tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for _, name, shape in members:
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for index, _, shape in members:
            for piece in weights(shape, np.random.default_rng([seed, index])):
                file.write(bfloat16(piece).tobytes())
    return end


def write_shards(folder: Path, shape: Shape, n_shards: int, seed: int) -> int:
    """Write all tensors to shards of about the same size, and the index; return their bytes."""
    numbered = [(i, name, s) for i, (name, s) in enumerate(tensors(shape))]
    total = sum(2 * int(np.prod(s)) for _, _, s in numbered)
    shards: list[list[tuple[int, str, tuple[int, ...]]]] = [[] for _ in range(n_shards)]
    before = 0
    for member in numbered:
        shards[min(before * n_shards // total, n_shards - 1)].append(member)
        before += 2 * int(np.prod(member[2]))
    weight_map: dict[str, str] = {}
    for i, members in enumerate(shards):
        name = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        write_shard(folder / name, members, seed)
        weight_map |= {tensor: name for _, tensor, _ in members}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return total


def pieces(n: int) -> Iterator[tuple[str, int]]:
    """Yield n pieces and their types: special tokens, bytes, characters, short words."""
    letters = string.ascii_lowercase
    words = ("".join(w) for k in (1, 2, 3) for w in itertools.product(letters, repeat=k))
    normal = itertools.chain(
        "▁",
        (c for c in map(chr, range(0x21, 0x7F)) if c not in letters),
        itertools.chain.from_iterable((w, "▁" + w) for w in words),
    )
    special = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    special += [(f"<0x{i:02X}>", BYTE) for i in range(256)]
    yield from itertools.islice(itertools.chain(special, ((p, NORMAL) for p in normal)), n)


def varint(n: int) -> bytes:
    """Return a protobuf varint."""
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


def number(field: int, value: int) -> bytes:
    """Return a protobuf integer field; negative values are 64-bit two's complement."""
    return varint(field << 3) + varint(value & (1 << 64) - 1)


def chunk(field: int, content: bytes) -> bytes:
    """Return a protobuf field of bytes: text or a message."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def sentencepiece_model(n: int) -> bytes:
    """Return a tokenizer.model of n pieces (sentencepiece_model.proto, ModelProto)."""
    out = b""
    for i, (piece, kind) in enumerate(pieces(n)):
        # Longer pieces follow shorter ones; with falling scores, they would never be chosen.
        score = float(len(piece)) if kind == NORMAL else 0.0
        entry = chunk(1, piece.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score - i * 1e-6)
        out += chunk(1, entry + number(3, kind))
    # TrainerSpec: model_type BPE, vocab_size, byte_fallback, ids of unk, bos, eos and (no) pad.
    bpe = number(3, 2) + number(4, n) + number(35, 1)
    ids = number(40, 0) + number(41, 1) + number(42, 2) + number(43, -1)
    # NormalizerSpec: name, and remove_extra_whitespaces off as in Llama's own model.
    rules = chunk(1, b"identity") + number(4, 0)
    return out + chunk(2, bpe + ids) + chunk(3, rules)


def write_texts(folder: Path, shape: Shape) -> None:
    """Write the configuration and the vocabulary."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2))
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(shape.vocab))


def main() -> None:
    """Read the sizes from the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(description="Write a synthetic BF16 Llama checkpoint.")
    parser.add_argument("folder", type=Path)
    sizes = {"layers": 16, "hidden": 2048, "ffn": 8192, "heads": 32, "kv-heads": 8, "vocab": 8192}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--shards", type=int, default=4, help="default 4")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    given = parser.parse_args()
    shape = Shape(*(getattr(given, name.replace("-", "_")) for name in sizes))
    if shape.hidden % shape.heads or shape.heads % shape.kv_heads:
        parser.error("--heads must divide --hidden, and --kv-heads must divide --heads")
    if not 259 < shape.vocab <= 259 + 2 * (26 + 26**2 + 26**3):
        parser.error("--vocab must be more than the 259 special pieces and at most 36,000")
    given.folder.mkdir(parents=True, exist_ok=True)
    write_texts(given.folder, shape)
    total = write_shards(given.folder, shape, given.shards, given.seed)
    print(f"{given.folder}: {total // 2:,} weights, {total / 1e9:.3f} GB in {given.shards} shards")


if __name__ == "__main__":
    main()
