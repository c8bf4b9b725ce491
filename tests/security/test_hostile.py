"""Files of strangers are data: whatever they hold, a reader returns or raises a DynquantError.

tests/HOSTILE.md lists the attacks of attacks/; each is tried here, in a process that may have a
gigabyte and ten seconds. Then valid files of every kind are changed at random (targets.py); more of
that, for hours, is scripts/checks/fuzz_readers.py.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from attacks import ATTACKS, Attack, table
from confined import outcome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import TESTS
from targets import TARGETS, is_refused, write_files

from dynquant.cli import console
from dynquant.errors import CheckpointError, VocabError
from dynquant.vocab import read_vocab, sentencepiece

HOSTILE = TESTS / "HOSTILE.md"


@pytest.mark.parametrize("attack", ATTACKS, ids=[a.name for a in ATTACKS])
def test_an_attack_ends_as_the_table_says(tmp_path: Path, attack: Attack) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    attack.make(folder)
    (tmp_path / "precious").touch()
    before = {p: p.lstat().st_size for p in tmp_path.rglob("*")}
    found = outcome(lambda: TARGETS[attack.reader].read(folder))
    error, says = attack.comes
    assert found.partition(":")[0] == error, found
    assert says in found
    assert before.keys() | {folder / "m.journal"} >= set(tmp_path.rglob("*")), "nothing is made"
    assert (tmp_path / "precious").stat().st_size == before[tmp_path / "precious"]


def test_the_table_of_attacks_is_that_of_the_tests() -> None:
    """`python -m attacks`, in tests, prints it anew."""
    assert table() in HOSTILE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TARGETS)
def test_a_changed_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    target = TARGETS[name]

    @settings(
        deadline=None,
        derandomize=True,
        database=None,
        max_examples=25,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.integers(0, 2**32))
    def read(seed: int) -> None:
        folder = tmp_path_factory.mktemp("mutant")
        write_files(folder, target.mutant(Random(seed)))
        is_refused(target, folder)

    read()


def test_pieces_of_two_bytes_are_not_read_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """128 MiB of them would be 64 million objects; a million, of 2 MiB, take some seconds."""
    monkeypatch.setattr(sentencepiece, "MAX_TOKENS", 1000)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x00" * 1001)
    with pytest.raises(VocabError, match="more than 1000 pieces"):
        read_vocab(tmp_path, {})


def test_an_error_says_nothing_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    console.fail(CheckpointError("a\x1b]0;owned\x07\u202e: two\nlines \u00e9"))
    assert capsys.readouterr().err == "error: a\\x1b]0;owned\\x07\\u202e: two\nlines \u00e9\n"


@pytest.mark.parametrize("name", TARGETS)
def test_some_files_of_a_corpus_are_read(tmp_path: Path, name: str) -> None:
    """Else every change would be refused for what was wrong before it."""
    target = TARGETS[name]
    refused = 0
    for i, files in enumerate(target.corpus()[:4]):
        (tmp_path / str(i)).mkdir()
        write_files(tmp_path / str(i), files)
        refused += is_refused(target, tmp_path / str(i))
    assert refused * 2 <= len(target.corpus()[:4])
