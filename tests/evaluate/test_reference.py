"""Stored references: read as untrusted, and refused by name where a file or a text does not fit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluating import distilled, header_of, random_logits, reference_store

from dynquant.errors import EvalError
from dynquant.evaluate import base
from dynquant.evaluate.answers import PromptSet
from dynquant.evaluate.given import Given
from dynquant.evaluate.reference import (
    TOKENS,
    WINDOWS,
    distributions_of,
    read_header,
    windows_of,
)
from dynquant.evaluate.settings import Settings
from dynquant.evaluate.store import Store
from dynquant.evaluate.tasks import Described
from dynquant.evaluate.texts import Windows
from dynquant.evaluate.vocabulary import Vocabulary
from dynquant.texts import Text

N_TOKENS = 50
RANDOM = np.random.default_rng(1).integers(0, N_TOKENS, (25, 16)).astype(np.int32)
TWO_TEXTS = Windows(RANDOM, (0,) * 12 + (1,) * 13)
ENGINE = {"wheel": "xllamacpp 1", "version": "2", "commit": "3", "system": "CPU"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.reference"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "x.reference"
    reference_store(path, TWO_TEXTS, N_TOKENS)
    return path


@pytest.fixture
def whole(made: Path, path: Path) -> Path:
    """Return a complete reference, which a test may change."""
    return Path(shutil.copy(made, path))


# ---- content ----


def test_a_reference_is_read_back(whole: Path) -> None:
    with Store.open(whole) as store:
        found = read_header(store)
        assert found.model_dump() == header_of(TWO_TEXTS, N_TOKENS)
        assert np.array_equal(windows_of(store, found).tokens, RANDOM)
        assert windows_of(store, found).texts == TWO_TEXTS.texts
        assert len(distributions_of(store, found, 24)) == 7


def without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        for key in keys[:-1]:
            header = header[key]
        del header[keys[-1]]

    return change


def with_value(value: Any, *keys: Any) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        place: Any = header
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


HEADERS = {
    "another version": (with_value(2, "reference"), "reference: Input should be 1"),
    "results of files": (without("reference"), "reference: Field required"),
    "no hash": (without("tokens_sha256"), "tokens_sha256: Field required"),
    "an unknown member": (with_value(1, "more"), "more: Extra inputs"),
    "a path as file": (with_value("../x", "model", "files", 0, "name"), "model.files.0.name"),
    "no texts": (with_value([], "texts"), "texts: List should have at least 1 item"),
    "text as number": (with_value("16", "context"), "context: Input should be a valid integer"),
    "a vocabulary of 2^40": (with_value(2**40, "model", "n_tokens"), "model.n_tokens"),
    "a negative number": (with_value(-1, "texts", 0, "windows"), "texts.0.windows"),
    "a tail above 1": (with_value(1.5, "tail"), "tail: Input should be less than 1"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_of_another_form_is_one_error(path: Path, what: str) -> None:
    change, message = HEADERS[what]
    header = header_of(TWO_TEXTS, N_TOKENS)
    change(header)
    with Store.create(path, header) as store, pytest.raises(EvalError) as caught:
        read_header(store)
    (line,) = caught.value.messages
    assert line.startswith(f"{path}: is not a reference of this version of dynquant (")
    assert message in line


def test_names_of_a_header_cannot_command_a_terminal(path: Path) -> None:
    header = header_of(TWO_TEXTS, N_TOKENS)
    header["model"]["name"] = "a\x1b]0;owned\x07é"
    with Store.create(path, header) as store:
        assert read_header(store).model.name == "a\\x1b]0;owned\\x07é"


TOKENS_OF_WINDOWS = {
    "missing": b"",
    "cut": RANDOM.astype("<i4").tobytes()[:-1],
    "others": RANDOM[::-1].astype("<i4").tobytes(),
}


@pytest.mark.parametrize("what", TOKENS_OF_WINDOWS)
def test_tokens_that_are_not_those_of_the_header_are_an_error(whole: Path, what: str) -> None:
    with Store.open(whole) as store:
        store.put(TOKENS, 0, TOKENS_OF_WINDOWS[what])
        with pytest.raises(EvalError, match="its tokens are damaged; make the reference again"):
            windows_of(store, read_header(store))


@pytest.mark.parametrize("token", [-1, N_TOKENS])
def test_tokens_outside_of_the_vocabulary_are_an_error(path: Path, token: int) -> None:
    windows = Windows(RANDOM.copy(), TWO_TEXTS.texts)
    windows.tokens[3, 3] = token
    reference_store(path, windows, N_TOKENS)
    with Store.open(path) as store, pytest.raises(EvalError, match="its tokens are damaged"):
        windows_of(store, read_header(store))


def test_a_reference_of_no_windows_is_an_error(path: Path) -> None:
    header = header_of(TWO_TEXTS, N_TOKENS)
    header["texts"] = [header["texts"][0] | {"windows": 0}]
    with Store.create(path, header) as store, pytest.raises(EvalError, match="tokens are damaged"):
        windows_of(store, read_header(store))


def test_a_missing_window_is_named(whole: Path) -> None:
    with Store.open(whole) as store, pytest.raises(EvalError, match="window 25 is missing; make"):
        distributions_of(store, read_header(store), 25)


def test_a_window_with_another_number_of_positions_is_named(whole: Path) -> None:
    with Store.open(whole) as store:
        store.put(WINDOWS, 4, distilled(random_logits(6, N_TOKENS, 1), tail=0).to_bytes())
        with pytest.raises(EvalError, match="window 4: has 6 positions, not 7"):
            distributions_of(store, read_header(store), 4)


# ---- what fits it ----


class Opened:
    """Opens a stored reference for one file, of whose vocabulary some facts are changed."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self._patch = path, monkeypatch

    def __call__(self, *texts: Text, gpu_layers: int = 0, **changes: Any) -> base.Base:
        facts = Described(
            architecture="llama",
            n_tokens=N_TOKENS,
            vocabulary_sha256="0" * 64,
            bos=None,
            has_chat_template=False,
            refusal=None,
            has_gpu=True,
            engine=ENGINE,
        ).model_copy(update=changes)
        file = self.path.with_name("file.gguf")
        vocabulary = Vocabulary(file, facts, (), PromptSet((), (), chat=False), ())
        self._patch.setattr(base, "read_vocabulary", lambda *_, **__: vocabulary)
        given = Given(((file, file.name),), str(self.path), None, self.path, texts, ())
        settings = Settings(cache=self.path.parent, gpu_layers=gpu_layers)
        return base.open_base(given, settings, print, print)

    def refusal(self, *texts: Text, **changes: Any) -> str:
        with pytest.raises(EvalError) as caught:
            self(*texts, **changes)
        return "\n".join(caught.value.messages)


