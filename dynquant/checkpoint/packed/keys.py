"""Every key of a quantization_config that is known, by quantization method.

A key can change what the stored numbers mean: a rotation, another order of codes, a second scale.
So no key is ignored. It is read, or it is known to be harmless, or it has a supported value, or the
checkpoint is refused. A key that is empty (null, [] or {}) says nothing and is always accepted.

Sources: the configuration classes of transformers and compressed-tensors, and what AutoGPTQ,
GPTQModel, AutoAWQ, AutoRound, llm-compressor and ModelOpt write into config.json.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast


@dataclass(frozen=True)
class Only:
    """A key with few supported values.

    accepts: whether a value is supported
    reason:  why the others are not; what to do follows after a semicolon
    """

    accepts: Callable[[Any], bool]
    reason: str


@dataclass(frozen=True)
class Keys:
    """The keys of an object.

    read:     keys that determine how numbers are read; settings.py and the finders check them
    harmless: keys that do not change what stored numbers mean
    only:     keys with few supported values
    within:   keys whose values are objects or lists of objects, and the keys of these
    each:     keys whose values are objects by name, and the keys of each
    """

    read: frozenset[str] = frozenset()
    harmless: frozenset[str] = frozenset()
    only: Mapping[str, Only] = field(default_factory=dict[str, Only])
    within: Mapping[str, Keys] = field(default_factory=dict[str, "Keys"])
    each: Mapping[str, Keys] = field(default_factory=dict[str, "Keys"])

    @property
    def known(self) -> frozenset[str]:
        """All keys."""
        return self.read | self.harmless | {*self.only, *self.within, *self.each}


def key_problems(method: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield a message for each key whose meaning, or the meaning of whose value, is not known."""
    yield from dict.fromkeys(_problems(method, KEYS[method], values, ""))


def _problems(method: str, keys: Keys, values: Mapping[str, Any], path: str) -> Iterator[str]:
    for key, value in values.items():
        name = path + key
        if value is None or value in ([], {}):
            continue
        if key in keys.only and not keys.only[key].accepts(value):
            yield f"{name} is {_short(value)}, {keys.only[key].reason}"
        elif key in keys.within:
            for inner in _objects(value):
                yield from _problems(method, keys.within[key], inner, f"{name}.")
        elif key in keys.each and isinstance(value, dict):
            named = cast("dict[str, Any]", value)
            for inner in (i for v in named.values() for i in _objects(v) if not _is_float(i)):
                yield from _problems(method, keys.each[key], inner, f"{name}.*.")
        elif key not in keys.known:
            yield (
                f"{name} is not a known setting of {method}, so the stored numbers may mean"
                " something else; remove the key if it does not change them, or use the checkpoint"
                " it was made from"
            )


def _objects(value: object) -> Iterator[dict[str, Any]]:
    """Yield a value that is an object, or the objects of a list."""
    listed = cast("list[object]", value) if isinstance(value, list) else [value]
    yield from (cast("dict[str, Any]", v) for v in listed if isinstance(v, dict))


def _is_float(layer: Mapping[str, Any]) -> bool:
    """Return whether a layer's settings say that it is not quantized."""
    bits = layer.get("bits")
    return isinstance(bits, int) and bits >= 16


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _one_of(*allowed: object) -> Callable[[Any], bool]:
    def accepts(value: Any) -> bool:
        return (value.lower() if isinstance(value, str) else value) in allowed

    return accepts


def _never(value: Any) -> bool:
    return value is False  # null and empty values are accepted before


_SOURCE = "use the checkpoint it was made from"

# ---- keys that several methods share -------------------------------------------------------------

# Which modules are quantized. The stored tensors state that, and only they are trusted.
_MODULES = _keys(
    "ignore ignored_layers ignore_patterns exclude_modules modules_to_not_convert"
    " modules_to_convert modules_in_block_to_quantize block_name_to_quantize"
    " module_name_preceding_first_block to_quant_block_names quant_block_list lm_head"
    " supported_types regex_config"
)

