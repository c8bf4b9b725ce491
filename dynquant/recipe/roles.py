"""The roles of tensors: GGUF's names, and the groups of roles that recipes can name."""

from __future__ import annotations

import fnmatch

from gguf import TENSOR_NAMES

from dynquant.errors import RecipeError
from dynquant.recipe.newer_names import NEWER_ROLES
from dynquant.recipe.yaml_nodes import nearest

# The roles that TensorName.parse finds in the tensor names of all GGUF architectures. `ffn` is left
# out: that tensor is an activation's scale; here `ffn` is the group of all feed-forward matrices.
ROLES = NEWER_ROLES | frozenset(
    name
    for name in (full.removeprefix("blk.{bid}.") for full in TENSOR_NAMES.values())
    if "{bid}" not in name and name != "ffn"
)

_MLA = frozenset(
    {"attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_kv_b", "attn_k_b", "attn_v_b"} & ROLES
)
_NORMS = frozenset(r for r in ROLES if r.endswith("norm") or "_norm_" in r)
_ROUTER = frozenset({"ffn_gate_inp", "ffn_gate_inp_shexp", "exp_probs_b"})
_EXPERTS = frozenset(r for r in ROLES if r.startswith("ffn_") and r.endswith("exps")) - _NORMS
_SHARED = frozenset(r for r in ROLES if r.startswith("ffn_") and r.endswith("_shexp")) - _ROUTER
_DENSE = frozenset({"ffn_gate", "ffn_up", "ffn_down"})

MTP = "mtp"
"""The group of all tensors of the prediction layers, whatever their role."""

GROUPS: dict[str, frozenset[str]] = {
    "attention": frozenset(r for r in ROLES if r.startswith("attn_")) - _NORMS,
    "mla": _MLA,
    "ffn": _DENSE | _EXPERTS | _SHARED,
    "experts": _EXPERTS,
    "shared_experts": _SHARED,
    "dense_ffn": _DENSE,
    "router": _ROUTER,
    "norms": _NORMS,
    "embedding": frozenset({"token_embd", "per_layer_token_embd"}),
    "output": frozenset({"output"}),
    MTP: frozenset[str](),
    "ssm": frozenset(r for r in ROLES if r.startswith(("ssm_", "shortconv.")) and r not in _NORMS),
}
"""The roles of each group."""

GROUP_NOTES = {
    "attention": "all matrices of attention, latent or not",
    "mla": "the query, key and value matrices of latent attention (DeepSeek)",
    "ffn": "all feed-forward matrices: dense, routed and shared experts",
    "experts": "routed experts",
    "shared_experts": "experts that process every token",
    "dense_ffn": "feed-forward matrices of layers without experts",
    "router": "tensors that choose the experts; protected",
    "norms": "norms; protected",
    "embedding": "the token embedding",
    "output": "the output matrix (lm_head); models with tied embeddings have none",
    MTP: "all tensors of the layers for multi-token prediction (nextn)",
    "ssm": "state-space and convolution layers",
}

COMMON = (
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
    "token_embd",
)
"""Roles that most recipes name; editors offer them first."""

# Roles of vision and audio have dots; a misspelt word rarely means one of them.
WORDS = sorted({r for r in ROLES if "." not in r} | GROUPS.keys())

# Names of Hugging Face checkpoints, which people may write instead of GGUF's.
_HF_ROLES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "embed_tokens": "token_embd",
    "lm_head": "output",
    "moe": "experts",
}


def role_name(text: str) -> str:
    """Return the name of a role or group, or a glob of roles such as `attn_*`.

    Raises RecipeError with the nearest name if it is unknown, or if a glob matches no role.
    """
    if text in ROLES or text in GROUPS:
        return text
    if "*" in text:
        if not fnmatch.filter(ROLES, text):
            raise RecipeError(f"{text!r} matches no role; use GGUF's names, such as attn_*")
        return text
    if text in _HF_ROLES:
        hint = f"; GGUF's name for it is {_HF_ROLES[text]}"
    else:
        hint = nearest(text, WORDS) or "; use GGUF's names, such as ffn_down or attn_v"
    raise RecipeError(f"{text!r} is not a role{hint}")


def members(names: tuple[str, ...]) -> frozenset[str]:
    """Return the roles that names of roles, groups and globs include."""
    return frozenset[str]().union(
        *(GROUPS.get(name) or fnmatch.filter(ROLES, name) or {name} for name in names)
    )
