"""Load a model from a folder, a GGUF or the Hub: its keys and tensors, not its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from dynquant.arch.adapters.folder import Adapter, open_adapter
from dynquant.arch.adapters.merge import merged_keys, open_adapters
from dynquant.arch.adapters.model import adapter_model, base_config_folder
from dynquant.arch.adapters.settings import CONFIG as ADAPTER_CONFIG
from dynquant.arch.base import Architecture, Model, ModelTensor
from dynquant.arch.dense_modules import WITH_DENSE, read_dense
from dynquant.arch.gather import gather
from dynquant.arch.gguf_files.model import load_gguf
from dynquant.arch.headless import with_copied_head
from dynquant.arch.metadata import general_keys
from dynquant.arch.model_types import class_of
from dynquant.arch.pooling import dense_folders, folders_of, pooling_keys
from dynquant.arch.rerankers import reranker_problems
from dynquant.arch.stored_numbers import stored_keys
from dynquant.checkpoint import causes, hub
from dynquant.checkpoint.remote.fsspec_models import is_url, url_model
from dynquant.checkpoint.remote.hub_models import hub_files, hub_gguf, unlisted_files
from dynquant.checkpoint.safetensors import SINGLE, open_checkpoint, read_config, shard_files
from dynquant.checkpoint.source_file import hash_of_settings
from dynquant.errors import (
    AdapterError,
    ArchitectureError,
    CheckpointError,
    NoVocabError,
    Problems,
    VocabError,
)
from dynquant.keys import Keys
from dynquant.stored_files import ALL_HERE, Elsewhere
from dynquant.vocab import VocabReport, read_vocab

Mla = Literal["split", "merged"]
Fetch = Literal["download", "shards", "stream"]
"""How the weights of a model elsewhere are read. download: the whole model is fetched first, into
the cache of the Hub; shards: a conversion fetches one file after the other, and deletes each after
its last row; stream: rows are read by requests for ranges, and no file is stored here. A model at a
URL that is not of the Hub is streamed in place of a download."""


def load_model(
    path: str | Path,
    *,
    pre: str | None = None,
    mla: Mla = "split",
    needs_vocab: bool = True,
    leave_out: Sequence[str] | str = (),
    merge_adapter: Sequence[str | Path] | str | Path = (),
    base: str | Path | None = None,
    fetch: Fetch = "download",
) -> Model:
    """Describe the model in a folder, in a GGUF or on the Hub, without reading its weights.

    path: a folder with config.json and safetensors; a GGUF or any of its shards;
          hf://org/model[@revision] or hf://org/model/file.gguf; either at a URL of fsspec
    pre:  llama.cpp's name of the pre-tokenizer, if it cannot be recognised
    mla:  layout of latent attention: "split", or "merged" as in files of early 2025
    needs_vocab: whether tokenizer files are required; planning works without them, and
          `Model.missing` then reports them
    leave_out: globs of stored names to leave out, or one; they must not match tensors of the model
    merge_adapter: PEFT adapters to merge into the weights, in order, or one: folders or hf:// names
    base: path is a PEFT adapter of this model, of which only config.json is read; the result is
          the adapter as llama.cpp applies it
    fetch: how weights that are not on this machine are read; headers are read in any case

    Raises DynquantError with all problems: CheckpointError for the files, ArchitectureError for the
    family, VocabError for the tokenizer, AdapterError for adapters, or a DynquantError with the
    messages of several of these.
    """
    leave_out = (leave_out,) if isinstance(leave_out, str) else leave_out
    if base is not None:
        return _adapter_of(path, base)
    if isinstance(merge_adapter, str | Path):
        merge_adapter = (merge_adapter,)
    adapters = open_adapters(merge_adapter)
    hub.refuse_address(str(path))
    if fetch not in get_args(Fetch):
        raise CheckpointError(f"fetch={fetch!r} is unknown; use {' or '.join(get_args(Fetch))}")
    if mla not in get_args(Mla):
        choices = ", ".join(get_args(Mla))
        raise ArchitectureError(f"mla={mla!r} is not a layout; use one of {choices}")
    found, elsewhere, keys = open_place(str(path), fetch)
    model = _on_disk(found, pre, mla, needs_vocab, leave_out, adapters, elsewhere)
    return replace(model, keys=with_source(model.keys, keys)) if keys else model


def open_place(text: str, fetch: Fetch) -> tuple[Path, Elsewhere, Keys]:
    """Return the folder or GGUF of a model, its files that are elsewhere, and keys of its origin.

    Raises DynquantError as `load_model`.
    """
    if hub.is_hub_name(text):
        if fetch == "download":
            path, name = fetch_model(text)
            return path, ALL_HERE, hub.source_keys(name)
        path, name, elsewhere = _stay(text, is_copied=fetch == "shards")
        return path, elsewhere, hub.source_keys(name)
    if is_url(text):
        path, elsewhere = url_model(text, is_copied=fetch == "shards")
        return path, elsewhere, {}
    return Path(text), ALL_HERE, {}


def fetch_model(text: str) -> tuple[Path, hub.HubName]:
    """Fetch a model of the Hub; return its folder or its GGUF, and its name with the commit.

    Raises DynquantError as `load_model`.
    """
    name = hub.parse_hub_name(text)
    if name.file:
        return hub.fetch_gguf(name)
    path, name = hub.fetch_description(name)
    # Unknown families are rejected before hundreds of gigabytes are downloaded.
    architecture = _describe(read_config(path), path)
    if listed := shard_files(path):
        hub.fetch_files(name, [*listed, *_dense_files(path, architecture)])
    else:
        hub.fetch_unlisted(name)
    return path, name


def _stay(text: str, *, is_copied: bool) -> tuple[Path, hub.HubName, Elsewhere]:
    """Fetch a model of the Hub but its weights; return its place, full name, and the weights."""
    name = hub.parse_hub_name(text)
    if name.file:
        return hub_gguf(name, is_copied=is_copied)
    path, name = hub.fetch_description(name)
    architecture = _describe(read_config(path), path)
    if small := _dense_files(path, architecture):
        hub.fetch_files(name, small)
    files = shard_files(path) or unlisted_files(name)
    return path, name, hub_files(name, path, files, is_copied=is_copied)


def _dense_files(path: Path, architecture: Architecture) -> list[str]:
    """Return the weights of modules after pooling, which are small."""
    dense = dense_folders(path) if architecture.name == WITH_DENSE else []
    return [f"{folder.relative_to(path).as_posix()}/{SINGLE}" for folder in dense]


def _adapter_of(path: str | Path, base: str | Path) -> Model:
    """Describe a PEFT adapter of a base model."""
    problems = Problems()
    adapter = problems.attempt(lambda: open_adapter(path))
    found = problems.attempt(lambda: _base(base))
    problems.raise_any(AdapterError)
    assert adapter is not None and found is not None, "whatever is not read is a fault"
    return adapter_model(adapter, *found)


def _base(base: str | Path) -> tuple[Architecture, str]:
    """Return the architecture of an adapter's base, and the hash of its config.json."""
    if hub.is_hub_name(str(base)):
        folder, _ = hub.fetch_description(hub.parse_hub_name(str(base)))
    else:
        hub.refuse_address(str(base))
        folder = base_config_folder(base)
    _, folder = folders_of(folder)
    return _describe(read_config(folder), folder), hash_of_settings(folder / "config.json")