# How a library loads or runs the checkpoint: kernels, and whether it decodes the weights at once.
_LOADING = _keys(
    "quant_method dequantize run_compressed use_optimized_inference backend provider version"
    " quantization_status global_compression_ratio producer use_exllama disable_exllama"
    " exllama_config use_cuda_fp16 max_input_length do_fuse fuse_max_seq_len modules_to_fuse"
    " inject_fused_attention inject_fused_mlp"
)

# Activations and the cache of keys and values. llama.cpp does not quantize them in advance.
_ACTIVATIONS = _keys(
    "activation_scheme activation_scale_ub kv_cache_scheme kv_cache_quant_algo"
    " kv_cache_quant_method input_activations output_activations act_bits act_data_type"
    " act_group_size act_sym act_dynamic static_attention_dtype static_kv_dtype"
    " static_attention_granularity static_kv_granularity"
)

# How the codes were found.
_CALIBRATION = _keys(
    "dataset tokenizer batch_size nsamples seqlen model_seqlen iters lr minmax_lr amp"
    " gradient_accumulate_steps low_gpu_mem_usage low_cpu_mem_usage enable_minmax_tuning"
    " enable_norm_bias_tuning enable_quanted_input enable_alg_ext train_bs damp_percent"
    " damp_auto_increment true_sequential static_groups act_group_aware cache_block_outputs"
    " pad_token_id mse gptaq fallback failsafe hessian mock_quantization offload_to_disk"
    " offload_to_disk_path pack_impl model_name_or_path model_file_base_name autoround_version"
    " observer observer_kwargs scale_dtype"
)

_COMMON = _MODULES | _LOADING | _ACTIVATIONS | _CALIBRATION

# Rotations of GPTQModel and AutoRound: neither states which of them act while the model runs.
_ROTATED = Only(_never, f"a rotation that may act on activations while the model runs; {_SOURCE}")
_ROTATIONS: dict[str, Only] = dict.fromkeys(
    ["rotation", "rotation_config", "rotation_configs", "hadamard_config", "transform_config"],
    _ROTATED,
)
# AutoRound's names. Others have zeros of floats, quantized scales, or codes of floats.
_INTEGERS = re.compile(r"((opt_)?rtn_)?int(_a?sym)?(_gptq|_neuqi)?", re.IGNORECASE)
_CODES = Only(
    lambda v: isinstance(v, str) and _INTEGERS.fullmatch(v) is not None,
    f"but codes of 'int' are supported; {_SOURCE}",
)
_AUTOROUND: dict[str, Only] = _ROTATIONS | {
    "super_bits": Only(_never, f"but quantized scales are not supported; {_SOURCE}"),
    "super_group_size": Only(_never, f"but quantized scales are not supported; {_SOURCE}"),
}
_ADAPTER = Only(_never, f"an adapter that is added to the weights; merge it, or {_SOURCE}")

# ---- the methods ---------------------------------------------------------------------------------

# "fnuz" formats of E4M3 have another bias: their numbers are half of these.
_E4M3_OR_E5M2 = re.compile(r"(torch\.)?((float8|fp8|f8)_)?(e4m3(fn)?|e5m2)|fp8", re.IGNORECASE)
_FLOAT8 = Only(
    lambda v: isinstance(v, str) and _E4M3_OR_E5M2.fullmatch(v) is not None,
    f"but E4M3 and E5M2 are supported; {_SOURCE}",
)

_FP8 = Keys(
    read=_keys("weight_block_size scale_fmt packing_format"),
    # Shapes and dtypes state what is stored: FP8, or FP4 of experts; the width of the numbers.
    harmless=_COMMON | _keys("expert_dtype bits group_size sym extra_config"),
    only=_AUTOROUND
    | {
        "fmt": _FLOAT8,
        # Gaudi has an E4M3 with another range.
        "data_type": Only(
            lambda v: isinstance(v, str) and "gaudi" not in v.lower(),
            f"but E4M3 and E5M2 are supported; {_SOURCE}",
        ),
    },
)

_LAYER = Keys(
    # Shapes state the bits and groups of a layer. g_idx states an order of activations.
    harmless=_CALIBRATION
    | _ACTIVATIONS
    | _keys("bits group_size desc_act sym fixed_by_user in_blocks"),
    only=_AUTOROUND | {"adapter": _ADAPTER, "data_type": _CODES},
)

