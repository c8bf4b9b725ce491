"""Jamba: the first Mamba in most layers, attention in the others, and experts in some."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from dynquant.arch import decoder
from dynquant.arch.base import Architecture, Row, on
from dynquant.arch.config import Count, ExpertsCount, LayersCount, Natural, read_config
from dynquant.arch.decoder import decoder_keys, decoder_sizes, read_decoder
from dynquant.arch.gguf_files.graph import FileKeys, GGUFGraph
from dynquant.arch.graph_limits import fixed, heads_fill_hidden
from dynquant.arch.mixtures.experts import (
    Routing,
    expert_rows,
    router_row,
    routing_keys,
    with_expert_count,
)
from dynquant.arch.settings import (
    DECODER,
    NO_ROPE,
    NO_WINDOW,
    Declared,
    Settings,
    constant,
    harmless,
    reads,
)
from dynquant.arch.states.mamba import Mamba1, Rank, mamba1_rows
from dynquant.errors import ArchitectureError
from dynquant.keys import i32s

NAME = "jamba"
_IN, _OUT = "model.layers.{}.", "blk.{}."
_BLOCK = _IN + "feed_forward."
_NORMS = (
    Row(_IN + "input_layernorm.weight", _OUT + "attn_norm.weight", "hidden"),
    Row(_IN + "pre_ff_layernorm.weight", _OUT + "ffn_norm.weight", "hidden"),
)
_ATTENTION = tuple(row for row in decoder.ATTENTION if ".self_attn." in row.stored)
_MLP = tuple(row.within(".mlp.", ".feed_forward.") for row in decoder.MLP)
_EXPERTS = (
    router_row(_BLOCK + "router.weight"),
    *expert_rows(_BLOCK, gate="gate_proj", up="up_proj", down="down_proj"),
)
_LAST_NORM = (Row("model.final_layernorm.weight", "output_norm.weight", "hidden"),)


@dataclass(frozen=True)
class _Own:
    """config.json's settings besides those of all decoders, with transformers' defaults."""

    hidden_size: Count
    num_hidden_layers: LayersCount
    num_experts: ExpertsCount = 16
    num_experts_per_tok: Count = 2
    expert_layer_period: Count = 2
    expert_layer_offset: Natural = 1
    attn_layer_period: Count = 8
    attn_layer_offset: Natural = 4
    mamba_d_state: Count = 16
    mamba_d_conv: Count = 4
    mamba_expand: Count = 2
    mamba_dt_rank: Rank = "auto"
    layers_block_type: tuple[str, ...] | None = None

    @property
    def mamba(self) -> Mamba1:
        """The sizes of state space layers."""
        return Mamba1(
            self.hidden_size,
            self.mamba_expand,
            self.mamba_d_state,
            self.mamba_d_conv,
            self.mamba_dt_rank,
        )

    @property
    def attends(self) -> list[bool]:
        """Which layers have attention: by the names of kinds, as for GGUFs, else by a period."""
        if self.layers_block_type is not None:
            return [kind == "attention" for kind in self.layers_block_type]
        return self._which(self.attn_layer_period, self.attn_layer_offset)

    @property
    def with_experts(self) -> list[bool]:
        """Which layers have experts; none if there is only one."""
        found = self._which(self.expert_layer_period, self.expert_layer_offset)
        return [has and self.num_experts > 1 for has in found]

    def _which(self, period: int, offset: int) -> list[bool]:
        return [n % period == offset for n in range(self.num_hidden_layers)]

    def problems(self, where: str) -> Iterator[str]:
        """Yield a message for each setting that llama.cpp's graph cannot compute."""
        yield from self.mamba.problems(where, "mamba_expand", "mamba_d_conv")
        if len(self.attends) != self.num_hidden_layers:
            yield (
                f"{where}: layers_block_type has {len(self.attends)} entries for num_hidden_layers"
                f" {self.num_hidden_layers}"
            )
        for kind in ("attn", "expert"):
            period, offset = f"{kind}_layer_period", f"{kind}_layer_offset"
            if getattr(self, offset) >= getattr(self, period):
                yield (
                    f"{where}: {offset} {getattr(self, offset)} is not smaller than {period}"
                    f" {getattr(self, period)}"
                )
        if len({*self.attends}) == 1:
            kind = "attention" if self.attends[0] else "a state space"
            yield (
                f"{where}: all layers have {kind}, by attn_layer_period and attn_layer_offset;"
                " llama.cpp needs layers of both kinds in this family"
            )


