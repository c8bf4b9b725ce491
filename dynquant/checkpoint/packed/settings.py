"""The quantization settings in config.json, and the supported methods."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dynquant.checkpoint.packed.keys import key_problems
from dynquant.checkpoint.safetensors import Checkpoint, read_object
from dynquant.errors import CheckpointError
from dynquant.quants.table import FLOATS
from dynquant.text_settings import text_settings

MODELOPT = "hf_quant_config.json"
"""The settings file of NVIDIA's ModelOpt, in addition to config.json or instead of it."""

READ = ("fp8", "fbgemm_fp8", "compressed-tensors", "modelopt", "mxfp4", "gptq", "awq", "bitnet")
"""Quantization methods by their names in config.json.

AutoRound's own format is read as the one of these that its packing_format names.
"""

FORMATS = (
    "dense",
    "float-quantized",
    "int-quantized",
    "naive-quantized",
    "pack-quantized",
    "mixed-precision",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "nvfp4-pack-quantized",
)
"""Formats of compressed-tensors."""

ALGORITHMS = (
    "FP8",
    "FP8_PER_CHANNEL_PER_TOKEN",
    "FP8_PB_REAL",
    "FP8_PB_WO",
    "MXFP4",
    "MXFP8",
    "NVFP4",
    "W8A16",
    "W4A16_NVFP4",
    "W4A8_MXFP4_FP8",
    "W4A8_NVFP4_FP8",
    "MIXED_PRECISION",
)
"""Algorithms of ModelOpt whose weights need no change of the activations."""

_SYNONYMS = {
    "compressed_tensors": "compressed-tensors",
    "modelopt_fp4": "modelopt",
    "modelopt_fp8": "modelopt",
    "modelopt_mixed": "modelopt",
}
_DEQUANTIZE = "or save it again from transformers after `model.dequantize()`"
_NOT_READ = {
    "bitsandbytes": f"NF4, FP4 or LLM.int8() of bitsandbytes; use its base model, {_DEQUANTIZE}",
    "aqlm": "additive codebooks",
    "auto-round": "a packing_format of AutoRound other than those of GPTQ, AWQ and FP8; export it"
    " again with format auto_round:auto_gptq or auto_round:auto_awq",
    "eetq": f"INT8 of EETQ; use its base model, {_DEQUANTIZE}",
    "exl2": "ExLlamaV2's mixed groups",
    "exl3": "ExLlamaV3's trellis codes",
    "higgs": f"lattices of HIGGS; use its base model, {_DEQUANTIZE}",
    "hqq": f"half-quadratic quantization; use its base model, {_DEQUANTIZE}",
    "quanto": "tensors of optimum-quanto",
    "quip": "lattice codebooks of QuIP#",
    "spqr": "sparse and quantized parts of SpQR",
    "torchao": "tensor subclasses of torchao",
    "vptq": "vector codebooks",
}
"""Methods that are not supported: a description, and advice if it differs from the usual one."""

_AUTOROUND_ZEROS = {
    "auto_round": "gptq_v2",
    "auto_round:gptqmodel": "gptq_v2",
    "auto_round:auto_gptq": "gptq",
    "auto_round:gptq": "gptq",
}
"""The formats of AutoRound that store integers as GPTQ does, and GPTQ's name of their zeros."""

_FIRST_BITNET = "BitnetForCausalLM"
"""A class whose own code rounds the weights while it runs, whatever config.json says."""

_PLAIN = frozenset(_NOT_READ)
"""Methods whose floats are the weights: they quantize when a model is loaded, or when it is saved
store codes. Others, such as quark and fp_quant, may store floats that a rotation belongs to."""
_ROTATES = re.compile(r"rotat|hadamard|transform|smooth", re.IGNORECASE)


@dataclass(frozen=True)
class Settings:
    """A checkpoint's quantization settings.

    where:  their file; method: one of READ; values: all settings of the file
    blocks: rows and columns of the rectangles that share a scale, for all groups of layers
    e8m0:   scales stored as U8 are exponents of two
    """

    where: str
    method: str
    values: Mapping[str, Any]
    blocks: tuple[tuple[int, int], ...]
    e8m0: bool

    @property
    def weights(self) -> list[dict[str, Any]]:
        """The settings for the weights of each group of layers."""
        return _weights(self.values)

    def number(self, key: str, *, default: int | None = None) -> int:
        """Return an integer setting; raise CheckpointError if it is not an integer."""
        found = self.values.get(key, default)
        if not isinstance(found, int) or isinstance(found, bool):
            raise CheckpointError(
                f"{self.where}: quantization_config: {key} is {found!r}, but {self.method} needs an"
                " integer"
            )
        return found


