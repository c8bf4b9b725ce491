"""Shards are like those of llama.cpp; oracles: the gguf package's writer and llama.cpp."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from agreement import TINY_BOOKS, load_reference
from crashes import sharded_plan
from ggufs import keys_of, tensors_of
from handmade import model, names, recipe
from hypothesis import given
from hypothesis import strategies as st

import dynquant
from dynquant.conversion.write import convert_plan
from dynquant.plan.make import make_plan
from dynquant.plan.plan import padded
from dynquant.plan.shards import Split, shards_of

THREE = ("m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf")


def written_by_gguf(folder: Path, source: Path, n: int) -> None:
    """Split a file into shards of n tensors with the gguf package's writer."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=n)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            sub_type = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.slow
def test_names_keys_and_tensors_are_those_of_the_gguf_packages_writer(tmp_path: Path) -> None:
    for folder in ("ours", "theirs"):
        (tmp_path / folder).mkdir()
    convert_plan(make_plan(model(), recipe()), tmp_path / "whole.gguf")
    plan = make_plan(model(), recipe(), split=Split(max_tensors=2))
    convert_plan(plan, tmp_path / "ours" / "m.gguf")
    written_by_gguf(tmp_path / "theirs", tmp_path / "whole.gguf", 2)
    assert names(tmp_path / "ours") == names(tmp_path / "theirs") == list(THREE)
    for name in THREE:
        ours, theirs = tmp_path / "ours" / name, tmp_path / "theirs" / name
        assert tensors_of(ours) == tensors_of(theirs)
        # The gguf package writes an architecture into every shard; llama-gguf-split does not.
        wanted = {k: v for k, v in keys_of(theirs).items() if name == THREE[0] or "split." in k}
        assert dict(keys_of(ours)) == wanted


def test_result_has_the_files_and_their_hashes(tmp_path: Path) -> None:
    made = convert_plan(sharded_plan(), tmp_path / "x.gguf")
    assert [p.name for p in made.paths] == names(tmp_path)
    assert list(made.sha256) == [hashlib.sha256(p.read_bytes()).hexdigest() for p in made.paths]


@pytest.mark.slow
@given(
    sizes=st.lists(st.integers(1, 100).map(lambda n: 32 * n), min_size=1, max_size=30),
    max_bytes=st.none() | st.integers(1, 5000),
    max_tensors=st.none() | st.integers(1, 10),
)
def test_every_tensor_is_in_one_shard_within_the_limits(
    sizes: list[int], max_bytes: int | None, max_tensors: int | None
) -> None:
    found = shards_of(sizes, Split(max_bytes, max_tensors))
    assert [i for s in found for i in range(s.start, s.stop)] == list(range(len(sizes)))
    for shard, following in zip(found, (*found[1:], None), strict=True):
        held = sizes[shard.start : shard.stop]
        assert shard.n_bytes == sum(held)
        assert max_tensors is None or len(held) <= max_tensors
        assert max_bytes is None or len(held) == 1 or sum(held) <= max_bytes
        if following:  # no shard ends earlier than the limits require
            is_long = max_bytes is not None and sum(held) + sizes[following.start] > max_bytes
            assert is_long or len(held) == max_tensors


@pytest.mark.slow
@pytest.mark.oracle
def test_llama_cpp_gives_the_same_results_with_shards_and_with_one_file(tmp_path: Path) -> None:
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    reference = load_reference(TINY_BOOKS)
    whole, cut = tmp_path / "whole.gguf", tmp_path / "m.gguf"
    dynquant.convert(reference.folder, whole, recipe="q8_0")
    plan = dynquant.convert(
        reference.folder, cut, recipe="q8_0", split=Split(max_bytes=300_000)
    ).plan
    assert len(plan.shards) > 2
    assert all(padded(s.n_bytes) == s.n_bytes for s in plan.shards)
    first = min(tmp_path.glob("m-00001-of-*.gguf"))
    answers = [llamacpp.log_probabilities(p, reference.prompts[:2]) for p in (whole, first)]
    assert np.array_equal(*answers)
