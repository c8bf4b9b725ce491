"""Reads what a recipe leaves to the size of the file: `choose` and `target`."""

from __future__ import annotations

import yaml

from dynquant.quants.table import quant_type
from dynquant.recipe import values
from dynquant.recipe.choice import Choice
from dynquant.recipe.target import NO_TARGET, Target
from dynquant.recipe.yaml_nodes import Reader, children, kind

CHOICE_KEYS = ("at_least", "at_most")
SIZE_KEYS = ("size", "bpw", "fit")
TARGET_KEYS = (*SIZE_KEYS, "context", "share")


def read_choice(reader: Reader, node: yaml.Node) -> Choice | None:
    """Return what a rule chooses from: `any`, a list of types, or limits of the bits."""
    if isinstance(node, yaml.MappingNode):
        keys = reader.part(node, CHOICE_KEYS, "choose")
        if not keys:
            return None
        low, high = (reader.value(keys.get(key), quant_type) for key in CHOICE_KEYS)
        if low and high and low.bpw > high.bpw:
            reader.fault(
                node,
                f"{low.name} has more bits than {high.name}; exchange at_least and at_most",
            )
            return None
        return Choice((), low, high)
    if isinstance(node, yaml.ScalarNode) and node.value == "any":
        return Choice()
    types = reader.values(node, quant_type)
    return Choice(tuple(dict.fromkeys(types))) if types else None


def read_target(reader: Reader, node: yaml.Node | None) -> Target:
    """Return the size that a recipe asks for: a size of the file alone, or a mapping."""
    if node is None:
        return NO_TARGET
    if not isinstance(node, yaml.MappingNode):
        return Target(reader.value(node, values.size))
    keys = reader.part(node, TARGET_KEYS, "target") or {}
    sizes = [key for key in SIZE_KEYS if key in keys]
    if len(sizes) > 1:
        reader.fault(keys[sizes[1]], f"{' and '.join(sizes)} in one target; give one of them")
    if "context" in keys and sizes and sizes != ["fit"]:
        reader.fault(keys["context"], "`context` is for `fit`; remove it")
    return Target(
        reader.value(keys.get("size"), values.size),
        reader.value(keys.get("bpw"), values.bits),
        reader.value(keys.get("fit"), values.size),
        reader.value(keys.get("context"), values.count),
        _share(reader, keys.get("share")),
    )


def _share(reader: Reader, node: yaml.Node | None) -> tuple[tuple[str, ...], ...] | None:
    """Return the lists of roles that share a type; an empty list for none."""
    if node is None:
        return None
    if not isinstance(node, yaml.SequenceNode):
        reader.fault(node, f"share must be a list of lists of roles, not {kind(node)}")
        return None
    found: list[tuple[str, ...]] = []
    for one in children(node):
        if not isinstance(one, yaml.SequenceNode) or len(children(one)) < 2:
            reader.fault(one, "write two roles or more that share a type, such as [attn_q, attn_k]")
            continue
        found.append(reader.values(one, values.single_role))
    return tuple(found)
