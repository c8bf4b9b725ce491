"""Attacks with config.json."""

from __future__ import annotations

import os
from pathlib import Path

from attacks.making import (
    on,
    reference,
    sparse,
)


@on("config", "ArchitectureError", "num_hidden_layers is 1000000000")
def a_billion_layers(at: Path) -> None:
    """num_hidden_layers 10^9"""
    reference(at, "llama-3.1", num_hidden_layers=10**9)


@on("config", "ArchitectureError", "num_hidden_layers is 1000000000")
def a_billion_layers_with_windows(at: Path) -> None:
    """num_hidden_layers 10^9, in a family with a type of attention for each layer"""
    reference(at, "olmo3", num_hidden_layers=10**9)


@on("config", "ArchitectureError", "num_experts is 1000000000")
def a_billion_experts(at: Path) -> None:
    """num_experts 10^9; each has a tensor name"""
    reference(at, "qwen3moe", num_experts=10**9)


@on("config", "ArchitectureError", "num_nextn_predict_layers is 1000000000")
def a_billion_prediction_layers(at: Path) -> None:
    """num_nextn_predict_layers 10^9"""
    reference(at, "glm4moe", num_nextn_predict_layers=10**9)


@on("config", "ArchitectureError", "heads of 1000000000 weights")
def a_head_of_a_billion_weights(at: Path) -> None:
    """head_dim 10^9; each pair of weights has a rope factor"""
    reference(at, "llama-3.1", head_dim=10**9)


@on("config", "DynquantError", "at most 1048576 are written")
def a_vocabulary_with_endless_padding(at: Path) -> None:
    """vocab_size 2^31 - 1; the tokens would be padded to it"""
    reference(at, "llama-3.1", vocab_size=2**31 - 1)


@on("config", "ArchitectureError", "at most 65536 are read")
def a_million_dense_layers(at: Path) -> None:
    """mlp_only_layers of 1,000,000 wrong words; each is an error"""
    reference(at, "qwen3moe", mlp_only_layers=["x"] * 1_000_000)


@on("config", "ArchitectureError", "has 1000000 entries for num_hidden_layers")
def a_million_layer_types(at: Path) -> None:
    """layer_types of 1,000,000 wrong words"""
    reference(at, "gpt-oss", layer_types=["x"] * 1_000_000)


@on("config", "ArchitectureError", "num_attention_heads is 0")
def zero_heads(at: Path) -> None:
    """num_attention_heads 0, which is a divisor"""
    reference(at, "llama-3.1", num_attention_heads=0)


@on("config", "ArchitectureError", "num_key_value_heads is -1")
def a_negative_number_of_heads(at: Path) -> None:
    """num_key_value_heads -1"""
    reference(at, "llama-3.1", num_key_value_heads=-1)


@on("config", "ArchitectureError", "rms_norm_eps is nan")
def an_epsilon_that_is_not_a_number(at: Path) -> None:
    """rms_norm_eps NaN"""
    reference(at, "llama-3.1", rms_norm_eps=float("nan"))


@on("config", "ArchitectureError", "rope_theta is 1e+300")
def a_float_too_large_for_a_key(at: Path) -> None:
    """rope_theta 10^300, beyond a float32"""
    reference(at, "qwen2", rope_theta=1e300, rope_parameters=None)


@on("config", "ArchitectureError", "partial_rotary_factor is 1000000000")
def a_rotary_factor_above_one(at: Path) -> None:
    """partial_rotary_factor 10^9, from which a key is computed"""
    reference(at, "glm", partial_rotary_factor=10**9)


@on("config", "ArchitectureError", "original_max_position_embeddings is 1")
def a_logarithm_of_zero(at: Path) -> None:
    """original_max_position_embeddings 1; its logarithm is a divisor"""
    reference(at, "phi3", original_max_position_embeddings=1)


@on("config", "CheckpointError", "nested more than 64 deep")
def a_deeply_nested_config(at: Path) -> None:
    """config.json with 100,000 nested objects"""
    reference(at, "llama-3.1")
    (at / "config.json").write_text('{"a":' * 100_000)


@on("config", "CheckpointError", "not JSON")
def a_number_too_long_for_int(at: Path) -> None:
    """config.json with a number of 100,000 digits"""
    reference(at, "llama-3.1")
    (at / "config.json").write_text('{"vocab_size": ' + "9" * 100_000 + "}")


@on("config", "CheckpointError", "at most 16777216 are read")
def a_config_of_a_terabyte(at: Path) -> None:
    """config.json with a hole of 1 TiB"""
    reference(at, "llama-3.1")
    sparse(at / "config.json", 1 << 40)


@on("config", "CheckpointError", "not a regular file")
def a_config_that_is_a_pipe(at: Path) -> None:
    """config.json is a FIFO"""
    reference(at, "llama-3.1")
    (at / "config.json").unlink()
    os.mkfifo(at / "config.json")


@on("config")
def code_in_the_checkpoint(at: Path) -> None:
    """auto_map and evil.py, which transformers runs with trust_remote_code"""
    reference(at, "llama-3.1", auto_map={"AutoConfig": "evil.Config", "AutoTokenizer": "evil.T"})
    (at / "evil.py").write_text("import pathlib; pathlib.Path(__file__, '../owned').write_text('')")
