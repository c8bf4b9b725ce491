"""Builds a recipe from YAML nodes, and reports every fault with its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import yaml

from dynquant.errors import RecipeError
from dynquant.importance.experts import Unseen
from dynquant.quants.readers import reader_name
from dynquant.quants.table import QuantType, quant_type
from dynquant.recipe import values
from dynquant.recipe.choice import Choice
from dynquant.recipe.choice_reader import read_choice, read_target
from dynquant.recipe.extending import Given, OrderError, in_order
from dynquant.recipe.feedback import UNSET, Feedback
from dynquant.recipe.for_readers import faults_of_types
from dynquant.recipe.layers import LayerItem, LayerPattern
from dynquant.recipe.roles import role_name
from dynquant.recipe.rules import Action, Fallback, Rule, Selectors, Shape, TensorOrder, Use, When
from dynquant.recipe.yaml_nodes import Place, Reader, children, either, kind

KEYS = (
    "dynquant",
    "name",
    "description",
    "extends",
    "for",
    "default",
    "importance",
    "feedback",
    "target",
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
NOT = "not"
RULE_KEYS = (*SELECTORS, NOT, *ACTIONS, "fallback", "feedback", "optional", "override", "note")
LAYER_KEYS = ("in", "first", "last", "every", "from", "of")
SHAPE_KEYS = ("row_multiple_of", "min_weights", "dimensions")
WHEN_KEYS = ("experts", "gqa", "layers", "tied_embeddings", "importance", "architecture")
IMPORTANCE_KEYS = ("use", "shrink", "unseen")
FEEDBACK_KEYS = ("use", "damping", "sweeps")
OUTPUT_KEYS = ("shard_size", "tensor_order")

Parent = Callable[[str], Sequence[Given]]
"""Returns the files of a recipe that `extends:` names, in the order of their rules; raises
ExtendsError if it is missing, or RecipeError with the faults of its files."""


class ExtendsError(RecipeError):
    """The recipe to extend does not exist or cannot be used."""


class RecipeReader(Reader):
    """Reads the nodes of one file; keeps faults of the recipes that it extends separate."""

    def __init__(self, path: str, parent: Parent) -> None:
        super().__init__(path)
        self._parent = parent
        self.inherited_faults: dict[str, None] = {}

    def recipe(self, node: yaml.Node | None, text: str, name: str) -> tuple[Given, ...]:
        """Return the file and those that it extends, in the order of their rules."""
        if node is None:
            place = Place(self.path, 1, 1)
            self.faults.append((place, "empty; a recipe has at least `default: Q4_K`"))
            return ()
        keys = self.mapping(node, KEYS, "a recipe")
        if keys is None:
            return ()
        extended = self._extended(keys.get("extends"))
        if not keys.keys() & {"default", "extends"}:
            self.fault(node, "no default; add one, such as `default: Q4_K`")
        self.value(keys.get("dynquant"), values.version)
        use, shrink, unseen = self._importance(keys.get("importance"))
        shard_bytes, tensor_order = self._output(keys.get("output"))
        default = self.value(keys.get("default"), quant_type)
        rules = self.rules(keys.get("rules"))
        default_place = Place.of(self.path, keys["default"].start_mark) if default else None
        readers = self.values(keys.get("readers"), reader_name)
        asked = readers or next((file.readers for file in extended if file.readers), ())
        # Optional rules are errors only where they apply to a tensor.
        given = [(rule.place, t) for rule in rules if not rule.optional for t in _types(rule)]
        given += [(default_place, default)] if default and default_place else []
        self.faults += faults_of_types(asked, given)
        own = Given(
            self.value(keys.get("name"), str) or name,
            self.path,
            text,
            description=self.value(keys.get("description"), str.strip),
            intended=self.values(keys.get("for"), values.architecture),
            importance=use,
            shrink=shrink,
            unseen=unseen,
            feedback=self._feedback(keys.get("feedback")),
            target=read_target(self, keys.get("target")),
            effort=self.value(keys.get("effort"), values.effort),
            fallback=self._fallback(keys.get("fallback")),
            shard_bytes=shard_bytes,
            tensor_order=tensor_order,
            metadata=self._metadata(keys.get("metadata")),
            rules=rules,
            keeps_prediction=self.value(keys.get("prediction_layers"), values.keep_or_drop),
            default=default,
            default_place=default_place,
            readers=readers,
        )
        return (own, *extended)

    def _extended(self, node: yaml.Node | None) -> tuple[Given, ...]:
        """Return the files that the recipe extends, in the order of their rules."""
        parents: list[Sequence[Given]] = []
        lines: dict[str, int] = {}
        for one in self.items(node):
            files = self._files_of(one)
            if not files:
                continue
            path, line = files[0].path, one.start_mark.line + 1
            if path in lines:
                self.fault(one, f"{path} is listed twice; line {lines[path]} has it first")
                continue
            lines[path] = line
            parents.append(files)
        try:
            return in_order(parents)
        except OrderError as e:
            assert node is not None, "without entries there is no contradiction"
            self.fault(node, str(e))
            return ()

    def _files_of(self, node: yaml.Node) -> Sequence[Given]:
        """Return the files of one entry of `extends`; none if it has faults."""
        name = self.value(node, str)
        if name is None:
            return ()
        try:
            return self._parent(name)
        except ExtendsError as e:
            self.fault(node, str(e))
        except RecipeError as e:
            self.inherited_faults |= dict.fromkeys(e.messages)
        return ()

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
        action, qtype, choice = self._action(node, keys)
        if not keys.keys() & {*SELECTORS, NOT}:
            self.fault(
                node, f"rule without selectors; add {either(SELECTORS)}, or change the default"
            )
        rule = Rule(
            action or "type",
            qtype,
            Place.of(self.path, node.start_mark),
            self._selectors(keys),
            self._excluded(keys.get(NOT)),
            self._rule_fallback(keys.get("fallback"), action, qtype),
            self._rule_feedback(keys.get("feedback"), action),
            optional=self.value(keys.get("optional"), values.truth) or False,
            override=self.value(keys.get("override"), values.truth) or False,
            note=self.value(keys.get("note"), str) or "",
            choice=choice,
        )
        return rule if action else None

    def _selectors(self, keys: dict[str, yaml.Node]) -> Selectors:
        return Selectors(
            roles=self.values(keys.get("role"), role_name),
            layers=self._layers(keys.get("layers")),
            names=self.values(keys.get("name"), values.name),
            shape=self._shape(keys.get("shape")),
            when=self._when(keys.get("when")),
        )

    def _excluded(self, node: yaml.Node | None) -> tuple[Selectors, ...]:
        """Return the selectors of `not`: one mapping, or a list of them."""
        found: list[Selectors] = []
        for one in self.items(node):
            if keys := self.part(one, SELECTORS, "`not`"):
                found.append(self._selectors(keys))
        return tuple(found)

    def _rule_fallback(
        self, node: yaml.Node | None, action: Action | None, qtype: QuantType | None
    ) -> tuple[QuantType, ...] | None:
        """Return the types of a rule's own fallback; None without one."""
        if node is None:
            return None
        if action in ("choose", "keep", "drop"):
            self.fault(node, f"`fallback` and `{action}` in one rule; a fallback is for `type`")
        elif isinstance(node, yaml.MappingNode):
            self.fault(
                node, "the fallback of a rule is a type, a list of types or `error`, not a mapping"
            )
            return ()
        found = self._chain(node)
        useless = [t for t in found if qtype and t.block_size % qtype.block_size == 0]
        if qtype and useless:
            self.fault(
                node,
                f"the blocks of {', '.join(t.name for t in useless)} divide no row that those of"
                f" {qtype.name} ({qtype.block_size} weights) do not divide; name types of smaller"
                " blocks, or remove `fallback`",
            )
        return found

    def _rule_feedback(self, node: yaml.Node | None, action: Action | None) -> Feedback:
        """Return what a rule says about error feedback."""
        if node is not None and action in ("keep", "drop"):
            self.fault(
                node,
                f"`feedback` and `{action}` in one rule; feedback is for `type` and `choose`",
            )
        return self._feedback(node)

    def _action(
        self, node: yaml.Node, keys: dict[str, yaml.Node]
    ) -> tuple[Action | None, QuantType | None, Choice | None]:
        given = [key for key in ACTIONS if key in keys]
        if not given:
            self.fault(node, "rule without a type; add one, such as `type: Q6_K`")
        elif len(given) > 1:
            self.fault(keys[given[1]], f"{' and '.join(given)} in one rule; give one of them")
        if "choose" in keys:
            choice = read_choice(self, keys["choose"])
            return ("choose" if choice else None), None, choice
        if "type" in keys:
            qtype = self.value(keys["type"], quant_type)
            return ("type" if qtype else None), qtype, None
        if "keep" in keys:
            return ("keep" if self.value(keys["keep"], values.yes) else None), None, None
        if "drop" in keys:
            return ("drop" if self.value(keys["drop"], values.yes) else None), None, None
        return None, None, None

    def _layers(self, node: yaml.Node | None) -> tuple[LayerItem, ...]:
        items = [
            self._layer_pattern(one)
            if isinstance(one, yaml.MappingNode)
            else self.value(one, values.layer_range)
            for one in self.items(node)
        ]
        return tuple(item for item in items if item is not None)

    def _layer_pattern(self, node: yaml.Node) -> LayerPattern | None:
        keys = self.part(node, LAYER_KEYS, "a pattern of layers")
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
        keys = self.part(node, SHAPE_KEYS, "shape")
        if not keys:
            return None
        return Shape(*(self.value(keys.get(key), values.count) for key in SHAPE_KEYS))

    def _when(self, node: yaml.Node | None) -> When | None:
        keys = self.part(node, WHEN_KEYS, "when")
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

    def _importance(self, node: yaml.Node | None) -> tuple[Use | None, int | None, Unseen | None]:
        """Return the use of an imatrix, and the policy for experts; None where not given."""
        if not isinstance(node, yaml.MappingNode):
            return self.value(node, values.use), None, None
        keys = self.part(node, IMPORTANCE_KEYS, "importance") or {}
        return (
            self.value(keys.get("use"), values.use),
            self.value(keys.get("shrink"), values.tokens),
            self.value(keys.get("unseen"), values.unseen),
        )

    def _feedback(self, node: yaml.Node | None) -> Feedback:
        """Return what a recipe or a rule says about error feedback."""
        if node is None:
            return UNSET
        if not isinstance(node, yaml.MappingNode):
            return Feedback(self.value(node, values.feedback_use))
        keys = self.part(node, FEEDBACK_KEYS, "feedback") or {}
        return Feedback(
            self.value(keys.get("use"), values.feedback_use),
            self.value(keys.get("damping"), values.damping),
            self.value(keys.get("sweeps"), values.sweeps),
        )

    def _output(self, node: yaml.Node | None) -> tuple[int | None, TensorOrder | None]:
        """Return the bytes of a shard and the order of tensors; None where they are not given."""
        keys = self.mapping(node, OUTPUT_KEYS, "output") if node is not None else None
        if not keys:
            return None, None
        return (
            self.value(keys.get("shard_size"), values.size),
            self.value(keys.get("tensor_order"), values.tensor_order),
        )

    def _metadata(self, node: yaml.Node | None) -> dict[str, str]:
        if node is None:
            return {}
        values = {word: self.value(v, str) for word, _, v in self.pairs(node, "metadata")}
        return {word: text for word, text in values.items() if text is not None}


def _types(rule: Rule) -> tuple[QuantType, ...]:
    """Return the types that a rule names."""
    if rule.choice:
        return rule.choice.types
    return (rule.type,) if rule.type else ()
