"""Check that tensors lie where llama.cpp expects them, with nothing after the last one.

ggml's reader (gguf.cpp) requires each tensor to follow the one before it in the table, padded to
the alignment. Reading the header already checks that offsets are aligned and that tensors end
within the file.
"""

from __future__ import annotations

from collections.abc import Iterator

from dynquant.checkpoint.gguf import GGUFFile
from dynquant.verification.findings import Fault


def padded_end(file: GGUFFile) -> int:
    """Return the size that a file has if its last tensor is padded like the others."""
    end = max((t.offset + t.n_bytes for t in file.tensors), default=0)
    return file.data_offset + _padded(end, file.alignment)


def structure_faults(file: GGUFFile, size: int) -> Iterator[Fault]:
    """Yield what is wrong with the offsets of a file's tensors; size: bytes of the file."""
    expected = 0
    for tensor in file.tensors:
        if tensor.offset != expected:
            yield Fault(
                f"starts at byte {tensor.offset} of the data, but llama.cpp expects it at"
                f" {expected}, right after the previous tensor; convert the model again",
                file.path,
                tensor.name,
                file.data_offset + tensor.offset,
            )
        expected = tensor.offset + _padded(tensor.n_bytes, file.alignment)
    end = padded_end(file)
    if size > end:
        yield Fault(
            f"{size - end} bytes after the last tensor belong to no tensor; get another copy of the"
            " file",
            file.path,
            None,
            end,
        )


def structure_warnings(file: GGUFFile, size: int) -> Iterator[str]:
    """Yield what is unusual but harmless."""
    end = padded_end(file)
    # A file without tensors, such as a vocabulary, is not padded.
    if file.tensors and size < end:
        yield (
            f"{file.path}: byte {size}: {end - size} bytes of padding after the last tensor are"
            " missing; older programs did not write them"
        )


def _padded(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment
