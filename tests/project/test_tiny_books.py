"""The trained model in the repository gives the same results after conversion.

The oracles are transformers and the model's own tokenizer (stored by make_references.py)
and llama.cpp.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from agreement import (
    F32_TOLERANCE,
    TINY_BOOKS,
    Reference,
    divergence,
    load_reference,
    max_difference,
)
from ceilings import kl_ceilings

import dynquant

llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)

pytestmark = pytest.mark.oracle

KL_CEILINGS = kl_ceilings()[TINY_BOOKS]
"""Mean KL(transformers || ours) over the prompts' last tokens, in nats; may only go down.

They detect a worse recipe: all Q4_K gives 1.6e-2, all Q4_0 2.6e-2, Q5_K_S 3.8e-3, Q3_K_S 5.2e-2.
They cannot detect small differences of encoders: settings of Q4_K and Q5_K with a KL of 1.35e-2 to
1.37e-2 over 49,000 tokens and six permutations of the model (as in compare_objectives.py) give
7.1e-3 to 8.8e-3 here; ggml's encoders give 1.45e-2 there and 6.6e-3 here.
"""


@pytest.fixture(scope="module")
def reference() -> Reference:
    return load_reference(TINY_BOOKS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny-books")


def converted(reference: Reference, folder: Path, recipe: str) -> Path:
    """Return the file of a recipe, made once."""
    out = folder / f"{recipe}.gguf"
    if not out.exists():
        dynquant.convert(reference.folder, out, recipe=recipe, threads=2)
    return out


@pytest.mark.slow
def test_log_probabilities_of_the_f32_file_equal_transformers(
    reference: Reference, folder: Path
) -> None:
    ours = llamacpp.log_probabilities(converted(reference, folder, "f32"), reference.prompts)
    assert max_difference(reference.log_probabilities, ours) < F32_TOLERANCE


@pytest.mark.slow
def test_tokens_equal_its_own_tokenizers(reference: Reference, folder: Path) -> None:
    file = converted(reference, folder, "f32")
    ours = llamacpp.tokenize(file, list(reference.tokens), parse_special=reference.parses_special)
    assert dict(zip(reference.tokens, ours, strict=True)) == reference.tokens


@pytest.mark.slow
@pytest.mark.parametrize("recipe", KL_CEILINGS)
def test_divergence_from_transformers_is_below_the_ceiling(
    recipe: str, reference: Reference, folder: Path
) -> None:
    ours = llamacpp.log_probabilities(converted(reference, folder, recipe), reference.prompts)
    assert divergence(reference.log_probabilities, ours) < KL_CEILINGS[recipe]


@pytest.mark.slow
def test_the_dynamic_4bit_file_writes_words(reference: Reference, folder: Path) -> None:
    file = converted(reference, folder, "dynamic-4bit")
    text = llamacpp.generate(file, "Once upon a time there was", 40)
    words = re.findall(r"[A-Za-z]+", text)
    assert len(set(words)) >= 8
    assert sum(map(len, words)) >= 0.8 * len(re.sub(r"\s", "", text))
