"""Merged imatrix files have the sums and counts of all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from imatrices import legacy_bytes, legacy_entry
from inprocess import run

from dynquant.arrays import F32
from dynquant.errors import ImportanceError
from dynquant.importance.imatrix import read_imatrix, write_imatrix
from dynquant.importance.merge import merge_imatrices
from dynquant.keys import string, strings

UP, EXPERTS = "blk.0.ffn_up.weight", "blk.0.ffn_up_exps.weight"


def sums(*shape: int, seed: int) -> F32:
    return np.random.default_rng(seed).chisquare(1, shape).astype(np.float32)


def written(
    path: Path, seed: int, *, names: tuple[str, ...] = (UP, EXPERTS), size: int = 4
) -> Path:
    entries = {
        UP: (sums(1, size, seed=seed), [seed]),
        EXPERTS: (sums(3, 8, seed=seed), [seed, 0, 5]),
    }
    write_imatrix(
        path,
        {name: entries[name] for name in names},
        datasets=[f"{path.stem}.txt"],
        chunk_count=seed,
        chunk_size=512,
        linear={name: -entries[name][0] for name in names if seed < 9},
    )
    return path


def values(path: Path, name: str) -> F32:
    entry = read_imatrix(path).entries[name]
    return entry.sums(0, entry.n_values).reshape(entry.n_rows, -1)


def refused(*paths: Path, out: Path) -> tuple[str, ...]:
    with pytest.raises(ImportanceError) as e:
        merge_imatrices(paths, out)
    assert not out.exists()
    return e.value.messages


def test_sums_and_counts_are_added(tmp_path: Path) -> None:
    a, b, out = written(tmp_path / "a", 2), written(tmp_path / "b", 3), tmp_path / "out"
    assert merge_imatrices([a, b], out) == ()
    found = read_imatrix(out)
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("a.txt", "b.txt"), 5, 512)
    assert found.entries[UP].counts == (5,)
    assert found.entries[EXPERTS].counts == (5, 0, 10)
    for name in (UP, EXPERTS):
        expected = values(a, name).astype(np.float64) + values(b, name)
        assert values(out, name).tolist() == expected.astype(np.float32).tolist()
        linear = found.entries[name].linear_sums(0, expected.size)
        assert linear is not None
        assert linear.tolist() == (-expected.reshape(-1)).astype(np.float32).tolist()


def test_one_file_is_not_added_twice(tmp_path: Path) -> None:
    a, again = written(tmp_path / "a", 2), written(tmp_path / "a", 2)
    copy = tmp_path / "copy"
    copy.write_bytes(a.read_bytes())
    assert refused(a, copy, again, out=tmp_path / "out") == (
        f"{copy}: is the same file as {a}; its text would count twice",
        f"{again}: is the same file as {a}; its text would count twice",
    )


def test_what_dynquant_recorded_is_kept(tmp_path: Path) -> None:
    entries = {UP: (sums(1, 4, seed=1), [7])}
    paths = [tmp_path / "a", tmp_path / "b"]
    for path, device in zip(paths, ("cpu", "cuda"), strict=True):
        keys = {
            "dynquant.imatrix.model": string("m"),
            "dynquant.imatrix.device": string(device),
            "dynquant.imatrix.text_sha256": strings([f"{path.stem}{i}" for i in range(2)]),
        }
        write_imatrix(path, entries, datasets=[], chunk_count=1, chunk_size=512, more_keys=keys)
    merge_imatrices(paths, tmp_path / "out")
    made = dict(read_imatrix(tmp_path / "out").made)
    assert made.pop("dynquant.version")
    assert made == {
        "dynquant.imatrix.model": "m",
        "dynquant.imatrix.text_sha256": "a0, a1, b0, b1",
    }


def test_a_tensor_that_one_file_does_not_have_is_a_warning(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a", 2), written(tmp_path / "b", 3, names=(UP,))
    assert merge_imatrices([a, b], tmp_path / "out") == (f"{b}: has no data of {EXPERTS}",)
    assert values(tmp_path / "out", EXPERTS).tolist() == values(a, EXPERTS).tolist()


def test_signed_sums_are_kept_only_if_all_files_have_them(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a", 2), written(tmp_path / "b", 9)
    merge_imatrices([a, b], tmp_path / "out")
    assert read_imatrix(tmp_path / "out").entries[UP].linear is None


def test_files_of_other_models_and_of_the_older_format_are_all_named(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a", 2), written(tmp_path / "b", 3, size=8)
    legacy = tmp_path / "c.dat"
    legacy.write_bytes(
        legacy_bytes(legacy_entry(UP.encode(), 2, [1.0] * 4), n_chunks=1, dataset=b"")
    )
    old, other = refused(a, b, legacy, out=tmp_path / "out")
    assert old.startswith(f"{legacy}: is of llama.cpp's older format")
    assert other == f"{b}: is of another model than {a}: other sizes of {UP}"


def test_the_command_writes_and_replaces_nothing_it_reads(tmp_path: Path) -> None:
    a, b, out = written(tmp_path / "a", 2), written(tmp_path / "b", 3), tmp_path / "out.gguf"
    assert run("imatrix", "merge", a, b, "-o", out).code == 0
    before = a.read_bytes()
    done = run("imatrix", "merge", a, b, "-o", a, "--force")
    assert (done.code, a.read_bytes()) == (1, before)
    assert done.err == f"error: {a}: is a file that this command reads; name another output\n"
    assert run("imatrix", "merge", a, "-o", tmp_path / "one.gguf").code == 1


def test_files_that_name_no_texts_are_merged(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        entry = {UP: (sums(1, 4, seed=seed), [3])}
        write_imatrix(tmp_path / name, entry, datasets=[], chunk_count=1, chunk_size=512)
    merge_imatrices([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert read_imatrix(tmp_path / "out").datasets == ()