def with_source(keys: Keys, source: Keys) -> Keys:
    """Add the model's source after general.*; a source that the model itself states is kept."""
    more = {k: v for k, v in source.items() if k not in keys or not k.startswith("general.")}
    theirs = [(k, v) for k, v in keys.items() if k not in more]
    first = next((i for i, (k, _) in enumerate(theirs) if not k.startswith("general.")), None)
    return dict(theirs[:first]) | more | (dict(theirs[first:]) if first is not None else {})


def _on_disk(
    path: Path,
    pre: str | None,
    mla: Mla,
    needs_vocab: bool,
    leave_out: Sequence[str],
    adapters: Sequence[Adapter],
    elsewhere: Elsewhere,
) -> Model:
    if is_gguf(path):
        if adapters:
            raise AdapterError(
                f"{path}: an adapter cannot be merged into a GGUF, whose rows have another order;"
                " give the folder that the GGUF was made from"
            )
        if pre is not None:
            raise VocabError(
                f"{path}: a GGUF names its pre-tokenizer; remove --pre, or change the name with"
                f" --set tokenizer.ggml.pre={pre}"
            )
        if mla != "split":
            raise ArchitectureError(
                f"{path}: the layout of a GGUF cannot be changed; remove --mla {mla}, or give the"
                " folder that the GGUF was made from"
            )
        if leave_out:
            raise ArchitectureError(
                f"{path}: --leave-out is for checkpoints; leave tensors of a GGUF out with a rule"
                " of the recipe (`drop: true`)"
            )
        return load_gguf(path, elsewhere)
    if (path / ADAPTER_CONFIG).exists() and not (path / "config.json").exists():
        raise AdapterError(
            f"{path}: is an adapter; name the model that it belongs to (--base MODEL), or merge it"
            f" into that model (convert MODEL --merge-adapter {path})"
        )
    leave_out = tuple(dict.fromkeys(leave_out))
    return _of_folder(path, pre, mla, needs_vocab, leave_out, adapters, elsewhere)


