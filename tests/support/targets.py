"""Readers of untrusted files, and small valid files of each kind for fuzzing.

The files of a target are written to a folder, which its reader gets. For any content, the reader
may return or raise a DynquantError; any other outcome is a finding.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
from ggufs import add, write
from imatrices import legacy_bytes, legacy_entry, write_counted
from mutations import mutated, mutated_json
from places import REFERENCES, ROOT, TESTS
from safetensors.numpy import save

from dynquant.arch.base import Model
from dynquant.arch.load import load_model
from dynquant.arch.load_projector import load_projector
from dynquant.checkpoint.safetensors import open_checkpoint
from dynquant.conversion.jobs import Done
from dynquant.conversion.journal import Journal, refuse_changed
from dynquant.conversion.layout import lay_out
from dynquant.conversion.write import convert_plan
from dynquant.errors import DynquantError, RecipeError, VerificationError
from dynquant.importance.imatrix import read_imatrix
from dynquant.interchange.from_gguf import recipe_of_gguf
from dynquant.interchange.item_lists import recipe_of_custom_q
from dynquant.interchange.items import Base
from dynquant.interchange.tensor_types import recipe_of_tensor_types
from dynquant.plan.make import make_plan
from dynquant.quants.table import QuantType, quant_type
from dynquant.recipe.facts import facts_of
from dynquant.recipe.loader import load_recipe, parse_recipe
from dynquant.recipe.match import assign
from dynquant.recipe.resolved import resolved_text
from dynquant.recipe.rules import Recipe
from dynquant.release.finished import open_finished
from dynquant.release.folder import make_release
from dynquant.tensors import row_bytes
from dynquant.verification.verify import verify
from dynquant.vocab import read_vocab

Files = dict[str, bytes]


@dataclass(frozen=True)
class Target:
    """A reader of files.

    corpus:  sets of valid files
    mutable: suffixes of the files that are changed; the other files stay valid
    """

    name: str
    corpus: Callable[[], list[Files]]
    mutable: tuple[str, ...]
    read: Callable[[Path], object]

    def mutant(self, random: Random) -> Files:
        """Return a set of files from the corpus with one changed file."""
        files = dict(random.choice(self.corpus()))
        name = random.choice([n for n in files if n.endswith(self.mutable)])
        files[name] = mutant(name, files[name], random)
        return files


def mutant(name: str, content: bytes, random: Random) -> bytes:
    """Return the content of a file with random changes that suit its kind."""
    if name.endswith(".json") and random.random() < 0.7:
        return mutated_json(content, random)
    if name.endswith(".safetensors") and random.random() < 0.7:
        end = 8 + int.from_bytes(content[:8], "little")
        change = mutated_json if random.random() < 0.7 else mutated
        header = change(content[8:end], random)
        return len(header).to_bytes(8, "little") + header + content[end:]
    return mutated(content, random)


def write_files(folder: Path, files: Files) -> None:
    """Write files into an empty folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def is_refused(target: Target, folder: Path) -> bool:
    """Return whether a target refuses the files of a folder; other errors are raised."""
    try:
        target.read(folder)
    except DynquantError as e:
        assert all(message and "\n\n" not in message for message in e.messages)
        return True
    return False


def _plan(model: Model) -> None:
    """Run all steps of a conversion before writing, and read a row of each tensor."""
    lay_out(make_plan(model, load_recipe("Q4_K_M")))
    for tensor in model.tensors:
        tensor.source.read(0, 1, np.empty(row_bytes(tensor.source), np.uint8))


def _folders(*patterns: str) -> list[Files]:
    found = sorted(folder for p in patterns for folder in TESTS.glob(p) if folder.is_dir())
    return [
        {
            str(p.relative_to(f)): p.read_bytes()
            for p in f.rglob("*.*")
            if p.suffix != ".npy" and p.is_file()
        }
        for f in found
    ]


@cache
def _references() -> list[Files]:
    return [f for f in _folders("references/*") if "config.json" in f]


@cache
def _projectors() -> list[Files]:
    return _folders("references/projectors/*")


@cache
def _packed() -> list[Files]:
    return _folders("references/packed/*", "references/rotated/*")


@cache
def _vocabularies() -> list[Files]:
    found = _folders("data/vocabularies/*")
    # The same vocabularies in other files, without tokenizer.json, which would be preferred.
    return [*found, *({n: c for n, c in f.items() if n != "tokenizer.json"} for f in found[:2])]


@cache
def _tensors() -> list[Files]:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    one = save({"model.a.weight": x, "model.b.weight": x.astype(np.float16)}, {"format": "pt"})
    return [{"model.safetensors": one, "config.json": b"{}"}]


