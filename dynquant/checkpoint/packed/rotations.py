"""Undoes rotations of compressed-tensors that act on activations while the model runs.

A transform multiplies the inputs of a module by a matrix V before its weight W' sees them, or the
outputs by a matrix U afterwards:

    y = (x V) W'^T        the weight is  W = W' V^T    input,  as R4 of SpinQuant, v of QuIP
    y = (x W'^T + b) U    the weight is  W = U^T W'    output, as u of QuIP; the bias is b U

llama.cpp does neither, so the file gets W. V and U are block-diagonal, with blocks of head_dim rows
and columns, or one block of the whole dimension. A block is a Hadamard matrix divided by the root
of its size, or its transpose if it is inverted; or a stored matrix of any numbers, which is stored
inverted where it is applied so. Blocks may be stored once for all modules of one size.

Nothing has to be undone for weight_input and weight_output: they are part of the stored weights,
and whatever cancels them is stored as well, or is itself an input or output. q_attn and k_cache
rotate queries and keys in the same way, so their products are the same without.

Source: the package compressed_tensors, folder transform.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, cast

from dynquant.checkpoint.packed.hadamard import Hadamard, Matrix, RotatedColumns, RotatedRows
from dynquant.checkpoint.packed.settings import Settings
from dynquant.checkpoint.packed.weight import Found, Packed
from dynquant.checkpoint.safetensors_header import StoredTensor
from dynquant.errors import CheckpointError
from dynquant.name_lists import grouped
from dynquant.quants.table import FLOATS
from dynquant.tensors import TensorSource

_RE2: Any = import_module("re2")
"""google-re2, which has no types. Expressions of untrusted files need time in proportion to the
name with it."""

TYPES = ("hadamard", "random-hadamard", "random-matrix")
_MATRIX = TYPES[2]
_FOLDED = ("weight_input", "weight_output")
_ACTIVE = ("input", "output")
_OF_SCORES = ("q_attn", "k_cache")
_CANCEL_WHY = "a rotation of queries and keys, which cancels in their product"

_EMBEDDING = re.compile(
    r"(.*\.)?(embed_(tokens|positions|in)|(word|position|token_type|tok)_embeddings|wte|wpe)"
)
_UNCERTAIN = re.compile(r"(.*\.)?(gate|router|\w*embed\w*)")
"""Matrices of linear modules or of others, as the version of transformers has it."""
_HEADS = ("lm_head", "output", "embed_out")

_SOURCE = "use the checkpoint it was made from"

Tensors = Mapping[str, StoredTensor | Packed]


@dataclass(frozen=True)
class _Scheme:
    """One entry of transform_config.

    size: rows and columns of a block; None for the whole dimension
    """

    name: str
    kind: str
    size: int | None
    permuted: bool


@dataclass(frozen=True)
class _Rule:
    """A transform of the inputs or outputs of some modules."""

    scheme: _Scheme
    location: str
    inverse: bool
    targets: tuple[str, ...]
    ignore: tuple[str, ...]

    @property
    def label(self) -> str:
        """The words for messages."""
        return f"transform {self.scheme.name!r} of {self.location}s"


@dataclass
class Rotated:
    """The result of undoing rotations.

    weights:  the weights that change, by name
    consumed: names of the stored matrices that are not weights
    ignored:  such matrices that need not be undone, with the reason
    """

    weights: dict[str, Packed] = field(default_factory=dict[str, Packed])
    consumed: set[str] = field(default_factory=set[str])
    ignored: dict[str, str] = field(default_factory=dict[str, str])


def undo_rotations(
    tensors: Mapping[str, StoredTensor],
    weights: Tensors,
    settings: Settings,
    config: Mapping[str, Any],
    found: Found,
) -> Rotated:
    """Return the weights whose rotations are undone; records faults of single weights.

    tensors: all stored tensors; weights: those that are not parts of others, and unpacked ones

    Raises CheckpointError for all transforms whose effect is not exactly known.
    """
    rotated = Rotated()
    if settings.method != "compressed-tensors" or not settings.values.get("transform_config"):
        return rotated
    problems: list[str] = []
    schemes, rules = _read(settings.values["transform_config"], problems)
    _raise(settings, problems)
    matrices = _Matrices.of(tensors, schemes, rules)
    rotated.consumed = set(matrices.names)
    rotated.ignored = {n: _CANCEL_WHY for n in matrices.names if matrices.location(n) in _OF_SCORES}
    modules = _Modules.of(weights, matrices.names)
    for rule in rules:
        names, faults = modules.of_rule(rule, config)
        problems += faults
        for module in names:
            _undo(module, rule, weights, matrices, rotated, found)
    _raise(settings, problems)
    used = {part for packed in rotated.weights.values() for part in packed.parts}
    for name in matrices.names - used - rotated.ignored.keys():
        rotated.ignored[name] = "a matrix of transform_config that no weight needs"
    return rotated


def _raise(settings: Settings, problems: Iterable[str]) -> None:
    CheckpointError.raise_any(
        f"{settings.where}: quantization_config: transform_config: {text}"
        for text in dict.fromkeys(problems)
    )


# ---- the settings --------------------------------------------------------------------------------


def _read(value: object, problems: list[str]) -> tuple[list[_Scheme], list[_Rule]]:
    """Return all schemes, and the rules that act while the model runs."""
    groups = (
        cast("dict[str, Any]", value).get("config_groups") if isinstance(value, dict) else value
    )
    if not isinstance(groups, dict):
        problems.append(f"has no config_groups that are an object; {_SOURCE}")
        return [], []
    schemes: list[_Scheme] = []
    rules: list[_Rule] = []
    for name, stated in cast("dict[str, Any]", groups).items():
        if not isinstance(stated, dict):
            problems.append(f"{name!r} is {stated!r}, not an object; {_SOURCE}")
            continue
        values = cast("dict[str, Any]", stated)
        size = values.get("head_dim")
        whole = size is None or (isinstance(size, int) and not isinstance(size, bool) and size > 0)
        scheme = _Scheme(
            name,
            str(values.get("type")),
            size if whole else None,
            values.get("randomize") is True,
        )
        schemes.append(scheme)
        applied, faults = _applied(scheme, values.get("apply"))
        problems += faults
        acting = [rule for rule in applied if rule.location not in _FOLDED]
        if acting and scheme.kind not in TYPES:
            problems.append(
                f"{name!r} is of type {scheme.kind!r} and acts while the model runs; supported:"
                f" {', '.join(TYPES)}"
            )
        if acting and not whole:
            problems.append(f"{name!r} has head_dim {size!r}, not a positive integer; {_SOURCE}")
        scores = {loc: _places(acting, loc) for loc in _OF_SCORES}
        if scores["q_attn"] != scores["k_cache"] or (scores["q_attn"] and scheme.kind == _MATRIX):
            problems.append(
                f"{name!r} does not rotate queries (q_attn) and keys (k_cache) in the same way, so"
                f" it does not cancel; {_SOURCE}"
            )
        rules += [rule for rule in acting if rule.location in _ACTIVE]
    return schemes, rules


def _places(rules: Iterable[_Rule], location: str) -> set[tuple[object, ...]]:
    return {(r.targets, r.ignore, r.inverse) for r in rules if r.location == location}


def _applied(scheme: _Scheme, value: object) -> tuple[list[_Rule], list[str]]:
    rules: list[_Rule] = []
    faults: list[str] = []
    for stated in cast("list[Any]", value) if isinstance(value, list) else [value]:
        if value is None:
            break
        entry = cast("dict[str, Any]", stated) if isinstance(stated, dict) else {}
        targets, ignore = (_names(entry.get(key)) for key in ("targets", "ignore"))
        location, inverse = entry.get("location"), entry.get("inverse", False)
        if location not in (*_FOLDED, *_ACTIVE, *_OF_SCORES):
            faults.append(
                f"{scheme.name!r} applies at location {location!r}, which is not known; {_SOURCE}"
            )
        elif targets is None or ignore is None or not isinstance(inverse, bool):
            faults.append(
                f"{scheme.name!r} has an entry of apply whose targets, ignore or inverse are not"
                f" valid; {_SOURCE}"
            )
        else:
            rules.append(_Rule(scheme, location, inverse, targets, ignore))
    return rules, faults


def _names(value: object) -> tuple[str, ...] | None:
    """Return names, stated as one or as a list; None if they are not valid."""
    listed = cast("list[Any]", value) if isinstance(value, list) else [value]
    if value is None:
        return ()
    return tuple(cast("list[str]", listed)) if all(isinstance(n, str) for n in listed) else None


# ---- modules -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Modules:
    """The modules of a checkpoint, by the names of its weights.

    linear: those with a matrix `NAME.weight`; other: all others, with and without weights
    known:  whether the weight of a linear module is quantized, so that it is one in every version
    """

    linear: dict[str, bool]
    other: frozenset[str]

    @classmethod
    def of(cls, weights: Tensors, matrices: Iterable[str]) -> _Modules:
        linear: dict[str, bool] = {}
        other: set[str] = set()
        left = set(matrices)
        for name, weight in weights.items():
            if name in left:
                continue
            module, _, last = name.rpartition(".")
            if last == "weight" and len(weight.shape) == 2 and not _EMBEDDING.fullmatch(module):
                linear[module] = isinstance(weight, Packed)
            elif last != "bias":
                # Stacked experts are one tensor of a module that is not linear.
                other.add(module if last == "weight" or len(weight.shape) < 2 else name)
            while "." in module:
                module = module.rpartition(".")[0]
                other.add(module)
        return cls(linear, frozenset(other - linear.keys() - {""}))

    def of_rule(self, rule: _Rule, config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """Return the linear modules of a rule, and all problems."""
        faults: list[str] = []
        try:
            aimed, spared = _Names.of(rule.targets), _Names.of(rule.ignore)
        except ValueError as e:
            return [], [f"{rule.label}: the expression {e} is not supported; {_SOURCE}"]
        for name in sorted(spared.exact - self.linear.keys() - self.other):
            near = [m for m in self.linear if m.endswith(f".{name}") or name.endswith(f".{m}")]
            if near:
                faults.append(
                    f"{rule.label} ignores {name!r}, which may be {near[0]!r}; write the name of"
                    " the checkpoint"
                )
        by_class = "Linear" in aimed.exact
        picked: list[str] = []
        uncertain: list[str] = []
        for module, is_certain in self.linear.items():
            by_name = aimed.has(module)
            if not (by_name or by_class) or spared.has(module) or "Linear" in spared.exact:
                continue
            if not by_name and not is_certain and _UNCERTAIN.fullmatch(module):
                uncertain.append(module)
            picked.append(module)
        faults += [
            f"{rule.label} is for linear modules, and it is not known whether {name!r} is one of"
            f" them; {_SOURCE}"
            for name in grouped(uncertain)
        ]
        faults += [
            f"{rule.label} matches {module!r}, which is not a linear module, so its effect is not"
            f" known; {_SOURCE}"
            for module in [m for m in sorted(self.other) if aimed.has(m) and not spared.has(m)][:1]
        ]
        strange = aimed.exact - self.linear.keys() - self.other - {"Linear"}
        if strange or not picked:
            names = ", ".join(map(repr, sorted(strange) or rule.targets))
            faults.append(f"{rule.label} is for {names}, which matches no weight; {_SOURCE}")
        tied = config.get("tie_word_embeddings") is not False
        heads = any(m.rpartition(".")[2] in _HEADS for m in self.linear)
        if by_class and tied and not heads and not any(map(spared.has, _HEADS)):
            faults.append(
                f"{rule.label} is for all linear modules, but the output matrix is stored only as"
                " the token embedding, which is not rotated; if the output matrix is not rotated"
                f" either, add 'lm_head' to the ignore of the transform, else {_SOURCE}"
            )
        return picked, faults


@dataclass(frozen=True)
class _Names:
    """Names of modules, and expressions after `re:` that match the start of a name."""

    exact: frozenset[str]
    expressions: tuple[Callable[[str], object], ...]

    @classmethod
    def of(cls, names: Iterable[str]) -> _Names:
        """Compile expressions; raise ValueError with one that RE2 does not support."""
        options = _RE2.Options()
        options.log_errors = False
        exact: set[str] = set()
        expressions: list[Callable[[str], object]] = []
        for name in names:
            if not name.startswith("re:"):
                exact.add(name)
                continue
            try:
                expressions.append(_RE2.compile(name.removeprefix("re:"), options).match)
            except (_RE2.error, UnicodeError):
                raise ValueError(repr(name)) from None
        return cls(frozenset(exact), tuple(expressions))

    def has(self, module: str) -> bool:
        return module in self.exact or any(match(module) for match in self.expressions)


# ---- matrices ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Matrices:
    """The stored matrices and permutations, `MODULE.SCHEME_LOCATION.weight` and `.perm`.

    by_scheme: their names, by the name of the scheme
    shared:    those that modules of one size share, or the problem, as far as they were needed
    inverted:  whether the matrices of a scheme and location of any numbers are stored inverted:
               only True, only False, or either
    blocks:    the matrices in use, shared by the weights
    """

    tensors: Mapping[str, StoredTensor]
    by_scheme: Mapping[str, tuple[str, ...]]
    inverted: Mapping[tuple[str, str], set[bool]]
    shared: dict[tuple[object, ...], StoredTensor | str | None] = field(
        default_factory=dict[tuple[object, ...], "StoredTensor | str | None"]
    )
    blocks: dict[tuple[object, ...], Hadamard | Matrix] = field(
        default_factory=dict[tuple[object, ...], Hadamard | Matrix]
    )

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, StoredTensor],
        schemes: Iterable[_Scheme],
        rules: Sequence[_Rule],
    ) -> _Matrices:
        locations = "|".join((*_FOLDED, *_ACTIVE, *_OF_SCORES))
        by_scheme: dict[str, tuple[str, ...]] = {}
        for scheme in schemes:
            mine = re.compile(
                rf"(?:.*\.)?{re.escape(scheme.name)}_(?:{locations})\.(?:weight|perm)"
            )
            by_scheme[scheme.name] = tuple(name for name in tensors if mine.fullmatch(name))
        inverted: dict[tuple[str, str], set[bool]] = {}
        for rule in rules:
            if rule.scheme.kind == _MATRIX:
                inverted.setdefault((rule.scheme.name, rule.location), set()).add(rule.inverse)
        return cls(tensors, by_scheme, inverted)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(name for names in self.by_scheme.values() for name in names)

    def location(self, name: str) -> str:
        """Return the location of a stored matrix."""
        stem = name.rpartition(".")[0]
        return next(loc for loc in (*_FOLDED, *_OF_SCORES, *_ACTIVE) if stem.endswith(f"_{loc}"))

    def block(self, module: str, rule: _Rule, size: int) -> Hadamard | Matrix | str:
        """Return the matrix of a module, or its problem."""
        scheme = rule.scheme
        matrix = self._find(module, rule, "weight", (size, size))
        order = self._find(module, rule, "perm", (size,))
        for found in (matrix, order):
            if isinstance(found, str):
                return found
        if matrix is None and scheme.kind != "hadamard":
            return f"needs the matrix of {rule.label}, which is not stored; {_SOURCE}"
        if matrix is None and size & (size - 1):
            return (
                f"needs the Hadamard matrix of {size} rows of {rule.label}, which is not stored;"
                f" {_SOURCE}"
            )
        if (scheme.permuted and scheme.kind != _MATRIX) != (order is not None):
            missing = "is not stored" if scheme.permuted else "is stored without randomize"
            return f"needs the permutation of {rule.label}, which {missing}; {_SOURCE}"
        kept = [cast("StoredTensor | None", t) for t in (matrix, order)]
        key = (size, *(t and t.name for t in kept))
        if key not in self.blocks:
            is_free = scheme.kind == _MATRIX and kept[0]
            self.blocks[key] = (
                Matrix(size, kept[0]) if is_free and kept[0] else Hadamard(size, kept[0], kept[1])
            )
        return self.blocks[key]

    def _find(
        self, module: str, rule: _Rule, part: str, shape: tuple[int, ...]
    ) -> StoredTensor | str | None:
        """Return the stored tensor of a module, or that which modules of its size share."""
        own = self.tensors.get(f"{module}.{rule.scheme.name}_{rule.location}.{part}")
        chosen = own or self._shared(rule, part, shape)
        if chosen is None or isinstance(chosen, str):
            return chosen
        dtypes = FLOATS if part == "weight" else ("I64", "I32")
        if chosen.shape != shape or chosen.dtype not in dtypes:
            return (
                f"needs {chosen.name} as {list(shape)}, but it is {chosen.dtype}"
                f" {list(chosen.shape)}; download it again"
            )
        return chosen

    def _shared(self, rule: _Rule, part: str, shape: tuple[int, ...]) -> StoredTensor | str | None:
        """Return the only stored tensor of a scheme and shape that can be that of a rule."""
        name = rule.scheme.name
        key = (name, rule.location, rule.inverse, part, shape)
        if key in self.shared:
            return self.shared[key]
        stored = [self.tensors[n] for n in self.by_scheme[name] if n.endswith(f".{part}")]
        either = {True, False}
        ways = [(t, self.inverted.get((name, self.location(t.name)), either)) for t in stored]
        is_free = rule.scheme.kind == _MATRIX
        fits = [
            (t, way) for t, way in ways if t.shape == shape and (not is_free or rule.inverse in way)
        ]
        found: StoredTensor | str | None = fits[0][0] if fits else None
        if len(fits) > 1 or (fits and is_free and fits[0][1] == either):
            found = (
                f"shares the {part} of {rule.label}, but it is not known which of those that are"
                f" stored, such as {fits[0][0].name}; {_SOURCE}"
            )
        self.shared[key] = found
        return found


def _undo(
    module: str,
    rule: _Rule,
    weights: Tensors,
    matrices: _Matrices,
    rotated: Rotated,
    found: Found,
) -> None:
    """Undo one transform of one module: its weight, and for outputs its bias."""
    name = f"{module}.weight"
    shape = weights[name].shape
    dimension = shape[1] if rule.location == "input" else shape[0]
    size = rule.scheme.size or dimension
    if not size or dimension % size:
        found.fault(
            name,
            f"has {dimension} {rule.location}s, which {rule.label} with head_dim {size} does not"
            f" divide; {_SOURCE}",
        )
        return
    block = matrices.block(module, rule, size)
    if isinstance(block, str):
        found.fault(name, block)
        return
    by_input = rule.location == "input"
    # Rows times V^T for inputs, columns times U for outputs. The inverse of a Hadamard matrix is
    # its transpose; other matrices are stored inverted.
    flip = by_input != (rule.inverse and rule.scheme.kind != _MATRIX)

    def apply(target: str, wrap: Callable[[TensorSource], TensorSource]) -> None:
        weight = rotated.weights.get(target, weights[target])
        try:
            source = weight.source()
        except CheckpointError as e:
            found.fault(target, str(e))
            return
        parts = weight.parts if isinstance(weight, Packed) else (target,)
        stored = tuple(t.name for t in (block.stored, block.order) if t)
        rotated.weights[target] = Packed(wrap(source), (*parts, *stored))

    if by_input:
        apply(name, lambda source: RotatedRows(source, block, flip))
    else:
        apply(name, lambda source: RotatedColumns(source, block, flip))
        if f"{module}.bias" in weights:
            apply(f"{module}.bias", lambda source: RotatedRows(source, block, flip))
