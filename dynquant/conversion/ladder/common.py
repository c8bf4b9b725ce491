"""What the outputs of a ladder have in common: the order of tensors, source files, encodings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

from dynquant.conversion.jobs import Cut
from dynquant.conversion.work import SourceFile, TensorWork, Work
from dynquant.errors import ConvertError
from dynquant.tensors import ShardFile


@dataclass(frozen=True, eq=False)
class Common:
    """The works of a ladder as one.

    works: of the outputs
    whole: all tensors of all works, each once, with other numbers, and all source files
    cuts:  where tensors are cut, so that all outputs have the same ranges; by output and tensor
    kinds: equal numbers for outputs in which a tensor has the same blocks; by output and tensor
    """

    works: tuple[Work, ...]
    whole: Work
    cuts: tuple[Mapping[int, Cut], ...]
    kinds: tuple[Mapping[int, int], ...]

    def number(self, work: int, tensor: int) -> int:
        """Return the number in `whole` of a tensor of an output."""
        return self._numbers[self.works[work].tensors[tensor].name]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {t.name: t.number for t in self.whole.tensors}


def common_of(works: Sequence[Work], names: Sequence[str]) -> Common:
    """Return what works have in common.

    names: of the outputs, for messages

    Raises ConvertError if they have their tensors in different orders.
    """
    order = _order(works, names)
    versions: dict[str, list[tuple[int, TensorWork]]] = {name: [] for name in order}
    for number, work in enumerate(works):
        for tensor in work.tensors:
            versions[tensor.name].append((number, tensor))
    cuts: list[dict[int, Cut]] = [{} for _ in works]
    kinds: list[dict[int, int]] = [{} for _ in works]
    for found in versions.values():
        cut = Cut.of(*(tensor for _, tensor in found))
        seen: list[TensorWork] = []
        for number, tensor in found:
            cuts[number][tensor.number] = cut
            kind = next((k for k, t in enumerate(seen) if _is_same(t, tensor)), len(seen))
            if kind == len(seen):
                seen.append(tensor)
            kinds[number][tensor.number] = kind
    whole = _whole(works, list(versions.values()))
    return Common(tuple(works), whole, tuple(cuts), tuple(kinds))


def _order(works: Sequence[Work], names: Sequence[str]) -> list[str]:
    """Return the names of all tensors in an order that agrees with each work's.

    Raises ConvertError if there is none.
    """
    graph: TopologicalSorter[str] = TopologicalSorter()
    for work in works:
        for tensor in work.tensors:
            graph.add(tensor.name)
        for one, following in pairwise(work.tensors):
            graph.add(following.name, one.name)
    try:
        return [*graph.static_order()]
    except CycleError as e:
        raise ConvertError(
            f"{', '.join(names)}: have their tensors in different orders (output: tensor_order),"
            " so that one pass cannot write them; write them by separate commands"
        ) from e


def _is_same(one: TensorWork, other: TensorWork) -> bool:
    """Whether two outputs have the same blocks of a tensor, and the encoder does no more than them.

    Error feedback and checks of grids keep figures for each output, so they are not shared.
    """
    if one.fed is not None or other.fed is not None or one.on_grid or other.on_grid:
        return False
    return (
        one.source is other.source
        and one.type == other.type
        and one.search == other.search
        and one.importance == other.importance
    )


def _whole(works: Sequence[Work], versions: Sequence[Sequence[tuple[int, TensorWork]]]) -> Work:
    """Return all tensors with all source files; its layout is the first work's."""
    numbers: dict[Path, int] = {}
    readers: list[dict[ShardFile, None]] = []
    last: list[int] = []
    tensors: list[TensorWork] = []
    for place, found in enumerate(versions):
        files: dict[int, None] = {}
        for work, tensor in found:
            for source in (works[work].source_files[n] for n in tensor.source_files):
                number = numbers.setdefault(source.path, len(numbers))
                if number == len(readers):
                    readers.append({})
                    last.append(place)
                readers[number].update(dict.fromkeys(source.readers))
                last[number] = place
                files[number] = None
        tensors.append(replace(found[0][1], number=place, source_files=tuple(files)))
    sources = (SourceFile(tuple(r), n) for r, n in zip(readers, last, strict=True))
    return Work(works[0].layout, tuple(tensors), tuple(sources), ())
