"""Names of an adapter's modules beside those of a checkpoint and of the tensor tables.

An adapter names modules as the class of the model does, a checkpoint as it was saved, and a table
as llama.cpp's converter does. They differ in the words before the layers: `model.layers.0`,
`language_model.model.layers.0`, `model.language_model.layers.0`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from dynquant.arch.base import Architecture

_TRUNK = frozenset(
    {
        *("model", "language_model", "text_model", "transformer", "gpt_neox", "backbone"),
        *("base_model", "thinker", "llm", "decoder"),
    }
)
"""Words before the names of a language model's parts; those of other parts are not here."""


def core(name: str) -> str:
    """Return a name without the words before the layers, the embedding or the head."""
    words = name.split(".")
    n = next((i for i, word in enumerate(words) if word not in _TRUNK), len(words) - 1)
    return ".".join(words[n:])


class Names:
    """Names of weights by their cores, so that an adapter's modules find theirs."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_core: dict[str, list[str]] = {}
        for name in names:
            self._by_core.setdefault(core(name), []).append(name)

    def of_module(self, path: str) -> str | None:
        """Return the name of a module's weight; None if there is none, or more than one."""
        found = self._by_core.get(core(f"{path}.weight"), [])
        exact = [name for name in found if name == f"{path}.weight"]
        return (exact or found)[0] if len(exact or found) == 1 else None


class TableNames:
    """Names of weights in the words of a family's table, without knowing its checkpoint."""

    def __init__(self, architecture: Architecture) -> None:
        self._before: dict[str, str] = {}
        for stored in _templates(architecture):
            own = core(stored)
            self._before.setdefault(own.partition(".")[0], stored.removesuffix(own))

    def of_module(self, path: str) -> str | None:
        """Return the name of a module's weight as the table would write it; None if unlike all."""
        own = core(f"{path}.weight")
        before = self._before.get(own.partition(".")[0])
        return None if before is None else before + own


def _templates(architecture: Architecture) -> Collection[str]:
    return [
        stored
        for row in architecture.rows
        for stored in (row.stored, *(form.stored for form in row.forms))
    ]