def read_settings(checkpoint: Checkpoint) -> Settings | None:
    """Return a checkpoint's quantization settings; None if it is not quantized.

    Raises CheckpointError for methods and formats that are not supported.
    """
    where, values = _values(checkpoint)
    if values is None:
        return None
    if not isinstance(values, dict):
        raise CheckpointError(f"{where}: quantization_config is {values!r}, not an object")
    found = cast("dict[str, Any]", values)
    method = str(found.get("quant_method") or ("modelopt" if "quant_algo" in found else None))
    method = _SYNONYMS.get(method.lower(), method.lower())
    if method.removeprefix("intel/") == "auto-round":
        method = _autoround_method(found) or method
    is_plain = all(t.dtype in FLOATS for t in checkpoint.tensors.values())
    if method not in READ and is_plain:
        if method not in _PLAIN and (key := _rotation(found)):
            raise CheckpointError(
                f"{where}: quantization_config: {key} of quant_method {method!r} may rotate"
                " activations while the model runs, and then the stored numbers are not the"
                " weights; remove quantization_config if they are, or use the checkpoint it was"
                " made from"
            )
        return None  # merged or dequantized later, and saved with the old settings
    if method not in READ:
        raise CheckpointError(f"{where}: quantization_config: {_refusal(method)}")
    CheckpointError.raise_any(
        f"{where}: quantization_config: {text}" for text in _unread(method, found)
    )
    blocks = tuple(dict.fromkeys(_blocks(where, found)))
    named = [str(found.get(key, "")).lower() for key in ("scale_fmt", "format", "quant_algo")]
    named += [str(group.get("format", "")).lower() for group in _groups(found)]
    e8m0 = any(name == "ue8m0" or name.startswith(("mx", "w4a8_mx")) for name in named)
    return Settings(where, method, found, blocks, e8m0)


def _values(checkpoint: Checkpoint) -> tuple[str, object]:
    """Return the file with the settings, and the settings; None if there are no settings."""
    config = checkpoint.config
    nested = text_settings(config) or {}
    where = str(checkpoint.folder / "config.json")
    for place in (config, nested):
        for key in ("quantization_config", "compression_config"):
            if place.get(key) is not None:
                return where, place[key]
    if config.get("architectures") == [_FIRST_BITNET]:
        return where, {"quant_method": "bitnet", "quantization_mode": "online"}
    path = checkpoint.folder / MODELOPT
    return (str(path), _of_modelopt(path)) if path.exists() else (where, None)


def _of_modelopt(path: Path) -> object:
    found = read_object(path)
    return found.get("quantization", found)


def _rotation(values: object, path: str = "") -> str | None:
    """Return the first key, at any depth, that names a change of activations and is not empty."""
    if isinstance(values, dict):
        items = cast("dict[str, Any]", values).items()
    elif isinstance(values, list):
        items = [(str(i), v) for i, v in enumerate(cast("list[Any]", values))]
    else:
        return None
    for key, value in items:
        name = f"{path}{key}"
        if not value:
            continue
        if _ROTATES.search(key) or (isinstance(value, str) and _ROTATES.search(value)):
            return name
        if inner := _rotation(value, f"{name}."):
            return inner
    return None


def _refusal(method: str) -> str:
    description, _, advice = _NOT_READ.get(method.replace("intel/", ""), "").partition("; ")
    return (
        f"quant_method {method!r}{f' ({description})' if description else ''} is not supported;"
        f" {advice or 'use the checkpoint it was made from'}; supported: {', '.join(READ)}"
    )


