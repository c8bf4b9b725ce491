from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save, save_file

from dynquant.checkpoint.safetensors import INDEX, open_checkpoint
from dynquant.checkpoint.safetensors_header import read_header
from dynquant.errors import CheckpointError
from dynquant.name_lists import grouped

WEIGHTS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.weight": np.arange(8, dtype=np.float16).reshape(2, 4),
    "c.bias": np.arange(5, dtype=np.float32),
}


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def raw(header: object | str, data: bytes = b"") -> bytes:
    text = header if isinstance(header, str) else json.dumps(header)
    return struct.pack("<Q", len(text.encode())) + text.encode() + data


def single(folder: Path, content: bytes) -> Path:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(content)
    return folder


def sharded(
    folder: Path,
    shards: dict[str, dict[str, np.ndarray]],
    weight_map: dict[str, str] | None = None,
) -> Path:
    (folder / "config.json").write_text("{}")
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    if weight_map is None:
        weight_map = {t: name for name, tensors in shards.items() for t in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def refusal(folder: Path) -> tuple[str, ...]:
    with pytest.raises(CheckpointError) as e:
        open_checkpoint(folder)
    return e.value.messages


def test_rows_of_a_single_file_equal_those_that_safetensors_wrote(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(single(tmp_path, save(WEIGHTS)))
    assert set(checkpoint.tensors) == set(WEIGHTS)
    for name, expected in WEIGHTS.items():
        source = checkpoint.tensors[name].source()
        into = np.empty(expected.nbytes, np.uint8)
        source.read(0, expected.size // expected.shape[-1], into)
        assert source.shape == expected.shape
        assert into.tobytes() == expected.tobytes()


def test_shards_are_read_by_their_names_in_the_index_through_links(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    folder.mkdir()
    sharded(blobs, {"one": {"a": WEIGHTS["a.weight"]}, "two": {"b": WEIGHTS["b.weight"]}})
    (folder / "config.json").write_text('{"hidden_size": 4}')
    (folder / "m-1.safetensors").symlink_to(blobs / "one")
    (folder / "m-2.safetensors").symlink_to(Path("..") / "blobs" / "two")
    weight_map = {"a": "m-1.safetensors", "b": "m-2.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config == {"hidden_size": 4}
    assert {n: t.path.name for n, t in checkpoint.tensors.items()} == weight_map


def test_an_index_may_name_the_single_file(tmp_path: Path) -> None:
    folder = sharded(tmp_path, {"model.safetensors": WEIGHTS})
    assert set(open_checkpoint(folder).tensors) == set(WEIGHTS)


def test_other_dtypes_are_listed_but_are_not_weights(tmp_path: Path) -> None:
    header = {"w": entry("F8_E4M3", [2, 2], 0, 4), "i": entry("I64", [1], 4, 12)}
    tensors = open_checkpoint(single(tmp_path, raw(header, bytes(12)))).tensors
    assert tensors["w"].dtype == "F8_E4M3"
    with pytest.raises(CheckpointError, match=r"model.safetensors: w is stored as F8_E4M3"):
        tensors["w"].source()


def test_opening_reads_no_weights(tmp_path: Path) -> None:
    # A hole of 32 GiB: reading it would take minutes.
    n = 1 << 34
    folder = single(tmp_path, raw({"w": entry("BF16", [n // 4096, 4096], 0, 2 * n)}))
    path = folder / "model.safetensors"
    with path.open("r+b") as f:
        f.truncate(path.stat().st_size + 2 * n)
    assert open_checkpoint(folder).tensors["w"].n_bytes == 2 * n


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "truncated": (save(WEIGHTS)[:-7], r"truncated: 7 bytes of \d+ are missing"),
    "trailing bytes": (save(WEIGHTS) + b"xyz", "3 bytes at .* belong to no tensor"),
    "hole at the start": (raw({"w": entry("F32", [1], 4, 8)}, bytes(8)), "4 bytes at .* belong to"),
    "hole": (
        raw({"v": entry("F32", [1], 0, 4), "w": entry("F32", [1], 8, 12)}, bytes(12)),
        "4 bytes at .* after v belong to no tensor",
    ),
    "overlap": (
        raw({"v": entry("F32", [2], 0, 8), "w": entry("F32", [2], 4, 12)}, bytes(12)),
        "v and w overlap by 4 bytes",
    ),
    "out of range": (
        raw({"v": entry("F32", [1], 0, 4), "w": entry("F32", [9], 4, 40)}, bytes(8)),
        "truncated: 32 bytes",
    ),
    "size and shape disagree": (
        raw({"w": entry("BF16", [3, 2], 0, 8)}, bytes(8)),
        r"'w': 8 bytes at data_offsets \[0, 8\], but BF16 \[3, 2\] is 12 bytes",
    ),
    "negative size": (raw({"w": entry("F32", [-1], 0, 4)}, bytes(4)), r"'w': shape \[-1\]"),
    "fractional size": (raw({"w": {**entry("F32", [], 0, 4), "shape": [1.0]}}), r"shape \[1.0\]"),
    "reversed offsets": (raw({"w": entry("F32", [1], 4, 0)}, bytes(4)), r"data_offsets \[4, 0\]"),
    "no dtype": (raw({"w": {"shape": [], "data_offsets": [0, 0]}}), "'w': has no dtype"),
    "entry is not an object": (raw({"w": 3}), "'w': has no dtype"),
    "duplicate name": (
        raw('{"w":%s,"w":%s}' % ((json.dumps(entry("F32", [1], 0, 4)),) * 2), bytes(4)),
        "'w' appears twice",
    ),
    "control character": (raw({"a\u0000b": entry("F32", [0], 0, 0)}), "not a printable name"),
    "header is not JSON": (raw("{nonsense}"), "the header is not JSON"),
    "header is not an object": (raw("[1, 2]"), "not a JSON object"),
    "header is not UTF-8": (struct.pack("<Q", 4) + b'{"\xff"', "the header is not JSON"),
    "header nested deeply": (raw("[" * 100_000), "the header is not JSON"),
    "header cut off": (save(WEIGHTS)[:40], "ends inside its header"),
    "header length absurd": (struct.pack("<Q", 1 << 60) + b"{}", "give a header of 11529215046"),
    "empty": (b"", "is 0 bytes long"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_its_name_and_the_problem(tmp_path: Path, case: str) -> None:
    content, problem = BAD_FILES[case]
    messages = refusal(single(tmp_path, content))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*{problem}"):
        raise CheckpointError(*messages)


@pytest.mark.parametrize("case", sorted(set(BAD_FILES) - {"duplicate name", "control character"}))
def test_safetensors_refuses_the_same_files(tmp_path: Path, case: str) -> None:
    path = single(tmp_path, BAD_FILES[case][0]) / "model.safetensors"
    with pytest.raises((SafetensorError, OSError)):
        safe_open(path, "np")  # type: ignore[no-untyped-call]


@pytest.mark.slow
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.integers(0, 10**6))
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_is_refused_or_safetensors_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, cut: int
) -> None:
    content = bytearray(save({k: v[:1] for k, v in WEIGHTS.items()}))
    content[at % len(content)] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(content[: max(0, len(content) - cut % 40)] if cut % 3 == 0 else content)
    try:
        found = read_header(path)
    except CheckpointError as e:
        assert str(path) in str(e)
        return
    try:
        with safe_open(path, "np") as opened:  # type: ignore[no-untyped-call]
            shapes = {n: tuple(opened.get_slice(n).get_shape()) for n in opened.keys()}  # noqa: SIM118
    except SafetensorError as e:
        # It also checks dtypes and __metadata__, which are not checked here.
        assert "variant" in str(e) or "invalid type" in str(e) or "missing field" in str(e)
    else:
        assert shapes == {name: t.shape for name, t in found.items()}


def index(weight_map: object) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        sharded(folder, {"s1": {"a": WEIGHTS["c.bias"]}, "s2": {"b": WEIGHTS["c.bias"]}})
        text = weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map})
        (folder / INDEX).write_text(text)

    return write


def shards(**tensors: list[str]) -> Callable[[Path], object]:
    return lambda folder: sharded(
        folder,
        {shard: dict.fromkeys(names, WEIGHTS["c.bias"]) for shard, names in tensors.items()},
    )


BAD_INDEXES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (index({"a": "s1", "b": "s3"}), "s3: is missing, but model.safetensors"),
    "not in its shard": (
        index({"a": "s1", "b": "s2", "x": "s2"}),
        "s2: does not contain x, but",
    ),
    "in two shards": (shards(s1=["a", "b"], s2=["b"]), "b is in s1 and in s2"),
    "in another shard": (index({"a": "s2", "b": "s2"}), "s2: does not contain a, but"),
    "outside": (index({"a": "../s1"}), r"'\.\./s1' is not the name of a file in this folder"),
    "inside and outside": (index({"a": "x/../../s1"}), "is not the name of a file in this folder"),
    "absolute": (index({"a": "/etc/passwd"}), "'/etc/passwd' is not the name of a file"),
    "drive": (index({"a": "C:\\s1"}), "is not the name of a file in this folder"),
    "not a name": (index({"a": ["s1"]}), r"\['s1'\] is not the name of a file"),
    "empty": (index({}), "has no weight_map"),
    "not an object": (index("[]"), "not a JSON object"),
    "broken": (index('{"weight_map": {'), "not JSON"),
    "twice": (index('{"weight_map": {"a": "s1", "a": "s2"}}'), "'a' appears twice"),
}


@pytest.mark.parametrize("case", BAD_INDEXES)
def test_a_bad_index_is_refused_with_the_problem(tmp_path: Path, case: str) -> None:
    make, problem = BAD_INDEXES[case]
    make(tmp_path)
    with pytest.raises(CheckpointError, match=problem):
        open_checkpoint(tmp_path)


def test_a_stored_tensor_that_is_not_in_the_index_is_refused(tmp_path: Path) -> None:
    names = dict.fromkeys(("a", "x"), WEIGHTS["c.bias"])
    messages = refusal(sharded(tmp_path, {"s1": names}, {"a": "s1"}))
    assert messages == (f"{tmp_path / 's1'}: contains x, which {INDEX} does not list",)


def test_all_damaged_and_missing_shards_are_reported_together(tmp_path: Path) -> None:
    sharded(tmp_path, {f"s{i}": {f"t{i}": WEIGHTS["c.bias"]} for i in range(4)})
    (tmp_path / "s0").unlink()
    (tmp_path / "s2").write_bytes((tmp_path / "s2").read_bytes()[:-1])
    (tmp_path / "s3").unlink()
    (tmp_path / "s3").symlink_to("gone")
    (tmp_path / "config.json").write_text("{")
    messages = refusal(tmp_path)
    assert [m.split(": ")[0].rsplit("/", 1)[1] for m in messages] == [
        "config.json",
        "s0",
        "s2",
        "s3",
    ]
    assert "is a link to a missing file" in messages[3]


def test_a_stale_index_beside_the_single_file_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path, {"s1": {"a": WEIGHTS["c.bias"]}})
    (tmp_path / "model.safetensors").write_bytes(save(WEIGHTS))
    assert "remove the one that is out of date" in refusal(tmp_path)[0]


# ---- shards without an index ---------------------------------------------------------------------


def numbered(folder: Path, *names: str) -> Path:
    """Write shards with a tensor each, without an index."""
    sharded(folder, {name: {f"t{i}": WEIGHTS["c.bias"] + i} for i, name in enumerate(names)})
    (folder / INDEX).unlink()
    return folder


OF_3 = tuple(f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3))


@pytest.mark.parametrize(
    "names",
    [
        OF_3,
        ("model-00001-of-00001.safetensors",),
        ("model-0-of-2.safetensors", "model-1-of-2.safetensors"),
        ("model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"),
    ],
)
def test_a_set_that_is_complete_by_its_numbers_needs_no_index(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    tensors = open_checkpoint(numbered(tmp_path, *names)).tensors
    assert {n: t.path.name for n, t in tensors.items()} == {
        f"t{i}": name for i, name in enumerate(names)
    }


@pytest.mark.parametrize("broken_link", [False, True])
def test_missing_numbers_are_named(broken_link: bool, tmp_path: Path) -> None:
    numbered(tmp_path, OF_3[1])
    if broken_link:
        (tmp_path / OF_3[0]).symlink_to("gone")
    assert refusal(tmp_path) == (
        f"{tmp_path}: missing {OF_3[0]}, {OF_3[2]}, and there is no {INDEX}; download the"
        " checkpoint again",
    )


@pytest.mark.slow
def test_many_missing_numbers_are_counted(tmp_path: Path) -> None:
    (message,) = refusal(numbered(tmp_path, "model-00001-of-99999.safetensors"))
    assert "model-00009-of-99999.safetensors and 99990 more, and there is no" in message


def test_a_tensor_in_two_shards_without_an_index_is_refused(tmp_path: Path) -> None:
    numbered(tmp_path, *OF_3)
    save_file({"t0": WEIGHTS["c.bias"]}, tmp_path / OF_3[2])
    assert refusal(tmp_path) == (f"{tmp_path}: t0 is in {OF_3[0]} and in {OF_3[2]}",)


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ("model-00001-of-00004.safetensors", "has several sets of shards (model-*-of-00003."),
        ("merged-00001-of-00003.safetensors", "has several sets of shards (merged-*-of-00003."),
        ("model-00004-of-00003.safetensors", "model-00004-of-00003.safetensors: one too many"),
        ("model-00000-of-00003.safetensors", "model-00000-of-00003.safetensors: one too many"),
        ("model-3-of-00003.safetensors", "one too many for 3 shards, and there is no"),
    ],
)
def test_files_that_do_not_belong_to_the_set_are_refused(
    other: str, problem: str, tmp_path: Path
) -> None:
    (message,) = refusal(numbered(tmp_path, *OF_3, other))
    assert problem in message


def test_shards_of_other_layouts_are_not_taken_for_the_model(tmp_path: Path) -> None:
    (message,) = refusal(numbered(tmp_path, "consolidated-00001-of-00001.safetensors"))
    assert "that is Mistral's layout" in message


def test_a_damaged_shard_without_an_index_is_reported_once(tmp_path: Path) -> None:
    numbered(tmp_path, *OF_3)
    (tmp_path / OF_3[1]).write_bytes(b"damaged")
    (message,) = refusal(tmp_path)
    assert OF_3[1] in message


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("pytorch_model.bin", "convert it to safetensors first"),
        ("tiny-Q4_K.gguf", "to use it as the source, give the path of that file"),
        ("adapter_model.safetensors", "merge it into its base model"),
        ("consolidated.00.pth", "convert it to safetensors first"),
        ("weights.safetensors", "one file must be named model.safetensors"),
        ("notes.txt", "has no model.safetensors and no model.safetensors.index.json"),
    ],
)
def test_an_error_for_a_folder_without_safetensors_names_its_files(
    tmp_path: Path, name: str, advice: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"")
    (message,) = refusal(tmp_path)
    assert advice in message
    assert name in message or name == "notes.txt"


@pytest.mark.parametrize("text", ["", "[1]", '{"a": ', "\x00"])
def test_a_broken_config_is_refused(tmp_path: Path, text: str) -> None:
    single(tmp_path, save(WEIGHTS))
    (tmp_path / "config.json").write_text(text)
    assert "config.json: not" in refusal(tmp_path)[0]


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    single(tmp_path, save(WEIGHTS))
    (tmp_path / "config.json").unlink()
    assert "config.json: not found" in refusal(tmp_path)[0]


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    path = single(tmp_path, save(WEIGHTS)) / "model.safetensors"
    assert "not a folder; it is one file of a checkpoint; give the folder" in refusal(path)[0]


def test_names_that_differ_in_one_number_are_grouped() -> None:
    names = [*(f"m.{i}.w.0.x" for i in (0, 1, 2, 5, 7, 8)), "norm", "m.3.b", "m.01.c"]
    assert grouped(names) == ["m.{0-2,5,7-8}.w.0.x", "norm", "m.3.b", "m.01.c"]


def test_names_that_differ_in_two_numbers_are_grouped_by_equal_sets() -> None:
    names = [f"m.{i}.e.{j}.w" for i in range(3, 6) for j in range(4) if (i, j) != (4, 2)]
    assert grouped(names) == ["m.{3,5}.e.{0-3}.w", "m.4.e.{0-1,3}.w"]
