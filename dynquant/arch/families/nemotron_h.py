"""Nemotron-H, Nemotron Nano 2, Nemotron 3 and 3.5: Mamba 2, attention and MLPs, one to a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from dynquant.arch import decoder
from dynquant.arch.base import Architecture, Row, on
from dynquant.arch.config import Count, Positive, Truth, read_config
from dynquant.arch.decoder import (
    decoder_keys,
    decoder_sizes,
    interleaved_pairs,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import FileKeys, GGUFGraph
from dynquant.arch.graph_limits import fixed
from dynquant.arch.mixtures.ungated import LatentExperts
from dynquant.arch.prediction import folded_prediction, folded_rows
from dynquant.arch.settings import (
    DECODER,
    NO_ROPE,
    NO_WINDOW,
    Declared,
    Only,
    Settings,
    constant,
    harmless,
    reads,
)
from dynquant.arch.states.mamba2 import Mamba2, mamba2_rows, step_warnings
from dynquant.arch.states.nemotron_kinds import (
    ATTENTION,
    EXPERTS,
    MAMBA,
    MLP,
    kind_problems,
    layer_kinds,
)
from dynquant.errors import ArchitectureError
from dynquant.keys import f32, i32s

_LAYER, _OUT = "model.layers.{}.", "blk.{}."
_MIXER = _LAYER + "mixer."
_EMBEDDING = (Row("model.embeddings.weight", "token_embd.weight", "vocab hidden"),)
_NORM = (Row(_LAYER + "norm.weight", _OUT + "attn_norm.weight", "hidden"),)
_ATTENTION = tuple(
    row.within("self_attn.", "mixer.") for row in decoder.ATTENTION if ".self_attn." in row.stored
)
_MLP, _MLP_BIASES = (
    tuple(row.within("mlp.", "mixer.") for row in rows if ".gate_proj." not in row.stored)
    for rows in (decoder.MLP, decoder.MLP_BIASES)
)
_LAST_NORM = (Row("model.norm_f.weight", "output_norm.weight", "hidden"),)


@dataclass(frozen=True)
class _Own:
    """config.json's settings besides those of all decoders, with transformers' defaults."""

    intermediate_size: Count = 21504
    head_dim: Count | None = None
    attention_head_dim: Count = 128
    layer_norm_epsilon: Positive = 1e-5
    mlp_bias: Truth = False
    mamba_num_heads: Count = 128
    mamba_head_dim: Count = 64
    n_groups: Count = 8
    ssm_state_size: Count = 128
    conv_kernel: Count = 4
    time_step_min: Any = 0.001
    time_step_limit: Any = None

    @property
    def n_per_head(self) -> int:
        """Weights of a head; the first files state it by the second name."""
        return self.head_dim or self.attention_head_dim

    @property
    def mamba(self) -> Mamba2:
        """The sizes of state space layers."""
        return Mamba2(
            self.mamba_num_heads,
            self.mamba_head_dim,
            self.n_groups,
            self.ssm_state_size,
            self.conv_kernel,
        )

    @property
    def mlp_rows(self) -> tuple[Row, ...]:
        """The rows of a layer that is an MLP."""
        return (*_MLP, *(_MLP_BIASES if self.mlp_bias else ()))


def nemotron_h(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Nemotron-H, dense or with experts; most with experts have a prediction layer."""
    kinds = layer_kinds(config, where)
    n, with_experts = len(kinds), EXPERTS in kinds
    own = read_config(_Own, config, where)
    completed = {
        **config,
        "num_hidden_layers": n,
        "hidden_act": None,
        "intermediate_size": own.intermediate_size,
        "rms_norm_eps": own.layer_norm_epsilon,
    }
    c = read_decoder(completed, where, head_dim=own.n_per_head)
    ArchitectureError.raise_any(
        chain(
            kind_problems(kinds, where),
            fixed(c, {"attention_bias": False}, where),
            fixed(own, {"mlp_bias": False}, where) if with_experts else (),
            own.mamba.problems(where, "mamba_num_heads", "n_groups", "conv_kernel"),
        )
    )
    experts = read_config(LatentExperts, config, where) if with_experts else None
    name = "nemotron_h_moe" if experts else "nemotron_h"
    width = experts.moe_intermediate_size if experts else c.intermediate_size
    layers = {kind: [i for i in range(n) if kinds[i] == kind] for kind in {*kinds}}
    own_kv = [c.n_head_kv * (kind == ATTENTION) for kind in kinds]
    widths = [width * (kind in (EXPERTS, MLP)) for kind in kinds]
    mixture = experts.rows(_MIXER) if experts else ()
    limits = {"time_step_min": own.time_step_min, "time_step_limit": own.time_step_limit}
    return Architecture(
        name=name,
        keys=decoder_keys(name, c, None, c.n_per_head)
        | own.mamba.keys(name)
        | {
            f"{name}.attention.layer_norm_epsilon": f32(own.layer_norm_epsilon),
            f"{name}.attention.head_count_kv": i32s(own_kv),
            f"{name}.feed_forward_length": i32s(widths),
        }
        | (experts.keys(name) if experts else {}),
        rows=(
            *_EMBEDDING,
            *on(range(n), _NORM),
            *on(layers[MAMBA], mamba2_rows(_MIXER)),
            *on(layers[ATTENTION], _ATTENTION),
            *(on(layers[MLP], own.mlp_rows) if MLP in kinds else ()),
            *on(layers.get(EXPERTS, ()), mixture),
            *(folded_rows(n, _LAYER, (*_NORM, *_ATTENTION), mixture) if experts else ()),
            *_LAST_NORM,
            *decoder.OUTPUT,
        ),
        sizes={
            **decoder_sizes(c),
            **own.mamba.sizes,
            "hidden_twice": 2 * c.hidden_size,
            **(experts.sizes(c.hidden_size) if experts else {}),
        },
        n_layers=n,
        tied=(decoder.TIED[0], "model.embeddings.weight") if c.tie_word_embeddings else None,
        # The order of Q and K has no effect here. llama.cpp's converter changes it in files and in
        # adapters, which must fit each other.
        via={**own.mamba.via, **interleaved_pairs(c)},
        ignored=decoder.IGNORED,
        n_experts=experts.n_routed_experts if experts else 0,
        prediction=(
            folded_prediction(name, [*own_kv, c.n_head_kv], [*widths, width]) if experts else None
        ),
        deviations=tuple(step_warnings(limits, where)),
    )


