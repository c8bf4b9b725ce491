"""What a model cannot be loaded without: tensors, layers, the tokenizer.

Families differ in what their layers hold, and within a model layers may differ. So only this is
claimed: the embedding, which all but a few architectures read at once; layers by their number;
what the layers of families have in common in which all are alike; what the vocabulary's loader asks
for. Source: src/models/*.cpp and llama-vocab.cpp in llama.cpp, MODEL_TENSORS in the gguf package.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from gguf import MODEL_ARCH_NAMES, MODEL_TENSOR, MODEL_TENSORS, TENSOR_NAMES

from dynquant.checkpoint.gguf_shards import Shards
from dynquant.name_lists import grouped
from dynquant.verification.findings import Fault
from dynquant.verification.lints import value_of

_ARCHITECTURES = {name: architecture for architecture, name in MODEL_ARCH_NAMES.items()}

_EMBEDDED_ELSEWHERE = ("codeshell", "dflash", "eagle3")
"""Architectures that may take the embedding from the output, or parts from another model."""

_ALIKE = (
    *("llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "phi3"),
    *("starcoder2", "command-r", "cohere2", "olmo2", "granite", "granitemoe"),
)
"""Architectures whose layers all hold the same weights."""

_TOGETHER = (
    (r"attn_(q|qkv)\.weight", "attn_output.weight"),
    (r"attn_q\.weight", "attn_k.weight"),
    (r"attn_q\.weight", "attn_v.weight"),
    (r"ffn_up\.weight", "ffn_down.weight"),
    (r"ffn_(up|gate_up)_exps\.weight", "ffn_down_exps.weight"),
    (r"ffn_down_exps\.weight", "ffn_gate_inp.weight"),
)
"""In a layer of theirs, what may not be missing where the first is there."""

_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


def needed_faults(shards: Shards) -> Iterator[Fault]:
    """Say what a runtime looks for and does not find; nothing of files that hold no whole model."""
    name = value_of(shards, "general.architecture")
    kind = value_of(shards, "general.type")
    tensors = [t for _, t in shards.tensors()]
    if kind not in (None, "model") or not tensors:
        return
    if not isinstance(name, str):
        yield Fault("general.architecture is missing; llama.cpp asks for it", shards.path)
        return
    if name not in _ARCHITECTURES or MODEL_TENSOR.TOKEN_EMBD not in _tensors_of(name):
        return
    names = {t.name for t in tensors}
    if name in _EMBEDDED_ELSEWHERE:
        return
    if "token_embd.weight" not in names:
        yield _missing(shards, ["token_embd.weight"], "every model of its kind has it")
    if name in _ALIKE and "output_norm.weight" not in names:
        yield _missing(shards, ["output_norm.weight"], f"every {name} has it")
    yield from _layers(shards, name, names)
    yield from _tokenizer(shards)


def needed_unchecked(shards: Shards) -> Iterator[str]:
    """Say for which files it is not known what they need."""
    name = value_of(shards, "general.architecture")
    if not isinstance(name, str):
        return
    if name not in _ARCHITECTURES:
        yield f"which tensors the architecture {name!r} needs: the gguf package does not know it"
    elif name not in _ALIKE:
        yield f"that each layer is complete: not known of {name}"


def _tensors_of(name: str) -> list[MODEL_TENSOR]:
    return MODEL_TENSORS[_ARCHITECTURES[name]]


def _missing(shards: Shards, names: list[str], why: str) -> Fault:
    return Fault(f"{', '.join(grouped(names))} is missing; {why}", shards.path)


def _layers(shards: Shards, name: str, names: set[str]) -> Iterator[Fault]:
    """Say which layers, and which tensors in them, are not there."""
    count = value_of(shards, f"{name}.block_count")
    layers: dict[int, set[str]] = {}
    for tensor in names:
        if found := _LAYER.fullmatch(tensor):
            layers.setdefault(int(found[1]), set()).add(found[2])
    if not layers and not any(TENSOR_NAMES[t].startswith("blk.") for t in _tensors_of(name)):
        return  # a T5 has enc.blk.0 and dec.blk.0
    if type(count) is not int:
        yield Fault(f"{name}.block_count is not there; llama.cpp asks for it", shards.path)
        return
    if beyond := sorted(n for n in layers if n >= count):
        yield Fault(
            f"{', '.join(grouped(f'blk.{n}.*' for n in beyond))}: {name}.block_count counts"
            f" {count} layers; llama.cpp refuses tensors that it has no use for",
            shards.path,
        )
    ahead = value_of(shards, f"{name}.nextn_predict_layers")
    own = count - ahead if type(ahead) is int and 0 <= ahead < count else count
    if n_absent := own - sum(n < own for n in layers):
        # A count that a stranger wrote is not to be counted up to.
        absent = (n for n in range(own) if n not in layers)
        shown = ", ".join(f"blk.{n}" for n in islice(absent, 4)) + (", …" if n_absent > 4 else "")
        yield Fault(
            f"{n_absent} of {own} layers have no tensors ({name}.block_count): {shown}",
            shards.path,
        )
    if name in _ALIKE:
        yield from _unlike(shards, name, layers)


def _unlike(shards: Shards, name: str, layers: dict[int, set[str]]) -> Iterator[Fault]:
    """Say what some layers lack that others have, or that belongs to what they have."""
    weights = {
        n: {r for r in roles if r.endswith(".weight") and not r.startswith("rope_")}
        for n, roles in layers.items()
    }
    common = set[str]().union(*weights.values())
    lacking: dict[str, list[int]] = {}
    for n, roles in weights.items():
        wanted = set(common)
        for pattern, needed in _TOGETHER:
            if any(re.fullmatch(pattern, role) for role in roles):
                wanted.add(needed)
        for role in wanted - roles:
            lacking.setdefault(role, []).append(n)
    for role, where in sorted(lacking.items()):
        yield _missing(
            shards,
            [f"blk.{n}.{role}" for n in sorted(where)],
            f"the layers of a {name} hold the same",
        )


def _tokenizer(shards: Shards) -> Iterator[Fault]:
    """Say what of the vocabulary is missing, or of another length."""
    model = value_of(shards, "tokenizer.ggml.model")
    if model is None:
        yield Fault("tokenizer.ggml.model is missing; llama.cpp asks for it", shards.path)
        return
    if model in ("no_vocab", "none"):
        return
    tokens = value_of(shards, "tokenizer.ggml.tokens")
    if not isinstance(tokens, tuple):
        yield Fault("tokenizer.ggml.tokens is missing; llama.cpp asks for it", shards.path)
        return
    if model == "gpt2" and value_of(shards, "tokenizer.ggml.merges") is None:
        yield Fault("tokenizer.ggml.merges is missing; llama.cpp asks for it", shards.path)
    for key in ("scores", "token_type"):
        values = value_of(shards, f"tokenizer.ggml.{key}")
        if isinstance(values, tuple) and len(values) < len(tokens):
            yield Fault(
                f"tokenizer.ggml.{key} has {len(values)} values for {len(tokens)} tokens",
                shards.path,
            )
    for file, tensor in shards.tensors():
        is_embedding = tensor.name == "token_embd.weight" and len(tensor.shape) == 2
        if is_embedding and tensor.shape[0] != len(tokens):
            yield Fault(
                f"has {tensor.shape[0]} rows for {len(tokens)} tokens (tokenizer.ggml.tokens)",
                file.path,
                tensor.name,
                file.data_offset + tensor.offset,
            )
