"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from dynquant.plan.shards import Split

_PLACES = (
    "Folder with config.json and safetensors; a GGUF (of shards, any one);"
    " hf://ORG/MODEL[@REVISION] or hf://ORG/MODEL/FILE.gguf"
)
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help=f"{_PLACES}, always fetched completely.")
]
RemoteModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help=f"{_PLACES}; a URL of fsspec (s3://, gs://).")
]


def recipe_names(incomplete: str) -> list[str]:
    """Return the shipped recipes whose names begin with a word, for completion in a shell."""
    from dynquant.recipe.loader import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]


RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        metavar="R",
        help="A shipped recipe (`dynquant recipes`) or a YAML file.",
        show_default=False,
        autocompletion=recipe_names,
    ),
]


def named_file(path: Path | None) -> Path | None:
    """Return an output that is a file; `-` is wrong usage."""
    if str(path) == "-":
        raise typer.BadParameter("the output is written in place, not to stdout; name a file")
    return path


OutOption = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="OUT.gguf", help="The file to write.", callback=named_file),
]
ImatrixOption = Annotated[
    Path | None,
    typer.Option(
        "--imatrix",
        metavar="FILE",
        help="llama.cpp's importance matrix of the model, in either of its formats.",
    ),
]
MomentsOption = Annotated[
    Path | None,
    typer.Option(
        "--moments",
        metavar="FILE",
        help="Second moments of the model, which `dynquant imatrix --moments` writes beside the"
        " imatrix, for error feedback; they need --imatrix.",
    ),
]
ImatrixOutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="OUT.gguf",
        help="The file to write; default: MODEL.imatrix.gguf in the current folder.",
        show_default=False,
        callback=named_file,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        metavar="N",
        help="Worker threads; default: one for each CPU.",
        show_default=False,
    ),
]
# The words of quants/search.py, which brings numpy with it.
EffortOption = Annotated[
    Literal["fast", "normal", "best"] | None,
    typer.Option(
        "--effort",
        help="How much the encoders search. Default: the recipe's effort, or normal.",
        show_default=False,
    ),
]
RequantizeOption = Annotated[
    bool,
    typer.Option(
        "--allow-requantize",
        help="Allow requantizing tensors of a GGUF that are quantized, which adds an error.",
    ),
]
PreOption = Annotated[
    str | None,
    typer.Option(
        "--pre",
        metavar="NAME",
        help="llama.cpp's name of the pre-tokenizer, if it is not recognized.",
    ),
]
# The words of arch/load.py.
MlaOption = Annotated[
    Literal["split", "merged"],
    typer.Option(
        "--mla",
        help="How latent attention is stored: split as llama.cpp does today, or merged as in files"
        " of early 2025.",
    ),
]
PlanMlaOption = Annotated[
    Literal["split", "merged"] | None,
    typer.Option(
        "--mla",
        help="How latent attention is stored: split as llama.cpp does today (default), or merged as"
        " in files of early 2025.",
        show_default=False,
    ),
]
SplitSizeOption = Annotated[
    str | None,
    typer.Option(
        "--split-max-size",
        metavar="SIZE",
        help="Cut the output into shards of at most SIZE of tensors: 48G, 800M, 46GiB.",
        show_default=False,
    ),
]
SplitTensorsOption = Annotated[
    int | None,
    typer.Option(
        "--split-max-tensors",
        metavar="N",
        min=1,
        help="Cut the output into shards of at most N tensors.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of the file; an existing key keeps its type. Can be repeated.",
    ),
]
LeaveOutOption = Annotated[
    list[str] | None,
    typer.Option(
        "--leave-out",
        metavar="GLOB",
        help="Leave out stored tensors that are no part of the model, such as a value head, by"
        " their names in the checkpoint. Can be repeated.",
    ),
]
MergeAdapterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--merge-adapter",
        metavar="FOLDER",
        help="Merge a LoRA adapter of PEFT into the weights: a folder, or hf://ORG/ADAPTER. Can be"
        " repeated; adapters are merged in order.",
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="MODEL",
        help="MODEL is a LoRA adapter of PEFT, and this its model, of which only config.json is"
        " read: the output is the adapter for llama.cpp.",
        show_default=False,
    ),
]
ManifestOption = Annotated[
    bool, typer.Option("--no-manifest", help="Write no OUT.gguf.manifest.json beside the output.")
]
# The words of conversion/source_hashes.py.
SourceHashesOption = Annotated[
    Literal["auto", "read", "none"],
    typer.Option(
        "--source-hashes",
        help="Hashes of source files in the manifest: auto takes the Hub's sha256 if it is known"
        " and computes BLAKE3 otherwise, read always computes the sha256, none leaves both out.",
    ),
]
StreamOption = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Read rows of a model on the Hub by requests for ranges; no weights are stored here.",
    ),
]
KeepSourceOption = Annotated[
    Literal["all", "none"],
    typer.Option(
        "--keep-source",
        help="Files of a model on the Hub: all are fetched first and stay in its cache; none:"
        " each is fetched when it is needed, beside the output, and deleted after its last row.",
    ),
]
MaxSizeOption = Annotated[
    str | None,
    typer.Option(
        "--max-size",
        metavar="SIZE",
        help="Exit with code 3, before anything is written, if the files are larger: 48GB, 46GiB.",
        show_default=False,
    ),
]
# The words of console.py.
LogFormatOption = Annotated[
    Literal["text", "json"],
    typer.Option(
        "--log-format", help="Format of stderr: text, or one line of JSON for each event."
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def fetch_of(
    keep_source: Literal["all", "none"], *, is_streamed: bool
) -> Literal["download", "shards", "stream"]:
    """Return how weights on other machines are read, as the options say."""
    if is_streamed and keep_source == "none":
        raise typer.BadParameter("--stream stores no file: leave out --keep-source")
    if is_streamed:
        return "stream"
    return "shards" if keep_source == "none" else "download"


def split_of(
    max_size: str | None, max_tensors: int | None, option: str = "--split-max-size"
) -> Split | None:
    """Return how to cut the output as the options say, None where they say nothing.

    option: the one that max_size is of, for messages
    """
    if max_size is None and max_tensors is None:
        return None
    from dynquant.plan.shards import Split

    return Split(size_of(max_size, option), max_tensors)


def size_of(text: str | None, option: str) -> int | None:
    """Return the bytes that an option asks for; a text that is no size is wrong usage."""
    if text is None:
        return None
    from dynquant.errors import RecipeError
    from dynquant.recipe.values import size

    try:
        return size(text)
    except RecipeError as e:
        raise typer.BadParameter(str(e), param_hint=option) from e


def settings(given: list[str] | None) -> dict[str, str]:
    """Return KEY=VALUE texts as a mapping; a text without a key or a = is wrong usage."""
    found: dict[str, str] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--set")
        found[key] = value
    return found
