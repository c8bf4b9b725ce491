"""State space layers of the first Mamba: their rows of the tensor table, dimensions and keys.

Unlike in Mamba 2 (mamba2.py), each channel has its own decay rates and time step, and the
matrices of the state are computed from the convolution's output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dynquant.arch.base import Row
from dynquant.arch.config import Count
from dynquant.keys import Keys, u32
from dynquant.transforms import depthwise_kernels, negated_exp

_OUT = "blk.{}."

Rank = Count | Literal["auto"]
"""A setting: the rank of the matrix of time steps; "auto" is a sixteenth of hidden_size."""


def mamba1_rows(block: str, *, norms: bool = False) -> tuple[Row, ...]:
    """Return the rows of a layer.

    block:      the beginning of their names ("model.layers.{}.mamba.")
    norms:      whether time steps and the matrices of the state have norms with factors
    Dimensions: `hidden`, and those of `Mamba1.sizes`
    """
    of_norms = (
        Row(block + "dt_layernorm.weight", _OUT + "ssm_dt_norm.weight", "ssm_rank"),
        Row(block + "b_layernorm.weight", _OUT + "ssm_b_norm.weight", "ssm_state"),
        Row(block + "c_layernorm.weight", _OUT + "ssm_c_norm.weight", "ssm_state"),
    )
    return (
        Row(block + "in_proj.weight", _OUT + "ssm_in.weight", "ssm_inputs hidden"),
        Row(
            block + "conv1d.weight",
            _OUT + "ssm_conv1d.weight",
            "ssm_inner one kernel",
            via=depthwise_kernels,
        ),
        Row(block + "conv1d.bias", _OUT + "ssm_conv1d.bias", "ssm_inner"),
        Row(block + "x_proj.weight", _OUT + "ssm_x.weight", "ssm_parameters ssm_inner"),
        *(of_norms if norms else ()),
        Row(block + "dt_proj.weight", _OUT + "ssm_dt.weight", "ssm_inner ssm_rank"),
        Row(block + "dt_proj.bias", _OUT + "ssm_dt.bias", "ssm_inner"),
        Row(block + "A_log", _OUT + "ssm_a", "ssm_inner ssm_state", via=negated_exp),
        Row(block + "D", _OUT + "ssm_d", "ssm_inner"),
        Row(block + "out_proj.weight", _OUT + "ssm_out.weight", "hidden ssm_inner"),
    )


@dataclass(frozen=True)
class Mamba1:
    """The sizes of the layers.

    n_hidden: weights of an embedding
    expand:   channels of a layer for each of these
    n_state:  numbers of the state for each channel
    n_kernel: tokens that the convolution mixes
    rank:     of the matrix of time steps
    """

    n_hidden: int
    expand: int
    n_state: int
    n_kernel: int
    rank: int | Literal["auto"]

    @property
    def n_inner(self) -> int:
        """Channels."""
        return self.expand * self.n_hidden

    @property
    def n_rank(self) -> int:
        """Rank of the matrix of time steps."""
        return -(-self.n_hidden // 16) if self.rank == "auto" else self.rank

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that the rows name."""
        return {
            "one": 1,
            "kernel": self.n_kernel,
            "ssm_inner": self.n_inner,
            "ssm_inputs": 2 * self.n_inner,
            "ssm_state": self.n_state,
            "ssm_rank": self.n_rank,
            "ssm_parameters": self.n_rank + 2 * self.n_state,
        }

    def keys(self, arch: str) -> Keys:
        """Return the keys."""
        keys = {
            "ssm.conv_kernel": self.n_kernel,
            "ssm.inner_size": self.n_inner,
            "ssm.state_size": self.n_state,
            "ssm.time_step_rank": self.n_rank,
        }
        return {f"{arch}.{name}": u32(value) for name, value in keys.items()}

    def problems(self, where: str, expand: str, kernel: str) -> Iterator[str]:
        """Yield a message for each size that llama.cpp's graphs cannot compute.

        expand, kernel: the names of these sizes in config.json
        """
        if self.expand != 2:
            yield f"{where}: {expand} is {self.expand}; llama.cpp computes this family with 2"
        if self.n_kernel == 1:
            yield f"{where}: {kernel} is 1; llama.cpp needs at least 2"
