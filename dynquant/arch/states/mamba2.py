"""State space layers (Mamba 2): their rows of the tensor table, dimensions and keys.

Families name the settings of these layers differently, but store and compute them in one way: a
projection to gates, inputs, the two matrices of the state and time steps; a short convolution; a
scan with one decay rate for each head; a norm for each group of heads; and a projection back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

from dynquant.arch.base import Architecture, Row, Via, on, renamed
from dynquant.arch.config import Count
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, i32s, u32
from dynquant.tensors import TensorSource
from dynquant.transforms import column, depthwise_kernels, in_groups, negated_exp

_OUT = "blk.{}."


def _decay(source: TensorSource) -> TensorSource:
    return negated_exp(column(source))


def mamba2_rows(block: str, *, norm: bool = True) -> tuple[Row, ...]:
    """Return the rows of a layer.

    block:      the beginning of their names ("model.layers.{}.mixer.")
    norm:       whether heads have a norm before the output
    Dimensions: `hidden`, `one`, and those of `Mamba2.sizes`
    """
    return (
        Row(block + "in_proj.weight", _OUT + "ssm_in.weight", "ssm_inputs hidden"),
        Row(
            block + "conv1d.weight",
            _OUT + "ssm_conv1d.weight",
            "ssm_channels one kernel",
            via=depthwise_kernels,
        ),
        Row(block + "conv1d.bias", _OUT + "ssm_conv1d.bias", "ssm_channels"),
        Row(block + "dt_bias", _OUT + "ssm_dt.bias", "ssm_heads"),
        Row(block + "A_log", _OUT + "ssm_a", "ssm_heads", via=_decay),
        Row(block + "D", _OUT + "ssm_d", "ssm_heads", via=column),
        *((Row(block + "norm.weight", _OUT + "ssm_norm.weight", "ssm_inner"),) if norm else ()),
        Row(block + "out_proj.weight", _OUT + "ssm_out.weight", "hidden ssm_inner"),
    )


@dataclass(frozen=True)
class Mamba2:
    """The sizes of the layers.

    n_heads:    heads, each with a decay rate and a time step
    n_per_head: channels of a head
    n_groups:   groups of heads that share the two matrices of the state
    n_state:    numbers of the state for each channel
    n_kernel:   tokens that the convolution mixes
    """

    n_heads: int
    n_per_head: int
    n_groups: int
    n_state: int
    n_kernel: int

    @property
    def n_inner(self) -> int:
        """Channels of all heads."""
        return self.n_heads * self.n_per_head

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that the rows name."""
        channels = self.n_inner + 2 * self.n_groups * self.n_state
        return {
            "one": 1,
            "kernel": self.n_kernel,
            "ssm_heads": self.n_heads,
            "ssm_inner": self.n_inner,
            "ssm_channels": channels,
            "ssm_inputs": self.n_inner + channels + self.n_heads,
        }

    @property
    def via(self) -> Mapping[str, Via]:
        """The transforms by role, beside those of the rows."""
        return {"ssm_norm": partial(in_groups, n=self.n_groups)}

    def keys(self, arch: str) -> Keys:
        """Return the keys."""
        keys = {
            "ssm.conv_kernel": self.n_kernel,
            "ssm.state_size": self.n_state,
            "ssm.group_count": self.n_groups,
            "ssm.inner_size": self.n_inner,
            "ssm.time_step_rank": self.n_heads,
        }
        return {f"{arch}.{name}": u32(value) for name, value in keys.items()}

    def problems(self, where: str, heads: str, groups: str, kernel: str) -> Iterator[str]:
        """Yield a message for each size that llama.cpp's graphs cannot compute.

        heads, groups, kernel: the names of these sizes in config.json
        """
        if self.n_heads % self.n_groups:
            yield (f"{where}: {heads} {self.n_heads} is not a multiple of {groups} {self.n_groups}")
        if self.n_kernel == 1:
            yield f"{where}: {kernel} is 1; llama.cpp needs at least 2"