def is_gguf(path: Path) -> bool:
    """Return whether to read the path as a GGUF; blobs in the Hub's cache have no suffix."""
    if not path.exists():
        return path.suffix == ".gguf"
    return path.is_file() and path.suffix != ".safetensors"


def is_gguf_name(model: str | Path) -> bool:
    """Return whether a model, of the Hub or on disk, is a GGUF; as `load_model` decides."""
    if hub.is_hub_name(str(model)):
        return bool(hub.parse_hub_name(str(model)).file)
    if is_url(str(model)):
        return str(model).endswith(".gguf")
    return is_gguf(Path(model))


def _of_folder(
    folder: Path,
    pre: str | None,
    mla: Mla,
    needs_vocab: bool,
    leave_out: tuple[str, ...],
    adapters: Sequence[Adapter],
    elsewhere: Elsewhere,
) -> Model:
    top, folder = folders_of(folder)
    checkpoint = open_checkpoint(folder, elsewhere=elsewhere)
    where = str(folder / "config.json")
    architecture = _describe(checkpoint.config, folder)
    CheckpointError.raise_any(causes.check_weights(checkpoint))
    if mla == "merged":
        if architecture.merged is None:
            raise ArchitectureError(
                f"{where}: llama.cpp computes no merged latent attention in {architecture.name};"
                " remove --mla merged"
            )
        architecture = architecture.merged
    problems = Problems()
    found = problems.attempt(lambda: gather(architecture, checkpoint, leave_out, adapters))
    tensors, ignored, prediction = found or ((), {}, None)
    tensors, numbers, as_keys = problems.attempt(
        lambda: stored_keys(tensors, architecture, folder)
    ) or (tensors, {}, {})
    own = [t for t in tensors if not prediction or t.parts.layer not in prediction.layers]
    general = problems.attempt(lambda: general_keys(top, checkpoint.config, architecture.name, own))
    # A family may have a default number of tokens.
    config = {**checkpoint.config, "vocab_size": architecture.sizes["vocab"]}
    report = VocabReport()
    vocab, missing = problems.attempt(lambda: _vocab(folder, config, pre, needs_vocab, report)) or (
        {},
        (),
    )
    pooling = problems.attempt(lambda: pooling_keys(top, architecture.name))
    dense = problems.attempt(lambda: _dense(top, architecture))
    problems.raise_any()
    after, sizes = dense or ((), {})
    tensors = (*tensors, *after)
    keys = (general or {}) | architecture.keys | numbers | sizes | (pooling or {})
    keys |= merged_keys(adapters) | vocab
    return Model(
        architecture.name,
        keys,
        tensors,
        ignored | as_keys,
        prediction,
        (
            *architecture.deviations,
            *report.warnings,
            *causes.unread_files(checkpoint),
            *_without_template(folder, architecture, vocab),
        ),
        files=tuple(adapter.folder / ADAPTER_CONFIG for adapter in adapters),
        missing=missing,
        trims=report.trims,
        leave_out=leave_out,
    )


