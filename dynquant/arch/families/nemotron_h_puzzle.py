"""Nemotron 3 Puzzle: a Nemotron-H whose layers have experts of different widths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from dynquant.arch.base import Architecture, Row, on
from dynquant.arch.config import MAX_LAYERS, Count, read_config
from dynquant.arch.families.nemotron_h import SETTINGS, nemotron_h
from dynquant.arch.settings import Declared, harmless
from dynquant.arch.states.nemotron_kinds import EXPERTS, PLACES
from dynquant.errors import ArchitectureError
from dynquant.keys import i32s
from dynquant.untrusted import shown

_BLOCKS = "block_configs"


@dataclass(frozen=True)
class _Block:
    """Settings of a layer with experts that other layers may have otherwise."""

    moe_intermediate_size: Count
    num_experts_per_tok: Count


_OWN = ("block_type", "moe_intermediate_size", "num_experts_per_tok")


def puzzle(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Nemotron 3 Puzzle: experts of another width, and another number, in each layer."""
    blocks = _blocks(config, where)
    kinds = [str(block.get("block_type")) for block in blocks]
    own = {
        n: read_config(_Block, block, f"{where}: {_BLOCKS}[{n}]")
        for n, block in enumerate(blocks)
        if kinds[n] == EXPERTS
    }
    if not own:
        raise ArchitectureError(f"{where}: {_BLOCKS} has no layer of type 'moe'")
    widest = max(block.moe_intermediate_size for block in own.values())
    most = max(block.num_experts_per_tok for block in own.values())
    whole = nemotron_h(
        {
            **{name: value for name, value in config.items() if name not in PLACES},
            **_shared(blocks, where),
            PLACES[0]: kinds,
            "num_hidden_layers": len(kinds),
            "moe_intermediate_size": widest,
            "num_experts_per_tok": most,
        },
        where,
    )
    if most > whole.n_experts:
        raise ArchitectureError(
            f"{where}: num_experts_per_tok is {most}, but there are only {whole.n_experts} experts"
        )
    sizes = {f"expert_ffn_{n}": block.moe_intermediate_size for n, block in own.items()}
    blocks_or_none = [own.get(n) for n in range(len(kinds))]
    widths = i32s([block.moe_intermediate_size if block else 0 for block in blocks_or_none])
    used = i32s([block.num_experts_per_tok if block else 0 for block in blocks_or_none])
    return replace(
        whole,
        keys=whole.keys
        | {
            f"{whole.name}.feed_forward_length": widths,
            f"{whole.name}.expert_feed_forward_length": widths,
            f"{whole.name}.expert_used_count": used,
        },
        rows=tuple(_rows(whole)),
        sizes={**whole.sizes, **sizes},
        ignored={
            **whole.ignored,
            r"mtp\..*": "a prediction layer, which llama.cpp does not compute for this class",
        },
        prediction=None,
    )


def _blocks(config: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return the settings of each layer; raise ArchitectureError if they are no list of objects."""
    found = config.get(_BLOCKS)
    blocks = cast("list[object]", found) if isinstance(found, list) else []
    if not blocks:
        raise ArchitectureError(
            f"{where}: {_BLOCKS} is {shown(config.get(_BLOCKS))}; it must be a list"
        )
    if len(blocks) > MAX_LAYERS:
        raise ArchitectureError(
            f"{where}: {_BLOCKS} has {len(blocks)} entries; llama.cpp computes at most"
            f" {MAX_LAYERS} layers"
        )
    if not all(isinstance(block, dict) for block in blocks):
        raise ArchitectureError(f"{where}: {_BLOCKS} must be a list of objects")
    return cast("list[dict[str, Any]]", blocks)


def _shared(blocks: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    """Return the settings that layers state with one value; raise ArchitectureError for others."""
    found: dict[str, Any] = {}
    differing: list[str] = []
    for block in blocks:
        for name, value in block.items():
            if name in _OWN or value is None:
                continue
            if found.setdefault(name, value) != value:
                differing.append(name)
    ArchitectureError.raise_any(
        f"{where}: {_BLOCKS} gives layers different values of {name}; llama.cpp has one for all"
        for name in dict.fromkeys(differing)
    )
    return found


def _rows(whole: Architecture) -> Iterator[Row]:
    """Yield the rows, those of experts for each layer with its own width."""
    ahead = whole.prediction.layers if whole.prediction else range(0)
    for row in whole.rows:
        if row.layers is not None and {*row.layers} & {*ahead}:
            continue
        if "expert_ffn" not in row.shape or row.layers is None:
            yield row
            continue
        for n in sorted(row.layers):
            forms = tuple(replace(f, shape=_sized(f.shape, n)) for f in row.forms)
            yield from on([n], (replace(row, shape=_sized(row.shape, n), forms=forms),))


def _sized(shape: str, layer: int) -> str:
    return shape.replace("expert_ffn", f"expert_ffn_{layer}")


_AHEAD = (
    "num_nextn_predict_layers",
    "mtp_block_configs",
    "mtp_layers_block_type",
    "mtp_hybrid_override_pattern",
)
FAMILIES = {
    "NemotronHPuzzleForCausalLM": Declared(
        puzzle,
        replace(
            SETTINGS,
            read=SETTINGS.read | {_BLOCKS},
            harmless={
                **SETTINGS.harmless,
                **harmless("of a prediction layer, which is left out", " ".join(_AHEAD)),
            },
            only={name: only for name, only in SETTINGS.only.items() if name not in _AHEAD},
        ),
    ),
}