@dataclass(frozen=True)
class MambaSettings:
    """The settings of Bamba, Granite 4 and Falcon-H1, with transformers' defaults."""

    hidden_size: Count
    mamba_n_heads: Count = 128
    mamba_d_head: Count | Literal["auto"] = "auto"
    mamba_n_groups: Count = 1
    mamba_d_state: Count = 256
    mamba_d_conv: Count = 4
    mamba_expand: Count = 2
    time_step_limit: Any = None

    @property
    def mamba(self) -> Mamba2:
        """The sizes of the layers."""
        return self.with_channels(self.mamba_expand * self.hidden_size)

    def with_channels(self, n_inner: int) -> Mamba2:
        """Return the sizes of layers with this number of channels."""
        each = n_inner // self.mamba_n_heads if self.mamba_d_head == "auto" else self.mamba_d_head
        return Mamba2(
            self.mamba_n_heads, each, self.mamba_n_groups, self.mamba_d_state, self.mamba_d_conv
        )

    def problems(self, where: str, n_inner: int) -> Iterator[str]:
        """Yield a message for each setting that llama.cpp's graphs cannot compute.

        n_inner: the number of channels
        """
        found = self.with_channels(n_inner)
        if found.n_inner != n_inner:
            yield (
                f"{where}: {found.n_heads} heads of {found.n_per_head} channels (mamba_n_heads,"
                f" mamba_d_head) are not {n_inner} channels"
            )
        yield from found.problems(where, "mamba_n_heads", "mamba_n_groups", "mamba_d_conv")


SHORTEST_STEP = 1e-3
"""A lower limit on time steps that has no visible effect: the default of transformers."""


def step_warnings(limits: Mapping[str, object], where: str) -> Iterator[str]:
    """Yield a warning for each limit on time steps, of which llama.cpp has none.

    limits: by the name in config.json: the shortest step, or the shortest and the longest; or None
    """
    stated = {name: limit for name, limit in limits.items() if limit is not None}
    for name, limit in stated.items():
        steps = cast("Sequence[Any]", limit) if isinstance(limit, list | tuple) else [limit]
        shortest, *rest = [*map(_step, steps)] or [0.0]
        if not (shortest <= SHORTEST_STEP and all(step == float("inf") for step in rest)):
            yield (
                f"{where}: {name} limits the time steps of state space layers; llama.cpp has no"
                " such limit, so the file's results differ where steps are outside"
            )


def _step(value: object) -> float:
    """Return a limit as a number; transformers writes infinity as an object."""
    if isinstance(value, dict):
        value = cast("dict[str, object]", value).get("__float__")
    try:
        return float(cast(Any, value))
    except (TypeError, ValueError):
        return float("nan")


def hybrid_layers(
    attention: Architecture, name: str, attends: Sequence[bool], s: MambaSettings, where: str
) -> Architecture:
    """Return a model with Mamba 2 in place of attention in some layers (Granite 4, Bamba).

    attention: the model with attention in all layers
    name:      its architecture then
    attends:   which layers have attention
    Raises ArchitectureError if llama.cpp's graph of these models cannot compute the sizes.
    """
    n_inner = s.mamba_expand * s.hidden_size
    problems = [*s.problems(where, n_inner)]
    if s.mamba_expand != 2:
        problems.append(
            f"{where}: mamba_expand is {s.mamba_expand}; llama.cpp computes this family with 2"
        )
    if not any(attends):
        problems.append(f"{where}: no layer has attention; llama.cpp needs at least one")
    if all(attends):
        problems.append(f"{where}: all layers have attention; llama.cpp needs one with Mamba")
    ArchitectureError.raise_any(problems)
    by_kind = [[n for n, a in enumerate(attends) if a == kind] for kind in (True, False)]
    rows: list[Row] = []
    for row in attention.rows:
        if ".self_attn.q_proj.weight" in row.stored:
            rows += on(by_kind[1], mamba2_rows("model.layers.{}.mamba."))
        rows += on(by_kind[0], (row,)) if ".self_attn." in row.stored else (row,)
    keys = renamed(attention.keys, name)
    key = f"{name}.attention.head_count_kv"
    n_kv = keys[key].value
    assert isinstance(n_kv, int)
    return replace(
        attention,
        name=name,
        keys=keys | s.mamba.keys(name) | {key: i32s([n_kv * a for a in attends])},
        rows=tuple(rows),
        sizes={**attention.sizes, **s.mamba.sizes},
        via={**attention.via, **s.mamba.via},
    )
