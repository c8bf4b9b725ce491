"""Dynamic quantized GGUF files of any model, in one pass, from a recipe a person can read.

    import dynquant

    dynquant.convert("path/to/model", "model.gguf", recipe="dynamic-4bit", progress="tqdm")

or in steps: `load_model`, `load_recipe`, `load_imatrix`, `make_plan`, and a look at the plan before
`convert`.
`encode` and `decode` turn rows of float32 into blocks and back.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dynquant.errors import DynquantError

if TYPE_CHECKING:
    from dynquant.arch.base import Model
    from dynquant.arch.load import Mla
    from dynquant.conversion.engine import Progress
    from dynquant.conversion.source_hashes import SourceHashes
    from dynquant.importance.imatrix import Imatrix
    from dynquant.keys import KeyValue
    from dynquant.plan.make import make_plan
    from dynquant.plan.plan import Plan
    from dynquant.plan.shards import Split
    from dynquant.quants.codec import decode
    from dynquant.quants.encoder import encode
    from dynquant.quants.search import Effort
    from dynquant.recipe.loader import load_recipe
    from dynquant.recipe.rules import Recipe
    from dynquant.report.notebook import tqdm_progress

    __version__: str

__all__ = [
    "DynquantError",
    "__version__",
    "convert",
    "decode",
    "encode",
    "load_imatrix",
    "load_model",
    "load_recipe",
    "make_plan",
    "tqdm_progress",
]

# numpy and gguf take a quarter of a second to import; a name brings what it needs when it is used.
_HOMES = {
    "decode": "dynquant.quants.codec",
    "encode": "dynquant.quants.encoder",
    "load_recipe": "dynquant.recipe.loader",
    "make_plan": "dynquant.plan.make",
    "tqdm_progress": "dynquant.report.notebook",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("dynquant")
    if name not in _HOMES:
        raise AttributeError(f"module 'dynquant' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def load_model(
    path: str | Path, *, pre: str | None = None, mla: Mla = "split", needs_vocab: bool = True
) -> Model:
    """Describe the model in a folder, in a GGUF or on the Hub, without reading its weights.

    path: a folder with config.json and safetensors; a GGUF, of several shards any one;
          hf://org/model[@revision], or hf://org/model/file.gguf, all of which is fetched
    pre:  the pre-tokenizer's name in llama.cpp, where the tokenizer itself does not tell it
    mla:  how latent attention is stored: "split" as today, or "merged" as in files of early 2025
    needs_vocab: whether tokenizer files must be there; without them a model can be planned, and
          `convert` refuses it

    Raises a kind of DynquantError with everything that stands in the way.
    """
    from dynquant.arch.load import load_model

    return load_model(path, pre=pre, mla=mla, needs_vocab=needs_vocab)


def load_imatrix(path: str | Path) -> Imatrix:
    """Read an imatrix, llama.cpp's file of activations, in either of its formats.

    Raises ImportanceError for a file that is damaged or holds values that are none.
    """
    from dynquant.importance.imatrix import read_imatrix

    return read_imatrix(Path(path))


def convert(
    model: str | Path | Model,
    out: str | Path,
    *,
    recipe: str | Path | Recipe,
    imatrix: str | Path | Imatrix | None = None,
    effort: Effort | None = None,
    allow_requantize: bool = False,
    threads: int | None = None,
    force: bool = False,
    pre: str | None = None,
    mla: Mla = "split",
    set_keys: Mapping[str, KeyValue | str] | None = None,
    split: Split | None = None,
    restart: bool = False,
    manifest: SourceHashes | None = "auto",
    verify_sample: int = 8,
    progress: Callable[[Progress], None] | Literal["tqdm"] | None = None,
) -> Plan:
    """Convert a checkpoint to a GGUF file by a recipe, and return the plan it was made by.

    model:    what `load_model` takes, or what it returned
    recipe:   the name of a shipped recipe, a YAML file, or what `load_recipe` returned
    imatrix:  an imatrix file of the model, or what `load_imatrix` returned; None weighs all alike
    effort:   how much the encoders search: "fast", "normal" or "best"; None leaves it to the recipe
    allow_requantize: let tensors that are quantized in a GGUF get another type
    threads:  worker threads; None takes one for each CPU; the output does not depend on it
    force:    replace `out` if it exists
    pre:      the pre-tokenizer's name in llama.cpp, where the tokenizer itself does not tell it
    mla:      how latent attention is stored, as in `load_model`
    set_keys: keys to change or add, as `--set KEY=VALUE` does
    split:    how to cut the output into shards; None leaves it to the recipe
    restart:  begin anew where an earlier run was broken off, instead of going on
    manifest: the file beside the output that tells what was made of what; of each source file it
              has the sha256: "auto" takes the Hub's own where it is known and reads the others,
              "read" reads all, "none" takes none; None writes no manifest
    verify_sample: ranges of rows that are encoded again at the end and compared; 0 for none
    progress: called with bytes and weights done, in this thread; "tqdm" draws a bar

    Raises a kind of DynquantError for everything that the caller can mend.
    """
    from dynquant.conversion.write import convert_plan
    from dynquant.plan.make import make_plan
    from dynquant.recipe.loader import load_recipe
    from dynquant.report.notebook import tqdm_progress

    if isinstance(recipe, (str, Path)):
        recipe = load_recipe(recipe)
    if isinstance(model, (str, Path)):
        model = load_model(model, pre=pre, mla=mla)
    if isinstance(imatrix, (str, Path)):
        imatrix = load_imatrix(imatrix)
    plan = make_plan(
        model,
        recipe,
        imatrix=imatrix,
        effort=effort,
        allow_requantize=allow_requantize,
        set_keys=set_keys,
        split=split,
    )
    report = tqdm_progress() if progress == "tqdm" else progress
    convert_plan(
        plan,
        Path(out),
        threads=threads,
        force=force,
        restart=restart,
        manifest=manifest,
        verify_sample=verify_sample,
        progress=report,
    )
    return plan
