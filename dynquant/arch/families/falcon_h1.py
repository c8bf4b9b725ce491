"""Falcon-H1: attention and Mamba 2 side by side in each layer, with multipliers in many places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from dynquant.arch.base import Architecture, Row, Via
from dynquant.arch.config import Count, Positive, Truth, read_config
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    MLP,
    OUTPUT,
    TIED,
    Config,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import fixed
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import (
    DECODER,
    NO_WINDOW,
    Declared,
    Settings,
    constant,
    harmless,
    reads,
)
from dynquant.arch.states.mamba2 import Mamba2, MambaSettings, mamba2_rows, step_warnings
from dynquant.errors import ArchitectureError
from dynquant.keys import u32
from dynquant.tensors import TensorSource
from dynquant.transforms import ScaledInputs, ScaledRows, scaled

NAME = "falcon-h1"
_IN = "model.layers.{}."
# llama.cpp's name of this norm has no `.weight`.
_FFN_NORM = (Row(_IN + "pre_ff_layernorm.weight", "blk.{}.ffn_norm", "hidden"),)
_MLP = tuple(row.within(".mlp.", ".feed_forward.") for row in MLP)
_LAST_NORM = (Row("model.final_layernorm.weight", "output_norm.weight", "hidden"),)
_Five = tuple[Positive, Positive, Positive, Positive, Positive]


@dataclass(frozen=True)
class _Own:
    """config.json's settings besides those of all decoders, with transformers' defaults."""

    mamba_d_ssm: Count | None = None
    mamba_rms_norm: Truth = False
    mamba_norm_before_gate: Truth = True
    embedding_multiplier: Positive = 1.0
    lm_head_multiplier: Positive = 1.0
    attention_in_multiplier: Positive = 1.0
    attention_out_multiplier: Positive = 1.0
    key_multiplier: Positive = 1.0
    ssm_in_multiplier: Positive = 1.0
    ssm_out_multiplier: Positive = 1.0
    ssm_multipliers: tuple[Positive, Positive, Positive, Positive, Positive] = (
        1.0,
        1.0,
        1.0,
        1.0,
        1.0,
    )
    mlp_multipliers: tuple[Positive, Positive] = (1.0, 1.0)

    def problems(self, where: str) -> Iterator[str]:
        """Yield a message if the norm of Mamba is not where llama.cpp has it."""
        if self.mamba_rms_norm and self.mamba_norm_before_gate:
            yield (
                f"{where}: mamba_norm_before_gate is true; llama.cpp computes the norm of Mamba"
                " after the gate"
            )

    def via(self, m: Mamba2) -> Mapping[str, Via]:
        """Return the transforms by role: the graph has no multipliers, so the weights have them."""
        gate, down = self.mlp_multipliers
        lengths = (m.n_inner, m.n_inner, *(2 * (m.n_groups * m.n_state,)), m.n_heads)
        factors = {
            "token_embd": self.embedding_multiplier,
            "output": self.lm_head_multiplier,
            "attn_output": self.attention_out_multiplier,
            "ssm_out": self.ssm_out_multiplier,
            "ffn_gate": gate,
            "ffn_down": down,
        }
        return {
            **{role: partial(scaled, factor=factor) for role, factor in factors.items()},
            "attn_q": partial(ScaledInputs, factor=self.attention_in_multiplier),
            "attn_v": partial(ScaledInputs, factor=self.attention_in_multiplier),
            "attn_k": partial(
                _keys, multiplier=self.key_multiplier, of_input=self.attention_in_multiplier
            ),
            "ssm_in": partial(
                _inputs,
                lengths=lengths,
                multipliers=self.ssm_multipliers,
                of_input=self.ssm_in_multiplier,
            ),
            **m.via,
        }


def _keys(source: TensorSource, multiplier: float, of_input: float) -> TensorSource:
    return ScaledInputs(scaled(source, multiplier), of_input)


def _inputs(
    source: TensorSource, lengths: tuple[int, ...], multipliers: _Five, of_input: float
) -> TensorSource:
    rows = np.repeat(np.array(multipliers, np.float32), lengths)
    return ScaledRows(ScaledInputs(source, of_input), rows)


def falcon_h1(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Falcon-H1: each layer adds the results of attention and of Mamba 2."""
    # transformers' defaults.
    completed = {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, **config}
    c = read_decoder(completed, where)
    rope = read_rope(completed, where, ("linear", "dynamic", "yarn"))
    own = read_config(_Own, config, where)
    settings = read_config(MambaSettings, config, where)
    # Null is not the default here.
    whole = settings.mamba_expand * settings.hidden_size
    n_inner = own.mamba_d_ssm or (whole if "mamba_d_ssm" in config else 1024)
    ArchitectureError.raise_any(
        chain(
            fixed(c, {"attention_bias": False, "mlp_bias": False}, where),
            own.problems(where),
            settings.problems(where, n_inner),
        )
    )
    m = settings.with_channels(n_inner)
    attention = (row for row in ATTENTION if "post_attention" not in row.stored)
    mamba = mamba2_rows(_IN + "mamba.", norm=own.mamba_rms_norm)
    output, tied = _output(c, own)
    limits = {"time_step_limit": settings.time_step_limit}
    return Architecture(
        name=NAME,
        keys=decoder_keys(NAME, c, rope, c.n_per_head)
        | m.keys(NAME)
        | {f"{NAME}.vocab_size": u32(c.vocab_size)},
        rows=(*EMBEDDING, *attention, *mamba, *_FFN_NORM, *_MLP, *_LAST_NORM, *output),
        sizes={**decoder_sizes(c), **m.sizes},
        n_layers=c.num_hidden_layers,
        tied=tied,
        via=own.via(m),
        ignored=IGNORED,
        deviations=tuple(step_warnings(limits, where)),
    )


def _output(c: Config, own: _Own) -> tuple[tuple[Row, ...], tuple[str, str] | None]:
    """Return the row of the output matrix, and whether the embedding replaces it.

    A tied embedding with another multiplier is two matrices in the file.
    """
    if not c.tie_word_embeddings:
        return OUTPUT, None
    if own.embedding_multiplier == own.lm_head_multiplier:
        return OUTPUT, TIED
    return tuple(row.within(*TIED) for row in OUTPUT), None


FAMILIES = {
    "FalconH1ForCausalLM": Declared(
        falcon_h1,
        Settings(
            read=DECODER | reads(_Own, MambaSettings),
            harmless=NO_WINDOW
            | harmless("how the model is computed", "mamba_chunk_size num_logits_to_keep")
            | harmless("used while training only", "time_step_min time_step_max time_step_floor"),
            only=constant(True, "mamba_conv_bias mamba_use_mlp")
            | constant(False, "mamba_proj_bias projectors_bias"),
        ),
    ),
}
GRAPHS = {
    "falcon-h1": GGUFGraph("FalconH1ForCausalLM"),
}
