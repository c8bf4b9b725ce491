"""Builds a recipe from YAML nodes, and reports every fault with its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import yaml

from dynquant.errors import RecipeError
from dynquant.quants.readers import reader_name
from dynquant.quants.table import QuantType, quant_type
from dynquant.recipe import values
from dynquant.recipe.for_readers import faults_of_types
from dynquant.recipe.layers import LayerItem, LayerPattern
from dynquant.recipe.roles import role_name
from dynquant.recipe.rules import Action, Fallback, Output, Recipe, Rule, Shape, When
from dynquant.recipe.yaml_nodes import Place, Reader, children, kind

KEYS = (
    "dynquant",
    "name",
    "description",
    "extends",
    "for",
    "default",
    "importance",
    "effort",
    "rules",
    "fallback",
    "output",
    "metadata",
    "prediction_layers",
    "readers",
)
SELECTORS = ("role", "layers", "name", "shape", "when")
ACTIONS = ("type", "choose", "keep", "drop")
RESERVED = "choose"
"""An action for a later version, which is refused with this reason."""
RULE_KEYS = (*SELECTORS, *ACTIONS, "optional", "override", "note")
LAYER_KEYS = ("in", "first", "last", "every", "from", "of")
SHAPE_KEYS = ("row_multiple_of", "min_weights", "dimensions")
WHEN_KEYS = ("experts", "gqa", "layers", "tied_embeddings", "importance", "architecture")
OUTPUT_KEYS = ("shard_size", "tensor_order")

Parent = Callable[[str], Recipe]
"""Returns the recipe that `extends:` names; raises ExtendsError if it is missing, or RecipeError
with that recipe's faults."""


class ExtendsError(RecipeError):
    """The recipe to extend does not exist or cannot be used."""


