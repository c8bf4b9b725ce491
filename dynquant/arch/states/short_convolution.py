"""Layers with a short convolution beside layers with attention (LFM2): rows, dimensions and keys.

A convolution mixes each channel of the last few tokens. llama.cpp recognises its layers by their
having no heads of keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dynquant.arch.base import Row
from dynquant.arch.config import Count, LayersCount, Natural
from dynquant.keys import Keys, i32s, u32
from dynquant.transforms import depthwise_kernels

_IN, _OUT = "model.layers.{}.conv.", "blk.{}.shortconv."
CONVOLUTION = (
    Row(_IN + "in_proj.weight", _OUT + "in_proj.weight", "hidden_thrice hidden"),
    Row(_IN + "conv.weight", _OUT + "conv.weight", "hidden one kernel"),
    Row(_IN + "out_proj.weight", _OUT + "out_proj.weight", "hidden hidden"),
)
VIA = {"shortconv.conv": depthwise_kernels}
"""Transforms of the rows, by role."""

LAYER_TYPES = ("full_attention", "conv")
"""Kinds of layers in `layer_types`."""


@dataclass(frozen=True)
class Convolutions:
    """Which layers have a convolution, with the names of config.json and transformers' defaults."""

    num_hidden_layers: LayersCount
    conv_L_cache: Count = 3  # noqa: N815 (a name in config.json)
    layer_types: tuple[str, ...] | None = None
    full_attn_idxs: tuple[Natural, ...] | None = None

    @property
    def has_attention(self) -> list[bool]:
        """Which layers have attention: by `layer_types`, else by their numbers, else all."""
        if self.layer_types is not None:
            return [kind != "conv" for kind in self.layer_types]
        all_ = self.full_attn_idxs is None
        return [all_ or n in (self.full_attn_idxs or ()) for n in range(self.num_hidden_layers)]

    def layers(self, *, attention: bool) -> list[int]:
        """Return the layers of one kind."""
        return [n for n, attends in enumerate(self.has_attention) if attends == attention]

    def keys(self, arch: str, n_head_kv: int) -> Keys:
        """Return the keys.

        n_head_kv: heads of keys and values in layers with attention
        """
        return {
            f"{arch}.attention.head_count_kv": i32s([n_head_kv * a for a in self.has_attention]),
            f"{arch}.shortconv.l_cache": u32(self.conv_L_cache),
        }

    def sizes(self, n_hidden: int) -> dict[str, int]:
        """Return the dimensions that the rows name."""
        return {"hidden_thrice": 3 * n_hidden, "one": 1, "kernel": self.conv_L_cache}

    def problems(self, where: str) -> Iterator[str]:
        """Yield a message for each setting that llama.cpp's graph cannot compute."""
        if self.conv_L_cache == 1:
            yield f"{where}: conv_L_cache is 1; llama.cpp needs at least 2"
        if len({*self.has_attention}) == 1:
            kind = "attention" if self.has_attention[0] else "a convolution"
            yield (
                f"{where}: all layers have {kind}, by layer_types or full_attn_idxs; llama.cpp's"
                " graph of this family aborts unless there are layers of both kinds"
            )
