"""Checkpoints of any size whose weights are holes in their files; only headers can be read.

Shapes of DeepSeek-V3 and its relatives come from published code (Linear, Norm and Gate of
DeepSeek-V3's inference/model.py), shapes of other families from the table of the architecture.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from dynquant.arch.base import Architecture
from dynquant.arch.load import describe
from dynquant.text_settings import text_settings

Config = Mapping[str, Any]
Shape = tuple[int, ...]
Shapes = dict[str, Shape]
Header = dict[str, tuple[str, Shape]]
"""Dtype and shape by stored name."""

SIZES = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "I64": 8, "U8": 1, "F8_E4M3": 1}
"""Bytes of one number of each dtype."""

INDEX = "model.safetensors.index.json"
LATENT = (
    "DeepseekV3ForCausalLM",
    "DeepseekV32ForCausalLM",
    "GlmMoeDsaForCausalLM",
    "KimiK2ForCausalLM",
)
LARGER = {
    "Gemma4ForConditionalGeneration": ("model.", "model.language_model."),
    "KimiK25ForConditionalGeneration": ("", "language_model."),
    "Qwen3_5ForConditionalGeneration": ("model.", "model.language_model."),
}
"""How names of the language model begin in larger models: alone, and there."""


def shapes_of(config: Config) -> Shapes:
    """Return stored names and shapes of the language model, including its prediction layers."""
    own = config["architectures"][0]
    if own in LARGER:
        alone, there = LARGER[own]
        text = text_settings(config) or {}
        inner = text if text.get("architectures") else {**config, **text}
        shapes = _shapes_alone(inner)
        return {
            there + name.removeprefix(alone) if name.startswith(alone) else name: shape
            for name, shape in shapes.items()
        }
    return _shapes_alone(config)


def _shapes_alone(config: Config) -> Shapes:
    if config["architectures"][0] in LATENT:
        return shapes_of_deepseek(config)
    architecture = describe(config, "config.json")
    tied = architecture.tied[:1] if architecture.tied else ()
    return {name: shape for name, shape in table(architecture).items() if name not in tied}


def table(architecture: Architecture) -> Shapes:
    """Return the shape of each stored name of an architecture."""
    found: Shapes = {}
    for row in architecture.rows:
        layers = range(architecture.n_layers) if row.layers is None else row.layers
        shape = tuple(architecture.sizes[size] for size in row.shape.split())
        for layer in layers if "{}" in row.stored else (0,):
            name = row.stored.replace("{}", str(layer))
            for expert in range(architecture.n_experts) if "{expert}" in name else (0,):
                found[name.replace("{expert}", str(expert))] = shape
    return found


def shapes_of_deepseek(config: Config) -> Shapes:
    """Return the shapes of a DeepSeek-V3, R1, V3.2, Kimi-K2 or GLM-5."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    n_layers, n_experts = config["num_hidden_layers"], config["n_routed_experts"]
    ahead = range(n_layers, n_layers + config.get("num_nextn_predict_layers", 0))
    shapes: Shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for layer in (*range(n_layers), *ahead):
        at = f"model.layers.{layer}."
        shapes |= _attention(f"{at}self_attn.", config)
        shapes |= {f"{at}{name}_layernorm.weight": (hidden,) for name in ("input", _POST)}
        if layer < config["first_k_dense_replace"]:
            shapes |= _mlp(f"{at}mlp.", hidden, config["intermediate_size"])
            continue
        ffn = config["moe_intermediate_size"]
        shapes |= _mlp(f"{at}mlp.shared_experts.", hidden, config["n_shared_experts"] * ffn)
        shapes[f"{at}mlp.gate.weight"] = (n_experts, hidden)
        shapes[f"{at}mlp.gate.e_score_correction_bias"] = (n_experts,)
        for expert in range(n_experts):
            shapes |= _mlp(f"{at}mlp.experts.{expert}.", hidden, ffn)
    for layer in ahead:
        at = f"model.layers.{layer}."
        shapes |= {
            f"{at}eh_proj.weight": (hidden, 2 * hidden),
            f"{at}enorm.weight": (hidden,),
            f"{at}hnorm.weight": (hidden,),
            f"{at}embed_tokens.weight": (vocab, hidden),
            f"{at}shared_head.norm.weight": (hidden,),
            f"{at}shared_head.head.weight": (vocab, hidden),
        }
    return shapes


_POST = "post_attention"


def _attention(at: str, config: Config) -> Shapes:
    hidden, n_heads = config["hidden_size"], config["num_attention_heads"]
    q_rank, kv_rank = config["q_lora_rank"], config["kv_lora_rank"]
    nope, rope = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    value = config["v_head_dim"]
    return _indexer(f"{at}indexer.", config) | {
        f"{at}q_a_proj.weight": (q_rank, hidden),
        f"{at}q_a_layernorm.weight": (q_rank,),
        f"{at}q_b_proj.weight": (n_heads * (nope + rope), q_rank),
        f"{at}kv_a_proj_with_mqa.weight": (kv_rank + rope, hidden),
        f"{at}kv_a_layernorm.weight": (kv_rank,),
        f"{at}kv_b_proj.weight": (n_heads * (nope + value), kv_rank),
        f"{at}o_proj.weight": (hidden, n_heads * value),
    }


