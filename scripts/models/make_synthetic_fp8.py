"""Write a synthetic FP8 checkpoint for benchmarks: a Llama of 1e9 weights or a mixture of 3e9.

    python scripts/models/make_synthetic_fp8.py llama|mixture FOLDER [--layers N]

E4M3 with a float32 scale for each block of 128 x 128 weights, as DeepSeek's checkpoints; norms,
routers and embeddings are BF16. The mixture is a Qwen3-MoE: 64 experts, of which a token chooses 8.
The weights are normally distributed, so that routing is about uniform; each block has another
scale. The tokenizer is that of tests/data/tiny-books. The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from make_synthetic_llama import bfloat16
from make_synthetic_r1 import SIGMA, e4m3_of_rank
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))
from places import TINY_BOOKS
from sparse import Header, header_of, n_bytes

BLOCK = 128
CHUNK_WEIGHTS = 1 << 24

COMMON: dict[str, Any] = {
    "hidden_size": 2048,
    "head_dim": 128,
    "vocab_size": 2048,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 0,
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
    },
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        **COMMON,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 16,
        "intermediate_size": 8192,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "mixture": {
        **COMMON,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_hidden_layers": 10,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    },
}


def contents(
    dtype: str, shape: tuple[int, ...], rng: np.random.Generator, codes: NDArray[np.uint8]
) -> Iterator[bytes]:
    """Yield a tensor's bytes in pieces."""
    n = int(np.prod(shape))
    if dtype == "F32":  # scales: matrices keep the size of what they multiply
        spread = np.exp(0.3 * rng.standard_normal(n))
        yield (spread / (SIGMA * np.sqrt(BLOCK * shape[-1]))).astype("<f4").tobytes()
        return
    for start in range(0, n, CHUNK_WEIGHTS):
        size = min(CHUNK_WEIGHTS, n - start)
        if dtype == "F8_E4M3":
            yield codes[rng.integers(0, 65536, size, np.uint16)].tobytes()
            continue
        noise = rng.standard_normal(size, dtype=np.float32)
        is_norm = len(shape) == 1
        x = 1 + np.float32(0.1) * noise if is_norm else np.float32(shape[-1] ** -0.5) * noise
        yield bfloat16(x).tobytes()


def write_tensors(path: Path, tensors: Header, seed: int) -> int:
    """Write a safetensors file piece by piece; return the bytes of its tensors."""
    header: dict[str, object] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + n_bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    codes, rng = e4m3_of_rank(), np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for dtype, shape in tensors.values():
            file.writelines(contents(dtype, shape, rng, codes))
    return end


def write_model(kind: str, folder: Path, layers: int | None = None, seed: int = 0) -> int:
    """Write a checkpoint; return the number of its weights.

    kind:   llama or mixture
    layers: other than its usual number of layers
    """
    config = dict(CONFIGS[kind])
    config["num_hidden_layers"] = layers or config["num_hidden_layers"]
    tensors = header_of(config)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY_BOOKS / name, folder / name)
    write_tensors(folder / "model.safetensors", tensors, seed)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return sum(int(np.prod(shape)) for dtype, shape in tensors.values() if dtype != "F32")


def main() -> None:
    """Read the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=tuple(CONFIGS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="default: 16, of the mixture 10")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    given = parser.parse_args()
    n = write_model(given.kind, given.folder, given.layers, given.seed)
    size = (given.folder / "model.safetensors").stat().st_size
    print(f"{given.folder}: {n:,} weights, {size / 1e9:.3f} GB")


if __name__ == "__main__":
    main()
