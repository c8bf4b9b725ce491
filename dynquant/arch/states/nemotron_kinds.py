"""The kinds of layers of a Nemotron-H: a letter for each layer, or a list of names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from dynquant.arch.config import MAX_LAYERS
from dynquant.errors import ArchitectureError
from dynquant.untrusted import shown

MAMBA, ATTENTION, EXPERTS, MLP = "mamba", "attention", "moe", "mlp"
_KINDS = {
    **dict.fromkeys(("M", "mamba", "linear_attention"), MAMBA),
    **dict.fromkeys(("*", "attention", "full_attention"), ATTENTION),
    **dict.fromkeys(("E", "moe"), EXPERTS),
    **dict.fromkeys(("-", "mlp"), MLP),
}
PLACES = ("layers_block_type", "hybrid_override_pattern")
"""The settings that state the kinds: a list of names, and a string of letters."""


def layer_kinds(config: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Return the kind of each layer.

    Raises ArchitectureError if no setting states them, if two disagree, or if one is not known.
    """
    stated = {place: config[place] for place in PLACES if config.get(place) is not None}
    if not stated:
        raise ArchitectureError(f"{where}: {PLACES[0]} is missing")
    for place, value in stated.items():
        if not isinstance(value, list | tuple | str):
            raise ArchitectureError(f"{where}: {place} is {shown(value)}; it must be a list")
        if not 0 < len(cast("Sequence[object]", value)) <= MAX_LAYERS:
            raise ArchitectureError(
                f"{where}: {place} has {len(cast('Sequence[object]', value))} entries; llama.cpp"
                f" computes 1 to {MAX_LAYERS} layers"
            )
    lists = {place: [*cast("Sequence[object]", value)] for place, value in stated.items()}
    ArchitectureError.raise_any(
        f"{where}: {place} has {shown(unknown[0])}; llama.cpp computes this family with"
        f" {', '.join(n for n in _KINDS if (len(n) == 1) == isinstance(stated[place], str))}"
        for place, found in lists.items()
        if (unknown := [kind for kind in found if not isinstance(kind, str) or kind not in _KINDS])
    )
    kinds = [tuple(_KINDS[str(kind)] for kind in found) for found in lists.values()]
    if len({*kinds}) > 1:
        raise ArchitectureError(f"{where}: {' and '.join(stated)} disagree; remove one of them")
    n = config.get("num_hidden_layers")
    if n is not None and n != len(kinds[0]):
        raise ArchitectureError(
            f"{where}: {next(iter(stated))} has {len(kinds[0])} entries for num_hidden_layers"
            f" {shown(n)}; take both from one model"
        )
    return kinds[0]


def kind_problems(kinds: Sequence[str], where: str) -> Iterator[str]:
    """Yield a message if llama.cpp cannot compute a model with these kinds of layers."""
    if EXPERTS in kinds and MLP in kinds:
        yield (
            f"{where}: some layers have experts and others a plain MLP; llama.cpp computes only"
            " models with one of both"
        )
    for kind, name in ((MAMBA, "state space"), (ATTENTION, "attention")):
        if kind not in kinds:
            yield f"{where}: no layer has {name}; llama.cpp needs layers with it in this family"
