"""Answers of a file beside the reference's, and the order in which prompts are continued."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynquant.errors import EvalError
from dynquant.evaluate.answers import PromptSet, compared, read_answers, series_of
from dynquant.evaluate.generation import GROUP, Answer, generate, group_of
from dynquant.evaluate.results import Answers
from dynquant.evaluate.runtime.context import PIECE
from dynquant.evaluate.store import Store
from dynquant.evaluate.tasks import SamplerPart

PIECES = [bytes([i]) for i in range(256)]
"""A vocabulary of bytes."""

GREEDY = SamplerPart()


def answer(text: str | bytes, *, ended: bool = True, finite: bool = True) -> Answer:
    content = text.encode() if isinstance(text, str) else text
    return Answer(tuple(content), ended, finite)


def prompts_of(n: int) -> PromptSet:
    return PromptSet(
        tuple(f"prompt {i}" for i in range(n)), tuple((i, 9) for i in range(n)), chat=False
    )


def compare(reference: Sequence[Answer], answers: Sequence[Answer]) -> Answers:
    return compared(prompts_of(len(answers)), GREEDY, 100, reference, answers, PIECES)


# ---- compared ----


@pytest.mark.parametrize(
    ("reference", "text", "place"),
    [
        ("abcdef", "abXdef", 2),
        ("abcdef", "Xbcdef", 0),
        ("abc", "abcdef", 3),
        ("abcdef", "abc", 3),
        ("abc", "abc", 3),
        ("", "abc", 0),
    ],
)
def test_first_difference_counts_the_tokens_before_it(
    reference: str, text: str, place: int
) -> None:
    assert compare([answer(reference)], [answer(text)]).first_divergence.value == place


def test_first_difference_is_the_mean_of_all_answers() -> None:
    found = compare([answer("abcd")] * 4, [answer("aX"), answer("abX"), answer("X"), answer("abc")])
    assert found.first_divergence.value == (1 + 2 + 0 + 3) / 4
    assert found.first_divergence.low < 1.5 < found.first_divergence.high


def test_identical_are_answers_with_the_same_tokens_and_the_same_end() -> None:
    reference = [answer("abc")] * 4
    answers = [answer("abc"), answer("abc", ended=False), answer("abd"), answer("abc")]
    assert compare(reference, answers).identical.value == 0.5


def test_share_of_identical_answers_has_an_interval_at_all() -> None:
    found = compare([answer("abc")] * 8, [answer("abc")] * 8).identical
    assert (found.value, found.high) == (1, 1)
    assert 0.6 < found.low < 0.7


@pytest.mark.parametrize(
    ("text", "is_dead"), [("", True), (" \n\t", True), ("a", False), (" .", False)]
)
def test_dead_ends_have_no_visible_character(text: str, is_dead: bool) -> None:
    found = compare([answer("abc")], [answer(text)])
    assert (found.dead_ends, found.reference_dead_ends) == (is_dead, 0)


@pytest.mark.parametrize(
    ("text", "is_broken"),
    [
        (b"caf\xc3\xa9", False),
        (b"caf\xc3", False),
        (b"\xf0\x9f\x98", False),
        (b"caf\xc3 noir", True),
        (b"\xa9", True),
        (b"\xff\xfe", True),
        (b"\xed\xa0\x80", True),
        ("a \ufffd".encode(), True),
    ],
)
def test_replacement_characters_are_counted_but_not_an_incomplete_last_one(
    text: bytes, is_broken: bool
) -> None:
    found = compare([answer("abc")], [answer(text, ended=False)])
    assert found.replacement_characters == is_broken
    assert found.reference_replacement_characters == 0


def test_figures_of_the_reference_are_beside_those_of_the_file() -> None:
    looping, broken, dead = answer("ab" * 40, ended=False), answer(b"\xff"), answer("")
    fine = [answer("fine")] * 3
    found = compare([looping, broken, dead], fine)
    assert found.reference_loops.value == 1 / 3
    assert found.reference_replacement_characters == found.reference_dead_ends == 1
    assert found.loops.value == found.dead_ends == found.replacement_characters == 0


def test_loops_of_the_file_are_its_share() -> None:
    looping = answer("ab" * 40, ended=False)
    found = compare([answer("x")] * 4, [answer("x"), looping, looping, answer("ab" * 40)])
    assert found.loops.value == 0.5


def test_answers_with_logits_that_are_not_numbers_are_counted() -> None:
    assert compare([answer("x")] * 2, [answer("x", finite=False), answer("x")]).not_finite == 1


def test_examples_are_two_loops_and_the_first_others() -> None:
    looping = answer("ab" * 40, ended=False)
    answers = [answer("x")] * 5 + [looping] * 3
    shown = compare([answer("y")] * 8, answers).examples
    assert [(e.prompt, e.loops) for e in shown] == [
        ("prompt 0", False),
        ("prompt 1", False),
        ("prompt 5", True),
        ("prompt 6", True),
    ]
    assert (shown[0].reference, shown[0].answer) == ("y", "x")


def test_examples_of_many_loops_have_others_too() -> None:
    looping = answer("ab" * 40, ended=False)
    shown = compare([answer("y")] * 6, [looping] * 4 + [answer("x")] * 2).examples
    assert [e.loops for e in shown] == [True, True, False, False]


def test_examples_are_text_whatever_the_bytes_are() -> None:
    (shown,) = compare([answer("y")], [answer(b"caf\xc3 \xff")]).examples
    assert shown.answer == "caf\ufffd \ufffd"


# ---- stored ----


@pytest.mark.parametrize("is_ended", [True, False])
@pytest.mark.parametrize("is_finite", [True, False])
@pytest.mark.parametrize("tokens", [(), (0,), (1, 2**31 - 1, 7)])
def test_answers_survive_a_round_trip(
    tokens: tuple[int, ...], is_ended: bool, is_finite: bool
) -> None:
    found = Answer(tokens, is_ended, is_finite)
    assert Answer.from_bytes(found.to_bytes()) == found


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.create(tmp_path / "x.reference", {}) as made:
        yield made


def test_stored_answers_are_read_in_order(store: Store) -> None:
    for i in (1, 0):
        store.put("a", i, answer(str(i)).to_bytes())
    assert read_answers(store, "a", 2, 256) == [answer("0"), answer("1")]


def test_answers_with_a_missing_one_are_not_returned(store: Store) -> None:
    store.put("a", 0, answer("x").to_bytes())
    assert read_answers(store, "a", 2, 256) is None


DAMAGED = {
    "nothing": b"",
    "one flag": bytes(4),
    "half a token": answer("abc").to_bytes()[:-2],
    "a token beyond the vocabulary": Answer((256,), is_ended=True).to_bytes(),
    "a negative token": Answer((-1,), is_ended=True).to_bytes(),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_answer_is_an_error_with_its_place(store: Store, what: str) -> None:
    store.put("a", 0, answer("x").to_bytes())
    store.put("a", 1, DAMAGED[what])
    with pytest.raises(EvalError, match=r"x\.reference: answer 1 (is damaged|has tokens outside)"):
        read_answers(store, "a", 2, 256)


CHANGED = {
    "prompts": (prompts_of(3), GREEDY, 100),
    "temperature": (prompts_of(2), SamplerPart(temperature=0.7), 100),
    "seed": (prompts_of(2), SamplerPart(seed=2), 100),
    "length": (prompts_of(2), GREEDY, 101),
}


@pytest.mark.parametrize("what", CHANGED)
def test_answers_of_other_settings_are_another_series(what: str) -> None:
    assert series_of(*CHANGED[what]) != series_of(prompts_of(2), GREEDY, 100)


def test_hash_of_prompts_depends_on_where_they_end() -> None:
    a, b = (PromptSet(("", ""), t, chat=False) for t in (((1, 2), (3,)), ((1,), (2, 3))))
    assert a.sha256 != b.sha256


# ---- generated ----


class Model:
    """A model of 10 tokens that counts upwards; 9 ends."""

    n_tokens = 10

    def is_end(self, token: int) -> bool:
        return token == 9


class Counting:
    """A context for `Model` without llama.cpp: the next token is the last one plus 1."""

    def __init__(self, not_a_number_after: int = -1, excluded: int = -1) -> None:
        self.batches: list[int] = []
        self._bad, self._excluded = not_a_number_after, excluded
        self._last: list[int] = []
        self.freed: list[int] = []

    def forget(self) -> None:
        self.batches.clear()

    def samplers(self, _: SamplerPart, streams: Sequence[int]) -> list[int]:
        return list(streams)

    def free(self, chains: Sequence[int]) -> None:
        self.freed += chains

    def decode(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[int],
        wanted: Sequence[bool],
    ) -> None:
        assert len(tokens) == len(positions) == len(sequences) == len(wanted) <= PIECE
        self.batches.append(len(tokens))
        self._last = list(tokens)

    def logits_at(self, index: int) -> np.ndarray:
        logits = np.zeros(10, np.float32)
        logits[self._excluded] = -np.inf if self._excluded >= 0 else 0
        if self._last[index] == self._bad:
            logits[3] = np.nan
        return logits

    def sample(self, _: int, index: int) -> int:
        return self._last[index] + 1


def continued(prompts: list[list[int]], n_predict: int = 20, **options: int) -> list[Answer]:
    context: Any = Counting(**options)
    model: Any = Model()
    streams = range(len(prompts))
    found = generate(model, context, prompts, streams, SamplerPart(), n_predict)
    assert context.freed == list(streams)
    return found


def test_answers_end_before_the_end_token() -> None:
    assert continued([[5], [1, 7], [8]]) == [
        Answer((6, 7, 8), is_ended=True),
        Answer((8,), is_ended=True),
        Answer((), is_ended=True),
    ]


def test_answers_end_after_the_number_of_tokens() -> None:
    assert continued([[1], [7]], n_predict=2) == [
        Answer((2, 3), is_ended=False),
        Answer((8,), is_ended=True),
    ]


def test_answers_stop_where_a_logit_is_not_a_number() -> None:
    assert continued([[1], [5]], not_a_number_after=3) == [
        Answer((2, 3), is_ended=False, is_finite=False),
        Answer((6, 7, 8), is_ended=True),
    ]


def test_a_model_may_exclude_tokens() -> None:
    # The distributions accept minus infinity too.
    assert continued([[6]], excluded=2) == [Answer((7, 8), is_ended=True)]


@pytest.mark.parametrize("n", [PIECE, PIECE + 1, 3 * PIECE - 1])
def test_long_prompts_are_read_in_pieces(n: int) -> None:
    assert continued([[4] * n, [7]]) == [
        Answer((5, 6, 7, 8), is_ended=True),
        Answer((8,), is_ended=True),
    ]


@pytest.mark.parametrize("n", [1, 7, 8, 9, 64, 65])
def test_groups_cover_all_prompts_once(n: int) -> None:
    prompts = [[0]] * n
    groups = [group_of(i, prompts) for i in range(-(-n // GROUP))]
    assert [i for group in groups for i in group] == list(range(n))
    assert max(map(len, groups)) <= GROUP
