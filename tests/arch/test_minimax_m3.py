"""MiniMax M3: the forms of its settings, parts that are left out, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from agreement import load_reference
from packers import Stored, stored_in, write_stored

from dynquant.arch.load import describe, load_model
from dynquant.errors import ArchitectureError

_SPARSE = "sparse_attention_config"


def config() -> dict[str, Any]:
    path = load_reference("minimax-m3").folder / "config.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def text(**changes: Any) -> dict[str, Any]:
    """Return the config.json of the language model."""
    return config()["text_config"] | {"architectures": ["MiniMaxM3VLForCausalLM"]} | changes


def sparse(**changes: Any) -> dict[str, Any]:
    return {_SPARSE: config()["text_config"][_SPARSE] | changes}


def test_settings_as_transformers_saves_them_give_the_same_keys() -> None:
    older = config()["text_config"][_SPARSE]
    saved = text(
        **{_SPARSE: None, "moe_layer_freq": None, "hidden_act": "silu"},
        index_n_heads=older["sparse_num_index_heads"],
        index_head_dim=older["sparse_index_dim"],
        index_block_size=older["sparse_block_size"],
        index_topk_blocks=older["sparse_topk_blocks"],
        index_local_blocks=older["sparse_local_block"],
        layer_types=["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
        mlp_layer_types=["dense", "sparse", "sparse"],
    )
    found = describe(saved, "config.json")
    assert found.deviations == ()
    assert found.keys == describe(config(), "config.json").keys


def test_other_parts_and_prediction_layers_are_left_out(tmp_path: Path) -> None:
    source = load_reference("minimax-m3").folder
    stored = stored_in(source)
    norm = stored["language_model.model.norm.weight"]
    more: Stored = {
        "language_model.model.mtp.layers.0.enorm.weight": norm,
        "mtp.0.enorm.weight": norm,
    }
    shutil.copytree(source, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    model = load_model(write_stored(tmp_path / "m", config(), stored | more))
    assert more.keys() <= model.ignored.keys()
    others = model.ignored.keys() - more.keys()
    beginnings = {name.partition(".")[0] for name in others}
    assert beginnings == {"vision_tower", "multi_modal_projector", "patch_merge_mlp"}
    names = {t.name for t in model.tensors}
    assert "blk.1.indexer.q_proj.weight" in names
    assert "blk.0.indexer.q_proj.weight" not in names


REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"swiglu_limit": 5.0}, "llama.cpp computes this family with 7.0"),
    ({"swiglu_alpha": 1.0}, "llama.cpp computes this family with 1.702"),
    ({"shared_intermediate_size": 48}, "n_shared_experts 1 times intermediate_size 24"),
    ({"moe_layer_freq": [1, 0, 1]}, "moe_layer_freq is not dense and then sparse"),
    ({"moe_layer_freq": [0, 0, 1]}, "in the layers with experts and in no others"),
    ({"rotary_dim": 10}, "12 weights of a head are rotated by partial_rotary_factor, and 10"),
    ({"index_topk_blocks": 3}, "sparse_topk_blocks is 2, but index_topk_blocks beside it is 3"),
    (sparse(sparse_num_index_heads=3), "one head of the indexer for each head of keys"),
    (sparse(sparse_block_size=6), "powers of two"),
    (sparse(sparse_index_dim=8), "more than the 8 of the indexer's heads"),
    (sparse(sparse_score_type="mean"), "sparse_score_type is 'mean'; llama.cpp computes 'max'"),
    (sparse(sparse_init_block=1), "sparse_init_block is 1; llama.cpp computes 0"),
    (sparse(sparse_disable_index_value=[0, 0, 1]), "llama.cpp computes none of these"),
    (sparse(sparse_attention_freq=[0, 1]), "lists of another length"),
    (sparse(sparse_new=1), "sparse_new is not known"),
    ({"tie_word_embeddings": True}, "requires a separate output matrix"),
    ({"attention_output_gate": True}, "computes this family with false"),
)


@pytest.mark.parametrize(("changes", "says"), REFUSED)
def test_what_llama_cpp_does_not_compute_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ArchitectureError, match=says):
        describe(text(**changes), "config.json")
