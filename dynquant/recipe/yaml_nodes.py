"""YAML text as nodes with line and column, without YAML's surprising parts.

Values stay text as written, including `no` and `0-3`; nothing is resolved or constructed. Anchors,
aliases and tags are refused, and size and depth are limited, so that a hostile file costs little.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import yaml

from dynquant.errors import DynquantError, RecipeError

T = TypeVar("T")

# A recipe that names each of a thousand tensors has about 80 kB; PyYAML reads 300 kB per second.
MAX_BYTES = 256 * 1024

# Recipes nest four deep: the file, its rules, a rule, a list of roles.
MAX_DEPTH = 16

# The most frequent syntax errors: a part of PyYAML's message, and the message to show instead.
_PLAIN_WORDS = (
    ("<block end>", "does not line up with the lines above; check indentation and dashes"),
    ("mapping values are not allowed", "unexpected ': '; quote the text, or check the line above"),
    (
        "could not find expected ':'",
        "neither `key: value` nor a list; a colon is followed by a space",
    ),
    ("'\\t' that cannot start", "a tab; indent with spaces"),
    ("another document", "a second document; write one recipe per file"),
    ("unexpected end of stream", "a quote is not closed"),
    ("'<stream end>'", "a bracket is not closed"),
    ("cannot start any token", "quote text that begins with this character"),
)

_ALIAS = "is a YAML alias; quote text that begins with *"


@dataclass(frozen=True, order=True)
class Place:
    """A position in a file; line and column count from 1, as editors do."""

    path: str
    line: int
    column: int

    @classmethod
    def of(cls, path: str, mark: yaml.Mark) -> Place:
        """Return the place of a mark, which counts from 0."""
        return cls(path, mark.line + 1, mark.column + 1)

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}"


def compose(text: str, path: str) -> yaml.Node | None:
    """Return the root node of a YAML text, or None if there are only comments.

    path: the file's name in messages
    Raises RecipeError, with line and column, at the first text that is not plain YAML.
    """
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as e:
        before = text[: e.position]
        place = Place(path, before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise RecipeError(f"{place}: character {chr(e.character)!r} is not YAML; remove it") from e
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as e:
        raise RecipeError(_syntax_message(e, text, path)) from e


class _Loader(yaml.SafeLoader):
    """Composes nodes, and refuses YAML that recipes do not use."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = cast(yaml.Event, self.peek_event())  # pyright: ignore[reportUnknownMemberType]
        if isinstance(event, yaml.AliasEvent):
            raise _Refused(problem=_ALIAS, problem_mark=event.start_mark)
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and (
            event.anchor is not None or event.tag is not None
        ):
            problem = "is a YAML anchor or tag, which recipes do not use; quote or remove it"
            raise _Refused(problem=problem, problem_mark=event.start_mark)
        if self._depth == MAX_DEPTH:
            problem = f"is nested more than {MAX_DEPTH} deep; recipes need at most four levels"
            raise _Refused(problem=problem, problem_mark=event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that a recipe may not use."""


def _syntax_message(error: yaml.MarkedYAMLError, text: str, path: str) -> str:
    problem, context = error.problem or "", error.context or ""
    mark = error.problem_mark
    if error.context_mark and ("scalar" in context or "alias" in context):
        mark = error.context_mark  # the start of the quote or alias, not the place of the error
    assert mark is not None, "PyYAML marks every error of its scanner and parser"
    line = (text[mark.index :].splitlines() or [""])[0]
    word = (line.split() or [""])[0][:60]
    if "alias" in context:
        problem = _ALIAS
    elif not isinstance(error, _Refused):
        said = f"{context}: {problem}"
        problem = next((plain for part, plain in _PLAIN_WORDS if part in said), problem)
        problem = f"is not YAML: {problem}"
    return f"{Place.of(path, mark)}: {repr(word) if word else 'this'} {problem}"


class Reader:
    """Reads nodes, and collects their faults instead of stopping at the first."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.faults: list[tuple[Place, str]] = []

    def fault(self, node: yaml.Node, message: str) -> None:
        """Record a fault of a node."""
        self.faults.append((Place.of(self.path, node.start_mark), message))

    def pairs(self, node: yaml.Node, what: str) -> list[tuple[str, yaml.Node, yaml.Node]]:
        """Return each key's text with the nodes of key and value.

        A node that is not a mapping is a fault. So is a repeated key, of which the first counts.
        """
        if not isinstance(node, yaml.MappingNode):
            self.fault(node, f"{what} must be `key: value` lines, not {kind(node)}")
            return []
        given: list[tuple[yaml.Node, yaml.Node]] = node.value
        lines: dict[str, int] = {}
        found: list[tuple[str, yaml.Node, yaml.Node]] = []
        for key, value in given:
            word = str(key.value) if isinstance(key, yaml.ScalarNode) else kind(key)
            if word in lines:
                self.fault(key, f"key {word!r} is repeated; line {lines[word]} has the first one")
            else:
                lines[word] = key.start_mark.line + 1
                found.append((word, key, value))
        return found

    def mapping(
        self, node: yaml.Node, known: tuple[str, ...], what: str
    ) -> dict[str, yaml.Node] | None:
        """Return the values by key; unknown and repeated keys are faults."""
        found: dict[str, yaml.Node] = {}
        for word, key, value in self.pairs(node, what):
            if word in known:
                found[word] = value
            else:
                hint = nearest(word, known) or f"; the keys of {what} are {', '.join(known)}"
                self.fault(key, f"unknown key {word!r}{hint}")
        return found if isinstance(node, yaml.MappingNode) else None

    def part(
        self, node: yaml.Node | None, known: tuple[str, ...], what: str
    ) -> dict[str, yaml.Node] | None:
        """Return the values of a mapping by key; one without keys is a fault."""
        if node is None:
            return None
        if isinstance(node, yaml.MappingNode) and not node.value:
            self.fault(node, f"{what} is empty; add {either(known)}, or remove it")
        return self.mapping(node, known, what)

    def values(self, node: yaml.Node | None, read: Callable[[str], T]) -> tuple[T, ...]:
        """Return the values that `read` returns for one node or a list; none for None."""
        found = [self.value(one, read) for one in self.items(node)]
        return tuple(value for value in found if value is not None)

    def items(self, node: yaml.Node | None) -> list[yaml.Node]:
        """Return the nodes of a list; a single value is a list of one."""
        if node is None:
            return []
        nodes = children(node) if isinstance(node, yaml.SequenceNode) else [node]
        if not nodes:
            self.fault(node, "empty list; add a value or remove the key")
        return nodes

    def value(self, node: yaml.Node | None, read: Callable[[str], T]) -> T | None:
        """Return the result of `read` for a value's text; a DynquantError becomes a fault."""
        if node is None:
            return None
        if not isinstance(node, yaml.ScalarNode):
            self.fault(node, f"expected one value, not {kind(node)}")
        elif not node.value:
            self.fault(node, "no value; add one or remove the key")
        else:
            try:
                return read(node.value)
            except DynquantError as e:
                self.fault(node, "; ".join(e.messages))
        return None


def children(node: yaml.SequenceNode) -> list[yaml.Node]:
    """Return the nodes of a list."""
    return node.value


def kind(node: yaml.Node) -> str:
    """Return the kind of a node, for messages."""
    if isinstance(node, yaml.ScalarNode):
        value: Any = node.value
        return f"the text {value!r}" if value else "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def either(words: Sequence[str]) -> str:
    """Return words as `a, b or c`."""
    return f"{', '.join(words[:-1])} or {words[-1]}"


def nearest(word: str, words: Iterable[str]) -> str:
    """Return `; did you mean X?` for the nearest of the words, or nothing if none is near."""
    by_lower = {known.lower(): known for known in words}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""
