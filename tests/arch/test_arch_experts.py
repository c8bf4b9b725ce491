"""Stacks of experts: missing ones are named, and very many tensors are no problem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_holes

from dynquant.arch.load import load_model
from dynquant.errors import ArchitectureError, CheckpointError
from dynquant.keys import Keys


@pytest.fixture(autouse=True)
def vocab(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the tokenizer, which is tested elsewhere."""

    def read_vocab(folder: Path, config: object, *, pre: str | None, **_: object) -> Keys:
        return {}

    monkeypatch.setattr("dynquant.arch.load.read_vocab", read_vocab)


def mixture(n_layers: int, n_experts: int) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """A Qwen3-MoE of tiny matrices: config.json, and stored names and shapes."""
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "vocab_size": 8,
        "hidden_size": 4,
        "intermediate_size": 4,
        "moe_intermediate_size": 2,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 2,
        "num_experts": n_experts,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (8, 4),
        "model.norm.weight": (4,),
        "lm_head.weight": (8, 4),
    }
    for i in range(n_layers):
        at = f"model.layers.{i}."
        shapes |= {
            f"{at}input_layernorm.weight": (4,),
            f"{at}post_attention_layernorm.weight": (4,),
            f"{at}self_attn.q_proj.weight": (4, 4),
            f"{at}self_attn.k_proj.weight": (2, 4),
            f"{at}self_attn.v_proj.weight": (2, 4),
            f"{at}self_attn.o_proj.weight": (4, 4),
            f"{at}self_attn.q_norm.weight": (2,),
            f"{at}self_attn.k_norm.weight": (2,),
            f"{at}mlp.gate.weight": (n_experts, 4),
        }
        for e in range(n_experts):
            shapes |= {
                f"{at}mlp.experts.{e}.gate_proj.weight": (2, 4),
                f"{at}mlp.experts.{e}.up_proj.weight": (2, 4),
                f"{at}mlp.experts.{e}.down_proj.weight": (4, 2),
            }
    return config, shapes


@pytest.mark.slow
def test_seventy_thousand_tensors_are_described(tmp_path: Path) -> None:
    """Not a benchmark: with quadratic work it would not end."""
    config, shapes = mixture(91, 256)
    assert len(shapes) > 70_000
    model = load_model(write_holes(tmp_path, config, shapes))
    assert len(model.tensors) == 3 + 91 * 12
    assert {t.shape for t in model.tensors if t.parts.role == "ffn_down_exps"} == {(256, 4, 2)}


def test_missing_experts_are_named(tmp_path: Path) -> None:
    config, shapes = mixture(3, 6)
    for e in (1, 4):
        del shapes[f"model.layers.1.mlp.experts.{e}.up_proj.weight"]
    write_holes(tmp_path, config, shapes)
    with pytest.raises(ArchitectureError) as error:
        load_model(tmp_path)
    (message,) = error.value.messages
    assert "model.layers.1.mlp.experts.{1,4}.up_proj.weight is missing" in message


def test_experts_beyond_the_configured_number_are_reported(tmp_path: Path) -> None:
    config, shapes = mixture(1, 6)
    write_holes(tmp_path, {**config, "num_experts": 5}, shapes)
    with pytest.raises(ArchitectureError) as error:
        load_model(tmp_path)
    text = "\n".join(error.value.messages)
    assert "model.layers.0.mlp.experts.5.gate_proj.weight is not a tensor of qwen3moe" in text
    assert "model.layers.0.mlp.gate.weight has shape [6, 4], but config.json implies [5, 4]" in text


@pytest.mark.parametrize("name", ["a b", "ünïcödé.weight", "../../etc/passwd", "{expert}", "%s"])
def test_odd_names_are_reported_unchanged(name: str, tmp_path: Path) -> None:
    config, shapes = mixture(1, 2)
    write_holes(tmp_path, config, shapes | {name: (2, 2)})
    with pytest.raises(ArchitectureError) as error:
        load_model(tmp_path)
    (message,) = error.value.messages
    assert f": {name} is not a tensor of qwen3moe" in message


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "\u202egnp"])
def test_names_that_would_garble_a_terminal_are_rejected_and_quoted(
    name: str, tmp_path: Path
) -> None:
    config, shapes = mixture(1, 2)
    write_holes(tmp_path, config, shapes | {name: (2, 2)})
    with pytest.raises(CheckpointError) as error:
        load_model(tmp_path)
    (message,) = error.value.messages
    assert repr(name) in message
    assert "not a printable name" in message
    assert json.dumps(name).isascii()
