"""Bamba: Mamba 2 in most layers, attention in the others, and an MLP in each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch import decoder
from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, LayersCount, Natural, read_config
from dynquant.arch.positions.partial_rotation import partial_keys, read_partial
from dynquant.arch.settings import (
    DECODER,
    NO_WINDOW,
    Declared,
    Settings,
    constant,
    harmless,
    reads,
)
from dynquant.arch.states.mamba2 import MambaSettings, hybrid_layers, step_warnings
from dynquant.errors import ArchitectureError
from dynquant.keys import boolean

NAME = "granitehybrid"
_NAMES = {
    ".post_attention_layernorm.": ".pre_ff_layernorm.",
    ".mlp.": ".feed_forward.",
    "model.norm.": "model.final_layernorm.",
}


def _renamed(row: Row) -> Row:
    """Return a row of a Llama with Bamba's stored name."""
    for before, after in _NAMES.items():
        row = row.within(before, after)
    return row


@dataclass(frozen=True)
class _Own:
    """config.json's settings besides those of all decoders and of Mamba."""

    num_hidden_layers: LayersCount
    attn_layer_indices: tuple[Natural, ...] = ()
    attn_rotary_emb: Count | None = None

    def problems(self, where: str, n_rotated: int) -> Iterator[str]:
        """Yield a message for each setting that does not fit the others."""
        if self.attn_rotary_emb not in (None, n_rotated):
            yield (
                f"{where}: attn_rotary_emb is {self.attn_rotary_emb}, but partial_rotary_factor"
                f" (default 0.5) rotates {n_rotated} weights of a head"
            )
        if beyond := [n for n in self.attn_layer_indices if n >= self.num_hidden_layers]:
            yield (
                f"{where}: attn_layer_indices has {beyond[0]}, but there are"
                f" {self.num_hidden_layers} layers"
            )


def bamba(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Bamba: a Granite 4 in llama.cpp, whose attention rotates half of each head."""
    # transformers' defaults.
    completed = {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, **config}
    own = read_config(_Own, config, where)
    settings = read_config(MambaSettings, config, where)
    c, rope = read_partial(completed, where, None, partial=0.5)
    n_rotated = int(c.n_per_head * rope.partial_rotary_factor)
    ArchitectureError.raise_any(own.problems(where, n_rotated))
    rows = decoder.WEIGHTS
    rows += decoder.QKV_BIASES + decoder.O_BIAS if c.attention_bias else ()
    rows += decoder.MLP_BIASES if c.mlp_bias else ()
    attention = Architecture(
        name=NAME,
        keys={
            **partial_keys(NAME, c, rope),
            f"{NAME}.rope.scaling.finetuned": boolean(True),
        },
        rows=tuple(map(_renamed, rows)),
        sizes=decoder.decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=decoder.TIED if c.tie_word_embeddings else None,
        via=decoder.interleaved_pairs(c, n_rotated),
        ignored=decoder.IGNORED,
        deviations=tuple(step_warnings({"time_step_limit": settings.time_step_limit}, where)),
    )
    attends = [n in own.attn_layer_indices for n in range(c.num_hidden_layers)]
    return hybrid_layers(attention, NAME, attends, settings, where)


FAMILIES = {
    "BambaForCausalLM": Declared(
        bamba,
        Settings(
            read=DECODER | reads(_Own, MambaSettings),
            harmless=NO_WINDOW
            | harmless("how the model is computed", "mamba_chunk_size num_logits_to_keep")
            | harmless("used while training only", "z_loss_coefficient"),
            only=constant(True, "mamba_conv_bias") | constant(False, "mamba_proj_bias"),
        ),
    ),
}
