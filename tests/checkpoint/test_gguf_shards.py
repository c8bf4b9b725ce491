"""Any shard of a GGUF gives the whole model, and all shards must fit together."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from ggufs import add, write
from handmade import weights

import dynquant
from dynquant.arch.load import load_model
from dynquant.checkpoint.gguf_shards import first_file
from dynquant.errors import CheckpointError, ConvertError
from dynquant.release.finished import open_finished


def made(source: Path, out: Path, *, force: bool = False) -> Path:
    dynquant.convert(source, out, recipe="q8_0", threads=2, force=force)
    return out


def with_layers(writer: GGUFWriter) -> None:
    writer.add_string("general.name", "Sharded")
    for i in range(7):
        add(writer, f"blk.{i}.ffn_down.weight", weights(3, 64, seed=i))
    writer.add_string("llama.last", "key")


@pytest.fixture(scope="module")
def stored_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write(folder / "m.gguf", with_layers, split_max_tensors=2, small_first_shard=True)
    return folder


@pytest.fixture
def shards(stored_shards: Path, tmp_path: Path) -> list[Path]:
    folder = shutil.copytree(stored_shards, tmp_path / "shards")
    found = sorted(folder.iterdir())
    assert [p.name for p in found] == [f"m-{i:05}-of-00005.gguf" for i in range(1, 6)]
    return found


def with_key(path: Path, key: str, value: int) -> None:
    """Change a u16 or i32 key in place."""
    content = bytearray(path.read_bytes())
    at = content.index(key.encode()) + len(key)
    size = 2 if content[at] == GGUFValueType.UINT16 else 4
    content[at + 4 : at + 4 + size] = value.to_bytes(size, "little")
    path.write_bytes(content)


def problems_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as e:
        load_model(path)
    return str(e.value)


@pytest.mark.slow
def test_any_shard_gives_the_file_that_the_whole_gives(shards: list[Path], tmp_path: Path) -> None:
    whole = made(write(tmp_path / "w.gguf", with_layers), tmp_path / "whole.gguf").read_bytes()
    for shard in shards:
        assert made(shard, tmp_path / f"from-{shard.name}").read_bytes() == whole


def test_all_missing_shards_are_listed(shards: list[Path]) -> None:
    shards[1].unlink()
    shards[3].unlink()
    assert problems_of(shards[0]) == (
        f"{shards[0]}: is one of 5 shards, and 2 are missing in its folder (m-00002-of-00005.gguf,"
        " m-00004-of-00005.gguf); download them again"
    )


def test_a_shard_whose_name_does_not_give_the_others_is_refused(shards: list[Path]) -> None:
    renamed = shards[2].rename(shards[2].with_name("m.gguf"))
    assert "its keys say that it is one of 5 shards, but its name does not" in problems_of(renamed)


def test_exchanged_shards_are_refused(shards: list[Path]) -> None:
    other = shards[1].with_name("x")
    shards[1].rename(other)
    shards[2].rename(shards[1])
    other.rename(shards[2])
    assert problems_of(shards[0]).splitlines() == [
        f"{shards[1]}: is shard 3 of 5 by its keys, but shard 2 of 5 by its name",
        f"{shards[2]}: is shard 2 of 5 by its keys, but shard 3 of 5 by its name",
    ]


def test_a_tensor_in_two_shards_and_a_wrong_count_are_refused(
    shards: list[Path],
) -> None:
    shutil.copy(shards[1], shards[2])
    with_key(shards[2], "split.no", 2)
    message = problems_of(shards[0])
    assert (
        "blk.{0-1}.ffn_down.weight is in m-00002-of-00005.gguf and in m-00003-of-00005.gguf"
        in message
    )
    with_key(shards[0], "split.tensors.count", 9)
    assert "the keys state 9 tensors in all shards, but there are 7" in problems_of(shards[0])


def test_a_shard_of_another_model_is_refused(shards: list[Path]) -> None:
    content = shards[0].read_bytes()
    shards[0].write_bytes(content.replace(b"general.architecture", b"general.architectur_"))
    assert "has no general.architecture; not a model" in problems_of(shards[0])


def test_shards_that_contradict_each_other_are_refused(shards: list[Path]) -> None:
    def fill(writer: GGUFWriter) -> None:
        writer.add_uint16("split.no", 1)
        writer.add_uint16("split.count", 5)
        writer.add_string("general.name", "Another")
        add(writer, "blk.0.ffn_down.weight", weights(3, 64))
        add(writer, "blk.1.ffn_down.weight", weights(3, 64))

    write(shards[1], fill)
    assert problems_of(shards[0]) == (
        f"{shards[1]}: general.name differs from {shards[0].name}; the shards are of two models"
    )


def test_a_damaged_shard_is_reported_with_its_name(shards: list[Path]) -> None:
    shards[2].write_bytes(shards[2].read_bytes()[:-64])
    shards[4].write_bytes(b"GGML" + shards[4].read_bytes()[4:])
    truncated, magic = problems_of(shards[0]).splitlines()
    assert truncated.startswith(f"{shards[2]}: byte ")
    assert "truncated" in truncated
    assert magic == f"{shards[4]}: byte 0: b'GGML' is not GGUF's magic"


def test_a_shard_without_tensors_is_not_overwritten_either(shards: list[Path]) -> None:
    assert GGUFReader(shards[0]).tensors == []
    for shard in shards:
        before = shard.read_bytes()
        with pytest.raises(ConvertError, match="a file of the model itself"):
            made(shards[0], shard, force=True)
        assert shard.read_bytes() == before


def test_the_name_of_a_model_in_shards_gives_the_first(shards: list[Path]) -> None:
    assert first_file(shards[0].with_name("m.gguf")) == shards[0]
    assert first_file(shards[1]) == shards[1]
    assert first_file(other := shards[0].with_name("[m].gguf")) == other


def test_a_name_of_several_sets_of_shards_is_refused_by_each_reader(shards: list[Path]) -> None:
    shutil.copy(shards[0], shards[0].with_name("m-00001-of-00002.gguf"))
    name = shards[0].with_name("m.gguf")
    expected = r"several sets of shards have this name: m-00001-of-00002\.gguf, m-00001-of-00005"
    with pytest.raises(CheckpointError, match=expected):
        open_finished(name)
    (fault,) = dynquant.verify(name).faults
    assert "several sets of shards" in fault.what
