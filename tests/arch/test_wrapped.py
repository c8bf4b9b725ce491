"""A language model inside a larger one is converted as if alone, and the rest is reported."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import load_reference
from packers import Stored, write_stored
from places import TESTS
from subsets import slow_except

from dynquant.arch.families import families
from dynquant.arch.load import describe, load_model
from dynquant.arch.wrapped import OTHER_PARTS, Wrapped
from dynquant.checkpoint.safetensors import open_checkpoint
from dynquant.errors import ArchitectureError
from dynquant.plan.left_out import left_out
from dynquant.transforms import read_weights

NUMPY = {"F32": np.float32, "BF16": np.uint16, "F16": np.float16}


@dataclass(frozen=True)
class Form:
    """How a class stores its language model.

    place: the object with its settings, as a path; empty if they are among the larger model's
    trunk: what stands for `model.` in the names of its tensors
    head:  the name of its output matrix
    parts: stored names of other parts
    base:  the reference that is the language model
    """

    place: str
    trunk: str
    head: str
    parts: tuple[str, ...]
    base: str = "llama-2"


OLD = "language_model.model.", "language_model.lm_head.weight"
NEW = "model.language_model.", "lm_head.weight"
SEES = ("vision_tower.blocks.0.weight", "multi_modal_projector.linear_1.weight")
FORMS: dict[str, Form] = {
    "LlavaForConditionalGeneration": Form("text_config", *OLD, SEES),
    "LlavaOnevisionForConditionalGeneration": Form(
        "text_config", *NEW, ("model.vision_tower.a.weight", "model.image_newline")
    ),
    "InternVLChatModel": Form("llm_config", *OLD, ("vision_model.a.weight", "mlp1.1.weight")),
    "InternVLForConditionalGeneration": Form("text_config", *NEW, ("model.vision_tower.a",)),
    "Idefics3ForConditionalGeneration": Form(
        "text_config",
        "model.text_model.",
        "lm_head.weight",
        ("model.vision_model.a.weight", "model.connector.proj.weight"),
    ),
    "JanusForConditionalGeneration": Form(
        "language_config", *NEW, ("model.vision_model.a.weight", "model.aligner.a.weight")
    ),
    "KimiK25ForConditionalGeneration": Form(
        "text_config",
        *OLD,
        ("vision_tower.encoder.a.weight", "mm_projector.proj.0.weight"),
        "kimi-k2",
    ),
    "NemotronH_Nano_VL_V2": Form(
        "llm_config",
        "language_model.",  # before `backbone.`
        "language_model.lm_head.weight",
        ("vision_model.radio_model.a.weight", "mlp1.1.weight", "sound_encoder.a.weight"),
        "nemotron-h-moe",
    ),
    "Qwen2AudioForConditionalGeneration": Form(
        "text_config", *OLD, ("audio_tower.conv1.weight", "multi_modal_projector.linear.weight")
    ),
    "VoxtralForConditionalGeneration": Form("text_config", *OLD, ("audio_tower.conv1.weight",)),
}


def stored(folder: Path) -> Stored:
    """Return the tensors of a checkpoint, by name."""
    found: Stored = {}
    for name, tensor in open_checkpoint(folder).tensors.items():
        raw = np.empty(tensor.n_bytes, np.uint8)
        tensor.file.read(tensor.offset, raw)
        found[name] = (tensor.dtype, raw.view(NUMPY[tensor.dtype]).reshape(tensor.shape))
    return found


def wrap(folder: Path, class_: str, form: Form) -> Path:
    """Write a reference inside a larger model."""
    plain = load_reference(form.base).folder
    inner: dict[str, Any] = json.loads((plain / "config.json").read_text("utf-8"))
    config: dict[str, Any] = {"architectures": [class_], "model_type": "larger"}
    at = config
    *outer, last = form.place.split(".")
    for name in outer:
        at = at.setdefault(name, {})
    at[last] = inner
    config |= {"vision_config": {"hidden_size": 8}, "image_token_id": 5}
    tensors: Stored = {}
    for name, tensor in stored(plain).items():
        inside = form.trunk + name.removeprefix("model.")
        tensors[form.head if name == "lm_head.weight" else inside] = tensor
    for name in form.parts:
        tensors[name] = ("F32", np.ones((4, 4), np.float32))
    write_stored(folder, config, tensors)
    for file in (*plain.glob("token*"), *plain.glob("tiktoken*")):
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("class_", slow_except(list(FORMS)[:2], FORMS))
def test_tensors_and_keys_are_those_of_the_language_model_alone(
    class_: str, tmp_path: Path
) -> None:
    form = FORMS[class_]
    alone = load_model(load_reference(form.base).folder)
    inside = load_model(wrap(tmp_path / form.base, class_, form))
    assert inside.keys == alone.keys
    assert [t.name for t in inside.tensors] == [t.name for t in alone.tensors]
    for ours, expected in zip(inside.tensors, alone.tensors, strict=True):
        np.testing.assert_array_equal(
            read_weights(ours.source, 0, ours.n_rows),
            read_weights(expected.source, 0, expected.n_rows),
        )
    assert set(inside.ignored) - set(alone.ignored) == set(form.parts)
    of_file = [message.partition("config.json")[2] for message in alone.deviations]
    assert [message.partition("config.json")[2] for message in inside.deviations] == of_file


@pytest.mark.parametrize("class_", slow_except(list(FORMS)[:1], FORMS))
def test_each_other_part_is_one_warning_that_says_where_it_is(class_: str, tmp_path: Path) -> None:
    form = FORMS[class_]
    messages = list(left_out(load_model(wrap(tmp_path, class_, form)).ignored))
    assert 1 <= len(messages) <= 2
    assert all("convert_hf_to_gguf.py --mmproj" in m for m in messages)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("visual.blocks.0.attn.qkv.weight", "vision"),
        ("model.visual.merger.weight", "vision"),
        ("model.vision_model.x", "vision"),
        ("model.image_newline", "vision"),
        ("model.embed_vision.x", "vision"),
        ("model.mm_projector.0.bias", "vision"),
        ("model.audio_tower.layers.0.x", "audio"),
        ("model.embed_audio.x", "audio"),
    ],
)
def test_parts_are_known_by_their_names(name: str, kind: str) -> None:
    (part,) = {what for pattern, what in OTHER_PARTS.items() if re.fullmatch(pattern, name)}
    assert part.startswith(f"the {kind} model, which llama.cpp reads from a separate file")


@pytest.mark.slow
def test_a_tensor_of_an_unknown_part_is_refused(tmp_path: Path) -> None:
    form = Form("text_config", *OLD, ("third_part.weight",))
    with pytest.raises(ArchitectureError, match=r"third_part\.weight is not a tensor of llama"):
        load_model(wrap(tmp_path, "LlavaForConditionalGeneration", form))


def test_a_language_model_that_is_not_supported_is_named() -> None:
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": {"architectures": ["OtherForCausalLM"], "model_type": "other"},
    }
    with pytest.raises(ArchitectureError) as error:
        describe(config, "config.json")
    (message,) = error.value.messages
    assert message.startswith(
        "config.json: settings of the language model: architecture 'OtherForCausalLM' is not"
    )


def test_settings_of_a_language_model_that_are_missing_are_refused() -> None:
    config = {"architectures": ["LlavaForConditionalGeneration"], "vision_config": {"a": 1}}
    with pytest.raises(ArchitectureError, match="has no settings of a language model"):
        describe(config, "config.json")


def test_settings_that_are_not_stated_have_the_defaults_of_the_class() -> None:
    """The published config.json of Llava 1.5 states only these settings of its Vicuna."""
    text = {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    }
    config = {"architectures": ["LlavaForConditionalGeneration"], "text_config": text}
    found = describe(config, "config.json")
    assert found.sizes == {
        "vocab": 32064,
        "hidden": 4096,
        "ffn": 11008,
        "q": 4096,
        "kv": 4096,
        "head": 128,
    }
    assert found.keys["llama.rope.freq_base"].value == 10000
    assert found.deviations == ()


def test_defaults_are_those_of_transformers() -> None:
    """The oracle is stored by make_config_fields.py."""
    from dynquant.arch.wrapped import TEXT_DEFAULTS

    path = TESTS / "references" / "config_fields.json"
    fields: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8"))
    classes = {
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
    }
    for model_type, class_ in classes.items():
        assert TEXT_DEFAULTS[model_type].items() <= fields[class_].items()


def test_classes_around_any_language_model_are_registered() -> None:
    generic = {n for n, f in families().items() if isinstance(f, Wrapped) and f.family is None}
    assert generic >= FORMS.keys()
