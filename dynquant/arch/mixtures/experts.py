"""Mixtures of experts: their rows of the tensor table, and the keys of their routing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.base import Form, Row
from dynquant.arch.graph_limits import group_problems
from dynquant.keys import Keys, boolean, f32, u32
from dynquant.tensors import TensorSource
from dynquant.transforms import first_half_of_each, second_half_of_each, transposed

SOFTMAX, SIGMOID = 1, 2
"""expert_gating_func: the function from scores to weights (llama_expert_gating_func_type)."""


_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Names of the number of experts in config.json; they differ even within a family, over time."""


def with_expert_count(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json with the number of experts as `num_experts`."""
    found = (config[key] for key in _COUNTS if config.get(key) is not None)
    return {**config, "num_experts": next(found, None)}


_TARGETS = tuple(f"blk.{{}}.ffn_{part}_exps.weight" for part in ("gate", "up", "down"))
_SHAPES = ("expert_ffn hidden", "expert_ffn hidden", "hidden expert_ffn")
_STACKS = tuple(f"experts {shape}" for shape in _SHAPES)
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

Names = tuple[str, str, str]
"""Of gate, up and down."""

_Layout = tuple[Form, ...]
"""The forms of gate, up and down."""


def expert_rows(
    block: str, gate: str, up: str, down: str, *, outputs_last: bool = False
) -> tuple[Row, ...]:
    """Return the rows of a layer's experts if each expert is stored separately.

    block:          the part of the name before `experts.N` ("model.layers.{}.mlp.")
    gate, up, down: the parts of the names after it
    outputs_last:   whether published models of the family have stacks with outputs last; shapes
                    show which stacks these are
    Dimensions:     `experts`, `expert_ffn` and `hidden`

    Other forms: stacks of all experts of a layer, as transformers 5 stores them
    (`save_original_format=False`) and mlx-lm, and stacks named as an expert without its number.
    """
    names = (gate, up, down)
    layouts: list[_Layout] = []
    for place in dict.fromkeys((block, block.replace("block_sparse_moe", "mlp"))):
        if place != block:
            layouts.append(_layout(f"{place}experts.{{expert}}.", names, ".weight", _SHAPES))
        layouts += _fused(place)
        layouts += _outputs_last(place) if outputs_last else ()
        layouts += (
            _layout(f"{place}experts.", parts, end, _STACKS, oriented=False)
            for parts in dict.fromkeys((names, _PROJECTIONS))
            for end in ("", ".weight")
        )
        layouts.append(_layout(f"{place}switch_mlp.", _PROJECTIONS, ".weight", _STACKS))
    stored = (f"{block}experts.{{expert}}.{name}.weight" for name in names)
    return tuple(map(_row, stored, _TARGETS, _SHAPES, zip(*layouts, strict=True)))


def fused_rows(block: str, both: str, down: str) -> tuple[Row, ...]:
    """Return the rows of experts that are stored as stacks, gates before ups in one of them.

    block:      the part of the name before `both` and `down`, the names of the stacks
    Dimensions: `experts`, `expert_ffn`, `expert_ffn_twice` and `hidden`
    """
    twice = "experts expert_ffn_twice hidden"
    layouts = [*_fused(block), _layout(f"{block}switch_mlp.", _PROJECTIONS, ".weight", _STACKS)]
    stored, shapes = (block + both, block + both, block + down), (twice, twice, _STACKS[2])
    rows = map(_row, stored, _TARGETS, shapes, zip(*layouts, strict=True))
    return tuple(replace(row, via=via) for row, via in zip(rows, _HALVES, strict=True))


_HALVES = (first_half_of_each, second_half_of_each, None)


def gates_of_outputs_last(source: TensorSource) -> TensorSource:
    """Return the gates of a stack [experts, inputs, gates and ups]."""
    return first_half_of_each(transposed(source))


def ups_of_outputs_last(source: TensorSource) -> TensorSource:
    """Return the ups of a stack [experts, inputs, gates and ups]."""
    return second_half_of_each(transposed(source))


def _row(stored: str, target: str, shape: str, forms: tuple[Form, ...]) -> Row:
    return Row(stored, target, shape, forms=forms)


def _layout(
    before: str, names: Names, end: str, shapes: Iterable[str], *, oriented: bool = True
) -> _Layout:
    key = f"{before}{names}{end}"
    return tuple(
        Form(f"{before}{name}{end}", shape, key, oriented=oriented)
        for name, shape in zip(names, shapes, strict=True)
    )


def _fused(place: str) -> Iterator[_Layout]:
    """Yield the layouts in which one stack holds the rows of gates, then those of ups."""
    both, down = f"{place}experts.gate_up_proj", f"{place}experts.down_proj"
    twice = "experts 2*expert_ffn hidden"
    for end in ("", ".weight"):
        yield tuple(
            Form(stored + end, shape, both + end, via, oriented=False)
            for stored, shape, via in zip(
                (both, both, down), (twice, twice, _STACKS[2]), _HALVES, strict=True
            )
        )


def _outputs_last(place: str) -> Iterator[_Layout]:
    """Yield the layouts of `_fused` with the last two dimensions exchanged."""
    both, down = f"{place}experts.gate_up_proj", f"{place}experts.down_proj"
    twice = "experts hidden 2*expert_ffn"
    vias = (gates_of_outputs_last, ups_of_outputs_last, transposed)
    for end in ("", ".weight"):
        yield tuple(
            Form(stored + end, shape, f"{both}{end} transposed", via, oriented=False)
            for stored, shape, via in zip(
                (both, both, down), (twice, twice, "experts expert_ffn hidden"), vias, strict=True
            )
        )


def shared_rows(block: str, names: Names = _PROJECTIONS) -> tuple[Row, ...]:
    """Return the rows of the experts that all tokens use, stored as one matrix per projection.

    block:      the part of the name before `gate_proj` ("model.layers.{}.mlp.shared_experts.")
    names:      the parts of the names after it
    Dimensions: `shared_ffn` and `hidden`
    """
    gate, up, down = names
    return (
        Row(f"{block}{gate}.weight", "blk.{}.ffn_gate_shexp.weight", "shared_ffn hidden"),
        Row(f"{block}{up}.weight", "blk.{}.ffn_up_shexp.weight", "shared_ffn hidden"),
        Row(f"{block}{down}.weight", "blk.{}.ffn_down_shexp.weight", "hidden shared_ffn"),
    )


def router_row(stored: str, *others: str) -> Row:
    """Return the row of the matrix that scores the experts; dimensions: `experts` and `hidden`.

    others: other names of it, as in transformers 5
    """
    shape = "experts hidden"
    forms = tuple(Form(name, shape) for name in others)
    return Row(stored, "blk.{}.ffn_gate_inp.weight", shape, forms=forms)


def score_bias_row(stored: str, *others: str) -> Row:
    """Return the row of what is added to the scores to choose the experts; dimension: `experts`.

    others: other names of it, as in transformers 5
    """
    forms = tuple(Form(name, "experts") for name in others)
    return Row(stored, "blk.{}.exp_probs_b.bias", "experts", forms=forms)


_MLP = "model.layers.{}.mlp."
SIGMOID_EXPERTS = (
    router_row(_MLP + "gate.weight"),
    score_bias_row(_MLP + "gate.e_score_correction_bias"),
    *expert_rows(_MLP, gate="gate_proj", up="up_proj", down="down_proj"),
    *shared_rows(_MLP + "shared_experts."),
)
"""Routed experts with a bias of their scores, and the experts that all tokens use."""


@dataclass(frozen=True)
class Routing:
    """How tokens are routed to experts; None writes no key, so that llama.cpp's default applies.

    weights_scale: factor of the routed experts' sum
    weights_norm:  whether the chosen experts' weights are normalized to sum to one
    """

    n_experts: int
    n_used: int
    expert_ffn: int | None = None
    shared_ffn: int | None = None
    n_shared: int | None = None
    weights_scale: float | None = None
    weights_norm: bool | None = None
    gating: int | None = None
    n_groups: int | None = None
    n_groups_used: int | None = None
    n_leading_dense: int | None = None

    def in_groups(self, n_groups: int | None, n_used: int | None) -> Routing:
        """Return the routing with groups of experts, if these limit the choice.

        llama.cpp rejects groups if all of them are used; they have no effect then.
        """
        if not n_groups or not n_used or n_used >= n_groups:
            return self
        return replace(self, n_groups=n_groups, n_groups_used=n_used)


def routing_keys(arch: str, r: Routing) -> Keys:
    """Return `<arch>.expert_*` and leading_dense_block_count."""
    # llama.cpp does not load a file in which all of several groups are used; they limit nothing.
    all_used = r.n_groups != 1 and r.n_groups == r.n_groups_used
    n_groups, n_groups_used = (None, None) if all_used else (r.n_groups, r.n_groups_used)
    keys = {
        "expert_count": u32(r.n_experts),
        "expert_used_count": u32(r.n_used),
        **_present("expert_group_count", n_groups),
        **_present("expert_group_used_count", n_groups_used),
        **_present("expert_gating_func", r.gating),
        **_present("leading_dense_block_count", r.n_leading_dense),
        **_present("expert_feed_forward_length", r.expert_ffn),
        **_present("expert_shared_feed_forward_length", r.shared_ffn),
        **_present("expert_shared_count", r.n_shared),
    }
    if r.weights_scale is not None:
        keys["expert_weights_scale"] = f32(r.weights_scale)
    if r.weights_norm is not None:
        keys["expert_weights_norm"] = boolean(r.weights_norm)
    return {f"{arch}.{name}": value for name, value in keys.items()}


def routing_problems(arch: str, keys: Keys, where: str) -> Iterator[str]:
    """Yield a message if llama.cpp cannot choose as many experts as a token needs.

    keys: the architecture's; llama.cpp does not load a file with more experts used than there are.
          If groups limit the choice, it would take the missing ones from no group, and the model's
          own code from groups that were not chosen
    """

    def count(name: str) -> int:
        found = keys.get(f"{arch}.{name}")
        return int(found.value) if found is not None and isinstance(found.value, int) else 0

    n, used = count("expert_count"), count("expert_used_count")
    groups, groups_used = count("expert_group_count"), count("expert_group_used_count")
    if used > n:
        yield f"{where}: num_experts_per_tok is {used}, but there are only {n} experts"
    elif wrong := [*group_problems(groups, groups_used, n, where)]:
        yield from wrong
    elif groups > 1 and used > groups_used * (n // groups):
        yield (
            f"{where}: num_experts_per_tok is {used}, but topk_group {groups_used} leaves only"
            f" {groups_used * (n // groups)} of {n} experts to choose from"
        )


def _present(name: str, value: int | None) -> Keys:
    return {} if value is None else {name: u32(value)}
