"""Memory that holds files for the next reader, given back where a model is too large to stay.

What a conversion reads and writes stays in the system's page cache. Of a model that fits, that is
welcome: the next recipe reads it from there. Of one larger than half of the memory nothing is left
at the end but its last part, and what other programs had there is gone; so its files are forgotten
as soon as they are done with, and written blocks when they are on the disk.
"""

from __future__ import annotations

import os

from dynquant.conversion.source_hashes import SourceDigests
from dynquant.plan.plan import Plan
from dynquant.tensors import ShardFile, parts_of


def memory_bytes() -> int:
    """Return the bytes of memory that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class PageCache:
    """What a conversion has in the page cache.

    is_scarce: the sources are larger than half of the memory
    """

    def __init__(self, plan: Plan, sources: SourceDigests) -> None:
        """Find out which tensor is the last to read each file."""
        self.is_scarce = hasattr(os, "posix_fadvise") and sources.n_bytes > memory_bytes() // 2
        self._sources = sources
        self._last: dict[ShardFile, int] = {}
        if self.is_scarce:
            for i, tensor in enumerate(plan.tensors):
                source = plan.sources[tensor.name].source
                self._last |= dict.fromkeys(parts_of(source, ShardFile), i)

    def passed(self, tensor: int) -> None:
        """Forget the files that only tensors before this one read, and no hash is taken of."""
        for file in [file for file, last in self._last.items() if last < tensor]:
            if not self._sources.is_reading(file.path):
                file.forget()
                del self._last[file]
