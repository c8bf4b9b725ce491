"""Mamba, Falcon-Mamba and Mamba 2: models with only state space layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.base import Architecture, Row, on
from dynquant.arch.config import Count, LayersCount, Positive, Truth, read_config
from dynquant.arch.decoder import IGNORED, OUTPUT, TIED
from dynquant.arch.gguf_files.graph import SMALL, GGUFGraph
from dynquant.arch.settings import Declared, Settings, constant, harmless, reads
from dynquant.arch.states.mamba import Mamba1, Rank, mamba1_rows
from dynquant.arch.states.mamba2 import Mamba2, mamba2_rows, step_warnings
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, boolean, f32, u32

_LAYER = "model.layers.{}."
_EMBEDDING = (Row("model.embeddings.weight", "token_embd.weight", "vocab hidden"),)
_NORM = (Row(_LAYER + "norm.weight", "blk.{}.attn_norm.weight", "hidden"),)
_LAST_NORM = (Row("model.norm_f.weight", "output_norm.weight", "hidden"),)

CONTEXT = 1 << 20
"""The context length in the file. These models have none; llama.cpp's converter writes this."""


@dataclass(frozen=True)
class _Settings:
    """The settings of all, with transformers' defaults."""

    num_hidden_layers: LayersCount
    vocab_size: Count = 50280
    hidden_size: Count = 768
    state_size: Count = 16
    conv_kernel: Count = 4
    expand: Count = 2
    layer_norm_epsilon: Positive = 1e-5
    tie_word_embeddings: Truth = True


@dataclass(frozen=True)
class _First:
    """Settings of the first Mamba, with transformers' defaults."""

    time_step_rank: Rank = "auto"
    mixer_rms_eps: Positive = 1e-6
    intermediate_size: Count | None = None


@dataclass(frozen=True)
class _Second:
    """Settings of Mamba 2, with transformers' defaults."""

    num_heads: Count = 128
    head_dim: Count = 64
    n_groups: Count = 8
    time_step_limit: Any = None


def _whole(
    name: str, s: _Settings, layer: tuple[Row, ...], keys: Keys, sizes: Mapping[str, int]
) -> Architecture:
    """Return a model with these rows in each layer.

    keys, sizes: those of the layers
    """
    general = {
        "block_count": u32(s.num_hidden_layers),
        "context_length": u32(CONTEXT),
        "embedding_length": u32(s.hidden_size),
        "feed_forward_length": u32(0),
        "attention.head_count": u32(0),
        "attention.layer_norm_rms_epsilon": f32(s.layer_norm_epsilon),
        "vocab_size": u32(s.vocab_size),
    }
    return Architecture(
        name=name,
        keys={f"{name}.{key}": value for key, value in general.items()} | keys,
        rows=(*_EMBEDDING, *on(range(s.num_hidden_layers), (*_NORM, *layer)), *_LAST_NORM, *OUTPUT),
        sizes={"vocab": s.vocab_size, "hidden": s.hidden_size, **sizes},
        n_layers=s.num_hidden_layers,
        tied=(TIED[0], "model.embeddings.weight") if s.tie_word_embeddings else None,
        ignored=IGNORED,
    )


def mamba(config: Mapping[str, Any], where: str, *, norms: bool = False) -> Architecture:
    """Describe a Mamba.

    norms: whether time steps and the matrices of the state have norms, which have no factors
    """
    s = read_config(_Settings, config, where)
    first = read_config(_First, config, where)
    # Stated, it has precedence over `expand`, which is 16 in Falcon-Mamba-7B.
    n_inner = first.intermediate_size or s.expand * s.hidden_size
    if first.intermediate_size and n_inner != 2 * s.hidden_size:
        raise ArchitectureError(
            f"{where}: intermediate_size is {n_inner}; llama.cpp computes this family with twice"
            f" hidden_size {s.hidden_size}"
        )
    expand = n_inner // s.hidden_size
    m = Mamba1(s.hidden_size, expand, s.state_size, s.conv_kernel, first.time_step_rank)
    ArchitectureError.raise_any(m.problems(where, "expand", "conv_kernel"))
    keys = {**m.keys("mamba"), "mamba.ssm.dt_b_c_rms": boolean(norms)}
    return _whole("mamba", s, mamba1_rows(_LAYER + "mixer."), keys, m.sizes)


def falcon_mamba(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Falcon-Mamba: a Mamba with norms of the time steps and the state's matrices."""
    found = mamba(config, where, norms=True)
    inner = read_config(_First, config, where).mixer_rms_eps
    outer = read_config(_Settings, config, where).layer_norm_epsilon
    warning = (
        f"{where}: layer_norm_epsilon is {outer:g}, which llama.cpp uses in the norms of time steps"
        f" and of the state's matrices too; mixer_rms_eps is {inner:g}, so results differ slightly"
    )
    return replace(found, deviations=() if inner == outer else (warning,))


def mamba2(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Mamba 2."""
    # transformers' defaults, which differ from those of the first Mamba.
    sizes = {"vocab_size": 32768, "hidden_size": 4096, "state_size": 128}
    s = read_config(_Settings, {**sizes, "tie_word_embeddings": False, **config}, where)
    second = read_config(_Second, config, where)
    m = Mamba2(second.num_heads, second.head_dim, second.n_groups, s.state_size, s.conv_kernel)
    problems = [*m.problems(where, "num_heads", "n_groups", "conv_kernel")]
    if m.n_inner != s.expand * s.hidden_size:
        problems.append(
            f"{where}: num_heads {second.num_heads} and head_dim {second.head_dim} do not make up"
            f" expand {s.expand} times hidden_size {s.hidden_size}"
        )
    ArchitectureError.raise_any(problems)
    found = _whole("mamba2", s, mamba2_rows(_LAYER + "mixer."), m.keys("mamba2"), m.sizes)
    limits = {"time_step_limit": second.time_step_limit}
    return replace(found, via=m.via, deviations=tuple(step_warnings(limits, where)))


_HARMLESS = (
    harmless(
        "used while training only",
        "time_step_scale time_step_min time_step_max time_step_init_scheme time_step_floor"
        " rescale_prenorm_residual",
    )
    | harmless(
        "how the model is computed",
        "residual_in_fp32 use_mambapy use_falcon_mambapy use_associative_scan chunk_size"
        " fused_add_norm",
    )
    | harmless("the model's own code does not read it", "norm_before_gate ssm_cfg")
    | harmless("how the tokens were padded", "pad_vocab_size_multiple")
    | harmless("repeats another setting", "intermediate_size d_inner d_model n_layer")
)
_ONLY = (
    constant(False, "use_bias")
    | constant(True, "use_conv_bias rms_norm")
    | constant("silu", "hidden_act")
)
_FIRST = Settings(
    reads(_Settings, _First),
    {name: reason for name, reason in _HARMLESS.items() if name != "intermediate_size"},
    _ONLY,
)
FAMILIES = {
    "MambaForCausalLM": Declared(
        mamba,
        replace(_FIRST, read=_FIRST.read - {"mixer_rms_eps"}),
    ),
    "FalconMambaForCausalLM": Declared(falcon_mamba, _FIRST),
    "Mamba2ForCausalLM": Declared(
        mamba2,
        Settings(
            reads(_Settings, _Second),
            _HARMLESS | harmless("of the first Mamba", "time_step_rank"),
            _ONLY,
        ),
    ),
}
GRAPHS = {
    "mamba": GGUFGraph("MambaForCausalLM", settings={"intermediate_size": 2 * SMALL}),
    "mamba2": GGUFGraph("Mamba2ForCausalLM", settings={"num_heads": 8, "head_dim": 16}),
}