@cache
def _index() -> list[Files]:
    x = np.zeros((2, 4), np.float32)
    shards = {f"m-{i}.safetensors": save({f"model.layers.{i}.w": x}) for i in range(3)}
    weight_map = {f"model.layers.{i}.w": f"m-{i}.safetensors" for i in range(3)}
    index = json.dumps({"metadata": {"total_size": 96}, "weight_map": weight_map})
    return [{**shards, "config.json": b"{}", "model.safetensors.index.json": index.encode()}]


def _gguf(path: Path, **options: object) -> list[Path]:
    def fill(writer: object) -> None:
        writer.add_uint32("llama.block_count", 2)  # type: ignore[attr-defined]
        writer.add_array("tokenizer.ggml.tokens", ["a", "\u0120b", ""])  # type: ignore[attr-defined]
        writer.add_array("llama.attention.head_count_kv", [2, 0])  # type: ignore[attr-defined]
        for layer in range(2):
            for role in ("attn_q", "attn_k", "ffn_down"):
                x = np.zeros((4, 64), np.float32)
                add(writer, f"blk.{layer}.{role}.weight", x, "F16")  # type: ignore[arg-type]
        add(writer, "output_norm.weight", np.zeros(64, np.float32))  # type: ignore[arg-type]

    write(path, fill, **options)
    return sorted(path.parent.glob("*.gguf"))


@cache
def _ggufs() -> list[Files]:
    with TemporaryDirectory() as made:
        return [{"m.gguf": _gguf(Path(made) / "m.gguf")[0].read_bytes()}]


@cache
def _splits() -> list[Files]:
    with TemporaryDirectory() as made:
        paths = _gguf(Path(made) / "m.gguf", split_max_tensors=3)
        return [{p.name: p.read_bytes() for p in paths}]


@cache
def _imatrices() -> list[Files]:
    with TemporaryDirectory() as made:
        path = Path(made) / "m"
        counted = {"blk.0.a.weight": (np.ones((3, 4), np.float32), (1, 0, 7))}
        write_counted(path, counted)
        return [{"imatrix": path.read_bytes()}]


@cache
def _legacy() -> list[Files]:
    entries = [legacy_entry(f"blk.{i}.a.weight".encode(), 3, [0.5] * 8) for i in range(3)]
    return [{"imatrix": legacy_bytes(*entries, n_chunks=7, dataset=b"books.txt")}]


@cache
def _recipes() -> list[Files]:
    found = sorted((ROOT / "recipes").glob("**/*.yaml"))
    more = b"""\
extends: [Q8_0, Q4_K_M]
rules:
  - {role: ffn, not: [{role: ffn_up, layers: 1-}, {name: "*.x"}], type: Q6_K, fallback: [Q5_1]}
  - {name: ['/^blk\\.[0-3]\\./', "*.ffn_*"], layers: [0-3, -1, {every: 4, from: 2}], type: Q6_K}
  - {role: experts, when: {experts: ">= 8"}, shape: {min_weights: 1000}, keep: true}
fallback: {IQ1_S: [IQ4_NL, F16], any: error}
output: {shard_size: 50GB}
metadata: {general.name: Mine}
"""
    return [{"r.yaml": more}, *({"r.yaml": p.read_bytes()} for p in found)]


@cache
def _lists() -> list[Files]:
    words = b"^blk\\.([0-9]|[1-5][0-9]|1)\\.attn_k\\.weight$=q8_0\nffn_(up|down)=iq2_xs\n.*=q4_k\n"
    return [{"types.txt": words}, {"types.txt": words.replace(b"\n", b",")}]


@cache
def _journals() -> list[Files]:
    with TemporaryDirectory() as made:
        journal = Journal(Path(made) / "m.journal")
        done = [Done(i, 0, 4, i, (0.0, 1.0, 2.0, 3.0, 4.0)) for i in range(3)]
        journal.begin({"version": "1", "source": {"a": {"bytes": 3}}}, done)
        journal.close()
        return [{"m.journal": journal.path.read_bytes()}]


@cache
def _finished() -> list[Files]:
    with TemporaryDirectory() as made:
        out = Path(made) / "m.gguf"
        convert_plan(make_plan(_small_model(), load_recipe("q8_0")), out, manifest="auto")
        both = {p.name: p.read_bytes() for p in Path(made).iterdir()}
    return [both, {"m.gguf": both["m.gguf"]}]


_CARDS = ("README.md", "generation_config.json", "modules.json", "Pooling/config.json")


