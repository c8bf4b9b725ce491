"""Tensors of models by name and shape, for tests that need no weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dynquant.arch.base import ModelTensor
from dynquant.arrays import U8
from dynquant.quants.table import ALL, KEPT, QuantType

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Unread:
    """A source with shape and stored type only; reading it is an error."""

    shape: tuple[int, ...]
    stored: QuantType = ALL["BF16"]

    def read(self, start: int, stop: int, into: U8) -> None:
        raise AssertionError(f"rows {start}..{stop} are read into {into.shape}")


def tensors_of(shapes: Shapes, integers: Iterable[str] = ()) -> list[ModelTensor]:
    """Return tensors of these shapes; those in `integers` are stored as I32."""
    kept = set(integers)
    return [
        ModelTensor(n, Unread(s, KEPT["I32"] if n in kept else ALL["BF16"]))
        for n, s in shapes.items()
    ]


def dense(n_layers: int, hidden: int = 256, ffn: int = 512, *, tied: bool = False) -> Shapes:
    """Return a Llama with biases of the queries."""
    shapes: Shapes = {"token_embd.weight": (512, hidden), "output_norm.weight": (hidden,)}
    if not tied:
        shapes["output.weight"] = (512, hidden)
    for i in range(n_layers):
        at = f"blk.{i}."
        shapes |= {f"{at}attn_{r}.weight": (hidden, hidden) for r in ("q", "k", "v", "output")}
        shapes[f"{at}attn_q.bias"] = (hidden,)
        shapes |= _ffn(at, "", hidden, ffn)
        shapes |= {f"{at}{norm}.weight": (hidden,) for norm in ("attn_norm", "ffn_norm")}
    return shapes


def latent_experts(
    n_layers: int, n_dense: int, *, hidden: int = 256, ffn: int = 512, nope: int = 256
) -> Shapes:
    """Return a DeepSeek: latent attention, dense layers, then routed and shared experts."""
    shapes: Shapes = {
        "token_embd.weight": (512, hidden),
        "output_norm.weight": (hidden,),
        "output.weight": (512, hidden),
    }
    for i in range(n_layers):
        at = f"blk.{i}."
        shapes |= {
            f"{at}attn_norm.weight": (hidden,),
            f"{at}attn_q_a.weight": (hidden, hidden),
            f"{at}attn_q_a_norm.weight": (hidden,),
            f"{at}attn_q_b.weight": (hidden, hidden),
            f"{at}attn_kv_a_mqa.weight": (hidden, hidden),
            f"{at}attn_kv_a_norm.weight": (hidden,),
            f"{at}attn_k_b.weight": (4, hidden, nope),
            f"{at}attn_v_b.weight": (4, hidden, hidden),
            f"{at}attn_output.weight": (hidden, hidden),
            f"{at}ffn_norm.weight": (hidden,),
        }
        if i < n_dense:
            shapes |= _ffn(at, "", hidden, ffn)
            continue
        shapes |= {f"{at}ffn_gate_inp.weight": (4, hidden), f"{at}exp_probs_b.bias": (4,)}
        shapes |= {n: (4, *s) for n, s in _ffn(at, "_exps", hidden, ffn).items()}
        shapes |= _ffn(at, "_shexp", hidden, ffn)
    return shapes


def two_parts(n_layers: int, hidden: int = 256) -> Shapes:
    """Return a T5: layers of an encoder and a decoder, which share roles."""
    shapes: Shapes = {"token_embd.weight": (512, hidden), "output.weight": (512, hidden)}
    for part in ("enc", "dec"):
        for i in range(n_layers):
            at = f"{part}.blk.{i}."
            shapes |= {f"{at}attn_{r}.weight": (hidden, hidden) for r in ("q", "k", "v", "o")}
            shapes[f"{at}attn_norm.weight"] = (hidden,)
            shapes |= _ffn(at, "", hidden, 2 * hidden)
    return shapes


def _ffn(at: str, kind: str, hidden: int, ffn: int) -> Shapes:
    return {
        f"{at}ffn_gate{kind}.weight": (ffn, hidden),
        f"{at}ffn_up{kind}.weight": (ffn, hidden),
        f"{at}ffn_down{kind}.weight": (hidden, ffn),
    }
