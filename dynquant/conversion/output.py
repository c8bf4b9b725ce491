"""The output files while they are written: `.part` at final size, renamed when all are complete."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from dynquant.checkpoint.gguf_shards import NAME
from dynquant.conversion.disk import (
    allocated_bytes,
    free_bytes,
    full,
    lock,
    os_errors_as,
    read_at,
    remove_part,
    reserve,
    sync_file,
    sync_folder,
    write_at,
    write_whole,
)
from dynquant.conversion.journal import journal_path
from dynquant.conversion.layout import Layout
from dynquant.conversion.manifest import manifest_beside, manifest_path
from dynquant.conversion.work import Work
from dynquant.errors import ConvertError
from dynquant.plan.plan import Plan
from dynquant.systems import system


def part_path(out: Path) -> Path:
    """Return the name of an output file while it is incomplete."""
    return Path(f"{out}.part")


def places_of(work: Work, out: Path) -> set[Path]:
    """Return all names that writing an output uses, also while it is incomplete."""
    final = [*work.layout.paths(out), manifest_path(out), out]
    return {p.absolute() for p in (*final, *map(part_path, final), journal_path(out))}


def check_output(plan: Plan, out: Path, work: Work, *, force: bool) -> None:
    """Raise ConvertError, with all reasons, if a plan's files cannot be written as `out`."""
    if out.name in ("", ".."):
        raise ConvertError(f"'{out}': is not the name of a file; name the file to write")
    problems: list[str] = []
    folder = out.parent
    layout = work.layout
    paths = layout.paths(out)
    reads = files_read(plan, work)
    if not folder.is_dir():
        problems.append(f"{folder}: is not a folder; create it first, or name another output")
    elif not os.access(folder, os.W_OK | os.X_OK):
        problems.append(f"{folder}: is not writable; name an output in another folder")
    else:
        # A .part of an earlier run is resumed or replaced, so its blocks count as free.
        free = free_bytes(folder) + sum(allocated_bytes(part_path(p)) for p in paths)
        if free < layout.n_bytes:
            problems.append(full(out, layout.n_bytes, free))
    for path in (*paths, manifest_path(out)):
        if why := system().refusal_of(path.name):
            problems.append(f"{path}: {why}; name another output")
        elif path.is_dir():
            problems.append(f"{path}: is a folder; name the file to write")
        elif what := reads.get(inode_of(path)):
            problems.append(f"{path}: is {what}; name another output")
        elif os.path.lexists(path):
            if not path.is_file():
                problems.append(f"{path}: is not a regular file; name another output")
            elif not force:
                problems.append(f"{path}: exists; replace it with --force, or name another output")
        if what := reads.get(inode_of(part_path(path))):
            problems.append(f"{part_path(path)}: is {what}; name another output")
    problems += _other_forms(out, paths)
    ConvertError.raise_any(problems)


def _other_forms(out: Path, paths: Sequence[Path]) -> Iterator[str]:
    """Yield a problem for each complete output of the same name that is cut into other files.

    Both would have one manifest.
    """
    shards = out.parent.glob(f"{glob.escape(out.stem)}-00001-of-?????.gguf")
    for path in (out, *shards):
        is_output = path == out or NAME.fullmatch(path.name)
        if is_output and path not in paths and path.is_file():
            yield (
                f"{path}: is an output of the same name, cut into other files, with the same"
                " manifest; remove it, or name another output"
            )


