"""DeepSeeks without latent attention: DeepSeek-MoE and the text model of DeepSeek-OCR.

Attention as in a Llama, routed and shared experts. The rows of Q and K are reordered as a Llama's
in DeepSeek-MoE, but not in DeepSeek-OCR.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.base import Architecture, on, renamed
from dynquant.arch.config import Count, ExpertsCount, Natural, Truth, read_config
from dynquant.arch.decoder import ATTENTION, EMBEDDING, MLP, OUTPUT, OUTPUT_NORM
from dynquant.arch.families.llama import llama
from dynquant.arch.gguf_files.graph import GATE_UP, QKV, GGUFGraph
from dynquant.arch.mixtures.experts import SOFTMAX, Routing, routing_keys
from dynquant.arch.mixtures.latent_decoder import EXPERTS
from dynquant.arch.settings import DECODER, NO_WINDOW, Declared, Settings, constant, harmless, reads
from dynquant.arch.wrapped import Wrapped
from dynquant.errors import ArchitectureError


@dataclass(frozen=True)
class _Experts:
    n_routed_experts: ExpertsCount
    n_shared_experts: Count
    num_experts_per_tok: Count
    moe_intermediate_size: Count
    first_k_dense_replace: Natural = 0
    moe_layer_freq: int = 1
    norm_topk_prob: Truth = False
    scoring_func: str = "softmax"
    topk_method: str = "greedy"
    attention_bias: Truth = False
    mlp_bias: Truth = False
    use_mla: Truth = False


_FIXED = {
    "moe_layer_freq": 1,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "attention_bias": False,
    "mlp_bias": False,
    "use_mla": False,
}
"""Constants of llama.cpp's graphs, and settings that no published model of the families has."""


def deepseek(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a DeepSeek-MoE: Q and K reordered as a Llama's, first layers without experts."""
    return _with_experts("deepseek", config, where)


def deepseek_ocr(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe the text model of a DeepSeek-OCR; rotary pairs keep transformers' order."""
    found = _with_experts("deepseek2-ocr", {"rms_norm_eps": 1e-6, **config}, where)
    # The graph has a constant base of 10000, and as many heads of K and V as of Q.
    if (base := found.keys["deepseek2-ocr.rope.freq_base"].value) != 10000:
        raise ArchitectureError(
            f"{where}: rope_theta is {base}; llama.cpp computes this family with 10000"
        )
    if found.sizes["kv"] != found.sizes["q"]:
        raise ArchitectureError(
            f"{where}: K and V have {found.sizes['kv']} rows and Q has {found.sizes['q']};"
            " llama.cpp computes this family with equal numbers"
        )
    return replace(found, via={})


def _with_experts(name: str, config: Mapping[str, Any], where: str) -> Architecture:
    experts = read_config(_Experts, config, where)
    dense = llama(config, where)
    ArchitectureError.raise_any(_problems(experts, dense, where))
    layers = range(dense.n_layers)
    n_dense = min(experts.first_k_dense_replace, dense.n_layers)
    routing = Routing(
        n_experts=experts.n_routed_experts,
        n_used=experts.num_experts_per_tok,
        expert_ffn=experts.moe_intermediate_size,
        n_shared=experts.n_shared_experts,
        weights_scale=1.0,
        gating=SOFTMAX,
        n_leading_dense=n_dense,
    )
    return replace(
        dense,
        name=name,
        keys=renamed(dense.keys, name) | routing_keys(name, routing),
        rows=(
            *(*EMBEDDING, *ATTENTION),
            *on(layers[:n_dense], MLP),
            *on(layers[n_dense:], EXPERTS),
            *(*OUTPUT_NORM, *OUTPUT),
        ),
        sizes={
            **dense.sizes,
            "experts": experts.n_routed_experts,
            "expert_ffn": experts.moe_intermediate_size,
            "shared_ffn": experts.moe_intermediate_size * experts.n_shared_experts,
        },
        n_experts=experts.n_routed_experts,
    )


def _problems(experts: _Experts, dense: Architecture, where: str) -> Iterator[str]:
    for key, fixed in _FIXED.items():
        if (found := getattr(experts, key)) != fixed:
            yield f"{where}: {key} is {found}; llama.cpp computes this family with {fixed}"
    if dense.sizes["q"] != dense.sizes["hidden"]:
        yield (
            f"{where}: heads of {dense.sizes['head']} weights add up to {dense.sizes['q']}, not to"
            f" hidden_size {dense.sizes['hidden']}, as llama.cpp assumes for this family"
        )


_READ = DECODER | reads(_Experts)
_OCR = Declared(
    deepseek_ocr,
    Settings(
        read=_READ,
        harmless=NO_WINDOW
        | harmless("greedy routing has no groups", "n_group topk_group")
        | harmless(
            "attention is not latent",
            "kv_lora_rank q_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim",
        ),
        only=constant(1.0, "routed_scaling_factor") | constant(True, "lm_head"),
    ),
)
FAMILIES = {
    "DeepseekForCausalLM": Declared(deepseek, Settings(read=_READ, harmless=NO_WINDOW)),
    "DeepseekOCRForCausalLM": Wrapped(_OCR),
    "DeepseekOCR2ForCausalLM": Wrapped(_OCR),
}
GRAPHS = {
    "deepseek": GGUFGraph("DeepseekForCausalLM"),
    "deepseek2-ocr": GGUFGraph("DeepseekOCRForCausalLM", fused=(QKV, GATE_UP)),
}
