"""A folder, or a GGUF, becomes a Model: its family described, its tensors and keys found."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from dynquant.arch.base import Architecture, Model
from dynquant.arch.families import families
from dynquant.arch.gather import gather
from dynquant.arch.gguf_model import load_gguf
from dynquant.arch.metadata import general_keys
from dynquant.arch.pooling import pooling_keys
from dynquant.checkpoint import hub
from dynquant.checkpoint.safetensors import open_checkpoint, read_config, shard_files
from dynquant.errors import ArchitectureError, DynquantError, NoVocabError, VocabError
from dynquant.keys import Keys
from dynquant.vocab import read_vocab

T = TypeVar("T")

Mla = Literal["split", "merged"]


def load_model(
    path: str | Path, *, pre: str | None = None, mla: Mla = "split", needs_vocab: bool = True
) -> Model:
    """Describe the model in a folder, in a GGUF or on the Hub, without reading its weights.

    path: a folder with config.json and safetensors; a GGUF, of several shards any one;
          hf://org/model[@revision], or hf://org/model/file.gguf, all of which is fetched
    pre:  llama.cpp's name of the pre-tokenizer, where it cannot be recognised
    mla:  how latent attention is stored: "split" as today, or "merged" as in files of early 2025
    needs_vocab: whether tokenizer files must be there; a plan does without, and the model says so
          in `missing`

    Raises DynquantError with everything that stands in the way: CheckpointError for the files,
    ArchitectureError for the family, VocabError for the tokenizer, or all their messages.
    """
    if hub.is_hub_name(str(path)):
        return _of_hub(str(path), pre, mla, needs_vocab)
    return _on_disk(Path(path), pre, mla, needs_vocab)


def _of_hub(text: str, pre: str | None, mla: Mla, needs_vocab: bool) -> Model:
    name = hub.parse_hub_name(text)
    if name.file:
        path, name = hub.fetch_gguf(name)
    else:
        path, name = hub.fetch_description(name)
        # A family that is not known is refused before hundreds of gigabytes are fetched.
        describe(read_config(path), str(path / "config.json"))
        hub.fetch_files(name, shard_files(path))
    model = _on_disk(path, pre, mla, needs_vocab)
    return replace(model, keys=_with_source(model.keys, hub.source_keys(name)))


def _with_source(keys: Keys, source: Keys) -> Keys:
    """Add where a model is from behind general.*; an address that the model gives itself stays."""
    more = {k: v for k, v in source.items() if k not in keys or not k.startswith("general.")}
    theirs = [(k, v) for k, v in keys.items() if k not in more]
    first = next((i for i, (k, _) in enumerate(theirs) if not k.startswith("general.")), None)
    return dict(theirs[:first]) | more | (dict(theirs[first:]) if first is not None else {})


def _on_disk(path: Path, pre: str | None, mla: Mla, needs_vocab: bool) -> Model:
    if _is_gguf(path):
        if pre is not None:
            raise VocabError(
                f"{path}: a GGUF names its pre-tokenizer; leave out --pre, or change the name by"
                f" --set tokenizer.ggml.pre={pre}"
            )
        if mla != "split":
            raise ArchitectureError(
                f"{path}: a GGUF keeps the layout that it has; leave out --mla {mla}, or give the"
                " folder that it was made from"
            )
        return load_gguf(path)
    return _of_folder(path, pre, mla, needs_vocab)


def _is_gguf(path: Path) -> bool:
    """Whether to look for a GGUF; blobs of the Hub's cache have no suffix."""
    if not path.exists():
        return path.suffix == ".gguf"
    return path.is_file() and path.suffix != ".safetensors"


def _of_folder(folder: Path, pre: str | None, mla: Mla, needs_vocab: bool) -> Model:
    checkpoint = open_checkpoint(folder)
    where = str(folder / "config.json")
    architecture = describe(checkpoint.config, where)
    if mla == "merged":
        if architecture.merged is None:
            raise ArchitectureError(
                f"{where}: {architecture.name} has no latent attention to be merged; leave out"
                " --mla merged"
            )
        architecture = architecture.merged
    errors: list[DynquantError] = []
    found = _attempt(errors, lambda: gather(architecture, checkpoint))
    tensors, ignored, prediction = found or ((), {}, None)
    own = [t for t in tensors if not prediction or t.parts.layer not in prediction.layers]
    general = _attempt(
        errors, lambda: general_keys(folder, checkpoint.config, architecture.name, own)
    )
    # A family may know the number of tokens where config.json leaves it out.
    config = {**checkpoint.config, "vocab_size": architecture.sizes["vocab"]}
    missing: tuple[str, ...] = ()
    vocab: Keys | None = None
    try:
        vocab = read_vocab(folder, config, pre=pre)
    except VocabError as e:
        if isinstance(e, NoVocabError) and not needs_vocab:
            missing = e.messages
        else:
            errors.append(e)
    pooling = _attempt(errors, lambda: pooling_keys(folder, architecture.name))
    if len(errors) == 1:
        raise errors[0]
    DynquantError.raise_any(message for e in errors for message in e.messages)
    keys = (general or {}) | architecture.keys | (pooling or {}) | (vocab or {})
    return Model(
        architecture.name,
        keys,
        tensors,
        ignored,
        prediction,
        architecture.deviations,
        missing=missing,
    )


def _attempt(errors: list[DynquantError], step: Callable[[], T]) -> T | None:
    """Take a step, or note why not, so that the next one can complain as well."""
    try:
        return step()
    except DynquantError as e:
        errors.append(e)
        return None


def describe(config: Mapping[str, Any], where: str) -> Architecture:
    """Return the architecture of a config.json; `where` begins every message.

    The settings of a model that also sees or hears are those of its `text_config`, or
    `language_config`.
    Raises ArchitectureError for an unknown family, and for what is not supported of a known one.
    """
    listed = config.get("architectures")
    name = cast(list[Any], listed)[0] if isinstance(listed, list) and listed else None
    known = families()
    if not isinstance(name, str):
        raise ArchitectureError(f"{where}: names no architectures; known are {', '.join(known)}")
    if name not in known:
        stems = {_stem(other): other for other in known}
        near = [stems[s] for s in difflib.get_close_matches(_stem(name), stems, 3, 0.7)]
        hint = f"near it are {', '.join(near)}" if near else f"known are {', '.join(known)}"
        raise ArchitectureError(
            f"{where}: architecture {name!r} is not known; {hint}; if llama.cpp's"
            " convert_hf_to_gguf.py knows it, give the GGUF that it makes"
        )
    text = config.get("text_config") or config.get("language_config")
    if isinstance(text, dict):
        config = {**config, **cast("dict[str, Any]", text)}
    return known[name](config, where)


def _stem(architecture: str) -> str:
    return re.sub("For(CausalLM|ConditionalGeneration)|Model", "", architecture).lower()