class PartFiles:
    """The `.part` files of an output, of final size; ranges are written and read in any order."""

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int]) -> None:
        self.paths = tuple(paths)
        self.sizes = tuple(sizes)
        self.parts = tuple(map(part_path, paths))
        self._fds: list[int] = []
        self._named: set[int] = set()

    def are_there(self, *, named: bool) -> bool:
        """Whether an earlier run left all of them at their final sizes.

        named: some may have their final names already
        """
        for part, path, size in zip(self.parts, self.paths, self.sizes, strict=True):
            there = path if named and not part.exists() else part
            if not there.is_file() or there.stat().st_size != size:
                return False
        return True

    def open(self) -> None:
        """Open the files of an earlier run; those with their final names only to read."""
        for number, (part, path) in enumerate(zip(self.parts, self.paths, strict=True)):
            with os_errors_as(part, "cannot be opened"):
                if part.exists():
                    self._fds.append(system().open(part, "change", follow=False))
                    lock(self._fds[-1], part)
                else:
                    self._named.add(number)
                    self._fds.append(system().open(path, "read", follow=False))

    def have_between(self, layout: Layout) -> bool:
        """Whether headers and padding, which no row covers, are as they were written."""
        return all(
            self._holds(number, position, wanted)
            for number, file in enumerate(layout.files)
            for position, wanted in file.between()
        )

    def _holds(self, file: int, position: int, wanted: bytes) -> bool:
        found = bytearray(len(wanted))
        self.read(file, memoryview(found), position)
        return bytes(found) == wanted

    def make(self) -> None:
        """Create the files, all zero; on a full disk none is left behind."""
        try:
            for part, size in zip(self.parts, self.sizes, strict=True):
                with os_errors_as(part, "cannot be created", size):
                    remove_part(part)
                    self._fds.append(system().open(part, "make new", follow=False))
                    lock(self._fds[-1], part)
                    reserve(self._fds[-1], size)
        except ConvertError:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove the files that were created; they hold nothing yet."""
        created = self.parts[: len(self._fds)]
        if not system().renames_open:
            self.close()
        for part in created:
            part.unlink(missing_ok=True)

    def write(self, file: int, blocks: memoryview | bytes, position: int) -> None:
        """Write all of `blocks` at a position; callable from several threads at once."""
        if file in self._named:
            raise ConvertError(
                f"{self.paths[file]}: changed since the interrupted run wrote it; start over"
                " (--restart --force), or name another output"
            )
        write_at(self._fds[file], self.parts[file], blocks, position, self.sizes[file])

    def read(self, file: int, into: memoryview, position: int) -> None:
        """Fill `into` with the bytes at a position."""
        read_at(self._fds[file], self.parts[file], into, position)

    def sync(self) -> None:
        """Sync all files to the disk."""
        for fd, part, size in zip(self._fds, self.parts, self.sizes, strict=True):
            with os_errors_as(part, "cannot be finished", size):
                sync_file(fd)

    def forget(self) -> None:
        """Drop the files' synced pages from the page cache."""
        for fd in self._fds:
            system().forget(fd)

    def finish(self, manifest: Path, text: str | None) -> None:
        """Give the files their final names, the first one last: until then no runtime loads any.

        An old file with the first one's name is removed before the others are renamed, so that old
        and new files never look like one model. The manifest is renamed before the first file, so
        that an output that looks complete has its own manifest.

        text: the manifest; None writes none and removes an old one

        Steps that an interrupted run has done already are kept, and the others are done.
        """
        if not system().renames_open:
            self.close()
        folder = manifest.parent
        (part, path), *others = zip(self.parts, self.paths, strict=True)
        if text is not None:
            write_whole(part_path(manifest), text)
        with os_errors_as(part, "cannot be finished"):
            # The folder is synced after each step: a power loss might otherwise keep a later step
            # and lose an earlier one.
            if others and part.exists():
                path.unlink(missing_ok=True)
                sync_folder(folder)
            for other, its_path in others:
                if other.exists():
                    other.replace(its_path)
            if text is None:
                part_path(manifest).unlink(missing_ok=True)
                manifest.unlink(missing_ok=True)
            else:
                part_path(manifest).replace(manifest)
            sync_folder(folder)
            if part.exists():
                part.replace(path)
            sync_folder(folder)

    def close(self) -> None:
        """Close the files; unfinished ones stay as `.part`."""
        self._named.clear()
        while self._fds:
            os.close(self._fds.pop())


def files_read(plan: Plan, work: Work) -> dict[tuple[int, int] | None, str]:
    """Return the files that the conversion reads, by device and inode, so that links count."""
    weights = [file.path for file in work.source_files]
    reads = dict.fromkeys((*plan.files, *weights), "a file of the model itself")
    for path in dict.fromkeys((*plan.files, *weights)):
        if path.suffix == ".gguf":
            reads[manifest_beside(path)] = "the manifest of the model"
    for folder in {path.parent for path in weights if path.suffix != ".gguf"}:
        # Configuration and tokenizer; files of an earlier output in this folder may be replaced.
        others = [path for path in folder.iterdir() if ".gguf" not in path.name]
        reads |= dict.fromkeys(others, "a file of the model itself")
    reads |= dict.fromkeys(map(Path, {plan.recipe.path, *plan.recipe.places}), "the recipe")
    if plan.imatrix:
        reads[plan.imatrix.path] = "the imatrix"
    if plan.moments:
        reads[plan.moments.path] = "the file of second moments"
    found = {inode_of(path): what for path, what in reads.items()}
    found.pop(None, None)
    return found


def inode_of(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a regular file; None for anything else."""
    try:
        there = path.stat()
    except OSError:
        return None
    return (there.st_dev, there.st_ino) if stat.S_ISREG(there.st_mode) else None
