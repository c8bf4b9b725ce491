"""Find what is missing in a GGUF to load its model: tensors, layers, tokenizer keys.

For the architectures that the families describe, the tensors that their graphs require are known.
For all others only the embedding and the number of layers are checked. Source: src/models/*.cpp and
llama-vocab.cpp in llama.cpp, MODEL_TENSORS in the gguf package.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from gguf import MODEL_ARCH_NAMES, MODEL_TENSOR, MODEL_TENSORS, TENSOR_NAMES

from dynquant.arch.gguf_files import projector_needs
from dynquant.arch.gguf_files.required import Graph, graph_of, knows, own_layers
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys
from dynquant.name_lists import grouped
from dynquant.untrusted import shown

ARCHITECTURES = {name: architecture for architecture, name in MODEL_ARCH_NAMES.items()}
"""The architectures that llama.cpp has, by name."""

_EMBEDDED_ELSEWHERE = ("codeshell", "dflash", "eagle3")
"""Architectures that may use the output as embedding, or take parts from another model."""

_EMPTY_LAYERS = ("deci",)
"""Architectures in which a layer may have no tensors at all."""

_LAYER = re.compile(r"blk\.(\d{1,9})\.(.+)")

ONE_EXPERT = re.compile(r"blk\.(\d{1,4})\.(ffn_(?:gate|up|down))\.(\d{1,4})\.weight")
"""The name of an expert's matrix in files of 2023 and 2024, which have a tensor for each expert."""

MAX_SHOWN = 4
"""Number of layers that a message names, of those that are missing."""


@dataclass(frozen=True)
class Contents:
    """The keys of a GGUF, and the shapes of its tensors by name (numpy order)."""

    keys: Keys
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def architecture(self) -> str | None:
        """The value of general.architecture."""
        found = self.keys.get("general.architecture")
        return found.value if found is not None and isinstance(found.value, str) else None

    @property
    def is_model(self) -> bool:
        """Whether it is a whole model with tensors: not an adapter, a projector or a vocabulary."""
        kind = self.keys.get("general.type")
        return bool(self.shapes) and (kind is None or kind.value == "model")

    @property
    def is_projector(self) -> bool:
        """Whether it is a projector, which a runtime loads beside a language model."""
        kind = self.keys.get("general.type")
        return kind is not None and kind.value == projector_needs.KIND

    @property
    def is_checked(self) -> bool:
        """Whether its tensors can be checked: a known model with an embedding."""
        name = self.architecture
        return (
            self.is_model
            and name is not None
            and name not in _EMBEDDED_ELSEWHERE
            and (knows(name) or _has_embedding(name))
        )


def tensor_problems(contents: Contents) -> Iterator[str]:
    """Yield the tensors that a runtime needs and does not find, and layers beyond the count.

    Empty for files that are not whole models, and for architectures that are not known.
    """
    if contents.is_projector:
        yield from projector_needs.problems(contents.keys, contents.shapes)
        return
    name = contents.architecture
    if name is None or not contents.is_checked:
        return
    graph = _graph(name, contents.keys)
    names = frozenset(ONE_EXPERT.sub(r"blk.\1.\2_exps.weight", n) for n in contents.shapes)
    if single := [n for n in contents.shapes if ONE_EXPERT.fullmatch(n)]:
        yield (
            f"{', '.join(grouped(single))}: a tensor for each expert, as in files of 2023 and 2024;"
            " llama.cpp needs one for all experts of a layer: convert the file, which stacks them"
        )
    whole = frozenset({"token_embd.weight"}) if isinstance(graph, str) else graph.whole
    if absent := [n for n in sorted(whole) if n not in names]:
        yield _missing(absent, f"llama.cpp's {name} needs it")
    layers = _layers(names)
    count, ahead = own_layers(name, contents.keys)
    if count is None:
        return
    own = count - ahead
    if beyond := sorted(n for n in layers if n >= count):
        yield (
            f"{', '.join(grouped(f'blk.{n}.*' for n in beyond))} is beyond the"
            f" {count} layer{'' if count == 1 else 's'} of {name}.block_count; llama.cpp refuses"
            " tensors that it does not use"
        )
    n_here = sum(n < own for n in layers)
    if ahead and not n_here:
        return  # a file with the prediction layers alone
    is_empty = name in _EMPTY_LAYERS or (not layers and not _has_layers(name))
    if n_here < own and not is_empty:
        # The count is untrusted input: it may be too large to loop over.
        absent_layers = (n for n in range(own) if n not in layers)
        listed = ", ".join(f"blk.{n}" for n in islice(absent_layers, MAX_SHOWN))
        more = ", …" if own - n_here > MAX_SHOWN else ""
        yield f"{own - n_here} of the {own} layers of {name}.block_count have no tensors: " + (
            listed + more
        )
    if not isinstance(graph, str):
        yield from _incomplete(name, graph, layers)


