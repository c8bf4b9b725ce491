"""What a family declares about GGUFs of its architecture: whose tensor table, and what differs.

A family's tensor table says what a checkpoint has. llama.cpp's graph may not require all of it, may
accept one matrix in place of several, or may require tensors that are computed. These differences
are in `GRAPHS` of the family's page, by the name of the architecture. Source: src/models/ in
llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.keys import Keys, Scalar

Fused = tuple[frozenset[str], frozenset[str]]
"""Names of matrices that a file may hold separately, and of the one that holds them all."""

_IN_ONE = frozenset({"attn_qkv.weight"})
QKV: Fused = (frozenset({"attn_q.weight", "attn_k.weight", "attn_v.weight"}), _IN_ONE)
QK: Fused = (frozenset({"attn_q.weight", "attn_k.weight"}), _IN_ONE)
GATE_UP: Fused = (
    frozenset({"ffn_gate_exps.weight", "ffn_up_exps.weight"}),
    frozenset({"ffn_gate_up_exps.weight"}),
)

SMALL = 64
"""The size of rows in the small model that has the layers of a file, see required.py."""


@dataclass(frozen=True)
class FileKeys:
    """The keys of a GGUF under the name of its architecture.

    n_layers: layers of the model, without those that predict further ahead
    """

    name: str
    keys: Keys
    n_layers: int

    def value(self, key: str) -> Scalar | tuple[Scalar, ...] | None:
        """Return the value of a key; None if the file does not have it."""
        name = f"{self.name}.{key}"
        return self.keys[name].value if name in self.keys else None

    def number(self, key: str) -> int | None:
        """Return the value of a key that is an integer, else None."""
        found = self.value(key)
        return found if type(found) is int else None

    def of_layers(self, key: str) -> list[object]:
        """Return a value for each layer: an array's, or one for all; zero beyond an array's end."""
        found = self.value(key)
        values = found if isinstance(found, tuple) else (found or 0,) * self.n_layers
        return [*values[: self.n_layers], *[0] * (self.n_layers - len(values))]

    def kinds(self, key: str, no: str, yes: str) -> list[str] | None:
        """Return the kind of each layer, by an array of truths or numbers; None without one."""
        found = self.value(key)
        if not isinstance(found, tuple):
            return None
        return [yes if value else no for value in found[: self.n_layers]]

    @property
    def n_dense(self) -> int:
        """Layers without experts, which are the first."""
        return self.number("leading_dense_block_count") or 0

    @property
    def n_vocab(self) -> int | None:
        """Tokens: as the key states, else those of the tokenizer; None if there are neither."""
        tokens = self.keys.get("tokenizer.ggml.tokens")
        values = tokens.value if tokens else None
        n_tokens = len(values) if isinstance(values, tuple) else None
        return self.number("vocab_size") or n_tokens


@dataclass(frozen=True)
class GGUFGraph:
    """How the graph of an architecture differs from a family's tensor table.

    of:         the class of config.json whose table it is
    settings:   settings that the class needs besides the common small ones
    layers:     returns, from the keys of a file, settings that decide which tensors it needs
    class_of:   returns the class of a file's model, if it is not always `of`
    optional:   tensors of the table, without `blk.N.`, that the graph does not require
    qkv_bias:   whether the graph requires the bias of a fused matrix of Q, K and V
    fused:      matrices that may be separate or one
    either:     sets of tensors of which each layer has one, where no key states which
    computed:   tensors outside the layers that no checkpoint has and the graph requires
    in_layers:  tensors of each layer that no checkpoint has and the graph requires
    longrope:   whether a file that scales its rope by LongRoPE needs both sets of factors
    """

    of: str
    settings: Mapping[str, Any] | None = None
    layers: Callable[[FileKeys], Mapping[str, Any]] | None = None
    class_of: Callable[[FileKeys], str] | None = None
    optional: frozenset[str] = frozenset()
    qkv_bias: bool = False
    fused: tuple[Fused, ...] = (QKV,)
    either: tuple[frozenset[str], ...] = ()
    computed: frozenset[str] = frozenset()
    in_layers: frozenset[str] = frozenset()
    longrope: bool = False
