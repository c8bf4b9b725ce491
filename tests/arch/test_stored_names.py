"""Every tensor of a model names the stored tensors that it is made of."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from agreement import FAMILIES, load_reference
from checkpoints import config_of, tensors_of, write_checkpoint
from packers import FORMATS, Stored, write_stored
from subsets import FAST_FAMILIES, slow_except

import dynquant
from dynquant.arch.base import Model
from dynquant.arch.load import Mla, load_model
from dynquant.plan.make import make_plan
from dynquant.recipe.loader import parse_recipe
from dynquant.tensors import Computed

FP8 = FORMATS["fp8 128x128 F32"]

SPLIT = re.compile(
    r".*\.(kv_b_proj\.weight|(mlp|feed_forward)\.experts\.gate_up_proj(_bias)?"
    r"|input_linear\.weight|in_proj_qkvz\.weight|index_qk_proj\.weight)"
)
"""Stored tensors that become two in the GGUF: keys and values, gate and up, QKV and gate,
queries and keys of an indexer."""

THRICE = {
    "baichuan": ".W_pack.",
    "baichuan2": ".W_pack.",
    "bailingmoe": ".query_key_value.",
    "chatglm": ".query_key_value.",
    "chatglm3": ".query_key_value.",
    "internlm2": ".wqkv.",
}
"""Stored tensors that become three, Q, K and V, by family."""

MERGED = ("minicpm3",)
"""Families whose graph has keys and values of latent attention in one matrix."""


def n_uses(family: str, name: str) -> int:
    """Return how many tensors of the GGUF are made of a stored one."""
    if THRICE.get(family, "?") in name:
        return 3
    return 2 if SPLIT.fullmatch(name) and family not in MERGED else 1


def load(family: str, mla: Mla = "split") -> Model:
    return dynquant.load_model(load_reference(family).folder, mla=mla)


def stored_in(folder: Path) -> set[str]:
    """Return the names in a checkpoint's headers; blocks and scales by their weight's.

    Those of a folder below have its name before them.
    """
    found: set[str] = set()
    for path in (*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")):
        content = path.read_bytes()
        n = int.from_bytes(content[:8], "little")
        names = json.loads(content[8 : 8 + n]).keys() - {"__metadata__"}
        found |= {(path.relative_to(folder).parent / name).as_posix() for name in names}
    found = {re.sub(r"(_proj)_(blocks|scales)$", r"\1", name) for name in found}
    return {re.sub(r"(\.weight)_(packed|scale)$", r"\1", name) for name in found}


@pytest.mark.parametrize("family", slow_except(FAST_FAMILIES, FAMILIES))
def test_each_stored_tensor_is_ignored_or_named_by_the_tensors_made_of_it(family: str) -> None:
    model = load(family)
    stored = stored_in(load_reference(family).folder)
    uses = Counter(name for tensor in model.tensors for name in tensor.stored_names)
    if family == "falcon-h1-tied":  # with one multiplier as the embedding, and another as the head
        assert uses.pop("model.embed_tokens.weight") == 2
        stored.remove("model.embed_tokens.weight")
    assert uses == {name: n_uses(family, name) for name in stored if name not in model.ignored}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_only_computed_tensors_name_no_stored_one(family: str) -> None:
    unnamed = [t for t in load(family).tensors if not t.stored_names]
    assert all(isinstance(t.source, Computed) for t in unnamed)


@pytest.mark.parametrize("family", ["mixtral", "qwen3moe", "deepseek-v3"])
def test_stacks_name_all_experts_in_order(family: str) -> None:
    stacks = [t for t in load(family).tensors if t.parts.role.endswith("_exps")]
    assert stacks
    for tensor in stacks:
        pattern = re.sub(r"experts\.\d+\.", "experts.{}.", tensor.stored_names[0])
        assert tensor.stored_names == tuple(pattern.format(e) for e in range(tensor.shape[0]))
        assert f"layers.{tensor.parts.layer}." in pattern


def test_both_halves_of_split_latent_attention_name_kv_b() -> None:
    by_name = {t.name: t.stored_names for t in load("deepseek-v3").tensors}
    kv_b = ("model.layers.1.self_attn.kv_b_proj.weight",)
    assert by_name["blk.1.attn_k_b.weight"] == by_name["blk.1.attn_v_b.weight"] == kv_b


def test_merged_latent_attention_names_kv_b_once() -> None:
    tensors = load("deepseek-v3", mla="merged").tensors
    kv_b = "model.layers.1.self_attn.kv_b_proj.weight"
    assert [t.name for t in tensors if kv_b in t.stored_names] == ["blk.1.attn_kv_b.weight"]


def test_names_are_spelled_as_in_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynquant.arch.load.read_vocab", lambda *_, **__: {})
    config = config_of("Qwen3ForCausalLM", num_hidden_layers=1)
    stored = {
        name.replace("model.", "model.language_model."): x for name, x in tensors_of(config).items()
    }
    model = load_model(write_checkpoint(tmp_path, config, stored))
    assert {name for t in model.tensors for name in t.stored_names} == stored.keys()


def test_the_head_of_a_tied_model_without_embedding_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynquant.arch.load.read_vocab", lambda *_, **__: {})
    config = config_of("LlamaForCausalLM", tie_word_embeddings=True)
    stored = tensors_of(config)
    stored["lm_head.weight"] = stored.pop("model.embed_tokens.weight")
    model = load_model(write_checkpoint(tmp_path, config, stored))
    names = {t.name: t.stored_names for t in model.tensors}
    assert names["token_embd.weight"] == ("lm_head.weight",)


def test_tensors_of_a_gguf_name_themselves(tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    dynquant.convert(load_reference("qwen2").folder, out, recipe="q8_0", threads=1)
    tensors = dynquant.load_model(out).tensors
    assert [t.stored_names for t in tensors] == [(t.name,) for t in tensors]


def test_a_packed_weight_is_named_as_the_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynquant.arch.load.read_vocab", lambda *_, **__: {})
    config = config_of("LlamaForCausalLM", num_hidden_layers=1)
    config["quantization_config"] = FP8.settings
    stored: Stored = {name: ("F32", x) for name, x in tensors_of(config).items()}
    name = "model.layers.0.mlp.up_proj.weight"
    packed, _ = FP8.pack(name, (40, 16), np.random.default_rng(0))
    assert len(packed) == 2
    del stored[name]
    model = load_model(write_stored(tmp_path / "model", config, stored | packed))
    names = {t.name: t.stored_names for t in model.tensors}
    assert names["blk.0.ffn_up.weight"] == (name,)


def test_kept_blocks_name_the_weight_in_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynquant.arch.load.read_vocab", lambda *_, **__: {})
    config = config_of("LlamaForCausalLM", num_hidden_layers=1, hidden_size=64)
    stored: Stored = {name: ("F32", x) for name, x in tensors_of(config).items()}
    name = "model.layers.0.mlp.up_proj.weight"
    packed, _ = FORMATS["nvfp4"].pack(name, (40, 64), np.random.default_rng(0))
    del stored[name]
    config["quantization_config"] = FORMATS["nvfp4"].settings
    model = load_model(write_stored(tmp_path / "model", config, stored | packed))
    recipe = parse_recipe("default: F32\nrules: [{role: ffn_up, type: NVFP4}]", "r.yaml", "r")
    sources = make_plan(model, recipe).sources
    assert "blk.0.ffn_up.scale" in sources
    assert sources["blk.0.ffn_up.weight"].stored_names == (name,)
