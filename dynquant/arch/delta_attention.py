"""Gated delta attention in Ling 3's form (Kimi's, with whole matrices for its gates).

Three short convolutions mix Q, K and V of the last few tokens; a state decays by a gate
for each channel, between one and the exponential of a bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynquant.arch.base import Row
from dynquant.keys import Keys, boolean, f32, u32
from dynquant.tensors import TensorSource
from dynquant.transforms import Elementwise, Reshaped

_LAYER, _OUT = "model.layers.{}.", "blk.{}."
_ATTENTION = _LAYER + "attention."


def _conv_kernel(source: TensorSource) -> TensorSource:
    """Return a kernel with the four dimensions that llama.cpp's converter gives it."""
    return Reshaped(source, (1, *source.shape))


def _decay(source: TensorSource) -> TensorSource:
    """Return the exponentials of a vector, one in each row."""
    # In float64, so that every machine rounds to the same float32.
    column = Reshaped(source, (*source.shape, 1))
    return Elementwise(column, lambda x: np.exp(x.astype(np.float64)).astype(np.float32))


DELTA_ROWS = (
    Row(_LAYER + "input_layernorm.weight", _OUT + "attn_norm.weight", "hidden"),
    *(
        Row(f"{_ATTENTION}{p}_proj.weight", f"{_OUT}attn_{p}.weight", "linear hidden")
        for p in "qkv"
    ),
    *(
        Row(
            f"{_ATTENTION}{p}_conv1d.weight",
            f"{_OUT}ssm_conv1d_{p}.weight",
            "linear one kernel",
            via=_conv_kernel,
        )
        for p in "qkv"
    ),
    Row(_ATTENTION + "f_proj.weight", _OUT + "ssm_f_a.weight", "linear hidden"),
    Row(_ATTENTION + "b_proj.weight", _OUT + "ssm_beta.weight", "heads hidden"),
    Row(_ATTENTION + "A_log", _OUT + "ssm_a", "heads", via=_decay),
    Row(_ATTENTION + "dt_bias", _OUT + "ssm_dt.bias", "linear"),
    Row(_ATTENTION + "g_proj.weight", _OUT + "ssm_g_a.weight", "linear hidden"),
    Row(_ATTENTION + "o_norm.weight", _OUT + "ssm_norm.weight", "linear_head"),
    Row(_ATTENTION + "dense.weight", _OUT + "attn_output.weight", "hidden linear"),
    Row(_LAYER + "post_attention_layernorm.weight", _OUT + "ffn_norm.weight", "hidden"),
)
"""The rows of a layer's attention and its norms; a kernel stays in F32."""


@dataclass(frozen=True)
class Delta:
    """The dimensions, and the bound of the gates, which is below zero."""

    n_head: int
    head: int
    kernel: int
    bound: float

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that the rows name, besides `hidden`."""
        return {
            "linear": self.n_head * self.head,
            "linear_head": self.head,
            "heads": self.n_head,
            "one": 1,
            "kernel": self.kernel,
        }

    def keys(self, arch: str) -> Keys:
        """Return the keys."""
        return {
            f"{arch}.ssm.conv_kernel": u32(self.kernel),
            f"{arch}.kda.head_dim": u32(self.head),
            f"{arch}.kda.safe_gate": boolean(True),
            f"{arch}.kda.gate_lower_bound": f32(self.bound),
        }
