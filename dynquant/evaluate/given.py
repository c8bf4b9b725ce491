"""The arguments of an evaluation, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dynquant.checkpoint.gguf_shards import NAME, open_gguf
from dynquant.checkpoint.hub import is_hub_name
from dynquant.errors import EvalError, Problems
from dynquant.evaluate.store import Store, is_store
from dynquant.json_documents import plain
from dynquant.texts import Text, read_texts
from dynquant.verification.given import whole_models


@dataclass(frozen=True)
class Given:
    """Files and texts that can be read.

    files:     path of the first file, and the name in reports, of each model
    reference: as given
    gguf:      path of the reference's first file; None for a checkpoint or a stored reference
    store:     path of a stored reference
    """

    files: tuple[tuple[Path, str], ...]
    reference: str
    gguf: Path | None
    store: Path | None
    texts: tuple[Text, ...]
    text_paths: tuple[Path, ...]


def check_names(paths: Iterable[str | Path]) -> None:
    """Raise EvalError with all paths that are not UTF-8, which neither llama.cpp nor JSON have."""
    EvalError.raise_any(
        f"{plain(str(path))}: this path is not UTF-8; rename it"
        for path in paths
        if plain(str(path)) != str(path)
    )


def check_given(files: Sequence[Path], reference: str, texts: Sequence[Path]) -> Given:
    """Read the headers of all files and the texts.

    Raises EvalError with all problems.
    """
    if not files:
        raise EvalError("no file is given; give the GGUFs to compare with the reference")
    problems = Problems()
    found: list[Path] = []
    for name in whole_models(map(str, files)):
        if shards := problems.attempt(lambda name=name: open_gguf(Path(name))):
            found.append(shards.path)
    path = Path(reference)
    gguf = store = None
    if is_store(path):
        store = path
        problems.attempt(lambda: _close(Store.open(path)))
    elif (path.suffix == ".gguf" or path.is_file()) and not is_hub_name(reference):
        shards = problems.attempt(lambda: open_gguf(path))
        gguf = shards.path if shards else None
    elif not is_hub_name(reference) and not path.exists():
        problems.add(f"--reference {reference}: does not exist; give a GGUF or a checkpoint")
    if not texts and store is None:
        problems.add("--text: is missing; give a text that the model was not trained on")
    read = problems.attempt(lambda: read_texts(texts, EvalError)) or []
    problems.raise_any(EvalError)
    return Given(
        tuple(zip(found, _names(found), strict=True)),
        reference,
        gguf,
        store,
        tuple(read),
        tuple(texts),
    )


def _close(store: Store) -> None:
    store.__exit__(None, None, None)


def _names(paths: Sequence[Path]) -> list[str]:
    """Return names for reports: of the files without the numbers of shards, unique."""
    short = [_unsharded(path).name for path in paths]
    return [
        name if short.count(name) == 1 else str(_unsharded(path))
        for name, path in zip(short, paths, strict=True)
    ]


def _unsharded(path: Path) -> Path:
    found = NAME.fullmatch(path.name)
    return path.with_name(f"{found['prefix']}.gguf") if found else path
