"""Small vocabularies of every kind; the oracle is the library of each kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import VOCABULARIES
from vocab_files import tokenize, write_model

from dynquant.vocab import read_vocab

# Each kind with the files to omit, so that all forms of it are read.
FORMS = [
    ("bert", ()),
    ("bert", ("tokenizer.json",)),
    ("bert-cased", ()),
    ("bert-cased", ("tokenizer.json",)),
    ("gemma", ()),
    ("gemma4", ()),
    ("hunyuan", ()),
    ("kimi-k2", ()),
    ("phi-3", ()),
    ("t5", ()),
    ("t5", ("tokenizer.json",)),
    ("tekken", ()),
    ("xlm-r", ()),
    ("xlm-r", ("tokenizer.json",)),
]
MODELS = {
    "bert": "bert",
    "gemma": "llama",
    "gemma4": "gemma4",
    "phi-3": "llama",
    "t5": "t5",
    "xlm-r": "t5",
}
CONFIGS: dict[str, dict[str, Any]] = {"gemma4": {"model_type": "gemma4_text"}}
"""Settings of config.json by which a kind is known."""


def test_every_stored_kind_is_tested():
    assert {p.stem for p in VOCABULARIES.glob("*.json")} == {name for name, _ in FORMS}


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "without"), FORMS)
def test_llama_cpp_tokenizes_as_the_library_of_the_kind(
    name: str, without: tuple[str, ...], tmp_path: Path
):
    folder = tmp_path / "model"
    shutil.copytree(VOCABULARIES / name, folder, ignore=shutil.ignore_patterns(*without))
    keys = read_vocab(folder, CONFIGS.get(name, {}))
    assert keys["tokenizer.ggml.model"].value == MODELS.get(name.removesuffix("-cased"), "gpt2")
    stored = json.loads((VOCABULARIES / f"{name}.json").read_text(encoding="utf-8"))
    texts = [entry["text"] for entry in stored]
    model = write_model(tmp_path / "model.gguf", keys)
    # mistral-common reads no special token from a text.
    tokens = tokenize(model, texts, parse_special=name != "tekken")
    assert tokens == [entry["tokens"] for entry in stored]


@pytest.mark.parametrize("name", ["bert", "t5", "xlm-r"])
def test_equivalent_tokenizer_files_give_the_same_keys(name: str, tmp_path: Path):
    shutil.copytree(VOCABULARIES / name, tmp_path / "model")
    whole = read_vocab(tmp_path / "model", {})
    (tmp_path / "model" / "tokenizer.json").unlink()
    other = read_vocab(tmp_path / "model", {})
    # No other file has the separator of the template for two texts.
    names = whole.keys() - {"tokenizer.ggml.scores", "tokenizer.ggml.add_sep_token"}
    assert {name: other[name] for name in names} == {name: whole[name] for name in names}
    if name != "bert":
        scores = [keys["tokenizer.ggml.scores"].value for keys in (whole, other)]
        assert np.array_equal(*(np.array(s, np.float32) for s in scores))


def test_a_version_in_the_name_of_mistrals_model_file_is_recognised(tmp_path: Path):
    shutil.copy(VOCABULARIES / "t5" / "spiece.model", tmp_path / "tokenizer.model.v1")
    shutil.copy(VOCABULARIES / "xlm-r" / "sentencepiece.bpe.model", tmp_path / "tokenizer.model.v3")
    assert len(read_vocab(tmp_path, {})["tokenizer.ggml.tokens"].value) == 240  # type: ignore[arg-type]
    newest = read_vocab(tmp_path, {})["tokenizer.ggml.bos_token_id"].value
    assert newest == 1  # T5's model has no such token
