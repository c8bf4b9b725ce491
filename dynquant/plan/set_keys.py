"""Keys set by the user (`--set KEY=VALUE`, a recipe's `metadata`), and checks of all keys."""

from __future__ import annotations

import difflib
import re
import struct
from collections.abc import Iterable, Mapping

import gguf
from gguf import GGUFValueType

from dynquant.keys import FORMATS, Keys, KeyValue, Scalar

_FLOATS = (GGUFValueType.FLOAT32, GGUFValueType.FLOAT64)
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_TRUTH = {"true": True, "false": False}

# Keys that the layout or the recipe decides; another value would be wrong.
_FIXED = re.compile(
    r"general\.(architecture|alignment|quantization_version)|(dynquant|quantize|split)\..*"
    r"|clip\.((vision|audio)\.)?projector_type"
)


_GENERAL = {v for k, v in vars(gguf.Keys.General).items() if not k.startswith("_")}
"""Keys of the group `general` in GGUF's specification; `{id}` stands for a number."""


def apply_settings(
    keys: Keys,
    settings: Mapping[str, KeyValue] | Mapping[str, str] | Mapping[str, KeyValue | str],
    where: str,
) -> tuple[Keys, list[str]]:
    """Return the keys with the settings applied, and a message for each invalid setting.

    where: the start of the messages

    An existing key keeps its place and, if the setting is text, its type. A new key follows the
    last one of its group (the part before the first dot).
    """
    changed = dict(keys)
    problems: list[str] = []
    for name, wanted in settings.items():
        if not name or name != name.strip():
            problems.append(f"{where} {name!r}: a key must not be empty or have spaces around it")
        elif _FIXED.fullmatch(name):
            problems.append(f"{where} {name}: the plan decides this key; it cannot be set")
        elif isinstance(wanted, KeyValue):
            changed[name] = wanted
        else:
            try:
                changed[name] = _read(wanted, keys.get(name))
            except ValueError as e:
                problems.append(f"{where} {name}: {e}")
    return _grouped(changed, keys), problems


def _read(text: str, present: KeyValue | None) -> KeyValue:
    """Read a value in the type of the existing one, or in the type that its form suggests."""
    if present is None:
        return _read_new(text)
    if present.type is GGUFValueType.ARRAY:
        raise ValueError("the key holds an array; only single values can be set")
    if present.type is GGUFValueType.STRING:
        return KeyValue(text, present.type)
    if present.type is GGUFValueType.BOOL:
        if text.lower() not in _TRUTH:
            raise ValueError(f"{text!r} is not true or false, which the key needs")
        return KeyValue(_TRUTH[text.lower()], present.type)
    if present.type in _FLOATS:
        if not _NUMBER.fullmatch(text):
            raise ValueError(f"{text!r} is not a number, which the key needs")
        return KeyValue(float(text), present.type)
    if not _INTEGER.fullmatch(text):
        raise ValueError(f"{text!r} is not a whole number, which the key needs")
    return KeyValue(int(text), present.type)


def _read_new(text: str) -> KeyValue:
    if text in _TRUTH:
        return KeyValue(_TRUTH[text], GGUFValueType.BOOL)
    if _INTEGER.fullmatch(text):
        value = int(text)
        # The smallest type that llama.cpp uses for numbers of this size.
        order = (
            GGUFValueType.UINT32,
            GGUFValueType.INT32,
            GGUFValueType.UINT64,
            GGUFValueType.INT64,
        )
        fitting = (t for t in order if _scalars_fit((value,), t))
        return KeyValue(value, next(fitting, GGUFValueType.INT64))
    if _NUMBER.fullmatch(text):
        return KeyValue(float(text), GGUFValueType.FLOAT32)
    return KeyValue(text, GGUFValueType.STRING)


def _grouped(changed: Keys, before: Keys) -> Keys:
    """Move each new key after the last key of its group; a new group comes last."""
    order = list(before)
    for name in changed:
        if name not in before:
            group = name.split(".", 1)[0]
            last = max((i for i, k in enumerate(order) if k.split(".", 1)[0] == group), default=-1)
            order.insert(last + 1 if last >= 0 else len(order), name)
    return {name: changed[name] for name in order}


def _scalars_fit(values: tuple[Scalar, ...], type_: GGUFValueType) -> bool:
    if type_ is GGUFValueType.STRING:
        return all(isinstance(v, str) for v in values)
    if type_ is GGUFValueType.BOOL:
        return all(isinstance(v, bool) for v in values)
    if type_ not in FORMATS:
        return False
    try:
        struct.pack(f"<{len(values)}{FORMATS[type_]}", *values)
    except (struct.error, OverflowError):
        return False
    return True


def unknown_settings(settings: Iterable[str], where: str) -> list[str]:
    """Return a warning for each `general.` key that GGUF does not define: probably a typing error.

    where: the start of the messages
    """
    found: list[str] = []
    for name in settings:
        pattern = re.sub(r"\.\d+\.", ".{id}.", name)
        if name.startswith("general.") and pattern not in _GENERAL:
            near = difflib.get_close_matches(pattern, _GENERAL, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            found.append(f"{where} {name}: is not a general key of GGUF; runtimes ignore it{hint}")
    return found


def key_problems(keys: Keys) -> list[str]:
    """Return a message for each key whose value its type cannot hold."""
    problems: list[str] = []
    for name, key in keys.items():
        if key.type is GGUFValueType.ARRAY:
            values = key.value if isinstance(key.value, tuple) else ()
            if key.sub_type is None or not _scalars_fit(values, key.sub_type):
                kind = key.sub_type.name if key.sub_type else "array"
                problems.append(f"key {name!r} has values that are not {kind}")
        elif isinstance(key.value, tuple) or not _scalars_fit((key.value,), key.type):
            problems.append(f"key {name!r}: {key.value!r} is not {key.type.name}")
    return problems
