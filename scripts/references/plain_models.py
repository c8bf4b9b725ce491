"""Decoders in plain torch, for models of which transformers 5.24 has no class.

Their authors publish modelling code beside the weights. These functions compute what that code
describes, but share no text with it; each family's module in reference_families names its source.
They work on one text at a time: x is float32 [tokens, hidden], heads are [heads, tokens, head].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from reference_tokenizers import write_json
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import linear, silu
from transformers.modeling_outputs import CausalLMOutput

Weights = Mapping[str, Tensor]
Config = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]

BY = "plain torch, written from the description of the published modelling code"


@dataclass(frozen=True)
class PlainModel:
    """A model with the methods of torch modules that make_references.py calls.

    logits:  the scores [tokens, vocab] of a text [tokens]
    weights: the stored tensors by name
    """

    config: Config
    logits: Callable[[Weights, Config, Tensor], Tensor]
    weights: dict[str, Tensor]

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the stored tensors."""
        yield from self.weights.items()

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Yield nothing."""
        yield from ()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the stored tensors."""
        return self.weights

    def to(self, dtype: torch.dtype) -> PlainModel:
        """Return the model with its tensors in another type."""
        weights = {name: x.to(dtype) for name, x in self.weights.items()}
        return PlainModel(self.config, self.logits, weights)

    def eval(self) -> PlainModel:
        """Return the model."""
        return self

    def __call__(self, ids: Tensor) -> CausalLMOutput:
        """Return the scores of a batch of one text."""
        return CausalLMOutput(logits=self.logits(self.weights, self.config, ids[0])[None])


@dataclass(frozen=True)
class Plain:
    """How make_references.py makes, writes and reads such a model.

    config: config.json as published
    shapes: the shape of every stored tensor
    logits: as in PlainModel
    f32:    endings of the names of tensors that are stored as F32
    """

    config: Config
    shapes: Callable[[Config], Shapes]
    logits: Callable[[Weights, Config, Tensor], Tensor]
    f32: tuple[str, ...] = ()

    def make(self) -> Any:
        """Return the model with arbitrary weights."""
        shapes = self.shapes(self.config)
        return PlainModel(self.config, self.logits, {n: torch.zeros(s) for n, s in shapes.items()})

    def save(self, model: Any, folder: Path) -> None:
        """Write config.json and the weights."""
        stored = {
            name: (x.float() if name.endswith(self.f32) else x).contiguous()
            for name, x in model.state_dict().items()
        }
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        write_json(folder / "config.json", dict(sorted(self.config.items())))

    def load(self, folder: Path) -> Any:
        """Return the model with the weights of a folder, in float32."""
        stored = load_file(folder / "model.safetensors")
        return PlainModel(self.config, self.logits, {n: x.float() for n, x in stored.items()})


# ---- parts of a decoder ------------------------------------------------------------------------


def rms_norm(x: Tensor, factors: Tensor, epsilon: float) -> Tensor:
    """Return each row divided by the root of its mean square, times the factors."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * factors


def heads(x: Tensor, n: int) -> Tensor:
    """Return [tokens, n * head] as [n, tokens, head]."""
    return x.reshape(len(x), n, -1).transpose(0, 1)


def _angles(n_tokens: int, n_rotated: int, base: float) -> Tensor:
    """Return the angle of each rotary pair, [tokens, pairs]."""
    pairs = torch.arange(0, n_rotated, 2, dtype=torch.float64)
    return torch.outer(torch.arange(n_tokens, dtype=torch.float64), base ** (-pairs / n_rotated))


def rotate_halves(
    x: Tensor, base: float, n_rotated: int | None = None, factors: Tensor | None = None
) -> Tensor:
    """Rotate the pairs (i, i + half) of the first weights of each head; the others stay.

    factors: divisors of the angles, one for each pair
    """
    n = n_rotated or x.shape[-1]
    angles = _angles(x.shape[-2], n, base)
    if factors is not None:
        angles = angles / factors
    cos, sin = angles.cos().float(), angles.sin().float()
    first, second, rest = x[..., : n // 2], x[..., n // 2 : n], x[..., n:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def rotate_pairs(x: Tensor, base: float, n_rotated: int | None = None) -> Tensor:
    """Rotate the pairs (2i, 2i + 1) of the first weights of each head; the others stay."""
    n = n_rotated or x.shape[-1]
    angles = _angles(x.shape[-2], n, base)
    cos, sin = angles.cos().float(), angles.sin().float()
    even, odd, rest = x[..., 0:n:2], x[..., 1:n:2], x[..., n:]
    both = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)
    return torch.cat([both, rest], -1)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return causal attention as [tokens, heads * head]; heads of K and V serve several of Q.

    bias: added to the scores, [heads, tokens, tokens]
    """
    k, v = (x.repeat_interleave(len(q) // len(x), 0) for x in (k, v))
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    if bias is not None:
        scores = scores + bias
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later, float("-inf")).softmax(-1)
    return (weights @ v).transpose(0, 1).flatten(1)


def gated(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Return the feed-forward product with SiLU."""
    return linear(silu(linear(x, gate)) * linear(x, up), down)


def gated_block(w: Weights, block: str, x: Tensor) -> Tensor:
    """Return `gated` with the matrices gate_proj, up_proj and down_proj of a block."""
    parts = (w[f"{block}{name}_proj.weight"] for name in ("gate", "up", "down"))
    return gated(x, *parts)


def routed(w: Weights, block: str, x: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of experts; weights [tokens, experts] are zero for those not used."""
    found = torch.zeros_like(x)
    for expert in range(weights.shape[1]):
        of_expert = gated_block(w, f"{block}experts.{expert}.", x)
        found = found + weights[:, expert, None] * of_expert
    return found


def chosen(scores: Tensor, by: Tensor, n: int) -> Tensor:
    """Return the scores of the n best experts by other scores, and zeros; [tokens, experts]."""
    best = by.topk(n, dim=-1).indices
    return torch.zeros_like(scores).scatter(1, best, scores.gather(1, best))


# ---- shapes ------------------------------------------------------------------------------------


def gated_shapes(block: str, hidden: int, ffn: int) -> Shapes:
    """Return the shapes of a block's gate_proj, up_proj and down_proj."""
    return {
        f"{block}gate_proj.weight": (ffn, hidden),
        f"{block}up_proj.weight": (ffn, hidden),
        f"{block}down_proj.weight": (hidden, ffn),
    }
