"""Find what is missing to load a model: tensors, layers, tokenizer keys.

Families differ in the tensors of their layers, and so may the layers of one model. So only these
are checked: the embedding, which all but a few architectures need; the number of layers; the
tensors of a layer, in families whose layers all have the same; the keys that the vocabulary loader
needs. Source: src/models/*.cpp and llama-vocab.cpp in llama.cpp, MODEL_TENSORS in the gguf package.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from gguf import MODEL_ARCH_NAMES, MODEL_TENSOR, MODEL_TENSORS, TENSOR_NAMES

from dynquant.checkpoint.gguf_shards import Shards
from dynquant.name_lists import grouped
from dynquant.verification.findings import Fault, counted
from dynquant.verification.lints import value_of

_ARCHITECTURES = {name: architecture for architecture, name in MODEL_ARCH_NAMES.items()}

_EMBEDDED_ELSEWHERE = ("codeshell", "dflash", "eagle3")
"""Architectures that may use the output as embedding, or take parts from another model."""

_ALIKE = (
    *("llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "phi3"),
    *("starcoder2", "command-r", "cohere2", "olmo2", "granite", "granitemoe"),
)
"""Architectures whose layers all have the same weights."""

_TOGETHER = (
    (r"attn_(q|qkv)\.weight", "attn_output.weight"),
    (r"attn_q\.weight", "attn_k.weight"),
    (r"attn_q\.weight", "attn_v.weight"),
    (r"ffn_up\.weight", "ffn_down.weight"),
    (r"ffn_(up|gate_up)_exps\.weight", "ffn_down_exps.weight"),
    (r"ffn_down_exps\.weight", "ffn_gate_inp.weight"),
)
"""Pairs of tensors in a layer of those: if the first is there, the second must be."""

_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


def needed_faults(shards: Shards) -> Iterator[Fault]:
    """Yield what a runtime needs and does not find; nothing for files that are not whole models."""
    name = value_of(shards, "general.architecture")
    kind = value_of(shards, "general.type")
    tensors = [t for _, t in shards.tensors()]
    if kind not in (None, "model") or not tensors:
        return
    if not isinstance(name, str):
        yield Fault("general.architecture is missing; llama.cpp needs it", shards.path)
        return
    if name not in _ARCHITECTURES or MODEL_TENSOR.TOKEN_EMBD not in _tensors_of(name):
        return
    names = {t.name for t in tensors}
    if name in _EMBEDDED_ELSEWHERE:
        return
    if "token_embd.weight" not in names:
        yield _missing(shards, ["token_embd.weight"], f"every {name} model has it")
    if name in _ALIKE and "output_norm.weight" not in names:
        yield _missing(shards, ["output_norm.weight"], f"every {name} model has it")
    yield from _layers(shards, name, names)
    yield from _tokenizer(shards)


def needed_unchecked(shards: Shards) -> Iterator[str]:
    """Yield the requirements that cannot be checked for this architecture."""
    name = value_of(shards, "general.architecture")
    if not isinstance(name, str):
        return
    if name not in _ARCHITECTURES:
        yield f"missing tensors: the gguf package does not know the architecture {name!r}"
    elif name not in _ALIKE:
        yield f"missing tensors within layers: the layers of {name} may differ"


def _tensors_of(name: str) -> list[MODEL_TENSOR]:
    return MODEL_TENSORS[_ARCHITECTURES[name]]


def _missing(shards: Shards, names: list[str], why: str) -> Fault:
    return Fault(f"{', '.join(grouped(names))} is missing; {why}", shards.path)


def _layers(shards: Shards, name: str, names: set[str]) -> Iterator[Fault]:
    """Yield the layers that are missing, superfluous or incomplete."""
    count = value_of(shards, f"{name}.block_count")
    layers: dict[int, set[str]] = {}
    for tensor in names:
        if found := _LAYER.fullmatch(tensor):
            layers.setdefault(int(found[1]), set()).add(found[2])
    if not layers and not any(TENSOR_NAMES[t].startswith("blk.") for t in _tensors_of(name)):
        return  # a T5 has enc.blk.0 and dec.blk.0
    if type(count) is not int:
        yield Fault(f"{name}.block_count is missing; llama.cpp needs it", shards.path)
        return
    if beyond := sorted(n for n in layers if n >= count):
        yield Fault(
            f"{', '.join(grouped(f'blk.{n}.*' for n in beyond))} is beyond the"
            f" {counted(count, 'layer')} of {name}.block_count; llama.cpp refuses tensors that it"
            " does not use",
            shards.path,
        )
    ahead = value_of(shards, f"{name}.nextn_predict_layers")
    own = count - ahead if type(ahead) is int and 0 <= ahead < count else count
    if n_absent := own - sum(n < own for n in layers):
        # The count is untrusted input: it may be too large to loop over.
        absent = (n for n in range(own) if n not in layers)
        shown = ", ".join(f"blk.{n}" for n in islice(absent, 4)) + (", …" if n_absent > 4 else "")
        yield Fault(
            f"{n_absent} of the {own} layers of {name}.block_count have no tensors: {shown}",
            shards.path,
        )
    if name in _ALIKE:
        yield from _incomplete(shards, name, layers)


def _incomplete(shards: Shards, name: str, layers: dict[int, set[str]]) -> Iterator[Fault]:
    """Yield tensors that some layers do not have, although other layers do or they need them."""
    weights = {
        n: {r for r in roles if r.endswith(".weight") and not r.startswith("rope_")}
        for n, roles in layers.items()
    }
    common = set[str]().union(*weights.values())
    missing: dict[str, list[int]] = {}
    for n, roles in weights.items():
        wanted = set(common)
        for pattern, needed in _TOGETHER:
            if any(re.fullmatch(pattern, role) for role in roles):
                wanted.add(needed)
        for role in wanted - roles:
            missing.setdefault(role, []).append(n)
    for role, where in sorted(missing.items()):
        yield _missing(
            shards,
            [f"blk.{n}.{role}" for n in sorted(where)],
            f"all layers of a {name} model have the same tensors",
        )


def _tokenizer(shards: Shards) -> Iterator[Fault]:
    """Yield tokenizer keys that are missing or have the wrong length."""
    model = value_of(shards, "tokenizer.ggml.model")
    if model is None:
        yield Fault("tokenizer.ggml.model is missing; llama.cpp needs it", shards.path)
        return
    if model in ("no_vocab", "none"):
        return
    tokens = value_of(shards, "tokenizer.ggml.tokens")
    if not isinstance(tokens, tuple):
        yield Fault("tokenizer.ggml.tokens is missing; llama.cpp needs it", shards.path)
        return
    if model == "gpt2" and value_of(shards, "tokenizer.ggml.merges") is None:
        yield Fault("tokenizer.ggml.merges is missing; llama.cpp needs it", shards.path)
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
