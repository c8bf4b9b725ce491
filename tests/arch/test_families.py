"""GGUFs of tiny random checkpoints of all families give transformers' results in llama.cpp.

The oracles are transformers and each family's own tokenizer (stored by make_references.py)
and llama.cpp.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import (
    F32,
    F32_TOLERANCE,
    FAMILIES,
    Reference,
    load_reference,
    max_difference,
)
from ceilings import RECIPES, distance_from_transformers, kl_ceilings
from packers import stored_in, write_stored
from subsets import FAST_FAMILIES, slow_except

import dynquant
from dynquant.arch.families import Family, families
from dynquant.arch.wrapped import OTHER_PARTS, Wrapped
from dynquant.evaluate.runtime.context import Context
from dynquant.evaluate.runtime.model import LoadedModel
from dynquant.text_settings import text_settings

llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)

pytestmark = pytest.mark.oracle

KL_CEILINGS = kl_ceilings()

VISIBLE = 100 * F32_TOLERANCE
"""The least difference by which one wrong tensor is noticed."""

UNSEEN = re.compile(r"pooler\..*|(\w+\.)?encoder\.layer\.\d+\.attention\.self\.key\.bias")
"""Tensors without effect on BERT's results: the pooler, which llama.cpp does not have, and the bias
of K, which adds the same number to all attention scores of a token."""


def converted(folder: Path, out: Path) -> Path:
    dynquant.convert(folder, out, recipe="f32", threads=2)
    return out


def log_probabilities(reference: Reference, folder: Path, out: Path) -> F32:
    path = converted(folder, out)
    if reference.embeds:
        n = reference.log_probabilities.shape[1]
        vectors: F32 = llamacpp.embeddings(path, reference.prompts, n)
        return vectors
    found: F32 = llamacpp.log_probabilities(path, reference.prompts)
    return found


def text_family(family: Family, text: dict[str, Any] | None = None) -> Family | None:
    """Return the family of the language model; None for larger classes around any."""
    return family.family_of(text) if isinstance(family, Wrapped) else family


@pytest.mark.slow
def test_every_registered_family_has_a_reference() -> None:
    known = families()
    configs = [load_reference(f).folder / "config.json" for f in FAMILIES]
    listed = [json.loads(path.read_text("utf-8")) for path in configs]
    covered = {text_family(known[c["architectures"][0]], text_settings(c)) for c in listed} | {None}
    assert [name for name, family in known.items() if text_family(family) not in covered] == []


@pytest.mark.parametrize("family", slow_except(FAST_FAMILIES, FAMILIES))
def test_log_probabilities_of_the_f32_file_equal_transformers(family: str, tmp_path: Path) -> None:
    reference = load_reference(family)
    ours = log_probabilities(reference, reference.folder, tmp_path / "f32.gguf")
    assert max_difference(reference.log_probabilities, ours) < F32_TOLERANCE


@pytest.mark.parametrize("recipe", slow_except(["dynamic-4bit"], RECIPES))
@pytest.mark.parametrize("family", slow_except(FAST_FAMILIES, FAMILIES))
def test_divergence_of_the_recipe_is_below_the_ceiling(
    family: str, recipe: str, tmp_path: Path
) -> None:
    found = distance_from_transformers(family, recipe, tmp_path / "mixed.gguf")
    assert found <= KL_CEILINGS[family][recipe]


@pytest.mark.slow
@pytest.mark.parametrize("family", slow_except(FAST_FAMILIES, FAMILIES))
def test_tokens_equal_the_familys_own_tokenizers(family: str, tmp_path: Path) -> None:
    reference = load_reference(family)
    ours = llamacpp.tokenize(
        converted(reference.folder, tmp_path / "f32.gguf"),
        list(reference.tokens),
        parse_special=reference.parses_special,
    )
    assert dict(zip(reference.tokens, ours, strict=True)) == reference.tokens


def is_of_another_part(name: str) -> bool:
    """Return whether a stored tensor is of the vision model, which the file leaves out."""
    return any(re.fullmatch(pattern, name) for pattern in OTHER_PARTS)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_one_tensor_with_its_rows_reversed_is_noticed(family: str, tmp_path: Path) -> None:
    reference = load_reference(family)
    missed = {}
    names = one_of_each_kind(stored_tensors(reference.folder))
    for name in (n for n in names if not is_of_another_part(n)):
        folder = shutil.copytree(reference.folder, tmp_path / "mutated", dirs_exist_ok=True)
        reverse_rows(folder, name)
        difference = largest_difference(reference, folder, tmp_path / f"{name}.gguf")
        if difference < VISIBLE:
            missed[name] = difference
    assert not missed


def largest_difference(reference: Reference, folder: Path, out: Path) -> float:
    """Return the largest difference from the reference up to the first prompt that shows it.

    The library is called directly: to start llama.cpp's server takes ten times as long.
    """
    if reference.embeds:
        ours = log_probabilities(reference, folder, out)
        return max_difference(reference.log_probabilities, ours)
    largest = 0.0
    longest = max(map(len, reference.prompts))
    with (
        LoadedModel(converted(folder, out), n_gpu_layers=0) as model,
        Context(model, n_ctx=longest, n_threads=1) as context,
    ):
        for prompt, expected in zip(reference.prompts, reference.log_probabilities, strict=True):
            context.forget()
            n = len(prompt)
            context.decode(prompt, range(n), [0] * n, [False] * (n - 1) + [True])
            ours = context.logits_at(n - 1)[None]
            logs = ours - np.log(np.exp(ours - ours.max()).sum()) - ours.max()
            difference = max_difference(expected[None], logs)
            if not difference < VISIBLE:
                return difference
            largest = max(largest, difference)
    return largest


BASE_CLASSES = {
    "baichuan": "BaiChuanModel",
    "baichuan2": "BaichuanModel",
    "bailingmoe": "BailingMoeModel",
    "bailingmoe2": "BailingMoeV2Model",
    "dots1": "Dots1Model",
    "apertus": "ApertusModel",
    "deepseek-v4": "DeepseekV4Model",
    "exaone-moe": "ExaoneMoeModel",
    "gpt-oss": "GptOssModel",
    "gptneox": "GPTNeoXModel",
    "internlm2": "InternLM2Model",
    "minimax-m2": "MiniMaxM2Model",
    "nemotron": "NemotronModel",
    "olmo2": "Olmo2Model",
    "olmo3": "Olmo3Model",
    "olmoe": "OlmoeModel",
    "phi2": "PhiModel",
    "phimoe": "PhimoeModel",
    "qwen2moe": "Qwen2MoeModel",
    "sarvam-moe": "SarvamMoEModel",
    "stablelm": "StableLmModel",
}
"""Those whose graph in llama.cpp needs an output matrix."""

HEADS = ("lm_head.", "embed_out.", "output.", "head.")


@pytest.mark.slow
@pytest.mark.parametrize("family", slow_except(["olmo2"], BASE_CLASSES))
def test_llama_cpp_loads_a_base_class_whose_graph_needs_a_head(family: str, tmp_path: Path) -> None:
    source = load_reference(family).folder
    folder = tmp_path / family
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = json.loads((source / "config.json").read_text("utf-8"))
    config["architectures"] = [BASE_CLASSES[family]]
    stored = {n: t for n, t in stored_in(source).items() if not n.startswith(HEADS)}
    write_stored(folder, config, stored)
    assert llamacpp.loads(converted(folder, tmp_path / "f32.gguf"))


_FULL, _CAP = "full_attention", {"final_logit_softcapping": 0.7}
_OTHER_ROPE = {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
CONFIG_MISTAKES: tuple[tuple[str, str, Callable[[dict[str, Any]], Any]], ...] = (
    ("gemma", "rope base", lambda c: c.update(rope_theta=100.0)),
    ("gemma", "norm epsilon", lambda c: c.update(rms_norm_eps=1e-1)),
    ("gemma2", "cap of attention", lambda c: c.update(attn_logit_softcapping=50.0)),
    ("gemma2", "cap of logits", lambda c: c.update(final_logit_softcapping=30.0)),
    ("gemma2", "query scaling", lambda c: c.update(query_pre_attn_scalar=20)),
    ("gemma2", "window", lambda c: c.update(sliding_window=8)),
    ("gemma2", "layers with a window", lambda c: c.update(layer_types=["sliding_attention"] * 3)),
    ("gemma3", "cap of logits", lambda c: c.update(final_logit_softcapping=None)),
    ("gemma3", "query scaling", lambda c: c.update(query_pre_attn_scalar=12)),
    ("gemma3", "window", lambda c: c.update(sliding_window=8)),
    ("gemma3", "layers with a window", lambda c: c.update(layer_types=None)),
    (
        "gemma3",
        "rope scaling of global layers",
        lambda c: c["rope_parameters"]["full_attention"].update(rope_type="default"),
    ),
    (
        "gemma3",
        "rope base of local layers",
        lambda c: c["rope_parameters"]["sliding_attention"].update(rope_theta=10000.0),
    ),
    *(
        ("gemma4", what, lambda c, change=change: change(c["text_config"]))
        for what, change in (
            ("cap of logits", lambda t: t.update(final_logit_softcapping=None)),
            ("window", lambda t: t.update(sliding_window=8)),
            (
                "rotated part",
                lambda t: t["rope_parameters"][_FULL].update(partial_rotary_factor=0.1),
            ),
            ("rope base", lambda t: t["rope_parameters"][_FULL].update(rope_theta=100.0)),
            ("rope base of local layers", lambda t: t["rope_parameters"].update(_OTHER_ROPE)),
            ("norm epsilon", lambda t: t.update(rms_norm_eps=1e-1)),
        )
    ),
    ("gemma4moe", "experts used", lambda c: c.update(top_k_experts=2)),
    ("gemma4unified", "a cap of logits", lambda c: c["text_config"].update(_CAP)),
    ("glm", "rotated part of a head", lambda c: c.update(partial_rotary_factor=1.0)),
    ("glm4", "rotated part of a head", lambda c: c.update(partial_rotary_factor=0.5)),
    ("glm4moe", "rotated part of a head", lambda c: c.update(partial_rotary_factor=0.6)),
    ("glm4moe", "experts' scale", lambda c: c.update(routed_scaling_factor=1.0)),
    ("glm4moe", "normalized expert weights", lambda c: c.update(norm_topk_prob=False)),
    ("glm4moe", "groups of experts", lambda c: c.update(n_group=1)),
    ("glm4moe", "experts used", lambda c: c.update(num_experts_per_tok=3)),
    ("llama4", "rope base", lambda c: c["text_config"]["rope_parameters"].update(rope_theta=1e4)),
    ("llama4", "rope scaling", lambda c: c["text_config"]["rope_parameters"].update(factor=2.0)),
    ("llama4", "experts used", lambda c: c["text_config"].update(num_experts_per_tok=1)),
    ("llama4", "norm epsilon", lambda c: c["text_config"].update(rms_norm_eps=1e-1)),
    ("ernie4.5", "rope base", lambda c: c.update(rope_theta=10000.0)),
    ("ernie4.5moe", "experts used", lambda c: c.update(moe_k=2)),
    ("dots1", "groups of experts", lambda c: c.update(n_group=1)),
    ("dots1", "experts' scale", lambda c: c.update(routed_scaling_factor=1.0)),
    ("dots1", "experts' sum", lambda c: c.update(norm_topk_prob=False)),
    ("solar-open", "rotated part of a head", lambda c: c.update(partial_rotary_factor=0.5)),
    ("hunyuan-moe", "stretched base", lambda c: c["rope_scaling"].update(alpha=100.0)),
    ("hunyuan-moe", "experts used", lambda c: c.update(moe_topk=2)),
    ("afmoe", "window", lambda c: c.update(sliding_window=8)),
    ("afmoe", "rope scaling", lambda c: c["rope_parameters"].update(factor=4.0)),
    ("afmoe", "experts used", lambda c: c.update(num_experts_per_tok=2)),
    ("afmoe", "experts' scale", lambda c: c.update(route_scale=1.0)),
    ("bailingmoe3", "rope base", lambda c: c.update(rope_theta=100.0)),
    ("bailingmoe3", "bound of the decay", lambda c: c.pop("kda_lower_bound")),
    ("bailingmoe3", "groups", lambda c: c.update(n_group=1, topk_group=1)),
    ("sarvam-moe", "rope base", lambda c: c.update(rope_theta=100.0)),
    ("sarvam-moe", "experts' scale", lambda c: c.update(routed_scaling_factor=1.0)),
    ("baichuan", "normalized head", lambda c: c.update(z_loss_weight=0)),
    ("baichuan2", "plain head", lambda c: c.pop("z_loss_weight")),
    ("internlm2", "rope base", lambda c: c.update(rope_theta=10000.0)),
    ("chatglm", "rope base", lambda c: c.update(rope_ratio=1)),
    ("chatglm3", "norm epsilon", lambda c: c.update(layernorm_epsilon=1e-1)),
    ("bailingmoe", "rope base", lambda c: c.update(rope_theta=10000.0)),
    ("bailingmoe", "experts used", lambda c: c.update(num_experts_per_tok=3)),
    ("bailingmoe", "experts' sum", lambda c: c.update(norm_topk_prob=False)),
    ("bailingmoe", "normalized head", lambda c: c.update(norm_head=False)),
    ("bailingmoe2", "rope base", lambda c: c.update(rope_theta=10000.0)),
    ("bailingmoe2", "rotated part of a head", lambda c: c.pop("partial_rotary_factor")),
    ("bailingmoe2", "groups", lambda c: c.update(n_group=1, topk_group=1)),
    ("bailingmoe2", "experts' scale", lambda c: c.pop("routed_scaling_factor")),
    (
        "glm-ocr",
        "rotated part of a head",
        lambda c: c["text_config"]["rope_parameters"].update(
            partial_rotary_factor=1.0, mrope_section=[5, 3, 2]
        ),
    ),
    ("youtu", "rope scaling", lambda c: c.pop("rope_scaling")),
    *(
        ("minicpm", f"no {m}", lambda c, m=m: c.pop(m))
        for m in ("scale_emb", "scale_depth", "dim_model_base")
    ),
    ("minicpm", "short factors", lambda c: c["rope_scaling"]["short_factor"].reverse()),
    ("minicpm3", "short factors", lambda c: c["rope_parameters"]["short_factor"].reverse()),
    ("minicpm3", "magnitude", lambda c: c["rope_parameters"].pop("attention_factor")),
    ("minimax-m2", "rotated part of a head", lambda c: c.update(rotary_dim=10)),
    ("deepseek-v3.2", "tokens chosen", lambda c: c.update(index_topk=4)),
    ("deepseek-v3.2", "rope base", lambda c: c.update(rope_theta=100000.0)),
    ("deepseek-v3.2", "experts' scale", lambda c: c.update(routed_scaling_factor=1.0)),
    ("glm5", "tokens chosen", lambda c: c.update(index_topk=4)),
    ("glm5", "rope base", lambda c: c["rope_parameters"].update(rope_theta=10000.0)),
    ("deepseek-v4", "windows chosen", lambda c: c.update(index_topk=2)),
    ("deepseek-v4", "window", lambda c: c.update(sliding_window=8)),
    ("deepseek-v4", "rope base", lambda c: c.update(rope_theta=100.0)),
    ("deepseek-v4", "rope base of windows", lambda c: c.update(compress_rope_theta=100.0)),
    ("deepseek-v4", "rope scaling", lambda c: c.pop("rope_scaling")),
    ("deepseek-v4", "limit of activations", lambda c: c.update(swiglu_limit=1.0)),
    ("deepseek-v4", "experts' scale", lambda c: c.update(routed_scaling_factor=1.0)),
    ("deepseek-v4", "mixing", lambda c: c.update(hc_sinkhorn_iters=1)),
    *(
        ("minimax-m3", what, lambda c, change=change: change(c["text_config"]))
        for what, change in (
            ("rope base", lambda t: t.update(rope_theta=100.0)),
            ("blocks", lambda t: t["sparse_attention_config"].update(sparse_topk_blocks=1)),
            ("size of blocks", lambda t: t["sparse_attention_config"].update(sparse_block_size=8)),
            ("experts' scale", lambda t: t.update(routed_scaling_factor=1.0)),
            ("norm epsilon", lambda t: t.update(rms_norm_eps=1e-1)),
        )
    ),
    ("minimax-m2", "rope base", lambda c: c.update(rope_theta=10000.0)),
    ("minimax-m2", "experts used", lambda c: c.update(num_experts_per_tok=2)),
    ("command-r", "scale of logits", lambda c: c.update(logit_scale=0.0625)),
    ("command-r", "norm epsilon", lambda c: c.update(layer_norm_eps=1e-1)),
    ("command-r", "rope base", lambda c: c.update(rope_theta=10000.0)),
    ("cohere2", "scale of logits", lambda c: c.update(logit_scale=0.0625)),
    ("cohere2", "window", lambda c: c.update(sliding_window=8)),
    ("cohere2", "layers with window and rope", lambda c: c.pop("sliding_window_pattern")),
    ("starcoder2", "rope base", lambda c: c.update(rope_theta=100.0)),
    ("starcoder2", "norm epsilon", lambda c: c.update(norm_epsilon=1e-1)),
    ("bert", "norm epsilon", lambda c: c.update(layer_norm_eps=1e-1)),
    ("nomic-bert", "rope base", lambda c: c["rope_parameters"].update(rope_theta=10000.0)),
    ("llama-3.1", "rope scaling", lambda c: c.pop("rope_scaling")),
    ("llama-3.1", "rope base", lambda c: c.update(rope_theta=10000.0)),
    ("mistral", "rope base", lambda c: c["rope_parameters"].update(rope_theta=10000.0)),
    ("qwen2", "rope base", lambda c: c.update(rope_theta=10000.0)),
    ("olmo2", "rope base", lambda c: c.update(rope_theta=10000.0)),
    ("olmo3", "rope scaling", lambda c: c.pop("rope_scaling")),
    ("olmo3", "window", lambda c: c.update(sliding_window=8)),
    ("olmo3", "windowed layers", lambda c: c["layer_types"].reverse()),
    ("olmoe", "experts used", lambda c: c.update(num_experts_per_tok=3)),
    *(
        (f, f"no {m}", lambda c, m=m: c.pop(m))
        for f in ("granite", "granitemoe", "granitemoeshared")
        for m in (
            "attention_multiplier",
            "embedding_multiplier",
            "logits_scaling",
            "residual_multiplier",
        )
    ),
    ("granite", "rope base", lambda c: c.update(rope_theta=10000.0)),
    ("granitemoe", "experts used", lambda c: c.update(num_experts_per_tok=2)),
    ("phi3", "long factors", lambda c: c["rope_scaling"]["long_factor"].reverse()),
    ("phi3", "magnitude", lambda c: c.update(max_position_embeddings=1024)),
    ("phi4", "rope base", lambda c: c.update(rope_theta=10000.0)),
    ("phi4-mini", "short factors", lambda c: c["rope_scaling"]["short_factor"].reverse()),
    ("phi4-mini", "magnitude", lambda c: c.update(max_position_embeddings=1024)),
    ("phimoe", "short factors", lambda c: c["rope_scaling"]["short_factor"].reverse()),
    ("phimoe", "magnitude", lambda c: c["rope_scaling"].update(short_mscale=1, long_mscale=1)),
    ("qwen3next", "rope base", lambda c: c.update(rope_theta=10000.0)),
    ("qwen3next", "rotated part", lambda c: c.update(partial_rotary_factor=0.5)),
    ("qwen3next", "experts used", lambda c: c.update(num_experts_per_tok=3)),
    *(
        ("cohere2moe", what, lambda c, change=change: change(c))
        for what, change in (
            ("window", lambda c: c.update(sliding_window=8)),
            ("layers with window and rope", lambda c: c["layer_types"].reverse()),
            ("scores", lambda c: c.update(expert_selection_fn="softmax")),
            ("experts' sum", lambda c: c.update(norm_topk_prob=False)),
            ("scale of logits", lambda c: c.update(logit_scale=0.0625)),
            ("norms", lambda c: c.update(rms_norm_eps=1e-5)),
            ("rope base", lambda c: c["rope_parameters"].update(rope_theta=1e4)),
        )
    ),
    ("nemotron", "rotated part", lambda c: c["rope_parameters"].update(partial_rotary_factor=0.5)),
    ("nemotron", "norm epsilon", lambda c: c.update(norm_eps=1e-1)),
    *(
        ("mistral4-groups", what, lambda c, change=change: change(c["text_config"]))
        for what, change in (
            ("growth", lambda t: t["rope_parameters"].update(llama_4_scaling_beta=1e-6)),
            ("rope scaling", lambda t: t["rope_parameters"].update(factor=2.0)),
            ("groups", lambda t: t.update(topk_group=1)),
            ("experts' scale", lambda t: t.update(routed_scaling_factor=1.0)),
            ("experts' sum", lambda t: t.update(norm_topk_prob=False)),
        )
    ),
    *(
        ("exaone-moe", what, lambda c, change=change: change(c))
        for what, change in (
            ("window", lambda c: c.update(sliding_window=8)),
            ("layers with a window", lambda c: c["layer_types"].reverse()),
            ("experts used", lambda c: c.update(num_experts_per_tok=1)),
            ("groups", lambda c: c.update(n_group=1)),
            ("experts' scale", lambda c: c.update(routed_scaling_factor=1.0)),
            ("experts' sum", lambda c: c.update(norm_topk_prob=False)),
            ("rope scaling", lambda c: c["rope_parameters"].update(rope_type="default")),
        )
    ),
    *(
        ("laguna", what, lambda c, change=change: change(c))
        for what, change in (
            ("window", lambda c: c.update(sliding_window=8)),
            ("layers with a window", lambda c: c["layer_types"].reverse()),
            ("experts used", lambda c: c.update(num_experts_per_tok=2)),
            ("experts' scale", lambda c: c.update(moe_routed_scaling_factor=1.0)),
            ("magnitude", lambda c: c["rope_parameters"][_FULL].pop("attention_factor")),
            ("rotated part", lambda c: c["rope_parameters"][_FULL].update(partial_rotary_factor=1)),
            ("rope base of local layers", lambda c: c["rope_parameters"].update(_OTHER_ROPE)),
        )
    ),
    ("qwen38-flash-next-text", "chosen blocks", lambda c: c.update(indexer_budget=9)),
    ("qwen38-flash-next-text", "size of blocks", lambda c: c.update(indexer_compress_ratio=2)),
    ("qwen38-flash-next-text", "rope base", lambda c: c["rope_parameters"].update(rope_theta=1e4)),
    ("qwen2moe", "experts used", lambda c: c.update(num_experts_per_tok=3)),
    ("deepseek", "rope base", lambda c: c.update(rope_theta=500000.0)),
    ("deepseek", "experts used", lambda c: c.update(num_experts_per_tok=2)),
    ("deepseek-v3", "rope base", lambda c: c.update(rope_theta=100000.0)),
    ("deepseek-v3", "rope scaling", lambda c: c.pop("rope_scaling")),
    ("deepseek-v3", "scores", lambda c: c["rope_scaling"].update(mscale=0.5, mscale_all_dim=0.5)),
    ("deepseek-v3", "groups", lambda c: c.update(n_group=1, topk_group=1)),
    ("deepseek-v3", "all groups", lambda c: c.update(topk_group=3)),
    ("deepseek-v3", "experts used", lambda c: c.update(num_experts_per_tok=3)),
    ("deepseek-v3", "experts' scale", lambda c: c.update(routed_scaling_factor=1.0)),
    ("deepseek-v3", "experts' sum", lambda c: c.update(norm_topk_prob=False)),
    ("kimi-k2", "rope base", lambda c: c.update(rope_theta=10000.0)),
    ("kimi-k2", "rope scaling", lambda c: c.pop("rope_scaling")),
    ("kimi-k2", "experts' scale", lambda c: c.update(routed_scaling_factor=2.5)),
    ("deepseek-v2", "experts' scale", lambda c: c.update(routed_scaling_factor=1.0)),
    ("deepseek-v2-lite", "rope scaling", lambda c: c.pop("rope_scaling")),
    ("deepseek-v2-lite", "scores", lambda c: c["rope_scaling"].update(mscale=1, mscale_all_dim=1)),
    ("gpt-oss", "rope base", lambda c: c["rope_parameters"].update(rope_theta=150000.0)),
    ("gpt-oss", "rope scaling", lambda c: c["rope_parameters"].update(factor=2.0)),
    ("gpt-oss", "sliding window", lambda c: c.update(sliding_window=7)),
    ("gpt-oss", "experts used", lambda c: c.update(num_experts_per_tok=2)),
    ("nemotron-h", "norm epsilon", lambda c: c.update(layer_norm_epsilon=1e-1)),
    ("nemotron-h-moe", "groups of experts", lambda c: c.update(n_group=1)),
    ("nemotron-h-moe", "experts used", lambda c: c.update(num_experts_per_tok=2)),
    ("nemotron-h-moe", "experts' scale", lambda c: c.update(routed_scaling_factor=1.0)),
    ("nemotron-h-moe", "experts' sum", lambda c: c.update(norm_topk_prob=False)),
    ("granite4h", "rope", lambda c: c.update(position_embedding_type="rope")),
    ("granite4hmoe", "no rope", lambda c: c.update(position_embedding_type="nope")),
    ("granite4hmoe", "experts used", lambda c: c.update(num_experts_per_tok=2)),
    ("bamba", "rope base", lambda c: c.update(rope_theta=100.0)),
    ("bamba", "norm epsilon", lambda c: c.update(rms_norm_eps=1e-1)),
    *(
        ("falcon-h1", f"no {m}", lambda c, m=m: c.pop(m))
        for m in ("embedding_multiplier", "lm_head_multiplier", "key_multiplier", "ssm_multipliers")
    ),
    ("falcon-h1", "rope base", lambda c: c.update(rope_theta=100.0)),
    ("jamba", "experts used", lambda c: c.update(num_experts_per_tok=2)),
    ("mamba", "norm epsilon", lambda c: c.update(layer_norm_epsilon=1e-1)),
    ("mamba2", "norm epsilon", lambda c: c.update(layer_norm_epsilon=1e-1)),
    ("lfm2", "rope base", lambda c: c.update(rope_theta=10000.0)),
    ("lfm2", "norm epsilon", lambda c: c.update(norm_eps=1e-1)),
    ("lfm2moe", "experts used", lambda c: c.update(num_experts_per_tok=2)),
    *(
        ("muse-glimmer", f"no {m}", lambda c, m=m: c["text_config"].pop(m))
        for m in ("qk_scale_factor", "output_multiplier", "final_logit_softcapping")
    ),
    ("muse-glimmer", "window", lambda c: c["text_config"].update(sliding_window=8)),
    ("smollm3", "rope base", lambda c: c["rope_parameters"].update(rope_theta=10000.0)),
    ("arcee", "rope scaling", lambda c: c["rope_parameters"].update(rope_type="default")),
    ("apertus", "rope scaling", lambda c: c["rope_parameters"].update(factor=2.0)),
    ("seed-oss", "rope base", lambda c: c.update(rope_theta=10000.0)),
    ("exaone4", "rope scaling", lambda c: c["rope_parameters"].update(rope_type="default")),
    ("exaone4-64", "window", lambda c: c.update(sliding_window=8)),
    ("exaone4-64", "layers with window and rope", lambda c: c["layer_types"].reverse()),
    ("hunyuan", "stretched base", lambda c: c["rope_scaling"].pop("alpha")),
    ("gpt2", "norm epsilon", lambda c: c.update(layer_norm_epsilon=1e-1)),
    ("gptneox", "parallel residual", lambda c: c.update(use_parallel_residual=False)),
    ("gptneox", "rope base", lambda c: c.update(rotary_emb_base=100)),
    ("gptneox", "rotated part of a head", lambda c: c.update(rotary_pct=0.25)),
    ("stablelm", "rope base", lambda c: c.update(rope_theta=100.0)),
    ("stablelm", "rotated part of a head", lambda c: c.update(partial_rotary_factor=0.25)),
    ("phi2", "rotated part of a head", lambda c: c.update(partial_rotary_factor=0.75)),
    ("olmo", "clipped values", lambda c: c.update(clip_qkv=None)),
    ("olmo", "rope base", lambda c: c.update(rope_theta=100.0)),
    ("mpt", "clipped values", lambda c: c["attn_config"].update(clip_qkv=None)),
    ("mpt", "slopes of positions", lambda c: c["attn_config"].update(alibi_bias_max=2)),
    ("qwen3", "norm epsilon", lambda c: c.update(rms_norm_eps=1e-1)),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "mistake"),
    [pytest.param(f, m, id=f"{f}, {what}") for f, what, m in CONFIG_MISTAKES],
)
def test_another_configuration_is_noticed(
    family: str, mistake: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    reference = load_reference(family)
    folder = shutil.copytree(reference.folder, tmp_path / "mutated")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    mistake(config)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    ours = log_probabilities(reference, folder, tmp_path / "f32.gguf")
    assert max_difference(reference.log_probabilities, ours) > VISIBLE


def one_of_each_kind(names: Iterable[str]) -> list[str]:
    """Return tensors that affect results; the last of those whose names differ only in numbers."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        if is_in_an_early_layer(name) and not UNSEEN.fullmatch(name):
            kinds.setdefault(re.sub(r"\.\d+(?=\.)", ".0", name), []).append(name)
    return [kind[-1] for kind in kinds.values()]


def is_in_an_early_layer(name: str) -> bool:
    """Return whether a tensor is in the first four layers or in none; Command-R+ has 64 layers."""
    layer = re.search(r"\.(\d+)\.", name)
    return layer is None or int(layer[1]) < 4


def stored_tensors(folder: Path) -> dict[str, Path]:
    """Return the file of each stored tensor."""
    return {
        name: path
        for path in sorted(folder.glob("*.safetensors"))
        for name in safetensors_header(path)[0]
    }


def safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the tensors of a safetensors file and the offset of their data."""
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n])
    header.pop("__metadata__", None)
    return header, 8 + n


def reverse_rows(folder: Path, name: str) -> None:
    """Reverse the rows of a stored tensor, or the elements of a vector; negate a single number."""
    path = stored_tensors(folder)[name]
    tensors, begin = safetensors_header(path)
    start, stop = (begin + offset for offset in tensors[name]["data_offsets"])
    content = np.fromfile(path, np.uint8)
    n_rows = next((n for n in tensors[name]["shape"] if n > 1), 1)
    if n_rows == 1:
        content[stop - 1] ^= 0x80  # the sign
    rows = content[start:stop].reshape(n_rows, -1)
    rows[:] = rows[::-1].copy()
    content.tofile(path)
