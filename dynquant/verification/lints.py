"""What llama.cpp refuses, and what is odd, in files that anybody made.

A fault is claimed only where llama.cpp stops: at loading (llama-model-loader.cpp, llama-vocab.cpp)
or at the first token (binary_op in ggml-cpu, which has no arithmetic between F32 and other types).
All else is a warning.
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
"""Types that llama.cpp quantizes activations to, while it computes."""

_PLAIN_ROLES = GROUPS["norms"] | {"ssm_conv1d", "ssm_a", "ssm_d", "rope_freqs"}
"""Roles that are added, multiplied or convolved with activations, which are F32."""

# Of the mixtures that are not named after a type, and of those that need not hold theirs
# (llama_tensor_get_type in llama-quant.cpp).
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
    """Say which tensors have types that llama.cpp does not compute with, where they are."""
    for file, tensor in shards.tensors():
        at = file.data_offset + tensor.offset
        name = TensorName.parse(tensor.name)
        plain = name.role in _PLAIN_ROLES or tensor.name.endswith(".bias")
        if tensor.type_name in _ACTIVATIONS or tensor.type_name not in ALL | KEPT:
            yield Fault(
                f"is {tensor.type_name}, which is no type of weights; make the file anew",
                file.path,
                tensor.name,
                at,
            )
        elif plain and tensor.type_name != "F32" and tensor.type_name in ALL:
            yield Fault(
                f"is {tensor.type_name}, and llama.cpp adds and multiplies F32 here; keep it F32",
                file.path,
                tensor.name,
                at,
            )


def lint_warnings(shards: Shards, zero: dict[str, list[int]]) -> Iterator[str]:
    """Say what is odd; zero: matrices whose weights are all zero, by tensor."""
    path = shards.path
    types = {t.name: t.type_name for _, t in shards.tensors()}
    needing = [n for n, t in types.items() if t in ALL and ALL[t].needs_importance]
    if needing and not any(k.startswith("quantize.imatrix.") for k in shards.keys):
        yield (
            f"{path}: {', '.join(grouped(needing))}: of types that need an imatrix"
            f" ({', '.join(sorted({types[n] for n in needing}))}), and no quantize.imatrix.* key"
            " tells of one"
        )
    if doubles := [n for n, t in types.items() if t == "F64"]:
        yield f"{path}: {', '.join(grouped(doubles))}: F64, which llama.cpp does not multiply by"
    yield from _file_type(shards, set(types.values()))
    yield from _fallbacks(shards)
    yield from _zeros(shards, zero)


def _file_type(shards: Shards, types: set[str]) -> Iterator[str]:
    """Say where general.file_type names a type that no tensor has."""
    number = value_of(shards, "general.file_type")
    if not isinstance(number, int) or not types:
        return
    if number not in {int(t) for t in LlamaFileType}:
        yield f"{shards.path}: general.file_type {number} is none that is known"
        return
    mix = LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    if mix == "GUESSED":
        return
    stem = mix[:-2] if mix.endswith(("_S", "_M", "_L")) and mix not in ALL else mix
    meant: tuple[str, ...] = _MIXES.get(mix, (stem,))
    if not types & set(meant):
        yield (
            f"{shards.path}: general.file_type is {mix}, and no tensor is {' or '.join(meant)};"
            " programs show the wrong name"
        )


def _fallbacks(shards: Shards) -> Iterator[str]:
    """Say which matrices have rows too short for the blocks that most weights are in."""
    groups: dict[tuple[int, str], list[str]] = {}
    blocks = {t.type_name for _, t in shards.tensors() if t.type_name in ALL}
    if not any(ALL[name].block_size == 256 for name in blocks):
        return
    for _, t in shards.tensors():
        name = TensorName.parse(t.name)
        if len(t.shape) < 2 or not t.name.endswith(".weight"):
            continue
        n_per_row = t.shape[-1]
        is_plain = name.role in _PLAIN_ROLES | GROUPS["router"]
        if n_per_row % 256 and n_per_row >= 32 and t.type_name in ALL and not is_plain:
            groups.setdefault((n_per_row, t.type_name), []).append(t.name)
    for (n_per_row, type_name), names in groups.items():
        yield (
            f"{shards.path}: {', '.join(grouped(names))}: rows of {n_per_row} weights hold no whole"
            f" blocks of 256, so that they are {type_name}"
        )


def _zeros(shards: Shards, zero: dict[str, list[int]]) -> Iterator[str]:
    """Say which weights are all zero; biases may be."""
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
                f" hold only zeros: {shown}"
            )
    if whole:
        yield f"{shards.path}: {', '.join(grouped(whole))}: holds only zeros"
