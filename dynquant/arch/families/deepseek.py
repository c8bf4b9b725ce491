"""DeepSeek 2 and 3, Kimi-K2 and relatives: latent attention, routed experts and shared experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from dynquant.arch.base import Architecture
from dynquant.arch.config import read_config, without_nulls
from dynquant.arch.gguf_files.graph import GATE_UP, QKV, FileKeys, GGUFGraph
from dynquant.arch.mixtures.experts import SIGMOID, SOFTMAX
from dynquant.arch.mixtures.latent_decoder import DEEPSEEK2, Kind, LatentDecoder, describe, is_lite
from dynquant.arch.settings import DECODER, NO_WINDOW, Declared, Settings, harmless, reads
from dynquant.errors import ArchitectureError

# How each generation chooses experts. A config.json may omit both keys.
_RULES_2 = {"scoring_func": ("softmax",), "topk_method": ("greedy", "group_limited_greedy")}
_RULES_3 = {"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)}


def deepseek2(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a DeepSeek-V2: a softmax over all experts gives their weights."""
    settings = read_config(LatentDecoder, config, where)
    problems = list(_wrong_rules(config, _RULES_2, where))
    if settings.norm_topk_prob:
        problems.append(
            f"{where}: norm_topk_prob is true; DeepSeek-V2's own code then ignores"
            " routed_scaling_factor, but llama.cpp applies it"
        )
    ArchitectureError.raise_any(problems)
    # Greedy routing has no groups, whatever n_group is.
    if config.get("topk_method", "greedy") == "greedy":
        settings = replace(settings, n_group=None, topk_group=None)
    found = describe(config, settings, where, Kind(SOFTMAX))
    if f"{DEEPSEEK2}.expert_group_count" not in found.keys:
        return found
    warning = (
        f"{where}: topk_method 'group_limited_greedy' ranks groups of experts by their best expert,"
        " llama.cpp by the sum of their two best: some tokens are routed to other experts"
    )
    return replace(found, deviations=(*found.deviations, warning))


def deepseek3(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a DeepSeek-V3, R1 or Kimi-K2."""
    return with_sigmoids(config, where, Kind(SIGMOID))


def with_sigmoids(config: Mapping[str, Any], where: str, kind: Kind) -> Architecture:
    """Describe a model with sigmoid scores, and a bias added to choose the experts.

    Without `scoring_func` in config.json the scores are sigmoids too: the classes have no others.
    """
    # transformers' defaults.
    defaults = {"n_group": 8, "topk_group": 4, "norm_topk_prob": True, "routed_scaling_factor": 2.5}
    present = without_nulls(config)
    settings = read_config(LatentDecoder, {**defaults, **present}, where)
    ArchitectureError.raise_any(_wrong_rules(config, _RULES_3, where))
    return describe(config, settings, where, kind)


def softmax_mixture(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a relative whose experts a softmax weights and groups limit, as in DeepSeek-V3."""
    return describe(config, read_config(LatentDecoder, config, where), where, Kind(SOFTMAX))


def _wrong_rules(
    config: Mapping[str, Any], known: Mapping[str, tuple[str, ...]], where: str
) -> Iterator[str]:
    for key, rules in known.items():
        if config.get(key) not in (None, *rules):
            yield (
                f"{where}: {key} is {config[key]!r}; llama.cpp routes this family by"
                f" {' or '.join(map(repr, rules))}"
            )


READ = DECODER | reads(LatentDecoder, more="scoring_func topk_method num_local_experts num_experts")
HARMLESS = (
    NO_WINDOW
    | harmless("latent attention has as many heads of K as of Q", "num_key_value_heads")
    | harmless("qk_rope_head_dim is rotated", "head_dim")
    | harmless("the sum of qk_nope_head_dim and qk_rope_head_dim", "qk_head_dim")
    | harmless("checkpoints state num_nextn_predict_layers", "num_mtp_layers")
)
_DEEPSEEK3 = Declared(deepseek3, Settings(read=READ, harmless=HARMLESS))
FAMILIES = {
    "DeepseekV2ForCausalLM": Declared(
        deepseek2,
        Settings(
            read=READ,
            harmless=HARMLESS
            | harmless("its own code predicts no further", "num_nextn_predict_layers"),
        ),
    ),
    "DeepseekV3ForCausalLM": _DEEPSEEK3,
    "KimiK2ForCausalLM": _DEEPSEEK3,
}


def layers_of(keys: FileKeys) -> dict[str, Any]:
    """Return whether a GGUF's queries have a short vector; llama.cpp's Lite models have none."""
    if is_lite(keys.n_layers, keys.n_vocab):
        return {}
    return {"q_lora_rank": keys.number("attention.q_lora_rank") or None}


def _class_of(keys: FileKeys) -> str:
    """Return the class of a GGUF's model: the scores of experts are sigmoids since DeepSeek-V3."""
    is_third = keys.number("expert_gating_func") == SIGMOID
    return "DeepseekV3ForCausalLM" if is_third else "DeepseekV2ForCausalLM"


GRAPHS = {
    "deepseek2": GGUFGraph(
        "DeepseekV2ForCausalLM", layers=layers_of, class_of=_class_of, fused=(QKV, GATE_UP)
    ),
}
