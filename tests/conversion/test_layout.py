"""The header is read correctly by gguf.GGUFReader, the oracle."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from handmade import KEYS, computed_tensor, model, recipe, small_plan

from dynquant.conversion.layout import lay_out
from dynquant.keys import boolean, i32s, string, strings
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan


def read(plan: Plan, path: Path) -> gguf.GGUFReader:
    (layout,) = lay_out(plan).files
    path.write_bytes(layout.header + bytes(layout.file_bytes - len(layout.header)))
    return gguf.GGUFReader(path)


def test_every_key_reads_back_with_its_type(tmp_path: Path) -> None:
    more = {"x.truth": boolean(False), "x.list": i32s([3, -1])}
    plan = make_plan(model(), recipe(), set_keys=more)
    reader = read(plan, tmp_path / "x")
    found = [n for n in reader.fields if not n.startswith("GGUF.")]
    assert found == list(plan.keys)
    for name, key in plan.keys.items():
        field = reader.fields[name]
        content = field.contents()
        assert (tuple(content) if isinstance(content, list) else content) == key.value
        assert field.types == [key.type] + ([key.sub_type] if key.sub_type is not None else [])


def test_an_empty_array_is_written(tmp_path: Path) -> None:
    plan = make_plan(model(), recipe(), set_keys={"x.none": strings([]), "x.list": i32s([1])})
    found = read(plan, tmp_path / "x").fields
    assert found["x.none"].parts[-1].tolist() == [0]
    assert found["x.list"].contents() == [1]


def test_bytes_that_are_not_utf8_are_written_unchanged(tmp_path: Path) -> None:
    cut = "né".encode()[:2]
    keys = {"general.name": string(cut.decode("utf-8", "surrogateescape"))}
    plan = make_plan(model(), recipe(), set_keys=keys)
    assert bytes(read(plan, tmp_path / "x").fields["general.name"].parts[-1]) == cut


def test_an_empty_string_is_written(tmp_path: Path) -> None:
    plan = make_plan(model(), recipe(), set_keys={"general.name": ""})
    assert read(plan, tmp_path / "x").fields["general.name"].contents() == ""


def test_every_tensor_reads_back_with_shape_type_and_offset(tmp_path: Path) -> None:
    plan = small_plan(more="rules: [{role: ffn_down, type: Q4_K}]")
    (layout,) = lay_out(plan).files
    found = read(plan, tmp_path / "x").tensors
    assert [t.name for t in found] == [t.name for t in plan.tensors]
    for there, planned in zip(found, plan.tensors, strict=True):
        assert tuple(reversed(there.shape.tolist())) == planned.shape
        assert there.tensor_type == planned.type.ggml_type
        assert there.data_offset == layout.position(planned)
        assert there.n_bytes == planned.n_bytes


def test_data_section_is_aligned_for_keys_of_any_length() -> None:
    for length in range(40):
        plan = make_plan(model(), recipe(), set_keys={"general.name": "n" * length})
        assert len(lay_out(plan).files[0].header) % 32 == 0


def test_the_last_tensor_is_padded() -> None:
    (layout,) = lay_out(small_plan()).files
    last = small_plan().tensors[-1]
    assert last.n_bytes % 32
    assert layout.file_bytes == layout.position(last) + (last.n_bytes + 31) // 32 * 32


def test_header_equals_that_of_the_gguf_package(tmp_path: Path) -> None:
    keys = {"general.architecture": KEYS["general.architecture"], **KEYS}
    tensors = (computed_tensor("a.weight", 3, 32), computed_tensor("b.weight", 5))
    plan = make_plan(type(model())("llama", keys, tensors, {}), recipe("F32"))
    writer = gguf.GGUFWriter(tmp_path / "theirs", "llama")
    for name, key in plan.keys.items():
        if name != "general.architecture":
            writer.add_key_value(name, key.value, key.type, key.sub_type)
    for t in tensors:
        writer.add_tensor(t.name, np.zeros(t.shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = (tmp_path / "theirs").read_bytes()
    (layout,) = lay_out(plan).files
    assert theirs == layout.header + bytes(layout.file_bytes - len(layout.header))
