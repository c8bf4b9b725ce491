"""JSON documents that dynquant publishes: their common form, and a reader that trusts nothing.

A document is a pydantic model; its classes are its published schema and its reader at once. Its
first member names its kind and holds the version of its form.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dynquant.errors import DynquantError
from dynquant.untrusted import RepeatedKeyError, parse_json, read_regular, unique

MAX_BYTES = 64 << 20
"""Limit on the bytes of a document: a manifest of 70,000 tensors has 30 MB."""

MAX_FAULTS = 10
"""Faults reported for one document; a file of another kind has thousands."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**63)]
FileName = Annotated[str, Field(pattern=r"^[^/\x00]*[^/\x00.][^/\x00]*$")]
"""The name of a file in a folder that is known: no path, and neither `.` nor `..`."""
Figure = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Part(BaseModel):
    """Base of all parts of a document: extra fields are rejected and types are not coerced."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


D = TypeVar("D", bound=Part)


def document_text(document: Part) -> str:
    """Return a document as it is written: JSON in ASCII, a line for each item of its lists."""
    return _shown(document.model_dump(), 0) + "\n"


def _shown(value: Any, depth: int) -> str:
    """Return JSON: a line for each item of the outer objects and of lists."""
    one = partial(json.dumps, allow_nan=False)
    if isinstance(value, dict) and value and depth < 2:
        pairs = cast("dict[str, Any]", value).items()
        items, (begin, end) = [f"{one(k)}: {_shown(v, depth + 1)}" for k, v in pairs], "{}"
    elif isinstance(value, list) and value:
        items, (begin, end) = [one(v) for v in cast("list[Any]", value)], "[]"
    else:
        return one(value)
    inner = "\n" + " " * (depth + 1)
    return begin + inner + f",{inner}".join(items) + "\n" + " " * depth + end


def read_document(
    path: Path, kind: type[D], key: str, version: int, error: type[DynquantError]
) -> D:
    """Read a document, which anybody may have written; see `parse_document`."""
    try:
        content = read_regular(path, MAX_BYTES)
    except OSError as e:
        raise error(f"{path}: cannot be read: {e.strerror}") from e
    return parse_document(content, str(path), kind, key, version, error)


def write_document(document: Part, path: Path, error: type[DynquantError]) -> None:
    """Write a document, completely or not at all; raise `error` if it cannot be written."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(document_text(document), "utf-8", newline="\n")
        part.replace(path)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise error(f"{path}: cannot be written: {e.strerror}") from e


def parse_document(
    content: bytes, where: str, kind: type[D], key: str, version: int, error: type[DynquantError]
) -> D:
    """Read the bytes of a document.

    where:   what messages call them
    key:     the member that names the kind of document and holds its version: "manifest", "plan"
    version: the only one that is read

    Raises `error` with the places of all faults.
    """
    try:
        found = parse_json(content.decode(), unique)
    except RepeatedKeyError as e:
        raise error(f"{where}: {e}") from e
    except ValueError as e:
        raise error(f"{where}: not JSON: {e}; use another copy of it") from e
    if not isinstance(found, dict) or key not in found:
        raise error(f"{where}: not {_a(key)} of dynquant; it has no '{key}'")
    if (its := cast(dict[str, Any], found)[key]) != version:
        raise error(
            f"{where}: is {_a(key)} of version {_cut(its)}; this dynquant reads version {version},"
            " use one that reads the other"
        )
    try:
        return kind.model_validate_json(content)
    except ValidationError as e:
        raise error(*_faults(e, where, key)) from e


def _faults(error: ValidationError, where: str, key: str) -> list[str]:
    problems = error.errors(include_url=False)
    found: list[str] = []
    for problem in problems[:MAX_FAULTS]:
        place = ".".join(map(str, problem["loc"]))
        what = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        what = what.replace("String", "it", 1) if what.startswith("String ") else what
        if problem["type"] == "missing":
            found.append(f"{where}: {_cut(place)} is missing")
        elif problem["type"] == "extra_forbidden":
            found.append(f"{where}: {_cut(place)} is not part of {_a(key)}")
        elif problem["type"] == "value_error":
            found.append(f"{where}: {what}; use another copy of it")
        else:
            found.append(f"{where}: {_cut(place)} is {_cut(problem['input'])}, but {what}")
    if len(problems) > MAX_FAULTS:
        found.append(f"{where}: {len(problems) - MAX_FAULTS} more faults")
    return found


def document_schema(kind: type[Part], title: str) -> dict[str, Any]:
    """Return the form of a document as a JSON Schema, draft 2020-12."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return schema | kind.model_json_schema() | {"title": title}


def repeated(names: Iterable[str]) -> list[tuple[str, int]]:
    """Return the names that occur more than once, with their counts."""
    return [(name, n) for name, n in Counter(names).items() if n > 1]


def plain(text: str) -> str:
    r"""Return text that UTF-8 can hold: names of files and tensors may contain halves of
    characters (surrogates), which become \udcNN.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def _a(noun: str) -> str:
    """Return a noun with its article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