@cache
def _cards() -> list[Files]:
    card = b"""\
---
license: mit
language: [en, no]
tags:
- text
base_model: org/model-7B-v1.0
datasets: [org/data]
model-index: [{name: x, results: [{task: {type: t}, metrics: [{value: 1.5}]}]}]
---
# A model
"""
    generation = b'{"temperature": 0.6, "top_k": 20, "eos_token_id": [1, 2]}'
    modules = [{"type": "m.Transformer", "path": ""}, {"type": "m.Pooling", "path": "1_Pooling"}]
    small = next(f for f in _references() if b"LlamaForCausalLM" in f["config.json"])
    names = {"README.md": card, "generation_config.json": generation}
    names["1_Pooling/config.json"] = b'{"pooling_mode_mean_tokens": true}'
    return [{**small, **names, "modules.json": json.dumps(modules).encode()}]


def _read_model(folder: Path) -> None:
    _plan(load_model(folder))


def _read_projector(folder: Path) -> None:
    _plan(load_projector(folder))


def _read_packed(folder: Path) -> None:
    from dynquant.checkpoint.packed import Packed, unpack

    for weight in unpack(open_checkpoint(folder)).tensors.values():
        source = weight.source()
        if isinstance(weight, Packed):
            source.read(0, 1, np.empty(row_bytes(source), np.uint8))


def _read_tensors(folder: Path) -> None:
    for tensor in open_checkpoint(folder).tensors.values():
        source = tensor.source()
        source.read(0, 1, np.empty(row_bytes(source), np.uint8))


def _read_gguf(folder: Path) -> None:
    path = min(folder.glob("*.gguf"))
    with suppress(DynquantError):
        recipe_of_gguf(path)
    _plan(load_model(path))


def _read_vocab(folder: Path) -> None:
    from dynquant.keys import packed

    keys = read_vocab(folder, {"model_type": "bert", "vocab_size": 4096})
    for key in keys.values():
        packed(key)


def _read_imatrix(folder: Path) -> None:
    for entry in read_imatrix(folder / "imatrix").entries.values():
        entry.means()


@cache
def _small_model() -> Model:
    return load_model(REFERENCES / "qwen3moe")


def _read_recipe(folder: Path) -> None:
    """Apply a recipe, and the file that it becomes with those that it extends."""
    recipe = load_recipe(folder / "r.yaml")
    types = _assign(recipe)
    if recipe.texts:
        text = resolved_text(recipe)
        try:
            assert _assign(parse_recipe(text, "one.yaml", "one")) == types
        except RecipeError as e:
            raise AssertionError(text) from e


def _assign(recipe: Recipe) -> dict[str, QuantType]:
    model = _small_model()
    given = assign(recipe, model.tensors, facts_of(model)).assignments
    return {name: one.type for name, one in given.items()}


def _read_list(folder: Path) -> None:
    text = (folder / "types.txt").read_bytes().decode("utf-8", "replace")
    base = Base(default=quant_type("Q4_K"))
    read = recipe_of_custom_q if "," in text else recipe_of_tensor_types
    _assign(parse_recipe(read(text, "types.txt", base), "r.yaml", "r"))


def _read_journal(folder: Path) -> None:
    journal = Journal(folder / "m.journal")
    try:
        identity, _ = journal.read()
        if identity is not None:
            refuse_changed(journal.path, identity, {"version": "1", "source": {"a": {"bytes": 3}}})
    finally:
        journal.close()


def _read_finished(folder: Path) -> None:
    """Verify a file with its manifest, and make a release of both."""
    path = folder / "m.gguf"
    found = verify(path, threads=1)
    assert make_release([open_finished(path)], folder=folder, license_="mit").texts
    VerificationError.raise_any(map(str, found.faults))


TARGETS = {
    target.name: target
    for target in (
        Target("safetensors", _tensors, (".safetensors",), _read_tensors),
        Target("index", _index, ("index.json",), _read_tensors),
        Target("gguf", _ggufs, (".gguf",), _read_gguf),
        Target("split", _splits, (".gguf",), _read_gguf),
        Target("imatrix", _imatrices, ("imatrix",), _read_imatrix),
        Target("legacy imatrix", _legacy, ("imatrix",), _read_imatrix),
        Target("config", _references, ("config.json",), _read_model),
        Target(
            "projector",
            _projectors,
            ("preprocessor_config.json", "processor_config.json", "config.json"),
            _read_projector,
        ),
        Target("packed", _packed, ("config.json", ".safetensors"), _read_packed),
        Target("tokenizer", _vocabularies, (".json", ".model", ".txt"), _read_vocab),
        Target(
            "model card",
            _cards,
            ("README.md", "generation_config.json", "modules.json", "Pooling/config.json"),
            _read_model,
        ),
        Target("recipe", _recipes, (".yaml",), _read_recipe),
        Target("list of types", _lists, (".txt",), _read_list),
        Target("finished", _finished, (".gguf", ".json"), _read_finished),
        Target("journal", _journals, (".journal",), _read_journal),
    )
}