def key_problems(contents: Contents) -> Iterator[str]:
    """Yield the keys that a runtime needs and does not find; nothing if it is no whole model."""
    if not contents.is_model:
        return
    name = contents.architecture
    if name is None:
        yield "general.architecture is missing; llama.cpp needs it"
        return
    if not contents.is_checked:
        return
    # A T5 has enc.blk.0 and dec.blk.0.
    if own_layers(name, contents.keys)[0] is None and (
        _layers(contents.shapes) or _has_layers(name)
    ):
        yield f"{name}.block_count is missing; llama.cpp needs it"
    yield from _tokenizer(contents.keys)


def doubts(contents: Contents) -> Iterator[str]:
    """Yield what is probably missing, though llama.cpp computes without it."""
    values = {name: key.value for name, key in contents.keys.items() if name.startswith("llama.")}
    is_llama_3_1 = (
        contents.is_checked
        and contents.architecture == "llama"
        and values.get("llama.rope.freq_base") == LLAMA_3_BASE
        and values.get("llama.context_length") == LLAMA_3_1_CONTEXT
        and "llama.rope.scaling.type" not in values
    )
    if is_llama_3_1 and "rope_freqs.weight" not in contents.shapes:
        yield (
            "rope_freqs.weight is missing; a model with these rope keys is a Llama 3.1 or 3.2, and"
            " files made before August 2024 do not have it: without it long texts are answered"
            " differently, get another copy of the file"
        )


LLAMA_3_BASE, LLAMA_3_1_CONTEXT = 500000, 131072
"""rope_theta and max_position_embeddings of all Llamas 3.1 and 3.2; Llama 3 has 8192 tokens."""


def wrong_embedding(contents: Contents) -> str | None:
    """Return why the embedding does not fit the tokens; None if it does, or if there is none."""
    tokens = contents.keys.get("tokenizer.ggml.tokens")
    model = contents.keys.get("tokenizer.ggml.model")
    shape = contents.shapes.get("token_embd.weight", ())
    if not contents.is_checked or tokens is None or not isinstance(tokens.value, tuple):
        return None
    if model is None or model.value in _NO_VOCAB:
        return None
    if len(shape) != 2 or shape[0] == len(tokens.value):
        return None
    return f"has {shape[0]} rows for {len(tokens.value)} tokens (tokenizer.ggml.tokens)"


def unchecked(contents: Contents, *, is_listed: bool) -> Iterator[str]:
    """Yield the requirements that cannot be checked.

    is_listed: whether it is known that no optional tensor is missing
    """
    name = contents.architecture
    kind = contents.keys.get("general.type")
    if contents.is_projector:
        yield "missing tensors that only some kinds of projectors have"
    elif contents.shapes and kind is not None and kind.value != "model":
        yield (
            f"missing tensors: the file is of type {shown(kind.value)} (general.type), not a whole"
            " model"
        )
    if name is None or not contents.is_model:
        return
    within = " within layers" if contents.is_checked else ""
    if not knows(name):
        yield f"missing tensors{within}: dynquant does not know the architecture {name!r}"
        return
    if not contents.is_checked:
        return
    graph = _graph(name, contents.keys)
    if isinstance(graph, str):
        yield f"missing tensors{within}: {graph}"
    elif graph.tied and not is_listed and "output.weight" not in contents.shapes:
        yield (
            "whether output.weight is missing: no key states it, and llama.cpp then uses"
            " token_embd.weight in its place"
        )


