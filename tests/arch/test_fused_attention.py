"""InternLM2, Baichuan and ChatGLM: settings that are refused, heads that are normalized, tokens."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import config_of, load_reference

from dynquant.arch.families.baichuan import unit_rows
from dynquant.arch.load import describe
from dynquant.errors import ArchitectureError, VocabError
from dynquant.tensors import Computed
from dynquant.transforms import read_weights
from dynquant.vocab import VocabReport, read_vocab

REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("internlm2", {"bias": True}, "bias is True; llama.cpp computes this family with False"),
    ("internlm2", {"tie_word_embeddings": True}, "requires a separate output matrix"),
    ("baichuan", {"num_hidden_layers": 33}, "with rope in 32 layers or ALiBi in 40 only"),
    ("baichuan", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
    ("chatglm", {"multi_query_attention": False}, "multi_query_attention is False"),
    ("chatglm", {"multi_query_group_num": 3}, "4 is not a multiple of multi_query_group_num 3"),
    ("chatglm", {"kv_channels": 6, "num_attention_heads": 6}, "must be a multiple of 4"),
    ("chatglm", {"kv_channels": 12}, "do not add up to hidden_size 32"),
    ("chatglm", {"original_rope": False}, "original_rope is false"),
    ("chatglm", {"rmsnorm": False}, "rmsnorm is False"),
)


@pytest.mark.parametrize(("family", "changes", "says"), REFUSED)
def test_settings_that_llama_cpp_does_not_compute_are_rejected(
    family: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ArchitectureError, match=says):
        describe(config_of(family) | changes, "config.json")


def test_rows_are_divided_by_their_norms() -> None:
    x = np.random.default_rng(5).standard_normal((7, 12)).astype(np.float32)
    x[3] = 0
    found = read_weights(unit_rows(Computed(x)), 0, 7)
    norms = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(found, x / np.maximum(norms, 1e-12), rtol=1e-6)


@pytest.mark.parametrize(("n_vocab", "is_second"), [(64000, False), (125696, True)])
def test_the_number_of_tokens_shows_a_baichuan_2(n_vocab: int, *, is_second: bool) -> None:
    found = describe(config_of("baichuan") | {"vocab_size": n_vocab}, "config.json")
    assert ("output" in found.via) == is_second


def test_a_ratio_that_might_be_chatglm2s_is_reported() -> None:
    changes = {"padded_vocab_size": 65024, "rope_ratio": 50}
    (warning,) = describe(config_of("chatglm3") | changes, "config.json").deviations
    assert "a ChatGLM2-6B-32K divides positions by it" in warning


def test_chatglm3_has_the_tokens_that_its_class_names() -> None:
    report = VocabReport()
    keys = read_vocab(load_reference("chatglm3").folder, config_of("chatglm3"), report=report)
    tokens = keys["tokenizer.ggml.tokens"].value
    assert isinstance(tokens, tuple)
    assert tokens[440:450] == (
        *("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"),
        *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "[PAD449]"),
    )
    assert len(tokens) == 472
    assert keys["tokenizer.ggml.add_bos_token"].value is False
    (warning,) = report.warnings
    assert "the control tokens 'sop' and 'eop' are letters of words" in warning


def test_chatglm3_has_no_pre_tokenizer() -> None:
    with pytest.raises(VocabError, match="SentencePiece tokenizers have no pre-tokenizer"):
        read_vocab(load_reference("chatglm3").folder, config_of("chatglm3"), pre="glm4")


def test_a_damaged_line_of_glm4s_ranks_is_reported(tmp_path: Path) -> None:
    folder = shutil.copytree(load_reference("chatglm").folder, tmp_path / "m")
    path = folder / "tokenizer.model"
    path.write_text(path.read_text("utf-8") + "no rank\n", "utf-8")
    with pytest.raises(VocabError, match=r"tokenizer\.model"):
        read_vocab(folder, config_of("chatglm"))


def test_glm4s_ranks_have_its_pre_tokenizer_or_the_named_one() -> None:
    folder, config = load_reference("chatglm").folder, config_of("chatglm")
    assert read_vocab(folder, config)["tokenizer.ggml.pre"].value == "glm4"
    assert (
        read_vocab(folder, config, pre="chatglm-bpe")["tokenizer.ggml.pre"].value == "chatglm-bpe"
    )
