"""Delta attention (KDA): linear attention as in linear.py, with a decay for each channel.

Queries, keys and values each have a matrix and a short convolution. Two products of small matrices
compute the decay and the output gate. Used by Kimi-Linear, GLM-5.3-Flash, Kimi-K3 and Ling 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from dynquant.arch.base import Form, Row, Via
from dynquant.arch.config import Count, LayersCount, Natural, Truth, read_config, without_nulls
from dynquant.arch.gguf_files.graph import FileKeys
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, f32, u32
from dynquant.tensors import TensorSource
from dynquant.transforms import Reshaped, elements_of_each, negated_exp

_IN, _OUT = "model.layers.{}.self_attn.", "blk.{}."


NORMS = (
    Row("model.layers.{}.input_layernorm.weight", _OUT + "attn_norm.weight", "hidden"),
    Row("model.layers.{}.post_attention_layernorm.weight", _OUT + "ffn_norm.weight", "hidden"),
)
"""The norms of a layer, which the rows of latent attention include."""

INPUTS = (
    Row(_IN + "q_proj.weight", _OUT + "attn_q.weight", "delta hidden"),
    Row(_IN + "k_proj.weight", _OUT + "attn_k.weight", "delta hidden"),
    Row(_IN + "v_proj.weight", _OUT + "attn_v.weight", "delta hidden"),
    *(
        Row(f"{_IN}{x}_conv1d.weight", f"{_OUT}ssm_conv1d_{x}.weight", "delta one kernel")
        for x in "qkv"
    ),
    Row(_IN + "b_proj.weight", _OUT + "ssm_beta.weight", "delta_heads hidden"),
)
RATES = (
    Row(_IN + "dt_bias", _OUT + "ssm_dt.bias", "delta"),
    Row(_IN + "A_log", _OUT + "ssm_a", "delta_heads"),
)
DECAY = (
    Row(_IN + "f_a_proj.weight", _OUT + "ssm_f_a.weight", "delta_head hidden"),
    Row(_IN + "f_b_proj.weight", _OUT + "ssm_f_b.weight", "delta delta_head"),
    *RATES,
)
GATE = (
    Row(_IN + "g_a_proj.weight", _OUT + "ssm_g_a.weight", "delta_head hidden"),
    Row(_IN + "g_b_proj.weight", _OUT + "ssm_g_b.weight", "delta delta_head"),
)
WHOLE = (
    Row(_IN + "f_proj.weight", _OUT + "ssm_f_a.weight", "delta hidden"),
    Row(_IN + "g_proj.weight", _OUT + "ssm_g_a.weight", "delta hidden"),
    *RATES,
)
"""Decay and gate where one matrix computes each (Ling 3)."""

RESULT = (
    Row(_IN + "o_norm.weight", _OUT + "ssm_norm.weight", "delta_head"),
    Row(_IN + "o_proj.weight", _OUT + "attn_output.weight", "hidden delta"),
)
DELTA = (*INPUTS, *DECAY, *GATE, *RESULT)
"""The rows of a layer with delta attention."""


def kernels(source: TensorSource) -> TensorSource:
    """Return the kernels [channels, 1, kernel] of a convolution in 4-D."""
    return Reshaped(source, (1, *source.shape))


VIA: dict[str, Via] = {**{f"ssm_conv1d_{x}": kernels for x in "qkv"}, "ssm_a": negated_exp}
"""Transforms of the rows, by role."""


def padded_decay(n_heads: int) -> Iterator[Row]:
    """Yield the rows of DECAY; rates may be stored as long as a head, with zeros after the last."""
    for row in DECAY:
        if row.name.endswith("ssm_a"):
            each = Form(row.stored, row.shape, "a rate for each head", negated_exp)
            first = partial(_first_rates, n_heads=n_heads)
            yield replace(
                row, forms=(each, Form(row.stored, "delta_head", "rates, then zeros", first))
            )
        else:
            yield row


def _first_rates(source: TensorSource, n_heads: int) -> TensorSource:
    return negated_exp(elements_of_each(source, 0, n_heads))


@dataclass(frozen=True)
class Delta:
    """Delta attention, with the names and defaults of transformers' class for Kimi-Linear.

    linear_lower_bound: the decay is this times a sigmoid; None for one without a bound
    """

    linear_head_dim: Count = 128
    linear_num_heads: Count = 32
    linear_conv_kernel_dim: Count = 4
    linear_lower_bound: float | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that the rows name, besides `hidden`."""
        return {
            "delta": self.linear_num_heads * self.linear_head_dim,
            "delta_head": self.linear_head_dim,
            "delta_heads": self.linear_num_heads,
            "kernel": self.linear_conv_kernel_dim,
            "one": 1,
        }

    def keys(self, arch: str) -> Keys:
        """Return the keys besides those that say which layers have delta attention."""
        return {
            f"{arch}.ssm.conv_kernel": u32(self.linear_conv_kernel_dim),
            f"{arch}.kda.head_dim": u32(self.linear_head_dim),
        } | (
            {}
            if self.linear_lower_bound is None
            else {f"{arch}.kda.gate_lower_bound": f32(self.linear_lower_bound)}
        )

    def problems(self, n_head: int, where: str) -> Iterator[str]:
        """Yield a message for each setting that llama.cpp's graphs cannot compute.

        n_head: heads of the layers with full attention
        """
        if self.linear_num_heads != n_head:
            yield (
                f"{where}: {self.linear_num_heads} heads of delta attention (linear_num_heads, or"
                " num_heads of linear_attn_config); llama.cpp computes as many as"
                f" num_attention_heads, {n_head}"
            )
        if self.linear_conv_kernel_dim == 1:
            yield f"{where}: linear_conv_kernel_dim is 1; llama.cpp needs at least 2"