_GPTQ = Keys(
    read=_keys("bits group_size desc_act checkpoint_format format packing_format"),
    # Zeros are stored even if codes are symmetric. `meta` describes how the codes were found.
    harmless=_COMMON | _keys("sym meta"),
    only=_AUTOROUND
    | {
        "adapter": _ADAPTER,
        "data_type": _CODES,
        "is_marlin_format": Only(_never, f"a layout made for a single kernel; {_SOURCE}"),
        "pack_dtype": Only(_one_of("int32"), f"but words of int32 are supported; {_SOURCE}"),
    },
    each={"dynamic": _LAYER, "extra_config": _LAYER},
)

_AWQ = Keys(
    read=_keys(
        "bits w_bit group_size q_group_size version format checkpoint_format backend packing_format"
    ),
    harmless=_COMMON | _keys("zero_point sym desc_act meta export_compatible"),
    only={k: v for k, v in _GPTQ.only.items() if k != "is_marlin_format"},
    each=_GPTQ.each,
)

_WEIGHTS = Keys(
    read=_keys("num_bits symmetric block_structure actorder"),
    # Shapes and dtypes state these.
    harmless=_CALIBRATION | _keys("type strategy group_size dynamic zp_dtype"),
)

_SCALED: dict[str, Only] = {
    "has_zero_point": Only(_never, f"but only stored zero points are supported; {_SOURCE}"),
    "pre_quant_scale": Only(_never, f"a scale of activations beside the weights; {_SOURCE}"),
}
"""What ModelOpt says of a group."""

_GROUP = Keys(
    read=_keys("format"),
    harmless=_ACTIVATIONS | _keys("targets"),
    only=_SCALED,
    within={"weights": _WEIGHTS},
)

# rotations.py reads the transforms.
_APPLY = Keys(read=_keys("targets location inverse ignore"))
_SCHEME = Keys(
    read=_keys("type head_dim randomize"),
    # Whether the matrix was trained, and the dtype in which it is applied.
    harmless=_keys("requires_grad precision"),
    within={"apply": _APPLY},
)

_COMPRESSED = Keys(
    read=_keys("format"),
    harmless=_COMMON,
    only={
        # Gaudi 2 has an E4M3 with another range.
        "fp8_dtype_flavor": Only(_never, f"another FP8 than E4M3; {_SOURCE}"),
        "moe_sparsity_config": Only(
            _never, f"but layers with different numbers of experts are not supported; {_SOURCE}"
        ),
    },
    within={
        "sparsity_config": Keys(
            read=_keys("format"),
            harmless=_keys(
                "targets ignore global_sparsity sparsity_structure registry_requires_subclass"
            ),
        ),
        "transform_config": Keys(each={"config_groups": _SCHEME}),
    },
    each={"config_groups": _GROUP},
)

_MODELOPT_LAYER = Keys(
    read=_keys("quant_algo"),
    harmless=_keys("group_size kv_cache_quant_algo"),
    only=_SCALED,
)

_MODELOPT = Keys(
    read=_keys("quant_algo weight_block_size"),
    harmless=_COMMON | _keys("group_size targets"),
    only=_SCALED | {"lora_rank": _ADAPTER},
    within={"weights": _WEIGHTS},
    each={"config_groups": _GROUP, "quantized_layers": _MODELOPT_LAYER},
)

_BITNET = Keys(
    harmless=_COMMON | _keys("rms_norm_eps"),
    only={
        "linear_class": Only(
            _one_of("bitlinear", "autobitlinear"), f"which is not known; {_SOURCE}"
        ),
        "quantization_mode": Only(_one_of("offline", "online"), f"which is not known; {_SOURCE}"),
        "use_rms_norm": Only(
            _never, f"a norm before each matrix, which llama.cpp does not compute; {_SOURCE}"
        ),
    },
)

KEYS: dict[str, Keys] = {
    "fp8": _FP8,
    "fbgemm_fp8": Keys(harmless=_COMMON),
    "compressed-tensors": _COMPRESSED,
    "modelopt": _MODELOPT,
    "mxfp4": Keys(harmless=_COMMON),
    "gptq": _GPTQ,
    "awq": _AWQ,
    "bitnet": _BITNET,
}
"""The keys of each quantization method that is read."""
