"""Names and texts that change how llama.cpp loads a vocabulary; the oracle is llama.cpp."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from gguf import TokenType
from handmade import model as handmade_model
from handmade import recipe
from subsets import slow_except
from vocab_files import ends, pieces, tokenize, train, write_model

from dynquant.errors import PlanError
from dynquant.keys import Keys, boolean, f32s, i32s, string, strings, u32
from dynquant.plan.make import make_plan
from dynquant.vocab import read_vocab
from dynquant.vocab.loading import (
    INFILL,
    INFILL_ENDS,
    KNOWN_ENDS,
    NAMED_CASES,
    NO_ENDS,
    SHOWN,
    Trims,
    loading_problems,
    loading_warnings,
)
from dynquant.vocab.pretypes import GPT_2

PHI = ("<|endoftext|>", "<|user|>", "<|end|>")
"""Phi-3's special tokens beside Llama's."""


def vocabulary(*more: str, kind: TokenType = TokenType.CONTROL, name: str = "Small") -> Keys:
    """Return the keys of a small SentencePiece vocabulary with further tokens of one type."""
    texts, scores, types = zip(*pieces(), strict=True)
    return {
        "general.architecture": string("llama"),
        "general.name": string(name),
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.pre": string("default"),
        "tokenizer.ggml.tokens": strings([*texts, *more]),
        "tokenizer.ggml.scores": f32s([*scores, *(-1000.0 for _ in more)]),
        "tokenizer.ggml.token_type": i32s([*types, *(int(kind) for _ in more)]),
        "tokenizer.ggml.bos_token_id": u32(1),
        "tokenizer.ggml.eos_token_id": u32(2),
    }


def written(path: Path, keys: Keys) -> Path:
    """Write the keys beside those that the smallest model has itself."""
    return write_model(path, {k: v for k, v in keys.items() if k != "general.architecture"})


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("name", ["My phi-3 tune", "PHI3", "My tune", "phi 3"])
@pytest.mark.parametrize("more", [(), PHI])
def test_llama_cpp_does_not_load_a_name_of_phi_3_without_its_tokens(
    name: str, more: tuple[str, ...], tmp_path: Path
):
    keys = vocabulary(*more, name=name)
    problems = loading_problems(keys)
    path = written(tmp_path / "model.gguf", keys)
    if name in ("My tune", "phi 3") or more:
        assert problems == []
        tokenize(path, ["a"])
        return
    (problem,) = problems
    assert "'<|endoftext|>'" in problem
    assert "(--set general.name=NAME)" in problem
    with pytest.raises(RuntimeError, match="does not load"):
        tokenize(path, ["a"])


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("case", NAMED_CASES, ids=lambda case: case.parts[0])
def test_llama_cpp_removes_spaces_as_the_table_of_names_states(case, tmp_path: Path):
    if case.key == "general.architecture":
        pytest.skip("the smallest model of tests is a Llama")
    tokens = (*PHI, "<mask>", "[MASK]")
    changed = {case.key: string(case.parts[-1])}
    if case.key == "tokenizer.ggml.pre":
        # Only byte-level vocabularies have one in llama.cpp, but it looks at the key in all.
        changed["tokenizer.ggml.model"] = string("llama")
    keys = vocabulary(*tokens) | changed
    model = written(tmp_path / "model.gguf", keys)
    ids = {text: len(pieces()) + i for i, text in enumerate(tokens)} | {"</s>": 2, "<s>": 1}
    removed: dict[str, set[str]] = {"left": set(), "right": set()}
    for text, i in ids.items():
        plain, left, right = tokenize(
            model, [f"ba{text}ba", f"ba {text}ba", f"ba{text} ba"], add_special=False
        )
        assert i in plain
        if left == plain:
            removed["left"].add(text)
        if right == plain:
            removed["right"].add(text)
    (warning,) = [w for w in loading_warnings(keys, Trims(), {}) if "removes the spaces" in w]
    assert all(repr(text) in warning for text in removed[case.side])
    found = Trims(frozenset(removed["left"]), frozenset(removed["right"]))
    trimmed = [w for w in loading_warnings(keys, found, {}) if "spaces" in w]
    assert removed[case.side]
    assert all("'<unk>'" not in w and repr(t) not in w for w in trimmed for t in ids)


def test_spaces_that_only_the_tokenizer_removes_are_reported_with_the_name_that_helps():
    trims = Trims(right=frozenset(PHI))
    (warning,) = loading_warnings(vocabulary(*PHI), trims, {})
    assert warning == (
        "added tokens with rstrip ('<|endoftext|>', '<|end|>', '<|user|>') remove the spaces after"
        " them, but llama.cpp keeps these spaces; llama.cpp does so if general.name contains"
        " 'phi-3' (--set general.name=NAME)"
    )
    (warning,) = loading_warnings(vocabulary("<x>"), Trims(left=frozenset(["<x>"])), {})
    assert warning.endswith("but llama.cpp keeps these spaces")


TEXTS = sorted(KNOWN_ENDS | INFILL_ENDS | INFILL)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", [TokenType.NORMAL, TokenType.USER_DEFINED])
@pytest.mark.parametrize("text", slow_except(["</s>", "<EOT>"], TEXTS))
def test_llama_cpp_treats_tokens_by_their_texts_as_the_tables_state(
    text: str, kind: TokenType, tmp_path: Path
):
    if text == "</s>":
        pytest.skip("a special token of the vocabulary")
    keys = vocabulary(text, kind=kind)
    model = written(tmp_path / "model.gguf", keys)
    warning, *_ = loading_warnings(keys, Trims(), {})
    assert repr(text) in warning
    stops = len(pieces()) in ends(model)
    assert stops is warning.startswith("llama.cpp stops at")
    # Control tokens are found only if they are to be parsed.
    plain, parsed = (
        tokenize(model, [f"a{text}b"], add_special=False, parse_special=parse)[0]
        for parse in (False, True)
    )
    assert len(pieces()) in parsed
    assert kind is TokenType.NORMAL or len(pieces()) not in plain


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("text", sorted(SHOWN))
def test_llama_cpp_finds_gpt_oss_tokens_in_every_text(text: str, tmp_path: Path):
    keys = vocabulary(text)
    model = written(tmp_path / "model.gguf", keys)
    (ids,) = tokenize(model, [f"a{text}b"], add_special=False, parse_special=False)
    assert len(pieces()) in ids
    assert f"llama.cpp shows {text!r} in answers" in loading_warnings(keys, Trims(), {})[0]
    of_family = keys | {"general.architecture": string("gpt-oss")}
    assert loading_warnings(of_family, Trims(), {}) == []


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("text", "others"), [(text, others) for text, lists in NO_ENDS.items() for others in lists]
)
def test_llama_cpp_does_not_stop_at_an_end_that_other_tokens_cancel(
    text: str, others: tuple[str, ...], tmp_path: Path
):
    more = dict.fromkeys((*others, *([] if text == "</s>" else [text])))
    keys = vocabulary(*more)
    texts = keys["tokenizer.ggml.tokens"].value
    assert isinstance(texts, tuple)
    keys["tokenizer.ggml.eos_token_id"] = u32(texts.index(text))
    if others == ("<|plamo:eos|>",):
        # It must be an end itself.
        keys["tokenizer.ggml.eot_token_id"] = u32(texts.index(others[0]))
    model = written(tmp_path / "model.gguf", keys)
    assert texts.index(text) not in ends(model)
    (warning,) = loading_warnings(keys, Trims(), {})
    assert f"does not stop at {text!r}, the eos token" in warning


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"tokenizer.ggml.pre": string("gemma4")}, "for pre-tokenizer gemma4"),
        ({"tokenizer.ggml.model": string("bert")}, "for tokenizer bert"),
    ],
)
def test_a_first_token_that_is_always_added_is_a_warning(changed: Keys, why: str):
    keys = vocabulary() | changed | {"tokenizer.ggml.seperator_token_id": u32(2)}
    assert loading_warnings(keys, Trims(), {}) == []
    keys["tokenizer.ggml.add_bos_token"] = boolean(False)
    (warning,) = loading_warnings(keys, Trims(), {})
    assert warning.endswith(f"always adds the first token {why}")


@pytest.mark.slow
def test_the_template_that_llama_cpp_assumes_for_mistral_small_is_a_warning():
    keys = vocabulary() | {
        "llama.block_count": u32(40),
        "tokenizer.ggml.pre": string("tekken"),
    }
    assert "mistral-v7-tekken" in loading_warnings(keys, Trims(), {})[0]
    keys["tokenizer.chat_template"] = string("{{ x }}")
    assert loading_warnings(keys, Trims(), {}) == []


@pytest.mark.slow
def test_a_plan_checks_the_name_that_is_set():
    keys = vocabulary()
    model = replace(handmade_model(), keys=keys, trims=Trims())
    assert make_plan(model, recipe()).warnings == ()
    with pytest.raises(PlanError, match=r"general.name is 'my Phi-3': .* '<.endoftext.>'"):
        make_plan(model, recipe(), set_keys={"general.name": "my Phi-3"})
    whole = replace(model, keys=vocabulary(*PHI))
    (warning,) = make_plan(whole, recipe(), set_keys={"general.name": "my Phi-3"}).warnings
    assert warning.startswith(
        "general.name contains 'phi-3', so llama.cpp removes the spaces after"
    )


def test_a_gguf_is_compared_with_the_name_that_it_had():
    source = replace(handmade_model(), keys=vocabulary(*PHI, name="phi-3"))
    assert make_plan(source, recipe()).warnings == ()
    (warning,) = make_plan(source, recipe(), set_keys={"general.name": "Mine"}).warnings
    assert warning.startswith("added tokens with rstrip")


@pytest.mark.slow
@pytest.mark.oracle
def test_llama_cpp_stops_at_an_ordinary_token_if_no_end_is_named(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    named = read_vocab(tmp_path, {})
    assert [w for w in loading_warnings(named, Trims(), {}) if "no file names" in w] == []
    end = "tokenizer.ggml.eos_token_id"
    keys = {name: key for name, key in named.items() if name != end}
    found = [w for w in loading_warnings(keys, Trims(), {}) if "no file names" in w]
    (text,) = (keys["tokenizer.ggml.tokens"].value[11],)  # type: ignore[index]
    assert found == [
        f"no file names the eos token, so llama.cpp stops at {text!r}, token 11; name it in"
        f" tokenizer_config.json, or give --set {end}=ID"
    ]
    assert 11 in ends(write_model(tmp_path / "m.gguf", keys))
    assert 11 not in ends(write_model(tmp_path / "n.gguf", named))


@pytest.mark.slow
@pytest.mark.oracle
def test_llama_cpp_adds_an_ordinary_token_if_no_first_token_is_named(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    keys = dict(read_vocab(tmp_path, {}))
    del keys["tokenizer.ggml.bos_token_id"]
    keys["tokenizer.ggml.add_bos_token"] = boolean(True)
    (warning,) = [w for w in loading_warnings(keys, Trims(), {}) if "no file names" in w]
    assert "so llama.cpp adds" in warning
    assert tokenize(write_model(tmp_path / "m.gguf", keys), ["a"])[0][0] == 11
