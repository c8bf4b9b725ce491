"""Projectors that hear: what llama.cpp cannot compute is refused, and what differs is reported."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import REFERENCES

from dynquant.arch.load import load_model
from dynquant.arch.load_projector import load_projector
from dynquant.arch.towers.whole import Whole
from dynquant.errors import ArchitectureError
from dynquant.tensors import row_bytes
from dynquant.transforms import read_weights

FOLDER = REFERENCES / "projectors"
ALL = ("qwen2.5omni", "qwen2audio", "qwen3omni", "ultravox", "voxtral")
WHISPER = ("qwen2.5omni", "qwen2audio", "ultravox", "voxtral")
Change = Callable[[dict[str, Any]], None]


def changed(case: str, into: Path, change: Change, name: str = "config.json") -> Path:
    """Copy a reference with one of its JSON files changed, and return the copy's folder."""
    folder = into / case
    shutil.copytree(FOLDER / case, folder)
    content = json.loads((folder / name).read_text("utf-8"))
    change(content)
    (folder / name).write_text(json.dumps(content), "utf-8")
    return folder


def renamed(case: str, into: Path, rename: Callable[[str], str]) -> Path:
    """Copy a reference with other names of tensors."""
    folder = into / case
    shutil.copytree(FOLDER / case, folder)
    path = folder / "model.safetensors"
    stored = path.read_bytes()
    (n,) = struct.unpack_from("<Q", stored)
    header = {rename(name): v for name, v in json.loads(stored[8 : 8 + n]).items()}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + stored[8 + n :])
    return folder


