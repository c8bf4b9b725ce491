"""GPT-2, GPT-NeoX, StableLM, Phi-2, OLMo 1, Falcon, MPT, Bloom, StarCoder 1: names and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import load_reference
from packers import Stored, stored_in, write_stored
from published import model_of

from dynquant.arch.base import Architecture
from dynquant.arch.load import describe, load_model
from dynquant.errors import ArchitectureError
from dynquant.transforms import read_weights


def config_of(family: str, **changes: Any) -> dict[str, Any]:
    """Return the config.json of a reference with changed settings; those of None are removed."""
    text = (load_reference(family).folder / "config.json").read_text("utf-8")
    config: dict[str, Any] = {**json.loads(text), **changes}
    return {name: value for name, value in config.items() if name not in changes or value != {}}


def described(family: str, **changes: Any) -> Architecture:
    return describe(config_of(family, **changes), "config.json")


def of_attention(**changes: Any) -> dict[str, Any]:
    """Return an MPT's `attn_config` with changed settings."""
    return {"attn_config": {**config_of("mpt")["attn_config"], **changes}}


REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is true"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is false; .* with true"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention is true"),
    ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu'"),
    ("gpt2", {"n_head": 5}, "n_embd 32 is not a multiple of n_head 5$"),
    ("gpt2", {"n_layer": {}}, "^config.json: n_layer is missing$"),
    ("gpt2", {"hidden_size": 64}, "n_embd is 32, but hidden_size is 64; both name one setting"),
    ("gpt2", {"is_causal": False}, "is_causal is false"),
    ("starcoder", {"num_key_value_heads": 2}, "is 2, but multi_query implies 1"),
    ("gptneox", {"attention_bias": False}, "attention_bias is false; .* needs biases"),
    ("gptneox", {"tie_word_embeddings": True}, "requires a separate output matrix"),
    ("gptneox", {"rope_theta": 500.0}, "rope_theta is 500.0, but .* uses rotary_emb_base"),
    ("gptneox", {"partial_rotary_factor": 1.0}, "is 1.0, but .* uses rotary_pct \\(0.5\\)"),
    ("gptneox", {"rotary_pct": 0.4}, "rotates 3 weights of a head"),
    ("gptneox", {"rotary_pct": 0.1}, "rotates 0 weights of a head"),
    ("stablelm", {"rope_pct": 0.25}, "rope_pct is 0.25, but partial_rotary_factor is 0.5"),
    ("stablelm", {"head_dim": 16}, "do not add up to hidden_size"),
    ("stablelm", {"tie_word_embeddings": True}, "requires a separate output matrix"),
    ("phi2", {"qk_layernorm": True}, "qk_layernorm is true"),
    ("phi2", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    ("olmo", {"attention_bias": True}, "attention_bias is True"),
    ("falcon", {"alibi": True}, "alibi is true; .* with false"),
    ("falcon", {"bias": True}, "bias is true; .* with false"),
    ("falcon", {"parallel_attn": False}, "parallel_attn is false; .* with true"),
    ("falcon", {"num_ln_in_parallel_attn": 2}, "without new_decoder_architecture with 0 or 1"),
    ("falcon-40b", {"num_ln_in_parallel_attn": 3}, "with new_decoder_architecture with 1 or 2"),
    ("bloom", {"apply_residual_connection_post_layernorm": True}, "is true; .* with false"),
    ("mpt", of_attention(alibi=False), "config.json: attn_config: alibi is false; .* with true"),
    ("mpt", of_attention(qk_ln=True), "attn_config: qk_ln is true"),
    ("mpt", of_attention(prefix_lm=True), "attn_config: prefix_lm is true"),
    ("mpt", of_attention(softmax_scale=0.5), "attn_config: softmax_scale is 0.5"),
    ("mpt", of_attention(attn_type="multiquery_attention"), "attn_type is 'multiquery_attention'"),
    ("mpt", of_attention(clip_qkv="often"), "attn_config: clip_qkv is 'often'"),
    ("mpt", {"no_bias": False}, "no_bias is false; .* with true"),
    ("mpt", {"logit_scale": "inv_sqrt_d_model"}, "logit_scale is 'inv_sqrt_d_model'"),
    ("mpt", {"norm_type": "rmsnorm"}, "norm_type is 'rmsnorm'"),
)


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED)
def test_a_setting_that_the_graph_cannot_compute_is_refused(
    family: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArchitectureError, match=message):
        described(family, **changes)


PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "gpt2": (
        124_439_808,
        {
            **{"architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new"},
            **{"n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024},
            **{"layer_norm_epsilon": 1e-5, "vocab_size": 50257},
        },
    ),
    "pythia-70m": (
        70_426_624,
        {
            **{"architectures": ["GPTNeoXForCausalLM"], "hidden_act": "gelu", "hidden_size": 512},
            **{"intermediate_size": 2048, "layer_norm_eps": 1e-5, "num_attention_heads": 8},
            **{"max_position_embeddings": 2048, "num_hidden_layers": 6, "vocab_size": 50304},
            **{"rotary_emb_base": 10000, "rotary_pct": 0.25, "use_parallel_residual": True},
        },
    ),
    "stablelm-2-12b": (
        12_143_185_920,
        {
            **{"architectures": ["StableLmForCausalLM"], "hidden_size": 5120, "vocab_size": 100352},
            **{"intermediate_size": 13824, "num_attention_heads": 32, "num_hidden_layers": 40},
            **{"max_position_embeddings": 4096, "num_key_value_heads": 8, "rope_theta": 10000},
            **{"qk_layernorm": True, "use_parallel_residual": True, "partial_rotary_factor": 0.25},
        },
    ),
    "phi-2": (
        2_779_683_840,
        {
            **{"architectures": ["PhiForCausalLM"], "hidden_act": "gelu_new", "hidden_size": 2560},
            **{"intermediate_size": 10240, "layer_norm_eps": 1e-5, "num_attention_heads": 32},
            **{"max_position_embeddings": 2048, "num_hidden_layers": 32, "vocab_size": 51200},
            **{"num_key_value_heads": 32, "partial_rotary_factor": 0.4, "rope_theta": 10000.0},
        },
    ),
    "olmo-7b": (
        6_888_095_744,
        {
            **{"architectures": ["OlmoForCausalLM"], "hidden_size": 4096, "vocab_size": 50304},
            **{"intermediate_size": 11008, "max_position_embeddings": 2048, "clip_qkv": None},
            **{"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32},
        },
    ),
    "falcon-7b": (
        6_921_720_704,
        {
            **{"architectures": ["FalconForCausalLM"], "alibi": False, "bias": False},
            **{"hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32},
            **{"multi_query": True, "new_decoder_architecture": False, "parallel_attn": True},
            **{"apply_residual_connection_post_layernorm": False, "vocab_size": 65024},
        },
    ),
    "mpt-7b": (
        6_649_286_656,
        {
            **{"architectures": ["MPTForCausalLM"], "attn_config": {"alibi": True}},
            **{"d_model": 4096, "n_heads": 32, "n_layers": 32, "max_seq_len": 2048},
            **{"expansion_ratio": 4, "no_bias": True, "vocab_size": 50432},
        },
    ),
    "bloom-560m": (
        559_214_592,
        {
            **{"architectures": ["BloomForCausalLM"], "n_embed": 1024, "n_layer": 24},
            **{"num_attention_heads": 16, "layer_norm_epsilon": 1e-5, "vocab_size": 250880},
        },
    ),
    "starcoder": (
        15_517_456_384,
        {
            **{"architectures": ["GPTBigCodeForCausalLM"], "activation_function": "gelu"},
            **{"multi_query": True, "n_embd": 6144, "n_head": 48, "n_inner": 24576},
            **{"n_layer": 40, "n_positions": 8192, "vocab_size": 49152},
        },
    ),
}
"""The weights of published models without a tied output matrix, and settings in their form."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_stated_number_of_weights(name: str) -> None:
    n_weights, config = PUBLISHED[name]
    found = model_of(config)
    assert sum(prod(t.shape) for t in found.tensors) == n_weights
    assert found.deviations == ()


def test_an_unknown_setting_of_attention_is_reported_with_its_place() -> None:
    (warning,) = described("mpt", **of_attention(spiral=3)).deviations
    assert warning.startswith("config.json: attn_config: not known as a setting of this family:")
    assert "'spiral'" in warning


SAME: tuple[tuple[str, dict[str, Any]], ...] = (
    # transformers' own names beside those of the class.
    ("gpt2", {"n_embd": {}, "hidden_size": 32, "n_layer": {}, "num_hidden_layers": 2}),
    ("bloom", {"hidden_size": {}, "n_embed": 32, "n_head": {}, "num_attention_heads": 4}),
    (
        "falcon",
        {
            **{"num_attention_heads": {}, "n_head": 4, "num_hidden_layers": {}, "n_layer": 2},
            "architectures": ["RWForCausalLM"],
        },
    ),
    # As transformers saves a Falcon-7B, though its attention has one K and V.
    ("falcon", {"num_kv_heads": 4}),
    ("falcon-40b", {"num_kv_heads": {}, "n_head_kv": 2}),
    ("falcon-40b", {"num_ln_in_parallel_attn": {}}),
    ("gptneox", {"rotary_pct": {}, "rope_parameters": {"partial_rotary_factor": 0.5}}),
    ("mpt", {"architectures": ["MptForCausalLM"]}),
    # As in files of 2023.
    (
        "stablelm",
        {
            **{"layer_norm_eps": {}, "norm_eps": 1e-5},
            **{"partial_rotary_factor": {}, "rope_pct": 0.5},
            "architectures": ["StableLMEpochForCausalLM"],
        },
    ),
    ("falcon-40b", {"new_decoder_architecture": {}, "model_type": "RefinedWeb"}),
)


@pytest.mark.parametrize(("family", "changes"), SAME)
def test_other_names_of_settings_describe_the_same_model(
    family: str, changes: dict[str, Any]
) -> None:
    ours, other = described(family), described(family, **changes)
    assert (ours.keys, ours.rows, ours.sizes) == (other.keys, other.rows, other.sizes)
    assert other.deviations == ()


def test_a_falcon_with_one_norm_a_layer_has_no_second() -> None:
    one = described("falcon-40b", num_ln_in_parallel_attn=1)
    assert {row.stored for row in one.rows if "attn_norm" in row.name} == {
        "transformer.h.{}.input_layernorm.weight",
        "transformer.h.{}.input_layernorm.bias",
    }


def changed(family: str, folder: Path, change: Callable[[Stored], Stored]) -> Path:
    """Write a reference with other stored tensors, without its tokenizer."""
    folder.mkdir()
    write_stored(folder, config_of(family), change(stored_in(load_reference(family).folder)))
    return folder


def renamed(*pairs: tuple[str, str]) -> Callable[[Stored], Stored]:
    def rename(name: str) -> str:
        for old, new in pairs:
            name = name.replace(old, new)
        return name

    return lambda stored: {rename(name): value for name, value in stored.items()}


@pytest.mark.parametrize(
    ("family", "pairs"),
    [
        # As in the published files of GPT-2 and Bloom.
        ("gpt2", (("transformer.", ""),)),
        ("bloom", (("transformer.", ""),)),
        ("gptneox", (("gpt_neox.", ""),)),
        ("gptneox", (("embed_out.", "lm_head."),)),
        ("falcon", (("transformer.", "module.transformer."),)),
    ],
)
def test_other_beginnings_of_names_are_the_same_tensors(
    family: str, pairs: tuple[tuple[str, str], ...], tmp_path: Path
) -> None:
    other = load_model(changed(family, tmp_path / "other", renamed(*pairs)), needs_vocab=False)
    ours = load_model(load_reference(family).folder)
    assert [t.name for t in other.tensors] == [t.name for t in ours.tensors]
    for a, b in zip(ours.tensors, other.tensors, strict=True):
        found = [read_weights(t.source, 0, t.n_rows) for t in (a, b)]
        assert np.array_equal(*found), a.name


@pytest.mark.parametrize("dtype", ["F32", "U8", "BOOL"])
def test_masks_in_old_files_are_left_out(dtype: str, tmp_path: Path) -> None:
    n_bytes = {"F32": np.dtype("<f4"), "U8": np.dtype("u1"), "BOOL": np.dtype("u1")}[dtype]
    mask = np.tril(np.ones((520, 520))).reshape(1, 1, 520, 520).astype(n_bytes)
    more = {
        "transformer.h.0.attn.bias": (dtype, mask),
        "transformer.h.0.attn.masked_bias": ("F32", np.array([-1e4], "<f4")),
    }
    folder = changed("gpt2", tmp_path / "old", lambda stored: {**stored, **more})
    ignored = load_model(folder, needs_vocab=False).ignored
    assert ignored == dict.fromkeys(more, "llama.cpp computes the causal mask")


def test_the_bias_of_attention_is_not_taken_for_a_mask(tmp_path: Path) -> None:
    bias = {"gpt_neox.layers.0.attention.bias": ("F32", np.ones((1, 1, 4), "<f4"))}
    folder = changed("gptneox", tmp_path / "old", lambda stored: {**stored, **bias})
    with pytest.raises(ArchitectureError, match=r"attention\.bias is not a tensor of gptneox"):
        load_model(folder, needs_vocab=False)


@pytest.mark.parametrize(
    ("family", "name", "other"),
    [
        ("gpt2", "transformer.h.1.ln_1.weight", "transformer.h.2.ln_1.weight"),
        ("mpt", "transformer.blocks.1.norm_1.weight", "transformer.blocks.2.norm_1.weight"),
    ],
)
def test_a_layer_beyond_those_of_the_config_is_reported_as_one(
    family: str, name: str, other: str, tmp_path: Path
) -> None:
    folder = changed(family, tmp_path / "more", lambda stored: {**stored, other: stored[name]})
    with pytest.raises(ArchitectureError, match=r"layer 2 are beyond the 2 layers of config\.json"):
        load_model(folder, needs_vocab=False)


def test_a_missing_tensor_is_reported_with_the_name_that_the_checkpoint_would_have(
    tmp_path: Path,
) -> None:
    def without_norms(stored: Stored) -> Stored:
        return {n.removeprefix("transformer."): v for n, v in stored.items() if ".ln_1." not in n}

    folder = changed("gpt2", tmp_path / "less", without_norms)
    with pytest.raises(ArchitectureError) as e:
        load_model(folder, needs_vocab=False)
    assert any("h.{0-1}.ln_1.weight is missing" in message for message in e.value.messages)
    assert not any("transformer." in message for message in e.value.messages)


@pytest.mark.parametrize(
    ("family", "base"), [("gpt2", "GPT2Model"), ("bloom", "BloomModel"), ("falcon", "FalconModel")]
)
def test_a_base_class_is_its_language_model(family: str, base: str) -> None:
    (warning,) = described(family, architectures=[base]).deviations
    assert f"{base} is a language model without an output matrix" in warning


def test_norms_of_heads_are_rows_in_the_order_of_the_heads() -> None:
    folder = load_reference("stablelm-12b").folder
    by_name = {t.name: t for t in load_model(folder).tensors}
    place = "model.layers.1.self_attn.{}_layernorm.norms.{}.weight"
    for letter, n_heads in (("q", 4), ("k", 2)):
        tensor = by_name[f"blk.1.attn_{letter}_norm.weight"]
        assert tensor.shape == (n_heads, 8)
        assert tensor.stored_names == tuple(place.format(letter, n) for n in range(n_heads))


def test_fused_heads_of_a_vector_move_as_those_of_a_matrix() -> None:
    by_name = {t.name: t for t in load_model(load_reference("bloom").folder).tensors}
    bias, weight = (by_name[f"blk.0.attn_qkv.{kind}"] for kind in ("bias", "weight"))
    assert (bias.shape, weight.shape) == ((96,), (96, 32))
    stored = stored_in(load_reference("bloom").folder)
    name = "transformer.h.0.self_attention.query_key_value.bias"
    halves = stored[name][1].view(np.float16).astype(np.float32)
    expected = halves.reshape(4, 3, 8).transpose(1, 0, 2).reshape(-1)
    assert np.array_equal(read_weights(bias.source, 0, 1)[0], expected)


def test_keys_of_positions_and_clipping_follow_the_settings() -> None:
    keys = described("mpt", **of_attention(alibi_bias_max=16, clip_qkv=6)).keys
    assert keys["mpt.attention.max_alibi_bias"].value == 16
    assert keys["mpt.attention.clamp_kqv"].value == 6
    assert "mpt.rope.freq_base" not in keys
    assert "mpt.attention.clamp_kqv" not in described("mpt", **of_attention(clip_qkv=None)).keys
    assert "olmo.attention.clamp_kqv" not in described("olmo", clip_qkv=None).keys
    assert described("bloom", seq_length={}).keys["bloom.context_length"].value == 2048
