"""The tensors to which llama.cpp applies an adapter.

llama.cpp loads the factors of any tensor, and uses those whose matrix its graph multiplies with
build_lora_mm or build_lora_mm_id; all others it ignores without a message. Source: src/models/*.cpp
and llama-graph.cpp in llama.cpp. A merged adapter does not depend on this.
"""

from __future__ import annotations

from dynquant.arch.base import TensorName

_ATTENTION = "attn_q attn_k attn_v attn_qkv attn_output attn_gate"
_LATENT = "attn_q_a attn_q_b attn_kv_a_mqa attn_kv_b"
_FEED = "ffn_gate ffn_up ffn_down"
_EXPERTS = "ffn_gate_exps ffn_up_exps ffn_down_exps ffn_gate_up_exps"
_SHARED = "ffn_gate_shexp ffn_up_shexp ffn_down_shexp"
_ROUTERS = "ffn_gate_inp ffn_gate_inp_shexp"
_STATES = (
    "ssm_in ssm_out ssm_x ssm_dt ssm_alpha ssm_beta ssm_ba shortconv.in_proj shortconv.out_proj"
)
_ENDS = "token_embd output"

_APPLIED = frozenset(
    " ".join((_ATTENTION, _LATENT, _FEED, _EXPERTS, _SHARED, _ROUTERS, _STATES, _ENDS)).split()
)
"""Roles that graphs multiply with build_lora_mm, except for those of the next table."""

_MLA = {"attn_q", "attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_kv_b", "output"}
_DELTA = _MLA | {"attn_k", "attn_v", "attn_qkv", "attn_output", "attn_gate", "ssm_beta"}

_IGNORED: dict[str, set[str]] = {
    **dict.fromkeys(("deepseek2", "deepseek2-ocr", "deepseek32", "glm-dsa", "mistral4"), _MLA),
    "minicpm3": _MLA - {"attn_q", "output"},
    "deepseek4": {"output"},
    **dict.fromkeys(("bailingmoe3", "glm5-next", "kimi-linear"), _DELTA),
    "kimi-k3": _DELTA | {*_FEED.split(), *_SHARED.split(), *_ROUTERS.split()},
}
"""Roles that the graph of an architecture multiplies without an adapter."""


WITHOUT_OUTPUT = ("bitnet", "gemma-embedding")
"""Architectures whose graph always multiplies with the embedding, or has no output at all."""


def is_applied(architecture: str, name: str) -> bool:
    """Return whether llama.cpp applies an adapter of a tensor in this architecture."""
    role = TensorName.parse(name).role
    return role in _APPLIED and role not in _IGNORED.get(architecture, ())
