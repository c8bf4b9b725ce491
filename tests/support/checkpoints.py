"""Handwritten checkpoints with the names and shapes of each family in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from sparse import write_sparse

BASE: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def config_of(architecture: str, **changes: Any) -> dict[str, Any]:
    """Return a small config.json; a change to None removes the key."""
    head_dim = {"head_dim": 8} if architecture == "Qwen3ForCausalLM" else {}
    config = {"architectures": [architecture], **BASE, **head_dim, **changes}
    return {key: value for key, value in config.items() if value is not None}


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return stored names and shapes as in the modelling code of transformers."""
    architecture = config["architectures"][0]
    hidden, ffn, n_head = (
        config["hidden_size"],
        config["intermediate_size"],
        config["num_attention_heads"],
    )
    head = config.get("head_dim", hidden // n_head)
    q, kv = n_head * head, config.get("num_key_value_heads", n_head) * head
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    qwen2 = architecture == "Qwen2ForCausalLM"
    biased = {
        "self_attn.q_proj": qwen2 or config.get("attention_bias"),
        "self_attn.k_proj": qwen2 or config.get("attention_bias"),
        "self_attn.v_proj": qwen2 or config.get("attention_bias"),
        "self_attn.o_proj": config.get("attention_bias"),
        "mlp.gate_proj": config.get("mlp_bias"),
        "mlp.up_proj": config.get("mlp_bias"),
        "mlp.down_proj": config.get("mlp_bias"),
    }
    matrices = dict(
        zip(
            biased,
            ((q, hidden), (kv, hidden), (kv, hidden), (hidden, q), (ffn, hidden), (ffn, hidden)),
            strict=False,
        )
    ) | {"mlp.down_proj": (hidden, ffn)}
    if architecture == "Phi3ForCausalLM":
        matrices = {
            "self_attn.qkv_proj": (q + 2 * kv, hidden),
            "self_attn.o_proj": (hidden, q),
            "mlp.gate_up_proj": (2 * ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }
        biased = dict.fromkeys(matrices, False)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}{name}.weight": shape for name, shape in matrices.items()}
        shapes |= {f"{at}{n}.bias": (s[0],) for n, s in matrices.items() if biased[n]}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{at}{norm}.weight"] = (hidden,)
        if architecture == "Qwen3ForCausalLM":
            shapes[f"{at}self_attn.q_norm.weight"] = (head,)
            shapes[f"{at}self_attn.k_norm.weight"] = (head,)
    return shapes


def tensors_of(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return random weights with those names and shapes."""
    rng = np.random.default_rng(0)
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes_of(config).items()}


def write_checkpoint(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """Write one model.safetensors and its config.json."""
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_holes(
    folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]], dtype: str = "BF16"
) -> Path:
    """Write a sparse checkpoint of any size in one file: a header followed by a hole."""
    return write_sparse(folder, config, {name: (dtype, shape) for name, shape in shapes.items()})
