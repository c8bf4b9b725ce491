"""Source files on other machines during a conversion: copied for a time, or read ahead."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from dynquant.checkpoint.remote.remote_file import RemoteFile
from dynquant.conversion.jobs import Job
from dynquant.conversion.read_ahead import ReadAhead, is_streamed
from dynquant.conversion.work import Work
from dynquant.errors import ConvertError


def sources_path(out: Path) -> Path:
    """Return the folder of the copies, beside the output."""
    return Path(f"{out}.sources")


@contextmanager
def copies_beside(work: Work, folder: Path, only: Collection[int] | None = None) -> Generator[None]:
    """Let files be copied into a folder when they are needed; see `RemoteFile.is_copied`.

    only: the numbers of these files; the others are read by ranges. None copies all

    The folder is removed at the end. After a failure it stays: the next run uses the copies again.
    """
    copied = {
        number: file.stored
        for number, file in enumerate(work.source_files)
        if isinstance(file.stored, RemoteFile) and file.is_copied
    }
    if not copied:
        yield
        return
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConvertError(
            f"{folder}: is not a folder; copies of the source are stored there, so remove it"
        )
    for number, file in copied.items():
        file.copy_into(folder if only is None or number in only else None)
    yield
    for file in copied.values():
        file.copy_into(None)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def reading_ahead(work: Work, jobs: Iterator[Job]) -> Generator[ReadAhead | None]:
    """Return an iterator of the jobs that reads ahead; None if all files are on this machine."""
    if not is_streamed(work):
        yield None
        return
    ahead = ReadAhead(jobs)
    try:
        yield ahead
    finally:
        ahead.close()
