"""Stack the experts of GGUF files that have a tensor for each expert.

llama.cpp's converter wrote such files until April 2024 (Mixtral, Grok): `blk.3.ffn_up.7.weight` is
the matrix of expert 7. llama.cpp now reads only stacks: `blk.3.ffn_up_exps.weight`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from dynquant.arch.base import Model, ModelTensor
from dynquant.arch.gguf_files.needs import ARCHITECTURES, ONE_EXPERT
from dynquant.errors import CheckpointError
from dynquant.name_lists import grouped
from dynquant.transforms import stack

Stacks = dict[str, dict[int, ModelTensor]]
"""The tensors of each stack, by the name of the stack and the number of the expert."""


def stacked(model: Model, path: Path) -> tuple[ModelTensor, ...]:
    """Return a model's tensors with one for all experts of a layer, in the place of the first.

    path: the file, for messages

    Names of an architecture that llama.cpp does not have may mean something else; its tensors are
    returned as they are. Raises CheckpointError if experts are missing, superfluous, or of
    different types or shapes.
    """
    stacks: Stacks = {}
    for tensor in model.tensors:
        if (found := _stack_of(tensor.name)) is not None:
            stacks.setdefault(found[0], {})[found[1]] = tensor
    key = f"{model.architecture}.expert_count"
    n_experts = model.keys[key].value if key in model.keys else None
    if not stacks or model.architecture not in ARCHITECTURES:
        return model.tensors
    if type(n_experts) is not int or n_experts < 1:
        raise CheckpointError(
            f"{path}: has a tensor for each expert, and no {key} that states their number; get"
            " another copy of the file"
        )
    names = {tensor.name for tensor in model.tensors}
    CheckpointError.raise_any(f"{path}: {p}" for p in _problems(stacks, n_experts, names))
    return tuple(_replaced(model.tensors, stacks))


def _stack_of(name: str) -> tuple[str, int] | None:
    found = ONE_EXPERT.fullmatch(name)
    return (f"blk.{found[1]}.{found[2]}_exps.weight", int(found[3])) if found else None


def _problems(stacks: Stacks, count: int, names: Collection[str]) -> Iterator[str]:
    if both := [name for name in stacks if name in names]:
        yield (
            f"{', '.join(grouped(both))}: the file has it and a tensor for each expert, too;"
            " convert the original checkpoint"
        )
    every = set(range(min(count, MAX_EXPERTS)))
    absent = [_name(s, e) for s, experts in stacks.items() for e in sorted(every - {*experts})]
    beyond = [_name(s, e) for s, experts in stacks.items() for e in sorted({*experts} - every)]
    of = f"the model has {count} experts; get another copy of the file"
    for what, wrong in (("is missing", absent), ("has no place", beyond)):
        if wrong:
            yield f"{', '.join(grouped(wrong))} {what}; {of}"
    for what, differ in (
        ("types", [s for s, experts in stacks.items() if len(_types(experts)) > 1]),
        ("shapes", [s for s, experts in stacks.items() if len(_shapes(experts)) > 1]),
    ):
        if differ:
            yield (
                f"{', '.join(grouped(_name(s, e) for s in differ for e in stacks[s]))}: the experts"
                f" of a layer have different {what}, and one tensor for all of them cannot;"
                " convert the original checkpoint"
            )


MAX_EXPERTS = 512
"""LLAMA_MAX_EXPERTS of llama.cpp."""


def _types(experts: dict[int, ModelTensor]) -> set[str]:
    return {tensor.source.stored.name for tensor in experts.values()}


def _shapes(experts: dict[int, ModelTensor]) -> set[tuple[int, ...]]:
    return {tensor.shape for tensor in experts.values()}


def _name(stack_name: str, expert: int) -> str:
    return stack_name.replace("_exps.weight", f".{expert}.weight")


def _replaced(tensors: Iterable[ModelTensor], stacks: Stacks) -> Iterator[ModelTensor]:
    done: set[str] = set()
    for tensor in tensors:
        found = _stack_of(tensor.name)
        if found is None:
            yield tensor
        elif found[0] not in done:
            done.add(found[0])
            parts = [part for _, part in sorted(stacks[found[0]].items())]
            stored = tuple(name for part in parts for name in part.stored_names)
            source = stack([part.source for part in parts])
            yield ModelTensor(found[0], source, stored_names=stored)
