"""Linear attention (a gated delta net): its rows of the tensor table, dimensions and keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from dynquant.arch.base import Row, Via
from dynquant.arch.config import Count
from dynquant.arch.graph_limits import fixed
from dynquant.keys import Keys, u32
from dynquant.transforms import negated_exp, parts_of_groups, squeezed

_LINEAR, _OUT = "model.layers.{}.linear_attn.", "blk.{}."
LINEAR_ATTENTION = (
    Row(_LINEAR + "in_proj_qkvz.weight", _OUT + "attn_qkv.weight", "qkvz hidden"),
    Row(_LINEAR + "in_proj_qkvz.weight", _OUT + "attn_gate.weight", "qkvz hidden"),
    Row(_LINEAR + "in_proj_ba.weight", _OUT + "ssm_ba.weight", "ba hidden"),
    Row(_LINEAR + "conv1d.weight", _OUT + "ssm_conv1d.weight", "qkv one kernel"),
    Row(_LINEAR + "dt_bias", _OUT + "ssm_dt.bias", "v_heads"),
    Row(_LINEAR + "A_log", _OUT + "ssm_a", "v_heads"),
    Row(_LINEAR + "norm.weight", _OUT + "ssm_norm.weight", "v_head"),
    Row(_LINEAR + "out_proj.weight", _OUT + "ssm_out.weight", "hidden v"),
)


LAYER_TYPES = ("full_attention", "linear_attention")
"""Kinds of layers in `layer_types`."""


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
            "kernel": self.linear_conv_kernel_dim,
            "v_heads": self.linear_num_value_heads,
            "v_head": self.linear_value_head_dim,
            "v": self.n_v,
        }

    @property
    def via(self) -> dict[str, Via]:
        """Transforms by role: each key head's query, key, values and gates are stored together."""
        head, groups = self.linear_key_head_dim, self.linear_num_key_heads
        values = 2 * head + self.n_v // groups
        qkv = ((0, head), (head, 2 * head), (2 * head, values))
        gate = ((values, values + self.n_v // groups),)
        return {
            "attn_qkv": partial(parts_of_groups, n_groups=groups, parts=qkv),
            "attn_gate": partial(parts_of_groups, n_groups=groups, parts=gate),
            "ssm_conv1d": partial(squeezed, dimension=1),
            "ssm_a": negated_exp,
        }

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
