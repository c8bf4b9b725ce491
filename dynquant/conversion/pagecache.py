"""Drops source files: copies that are kept for a time, and the page cache of large models.

The system keeps what a conversion reads and writes in its page cache. For a model that fits, that
helps: the next recipe reads it from there. A model larger than half of RAM would leave only its
last part there and push out what other programs use; so its files are dropped as soon as the
conversion has finished with them, and written blocks once they are on the disk. Copies of files on
other machines (`--keep-source none`) are deleted at the same moment, whatever their size.
"""

from __future__ import annotations

from dynquant.conversion.source_hashes import SourceDigests
from dynquant.conversion.work import Work
from dynquant.systems import system


def memory_bytes() -> int:
    """Return the bytes of RAM of this machine."""
    return system().memory_bytes()


def is_scarce(sources: SourceDigests) -> bool:
    """Whether the sources are larger than half of RAM, on a system that can drop files."""
    return system().drops_pages and sources.n_bytes > memory_bytes() // 2


class PageCache:
    """The source files that a conversion still has in the page cache, or as a copy.

    is_scarce: the sources are larger than half of RAM
    """

    def __init__(self, work: Work, sources: SourceDigests) -> None:
        self.is_scarce = is_scarce(sources)
        self._sources = sources
        self._left = [f for f in work.source_files if self.is_scarce or f.is_copied]

    def drop_before(self, tensor: int) -> None:
        """Drop the files that only tensors before this one read and that are hashed completely."""
        for file in [file for file in self._left if file.last < tensor]:
            if not self._sources.is_reading(file.path):
                for reader in file.readers:
                    reader.forget()
                self._left.remove(file)