def _unread(method: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield a message for each variant of a method that is not supported."""
    if method == "compressed-tensors":
        names = [values.get("format"), *(group.get("format") for group in _groups(values))]
        for name in dict.fromkeys(str(n) for n in names if n is not None):
            if name not in FORMATS:
                yield (
                    f"format {name!r} of compressed-tensors is not supported; supported:"
                    f" {', '.join(FORMATS)}"
                )
        form: object = values.get("sparsity_config") or {}
        if isinstance(form, dict):
            form = cast("dict[str, Any]", form).get("format", "dense")
        if form != "dense":
            yield f"sparsity format {form!r} is not supported; use a dense checkpoint"
    if method == "modelopt":
        faults = [f for a in dict.fromkeys(_algorithms(values)) if (f := _algorithm_fault(a))]
        if faults:
            yield from faults
            return  # scales and adapters of such algorithms have the same cause
    if method == "gptq" and (form := gptq_format(values)) not in ("gptq", "gptq_v2"):
        yield (
            f"checkpoint_format {form!r} of GPTQ is not supported, since it is made for a single"
            " kernel; supported: gptq, gptq_v2"
        )
    stated = {str(values[k]).lower() for k in ("format", "checkpoint_format") if values.get(k)}
    if method == "gptq" and len(stated) > 1:
        yield (
            f"format is {values['format']!r}, but checkpoint_format is"
            f" {values['checkpoint_format']!r}; remove the one that is wrong"
        )
    if method == "awq":
        named = (values.get(key) for key in ("version", "format", "checkpoint_format"))
        version = str(next((v for v in named if v), "gemm")).lower()
        backend = str(values.get("backend") or "autoawq")
        # llm-awq packs codes in another order. All other backends are kernels for the same codes.
        if version != "gemm" or backend.lower() == "llm-awq":
            yield (
                f"AWQ version {version!r} of {backend} is not supported; supported: gemm of autoawq"
            )
    yield from key_problems(method, values)


def _autoround_method(values: Mapping[str, Any]) -> str | None:
    """Return the method whose layout AutoRound's packing_format is; None if it has another.

    Source: the linear layers that AutoRound packs and loads for each packing_format. With quantized
    activations, the layers of integers have a second scale.
    """
    form = _packing_format(values)
    if form in ("auto_round:fp8", "auto_round:fp8_static"):
        return "fp8"
    bits = values.get("act_bits")
    if isinstance(bits, int) and bits <= 8:
        return None
    if form in _AUTOROUND_ZEROS:
        return "gptq"
    return "awq" if form in ("auto_round:auto_awq", "auto_round:awq") else None


def _packing_format(values: Mapping[str, Any]) -> str:
    return str(values.get("packing_format", "")).lower()


def gptq_format(values: Mapping[str, Any]) -> str:
    """Return the format of a GPTQ checkpoint: gptq stores zeros minus one, gptq_v2 does not."""
    if zeros := _AUTOROUND_ZEROS.get(_packing_format(values)):
        return zeros
    return str(values.get("checkpoint_format") or values.get("format") or "gptq").lower()


def _algorithm_fault(algorithm: str) -> str | None:
    """Return the problem of one of ModelOpt's algorithms."""
    if "AWQ" in algorithm or "SQ" in algorithm or "SVD" in algorithm:
        return (
            f"quant_algo {algorithm} is not supported, since it scales activations as well; use"
            " FP8, NVFP4, or the checkpoint it was made from"
        )
    if algorithm not in ALGORITHMS:
        return (
            f"quant_algo {algorithm} of ModelOpt is not supported; supported:"
            f" {', '.join(ALGORITHMS)}"
        )
    return None


def _algorithms(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield ModelOpt's algorithms: the one of all layers, and those of single layers."""
    layers = values.get("quantized_layers")
    named = cast("dict[str, Any]", layers) if isinstance(layers, dict) else {}
    for place in (
        values,
        *(cast("dict[str, Any]", v) for v in named.values() if isinstance(v, dict)),
    ):
        if algorithm := place.get("quant_algo"):
            yield str(algorithm).upper()


def _groups(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups = values.get("config_groups")
    if not isinstance(groups, dict):
        return []
    listed = cast("dict[str, Any]", groups).values()
    return [cast("dict[str, Any]", g) for g in listed if isinstance(g, dict)]


def _weights(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [g["weights"] for g in _groups(values) if isinstance(g.get("weights"), dict)]


def _blocks(where: str, values: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    sizes: list[object] = [values.get("weight_block_size")]
    sizes += [weights.get("block_structure") for weights in _weights(values)]
    for size in sizes:
        if size is None:
            continue
        if isinstance(size, str) and all(n.isdecimal() for n in size.split("x")):
            size = [int(n) for n in size.split("x")]  # "128x128", the form of early releases
        match size:
            case [int(rows), int(columns)] if rows > 0 and columns > 0:
                yield rows, columns
            case _:
                raise CheckpointError(
                    f"{where}: quantization_config: block size {size!r} is not two positive"
                    " integers such as [128, 128]"
                )