@pytest.fixture
def opened(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    return Opened(whole, monkeypatch)


def test_a_fitting_file_is_accepted_without_a_warning(opened: Opened) -> None:
    found = opened()
    assert found.windows.sha256 == TWO_TEXTS.sha256
    assert found.warnings == ()


def test_another_engine_is_named(opened: Opened) -> None:
    assert opened.refusal(engine=ENGINE | {"commit": "4"}) == (
        f"{opened.path}: was computed by xllamacpp 1 (2, 3), files are run by xllamacpp 1 (2, 4);"
        " make the reference again"
    )


def test_another_number_of_layers_on_a_gpu_is_named(opened: Opened) -> None:
    with pytest.raises(EvalError, match=r"files are run by .*, 3 layers on a GPU; make the"):
        opened(gpu_layers=3)


def test_another_text_is_named(opened: Opened) -> None:
    assert opened.refusal(Text("my.txt", b"mine")) == (
        f"my.txt: is not a text of the reference {opened.path}, which has 0.txt, 1.txt"
    )


def test_another_number_of_tokens_is_named(opened: Opened) -> None:
    assert "file.gguf: has 51 tokens, the reference model.gguf has 50; they are" in (
        opened.refusal(n_tokens=51)
    )


def test_other_tokens_are_named(opened: Opened) -> None:
    assert "file.gguf: has other tokens than the reference model.gguf; they are" in (
        opened.refusal(vocabulary_sha256="1" * 64)
    )


def test_a_model_that_predicts_no_tokens_is_named(opened: Opened, monkeypatch: Any) -> None:
    def refused(*_: Any, **__: Any) -> Vocabulary:
        raise EvalError("file.gguf: has an encoder; only models that predict the next token")

    opened()
    monkeypatch.setattr(base, "read_vocabulary", refused)
    file = opened.path.with_name("file.gguf")
    given = Given(((file, file.name),), str(opened.path), None, opened.path, (), ())
    with pytest.raises(EvalError, match="has an encoder"):
        base.open_base(given, Settings(cache=opened.path.parent), print, print)


@pytest.mark.parametrize("extra", [[], [1_000], [-1]])
def test_missing_windows_are_counted(opened: Opened, extra: list[int]) -> None:
    with Store.open(opened.path) as store:
        for number in extra:
            store.put(WINDOWS, number, b"x")
        store._connection.execute("DELETE FROM pieces WHERE series = 'windows' AND number = 7")
    assert opened.refusal() == (
        f"{opened.path}: 1 window of 25 not computed; give its model as --reference to complete it"
    )


def test_few_windows_are_a_warning(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = Windows(RANDOM[:19], (0,) * 19)
    reference_store(path, few, N_TOKENS)
    (warning,) = Opened(path, monkeypatch)().warnings
    assert warning == (
        "19 windows: with fewer than 20, intervals are too narrow; use a longer text"
    )
