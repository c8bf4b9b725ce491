"""Untrusted input is data: for any content, a reader returns or raises a DynquantError.

docs/explanation/security.md lists the attacks of tests/support/attacks. Each is tried in a process
with limits of a gigabyte and ten seconds. Then valid files of every kind are changed at random
(targets.py); scripts/checks/fuzz_readers.py does the same for hours.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from attacks import ATTACKS, Attack, table
from confined import outcome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import ROOT
from subsets import slow_except
from targets import TARGETS, is_refused, write_files

from dynquant.cli import console
from dynquant.errors import CheckpointError, VocabError
from dynquant.vocab import read_vocab, sentencepiece

PAGE = ROOT / "docs" / "explanation" / "security.md"


# Attacks with large inputs, which take long to write.
LARGE = (
    "a chain of a thousand recipes",
    "a hundred thousand tokens twice",
    "a million layer types",
    "a shape whose product takes hours",
    "a token of sixty thousand bytes",
    "arrays that grow 16 times in memory",
    "random types",
    "strings in a hole of a terabyte",
    "thousands of shards that are one file",
    "tokens with very many splits",
)


@pytest.mark.parametrize(
    "attack",
    slow_except([a for a in ATTACKS if a.name not in LARGE][::4], ATTACKS),
    ids=[a.name for a in ATTACKS],
)
def test_an_attack_has_the_outcome_of_the_table(tmp_path: Path, attack: Attack) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    attack.make(folder)
    (tmp_path / "precious").touch()
    before = {p: p.lstat().st_size for p in tmp_path.rglob("*")}
    found = outcome(lambda: TARGETS[attack.reader].read(folder))
    error, message = attack.outcome
    assert found.partition(":")[0] == error, found
    assert message in found
    assert before.keys() | {folder / "m.journal"} >= set(tmp_path.rglob("*")), "no file is made"
    assert (tmp_path / "precious").stat().st_size == before[tmp_path / "precious"]


def test_the_page_contains_the_table_of_attacks() -> None:
    """`python -m attacks`, run in tests/support, prints the table."""
    assert table() in PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
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


def test_the_number_of_pieces_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """128 MiB of pieces of two bytes would be 64 million objects."""
    monkeypatch.setattr(sentencepiece, "MAX_TOKENS", 1000)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x00" * 1001)
    with pytest.raises(VocabError, match="more than 1000 pieces"):
        read_vocab(tmp_path, {})


def test_an_error_message_contains_no_terminal_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    console.fail(CheckpointError("a\x1b]0;owned\x07\u202e: two\nlines \u00e9"))
    assert capsys.readouterr().err == "error: a\\x1b]0;owned\\x07\\u202e: two\nlines \u00e9\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_some_files_of_a_corpus_are_read(tmp_path: Path, name: str) -> None:
    """Otherwise, changes would be refused for problems of the files before the change."""
    target = TARGETS[name]
    refused = 0
    for i, files in enumerate(target.corpus()[:4]):
        (tmp_path / str(i)).mkdir()
        write_files(tmp_path / str(i), files)
        refused += is_refused(target, tmp_path / str(i))
    assert refused * 2 <= len(target.corpus()[:4])
