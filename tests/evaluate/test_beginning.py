"""Of a long text, only as much is tokenized as an evaluation uses."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynquant.arrays import I32
from dynquant.evaluate.worker.describe import beginning


class Words:
    """A vocabulary that has a token for each word; it counts the bytes that it reads."""

    def __init__(self) -> None:
        self.n_read = 0

    def tokenize(self, text: bytes, *, special: bool) -> I32:
        assert not special, "a text is not a prompt"
        self.n_read += len(text)
        return np.array([len(word) for word in text.split()], np.int32)


LINES = [b"word " * (n % 7 + 1) + b"end %d\n" % n for n in range(4000)]
TEXT = b"".join(LINES)


def read(content: bytes, wanted: int) -> tuple[I32, int]:
    words: Any = Words()
    return beginning(content, wanted, words), words.n_read


def test_tokens_of_the_beginning_are_those_of_the_whole_text() -> None:
    found, n_read = read(TEXT, 100)
    whole, _ = read(TEXT, 10**9)
    assert n_read < len(TEXT) / 10
    assert len(found) > 200
    np.testing.assert_array_equal(found, whole[: len(found)])


def test_text_with_long_tokens_is_read_completely_if_its_beginning_has_too_few() -> None:
    content = b"\n".join([b"x" * 500] * 300)
    found, _ = read(content, 100)
    assert len(found) == 300


def test_text_without_lines_is_read_completely() -> None:
    content = b"word " * 5000
    found, n_read = read(content, 10)
    assert (len(found), n_read) == (5000, len(content))


def test_short_text_is_read_once() -> None:
    found, n_read = read(LINES[0], 100)
    assert (len(found), n_read) == (3, len(LINES[0]))
