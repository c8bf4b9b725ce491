"""Linear attention (a gated delta net): its rows of the tensor table, dimensions and keys.

A key head serves several value heads. Qwen3-Next stores the rows of a key head and of all that it
serves together, in two matrices. Qwen3.5 stores a matrix for each purpose, and llama.cpp's graph of
it needs the value heads in another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from dynquant.arch.base import Row, Via
from dynquant.arch.config import Count
from dynquant.arch.gguf_files.graph import FileKeys
from dynquant.arch.graph_limits import fixed
from dynquant.keys import Keys, u32
from dynquant.tensors import TensorSource
from dynquant.transforms import (
    depthwise_kernels,
    negated_exp,
    parts_of_groups,
    tiled_columns,
    tiled_heads,
)

_LINEAR, _OUT = "model.layers.{}.linear_attn.", "blk.{}."
_STATE = (
    Row(_LINEAR + "conv1d.weight", _OUT + "ssm_conv1d.weight", "qkv one kernel"),
    Row(_LINEAR + "dt_bias", _OUT + "ssm_dt.bias", "v_heads"),
    Row(_LINEAR + "A_log", _OUT + "ssm_a", "v_heads"),
    Row(_LINEAR + "norm.weight", _OUT + "ssm_norm.weight", "v_head"),
    Row(_LINEAR + "out_proj.weight", _OUT + "ssm_out.weight", "hidden v"),
)
_BY_KEY_HEAD = (
    Row(_LINEAR + "in_proj_qkvz.weight", _OUT + "attn_qkv.weight", "qkvz hidden"),
    Row(_LINEAR + "in_proj_qkvz.weight", _OUT + "attn_gate.weight", "qkvz hidden"),
    Row(_LINEAR + "in_proj_ba.weight", _OUT + "ssm_ba.weight", "ba hidden"),
    *_STATE,
)
"""Stored as two matrices of inputs, in which the rows of each key head are together."""

_BY_PURPOSE = (
    Row(_LINEAR + "in_proj_qkv.weight", _OUT + "attn_qkv.weight", "qkv hidden"),
    Row(_LINEAR + "in_proj_z.weight", _OUT + "attn_gate.weight", "v hidden"),
    Row(_LINEAR + "in_proj_b.weight", _OUT + "ssm_beta.weight", "v_heads hidden"),
    Row(_LINEAR + "in_proj_a.weight", _OUT + "ssm_alpha.weight", "v_heads hidden"),
    *_STATE,
)
"""Stored as four matrices of inputs."""

LAYER_TYPES = ("full_attention", "linear_attention")
"""Kinds of layers in `layer_types`."""


@dataclass(frozen=True)
class Layout:
    """The rows of a layer with linear attention, and their transforms by role."""

    rows: tuple[Row, ...]
    via: Mapping[str, Via]


@dataclass(frozen=True)
class Linear:
    """Linear attention, with the names of config.json and the defaults of transformers."""

    linear_conv_kernel_dim: Count = 4
    linear_key_head_dim: Count = 128
    linear_value_head_dim: Count = 128
    linear_num_key_heads: Count = 16
    linear_num_value_heads: Count = 32
    full_attention_interval: Count = 4
    layer_types: tuple[str, ...] | None = None

    @property
    def n_qk(self) -> int:
        """Rows of all queries; also of all keys."""
        return self.linear_num_key_heads * self.linear_key_head_dim

    @property
    def n_v(self) -> int:
        """Rows of all values; also of their gates."""
        return self.linear_num_value_heads * self.linear_value_head_dim

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that the rows of linear attention name."""
        return {
            "qkv": 2 * self.n_qk + self.n_v,
            "qkvz": 2 * self.n_qk + 2 * self.n_v,
            "ba": 2 * self.linear_num_value_heads,
            "one": 1,
            "kernel": self.linear_conv_kernel_dim,
            "v_heads": self.linear_num_value_heads,
            "v_head": self.linear_value_head_dim,
            "v": self.n_v,
        }

    @property
    def by_key_head(self) -> Layout:
        """Two matrices of inputs, from which queries, keys, values and gates are separated."""
        head, groups = self.linear_key_head_dim, self.linear_num_key_heads
        values = 2 * head + self.n_v // groups
        qkv = ((0, head), (head, 2 * head), (2 * head, values))
        gate = ((values, values + self.n_v // groups),)
        via: dict[str, Via] = {
            "attn_qkv": partial(parts_of_groups, n_groups=groups, parts=qkv),
            "attn_gate": partial(parts_of_groups, n_groups=groups, parts=gate),
            "ssm_conv1d": depthwise_kernels,
            "ssm_a": negated_exp,
        }
        return Layout(_BY_KEY_HEAD, via)

    @property
    def by_purpose(self) -> Layout:
        """Four matrices of inputs, whose value heads are put into tiled order.

        llama.cpp repeats the key heads as a whole, so that value head i meets key head i modulo
        their number. Stored are the value heads of the first key head, then those of the second.
        """
        groups, head = self.linear_num_key_heads, self.linear_value_head_dim
        heads = partial(tiled_heads, n_groups=groups)
        values = partial(heads, each=head, first=2 * self.n_qk)

        def decay(source: TensorSource) -> TensorSource:
            return negated_exp(heads(source, each=1))

        def kernels(source: TensorSource) -> TensorSource:
            return values(depthwise_kernels(source))

        via: dict[str, Via] = {
            "attn_qkv": values,
            "attn_gate": partial(heads, each=head),
            "ssm_alpha": partial(heads, each=1),
            "ssm_beta": partial(heads, each=1),
            "ssm_dt": partial(heads, each=1),
            "ssm_a": decay,
            "ssm_conv1d": kernels,
            "ssm_out": partial(tiled_columns, n_groups=groups, each=head),
        }
        return Layout(_BY_PURPOSE, via)

    def keys(self, arch: str) -> Keys:
        """Return the keys, which llama.cpp shares with state space models."""
        keys = {
            "ssm.conv_kernel": self.linear_conv_kernel_dim,
            "ssm.state_size": self.linear_key_head_dim,
            "ssm.group_count": self.linear_num_key_heads,
            "ssm.time_step_rank": self.linear_num_value_heads,
            "ssm.inner_size": self.n_v,
            "full_attention_interval": self.full_attention_interval,
        }
        return {f"{arch}.{name}": u32(value) for name, value in keys.items()}

    def recurrent(self, n_layers: int) -> list[bool]:
        """Return which layers have linear attention."""
        if self.layer_types is not None:
            return [kind == "linear_attention" for kind in self.layer_types]
        return [(layer + 1) % self.full_attention_interval != 0 for layer in range(n_layers)]

    def problems(self, where: str) -> Iterator[str]:
        """Yield a message for each setting that llama.cpp's graph cannot compute."""
        yield from fixed(self, {"linear_value_head_dim": self.linear_key_head_dim}, where)
        if self.linear_num_value_heads % self.linear_num_key_heads:
            yield (
                f"{where}: linear_num_value_heads {self.linear_num_value_heads} is not a multiple"
                f" of linear_num_key_heads {self.linear_num_key_heads}"
            )


def recurrent_of(keys: FileKeys) -> dict[str, Any]:
    """Return the settings that state which layers of a GGUF have linear attention."""
    kinds = keys.kinds("attention.recurrent_layers", *LAYER_TYPES)
    interval = keys.number("full_attention_interval") or 4
    return {"full_attention_interval": interval, **({"layer_types": kinds} if kinds else {})}
