"""Report in one line that a file was compared with another model, or with another source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dynquant.arch.base import Model
from dynquant.checkpoint.gguf_shards import Shards
from dynquant.conversion.manifest import Source, manifest_beside, read_manifest
from dynquant.errors import ManifestError
from dynquant.name_lists import grouped
from dynquant.verification.findings import Fault
from dynquant.verification.lints import value_of

MAX_EACH = 8
"""Number of tensors with a problem that are reported with a line each; more are one line."""

_NAMED = 3
"""Number of groups of tensors, and of source files, that such a line names."""


def another_model(shards: Shards, model: str, source: Model) -> Fault | None:
    """Return a fault if a file cannot have been made from a model: its tensors are others.

    model: the name of the source as given, for the message

    A source of the same architecture is another model if half of the file's tensors are not in it,
    or have another shape. Files of one model can differ in some: there are two layouts of latent
    attention, and a recipe can drop tensors.
    """
    shapes = {tensor.name: tensor.shape for tensor in source.tensors}
    here = {tensor.name: tensor.shape or (1,) for _, tensor in shards.tensors()}
    differ = [name for name, shape in here.items() if shapes.get(name) != shape]
    name = value_of(shards, "general.architecture")
    if 2 * len(differ) < len(here) or not differ:
        return None
    if name != source.architecture:
        why = f"its architecture is {name}, that of {model} is {source.architecture}"
    else:
        first = next((n for n in differ if n in shapes), differ[0])
        such = (
            f"{first}, of shape {list(here[first])} and in the source {list(shapes[first])}"
            if first in shapes
            else f"{first}, which is not in the source"
        )
        why = f"{len(differ)} of {len(here)} tensors differ in name or shape, such as {such}"
    return Fault(f"is another model than {model}: {why}; {origin(shards)}", shards.path)


def joined(faults: Sequence[Fault], n_tensors: int, shards: Shards, model: str) -> list[Fault]:
    """Return the faults of tensors, or one fault if they are many.

    n_tensors: number of tensors that were looked at
    """
    if len(faults) <= MAX_EACH:
        return list(faults)
    return [
        Fault(
            f"{len(faults)} of {n_tensors} tensors are not as in {model}: {_tensors(faults)};"
            f" the first is {faults[0].tensor}: {faults[0].what}",
            shards.path,
        )
    ]


def other_bytes(faults: Sequence[Fault], n_compared: int, shards: Shards, model: str) -> Fault:
    """Return one fault for many tensors whose bytes differ from those of the source.

    n_compared: number of tensors that were compared
    """
    first = f"the first is {faults[0].tensor}: {faults[0].what}"
    many = f"{len(faults)} of {n_compared} compared tensors differ"
    if 2 * len(faults) >= n_compared:
        text = f"{model} is not the source that this was made from: {many}, {first}"
        return Fault(f"{text}; {origin(shards)}", shards.path)
    return Fault(f"{many} from {model}: {_tensors(faults)}; {first}", shards.path)


def origin(shards: Shards) -> str:
    """Return what the manifest beside a file says about its source."""
    path = manifest_beside(shards.path)
    try:
        manifest = read_manifest(path) if path.exists() else None
    except ManifestError:
        manifest = None
    if manifest is None:
        return "it has no manifest that names its source"
    found = manifest.model.repository
    where = f"{found}: " if found else ""
    names = [_named(source) for source in manifest.sources[:_NAMED]]
    more = len(manifest.sources) - len(names)
    return f"its manifest names {where}{', '.join(names)}" + (f" and {more} more" if more else "")


def _named(source: Source) -> str:
    hashed = ""
    if source.sha256:
        hashed = f", sha256 {source.sha256}"
    elif source.blake3:
        hashed = f", blake3 {source.blake3}"
    return f"{source.name} ({source.bytes:,} bytes{hashed})"


def _tensors(faults: Sequence[Fault]) -> str:
    names = grouped(fault.tensor for fault in faults if fault.tensor)
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def share(compared: int, weights: int) -> str:
    """Return a share of a file's weights in percent; only all weights are 100%."""
    if compared == weights:
        return "100%"
    return f"{min(100 * compared / weights, 99.9):.3g}%"


def covered(ranges: Mapping[int, Sequence[tuple[int, int]]]) -> dict[int, int]:
    """Return the number of rows in ranges that may overlap, by tensor."""
    found: dict[int, int] = {}
    for index, pairs in ranges.items():
        end = n = 0
        for start, stop in sorted(pairs):
            n += max(0, stop - max(start, end))
            end = max(end, stop)
        found[index] = n
    return found
