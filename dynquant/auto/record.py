"""What `dynquant auto` did: its commands, and the files that they read and wrote.

A stage is done if the record has its command, with the same files as input, and the files that it
wrote are as they were. Where its inputs changed, what it wrote may be replaced; but not what
somebody changed since, what other options of it wrote, and what it did not write.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import xxhash

from dynquant.auto.stages import MODEL, Stage
from dynquant.checkpoint.source_file import hash_of_settings, source_facts
from dynquant.distribution import our_version
from dynquant.errors import ConvertError
from dynquant.json_documents import Part, read_document, write_document

_WHOLE = 256 << 20
"""Files of more bytes are known by their time of modification and their first bytes."""

_HEAD = 1 << 20

_SETTINGS = (".json", ".jinja", ".model", ".txt", ".tiktoken")
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


class Record(Part):
    """The record of a model."""

    auto: Literal[1]
    """Version of this form."""
    stages: dict[str, DonePart]
    """By the path of the first output, from the folder of the record."""


def read_record(path: Path) -> Record:
    """Read a record, an empty one if there is none; raise ConvertError if it is damaged."""
    if not path.exists():
        return Record(auto=1, stages={})
    try:
        return read_document(path, Record, "auto", 1, ConvertError)
    except ConvertError as e:
        raise ConvertError(f"{e.messages[0]}; or remove it, and name other outputs") from e


Reason = Literal["edited", "other", "unknown"]
"""Why a file is in the way: it was changed since its stage wrote it, its stage had other options,
or no stage is recorded to have written it."""


@dataclass(frozen=True)
class State:
    """Where a stage stands.

    is_done: nothing is to be done
    is_ours: what is in the place of its outputs was left by the same command, and may be replaced
    is_stale: it was done by the same command, with other inputs
    resumes: an interrupted run of the same command, with the same inputs, left what it had
    in_way:  what is in the place of its outputs and may not be replaced
    """

    is_done: bool = False
    is_ours: bool = False
    is_stale: bool = False
    resumes: bool = False
    in_way: Mapping[Path, Reason] = field(default_factory=dict[Path, Reason])


class Journal:
    """The record of a model while stages are carried out."""

    def __init__(self, path: Path, model: str, model_fact: str) -> None:
        """Read the record; model_fact: what differs for another model or other weights."""
        self._path, self._model, self._fact = path, model, model_fact
        self._record = read_record(path)

    def states(self, stages: Iterable[Stage]) -> dict[str, State]:
        """Return the states by the names of stages; a stage after one that is not done is not."""
        found: dict[str, State] = {}
        stale: set[Path] = set()
        for stage in stages:
            state = self.state(stage)
            if not stale.isdisjoint(stage.reads):
                state = replace(state, is_done=False, resumes=False)
            if not state.is_done:
                stale.update(stage.writes)
            found[stage.name] = state
        return found

    def state(self, stage: Stage) -> State:
        """Return the state of a stage, with the files that are there now."""
        there = [path for path in stage.writes if path.exists()]
        known, begun = self._record.stages.get(self._key(stage)), self._begun(stage)
        if known is None:
            return _state(stage, dict.fromkeys(there, "unknown"))
        if (known.dynquant, known.command) != (begun.dynquant, begun.command):
            is_kept = stage.name == "report" and known.writes == _facts(there)
            return _state(stage, {} if is_kept else dict.fromkeys(there, "other"))
        now, is_same = _facts(there), known.reads == begun.reads
        is_whole = len(there) == len(stage.writes)
        if known.writes:
            edited = [p for p in there if now[p.name] != known.writes.get(p.name)]
            is_done = is_whole and is_same and not edited
            found = _state(stage, dict.fromkeys(edited, "edited"), is_done=is_done)
            return replace(found, is_stale=not is_same)
        # The command was interrupted: a file is its own if others are missing yet.
        others = (
            there if is_whole else [p for p in there if now[p.name] == known.before.get(p.name)]
        )
        return _state(stage, dict.fromkeys(others, "unknown"), resumes=is_same)

    def begin(self, stage: Stage) -> None:
        """Record that a stage begins."""
        self._put(stage, self._begun(stage))

    def finish(self, stage: Stage) -> None:
        """Record that a stage is done."""
        self._put(stage, self._begun(stage).model_copy(update={"writes": _facts(stage.writes)}))

    def _key(self, stage: Stage) -> str:
        return os.path.relpath(stage.writes[0], self._path.parent)

    def _begun(self, stage: Stage) -> DonePart:
        paths = {str(p): Path(p).name for p in (*stage.reads, *stage.writes) if p != MODEL}
        names = {**paths, self._model: MODEL}
        return DonePart(
            dynquant=our_version(),
            command=[names.get(word, word) for word in stage.arguments],
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
        stages = {**read_record(self._path).stages, self._key(stage): part}
        self._record = Record(auto=1, stages=stages)
        write_document(self._record, self._path, ConvertError)


def _state(
    stage: Stage, in_way: dict[Path, Reason], *, is_done: bool = False, resumes: bool = False
) -> State:
    if stage.completes:
        in_way = {}
    return State(is_done, not in_way, resumes=resumes, in_way=in_way)


def model_fact(files: Iterable[Path]) -> str:
    """Return what is known of a model's weights and of the small files beside them.

    Raises CheckpointError if a file cannot be read.
    """
    files = sorted(files)
    known: list[object] = []
    for path in files:
        facts = source_facts(path)
        known.append([path.name, facts.n_bytes, facts.header_sha256, *facts.version.values()])
    for folder in dict.fromkeys(path.parent for path in files):
        settings = [p for p in sorted(folder.glob("*")) if p.suffix in _SETTINGS and p.is_file()]
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
