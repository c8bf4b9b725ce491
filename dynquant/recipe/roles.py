"""What a tensor is for: GGUF's role names, and the groups that a recipe can name them by."""

from __future__ import annotations

from gguf import TENSOR_NAMES

from dynquant.errors import RecipeError
from dynquant.recipe.yaml_nodes import nearest

# What TensorName.parse makes of every name that some GGUF architecture has. `ffn` is left out: that
# tensor is an activation's scale, and the word is the group of all feed-forward matrices.
ROLES = frozenset(
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
"""The group that is no set of roles: all tensors of the layers that predict further ahead."""

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
"""The roles of each group; what a recipe names a group for."""

GROUP_NOTES = {
    "attention": "all matrices of attention, latent or not",
    "mla": "what latent attention (DeepSeek) makes queries, keys and values from",
    "ffn": "all feed-forward matrices: dense, routed and shared experts",
    "experts": "routed experts",
    "shared_experts": "experts that every token goes through",
    "dense_ffn": "feed-forward matrices without experts",
    "router": "what chooses the experts; protected",
    "norms": "norms; protected",
    "embedding": "the token embedding",
    "output": "the matrix that turns the last state into scores; tied models have none",
    MTP: "every tensor of the layers that predict further ahead (nextn)",
    "ssm": "state-space and convolution layers",
}

# Roles of vision, audio and such have dots; they are rarely what a misspelt word was meant to be.
WORDS = sorted({r for r in ROLES if "." not in r} | GROUPS.keys())

# What people who know the checkpoint and not the GGUF write first.
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
    """Return a role's or a group's name as it is; raise RecipeError naming the nearest one."""
    if text in ROLES or text in GROUPS:
        return text
    if text in _HF_ROLES:
        hint = f"; GGUF's name for it is {_HF_ROLES[text]}"
    else:
        hint = nearest(text, WORDS) or "; roles are GGUF's, such as ffn_down or attn_v"
    raise RecipeError(f"{text!r} is not a role{hint}")


def members(names: tuple[str, ...]) -> frozenset[str]:
    """Return the roles that names of roles and groups stand for."""
    return frozenset[str]().union(*(GROUPS.get(name) or {name} for name in names))