@dataclass(frozen=True)
class Published:
    """`linear_attn_config` of published checkpoints."""

    head_dim: Count | None = None
    num_heads: Count | None = None
    short_conv_kernel_size: Count | None = None
    gate_lower_bound: float | None = None
    safe_gate: Truth | None = None
    use_full_rank_gate: Truth = False
    full_attn_layers: tuple[Natural, ...] | None = None
    kda_layers: tuple[Natural, ...] | None = None


def published(config: Mapping[str, Any], where: str) -> Published:
    """Return linear_attn_config; raise ArchitectureError if it has settings that are not known."""
    stated: object = config.get("linear_attn_config")
    if stated is None:
        return Published()
    if not isinstance(stated, dict):
        raise ArchitectureError(f"{where}: linear_attn_config is {stated!r}; it must be an object")
    found: dict[str, Any] = stated  # pyright: ignore[reportUnknownVariableType]
    known = {f.name for f in fields(Published)}
    unknown = sorted(n for n, value in found.items() if n not in known and value is not None)
    if unknown:
        raise ArchitectureError(
            f"{where}: linear_attn_config has {', '.join(map(repr, unknown))}, which is not known"
            " in this family; remove it if the model's own code does not use it"
        )
    return read_config(Published, found, f"{where}: linear_attn_config")


def read_delta(
    config: Mapping[str, Any], where: str, n_heads: int = 32, lower_bound: float | None = None
) -> Delta:
    """Return the settings, from config.json or from linear_attn_config in it.

    n_heads, lower_bound: the class's defaults of linear_num_heads and linear_lower_bound

    Raises ArchitectureError if both state a setting and disagree.
    """
    stated = published(config, where)
    names = {
        "linear_head_dim": ("head_dim", stated.head_dim),
        "linear_num_heads": ("num_heads", stated.num_heads),
        "linear_conv_kernel_dim": ("short_conv_kernel_size", stated.short_conv_kernel_size),
        "linear_lower_bound": ("gate_lower_bound", stated.gate_lower_bound),
    }
    ArchitectureError.raise_any(
        f"{where}: {name} is {config[name]} and {other} of linear_attn_config is {value}, two names"
        " of one setting; remove the one that is wrong"
        for name, (other, value) in names.items()
        if value is not None and config.get(name) not in (None, value)
    )
    inside = {name: value for name, (_, value) in names.items() if value is not None}
    defaults = {"linear_num_heads": n_heads, "linear_lower_bound": lower_bound}
    return read_config(Delta, {**defaults, **without_nulls(config), **inside}, where)


def default_bound(config: Mapping[str, Any]) -> float | None:
    """Return the bound of the decay if none is stated: -5, or no bound if a null says so.

    As in transformers' class for GLM-5.3-Flash.
    """
    found: Any = config.get("linear_attn_config")
    inside: dict[str, Any] = found if isinstance(found, dict) else {}  # pyright: ignore
    bounds = config.get("linear_lower_bound", 0), inside.get("gate_lower_bound", 0)
    return None if None in bounds and not inside.get("safe_gate", bool(inside)) else -5.0


def delta_layers(
    config: Mapping[str, Any], where: str, by_default: Callable[[int], bool], first: int
) -> list[bool]:
    """Return which layers have delta attention: by layer_types, else by linear_attn_config.

    by_default: whether a layer has it if config.json does not say
    first:      the number of the first layer in linear_attn_config

    Raises ArchitectureError if both say it and disagree, and if all layers are of one kind.
    """
    kinds = read_config(_Kinds, config, where)
    n = kinds.num_hidden_layers
    found = [by_default(layer) for layer in range(n)]
    listed = _listed(published(config, where), range(first, first + n), where)
    if kinds.layer_types is not None:
        found = [kind == "linear_attention" for kind in kinds.layer_types]
        if listed is not None and listed != found:
            raise ArchitectureError(
                f"{where}: layer_types and linear_attn_config disagree about which layers have"
                " delta attention; remove the one that is wrong"
            )
    elif listed is not None:
        found = listed
    if len({*found}) == 1:
        raise ArchitectureError(
            f"{where}: all layers have {'delta' if found[0] else 'full'} attention; llama.cpp's"
            " graph of this family needs layers of both kinds"
        )
    return found


@dataclass(frozen=True)
class _Kinds:
    num_hidden_layers: LayersCount
    layer_types: tuple[str, ...] | None = None


def _listed(stated: Published, numbers: range, where: str) -> list[bool] | None:
    """Return which layers have delta attention by the two lists; None if there are none."""
    if stated.kda_layers is None or stated.full_attn_layers is None:
        return None
    if sorted((*stated.kda_layers, *stated.full_attn_layers)) != list(numbers):
        raise ArchitectureError(
            f"{where}: kda_layers and full_attn_layers of linear_attn_config do not name each of"
            f" {len(numbers)} layers once; they count from {numbers.start}"
        )
    return [layer in stated.kda_layers for layer in numbers]


def kinds_of(keys: FileKeys) -> dict[str, Any]:
    """Return the settings that state which layers of a GGUF have delta attention."""
    kinds = keys.kinds("attention.head_count_kv", "linear_attention", "full_attention")
    return {"num_dense_layers": keys.n_dense, **({"layer_types": kinds} if kinds else {})}
