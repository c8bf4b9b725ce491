"""The layout of an output: each file's header, its size, and the position of every tensor."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from gguf import GGUFValueType, GGUFWriter
from gguf.gguf_writer import WriterState

from dynquant.keys import Keys, KeyValue, packed, packed_text
from dynquant.plan.plan import Plan, TensorPlan, padded


@dataclass(frozen=True)
class FileLayout:
    """The layout of one output file.

    header:     all bytes before the data section, padded to the alignment
    tensors:    in the order of the data section
    file_bytes: size of the whole file; the last tensor is padded like the others, as ggml expects
    """

    header: bytes = field(repr=False)
    tensors: tuple[TensorPlan, ...] = field(repr=False)
    file_bytes: int

    def position(self, tensor: TensorPlan) -> int:
        """Return the file offset of a tensor's first byte."""
        return len(self.header) + tensor.offset

    def between(self) -> Iterator[tuple[int, bytes]]:
        """Yield position and content of the bytes outside of tensors: header and padding."""
        yield 0, self.header
        for tensor in self.tensors:
            if n := padded(tensor.n_bytes) - tensor.n_bytes:
                yield self.position(tensor) + tensor.n_bytes, bytes(n)


@dataclass(frozen=True)
class Layout:
    """The files of an output, one or several."""

    files: tuple[FileLayout, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.file_bytes for file in self.files)

    def paths(self, out: Path) -> tuple[Path, ...]:
        """Return the paths of the files: `out`, or shards named as llama.cpp names them."""
        return shard_paths(out, len(self.files))


def shard_paths(out: Path, n: int) -> tuple[Path, ...]:
    """Return the paths of the n files of an output: `out`, or shards as llama.cpp names them."""
    if n == 1:
        return (out,)
    stem = out.name.removesuffix(".gguf")
    return tuple(out.with_name(f"{stem}-{i:05}-of-{n:05}.gguf") for i in range(1, n + 1))


def lay_out(plan: Plan) -> Layout:
    """Return the layout of a plan's files.

    The first shard holds the model's keys; every shard holds keys with its number.
    """
    n = len(plan.shards)
    files: list[FileLayout] = []
    for number, shard in enumerate(plan.shards):
        keys = plan.keys if number == 0 else {}
        if n > 1:
            keys = keys | _split_keys(number, n, len(plan.tensors))
        tensors = plan.tensors[shard.start : shard.stop]
        header = _header(plan.architecture, keys, tensors)
        files.append(FileLayout(header, tensors, len(header) + shard.n_bytes))
    return Layout(tuple(files))


def _split_keys(number: int, count: int, n_tensors: int) -> Keys:
    """Return the keys of a shard, in the types of llama-gguf-split."""
    return {
        "split.no": KeyValue(number, GGUFValueType.UINT16),
        "split.count": KeyValue(count, GGUFValueType.UINT16),
        "split.tensors.count": KeyValue(n_tensors, GGUFValueType.INT32),
    }


def _header(architecture: str, keys: Keys, tensors: Sequence[TensorPlan]) -> bytes:
    """Return magic, keys and tensor table; the `gguf` package packs them."""
    writer = GGUFWriter(None, architecture)
    # The writer adds an architecture key; the plan's keys are complete.
    writer.kv_data[0].clear()
    for name, key in keys.items():  # only to be counted
        writer.add_key_value(name, key.value, key.type, key.sub_type)
    for t in tensors:
        writer.add_tensor_info(
            t.name, t.shape, np.dtype(np.float32), t.n_bytes, raw_dtype=cast(Any, t.type.ggml_type)
        )
    file = io.BytesIO()
    # The writer opens files by name only; a stream in this field stands for an opened file.
    writer.fout = [cast(Any, file)]
    writer.state = WriterState.EMPTY
    writer.write_header_to_file()
    # The writer supports neither empty arrays nor strings that are not UTF-8.
    file.write(b"".join(packed_text(name) + packed(key) for name, key in keys.items()))
    writer.state = WriterState.KV_DATA
    writer.write_ti_data_to_file()
    header = file.getvalue()
    return header + bytes(padded(len(header)) - len(header))
