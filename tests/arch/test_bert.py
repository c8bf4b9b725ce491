"""Embedding models: pooling, Nomic's config.json, and rejected settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from agreement import TESTS, config_of

from dynquant.arch.load import describe, load_model
from dynquant.errors import ArchitectureError

BERT = TESTS / "references" / "bert"


# nomic-ai/nomic-embed-text-v1.5, with other sizes.
NOMIC: dict[str, Any] = {
    "activation_function": "swiglu",
    "architectures": ["NomicBertModel"],
    "causal": False,
    "layer_norm_epsilon": 1e-12,
    "max_trained_positions": 2048,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "n_embd": 32,
    "n_head": 4,
    "n_inner": 72,
    "n_layer": 2,
    "n_positions": 8192,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "type_vocab_size": 2,
    "vocab_size": 448,
}


def test_nomics_config_is_equivalent_to_that_of_transformers() -> None:
    ours, theirs = describe(NOMIC, ""), describe(config_of("nomic-bert"), "")
    length = "nomic-bert.context_length"
    assert ours.keys[length].value == 2048
    assert ours.keys == theirs.keys | {length: ours.keys[length]}
    assert ours.rows == theirs.rows
    assert {k: v for k, v in ours.sizes.items() if k != "positions"} == {
        k: v for k, v in theirs.sizes.items() if k != "positions"
    }


def pooling(folder: Path, config: dict[str, Any], *further: str) -> dict[str, Any]:
    """Return the keys of BERT with the given pooling and further modules."""
    copy = shutil.copytree(BERT, folder / "bert")
    modules = json.loads((copy / "modules.json").read_text("utf-8"))
    modules += [{"path": "", "type": f"sentence_transformers.models.{kind}"} for kind in further]
    (copy / "modules.json").write_text(json.dumps(modules), "utf-8")
    (copy / "1_Pooling" / "config.json").write_text(json.dumps(config), "utf-8")
    return {k: v.value for k, v in load_model(copy).keys.items()}


@pytest.mark.parametrize(
    ("config", "number"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, 1),
        ({"pooling_mode_cls_token": True}, 2),
        ({"pooling_mode_lasttoken": True}, 3),
        ({"pooling_mode": "mean"}, 1),
    ],
)
def test_pooling_equals_that_of_sentence_transformers(
    config: dict[str, Any], number: int, tmp_path: Path
) -> None:
    assert pooling(tmp_path, config, "Normalize")["bert.pooling_type"] == number


def test_without_modules_no_pooling_key_is_written(tmp_path: Path) -> None:
    copy = shutil.copytree(BERT, tmp_path / "bert")
    (copy / "modules.json").unlink()
    assert "bert.pooling_type" not in load_model(copy).keys


def test_the_pooler_is_left_out_with_the_reason() -> None:
    assert set(load_model(BERT).ignored) == {"pooler.dense.weight", "pooler.dense.bias"}


@pytest.mark.parametrize(
    ("config", "further", "says"),
    [
        ({"pooling_mode_max_tokens": True}, (), "pooling by pooling_mode_max_tokens"),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            (),
            "pooling_mode_mean_tokens and pooling_mode_cls_token",
        ),
        ({"pooling_mode_mean_tokens": True}, ("Dense",), "a module of type 'Dense'"),
    ],
)
def test_unsupported_pooling_is_rejected(
    config: dict[str, Any], further: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ArchitectureError, match=says):
        pooling(tmp_path, config, *further)


REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("bert", {"hidden_act": "relu"}, "activation is 'relu'"),
    ("bert", {"position_embedding_type": "relative_key"}, "supports only 'absolute'"),
    ("bert", {"is_decoder": True}, "is_decoder is true"),
    ("bert", {"num_attention_heads": 5}, "not a multiple"),
    ("nomic-bert", {"prenorm": True}, "prenorm is True"),
    ("nomic-bert", {"moe_every_n_layers": 2}, "moe_every_n_layers is 2"),
)


@pytest.mark.parametrize(("family", "changes", "says"), REFUSED)
def test_settings_that_llama_cpp_does_not_compute_are_rejected(
    family: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ArchitectureError, match=says):
        describe(config_of(family) | changes, "config.json")