def _has_embedding(name: str) -> bool:
    known = ARCHITECTURES.get(name)
    return known is not None and MODEL_TENSOR.TOKEN_EMBD in MODEL_TENSORS[known]


def _has_layers(name: str) -> bool:
    if name not in ARCHITECTURES:
        return True
    tensors = MODEL_TENSORS[ARCHITECTURES[name]]
    return any(TENSOR_NAMES[tensor].startswith("blk.") for tensor in tensors)


def _graph(name: str, keys: Keys) -> Graph | str:
    """Return the requirements of a graph, or why they are not known."""
    if not knows(name):
        return "the architecture is not known"
    try:
        return graph_of(name, keys)
    except ArchitectureError as e:
        return e.messages[0]


def _missing(names: Collection[str], why: str) -> str:
    return f"{', '.join(grouped(names))} is missing; {why}"


def _layers(names: Collection[str]) -> dict[int, frozenset[str]]:
    """Return the tensors of each layer, without `blk.N.`."""
    found: dict[int, set[str]] = {}
    for name in names:
        if match := _LAYER.fullmatch(name):
            found.setdefault(int(match[1]), set()).add(match[2])
    return {n: frozenset(roles) for n, roles in found.items()}


def _incomplete(name: str, graph: Graph, layers: Mapping[int, frozenset[str]]) -> Iterator[str]:
    """Yield tensors that layers need, or that other layers of the same kind have."""
    here = {n: roles for n, roles in layers.items() if n < len(graph.layers)}
    optional: dict[frozenset[str], set[str]] = {}
    for n, roles in here.items():
        if n < graph.n_own:  # prediction layers have optional tensors in any combination
            kind = optional.setdefault(graph.layers[n], set())
            kind |= {r for r in roles if r.endswith(_WEIGHTS) and not r.startswith("rope_")}
    fused = {role for parts, one in graph.fused for role in (*parts, *one)}.union(*graph.either)
    needed: dict[str, list[int]] = {}
    others: dict[str, list[int]] = {}
    for n, roles in here.items():
        for role in graph.absent(n, roles):
            needed.setdefault(role, []).append(n)
        kind = optional.get(graph.layers[n], set()) if n < graph.n_own else set[str]()
        for role in kind - roles - graph.layers[n] - fused:
            others.setdefault(role, []).append(n)
    for missing, why in ((needed, f"llama.cpp's {name} needs it"), (others, _OTHERS)):
        for role, where in sorted(missing.items()):
            yield _missing([f"blk.{n}.{role}" for n in sorted(where)], why)


_OTHERS = "other layers have it, and llama.cpp would compute without it here"

_WEIGHTS = (".weight", ".bias")

_NO_VOCAB = ("no_vocab", "none")
"""Values of tokenizer.ggml.model for models without tokens."""


def _tokenizer(keys: Keys) -> Iterator[str]:
    """Yield tokenizer keys that are missing or have the wrong length."""
    model = keys.get("tokenizer.ggml.model")
    if model is None:
        yield "tokenizer.ggml.model is missing; llama.cpp needs it"
        return
    if model.value in _NO_VOCAB:
        return
    tokens = keys.get("tokenizer.ggml.tokens")
    if tokens is None or not isinstance(tokens.value, tuple):
        yield "tokenizer.ggml.tokens is missing; llama.cpp needs it"
        return
    if model.value in ("gpt2", "gemma4") and "tokenizer.ggml.merges" not in keys:
        yield "tokenizer.ggml.merges is missing; llama.cpp needs it"
    for key in ("scores", "token_type"):
        values = keys.get(f"tokenizer.ggml.{key}")
        if values is None or not isinstance(values.value, tuple):
            continue
        if len(values.value) < len(tokens.value):
            yield (
                f"tokenizer.ggml.{key} has {len(values.value)} values for"
                f" {len(tokens.value)} tokens"
            )
