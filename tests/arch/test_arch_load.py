from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    ARCHITECTURES,
    config_of,
    shapes_of,
    tensors_of,
    write_checkpoint,
    write_holes,
)
from gguf import MODEL_ARCH, get_tensor_name_map
from packers import Stored, write_stored

from dynquant.arch.base import Model, ModelTensor
from dynquant.arch.load import load_model
from dynquant.errors import ArchitectureError, CheckpointError, DynquantError, VocabError
from dynquant.keys import Keys, string
from dynquant.plan.left_out import left_out
from dynquant.tensors import row_bytes

MODEL_ARCHS = {
    "LlamaForCausalLM": MODEL_ARCH.LLAMA,
    "MistralForCausalLM": MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": MODEL_ARCH.QWEN3,
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((a, {}) for a in ARCHITECTURES),
    ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    ("LlamaForCausalLM", {"head_dim": 10}),
    ("LlamaForCausalLM", {"num_key_value_heads": None}),
    ("Qwen3ForCausalLM", {"head_dim": 10}),
]


@pytest.fixture(autouse=True)
def vocab(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the tokenizer, which is tested elsewhere, by one key."""

    def read_vocab(folder: Path, config: object, *, pre: str | None, **_: object) -> Keys:
        return {"tokenizer.ggml.model": string(pre or "none")}

    monkeypatch.setattr("dynquant.arch.load.read_vocab", read_vocab)


def rows(tensor: ModelTensor) -> np.ndarray:
    into = np.empty(tensor.n_rows * row_bytes(tensor.source), np.uint8)
    tensor.source.read(0, tensor.n_rows, into)
    return into.view("<f4").reshape(tensor.shape)


def load(folder: Path, architecture: str, **changes: Any) -> tuple[Model, dict[str, np.ndarray]]:
    config = config_of(architecture, **changes)
    tensors = tensors_of(config)
    return load_model(write_checkpoint(folder, config, tensors)), tensors


def refusal(folder: Path) -> DynquantError:
    with pytest.raises(DynquantError) as e:
        load_model(folder)
    return e.value


def gguf_names(architecture: str, stored: dict[str, np.ndarray]) -> dict[str, str]:
    """GGUF name → stored name, by the gguf package's own map."""
    names = get_tensor_name_map(MODEL_ARCHS[architecture], 2)
    found = {names.get_name(n, try_suffixes=(".weight", ".bias")): n for n in stored}
    assert None not in found
    return found


@pytest.mark.parametrize(("architecture", "changes"), VARIANTS)
def test_tensor_names_equal_the_gguf_packages_map(
    tmp_path: Path, architecture: str, changes: dict[str, Any]
) -> None:
    model, stored = load(tmp_path, architecture, **changes)
    assert {t.name for t in model.tensors} == set(gguf_names(architecture, stored))
    assert len(model.tensors) == len(stored)
    assert model.ignored == {}


@pytest.mark.parametrize(("architecture", "changes"), VARIANTS)
def test_rows_are_unchanged_except_q_and_k_of_llama(
    tmp_path: Path, architecture: str, changes: dict[str, Any]
) -> None:
    model, stored = load(tmp_path, architecture, **changes)
    names = gguf_names(architecture, stored)
    for tensor in model.tensors:
        expected = stored[names[tensor.name]]
        if model.architecture == "llama" and tensor.parts.role in ("attn_q", "attn_k"):
            heads = changes.get("num_key_value_heads", 2) or 4
            heads = 4 if tensor.parts.role == "attn_q" else heads
            halves = expected.reshape(heads, 2, -1, *expected.shape[1:])
            expected = halves.swapaxes(1, 2).reshape(expected.shape)
        np.testing.assert_array_equal(rows(tensor), expected, err_msg=tensor.name)


def test_tensors_come_layer_by_layer_between_embedding_and_output(tmp_path: Path) -> None:
    model, _ = load(tmp_path, "Qwen3ForCausalLM", num_hidden_layers=12)
    layers = [t.parts.layer for t in model.tensors]
    assert layers == [None] + [i for i in range(12) for _ in range(11)] + [None, None]
    assert [t.name for t in model.tensors if t.parts.layer is None] == [
        "token_embd.weight",
        "output_norm.weight",
        "output.weight",
    ]


def test_vocabulary_keys_come_last_and_pre_is_passed_on(tmp_path: Path) -> None:
    config = config_of("LlamaForCausalLM")
    write_checkpoint(tmp_path, config, tensors_of(config))
    keys = load_model(tmp_path, pre="llama-bpe").keys
    assert list(keys)[-1] == "tokenizer.ggml.model"
    assert keys["tokenizer.ggml.model"].value == "llama-bpe"


def test_llama3_scaling_is_a_computed_tensor(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model, _ = load(tmp_path, "LlamaForCausalLM", rope_scaling=scaling)
    (tensor,) = (t for t in model.tensors if t.name == "rope_freqs.weight")
    assert tensor.shape == (2,)
    assert rows(tensor)[0] == 1.0
    assert not [key for key in model.keys if "rope.scaling" in key]


def test_rotary_frequencies_are_ignored_with_the_reason(tmp_path: Path) -> None:
    config = config_of("LlamaForCausalLM")
    names = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(2)]
    extra = dict.fromkeys(names, np.ones(2, np.float32))
    model = load_model(write_checkpoint(tmp_path, config, tensors_of(config) | extra))
    assert list(model.ignored) == names
    assert all("computes the rotary frequencies" in reason for reason in model.ignored.values())


BUFFERS: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("model.layers.0.self_attn.bias", (1, 1, 8, 8)),
    ("model.layers.0.attn.masked_bias", ()),
    ("model.layers.0.self_attn.masked_bias", (1,)),
    ("model.position_ids", (1, 8)),
    ("model.layers.0.self_attn.rotary_emb.cos_cached", (1, 1, 8, 4)),
    ("model.layers.0.self_attn.rotary_emb.sin_cached", (8, 4)),
    ("model.rotary_emb.original_inv_freq", (2,)),
)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen3ForCausalLM"])
def test_constants_that_old_programs_stored_are_ignored_without_a_warning(
    architecture: str, tmp_path: Path
) -> None:
    config = config_of(architecture)
    extra = {name: np.ones(shape, np.float32) for name, shape in BUFFERS}
    model = load_model(write_checkpoint(tmp_path, config, tensors_of(config) | extra))
    assert model.ignored.keys() == extra.keys()
    assert list(left_out(model.ignored)) == []


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.bias", (16,)),
        ("model.layers.0.self_attn.bias", (1, 2, 8, 8)),
        ("model.layers.0.attn.masked_bias", (8,)),
        ("model.position_ids", (2, 8)),
        ("model.layers.0.self_attn.rotary_emb.cos_cached", (4,)),
        ("model.layers.0.mlp.bias", (1, 1, 8, 8)),
    ],
)
def test_tensors_of_other_shapes_are_no_such_constants(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    config = config_of("LlamaForCausalLM")
    stored = tensors_of(config) | {name: np.zeros(shape, np.float32)}
    with pytest.raises(ArchitectureError, match=f"{name} is not a tensor of llama"):
        load_model(write_checkpoint(tmp_path, config, stored))


def test_names_without_the_prefix_of_the_model_are_recognised(tmp_path: Path) -> None:
    config = config_of("Qwen3ForCausalLM", tie_word_embeddings=True)
    stored = {n.removeprefix("model."): x for n, x in tensors_of(config).items()}
    model = load_model(write_checkpoint(tmp_path, config, stored))
    assert len(model.tensors) == len(stored)


class TestTied:
    """Models whose config.json ties the output matrix to the embedding."""

    def stored(self, folder: Path, **tensors: np.ndarray | None) -> Model:
        config = config_of("LlamaForCausalLM", tie_word_embeddings=True)
        found = tensors_of(config) | {n.replace("__", "."): x for n, x in tensors.items()}
        kept = {n: x for n, x in found.items() if x is not None}
        return load_model(write_checkpoint(folder, config, kept))

    def names(self, model: Model) -> set[str]:
        return {t.name for t in model.tensors if t.parts.layer is None}

    def test_a_tied_model_without_a_stored_head_has_no_output(self, tmp_path: Path) -> None:
        assert self.names(self.stored(tmp_path)) == {"token_embd.weight", "output_norm.weight"}

    def test_an_equal_head_is_ignored_with_the_reason(self, tmp_path: Path) -> None:
        embedding = tensors_of(config_of("LlamaForCausalLM"))["model.embed_tokens.weight"]
        both = {"model__embed_tokens__weight": embedding, "lm_head__weight": embedding.copy()}
        model = self.stored(tmp_path, **both)
        assert self.names(model) == {"token_embd.weight", "output_norm.weight"}
        assert list(model.ignored) == ["lm_head.weight"]
        assert "equal to model.embed_tokens.weight" in model.ignored["lm_head.weight"]

    @pytest.mark.parametrize("at", [0, -1])
    def test_a_head_that_differs_is_kept_as_in_transformers(self, tmp_path: Path, at: int) -> None:
        embedding = tensors_of(config_of("LlamaForCausalLM"))["model.embed_tokens.weight"]
        head = embedding.copy()
        head.flat[at] += 1
        both = {"model__embed_tokens__weight": embedding, "lm_head__weight": head}
        model = self.stored(tmp_path, **both)
        (output,) = (t for t in model.tensors if t.name == "output.weight")
        np.testing.assert_array_equal(rows(output), head)
        assert model.ignored == {}

    def test_a_head_without_an_embedding_serves_as_embedding(self, tmp_path: Path) -> None:
        head = np.ones((24, 16), np.float32)
        model = self.stored(tmp_path, model__embed_tokens__weight=None, lm_head__weight=head)
        assert self.names(model) == {"token_embd.weight", "output_norm.weight"}
        np.testing.assert_array_equal(rows(model.tensors[0]), head)


def test_missing_unknown_and_misshapen_tensors_are_all_reported_at_once(tmp_path: Path) -> None:
    config = config_of("LlamaForCausalLM", num_hidden_layers=4)
    tensors = tensors_of(config)
    for layer in (0, 1, 3):
        del tensors[f"model.layers.{layer}.mlp.up_proj.weight"]
    del tensors["lm_head.weight"]
    tensors["model.layers.2.mlp.up_proj.weight_scale"] = np.ones(1, np.float32)
    tensors["model.embed_tokens.weight"] = np.ones((25, 16), np.float32)
    for layer in range(4):
        tensors[f"model.layers.{layer}.self_attn.k_proj.weight"] = np.ones((16, 16), np.float32)
    e = refusal(write_checkpoint(tmp_path, config, tensors))
    assert isinstance(e, ArchitectureError)
    assert [m.removeprefix(f"{tmp_path}: ") for m in e.messages] == [
        "model.layers.{0-1,3}.mlp.up_proj.weight is missing; llama needs it, download the"
        " checkpoint again",
        "lm_head.weight is missing (tie_word_embeddings in config.json is false); llama needs it,"
        " download the checkpoint again",
        "model.embed_tokens.weight has shape [25, 16], but config.json implies [24, 16]; take both"
        " from one model",
        "model.layers.{0-3}.self_attn.k_proj.weight has shape [16, 16], but config.json implies"
        " [8, 16]; take both from one model",
        "model.layers.2.mlp.up_proj.weight_scale is not a tensor of llama as config.json describes"
        " it; the output would not contain it, so take weights and config.json from one model",
    ]


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen3ForCausalLM"])
def test_an_unexpected_bias_is_reported(tmp_path: Path, architecture: str) -> None:
    config = config_of(architecture)
    extra = {"model.layers.0.self_attn.q_proj.bias": np.ones(16, np.float32)}
    e = refusal(write_checkpoint(tmp_path, config, tensors_of(config) | extra))
    assert "model.layers.0.self_attn.q_proj.bias is not a tensor of" in str(e)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I32"])
def test_all_tensors_of_an_unsupported_dtype_are_reported_at_once(
    tmp_path: Path, dtype: str
) -> None:
    config = config_of("LlamaForCausalLM", num_hidden_layers=1)
    e = refusal(write_holes(tmp_path, config, shapes_of(config), dtype))
    assert isinstance(e, CheckpointError)
    assert len(e.messages) == len(shapes_of(config))
    assert all(f"is stored as {dtype}" in m for m in e.messages)


def quantized(folder: Path, bias: np.ndarray, *, scales: bool = True) -> Path:
    """Write a Llama in FP8 with a bias at one projection, which the model does not have."""
    config = config_of("LlamaForCausalLM") | {"quantization_config": {"quant_method": "fp8"}}
    stored: Stored = {}
    for name, x in tensors_of(config).items():
        stored[name] = ("F32", x)
        if name.endswith("proj.weight"):
            stored[name] = ("F8_E4M3", np.zeros(x.shape, np.uint8))
            stored[f"{name}_scale_inv"] = ("F32", np.ones((1, 1), np.float32))
            if not scales and name.endswith("v_proj.weight"):
                del stored[f"{name}_scale_inv"]
    stored["model.layers.1.self_attn.q_proj.bias"] = ("F32", bias)
    return write_stored(folder, config, stored)


def test_an_all_zero_bias_of_a_quantized_weight_is_left_out(tmp_path: Path) -> None:
    model = load_model(quantized(tmp_path, np.zeros(16, np.float32)))
    (name,) = model.ignored
    assert name == "model.layers.1.self_attn.q_proj.bias"
    assert model.ignored[name] == "zero in every element, and the model has no such bias"


def test_a_nonzero_bias_of_a_quantized_weight_is_reported(tmp_path: Path) -> None:
    e = refusal(quantized(tmp_path, np.eye(1, 16, dtype=np.float32)[0]))
    assert "model.layers.1.self_attn.q_proj.bias is not a tensor of" in str(e)


def test_missing_scales_are_reported_with_their_names(tmp_path: Path) -> None:
    e = refusal(quantized(tmp_path, np.zeros(16, np.float32), scales=False))
    assert isinstance(e, CheckpointError)
    assert str(e) == (
        f"{tmp_path}: model.layers.{{0-1}}.self_attn.v_proj.weight is stored as F8_E4M3, but its"
        " scales *_scale_inv are missing; download it again"
    )


def test_problems_of_tensors_and_tokenizer_are_reported_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_vocab(*_: object, **__: object) -> Keys:
        raise VocabError("no tokenizer")

    monkeypatch.setattr("dynquant.arch.load.read_vocab", read_vocab)
    config = config_of("LlamaForCausalLM")
    tensors = tensors_of(config)
    del tensors["model.norm.weight"]
    e = refusal(write_checkpoint(tmp_path, config, tensors))
    assert [m.rpartition(": ")[2] for m in e.messages] == [
        "model.norm.weight is missing; llama needs it, download the checkpoint again",
        "no tokenizer",
    ]


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": (
        {"architectures": ["FooForCausalLM"]},
        "'FooForCausalLM' is not supported; if llama.cpp's convert_hf_to_gguf.py supports it",
    ),
    "none": ({"architectures": None}, "has no architectures and no model_type"),
    "not a list": ({"architectures": "LlamaForCausalLM"}, "architectures names no model class"),
    "not a name": ({"architectures": [["LlamaForCausalLM"]]}, "architectures names no model class"),
    "near": (
        {"architectures": ["Qwen9ForCausalLM"]},
        "'Qwen9ForCausalLM' is not supported; .*convert_hf_to_gguf.*similar .*Qwen[0-9]ForCausalLM",
    ),
    "missing keys": (
        {"hidden_size": None, "rms_norm_eps": None},
        "config.json: hidden_size is missing\n.*config.json: rms_norm_eps is missing",
    ),
    "text for a number": (
        {"vocab_size": "24"},
        "vocab_size is '24', but should be a valid integer",
    ),
    "truth for a number": ({"num_hidden_layers": True}, "num_hidden_layers is True, but should be"),
    "number for a truth": ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, but should be"),
    "zero": ({"intermediate_size": 0}, "intermediate_size is 0, but should be greater than 0"),
    "too many layers": ({"num_hidden_layers": 10**9}, "should be less than or equal to 512"),
    "other activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "uneven heads": (
        {"num_key_value_heads": 3},
        "num_attention_heads 4 is not a multiple of num_key",
    ),
    "uneven hidden size": (
        {"hidden_size": 18},
        "hidden_size 18 is not a multiple of num_attention",
    ),
    "odd heads": ({"head_dim": 5}, "heads have 5 weights; rotary embeddings need"),
    "rope": ({"rope_scaling": {"type": "su", "factor": 2.0}}, "does not compute rope_type 'su'"),
    "biases of Qwen3": (
        {"architectures": ["Qwen3ForCausalLM"], "attention_bias": True},
        "llama.cpp's qwen3 has no bias on o_proj",
    ),
    "heads of Qwen2": (
        {"architectures": ["Qwen2ForCausalLM"], "head_dim": 6},
        "4 heads of 6 weights do not add up to hidden_size 16",
    ),
    "llama3 rope of Qwen2": (
        {"architectures": ["Qwen2ForCausalLM"], "rope_scaling": {"rope_type": "llama3"}},
        "llama.cpp does not compute rope_type 'llama3' for this architecture",
    ),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_an_unsupported_config_is_rejected(tmp_path: Path, case: str) -> None:
    changes, problem = BAD_CONFIGS[case]
    config = config_of("LlamaForCausalLM")
    tensors = tensors_of(config)
    config = {k: v for k, v in {**config, **changes}.items() if v is not None}
    write_checkpoint(tmp_path, config, tensors)
    with pytest.raises(ArchitectureError, match=problem) as e:
        load_model(tmp_path)
    assert all(m.startswith(f"{tmp_path / 'config.json'}: ") for m in e.value.messages)


def test_a_null_in_config_counts_as_absent(tmp_path: Path) -> None:
    config = config_of("LlamaForCausalLM")
    nulls = dict.fromkeys(("head_dim", "rope_scaling", "attention_bias", "quantization_config"))
    model = load_model(write_checkpoint(tmp_path, {**config, **nulls}, tensors_of(config)))
    assert model.keys["llama.attention.key_length"].value == 4
