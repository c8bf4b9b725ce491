"""Every normalizer, pre-tokenizer, post-processor and decoder of the tokenizers package, per path.

The oracle is the tokenizers package: a tokenizer with the step gives the same ids in llama.cpp, or
it is refused by name; a warning is enough only where the tests say so.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import VOCABULARIES
from subsets import slow_except
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from vocab_files import (
    TEXTS,
    edit,
    edit_model,
    pieces,
    sentencepiece,
    tokenize,
    train,
    words,
    write_model,
    write_spm_json,
)

from dynquant.errors import VocabError
from dynquant.keys import Keys
from dynquant.vocab import VocabReport, read_vocab
from dynquant.vocab.pretypes import GPT_2
from dynquant.vocab.rules import PATHS
from dynquant.vocab.tokens import SPACE

LINES = [
    *filter(None, TEXTS),
    *words(5, 4),
    "HELLO Ba  ce",
    "ﬁ① ½ e\u0301 \u00e9",
    "a\tb\nc\u00a0d",
    'it\'s "12" 345,6',
    "  x  y  ",
    f"a{SPACE}b",
    "日本語 text\u200bx\x07y",
]


def table() -> dict[str, Any]:
    value = json.loads((VOCABULARIES / "t5" / "tokenizer.json").read_text(encoding="utf-8"))
    return value["normalizer"]


def stored(name: str) -> Callable[[Path], None]:
    """Return a function that copies a stored tokenizer.json, for a class without rules."""

    def copy(folder: Path) -> None:
        shutil.copy(VOCABULARIES / name / "tokenizer.json", folder)

    return copy


def plain_spm(folder: Path) -> None:
    write_spm_json(folder)
    edit(folder, "tokenizer.json", decoder=None)


MAKERS: dict[str, Callable[[Path], Any]] = {
    "SentencePiece": plain_spm,
    "Gemma 4": stored("gemma4"),
    "unigram": stored("t5"),
    "WordPiece": stored("bert"),
    "byte-level BPE": lambda folder: train(folder, (GPT_2,)),
}

REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}

NORMALIZERS: dict[str, list[dict[str, Any]]] = {
    "BertNormalizer": [
        {
            "type": "BertNormalizer",
            "clean_text": clean,
            "handle_chinese_chars": chinese,
            "strip_accents": None,
            "lowercase": True,
        }
        for clean, chinese in ((True, True), (False, True), (True, False))
    ],
    "ByteLevel": [{"type": "ByteLevel"}],
    "Lowercase": [{"type": "Lowercase"}],
    "NFC": [{"type": "NFC"}],
    "NFD": [{"type": "NFD"}],
    "NFKC": [{"type": "NFKC"}],
    "NFKD": [{"type": "NFKD"}],
    "Nmt": [{"type": "Nmt"}],
    "Precompiled": [table()],
    "Prepend": [{"type": "Prepend", "prepend": text} for text in (SPACE, "x")],
    "Replace": [
        REPLACE,
        REPLACE | {"pattern": {"Regex": "[0-9]"}},
        REPLACE | {"pattern": {"String": " "}, "content": SPACE},
        REPLACE | {"pattern": {"Regex": " {2,}"}, "content": " "},
        REPLACE | {"pattern": {"Regex": " {2,}"}, "content": SPACE},
    ],
    "Strip": [
        {"type": "Strip", "strip_left": left, "strip_right": right}
        for left, right in ((True, True), (False, True), (True, False))
    ],
    "StripAccents": [{"type": "StripAccents"}],
}

SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated", "invert": False}

PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "BertPreTokenizer": [{"type": "BertPreTokenizer"}],
    "ByteLevel": [
        {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}
        for prefix in (True, False)
        for regex in (True, False)
    ],
    "CharDelimiterSplit": [{"type": "CharDelimiterSplit", "delimiter": "a"}],
    "Digits": [{"type": "Digits", "individual_digits": each} for each in (True, False)],
    "FixedLength": [{"type": "FixedLength", "length": 5}],
    "Metaspace": [
        {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split}
        for scheme in ("always", "first", "never")
        for split in (True, False)
    ],
    "Punctuation": [
        {"type": "Punctuation", "behavior": behavior} for behavior in ("Isolated", "Contiguous")
    ],
    "Split": [
        SPLIT,
        SPLIT | {"behavior": "MergedWithPrevious"},
        SPLIT | {"pattern": {"String": SPACE}, "behavior": "MergedWithNext"},
        SPLIT | {"pattern": {"String": SPACE}},
        SPLIT | {"pattern": {"Regex": r"\d"}},
        SPLIT | {"pattern": {"Regex": r"\p{L}+"}, "behavior": "Removed"},
    ],
    "UnicodeScripts": [{"type": "UnicodeScripts"}],
    "Whitespace": [{"type": "Whitespace"}],
    "WhitespaceSplit": [{"type": "WhitespaceSplit"}],
}

PARTS = {"normalizer": NORMALIZERS, "pre_tokenizer": PRE_TOKENIZERS}
LISTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}
PLACES = ("instead", "before", "after")


def kinds(module: Any, base: type) -> set[str]:
    """Return the names of the steps in a module of the tokenizers package."""
    found = {n for n in dir(module) if isinstance(getattr(module, n), type)}
    steps = {n for n in found if issubclass(getattr(module, n), base)}
    return steps - {base.__name__, "Sequence"}


def test_every_step_of_the_tokenizers_package_is_tried():
    assert set(NORMALIZERS) == kinds(normalizers, normalizers.Normalizer)
    assert set(PRE_TOKENIZERS) == kinds(pre_tokenizers, pre_tokenizers.PreTokenizer)
    assert set(MAKERS) == {path.name for path in PATHS}


def test_every_post_processor_is_reproduced_and_every_decoder_of_a_table_exists():
    for path in PATHS:
        assert set(path.post_processors) == kinds(processors, processors.PostProcessor)
        assert set(path.decoders) <= kinds(decoders, decoders.Decoder)


def put(folder: Path, part: str, step: dict[str, Any], place: str) -> None:
    """Put a step in the place of a part, or before or after its steps."""
    value = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    present = value[part]
    if place == "instead" or present is None:
        edit(folder, "tokenizer.json", **{part: step})
        return
    steps = [step, present] if place == "before" else [present, step]
    edit(folder, "tokenizer.json", **{part: {"type": "Sequence", LISTS[part]: steps}})


def outcome(folder: Path, path: str) -> tuple[Keys, str] | str:
    """Return the keys and the warnings, or the refusal."""
    report = VocabReport()
    config = {"model_type": "gemma4"} if path == "Gemma 4" else {}
    try:
        return read_vocab(folder, config, report=report), " ".join(report.warnings)
    except VocabError as e:
        return str(e)


CASES = [
    (path, part, kind, place)
    for path in MAKERS
    for part, steps in PARTS.items()
    for kind in steps
    for place in PLACES
]
FAST = [
    (path, part, kind, "before")
    for path in MAKERS
    for part, kind in (("normalizer", "Lowercase"), ("pre_tokenizer", "Metaspace"))
]


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize(("path", "part", "kind", "place"), slow_except(FAST, CASES))
def test_a_step_gives_the_same_tokens_in_llama_cpp_or_is_refused_by_name(
    path: str, part: str, kind: str, place: str, tmp_path: Path
):
    for i, step in enumerate(PARTS[part][kind]):
        folder = tmp_path / str(i)
        folder.mkdir()
        MAKERS[path](folder)
        put(folder, part, step, place)
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            wanted = [tokenizer.encode(text).ids for text in LINES]
        except Exception:  # the package has no type for its errors
            continue
        found = outcome(folder, path)
        if isinstance(found, str):
            assert any(name in found for name in REFUSED), found
            continue
        keys, warned = found
        model = write_model(folder / "model.gguf", keys)
        got = tokenize(model, LINES)
        differing = [
            line
            for line, ours, theirs in zip(LINES, wanted, got, strict=True)
            if ours != theirs and not is_known(path, warned, line)
        ]
        assert not differing, (step, warned)


REFUSED = (
    *NORMALIZERS,
    *PRE_TOKENIZERS,
    "no known pre-tokenizer",
    "neither byte-level nor",
    "replaces spaces by",
    "does not replace spaces by",
)


def is_known(path: str, warned: str, text: str) -> bool:
    """Return whether a difference in a text is among the warnings, or documented."""
    return (
        # The normalizer NFC of byte-level BPE, which Qwen's tokenizers have, is documented.
        ("\u0301" in text and ("composed form" in warned or path == "byte-level BPE"))
        or ("removes the space after a text" in warned and text != text.rstrip())
        or ("text that begins with one" in warned and text != text.lstrip())
        or ("text that begins with none" in warned and text != text.lstrip())
        # The package replaces both characters by one space; SentencePiece and llama.cpp by two.
        or (path == "unigram" and "\r\n" in text)
        # llama.cpp's WordPiece marks the start of a word with this letter.
        or (path == "WordPiece" and SPACE in text)
    )


RULES = {
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, REPLACE]},
    "pre_tokenizer": {"type": "Whitespace"},
}


def spm(folder: Path, **config: Any) -> Path:
    """Write a tokenizer.json with two wrong normalizers and a wrong pre-tokenizer."""
    plain_spm(folder)
    edit(folder, "tokenizer.json", **RULES)
    edit(folder, "tokenizer_config.json", **config)
    return folder


@pytest.mark.slow
def test_all_rules_that_llama_cpp_does_not_have_are_refused_at_once(tmp_path: Path):
    with pytest.raises(VocabError) as e:
        read_vocab(spm(tmp_path, tokenizer_class="TokenizersBackend"), {})
    start = f"{tmp_path / 'tokenizer.json'}: llama.cpp's SentencePiece does not have"
    end = "; to accept other tokens, remove it from the file"
    assert e.value.messages == (
        f"{start} the normalizer NFKC{end}",
        f'{start} the normalizer Replace {{"pattern": {{"String": "a"}}, "content": "b"}}{end}',
        f"{start} the pre-tokenizer Whitespace{end}",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "tokenizer_class"),
    [
        ({}, "LlamaTokenizer"),
        ({}, "LlamaTokenizerFast"),
        ({}, "GemmaTokenizer"),
        ({"model_type": "gemma2"}, None),
        ({"model_type": "gemma3n_text"}, None),
    ],
)
def test_rules_that_the_class_of_transformers_replaces_are_warnings(
    config: dict[str, Any], tokenizer_class: str | None, tmp_path: Path
):
    report = VocabReport()
    read_vocab(spm(tmp_path, tokenizer_class=tokenizer_class), config, report=report)
    assert [w.split("the output has")[0].split("not have the ")[1] for w in report.warnings] == [
        "normalizer NFKC; ",
        'normalizer Replace {"pattern": {"String": "a"}, "content": "b"}; ',
        "pre-tokenizer Whitespace; ",
    ]
    assert "which ignores it" in report.warnings[0]


@pytest.mark.slow
def test_a_stated_class_that_transformers_ignores_does_not_replace_the_rules(tmp_path: Path):
    with pytest.raises(VocabError, match="does not have the normalizer NFKC"):
        read_vocab(spm(tmp_path, tokenizer_class="LlamaTokenizer"), {"model_type": "phi3"})


@pytest.mark.slow
def test_rules_of_tokenizer_json_apply_beside_a_tokenizer_model(tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece(pieces()))
    with pytest.raises(VocabError, match="does not have the normalizer NFKC"):
        read_vocab(spm(tmp_path), {})


@pytest.mark.slow
def test_another_tokenizers_model_file_is_a_warning(tmp_path: Path):
    plain_spm(tmp_path)
    swapped = [*pieces()[:300], *reversed(pieces()[300:302]), *pieces()[302:]]
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece(swapped))
    report = VocabReport()
    read_vocab(tmp_path, {}, report=report)
    assert f"2 of {len(swapped)} pieces are not at their ids" in " ".join(report.warnings)


@pytest.mark.parametrize("tokenizer_class", [None, "LlamaTokenizer"])
def test_rules_of_a_tokenizer_model_that_llama_cpp_does_not_have_are_named(
    tokenizer_class: str | None, tmp_path: Path
):
    whole = sentencepiece(pieces())
    assert whole.endswith(b"\x20\x00")
    (tmp_path / "tokenizer.model").write_bytes(whole[:-1] + b"\x01")
    edit(tmp_path, "tokenizer_config.json", tokenizer_class=tokenizer_class)
    report = VocabReport()
    problem = "replaces runs of spaces by one"
    if tokenizer_class:
        read_vocab(tmp_path, {}, report=report)
        assert problem in " ".join(report.warnings)
        return
    with pytest.raises(VocabError, match=problem):
        read_vocab(tmp_path, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"byte_fallback": False}, "neither byte-level nor with byte_fallback"),
        ({"dropout": 0.1}, "dropout is 0.1"),
        ({"end_of_word_suffix": "</w>"}, "end_of_word_suffix is '</w>'"),
    ],
)
def test_settings_of_the_model_that_llama_cpp_does_not_have_are_refused(
    change: dict[str, Any], why: str, tmp_path: Path
):
    plain_spm(tmp_path)
    edit_model(tmp_path, **change)
    with pytest.raises(VocabError, match=why):
        read_vocab(tmp_path, {})


@pytest.mark.parametrize(
    ("path", "decoder", "named"),
    [
        ("SentencePiece", {"type": "WordPiece", "prefix": "##", "cleanup": True}, "WordPiece"),
        ("byte-level BPE", {"type": "CTC"}, "CTC"),
        ("unigram", {"type": "BPEDecoder", "suffix": "</w>"}, "BPEDecoder"),
        ("WordPiece", {"type": "ByteFallback"}, "ByteFallback"),
    ],
)
def test_another_decoder_is_a_warning(
    path: str, decoder: dict[str, Any], named: str, tmp_path: Path
):
    MAKERS[path](tmp_path)
    edit(tmp_path, "tokenizer.json", decoder=decoder)
    report = VocabReport()
    read_vocab(tmp_path, {}, report=report)
    (warning,) = report.warnings
    assert f"llama.cpp's {path} does not have the decoder {named}" in warning
    assert warning.endswith("the text of answers differs")


def test_a_name_given_by_the_user_accepts_other_normalizers_with_a_warning(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    edit(tmp_path, "tokenizer.json", normalizer={"type": "Lowercase"})
    report = VocabReport()
    read_vocab(tmp_path, {}, pre="gpt-2", report=report)
    (warning,) = report.warnings
    assert "does not have the normalizer Lowercase; --pre gpt-2 accepts other tokens" in warning


@pytest.mark.parametrize("path", MAKERS)
def test_an_ordinary_tokenizer_has_no_warnings(path: str, tmp_path: Path):
    MAKERS[path](tmp_path)
    found = outcome(tmp_path, path)
    assert not isinstance(found, str)
    assert found[1] == ""


def test_bytes_of_a_unigram_model_are_a_warning(tmp_path: Path):
    MAKERS["unigram"](tmp_path)
    edit_model(tmp_path, byte_fallback=True)
    report = VocabReport()
    read_vocab(tmp_path, {}, report=report)
    assert "has the unknown token for those beyond ASCII" in " ".join(report.warnings)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "'BertJapaneseTokenizer' without a"),
        ({"do_basic_tokenize": False}, "do_basic_tokenize is false"),
        ({"never_split": ["a"]}, "never_split is"),
    ],
)
def test_settings_beside_a_vocab_txt_that_llama_cpp_does_not_have_are_refused(
    config: dict[str, Any], why: str, tmp_path: Path
):
    shutil.copy(VOCABULARIES / "bert" / "vocab.txt", tmp_path)
    read_vocab(tmp_path, {})
    edit(tmp_path, "tokenizer_config.json", **config)
    with pytest.raises(VocabError, match=why):
        read_vocab(tmp_path, {})


def test_files_that_disagree_about_capitals_are_refused(tmp_path: Path):
    shutil.copytree(VOCABULARIES / "bert", tmp_path, dirs_exist_ok=True)
    edit(tmp_path, "tokenizer_config.json", do_lower_case=False)
    with pytest.raises(VocabError, match=r"do_lower_case is false, but .* lowercase is true"):
        read_vocab(tmp_path, {})


@pytest.mark.slow
def test_files_that_disagree_about_the_space_before_a_text_are_a_warning(tmp_path: Path):
    plain_spm(tmp_path)
    edit(tmp_path, "tokenizer_config.json", add_prefix_space=False)
    report = VocabReport()
    keys = read_vocab(tmp_path, {}, report=report)
    assert keys["tokenizer.ggml.add_space_prefix"].value is False
    (warning,) = report.warnings
    assert "the rules add a space before a text, but tokenizer_config.json adds none" in warning
    edit(tmp_path, "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    report = VocabReport()
    read_vocab(tmp_path, {}, report=report)
    assert report.warnings == ()


@pytest.mark.slow
def test_a_kind_that_llama_cpp_does_not_have_is_refused_beside_a_tokenizer_model(tmp_path: Path):
    plain_spm(tmp_path)
    edit_model(tmp_path, type="WordLevel")
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece(pieces()))
    with pytest.raises(VocabError, match="kind 'WordLevel' is not supported"):
        read_vocab(tmp_path, {})


@pytest.mark.slow
def test_a_file_with_very_many_steps_is_refused_with_a_few_of_them(tmp_path: Path):
    plain_spm(tmp_path)
    many = [{"type": "Split", "pattern": {"String": str(i)}} for i in range(20_000)]
    edit(tmp_path, "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": many})
    with pytest.raises(VocabError) as e:
        read_vocab(tmp_path, {})
    assert len(e.value.messages) == 20


@pytest.mark.slow
@pytest.mark.parametrize("value", [[], {}, 3, None])
def test_values_of_a_wrong_kind_raise_no_other_errors(value: Any, tmp_path: Path):
    for path, make in MAKERS.items():
        folder = tmp_path / path
        folder.mkdir()
        make(folder)
        edit(folder, "tokenizer_config.json", tokenizer_class=value, extra_special_tokens=value)
        step = {"type": value, "single": [], "precompiled_charsmap": value, "pattern": value}
        for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
            edit(folder, "tokenizer.json", **{part: step})
            with contextlib.suppress(VocabError):
                read_vocab(folder, {"model_type": value})