def heard(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the audio encoder."""
    return config.get("thinker_config", config)["audio_config"]


def refusal(folder: Path) -> str:
    with pytest.raises(ArchitectureError) as e:
        load_projector(folder)
    return str(e.value)


@pytest.mark.parametrize("case", ALL)
def test_another_activation_is_refused(case: str, tmp_path: Path) -> None:
    folder = changed(case, tmp_path, lambda c: heard(c).update(activation_function="silu"))
    assert "activation_function is 'silu'" in refusal(folder)


@pytest.mark.parametrize("case", WHISPER)
def test_other_windows_are_refused(case: str, tmp_path: Path) -> None:
    folder = changed(case, tmp_path, lambda c: heard(c).update(max_source_positions=750))
    assert "max_source_positions is 750" in refusal(folder)


@pytest.mark.parametrize(("name", "value"), [("n_window", 100), ("n_window_infer", 400)])
def test_other_windows_of_qwen3_omni_are_refused(name: str, value: int, tmp_path: Path) -> None:
    folder = changed("qwen3omni", tmp_path, lambda c: heard(c).update({name: value}))
    assert f"{name} is {value}" in refusal(folder)


@pytest.mark.parametrize("case", ALL)
@pytest.mark.parametrize(
    ("name", "value"),
    [("hop_length", 320), ("n_fft", 512), ("sampling_rate", 8000), ("feature_size", 80)],
)
def test_another_spectrogram_is_refused(case: str, name: str, value: int, tmp_path: Path) -> None:
    other = "preprocessor_config.json"
    folder = changed(case, tmp_path, lambda c: c.update({name: value}), other)
    assert f"feature extractor: {name} is {value}; llama.cpp computes" in refusal(folder)


def test_a_spectrogram_without_settings_is_that_of_the_class(tmp_path: Path) -> None:
    folder = tmp_path / "voxtral"
    shutil.copytree(FOLDER / "voxtral", folder)
    (folder / "preprocessor_config.json").unlink()
    assert load_projector(folder).keys == load_projector(FOLDER / "voxtral").keys


@pytest.mark.parametrize("case", ALL)
def test_heads_that_do_not_divide_the_width_are_refused(case: str, tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        its = heard(config)
        its["num_attention_heads" if "hidden_size" in its else "encoder_attention_heads"] = 7

    assert "not a multiple of the 7 heads" in refusal(changed(case, tmp_path, change))


def test_settings_under_two_names_must_agree(tmp_path: Path) -> None:
    folder = changed("qwen2audio", tmp_path, lambda c: heard(c).update(num_hidden_layers=2))
    assert "encoder_layers is 3, but num_hidden_layers is 2" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("projector_act", "gelu", "projector_act is 'gelu'"),
        ("projector_ln_mid", False, "projector_ln_mid is false"),
        ("num_projector_layers", 2, "num_projector_layers is 2"),
        ("audio_latency_block_size", 100, "audio_latency_block_size is 100"),
        ("hidden_size", 51, "hidden_size is 51; it must be even"),
        ("audio_model_id", "openai/whisper-tiny", "audio_model_id is 'openai/whisper-tiny'"),
    ],
)
def test_other_forms_of_ultravox_are_refused(
    name: str, value: object, message: str, tmp_path: Path
) -> None:
    assert message in refusal(changed("ultravox", tmp_path, lambda c: c.update({name: value})))


@pytest.mark.parametrize(("width", "stops"), [(1280, False), (1024, True), (768, True)])
def test_widths_whose_frames_llama_cpp_miscounts_are_refused(
    width: int, stops: bool, tmp_path: Path
) -> None:
    """Whisper large works; small and medium abort (GGML_PAD with no power of two, and with one)."""
    change = {"d_model": width, "encoder_attention_heads": 2}
    found = refusal(changed("ultravox", tmp_path, lambda c: heard(c).update(change)))
    assert ("miscounts them and stops" in found) == stops


def test_an_activation_of_voxtral_other_than_gelu_is_refused(tmp_path: Path) -> None:
    folder = changed("voxtral", tmp_path, lambda c: c.update(projector_hidden_act="relu"))
    assert "projector_hidden_act is 'relu'" in refusal(folder)


def test_a_stack_that_is_no_multiple_of_the_width_is_refused(tmp_path: Path) -> None:
    folder = changed("voxtral", tmp_path, lambda c: heard(c).update(intermediate_size=90))
    assert "intermediate_size is 90, which is not a multiple of hidden_size 20" in refusal(folder)


@pytest.mark.parametrize("width", [2, 27])
def test_positions_without_sines_and_cosines_are_refused(width: int, tmp_path: Path) -> None:
    change = {"d_model": width, "encoder_attention_heads": 1}
    folder = changed("qwen3omni", tmp_path, lambda c: heard(c).update(change))
    assert f"hidden_size is {width}; positions are as many sines as cosines" in refusal(folder)


def test_the_encoder_of_an_ultravox_without_its_language_model_is_read(tmp_path: Path) -> None:
    """As published in version 0.5: text_model_id names the language model."""

    def change(config: dict[str, Any]) -> None:
        del config["text_config"]
        config["text_model_id"] = "an/llama"

    folder = changed("ultravox", tmp_path, change)
    assert load_projector(folder).keys == load_projector(FOLDER / "ultravox").keys
    with pytest.raises(ArchitectureError, match="the language model is another one, 'an/llama'"):
        load_model(folder)


@pytest.mark.parametrize("case", ["qwen2audio", "voxtral"])
def test_names_of_newer_programs_are_read(case: str, tmp_path: Path) -> None:
    part = re.compile(r"(audio_tower|multi_modal_projector)\.")
    folder = renamed(case, tmp_path, lambda n: f"model.{n}" if part.match(n) else n)
    assert [t.name for t in load_projector(folder).tensors] == [
        t.name for t in load_projector(FOLDER / case).tensors
    ]


@pytest.mark.parametrize("case", ["qwen2.5omni", "qwen3omni"])
def test_an_omni_saved_without_what_speaks_has_the_same_projector(
    case: str, tmp_path: Path
) -> None:
    folder = renamed(case, tmp_path, lambda n: n.removeprefix("thinker."))
    whole = json.loads((folder / "config.json").read_text("utf-8"))
    kind = whole["architectures"][0].replace("For", "ThinkerFor")
    alone = {**whole["thinker_config"], "architectures": [kind]}
    (folder / "config.json").write_text(json.dumps(alone), "utf-8")
    found, usual = load_projector(folder), load_projector(FOLDER / case)
    named = "general.name", "general.basename", "general.finetune"
    assert {n: v for n, v in found.keys.items() if n not in named} == {
        n: v for n, v in usual.keys.items() if n not in named
    }
    for one, other in zip(found.tensors, usual.tensors, strict=True):
        assert one.name == other.name
        assert np.array_equal(
            read_weights(one.source, 0, one.n_rows), read_weights(other.source, 0, other.n_rows)
        )


def test_the_width_that_qwen2_audio_does_not_state_is_that_of_its_class(tmp_path: Path) -> None:
    """As published: hidden_size of the language model is left out."""
    whole = Whole.of({"text_config": {"model_type": "qwen2", "vocab_size": 156032}}, tmp_path)
    assert whole.n_text == 4096


def test_computed_positions_are_the_same_in_any_range() -> None:
    tensors = {t.name: t for t in load_projector(FOLDER / "qwen3omni").tensors}
    source = tensors["a.position_embd.weight"].source
    all_rows = read_weights(source, 0, 1500)
    assert np.array_equal(read_weights(source, 700, 703), all_rows[700:703])
    assert row_bytes(source) == 4 * 24
    assert np.allclose(all_rows[3, [0, 12]], [np.sin(3), np.cos(3)], atol=1e-6)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("voxtral", "averages each two frames of the encoder"),
        ("ultravox", "fills the last 30 seconds of a sound with silence"),
        ("qwen2audio", "fills the last 30 seconds of a sound with silence"),
        ("qwen2.5omni", "the model's own code computes windows of 30 seconds"),
        ("qwen2.5omni", "puts <|vision_start|> and <|vision_end|> around pictures"),
        ("qwen3omni", "fills a sound up to a whole second"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_reported(case: str, message: str) -> None:
    assert sum(message in warning for warning in load_projector(FOLDER / case).deviations) == 1


def test_an_unknown_setting_is_reported(tmp_path: Path) -> None:
    folder = changed("voxtral", tmp_path, lambda c: heard(c).update(new_kind="x"))
    assert any("'new_kind'" in warning for warning in load_projector(folder).deviations)


@pytest.mark.parametrize("case", ALL)
def test_settings_as_transformers_writes_them_are_known(case: str) -> None:
    found = load_projector(FOLDER / case).deviations
    assert [warning for warning in found if "not known as a setting" in warning] == []
