"""The table of readers of GGUF; the gguf package is the oracle for what transformers reads."""

from __future__ import annotations

from datetime import date
from itertools import product

import gguf.quants
import pytest

from dynquant.errors import EncodeError
from dynquant.quants.readers import (
    READERS,
    Reader,
    fallback_read,
    reader_name,
    readers_text,
    similar_read,
    unread,
)
from dynquant.quants.table import ALL, FLOATS, KEPT

NAMED = ("llama.cpp", "Ollama", "LM Studio", "vLLM", "mistral.rs", "candle", "transformers")


def test_the_readers_people_use_are_listed() -> None:
    assert set(NAMED) <= READERS.keys()


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_every_type_of_a_reader_is_known_and_its_source_is_named(reader: Reader) -> None:
    known = ALL.keys() | KEPT.keys()
    for types in (reader.types, *reader.of.values()):
        assert types <= known
        assert {"F32", "F16"} <= types, "no reader is without floats"
    assert reader.since.keys() <= reader.types
    assert date.fromisoformat(reader.date) <= date.today()
    assert reader.version and reader.source


@pytest.mark.parametrize("name", ALL)
def test_every_type_has_an_answer_for_each_reader(name: str) -> None:
    answers = unread([name], "llama")
    assert answers.keys() == READERS.keys()
    assert answers["llama.cpp"] == ()
    assert set(answers.values()) <= {(), (name,)}


def test_transformers_reads_what_the_gguf_package_dequantizes() -> None:
    traits: dict[gguf.GGMLQuantizationType, object] = vars(gguf.quants)["_type_traits"]
    dequantized = {"F32", "F16", *(type_.name for type_ in traits)}
    assert READERS["transformers"].types & ALL.keys() == dequantized & ALL.keys()


def test_adapters_are_read_only_by_readers_that_load_them() -> None:
    reading = {n for n, absent in unread(["F32"], "llama", is_adapter=True).items() if not absent}
    assert reading == {name for name, reader in READERS.items() if reader.adapters}
    assert {"llama.cpp", "Ollama"} <= reading < READERS.keys()
    text = readers_text(["F32"], "llama", is_adapter=True)
    assert text.startswith("llama.cpp, Ollama") and "(LoRA adapters in GGUF)" in text


def test_types_can_depend_on_the_architecture() -> None:
    mistral = READERS["mistral.rs"]
    assert (mistral.reads("MXFP4"), mistral.reads("MXFP4", "gpt-oss")) == (False, True)
    assert mistral.exceptions("MXFP4") == ("gpt-oss",)
    assert mistral.exceptions("Q4_K") == ()


def test_text_groups_readers_by_what_they_do_not_read() -> None:
    text = readers_text(["Q4_K", "IQ4_NL", "F32"], "llama")
    assert text == (
        "llama.cpp, Ollama, LM Studio, vLLM, transformers, ik_llama.cpp; not mistral.rs, candle"
        " (IQ4_NL)"
    )


def test_text_names_an_architecture_that_a_reader_does_not_list() -> None:
    text = readers_text(["Q4_K"], "deepseek2")
    assert text.endswith(
        "mistral.rs, ik_llama.cpp; not candle, transformers (architecture deepseek2)"
    )


@pytest.mark.parametrize(
    ("name", "near"),
    [("mistralrs", "mistral.rs"), ("LMStudio", "LM Studio"), ("vllm", "vLLM"), ("lama", None)],
)
def test_unknown_reader_is_refused_with_the_nearest_name(name: str, near: str | None) -> None:
    with pytest.raises(EncodeError) as e:
        reader_name(name)
    (message,) = e.value.messages
    hint = f"; did you mean {near}?" if near else ""
    assert message.startswith(f"{name!r} is not a reader{hint}")
    assert message.endswith(" (known: " + ", ".join(READERS) + ")")


@pytest.mark.parametrize(
    ("wanted", "similar"),
    [("IQ4_NL", "Q4_K"), ("IQ4_XS", "Q4_K"), ("IQ3_S", "Q3_K"), ("IQ2_XXS", "Q2_K")],
)
def test_suggested_type_has_about_the_size_of_the_one_that_is_not_read(
    wanted: str, similar: str
) -> None:
    assert similar_read(ALL[wanted], ["candle"]).name == similar


@pytest.mark.parametrize("wanted", [n for n in ALL if n not in FLOATS])
def test_fallback_type_fits_is_read_and_has_no_fewer_bits(wanted: str) -> None:
    for reader, n_per_row in product(READERS.values(), (32, 64, 96, 128, 384)):
        found = fallback_read(ALL[wanted], n_per_row, [reader.name], "llama")
        assert found is not None
        assert n_per_row % found.block_size == 0
        assert reader.reads(found.name, "llama")
        assert found.bpw >= ALL[wanted].bpw


@pytest.mark.parametrize(
    ("wanted", "taken"), [("Q2_K", "Q4_0"), ("Q4_K", "Q4_1"), ("Q5_K", "Q5_1"), ("Q6_K", "Q8_0")]
)
def test_fallback_type_of_candle_is_the_smallest_without_a_larger_error(
    wanted: str, taken: str
) -> None:
    found = fallback_read(ALL[wanted], 96, ["candle"], "llama")
    assert found is not None and found.name == taken
