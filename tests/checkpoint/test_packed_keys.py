"""No key of a quantization_config is ignored: it is known, or the checkpoint is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packers import FORMATS, Stored, compressed, gptq, gptq_settings, write_stored
from places import TESTS

from dynquant.checkpoint.packed import unpack
from dynquant.checkpoint.packed.keys import KEYS
from dynquant.checkpoint.packed.settings import READ
from dynquant.checkpoint.safetensors import open_checkpoint
from dynquant.errors import CheckpointError
from dynquant.transforms import read_weights

PLAIN: Stored = {"norm.weight": ("F32", np.ones(4, "f4"))}


def problems(folder: Path, settings: Any, tensors: Stored = PLAIN) -> list[str]:
    config = {"quantization_config": settings}
    try:
        unpack(open_checkpoint(write_stored(folder, config, tensors)))
    except CheckpointError as e:
        before = f"{folder / 'config.json'}: quantization_config: "
        assert all(m.startswith(before) for m in e.messages)
        return [m.removeprefix(before) for m in e.messages]
    return []


def activations(**more: Any) -> dict[str, Any]:
    return {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token"} | more


def weights(**more: Any) -> dict[str, Any]:
    return {
        "actorder": None, "block_structure": None, "dynamic": False, "group_size": None,
        "num_bits": 8, "observer": "minmax", "observer_kwargs": {}, "scale_dtype": None,
        "strategy": "channel", "symmetric": True, "type": "float", "zp_dtype": None,
    } | more  # fmt: skip


def llm_compressor(form: str, group: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "config_groups": {
            "group_0": {
                "format": form, "input_activations": None, "output_activations": None,
                "targets": ["Linear"],
            } | group
        },
        "format": form, "global_compression_ratio": None, "ignore": ["lm_head"],
        "kv_cache_scheme": None, "quant_method": "compressed-tensors",
        "quantization_status": "compressed", "sparsity_config": {}, "transform_config": {},
        "version": "0.13.0",
    } | more  # fmt: skip


PUBLISHED: dict[str, dict[str, Any]] = {
    "deepseek-v3": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "deepseek-v3.1": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
        "scale_fmt": "ue8m0", "weight_block_size": [128, 128],
    },
    "minimax-m2": {
        "activation_scheme": "dynamic", "fmt": "float8_e4m3fn", "quant_method": "fp8",
        "weight_block_size": [128, 128], "modules_to_not_convert": ["gate", "lm_head"],
    },
    "ministral-3": {
        "activation_scheme": "static", "dequantize": False, "quant_method": "fp8",
        "modules_to_not_convert": ["vision_tower"], "weight_block_size": None,
    },
    "autofp8": {
        "activation_scheme": "static", "ignored_layers": ["lm_head"], "quant_method": "fp8",
        "kv_cache_scheme": "static",
    },
    "llama-3.1-405b-fp8": {
        "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"],
        "quant_method": "fbgemm_fp8",
    },
    "gpt-oss": {
        "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"], "quant_method": "mxfp4",
    },
    "gpt-oss saved by transformers 5": {
        "dequantize": False, "modules_to_not_convert": None, "quant_method": "mxfp4",
    },
    "fp8-dynamic of llm-compressor": llm_compressor(
        "float-quantized",
        {"weights": weights(), "input_activations": activations(dynamic=True, observer=None)},
    ),
    "fp8 blocks of llm-compressor": llm_compressor(
        "float-quantized", {"weights": weights(strategy="block", block_structure=[128, 128])}
    ),
    "w4a16 of llm-compressor": llm_compressor(
        "pack-quantized",
        {"weights": weights(num_bits=4, type="int", strategy="group", group_size=128)},
        kv_cache_scheme=activations(strategy="tensor"),
    ),
    "nvfp4 of llm-compressor": llm_compressor(
        "nvfp4-pack-quantized",
        {
            "weights": weights(num_bits=4, strategy="tensor_group", group_size=16),
            "input_activations": activations(num_bits=4, dynamic="local", group_size=16),
        },
    ),
    "sparseml": {
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights()}},
        "format": "int-quantized", "quant_method": "compressed-tensors",
        "quantization_status": "frozen", "ignore": [],
        "sparsity_config": {
            "format": "dense", "global_sparsity": 0.14, "ignore": [],
            "registry_requires_subclass": False, "sparsity_structure": "unstructured",
            "targets": [],
        },
    },
    "bitnet 2B-4T": {
        "linear_class": "autobitlinear", "quant_method": "bitnet", "quantization_mode": "offline",
    },
    "bitnet 2B-4T-bf16": {
        "linear_class": "autobitlinear", "quant_method": "bitnet", "quantization_mode": "online",
    },
    "llama 3 1.58": {"modules_to_not_convert": ["lm_head"], "quant_method": "bitnet"},
    "preset by name": {
        "config_groups": {"W8A16": ["Linear"]}, "format": "int-quantized",
        "quant_method": "compressed-tensors",
    },
    "autogptq": {
        "bits": 4, "group_size": 128, "damp_percent": 0.1, "desc_act": True, "sym": True,
        "true_sequential": True, "static_groups": False, "model_name_or_path": None,
        "model_file_base_name": "model", "quant_method": "gptq", "is_marlin_format": False,
        "checkpoint_format": "gptq",
    },
    "optimum gptq": {
        "batch_size": 1, "bits": 4, "block_name_to_quantize": None, "cache_block_outputs": True,
        "damp_percent": 0.01, "dataset": None, "desc_act": False, "exllama_config": {"version": 1},
        "group_size": 128, "max_input_length": None, "model_seqlen": None,
        "module_name_preceding_first_block": None, "modules_in_block_to_quantize": None,
        "pad_token_id": None, "quant_method": "gptq", "sym": True, "tokenizer": None,
        "true_sequential": True, "use_cuda_fp16": False, "use_exllama": True,
    },
    "gptqmodel": {
        "bits": 4, "checkpoint_format": "gptq", "desc_act": False, "format": "gptq",
        "dynamic": {"+:.*gate.*": {"bits": 8, "group_size": 32}, "-:.*down.*": {}},
        "group_size": 128, "lm_head": False, "pack_dtype": "int32", "quant_method": "gptq",
        "sym": True,
        "meta": {
            "act_group_aware": True, "damp_percent": 0.05, "mse": 0.0, "gptaq": None,
            "quantizer": ["gptqmodel:5.6.0"], "uri": "https://github.com/modelcloud/gptqmodel",
        },
    },
    "autoround as gptq": {
        "amp": True, "autoround_version": "0.4.0", "batch_size": 8, "bits": 4,
        "damp_percent": 0.01, "data_type": "int", "desc_act": False, "dataset": "pile-10k",
        "enable_minmax_tuning": True, "enable_norm_bias_tuning": False,
        "enable_quanted_input": True, "gradient_accumulate_steps": 1, "group_size": 128,
        "iters": 200, "low_gpu_mem_usage": False, "lr": 0.005, "minmax_lr": 0.005,
        "nsamples": 128, "provider": "auto-round", "quant_method": "gptq",
        "scale_dtype": "torch.float16", "seqlen": 2048, "super_bits": None,
        "super_group_size": None, "supported_types": ["linear"], "sym": True,
        "to_quant_block_names": None, "true_sequential": False, "act_bits": 16,
        "act_dynamic": True, "act_data_type": "int", "act_group_size": 128, "act_sym": True,
        "rotation_configs": [],
    },
    "autoawq": {
        "bits": 4, "group_size": 128, "modules_to_not_convert": None, "quant_method": "awq",
        "version": "gemm", "zero_point": True, "backend": "autoawq", "do_fuse": False,
        "exllama_config": None, "fuse_max_seq_len": None, "modules_to_fuse": None,
    },
    "awq saved by transformers 5": {
        "act_group_aware": True, "backend": "auto", "batch_size": 1, "bits": 4,
        "block_name_to_quantize": None, "cache_block_outputs": True, "damp_percent": 0.1,
        "dataset": None, "desc_act": False, "format": "gemm", "group_size": 128,
        "max_input_length": None, "meta": None, "model_seqlen": None,
        "module_name_preceding_first_block": None, "modules_in_block_to_quantize": None,
        "modules_to_not_convert": None, "pad_token_id": None, "quant_method": "awq", "sym": True,
        "tokenizer": None, "true_sequential": True, "version": "gemm", "zero_point": True,
    },
    "awq of llm-awq's search": {
        "w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMM",
        "quant_method": "awq",
    },
    "fp8 of modelopt": {
        "config_groups": {
            "group_0": {
                "input_activations": {"dynamic": False, "num_bits": 8, "type": "float"},
                "weights": {"dynamic": False, "num_bits": 8, "type": "float"},
                "targets": ["Linear"],
            }
        },
        "ignore": ["lm_head"], "quant_algo": "FP8", "quant_method": "modelopt",
        "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
        "producer": {"name": "modelopt", "version": "0.37.0"},
    },
    "mixed of modelopt": {
        "quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": "FP8", "quant_method": "modelopt",
        "exclude_modules": ["lm_head"],
        "quantized_layers": {"a": {"quant_algo": "FP8"},
                             "b": {"quant_algo": "NVFP4", "group_size": 16}},
    },
}  # fmt: skip


@pytest.mark.parametrize("settings", PUBLISHED.values(), ids=PUBLISHED)
def test_published_settings_have_only_known_keys(tmp_path: Path, settings: Any) -> None:
    assert problems(tmp_path, settings) == []


def test_all_methods_declare_their_keys() -> None:
    assert KEYS.keys() == set(READ)
    methods = {str(settings["quant_method"]) for settings in PUBLISHED.values()}
    assert methods == set(READ)


@pytest.mark.parametrize("folder", sorted((TESTS / "references" / "packed").iterdir()), ids=str)
def test_settings_of_the_references_have_only_known_keys(tmp_path: Path, folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert problems(tmp_path, settings) == []


@pytest.mark.parametrize("settings", PUBLISHED.values(), ids=PUBLISHED)
def test_an_unknown_key_is_refused_by_name(tmp_path: Path, settings: dict[str, Any]) -> None:
    (message,) = problems(tmp_path, settings | {"online_trick": 2})
    assert message == (
        f"online_trick is not a known setting of {settings['quant_method']}, so the stored numbers"
        " may mean something else; remove the key if it does not change them, or use the"
        " checkpoint it was made from"
    )


@pytest.mark.parametrize("empty", [None, [], {}])
def test_an_unknown_key_without_a_value_is_accepted(tmp_path: Path, empty: object) -> None:
    assert problems(tmp_path, gptq_settings(4, online_trick=empty)) == []


def test_unknown_keys_of_inner_objects_are_refused_once_with_their_place(tmp_path: Path) -> None:
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "b": 1}, "a": 1}
    settings = compressed("int-quantized") | {"config_groups": {"x": group, "y": group}}
    settings |= {"sparsity_config": {"format": "dense", "c": 1}}
    found = [m.split()[0] for m in problems(tmp_path, settings)]
    assert found == ["config_groups.*.weights.b", "config_groups.*.a", "sparsity_config.c"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rotated by gptqmodel": (
        gptq_settings(4, rotation="hadamard"),
        "rotation is 'hadamard', a rotation that may act on activations while the model runs",
    ),
    "rotated by autoround": (
        gptq_settings(4, rotation_configs=[{"hadamard_type": "hadamard"}]),
        "rotation_configs is [{'hadamard_type': 'hadamard'}], a rotation that may act",
    ),
    "adapter": (gptq_settings(4, adapter={"name": "lora"}), "adapter is {'name': 'lora'}, an"),
    "adapter of a layer": (
        gptq_settings(4, dynamic={"a": {"adapter": {"rank": 8}}}),
        "dynamic.*.adapter is {'rank': 8}, an adapter",
    ),
    "double quantization": (gptq_settings(4, super_bits=6), "super_bits is 6, but quantized sc"),
    "marlin": (gptq_settings(4, is_marlin_format=True), "is_marlin_format is True, a layout made"),
    "words of 16 bits": (gptq_settings(4, pack_dtype="int16"), "pack_dtype is 'int16', but words"),
    "codes of floats": (gptq_settings(4, data_type="mx_fp"), "data_type is 'mx_fp', but codes of"),
    "format of a kernel": (gptq_settings(4, format="bitblas"), "checkpoint_format 'bitblas' of"),
    "two formats": (
        gptq_settings(4, format="gptq_v2", checkpoint_format="gptq"),
        "format is 'gptq_v2', but checkpoint_format is 'gptq'; remove the one that is wrong",
    ),
    "llm-awq": (
        {"quant_method": "awq", "bits": 4, "version": "gemm", "backend": "llm-awq"},
        "AWQ version 'gemm' of llm-awq is not supported",
    ),
    "gemv in format": (
        {"quant_method": "awq", "bits": 4, "format": "gemv"},
        "AWQ version 'gemv' of autoawq is not supported",
    ),
    "float8 of another bias": (
        {"quant_method": "fp8", "fmt": "e4m3fnuz"},
        "fmt is 'e4m3fnuz', but E4M3 and E5M2 are supported",
    ),
    "codes of a layer": (
        gptq_settings(4, extra_config={"a": {"bits": 4, "data_type": "int_asym_float_zp"}}),
        "extra_config.*.data_type is 'int_asym_float_zp', but codes of 'int' are supported",
    ),
    "float8 of gaudi": (
        {"quant_method": "fp8", "data_type": "fp8_gaudi2"},
        "data_type is 'fp8_gaudi2', but E4M3 and E5M2 are supported",
    ),
    "gaudi": (
        compressed("float-quantized") | {"fp8_dtype_flavor": "gaudi2"},
        "fp8_dtype_flavor is 'gaudi2', another FP8 than E4M3",
    ),
    "experts removed": (
        compressed("float-quantized") | {"moe_sparsity_config": {"method": "prune"}},
        "moe_sparsity_config is {'method': 'prune'}, but layers with different numbers of experts",
    ),
    "svd": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4_SVD", "lora_rank": 32},
        "quant_algo NVFP4_SVD is not supported, since it scales activations as well",
    ),
    "awq of one layer": (
        {
            "quant_method": "modelopt",
            "quant_algo": "MIXED_PRECISION",
            "quantized_layers": {"a": {"quant_algo": "W4A8_AWQ", "pre_quant_scale": True}},
        },
        "quant_algo W4A8_AWQ is not supported",
    ),
    "unknown algorithm": (
        {"quant_method": "modelopt", "quant_algo": "W6A6"},
        "quant_algo W6A6 of ModelOpt is not supported; supported: FP8, ",
    ),
    "norms of bitnet": (
        {"quant_method": "bitnet", "use_rms_norm": True},
        "use_rms_norm is True, a norm before each matrix, which llama.cpp does not compute",
    ),
    "class of bitnet": (
        {"quant_method": "bitnet", "linear_class": "other"},
        "linear_class is 'other', which is not known",
    ),
    "scaled inputs": (
        {"quant_method": "modelopt", "quant_algo": "FP8", "pre_quant_scale": True},
        "pre_quant_scale is True, a scale of activations beside the weights",
    ),
}


@pytest.mark.parametrize(("settings", "text"), REFUSED.values(), ids=REFUSED)
def test_values_that_change_the_numbers_are_refused(
    tmp_path: Path, settings: dict[str, Any], text: str
) -> None:
    (message,) = problems(tmp_path, settings)
    assert message.startswith(text)
    assert "; " in message


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [("gptq", "data_type", t) for t in ("int", "int_sym", "opt_rtn_int_asym", "rtn_int_sym_gptq")]
    + [("fp8", "data_type", t) for t in ("fp", "fp8_sym", "block_fp8_e4m3")]
    + [("fp8", "fmt", t) for t in ("E4M3", "e5m2", "float8_e4m3fn", "torch.float8_e5m2", "fp8")],
)
def test_other_words_for_supported_numbers_are_accepted(
    tmp_path: Path, method: str, key: str, value: str
) -> None:
    settings = {"quant_method": method, "bits": 4, key: value}
    assert problems(tmp_path, settings) == []


def test_zeros_of_the_second_format_are_read_if_only_format_names_it(tmp_path: Path) -> None:
    stored, value = gptq(4, v2=True)("l.weight", (64, 96), np.random.default_rng(3))
    config = {"quantization_config": gptq_settings(4, format="gptq_v2")}
    found = unpack(open_checkpoint(write_stored(tmp_path, config, stored))).tensors["l.weight"]
    np.testing.assert_array_equal(read_weights(found.source(), 0, 64), value)


@pytest.mark.parametrize(
    "settings",
    [
        {"packing_format": "auto_round:llm_compressor", "data_type": "mx_fp"},
        {"packing_format": "auto_round", "act_bits": 8},
        {"backend": "auto_round:exllamav2"},
    ],
    ids=str,
)
def test_other_formats_of_autoround_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    stored = {"l.weight_packed": ("U8", np.ones((2, 2), np.uint8))}
    named = {"quant_method": "auto-round", "bits": 4, "group_size": 32} | settings
    folder = write_stored(tmp_path, {"quantization_config": named}, stored)
    with pytest.raises(CheckpointError, match="packing_format of AutoRound other than those of"):
        unpack(open_checkpoint(folder))


def test_fp8_of_autoround_is_read(tmp_path: Path) -> None:
    form = FORMATS["fp8 of a channel"]
    stored, value = form.pack("l.weight", (64, 96), np.random.default_rng(3))
    settings = {"quant_method": "auto-round", "packing_format": "auto_round:fp8_static"}
    settings |= {"bits": 8, "act_bits": 8, "data_type": "fp", "fmt": "e4m3"}
    folder = write_stored(tmp_path, {"quantization_config": settings}, stored)
    found = unpack(open_checkpoint(folder)).tensors["l.weight"]
    np.testing.assert_array_equal(read_weights(found.source(), 0, 64), value)


def test_a_layer_may_have_another_group_size(tmp_path: Path) -> None:
    stored, value = gptq(4)("l.weight", (64, 96), np.random.default_rng(3))
    settings = gptq_settings(4, group_size=128, dynamic={"+:.*": {"group_size": 32}})
    folder = write_stored(tmp_path, {"quantization_config": settings}, stored)
    found = unpack(open_checkpoint(folder)).tensors["l.weight"]
    np.testing.assert_array_equal(read_weights(found.source(), 0, 64), value)


def test_a_layer_may_have_another_number_of_bits(tmp_path: Path) -> None:
    stored, value = gptq(8)("l.weight", (64, 96), np.random.default_rng(3))
    settings = gptq_settings(4, dynamic={"+:.*": {"bits": 8}})
    folder = write_stored(tmp_path, {"quantization_config": settings}, stored)
    found = unpack(open_checkpoint(folder)).tensors["l.weight"]
    np.testing.assert_array_equal(read_weights(found.source(), 0, 64), value)


def test_two_group_sizes_that_fit_a_layer_are_refused(tmp_path: Path) -> None:
    """Of 64 inputs, both 32 and 40 make two groups."""
    stored, _ = gptq(4)("l.weight", (64, 64), np.random.default_rng(3))
    settings = gptq_settings(4, group_size=32, extra_config={"l": {"group_size": 40}})
    folder = write_stored(tmp_path, {"quantization_config": settings}, stored)
    with pytest.raises(CheckpointError, match="one of group sizes 32, 40, since all of them do"):
        unpack(open_checkpoint(folder))


def test_layers_that_are_not_quantized_may_have_any_data_type(tmp_path: Path) -> None:
    layers = {"lm_head": {"bits": 16, "data_type": "float"}}
    assert problems(tmp_path, gptq_settings(4, extra_config=layers)) == []


@pytest.mark.parametrize("order", ["group", True])
def test_packed_integers_in_the_order_of_activations_need_their_groups(
    tmp_path: Path, order: object
) -> None:
    stored, _ = FORMATS["int4"].pack("l.weight", (64, 96), np.random.default_rng(3))
    settings = compressed("pack-quantized", num_bits=4, actorder=order)
    config = {"quantization_config": settings}
    with pytest.raises(CheckpointError, match=r"cannot be read without \*_g_idx, which is missing"):
        unpack(open_checkpoint(write_stored(tmp_path, config, stored)))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"quant_method": "fp_quant", "transform_init": "hadamard"}, "transform_init"),
        ({"quant_method": "quark", "algo_config": [{"name": "rotation"}]}, "algo_config.0.name"),
    ],
)
def test_floats_that_a_rotation_may_belong_to_are_refused(
    tmp_path: Path, settings: dict[str, Any], key: str
) -> None:
    (message,) = problems(tmp_path, settings)
    assert message == (
        f"{key} of quant_method '{settings['quant_method']}' may rotate activations while the"
        " model runs, and then the stored numbers are not the weights; remove quantization_config"
        " if they are, or use the checkpoint it was made from"
    )