_AHEAD = "llama.cpp computes a prediction layer of attention and experts"
_NO_POSITIONS = harmless(
    "attention has no positions",
    "rope_theta partial_rotary_factor original_max_position_embeddings",
)
SETTINGS = Settings(
    read=(
        DECODER - {"rms_norm_eps", "hidden_act", "is_causal"} - {*NO_ROPE}
        | reads(_Own, LatentExperts, more="layers_block_type hybrid_override_pattern")
    ),
    harmless=NO_WINDOW
    | NO_ROPE
    | harmless("repeats another setting", "rms_norm_eps norm_eps expand")
    | harmless("used while training only", "time_step_max time_step_floor rescale_prenorm_residual")
    | harmless("of the first Mamba", "time_step_rank")
    | harmless(
        "how the model is computed",
        "chunk_size mamba_ssm_cache_dtype use_mamba_kernels num_logits_to_keep"
        " residual_in_fp32 moe_shared_expert_overlap",
    ),
    only=constant("relu2", "mlp_hidden_act")
    | constant("silu", "mamba_hidden_act")
    | constant(False, "use_bias mamba_proj_bias")
    | constant(True, "use_conv_bias")
    | {
        "num_nextn_predict_layers": Only((0, 1), "llama.cpp computes one prediction layer"),
        "mtp_layers_block_type": Only((["full_attention", "moe"], ["attention", "moe"]), _AHEAD),
        "mtp_hybrid_override_pattern": Only(("*E",), _AHEAD),
    },
)
"""The settings of a Nemotron-H."""

FAMILIES = {"NemotronHForCausalLM": Declared(nemotron_h, SETTINGS)}


def _layers_of(keys: FileKeys) -> dict[str, Any]:
    """Return the kinds of a GGUF's layers, which follow from their heads of K and widths."""
    wide = "moe" if keys.number("expert_count") else "mlp"
    layers = zip(
        keys.of_layers("attention.head_count_kv"),
        keys.of_layers("feed_forward_length"),
        strict=True,
    )
    return {
        "layers_block_type": [
            wide if width else "attention" if heads else "mamba" for heads, width in layers
        ],
        "moe_latent_size": keys.number("moe_latent_size") or None,
    }


GRAPHS = {
    "nemotron_h": GGUFGraph("NemotronHForCausalLM", layers=_layers_of),
    "nemotron_h_moe": GGUFGraph("NemotronHForCausalLM", layers=_layers_of),
}
