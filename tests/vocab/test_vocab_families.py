"""Byte-level vocabularies with the rules that each family publishes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from agreement import load_reference
from published_rules import FAMILIES
from subsets import slow_except
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from vocab_files import TEXTS, tokenize, words, write_json, write_model

from dynquant.vocab import read_vocab

pytestmark = pytest.mark.oracle

REFERENCE_TEXTS = tuple(load_reference("qwen2").tokens)


def write_family(folder: Path, name: str) -> Tokenizer:
    """Write a small tokenizer with a family's rules; return it loaded by the tokenizers package."""
    family = FAMILIES[name]
    plain = json.loads(Tokenizer(models.BPE()).to_str())
    plain |= {"pre_tokenizer": family.pre_tokenizer, "normalizer": family.normalizer}
    tokenizer = Tokenizer.from_str(json.dumps(plain))
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        show_progress=False,
        special_tokens=["<|end|>", "<|start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([*words(0, 60), *REFERENCE_TEXTS, *TEXTS], trainer)
    trained = json.loads(tokenizer.to_str())
    trained["model"]["ignore_merges"] = family.ignore_merges
    write_json(folder / "tokenizer.json", trained)
    bos = "<|start|>" if family.has_bos else None
    ends = {"bos_token": bos, "eos_token": "<|end|>"}
    write_json(folder / "tokenizer_config.json", family.config | ends)
    return Tokenizer.from_str(json.dumps(trained))


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_except([*FAMILIES][::5], FAMILIES))
def test_llama_cpp_tokenizes_as_a_familys_published_rules(name: str, tmp_path: Path):
    tokenizer = write_family(tmp_path, name)
    keys = read_vocab(tmp_path, {})
    assert keys["tokenizer.ggml.pre"].value == FAMILIES[name].pre
    model = write_model(tmp_path / "model.gguf", keys)
    texts = [*REFERENCE_TEXTS, *TEXTS]
    # llama.cpp's regexes of these handle few combining marks, the families' handle all.
    if FAMILIES[name].pre in ("gpt-4o", "kimi-k2", "tekken"):
        texts = [text for text in texts if "नमस्ते" not in text]
    assert tokenize(model, texts) == [tokenizer.encode(text).ids for text in texts]
