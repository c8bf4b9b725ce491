"""What `dynquant auto` did: its commands, and the files that they read and wrote.

A stage is done if the record has its command, with the same files as input, and the files that it
wrote are as they were.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import xxhash

from dynquant.arch.base import Model
from dynquant.auto.stages import MODEL, Stage
from dynquant.checkpoint.source_file import hash_of_settings, source_facts
from dynquant.distribution import our_version
from dynquant.errors import ConvertError
from dynquant.json_documents import Part, document_text, read_document

_WHOLE = 256 << 20
"""Files of more bytes are known by their time of modification and their first bytes."""

_HEAD = 1 << 20

_SETTINGS = (".json", ".jinja", ".model")
"""Of the other files of a checkpoint: settings, templates and tokenizers."""


class DonePart(Part):
    """A command that was begun, or is done."""

    dynquant: str
    """Version of dynquant."""
    command: list[str]
    """Its words, with the names of files without their folders."""
    reads: dict[str, str]
    """What it reads: names, and facts that differ for other contents."""
    before: dict[str, str]
    """Files that were in the place of its outputs when it began."""
    writes: dict[str, str]
    """Its outputs; empty until it is done."""

    def is_of(self, other: DonePart) -> bool:
        """Whether both are the same command with the same inputs."""
        return (self.dynquant, self.command, self.reads) == (
            other.dynquant,
            other.command,
            other.reads,
        )


class Record(Part):
    """The record of a model."""

    auto: Literal[1]
    """Version of this form."""
    stages: dict[str, DonePart]
    """By the name of the first output."""


def read_record(path: Path) -> Record:
    """Read a record, an empty one if there is none; raise ConvertError if it is damaged."""
    if not path.exists():
        return Record(auto=1, stages={})
    return read_document(path, Record, "auto", 1, ConvertError)


def write_record(record: Record, path: Path) -> None:
    """Write a record, completely or not at all; raise ConvertError if it cannot be written."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(document_text(record), "utf-8")
        part.replace(path)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise ConvertError(f"{path}: cannot be written: {e.strerror}") from e


@dataclass(frozen=True)
class State:
    """Where a stage stands.

    is_done: nothing is to be done
    is_ours: what is in the place of its outputs is of an interrupted run of the same command
    in_way:  files in the place of its outputs that are not
    """

    is_done: bool = False
    is_ours: bool = False
    in_way: tuple[Path, ...] = ()


class Journal:
    """The record of a model while stages are carried out."""

    def __init__(self, path: Path, model: str, model_fact: str) -> None:
        self._path, self._model, self._fact = path, model, model_fact
        self._record = read_record(path)

    def states(self, stages: Iterable[Stage]) -> dict[str, State]:
        """Return the states by the names of stages; a stage after one that is not done is not."""
        found: dict[str, State] = {}
        stale: set[Path] = set()
        for stage in stages:
            state = self._state(stage, is_stale=not stale.isdisjoint(stage.reads))
            if not state.is_done:
                stale.update(stage.writes)
            found[stage.name] = state
        return found

    def _state(self, stage: Stage, *, is_stale: bool) -> State:
        there = tuple(path for path in stage.writes if path.exists())
        known = self._record.stages.get(stage.writes[0].name)
        if known is None or is_stale or not known.is_of(self._begun(stage)):
            return State(in_way=() if stage.completes else there)
        now = _facts(there)
        if known.writes:
            changed = tuple(p for p in there if now[p.name] != known.writes.get(p.name))
            is_done = not changed and len(there) == len(stage.writes)
            return State(is_done, is_ours=not changed, in_way=() if stage.completes else changed)
        old = tuple(p for p in there if now[p.name] == known.before.get(p.name))
        is_done = not old and len(there) == len(stage.writes) and not stage.completes
        return State(is_done, is_ours=not old, in_way=() if stage.completes else old)

    def begin(self, stage: Stage) -> None:
        """Record that a stage begins."""
        self._put(stage, self._begun(stage))

    def finish(self, stage: Stage) -> None:
        """Record that a stage is done."""
        self._put(stage, self._begun(stage).model_copy(update={"writes": _facts(stage.writes)}))

    def _begun(self, stage: Stage) -> DonePart:
        paths = {str(p) for p in (*stage.reads, *stage.writes) if p != MODEL}
        paths.add(self._model)
        return DonePart(
            dynquant=our_version(),
            command=[Path(word).name if word in paths else word for word in stage.arguments],
            reads=self._reads(stage),
            before=_facts(path for path in stage.writes if path.exists()),
            writes={},
        )

    def _reads(self, stage: Stage) -> dict[str, str]:
        found = {MODEL: self._fact}
        for number, path in enumerate(p for p in stage.reads if p != MODEL):
            found[f"{number} {Path(path).name}"] = _fact(Path(path))
        return found

    def _put(self, stage: Stage, part: DonePart) -> None:
        stages: Mapping[str, DonePart] = read_record(self._path).stages
        stages = {**stages, stage.writes[0].name: part}
        self._record = Record(auto=1, stages=stages)
        write_record(self._record, self._path)


def model_fact(model: Model, given: str) -> str:
    """Return what is known of a model's files: sizes, headers, times, and its settings.

    Raises CheckpointError if a file cannot be read.
    """
    known: list[object] = []
    for path in model.files:
        facts = source_facts(path)
        known.append([path.name, facts.n_bytes, facts.header_sha256, facts.modified])
    folder = Path(given)
    settings = [p for p in sorted(folder.glob("*")) if p.suffix in _SETTINGS]
    known += [[path.name, hash_of_settings(path)] for path in settings]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _facts(paths: Iterable[Path]) -> dict[str, str]:
    return {path.name: _fact(path) for path in paths}


def _fact(path: Path) -> str:
    """Return the hash of a file; of a large one, of its first bytes, size and time."""
    try:
        stat = path.stat()
        digest = xxhash.xxh3_128()
        is_whole = stat.st_size <= _WHOLE
        with path.open("rb") as file:
            digest.update(file.read(_WHOLE if is_whole else _HEAD))
    except OSError:
        return "none"
    more = "" if is_whole else f", {stat.st_mtime_ns}"
    return f"{stat.st_size} bytes, {digest.hexdigest()}{more}"
