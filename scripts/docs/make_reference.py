#!/usr/bin/env python3
"""Write the pages of docs/reference that come from the code.

    python scripts/docs/make_reference.py           # write all pages
    python scripts/docs/make_reference.py --check   # exit with 1 if a page is out of date

The commands, the schema of recipes, the classes of the JSON documents, the table of readers and the
registry of families give the tables. The text around them is in the files NAME_page.md beside this
script.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from family_table import around_any, family_rows
from projector_table import HEAD as PROJECTOR_HEAD
from projector_table import projector_rows
from typer.main import get_command

from dynquant.cli import app
from dynquant.conversion.manifest import manifest_schema
from dynquant.evaluate.results import evaluation_schema
from dynquant.plan.saved import plan_schema
from dynquant.publishing.document import publication_schema
from dynquant.quants.readers import READERS, Reader
from dynquant.quants.table import ALL
from dynquant.recipe.loader import built_in_text
from dynquant.recipe.roles import GROUP_NOTES
from dynquant.recipe.schema import recipe_schema

HERE = Path(__file__).resolve().parent
REFERENCE = HERE.parents[1] / "docs" / "reference"
COMMAND = "python scripts/docs/make_reference.py"

_CODE = re.compile(
    r"(?<![\w`-])(--[a-z][a-z-]+|hf://\S+[\w\]]|general\.architecture|[A-Za-z][\w.]*\.(?:gguf|json|html|md))"
)

# An example of each key of the recipe language. A key without one is an error, so that no key of
# the schema is left out of the page.
EXAMPLES = {
    "recipe": {
        "dynquant": "1",
        "name": "mine",
        "description": "more bits for attention",
        "extends": "[dynamic-4bit, mine.yaml]",
        "for": "[qwen3, qwen3moe]",
        "default": "Q4_K",
        "importance": "required",
        "feedback": "{damping: 0.1}",
        "target": "131GB",
        "effort": "best",
        "rules": "[{role: attn_v, type: Q6_K}]",
        "fallback": "{Q4_K: [IQ4_NL, Q8_0], any: [Q8_0, F16]}",
        "output": "{tensor_order: layer, shard_size: 50GB}",
        "metadata": "{general.name: Tiny}",
        "prediction_layers": "keep",
        "readers": "[llama.cpp, mistral.rs]",
    },
    "rule": {
        "role": "[attn_v, experts]",
        "layers": "[0-1, -1, 25%-50%]",
        "name": "blk.*.attn_k.weight",
        "shape": "{row_multiple_of: 256}",
        "when": '{experts: ">= 8"}',
        "not": "{role: attn_v, layers: 0-3}",
        "type": "Q6_K",
        "choose": "{at_least: Q4_K}",
        "keep": "true",
        "drop": "true",
        "fallback": "[Q5_1, F16]",
        "feedback": "off",
        "optional": "true",
        "override": "true",
        "note": "attention passes this on",
    },
    "when": {
        "experts": '">= 4"',
        "gqa": "[4, 8]",
        "layers": '"< 32"',
        "tied_embeddings": "true",
        "importance": "true",
        "architecture": "deepseek2",
    },
    "pattern": {
        "in": "10-20",
        "first": "3",
        "last": "12.5%",
        "every": "4",
        "from": "2",
        "of": "experts",
    },
    "importance": {"use": "required", "shrink": "64", "unseen": "mean"},
    "feedback": {"use": "required", "damping": "0.2", "sweeps": "1"},
    "target": {
        "size": "131GB",
        "bpw": "2.1",
        "fit": "24GiB",
        "context": "8192",
        "share": "[[attn_q, attn_k]]",
    },
    "output": {"shard_size": "50GB", "tensor_order": "layer"},
    "shape": {"row_multiple_of": "256", "min_weights": "1000000", "dimensions": "3"},
}
SELECTORS = ("role", "layers", "name", "shape", "when", "not")
# The limits of `shape` have no description in the schema.
SHAPES = {
    "row_multiple_of": "the row length is a multiple of this number",
    "min_weights": "the tensor has at least this many weights",
    "dimensions": "the tensor has exactly this many dimensions",
}


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def marked(text: str) -> str:
    """Return a help text with options and file names as code, safe in a cell of a table."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    parts = [p if p.startswith("`") else _CODE.sub(r"`\1`", p.replace("*", r"\*")) for p in parts]
    return "".join(parts).replace("|", r"\|")


def sentence(text: str) -> str:
    """Return a description with a capital letter and a full stop."""
    text = marked(text)
    if "." in text.split()[0].rstrip("."):  # a name, such as llama.cpp
        return text + ("" if text.endswith(".") else ".")
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!")) else ".")


# The command line.


def cli_page() -> str:
    """Return the page of all commands."""
    program = get_command(app)
    commands = list(_commands("dynquant", program))
    listed = [
        (f"[`{name}`](#{name.replace(' ', '-')})", sentence(_summary(command)))
        for name, command in commands
    ]
    return (
        "\n\n".join(
            [
                "# Commands",
                _generated("the commands' own help"),
                "stdout is for data, stderr for messages. Every command has `--help`. The"
                " [exit codes](exit-codes.md)\nare on a separate page.",
                table(("command", "description"), listed),
                *(_command(name, command) for name, command in commands),
            ]
        )
        + "\n"
    )


def _generated(source: str) -> str:
    return f"<!-- Generated from {source} by `{COMMAND}`; do not edit. -->"


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield all commands with their full names, in the order of the help."""
    for sub, its in command.commands.items():
        if hasattr(its, "commands"):
            yield from _commands(f"{name} {sub}", its)
        elif its.hidden:  # what the group does without a command
            yield name, its
        else:
            yield f"{name} {sub}", its


def _paragraphs(command: Any) -> list[str]:
    return [" ".join(p.split()) for p in re.split(r"\n\s*\n", (command.help or "").strip())]


def _summary(command: Any) -> str:
    return _paragraphs(command)[0]


def _command(name: str, command: Any) -> str:
    params = [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]
    arguments = [p for p in params if p.param_type_name == "argument"]
    options = [p for p in params if p.param_type_name == "option"]
    usage = " ".join([name, *(["[OPTIONS]"] if options else []), *map(_usage, arguments)])
    words = _words(command)
    parts = [f"## {name}", *map(marked, _paragraphs(command)), f"```text\n{usage}\n```"]
    if arguments:
        rows = [(f"`{_value(p)}`", _described(p, words)) for p in arguments]
        parts.append(table(("argument", "description"), rows))
    if options:
        rows = [(_option(p, words), _default(p), _described(p, words)) for p in options]
        parts.append(table(("option", "default", "description"), rows))
    return "\n\n".join(parts)


def _usage(argument: Any) -> str:
    value = _value(argument)
    return value if argument.required else f"[{value}]"


def _words(command: Any) -> dict[str, list[str]]:
    """Return the words that each parameter may be, of those that have a list of words.

    They come from the annotations: where typer keeps them differs between its versions.
    """
    hints = get_type_hints(inspect.unwrap(command.callback))
    found: dict[str, list[str]] = {}
    for name, hint in hints.items():
        for each in (hint, *get_args(hint)):
            if get_origin(each) is Literal:
                found[name] = list(get_args(each))
    return found


def _value(param: Any) -> str:
    """Return the word for a parameter's value."""
    if param.metavar:
        return param.metavar
    return param.name.upper()


def _option(option: Any, words: Mapping[str, list[str]]) -> str:
    # The long name first, as people search for it.
    names = sorted(option.opts, key=lambda o: (-len(o), o))
    shown = ", ".join(f"`{n}`" for n in names)
    if option.is_flag:
        return shown
    value = option.metavar or (None if option.name in words else _value(option))
    return f"{shown} `{value}`" if value else shown


def _default(option: Any) -> str:
    if option.required:
        return "required"
    # Unset options have None, or in recent versions of click a marker that is not a value.
    if option.is_flag or not isinstance(option.default, str | int | float):
        return ""
    return f"`{option.default}`"


def _described(param: Any, words: Mapping[str, list[str]]) -> str:
    text = sentence(param.help) if param.help else ""
    if choices := words.get(param.name):
        word = "One of" if len(choices) > 1 else "Only"
        text += f" {word} {', '.join(f'`{c}`' for c in choices)}."
    return text


# The recipe language.


def recipe_page() -> str:
    """Return the page of the recipe language."""
    schema = recipe_schema()
    definitions = schema["definitions"]
    rule = definitions["rule"]["properties"]
    actions_and_others = {k: v for k, v in rule.items() if k not in SELECTORS}
    return _filled(
        "recipe_page.md",
        {
            "generated": _generated("recipe_page.md and the schema of recipes"),
            "keys": _keys("recipe", schema["properties"]),
            "importance": _keys(
                "importance", schema["properties"]["importance"]["anyOf"][1]["properties"]
            ),
            "feedback": _keys("feedback", definitions["feedback"]["anyOf"][1]["properties"]),
            "target": _keys("target", schema["properties"]["target"]["anyOf"][1]["properties"]),
            "output": _keys("output", schema["properties"]["output"]["properties"]),
            "selectors": _keys("rule", {k: rule[k] for k in SELECTORS}),
            "actions": _keys("rule", actions_and_others),
            "when": _keys("when", rule["when"]["properties"]),
            "shape": _keys("shape", rule["shape"]["properties"]),
            "pattern": _keys("pattern", definitions["pattern"]["properties"]),
            "groups": table(
                ("group", "tensors"), [(f"`{k}`", sentence(v)) for k, v in GROUP_NOTES.items()]
            ),
            "built_in": f"```text\n{built_in_text().rstrip()}\n```",
        },
    )


def _filled(name: str, tables: Mapping[str, str]) -> str:
    """Return a template of this folder with its tables."""
    page = (HERE / name).read_text(encoding="utf-8")
    places = re.findall(r"^\{\{ (\w+) \}\}$", page, re.MULTILINE)
    if sorted(places) != sorted(tables):
        raise ValueError(f"{name} has places for {sorted(places)}, not {sorted(tables)}")
    for place, text in tables.items():
        page = page.replace(f"{{{{ {place} }}}}", text)
    return page


def _keys(kind: str, properties: Mapping[str, Any]) -> str:
    examples = EXAMPLES[kind]
    if missing := properties.keys() - examples.keys():
        raise ValueError(f"add examples of {sorted(missing)} to EXAMPLES[{kind!r}]")
    return table(
        ("key", "example", "meaning"),
        [
            (f"`{key}`", f"`{examples[key]}`", _meaning(key, schema))
            for key, schema in properties.items()
        ],
    )


def _meaning(key: str, schema: Mapping[str, Any]) -> str:
    text = sentence(schema.get("description") or SHAPES[key])
    words = schema.get("enum", ())
    if len(words) > 1 and all(isinstance(w, str) for w in words):
        text += f" One of {', '.join(f'`{w}`' for w in words)}."
    return text


# The JSON documents.

# Fields whose names say what they are have no description in the code.
FIELDS = {
    "architecture": "general.architecture of the model",
    "bytes": "the size in bytes",
    "description": "the recipe's description",
    "effort": "how much the encoders search",
    "error": "how far the decoded tensor is from the original; null if the weights did not change",
    "extends": "the recipes that it extends",
    "importance": "the imatrix; null without one",
    "model": "the model that the sources belong to",
    "name": "the name",
    "note": "the note of the rule",
    "output": "the output",
    "recipe": "the recipe that chose the types",
    "sha256": "the SHA-256, in hexadecimal",
    "sha256_from": "how the SHA-256 was obtained",
    "text": "the text of the recipe",
    "type": "the quant type",
    "weights": "the number of weights",
    "files": "the files of the output, in order",
    "commit": "the commit of the repository; null for a local folder",
    "chunks": "the number of chunks of calibration text; null if the imatrix does not state it",
    "file": "the name of the file",
    "allow_requantize": "whether tensors that are quantized in a GGUF may get another type",
    "dynquant": "the dynquant that wrote it",
    "version": "the version of dynquant",
    "encoder_revision": "the revision of the encoders",
    "bits_per_weight": "mean bits per weight",
    "warnings": "the warnings of the plan",
    "shape": "the dimensions",
}


# Descriptions such as "of its text" continue the name of the field. These nouns begin them.
NOUNS = {
    "bytes": "the size",
    "datasets": "the names of the texts",
    "header_sha256": "the SHA-256",
    "keys": "the keys",
    "offset": "the offset",
    "repository": "the repository,",
    "sha256": "the SHA-256",
    "shape": "the dimensions,",
    "sources": "the sources,",
    "tensor_bytes": "the size",
    "tensors": "the tensors,",
    "version": "the version",
    "xxh64": "the xxh64",
}


def manifest_page() -> str:
    """Return the page of manifests and saved plans."""
    return _filled(
        "manifest_page.md",
        {
            "generated": _generated("manifest_page.md and the classes of the documents"),
            "manifest": _document(manifest_schema(), "Manifest"),
            "plan": _document(plan_schema(), "SavedPlan"),
        },
    )


def published_page() -> str:
    """Return the page of what a repository has."""
    return _filled(
        "published_page.md",
        {
            "generated": _generated("published_page.md and the classes of the document"),
            "published": _document(publication_schema(), "Publication"),
        },
    )


def evaluation_page() -> str:
    """Return the page of evaluations."""
    return _filled(
        "evaluation_page.md",
        {
            "generated": _generated("evaluation_page.md and the classes of the document"),
            "evaluation": _document(evaluation_schema(), "Evaluation"),
        },
    )


def _document(schema: Mapping[str, Any], name: str) -> str:
    """Return tables of a document and of its parts, in the order of their first use."""
    definitions: Mapping[str, Any] = schema["$defs"]
    order = [name]
    parts = {name: schema} | dict(definitions)
    for each in order:
        for field in parts[each]["properties"].values():
            order += [r for r in _references(field) if r not in order]
    shown: list[str] = []
    for each in order:
        if each != name:
            shown.append(f"### {each}")
        shown += [sentence(parts[each]["description"]), _fields(parts[each])]
    return "\n\n".join(shown)


def _references(schema: Any) -> list[str]:
    if isinstance(schema, dict):
        own = [schema["$ref"].rpartition("/")[2]] if "$ref" in schema else []
        return own + [r for value in schema.values() for r in _references(value)]
    return [r for value in schema for r in _references(value)] if isinstance(schema, list) else []


def _fields(schema: Mapping[str, Any]) -> str:
    rows: list[tuple[str, ...]] = []
    for name, field in schema["properties"].items():
        text = field.get("description") or FIELDS.get(name)
        if text and text.startswith(("of ", "in the order", "as ")) and name in NOUNS:
            text = f"{NOUNS[name]} {text}"
        if text is None:
            raise ValueError(f"describe {schema.get('title')}.{name} in the code or in FIELDS")
        rows.append((f"`{name}`", _json_type(field), sentence(text)))
    return table(("field", "value", "meaning"), rows)


def _json_type(schema: Mapping[str, Any]) -> str:
    """Return the form of a value in words, with links to the parts."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return (
            ", ".join(_json_type(s) for s in schema["anyOf"][:-1])
            + " or "
            + _json_type(schema["anyOf"][-1])
        )
    if "enum" in schema:
        return ", ".join(f"`{w}`" for w in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema["type"] == "array":
        return f"list of {_json_type(schema['items'])}"
    if schema["type"] == "object":
        return f"object of {_json_type(schema['additionalProperties'])}"
    return schema["type"]


# The readers of GGUF.


def readers_page() -> str:
    """Return the page of the programs that read GGUF files, and the types that they read."""
    rows = [(name, *(_reading(r, name) for r in READERS.values())) for name in ALL]
    since = {name: first for r in READERS.values() for name, first in r.since.items()}
    return _filled(
        "readers_page.md",
        {
            "generated": _generated("readers_page.md and the table of readers"),
            "types": table(("type", *READERS), rows),
            "readers": table(
                ("reader", "version", "date", "source", "limits"), map(_reader, READERS.values())
            ),
            "adapters": table(
                ("reader", "source"), [(r.name, r.adapters) for r in READERS.values() if r.adapters]
            ),
            "since": table(
                ("type", "first version"), [(name, since[name]) for name in ALL if name in since]
            ),
        },
    )


def _reading(reader: Reader, name: str) -> str:
    """Return whether a reader reads a type: a cell of the table."""
    usual, but = reader.reads(name), ", ".join(reader.exceptions(name))
    if but:
        return f"not {but}" if usual else f"{but} only"
    return "yes" if usual else "-"


def _reader(reader: Reader) -> tuple[str, ...]:
    listed = ", ".join(sorted(reader.architectures))
    limits = [f"architectures: {listed}"] * bool(listed) + [reader.limits] * bool(reader.limits)
    source = reader.source.replace("*", r"\*")
    return reader.name, reader.version, reader.date, source, "; ".join(limits)


def models_page() -> str:
    """Return the page of sources, families, quantized checkpoints and vocabularies."""
    classes = "classes in `config.json`"
    head = ("family", "such as", classes, "GGUF architecture", "left out", "references")
    return _filled(
        "models_page.md",
        {
            "generated": _generated("models_page.md and the registry of families"),
            "families": table(head, family_rows()),
            "larger": around_any(),
            "projectors": table(PROJECTOR_HEAD, projector_rows()),
        },
    )


def pages() -> dict[Path, str]:
    """Return the text of each generated page."""
    return {
        REFERENCE / "cli.md": cli_page(),
        REFERENCE / "recipe.md": recipe_page(),
        REFERENCE / "manifest.md": manifest_page(),
        REFERENCE / "evaluation.md": evaluation_page(),
        REFERENCE / "published.md": published_page(),
        REFERENCE / "readers.md": readers_page(),
        REFERENCE / "models.md": models_page(),
    }


def main() -> None:
    """Write the pages, or report those that are out of date."""
    made = pages()
    old = [
        path
        for path, text in made.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if "--check" in sys.argv[1:]:
        for path in old:
            print(f"{path}: out of date; run {COMMAND}", file=sys.stderr)
        sys.exit(bool(old))
    for path in old:
        path.write_text(made[path], encoding="utf-8")
        print(f"{path}: written")


if __name__ == "__main__":
    main()
