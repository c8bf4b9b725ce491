"""A GGUF file's bytes before its tensors: magic, keys and tensor table; and the file's size."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from gguf import GGUFWriter
from gguf.gguf_writer import WriterState

from dynquant.keys import packed, packed_text
from dynquant.plan.plan import Plan, TensorPlan, padded


@dataclass(frozen=True)
class Layout:
    """Where everything of one output file lies.

    header:     all bytes before the data section, padded to the alignment
    file_bytes: size of the whole file; the last tensor is padded like the others, as ggml expects
    """

    header: bytes = field(repr=False)
    file_bytes: int

    def position(self, tensor: TensorPlan) -> int:
        """Return the file offset of a tensor's first byte."""
        return len(self.header) + tensor.offset


def lay_out(plan: Plan) -> Layout:
    """Return the layout of a plan's file. The `gguf` package packs the header and the table."""
    writer = GGUFWriter(None, plan.architecture)
    # The writer begins with an architecture key of its own; the plan's keys are complete.
    writer.kv_data[0].clear()
    for name, key in plan.keys.items():  # only to be counted
        writer.add_key_value(name, key.value, key.type, key.sub_type)
    for t in plan.tensors:
        writer.add_tensor_info(
            t.name, t.shape, np.dtype(np.float32), t.n_bytes, raw_dtype=cast(Any, t.type.ggml_type)
        )
    file = io.BytesIO()
    # The writer opens files by name only; with a stream in place it believes that it did so.
    writer.fout = [cast(Any, file)]
    writer.state = WriterState.EMPTY
    writer.write_header_to_file()
    # The writer has no empty arrays, nor strings whose bytes are not UTF-8; a GGUF may bring both.
    file.write(b"".join(packed_text(name) + packed(key) for name, key in plan.keys.items()))
    writer.state = WriterState.KV_DATA
    writer.write_ti_data_to_file()
    header = file.getvalue()
    header += bytes(padded(len(header)) - len(header))
    return Layout(header, len(header) + plan.data_bytes)
