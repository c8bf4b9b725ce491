"""Write a synthetic DeepSeek-R1 with few layers of full width, in FP8, and an imatrix for it.

    python scripts/models/make_synthetic_r1.py FOLDER [--layers 3] [--experts 256]

One dense layer, then layers of experts, the embeddings and the output matrix. Shapes and dtypes are
those of the published checkpoint: E4M3 with a float32 scale for each block of 128 x 128 weights;
27 GB with the default sizes. FOLDER/imatrix.gguf covers all matrices of the layers, so that types
of few bits can be used. The vocabulary is synthetic and padded. The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from make_synthetic_llama import bfloat16, sentencepiece_model
from numpy.typing import NDArray

import dynquant
from dynquant.importance.imatrix import write_imatrix

BLOCK = 128
CHUNK_WEIGHTS = 1 << 24
SIGMA = 112.0
"""Standard deviation of the codes: the largest of 16,384 is at four of them, E4M3 ends at 448."""

# config_671B.json of DeepSeek-V3
HIDDEN, DENSE, EXPERT, VOCAB = 7168, 18432, 2048, 129280
HEADS, Q_RANK, KV_RANK, NOPE, ROPE, VALUE = 128, 1536, 512, 128, 64, 128


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: `F8_E4M3`, its scales as `F32`, or `BF16`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes in the file."""
        return int(np.prod(self.shape)) * {"F8_E4M3": 1, "BF16": 2, "F32": 4}[self.dtype]


def linear(name: str, n_out: int, n_in: int) -> Iterator[Tensor]:
    """Yield a matrix in FP8 and its scales."""
    yield Tensor(f"{name}.weight", "F8_E4M3", (n_out, n_in))
    yield Tensor(f"{name}.weight_scale_inv", "F32", (-(-n_out // BLOCK), -(-n_in // BLOCK)))


def mlp(name: str, n_ffn: int) -> Iterator[Tensor]:
    """Yield gate, up and down."""
    yield from linear(f"{name}.gate_proj", n_ffn, HIDDEN)
    yield from linear(f"{name}.up_proj", n_ffn, HIDDEN)
    yield from linear(f"{name}.down_proj", HIDDEN, n_ffn)


def layer(i: int, n_experts: int) -> Iterator[Tensor]:
    """Yield one layer; the first is dense."""
    name, attention = f"model.layers.{i}", f"model.layers.{i}.self_attn"
    yield Tensor(f"{name}.input_layernorm.weight", "BF16", (HIDDEN,))
    yield from linear(f"{attention}.q_a_proj", Q_RANK, HIDDEN)
    yield Tensor(f"{attention}.q_a_layernorm.weight", "BF16", (Q_RANK,))
    yield from linear(f"{attention}.q_b_proj", HEADS * (NOPE + ROPE), Q_RANK)
    yield from linear(f"{attention}.kv_a_proj_with_mqa", KV_RANK + ROPE, HIDDEN)
    yield Tensor(f"{attention}.kv_a_layernorm.weight", "BF16", (KV_RANK,))
    yield from linear(f"{attention}.kv_b_proj", HEADS * (NOPE + VALUE), KV_RANK)
    yield from linear(f"{attention}.o_proj", HIDDEN, HEADS * VALUE)
    yield Tensor(f"{name}.post_attention_layernorm.weight", "BF16", (HIDDEN,))
    if i == 0:
        yield from mlp(f"{name}.mlp", DENSE)
        return
    yield Tensor(f"{name}.mlp.gate.weight", "BF16", (n_experts, HIDDEN))
    yield Tensor(f"{name}.mlp.gate.e_score_correction_bias", "F32", (n_experts,))
    for expert in range(n_experts):
        yield from mlp(f"{name}.mlp.experts.{expert}", EXPERT)
    yield from mlp(f"{name}.mlp.shared_experts", EXPERT)


def shards(n_layers: int, n_experts: int) -> list[list[Tensor]]:
    """Return the tensors of each file: embeddings and norms, then one layer for each file."""
    outer = [
        Tensor("model.embed_tokens.weight", "BF16", (VOCAB, HIDDEN)),
        Tensor("model.norm.weight", "BF16", (HIDDEN,)),
        Tensor("lm_head.weight", "BF16", (VOCAB, HIDDEN)),
    ]
    return [outer, *(list(layer(i, n_experts)) for i in range(n_layers))]


def e4m3_of_rank() -> NDArray[np.uint8]:
    """Return 65,536 E4M3 codes with the frequencies of a normal distribution."""
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    normal = NormalDist(0, SIGMA)
    ranks = np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)])
    nearest = np.searchsorted((values[1:] + values[:-1]) / 2, np.abs(ranks))
    return (nearest + 128 * (ranks < 0)).astype(np.uint8)


def contents(tensor: Tensor, rng: np.random.Generator, codes: NDArray[np.uint8]) -> Iterator[bytes]:
    """Yield a tensor's bytes in pieces."""
    n = int(np.prod(tensor.shape))
    if tensor.dtype == "F32":
        scale = 1 / (SIGMA * np.sqrt(HIDDEN)) if len(tensor.shape) == 2 else 0.1
        spread = np.exp(0.3 * rng.standard_normal(n)) if len(tensor.shape) == 2 else rng.random(n)
        yield (scale * spread).astype("<f4").tobytes()
        return
    for start in range(0, n, CHUNK_WEIGHTS):
        size = min(CHUNK_WEIGHTS, n - start)
        if tensor.dtype == "F8_E4M3":
            yield codes[rng.integers(0, 65536, size, np.uint16)].tobytes()
        else:
            noise = rng.standard_normal(size, dtype=np.float32)
            norm = len(tensor.shape) == 1
            x = 1 + np.float32(0.1) * noise if norm else np.float32(HIDDEN**-0.5) * noise
            yield bfloat16(x).tobytes()


def write_shard(path: Path, tensors: list[Tensor], seed: int) -> None:
    """Write one safetensors file piece by piece."""
    header: dict[str, object] = {}
    end = 0
    for t in tensors:
        start, end = end, end + t.n_bytes
        header[t.name] = {"dtype": t.dtype, "shape": t.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    codes, rng = e4m3_of_rank(), np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for t in tensors:
            file.writelines(contents(t, rng, codes))


def write_texts(folder: Path, n_layers: int, n_experts: int) -> None:
    """Write the published configuration with other sizes, and the vocabulary."""
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": DENSE,
        "moe_intermediate_size": EXPERT,
        "num_hidden_layers": n_layers,
        "num_nextn_predict_layers": 0,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "n_shared_experts": 1,
        "n_routed_experts": n_experts,
        "routed_scaling_factor": 2.5,
        "kv_lora_rank": KV_RANK,
        "q_lora_rank": Q_RANK,
        "qk_rope_head_dim": ROPE,
        "v_head_dim": VALUE,
        "qk_nope_head_dim": NOPE,
        "topk_method": "noaux_tc",
        "n_group": 8,
        "topk_group": 4,
        "num_experts_per_tok": 8,
        "moe_layer_freq": 1,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "scoring_func": "sigmoid",
        "hidden_act": "silu",
        "max_position_embeddings": 163840,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        "attention_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
    )
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(32000))


def write_importance(folder: Path, seed: int) -> None:
    """Write FOLDER/imatrix.gguf: log-normal mean squares, different for each expert."""
    rng = np.random.default_rng(seed)
    entries = {}
    for t in dynquant.load_model(folder).tensors:
        if t.name.startswith("blk.") and len(t.shape) > 1:
            n_matrices = t.shape[0] if len(t.shape) == 3 else 1
            sums = np.exp(rng.standard_normal((n_matrices, t.n_per_row))).astype(np.float32)
            entries[t.name] = (sums, [1] * n_matrices)
    path = folder / "imatrix.gguf"
    write_imatrix(path, entries, datasets=["synthetic"], chunk_count=1, chunk_size=512)


def main() -> None:
    """Read the sizes from the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(description="Write a synthetic DeepSeek-R1 in FP8.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=3, help="the first is dense; default 3")
    parser.add_argument("--experts", type=int, default=256, help="experts of a layer; default 256")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    files = shards(given.layers, given.experts)
    weight_map: dict[str, str] = {}
    for i, tensors in enumerate(files):
        name = f"model-{i + 1:05}-of-{len(files):05}.safetensors"
        write_shard(given.folder / name, tensors, given.seed + i)
        weight_map |= {t.name: name for t in tensors}
    total = sum(t.n_bytes for tensors in files for t in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (given.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_texts(given.folder, given.layers, given.experts)
    write_importance(given.folder, given.seed)
    print(f"{given.folder}: {total / 1e9:.3f} GB in {len(files)} shards, and imatrix.gguf")


if __name__ == "__main__":
    main()
