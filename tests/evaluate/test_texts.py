"""Texts become windows as in llama-perplexity, and each text that cannot is named."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.arrays import I32
from dynquant.errors import EvalError
from dynquant.evaluate.texts import Windows, cut, first_scored
from dynquant.texts import Text, read_texts


def tokens(n: int, first: int = 0) -> I32:
    return np.arange(first, first + n, dtype=np.int32)


def cut_lengths(
    *lengths: int, context: int = 8, limit: int = 10_000, bos: int | None = None
) -> Windows:
    """Cut texts of some numbers of tokens; the ids of text i begin at 1000 i."""
    texts = [Text(f"{i}.txt", b"x") for i in range(len(lengths))]
    parts = [tokens(n, 1000 * i) for i, n in enumerate(lengths)]
    return cut(texts, parts, context=context, limit=limit, bos=bos)


@pytest.mark.parametrize(
    ("context", "scored"), [(8, range(5, 8)), (9, range(5, 9)), (512, range(257, 512))]
)
def test_tokens_of_the_second_half_of_a_window_are_scored(context: int, scored: range) -> None:
    # llama-perplexity: first = n_ctx / 2, and the logits of first .. n_ctx - 2 are used.
    windows = cut_lengths(3 * context, context=context)
    assert range(windows.first + 1, windows.first + 1 + windows.n_scored) == scored
    assert first_scored(context) == scored[0] - 1


def test_windows_do_not_overlap_and_what_is_left_is_not_used() -> None:
    assert cut_lengths(8 * 3 + 7).tokens.tolist() == tokens(24).reshape(3, 8).tolist()


def test_bos_replaces_the_first_token_of_each_window() -> None:
    windows = cut_lengths(16, 16, bos=7)
    assert windows.tokens[:, 0].tolist() == [7] * 4
    assert windows.tokens[:, 1:].ravel().tolist() == [
        t for first in (0, 8, 1000, 1008) for t in range(first + 1, first + 8)
    ]


def test_without_bos_nothing_is_replaced() -> None:
    assert cut_lengths(16).tokens[:, 0].tolist() == [0, 8]


def test_windows_know_their_text() -> None:
    assert cut_lengths(16, 24).texts == (0, 0, 1, 1, 1)


def test_the_limit_is_of_all_tokens() -> None:
    assert len(cut_lengths(800, limit=8 * 5 + 7)) == 5


def test_windows_are_shared_equally_among_texts() -> None:
    assert cut_lengths(800, 800, 800, limit=8 * 9).texts == (0,) * 3 + (1,) * 3 + (2,) * 3


def test_what_a_short_text_leaves_is_used_by_the_others() -> None:
    assert cut_lengths(800, 16, 800, limit=8 * 12).texts == (0,) * 5 + (1,) * 2 + (2,) * 5


@given(st.lists(st.integers(8, 400), min_size=1, max_size=5), st.integers(2, 120))
def test_as_many_windows_are_used_as_limit_and_texts_allow(
    lengths: list[int], n_windows: int
) -> None:
    available = [n // 8 for n in lengths]
    expected = min(sum(available), n_windows)
    if expected < 2 or n_windows < len(lengths):
        return
    windows = cut_lengths(*lengths, limit=8 * n_windows)
    shares = [windows.texts.count(i) for i in range(len(lengths))]
    assert sum(shares) == expected
    # Equal: a text has fewer than another by more than one only if it has no more windows.
    assert all(s == a or s >= max(shares) - 1 for s, a in zip(shares, available, strict=True))


def test_texts_with_fewer_tokens_than_a_window_are_named_together() -> None:
    with pytest.raises(EvalError) as caught:
        cut_lengths(7, 80, 3)
    assert [m.split(";")[0] for m in caught.value.messages] == [
        "0.txt: has 7 tokens, too few for a window of 8",
        "2.txt: has 3 tokens, too few for a window of 8",
    ]


def test_a_single_window_is_refused() -> None:
    with pytest.raises(EvalError, match=r"0\.txt: one window of 8 tokens; intervals need at least"):
        cut_lengths(15)


@pytest.mark.parametrize("limit", [0, 8, 8 * 3 - 1])
def test_a_limit_that_leaves_a_text_without_a_window_is_refused(limit: int) -> None:
    with pytest.raises(EvalError, match=rf"^--tokens {limit}: "):
        cut_lengths(80, 80, 80, limit=limit)


def test_a_context_below_the_smallest_is_refused() -> None:
    with pytest.raises(EvalError, match="--context 7: must be at least 8"):
        cut_lengths(80, context=7)


def test_hash_of_windows_is_of_little_endian_ids() -> None:
    content = b"".join(i.to_bytes(4, "little") for i in range(16))
    assert cut_lengths(16).sha256 == hashlib.sha256(content).hexdigest()


# ---- files ----


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(name: str, content: bytes = b"A text.\n") -> Path:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def refusal(*paths: Path) -> str:
    with pytest.raises(EvalError) as caught:
        read_texts(paths, EvalError)
    return "\n".join(caught.value.messages)


def test_texts_are_called_by_their_file_names(folder: Path) -> None:
    texts = read_texts([written("a/x.txt"), written("a/y.txt")], EvalError)
    assert [text.name for text in texts] == ["x.txt", "y.txt"]


def test_texts_of_the_same_name_are_called_with_their_folders(folder: Path) -> None:
    texts = read_texts([written("a/x.txt"), written("b/x.txt")], EvalError)
    assert [text.name for text in texts] == ["a/x.txt", "b/x.txt"]


def test_text_that_is_not_utf8_is_named_with_the_place(folder: Path) -> None:
    assert refusal(written("x", b"caf\xe9 noir")) == (
        "x: is not UTF-8 at byte 3; convert it to UTF-8"
    )


def test_a_binary_file_is_named_with_the_place(folder: Path) -> None:
    assert refusal(written("x", "UTF-16".encode("utf-16-le"))) == (
        "x: has a zero byte at byte 1, as no text has; use a text in UTF-8"
    )


@pytest.mark.parametrize(
    ("content", "what"), [(b"", "is empty"), (b" \n\t\n", "has nothing but spaces")]
)
def test_empty_text_is_named(folder: Path, content: bytes, what: str) -> None:
    assert refusal(written("x", content)) == f"x: {what}; use another text"


def test_missing_text_is_named(folder: Path) -> None:
    assert refusal(Path("none.txt")) == "none.txt: cannot be read: No such file or directory"


def test_folder_and_pipe_are_refused_at_once(folder: Path) -> None:
    os.mkfifo("pipe")
    assert refusal(folder, Path("pipe")).count("cannot be read") == 2


def test_the_same_file_twice_is_refused(folder: Path) -> None:
    written("x")
    Path("y").symlink_to("x")
    assert refusal(Path("x"), Path("y")) == "y: is given twice, as x; name it once"


def test_all_faults_of_texts_are_reported_together(folder: Path) -> None:
    assert len(refusal(Path("none"), written("x", b""), written("y", b"\xff")).splitlines()) == 3
