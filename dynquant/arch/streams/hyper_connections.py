"""Hyper-connections: several residual streams, mixed before and after each block.

Small matrices compute from the streams how they are joined for a block, how its result is spread
over them, and how they mix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dynquant.arch.base import Form, Row
from dynquant.arch.config import Count, Positive
from dynquant.keys import Keys, f32, u32

_IN, _OUT = "model.layers.{}.hc_", "blk.{}.hc_"
HYPER = tuple(
    Row(f"{_IN}{block}_{part}", f"{_OUT}{block}_{part}.weight", shape)
    for block in ("attn", "ffn")
    for part, shape in (("fn", "mixes streams"), ("base", "mixes"), ("scale", "three"))
)
"""The rows of a layer, before its attention and before its feed-forward block."""


@dataclass(frozen=True)
class Hyper:
    """The settings, with the names of config.json and the defaults of transformers."""

    hc_mult: Count = 4
    hc_sinkhorn_iters: Count = 20
    hc_eps: Positive = 1e-6

    def sizes(self, n_hidden: int) -> dict[str, int]:
        """Return the dimensions that the rows name."""
        n = self.hc_mult
        return {"mixes": (2 + n) * n, "streams": n * n_hidden, "three": 3, "hc": n, "one": 1}

    def keys(self, arch: str) -> Keys:
        """Return the keys."""
        return {
            f"{arch}.hyper_connection.count": u32(self.hc_mult),
            f"{arch}.hyper_connection.sinkhorn_iterations": u32(self.hc_sinkhorn_iters),
            f"{arch}.hyper_connection.epsilon": f32(self.hc_eps),
        }

    def problems(self, where: str) -> Iterator[str]:
        """Yield a message for a number of streams that llama.cpp does not compute."""
        if self.hc_mult != 4:
            yield f"{where}: hc_mult is {self.hc_mult}; llama.cpp computes 4 streams"


HYPER_HEAD = tuple(
    Row(
        f"model.hc_head_{part}",
        f"output_hc_{part}.weight",
        shape,
        forms=(Form(f"model.hc_head.hc_{part}", shape),),
    )
    for part, shape in (("fn", "hc streams"), ("base", "hc"), ("scale", "one"))
)
"""The rows that join the streams before the last norm, where these are stored (DeepSeek-V4)."""
