"""Whether a file's tensors lie where llama.cpp looks for them, and nothing after them.

ggml's reader (gguf.cpp) wants each tensor right behind the one before it in the table, padded to
the alignment. That offsets are aligned, and that tensors are whole, dim by dim and in the file, is
told when the header is read.
"""

from __future__ import annotations

from collections.abc import Iterator

from dynquant.checkpoint.gguf import GGUFFile
from dynquant.verification.findings import Fault


def padded_end(file: GGUFFile) -> int:
    """Return the size of a file whose last tensor is padded like the others."""
    end = max((t.offset + t.n_bytes for t in file.tensors), default=0)
    return file.data_offset + _padded(end, file.alignment)


def structure_faults(file: GGUFFile, size: int) -> Iterator[Fault]:
    """Say what is wrong with the places of a file's tensors; size: its bytes."""
    expected = 0
    for tensor in file.tensors:
        if tensor.offset != expected:
            yield Fault(
                f"lies at byte {tensor.offset} of the data, and llama.cpp wants it at {expected},"
                " right behind the tensor before; write the file anew",
                file.path,
                tensor.name,
                file.data_offset + tensor.offset,
            )
        expected = tensor.offset + _padded(tensor.n_bytes, file.alignment)
    end = padded_end(file)
    if size > end:
        yield Fault(
            f"{size - end} bytes after the last tensor belong to nothing; take another copy of the"
            " file",
            file.path,
            None,
            end,
        )


def structure_warnings(file: GGUFFile, size: int) -> Iterator[str]:
    """Say what is unusual and does no harm."""
    end = padded_end(file)
    # A file of keys alone, such as a vocabulary, is not padded.
    if file.tensors and size < end:
        yield (
            f"{file.path}: byte {size}: {end - size} bytes of padding behind the last tensor are"
            " missing; older writers left them out"
        )


def _padded(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment
