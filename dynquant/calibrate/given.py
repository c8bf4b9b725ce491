"""What a run is given, checked before the packages that run models are imported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from dynquant.calibrate.chats import Chat, read_chats
from dynquant.calibrate.shipped import shipped_texts
from dynquant.checkpoint.gguf_shards import NAME, shard_names
from dynquant.checkpoint.hub import is_hub_name, parse_hub_name, refuse_address
from dynquant.errors import CalibrationError, Problems
from dynquant.texts import Text, given_twice, read_texts

Detail = Literal["layers", "experts"]
"""Whether the experts of a layer have second moments together, or each its own."""


def read_given(texts: Sequence[Path], chats: Sequence[Path]) -> tuple[Text | Chat, ...]:
    """Return what a model reads: texts, then conversations; the shipped texts without any.

    Raises CalibrationError with all problems of all files.
    """
    if not texts and not chats:
        return shipped_texts()
    problems = Problems()
    plain = problems.attempt(lambda: read_texts(texts, CalibrationError))
    talks = problems.attempt(lambda: read_chats(chats))
    if plain is not None and talks is not None:
        problems.add(*given_twice([*texts, *chats]))
    problems.raise_any(CalibrationError)
    return (*(plain or ()), *(talks or ()))


def check_model(model: str) -> None:
    """Raise DynquantError for a model that does not exist, or for a wrong name of the Hub.

    What the model is made of is read later.
    """
    if is_hub_name(model):
        parse_hub_name(model)
        return
    refuse_address(model)
    if not Path(model).exists():
        raise CalibrationError(f"{model}: does not exist; give a folder, a GGUF or hf://ORG/MODEL")


def default_output(model: str) -> Path:
    """Return MODEL.imatrix.gguf in the current folder.

    Raises CheckpointError for a wrong name of the Hub.
    """
    if is_hub_name(model):
        hub = parse_hub_name(model)
        name = (hub.file or hub.repo).rpartition("/")[2]
    else:
        name = Path(model).resolve().name
    shard = NAME.fullmatch(name)
    return Path(f"{shard['prefix'] if shard else name.removesuffix('.gguf')}.imatrix.gguf")


def outputs_of(out: Path, moments: Detail | None) -> list[Path]:
    """Return the files that a run writes: the imatrix, and second moments if they are wanted."""
    return [out, moments_of(out)] if moments else [out]


def moments_of(out: Path) -> Path:
    """Return the file of second moments beside an imatrix."""
    name = out.name.removesuffix(".gguf").removesuffix(".imatrix")
    return out.with_name(f"{name}.moments.safetensors")


def output_problems(
    outputs: Sequence[Path], *, force: bool, model: str, texts: Sequence[Path]
) -> Iterator[str]:
    """Yield what prevents writing outputs, which take the place of no file that is read."""
    read = {path.resolve() for path in (*texts, *_files_of(model))}
    for out in outputs:
        written = [out, part_of(out), state_of(out)]
        if found := [path for path in written if path.resolve() in read]:
            yield f"{found[0]}: is a file that this command reads; name another output"
        elif out.is_dir():
            yield f"{out}: is a folder; name a file"
        elif out.exists() and not force:
            yield f"{out}: exists; replace it with --force, or name another output"
    folder = outputs[0].absolute().parent
    if not folder.is_dir():
        yield f"{outputs[0].parent}: is not a folder; create it first, or name another output"


def part_of(out: Path) -> Path:
    """Return the file that becomes an output when it is complete."""
    return out.with_name(f"{out.name}.part")


def state_of(out: Path) -> Path:
    """Return the file that an interrupted run leaves."""
    return out.with_name(f"{out.name}.state")


def _files_of(model: str) -> Iterator[Path]:
    """Yield the files of a model; a GGUF in the folder of a checkpoint is not one."""
    path = Path(model)
    if is_hub_name(model):
        return
    if path.is_dir():
        yield from (file for file in path.iterdir() if file.suffix != ".gguf")
    yield path
    yield from (path.with_name(name) for name in shard_names(path.name))