_WITHOUT_TEMPLATE = {
    "deepseek32": "deepseek-ai-DeepSeek-V3.2.jinja",
    "deepseek4": "deepseek-ai-DeepSeek-V4.jinja, deepseek-ai-DeepSeek-V4-Flash-0731.jinja",
}
"""Families that are published without a chat template, and the files of llama.cpp that have one."""


def _without_template(folder: Path, architecture: Architecture, vocab: Keys) -> tuple[str, ...]:
    """Return a warning if a file gets no chat template, with which programs guess a wrong one."""
    names = _WITHOUT_TEMPLATE.get(architecture.name)
    if names is None or not vocab or "tokenizer.chat_template" in vocab:
        return ()
    return (
        f"{folder}: has no chat template, and llama.cpp formats chats in the way of other models;"
        " put one into the folder as chat_template.jinja, such as the one that llama.cpp has for"
        f" the model in models/templates ({names})",
    )


def _dense(top: Path, architecture: Architecture) -> tuple[tuple[ModelTensor, ...], Keys]:
    """Return the tensors and keys of modules after pooling, for graphs that compute them."""
    if architecture.name != WITH_DENSE:
        return (), {}
    return read_dense(dense_folders(top), architecture.sizes["hidden"])


def _vocab(
    folder: Path,
    config: Mapping[str, Any],
    pre: str | None,
    is_needed: bool,
    report: VocabReport,
) -> tuple[Keys, tuple[str, ...]]:
    """Return the keys of the vocabulary, or why there is none if it is not needed."""
    try:
        return read_vocab(folder, config, pre=pre, report=report), ()
    except NoVocabError as e:
        if is_needed:
            raise
        return {}, e.messages


def _describe(config: Mapping[str, Any], folder: Path) -> Architecture:
    """Return the architecture of a model to be converted, unless its weights cannot be read."""
    where = str(folder / "config.json")
    CheckpointError.raise_any(causes.check_config(config, where))
    architecture = describe(config, where)
    ArchitectureError.raise_any(reranker_problems(folder, config))
    return architecture


def describe(config: Mapping[str, Any], where: str) -> Architecture:
    """Return the architecture of a config.json.

    where: the path of config.json, which begins every message

    A base class is described as its language model, with the embedding as the output matrix.
    Raises ArchitectureError if the family is unknown, or if llama.cpp cannot compute its settings.
    """
    found = class_of(config, where)
    if not found.headless:
        return found.describe(config, where)
    tied = not found.needs_head
    architecture = found.describe({**config, "tie_word_embeddings": tied}, where)
    warning = (
        f"{where}: {found.name} is a language model without an output matrix, as for embeddings;"
        " without modules.json, give llama.cpp its pooling (`--pooling`)"
    )
    if found.needs_head:
        architecture = with_copied_head(architecture)
        warning += "; llama.cpp needs that matrix, so the file has the embedding in its place"
    if config.get("tie_word_embeddings") is not True:
        warning += "; text that llama.cpp generates with the file has no meaning"
    return replace(architecture, deviations=(*architecture.deviations, warning))