def _indexer(at: str, config: Config) -> Shapes:
    """Return what selects the tokens that attention sees, where a model has it."""
    if "index_n_heads" not in config:
        return {}
    hidden, n_heads, head = (config[k] for k in ("hidden_size", "index_n_heads", "index_head_dim"))
    return {
        f"{at}wq_b.weight": (n_heads * head, config["q_lora_rank"]),
        f"{at}wk.weight": (head, hidden),
        f"{at}k_norm.weight": (head,),
        f"{at}k_norm.bias": (head,),
        f"{at}weights_proj.weight": (n_heads, hidden),
    }


def _mlp(at: str, hidden: int, ffn: int) -> Shapes:
    return {
        f"{at}gate_proj.weight": (ffn, hidden),
        f"{at}up_proj.weight": (ffn, hidden),
        f"{at}down_proj.weight": (hidden, ffn),
    }


def header_of(config: Config) -> Header:
    """Return dtypes and shapes of a published checkpoint with this configuration.

    FP8 with block scales or packed integers of experts if quantization_config says so, otherwise
    its torch_dtype. Raises ValueError for other quantization methods.
    """
    text = text_settings(config) or {}
    stated = config.get("torch_dtype", text.get("torch_dtype"))
    dtype = {"float16": "F16", "float32": "F32"}.get(str(stated), "BF16")
    settings = config.get("quantization_config", text.get("quantization_config"))
    block = settings.get("weight_block_size") if settings else None
    is_int4 = bool(settings) and settings.get("format") == "pack-quantized"
    if settings and not is_int4 and (settings.get("quant_method") != "fp8" or not block):
        raise ValueError(
            "quantization_config: only fp8 with weight_block_size and pack-quantized are written"
        )
    found: Header = {}
    for name, shape in shapes_of(config).items():
        if is_int4 and ".experts." in name:
            found |= _packed(name, shape)
        else:
            found |= _stored(name, shape, dtype, block)
    return found


def _stored(name: str, shape: Shape, dtype: str, block: list[int] | None) -> Header:
    if name.endswith("e_score_correction_bias"):
        return {name: ("F32", shape)}
    # Matrices outside attention, its indexer and MLP, such as eh_proj, are not FP8.
    in_blocks = ("_proj.weight", "_proj_with_mqa.weight", ".wq_b.weight", ".wk.weight")
    if block and name.endswith(in_blocks) and not name.endswith(("eh_proj.weight", _SCORES)):
        scales = tuple(-(-n // size) for n, size in zip(shape, block, strict=True))
        return {name: ("F8_E4M3", shape), f"{name}_scale_inv": ("F32", scales)}
    return {name: (dtype, shape)}


_SCORES = "weights_proj.weight"


def _packed(name: str, shape: Shape) -> Header:
    """Return a matrix of 4-bit integers, eight in a word, with a scale for each 32."""
    n_rows, n_columns = shape
    return {
        f"{name}_packed": ("I32", (n_rows, n_columns // 8)),
        f"{name}_scale": ("BF16", (n_rows, n_columns // 32)),
        f"{name}_shape": ("I32", (2,)),
    }


def n_bytes(dtype: str, shape: Shape) -> int:
    """Return the bytes of a tensor."""
    return prod(shape) * SIZES[dtype]


def write_sparse(folder: Path, config: Config, tensors: Header, n_shards: int = 1) -> Path:
    """Write config.json, shards of about equal size in the order of the tensors, and their index.

    A shard is a header followed by a hole and takes a few kilobytes on disk.
    """
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    total = sum(n_bytes(*tensor) for tensor in tensors.values())
    shapes = {
        name.removesuffix("_packed") + "_shape": (shape[0], 8 * shape[1])
        for name, (_, shape) in tensors.items()
        if name.endswith("_packed")
    }
    if n_shards == 1:
        write_header(folder / "model.safetensors", tensors, shapes)
        return folder
    shards = list(_shards(tensors, total, n_shards))
    files = [f"model-{i + 1:05}-of-{len(shards):06}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        write_header(folder / file, shard, shapes)
    weight_map = {n: file for file, shard in zip(files, shards, strict=True) for n in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def _shards(tensors: Header, total: int, n_shards: int) -> Iterator[Header]:
    """Yield n_shards parts, or fewer if a tensor is larger than a part."""
    shard: Header = {}
    end = first = 0
    for name, tensor in tensors.items():
        if shard and (number := end * n_shards // total) > first:
            yield shard
            shard, first = {}, number
        shard[name] = tensor
        end += n_bytes(*tensor)
    yield shard


def write_header(path: Path, tensors: Header, shapes: Mapping[str, Shape] | None = None) -> None:
    """Write a safetensors file: a header followed by a hole.

    shapes: tensors that contain a shape, with that shape; they are written
    """
    shapes = shapes or {}
    entries: dict[str, Any] = {}
    filled: dict[int, bytes] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + n_bytes(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        if name in shapes:
            filled[start] = struct.pack("<2i", *shapes[name])
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
        for start, numbers in filled.items():
            file.seek(8 + len(text) + start)
            file.write(numbers)
