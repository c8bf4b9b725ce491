"""Find tensors that llama.cpp refuses, and unusual ones, in files made by any program.

A fault is reported only where llama.cpp stops: at loading (llama-model-loader.cpp, llama-vocab.cpp)
or at the first token (binary_op in ggml-cpu has no arithmetic between F32 and other types).
Everything else is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator

from gguf import LlamaFileType

from dynquant.arch.base import TensorName
from dynquant.checkpoint.gguf_shards import Shards
from dynquant.keys import Scalar
from dynquant.name_lists import grouped
from dynquant.quants.table import ALL, KEPT
from dynquant.recipe.roles import GROUPS
from dynquant.verification.findings import Fault
from dynquant.verification.scan import n_matrices

_ACTIVATIONS = ("Q8_1", "Q8_K")
"""Types that llama.cpp uses for activations only."""

_PLAIN_ROLES = GROUPS["norms"] | {"ssm_conv1d", "ssm_a", "ssm_d", "rope_freqs"}
"""Roles that are added to, multiplied or convolved with activations, which are F32."""

# Presets that are not named after a type, or do not always use the type they are named after
# (llama_tensor_get_type in llama-quant.cpp), with the types that they use.
_MIXES: dict[str, tuple[str, ...]] = {
    "IQ2_M": ("IQ2_S", "IQ3_S"),
    "IQ2_S": ("IQ2_XS", "IQ2_S"),
    "IQ3_M": ("IQ3_S",),
    "IQ3_XS": ("IQ3_S", "IQ3_XXS"),
    "MXFP4_MOE": ("MXFP4",),
}


def value_of(shards: Shards, key: str) -> Scalar | tuple[Scalar, ...] | None:
    """Return a key's value, or None."""
    found = shards.keys.get(key)
    return found.value if found is not None else None


def lint_faults(shards: Shards) -> Iterator[Fault]:
    """Yield the tensors whose types llama.cpp cannot compute with in their role."""
    for file, tensor in shards.tensors():
        at = file.data_offset + tensor.offset
        name = TensorName.parse(tensor.name)
        plain = name.role in _PLAIN_ROLES or tensor.name.endswith(".bias")
        if tensor.type_name in _ACTIVATIONS or tensor.type_name not in ALL | KEPT:
            yield Fault(
                f"is {tensor.type_name}, which is not a type for weights; convert the model again",
                file.path,
                tensor.name,
                at,
            )
        elif plain and tensor.type_name != "F32" and tensor.type_name in ALL:
            yield Fault(
                f"is {tensor.type_name}, but llama.cpp computes with F32 here; keep the tensor F32",
                file.path,
                tensor.name,
                at,
            )


def lint_warnings(shards: Shards, zero: dict[str, list[int]]) -> Iterator[str]:
    """Yield what is unusual; zero: the matrices whose weights are all zero, by tensor."""
    path = shards.path
    types = {t.name: t.type_name for _, t in shards.tensors()}
    needing = [n for n, t in types.items() if t in ALL and ALL[t].needs_importance]
    if needing and not any(k.startswith("quantize.imatrix.") for k in shards.keys):
        yield (
            f"{path}: {', '.join(grouped(needing))}: the type needs an imatrix"
            f" ({', '.join(sorted({types[n] for n in needing}))}), but the file has no"
            " quantize.imatrix.* key"
        )
    if doubles := [n for n, t in types.items() if t == "F64"]:
        yield f"{path}: {', '.join(grouped(doubles))}: F64, with which llama.cpp cannot multiply"
    yield from _file_type(shards, set(types.values()))
    yield from _zeros(shards, zero)


def _file_type(shards: Shards, types: set[str]) -> Iterator[str]:
    """Yield a warning if general.file_type names a type that no tensor has."""
    number = value_of(shards, "general.file_type")
    if not isinstance(number, int) or not types:
        return
    if number not in {int(t) for t in LlamaFileType}:
        yield f"{shards.path}: general.file_type {number} is unknown"
        return
    mix = LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    if mix == "GUESSED":
        return
    stem = mix[:-2] if mix.endswith(("_S", "_M", "_L")) and mix not in ALL else mix
    meant: tuple[str, ...] = _MIXES.get(mix, (stem,))
    if not types & set(meant):
        yield (
            f"{shards.path}: general.file_type is {mix}, but no tensor is {' or '.join(meant)};"
            " programs show a wrong name for this file"
        )


def _zeros(shards: Shards, zero: dict[str, list[int]]) -> Iterator[str]:
    """Yield the weights that are all zero; biases may be."""
    whole: list[str] = []
    for _, tensor in shards.tensors():
        matrices = zero.get(tensor.name, [])
        if not matrices or tensor.name.endswith(".bias"):
            continue
        if len(matrices) == n_matrices(tensor):
            whole.append(tensor.name)
        else:
            shown = ", ".join(map(str, matrices[:8])) + (", …" if len(matrices) > 8 else "")
            yield (
                f"{shards.path}: {tensor.name}: {len(matrices)} of {n_matrices(tensor)} experts"
                f" are all zeros: {shown}"
            )
    if whole:
        yield f"{shards.path}: {', '.join(grouped(whole))}: all zeros"