class RecipeReader(Reader):
    """Reads the nodes of one file; keeps faults of the recipe that it extends separate."""

    def __init__(self, path: str, parent: Parent) -> None:
        super().__init__(path)
        self._parent = parent
        self.inherited_faults: tuple[str, ...] = ()

    def recipe(self, node: yaml.Node | None, text: str, name: str) -> Recipe | None:
        """Return the recipe, or None if a fault leaves it without a default."""
        if node is None:
            place = Place(self.path, 1, 1)
            self.faults.append((place, "empty; a recipe has at least `default: Q4_K`"))
            return None
        keys = self.mapping(node, KEYS, "a recipe")
        if keys is None:
            return None
        parent = self._extended(keys.get("extends"))
        if not keys.keys() & {"default", "extends"}:
            self.fault(node, "no default; add one, such as `default: Q4_K`")
        self.value(keys.get("dynquant"), values.version)
        name = self.value(keys.get("name"), str) or name
        description = self.value(keys.get("description"), str.strip)
        intended = self.values(keys.get("for"), values.architecture)
        importance = self.value(keys.get("importance"), values.use)
        effort = self.value(keys.get("effort"), values.effort)
        fallback = self._fallback(keys.get("fallback"))
        output = self._output(keys.get("output"), parent.output if parent else Output())
        metadata = self._metadata(keys.get("metadata"))
        rules = self.rules(keys.get("rules"))
        keeps = self.value(keys.get("prediction_layers"), values.keep_or_drop)
        default = self.value(keys.get("default"), quant_type)
        place = Place.of(self.path, (keys.get("default") or node).start_mark)
        readers = self.values(keys.get("readers"), reader_name)
        readers = readers or (parent.readers if parent else ())
        given = [(rule.place, rule.type) for rule in rules if rule.type]
        given += [(place, default)] if default else []
        self.faults += faults_of_types(readers, given)
        if default is None and parent:
            default, place = parent.default, parent.default_place
        if default is None:
            return None
        if parent is None:
            return Recipe(
                name,
                description or "",
                self.path,
                text,
                default,
                place,
                rules,
                fallback=fallback or Fallback(),
                intended=intended,
                importance=importance or "optional",
                effort=effort,
                output=output,
                metadata=metadata,
                keeps_prediction=bool(keeps),
                readers=readers,
            )
        return Recipe(
            name,
            parent.description if description is None else description,
            self.path,
            text,
            default,
            place,
            (*rules, *(replace(rule, inherited=True) for rule in parent.rules)),
            fallback=fallback or parent.fallback,
            texts=(parent.text, *parent.texts),
            intended=intended or parent.intended,
            importance=importance or parent.importance,
            effort=effort or parent.effort,
            output=output,
            metadata={**parent.metadata, **metadata},
            keeps_prediction=parent.keeps_prediction if keeps is None else keeps,
            readers=readers,
        )

    def _extended(self, node: yaml.Node | None) -> Recipe | None:
        name = self.value(node, str)
        if node is None or name is None:
            return None
        try:
            return self._parent(name)
        except ExtendsError as e:
            self.fault(node, str(e))
        except RecipeError as e:
            self.inherited_faults = e.messages
        return None

    def rules(self, node: yaml.Node | None) -> tuple[Rule, ...]:
        """Return the rules of a list of mappings."""
        if node is None:
            return ()
        if not isinstance(node, yaml.SequenceNode):
            self.fault(node, f"rules must be a list, each rule after a dash, not {kind(node)}")
            return ()
        rules = [self._rule(rule) for rule in children(node)]
        return tuple(rule for rule in rules if rule is not None)

    def _rule(self, node: yaml.Node) -> Rule | None:
        keys = self.mapping(node, RULE_KEYS, "a rule")
        if keys is None:
            return None
        action, qtype = self._action(node, keys)
        if not keys.keys() & set(SELECTORS):
            some = f"{', '.join(SELECTORS[:-1])} or {SELECTORS[-1]}"
            self.fault(node, f"rule without selectors; add {some}, or change the default")
        rule = Rule(
            action or "type",
            qtype,
            Place.of(self.path, node.start_mark),
            roles=self.values(keys.get("role"), role_name),
            layers=self._layers(keys.get("layers")),
            names=self.values(keys.get("name"), values.name),
            shape=self._shape(keys.get("shape")),
            when=self._when(keys.get("when")),
            optional=self.value(keys.get("optional"), values.truth) or False,
            override=self.value(keys.get("override"), values.truth) or False,
            note=self.value(keys.get("note"), str) or "",
        )
        return rule if action else None

    def _action(
        self, node: yaml.Node, keys: dict[str, yaml.Node]
    ) -> tuple[Action | None, QuantType | None]:
        given = [key for key in ACTIONS if key in keys]
        if not given:
            self.fault(node, "rule without a type; add one, such as `type: Q6_K`")
        elif len(given) > 1:
            self.fault(keys[given[1]], f"{' and '.join(given)} in one rule; give one of them")
        if "choose" in keys:
            found = self.values(keys["choose"], quant_type)
            if found:
                self.fault(
                    keys["choose"],
                    "`choose` is not supported by this version of dynquant; write one type, such as"
                    f" `type: {found[0].name}`",
                )
        if "type" in keys:
            qtype = self.value(keys["type"], quant_type)
            return ("type" if qtype else None), qtype
        if "keep" in keys:
            return ("keep" if self.value(keys["keep"], values.yes) else None), None
        if "drop" in keys:
            return ("drop" if self.value(keys["drop"], values.yes) else None), None
        return None, None

    def _layers(self, node: yaml.Node | None) -> tuple[LayerItem, ...]:
        items = [
            self._layer_pattern(one)
            if isinstance(one, yaml.MappingNode)
            else self.value(one, values.layer_range)
            for one in self.items(node)
        ]
        return tuple(item for item in items if item is not None)

    def _layer_pattern(self, node: yaml.Node) -> LayerPattern | None:
        keys = self.mapping(node, LAYER_KEYS, "a pattern of layers")
        if not keys:
            return None
        if "from" in keys and "every" not in keys:
            self.fault(
                keys["from"], "`from` without `every`; add `every`, or write `in` with a range"
            )
        if keys.keys() == {"of"}:
            self.fault(node, "`of` without a position; add `in`, `first`, `last` or `every`")
        return LayerPattern(
            inside=self.values(keys.get("in"), values.layer_range),
            first=self.value(keys.get("first"), values.bound),
            last=self.value(keys.get("last"), values.bound),
            every=self.value(keys.get("every"), values.count),
            start=self.value(keys.get("from"), values.bound),
            of=self.values(keys.get("of"), role_name),
        )

    def _shape(self, node: yaml.Node | None) -> Shape | None:
        keys = self.mapping(node, SHAPE_KEYS, "shape") if node is not None else None
        if not keys:
            return None
        return Shape(*(self.value(keys.get(key), values.count) for key in SHAPE_KEYS))

    def _when(self, node: yaml.Node | None) -> When | None:
        keys = self.mapping(node, WHEN_KEYS, "when") if node is not None else None
        if not keys:
            return None
        return When(
            *(self.values(keys.get(key), values.comparison) for key in WHEN_KEYS[:3]),
            tied_embeddings=self.value(keys.get("tied_embeddings"), values.truth),
            importance=self.value(keys.get("importance"), values.truth),
            architecture=self.values(keys.get("architecture"), values.architecture),
        )

    def _fallback(self, node: yaml.Node | None) -> Fallback | None:
        if node is None:
            return None
        if not isinstance(node, yaml.MappingNode):
            return Fallback(self._chain(node))
        chains: dict[str, tuple[QuantType, ...]] = {}
        of_all: tuple[QuantType, ...] = ()
        for word, key, value in self.pairs(node, "fallback"):
            if word == "any":
                of_all = self._chain(value)
            elif replaced := self.value(key, quant_type):
                chains[replaced.name] = self._chain(value)
        return Fallback(of_all, chains)

    def _chain(self, node: yaml.Node) -> tuple[QuantType, ...]:
        if isinstance(node, yaml.ScalarNode) and node.value == "error":
            return ()
        return self.values(node, quant_type)

    def _output(self, node: yaml.Node | None, before: Output) -> Output:
        keys = self.mapping(node, OUTPUT_KEYS, "output") if node is not None else None
        if not keys:
            return before
        return Output(
            self.value(keys.get("shard_size"), values.size) or before.shard_bytes,
            self.value(keys.get("tensor_order"), values.tensor_order) or before.tensor_order,
        )

    def _metadata(self, node: yaml.Node | None) -> dict[str, str]:
        if node is None:
            return {}
        values = {word: self.value(v, str) for word, _, v in self.pairs(node, "metadata")}
        return {word: text for word, text in values.items() if text is not None}