def jamba(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Jamba, with experts in some layers or in none; the weights are not normalized."""
    # transformers' defaults.
    completed = {"num_key_value_heads": 8, "rms_norm_eps": 1e-6, **config}
    c = read_decoder(completed, where)
    own = read_config(_Own, {"num_experts": 16, **with_expert_count(config)}, where)
    ArchitectureError.raise_any(
        chain(
            fixed(c, {"attention_bias": False, "mlp_bias": False}, where),
            heads_fill_hidden(c, where),
            own.problems(where),
        )
    )
    attends, routed = own.attends, own.with_experts
    n_kv = [c.n_head_kv * a for a in attends]
    routing = Routing(own.num_experts, own.num_experts_per_tok)
    return Architecture(
        name=NAME,
        keys=decoder_keys(NAME, c, None, None)
        | {f"{NAME}.attention.head_count_kv": i32s(n_kv)}
        | own.mamba.keys(NAME)
        | (routing_keys(NAME, routing) if any(routed) else {}),
        rows=(
            *decoder.EMBEDDING,
            *_NORMS,
            *_in(attends, True, _ATTENTION),
            *_in(attends, False, mamba1_rows(_IN + "mamba.", norms=True)),
            *_in(routed, False, _MLP),
            *_in(routed, True, _EXPERTS),
            *_LAST_NORM,
            *decoder.OUTPUT,
        ),
        sizes={
            **decoder_sizes(c),
            **own.mamba.sizes,
            "experts": own.num_experts,
            "expert_ffn": c.intermediate_size,
        },
        n_layers=c.num_hidden_layers,
        tied=decoder.TIED if c.tie_word_embeddings else None,
        ignored=decoder.IGNORED,
        n_experts=own.num_experts if any(routed) else 0,
    )


def _in(which: list[bool], kind: bool, rows: tuple[Row, ...]) -> tuple[Row, ...]:
    layers = [n for n, found in enumerate(which) if found == kind]
    return on(layers, rows) if layers else ()


FAMILIES = {
    "JambaForCausalLM": Declared(
        jamba,
        Settings(
            read=(DECODER - {"head_dim", "is_causal"}) | reads(_Own, more="num_local_experts"),
            harmless=NO_WINDOW
            | NO_ROPE
            | harmless(
                "how the model is computed",
                "use_mamba_kernels use_mambapy use_associative_scan num_logits_to_keep"
                " calc_logits_for_entire_prompt",
            ),
            only=constant(True, "mamba_conv_bias") | constant(False, "mamba_proj_bias"),
        ),
    ),
}
_PARTS = ("ffn_gate", "ffn_up", "ffn_down")
_EITHER = (
    frozenset(f"{part}.weight" for part in _PARTS),
    frozenset({"ffn_gate_inp.weight", *(f"{part}_exps.weight" for part in _PARTS)}),
)
"""An MLP or experts: no key of a GGUF states which a layer has."""


def _layers_of(keys: FileKeys) -> dict[str, Any]:
    """Return the kinds of a GGUF's layers."""
    heads = keys.of_layers("attention.head_count_kv")
    return {"layers_block_type": ["attention" if n else "mamba" for n in heads]}


GRAPHS = {
    "jamba": GGUFGraph("JambaForCausalLM", layers=_layers_of, either=_EITHER),
}
