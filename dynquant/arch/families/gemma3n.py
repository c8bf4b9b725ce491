"""Gemma 3n (text): four streams of states (AltUp), low-rank residuals (LAuReL), sparse activations.

llama.cpp's graph has most sizes as constants, those of the published E2B and E4B.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import Any, cast

from dynquant.arch.attention.windows import layer_types, window_keys
from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, Natural, Positive, Truth, read_config
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    MLP,
    OUTPUT,
    OUTPUT_NORM,
    QK_NORMS,
    TIED,
    Config,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.families.gemma import NORMS_AROUND, check_causal, complete, ropes
from dynquant.arch.gguf_files.graph import FileKeys, GGUFGraph
from dynquant.arch.graph_limits import fixed
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import DECODER, Declared, Settings, harmless, reads
from dynquant.arch.streams.altup import ALTUP, RANK, SIZES, STACKS, STREAMS
from dynquant.arch.streams.per_layer import (
    IN_EACH_LAYER,
    PER_LAYER,
    per_layer_keys,
    per_layer_sizes,
    shared_problems,
    unused_by_shared,
    with_copied_keys,
)
from dynquant.arch.wrapped import Wrapped
from dynquant.errors import ArchitectureError
from dynquant.keys import f32, f32s, u32
from dynquant.transforms import padded

_IN_LAYERS = (*NORMS_AROUND, *MLP, *IN_EACH_LAYER, *ALTUP)
_ATTENTION = (*(row for row in ATTENTION if ".self_attn." in row.stored), *QK_NORMS)

_N_OWN_KV, _N_SPARSE, _SPARSITY = 20, 10, 0.95
_FIXED: dict[str, object] = {
    "hidden_size_per_layer_input": 256,
    "altup_num_inputs": STREAMS,
    "altup_active_idx": 0,
    "altup_correct_scale": True,
    "laurel_rank": RANK,
    "final_logit_softcapping": 30.0,
}
"""Constants of the graph, which reads no key of them."""

# transformers' defaults.
_DEFAULTS = {
    "vocab_size": 262400,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "sliding_window": 512,
}


@dataclass(frozen=True)
class _Gemma3n:
    vocab_size_per_layer_input: Count = 262144
    hidden_size_per_layer_input: Count = 256
    altup_active_idx: Natural = 0
    altup_correct_scale: Truth = True
    altup_num_inputs: Count = 4
    num_kv_shared_layers: Natural = 15
    laurel_rank: Count = 64
    final_logit_softcapping: Positive = 30.0
    activation_sparsity_pattern: tuple[float, ...] | None = None
    use_bidirectional_attention: Truth = False


def gemma3n(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe the language model of a Gemma 3n."""
    config = complete(_with_one_width(config, where), _DEFAULTS)
    c = read_decoder(config, where, activation=("gelu_pytorch_tanh",))
    own = read_config(_Gemma3n, config, where)
    check_causal(own.use_bidirectional_attention, where)
    n, n_shared = c.num_hidden_layers, own.num_kv_shared_layers
    slides = layer_types(config, n, 5, where)
    ArchitectureError.raise_any(
        [*_problems(c, own, where), *shared_problems(slides, n_shared, where)]
    )
    full, windowed = ropes(config)
    rope, local = (read_rope(settings, where, known=()) for settings in (full, windowed))
    width = own.hidden_size_per_layer_input
    quantile = NormalDist().inv_cdf(_SPARSITY)
    keys = {
        **decoder_keys("gemma3n", c, rope, c.n_per_head),
        "gemma3n.final_logit_softcapping": f32(own.final_logit_softcapping),
        "gemma3n.rope.freq_base_swa": f32(local.rope_theta),
        **per_layer_keys("gemma3n", width, n_shared),
        "gemma3n.altup.active_idx": u32(own.altup_active_idx),
        "gemma3n.altup.num_inputs": u32(own.altup_num_inputs),
        "gemma3n.activation_sparsity_scale": f32s(
            [quantile if layer < _N_SPARSE else float("-inf") for layer in range(n)]
        ),
        # With the period 1 no layer has a window: the key is always written, as by the converter.
        **window_keys("gemma3n", config, slides, 1, where),
    }
    return Architecture(
        name="gemma3n",
        keys=keys,
        rows=(
            *EMBEDDING,
            *_per_layer(c.vocab_size),
            *STACKS,
            *with_copied_keys(_ATTENTION, slides, n_shared),
            *_IN_LAYERS,
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes={
            **decoder_sizes(c),
            **per_layer_sizes(width, n),
            "table": own.vocab_size_per_layer_input,
            **SIZES,
        },
        n_layers=n,
        tied=TIED if c.tie_word_embeddings else None,
        ignored=IGNORED | unused_by_shared(n, n_shared),
        n_experts=STREAMS - 1,  # the matrices of a stack
    )


def _with_one_width(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return config.json with one intermediate_size, which may be a list of equal numbers."""
    stated: object = config.get("intermediate_size")
    if not isinstance(stated, list) or not stated:
        return dict(config)
    widths = cast("list[object]", stated)
    if any(width != widths[0] for width in widths):
        raise ArchitectureError(
            f"{where}: intermediate_size differs between layers; llama.cpp's gemma3n has one for"
            " all layers"
        )
    return {**config, "intermediate_size": widths[0]}


def _problems(c: Config, own: _Gemma3n, where: str) -> Iterator[str]:
    n = c.num_hidden_layers
    expected = {**_FIXED, "num_kv_shared_layers": max(0, n - _N_OWN_KV)}
    yield from fixed(own, expected, where)
    yield from fixed(c, {"attention_bias": False, "is_causal": True}, where)
    n_sparse = min(n, _N_SPARSE)
    default = [_SPARSITY if n > _N_SPARSE else 0.0] * n_sparse + [0.0] * (n - n_sparse)
    stated = own.activation_sparsity_pattern
    if list(default if stated is None else stated) != [_SPARSITY] * n_sparse + default[n_sparse:]:
        yield (
            f"{where}: activation_sparsity_pattern is not {_SPARSITY} for the first {n_sparse}"
            f" layers and 0 for {n - n_sparse} more, as llama.cpp computes"
        )
    if own.vocab_size_per_layer_input > c.vocab_size:
        yield (
            f"{where}: vocab_size_per_layer_input {own.vocab_size_per_layer_input} is more than"
            f" vocab_size {c.vocab_size}"
        )


def _per_layer(n_vocab: int) -> tuple[Row, ...]:
    """Return the rows of the embeddings for each layer: tokens beyond the table have its first."""
    table, *rest = PER_LAYER
    via = partial(padded, n_rows=n_vocab)
    return (replace(table, shape="table per_layers", via=via), *rest)


_GEMMA3N = Declared(
    gemma3n,
    Settings(
        read=DECODER
        | reads(_Gemma3n, more="rope_local_base_freq")
        | {"hidden_activation", "sliding_window", "layer_types"},
        harmless=harmless("used while training only", "altup_coef_clip"),
    ),
)
FAMILIES = {
    "Gemma3nForCausalLM": _GEMMA3N,
    "Gemma3nForConditionalGeneration": Wrapped(_GEMMA3N),
}


def _layers_of(keys: FileKeys) -> dict[str, Any]:
    """Return the layers of a GGUF that share keys and values, and those with sparse activations."""
    n = keys.n_layers
    return {
        "num_kv_shared_layers": max(0, n - 20),
        "activation_sparsity_pattern": [0.95] * min(n, 10) + [0.0] * (n - 10),
    }


GRAPHS = {
    "gemma3n": GGUFGraph(
        "Gemma3nForCausalLM", settings={"vocab_size_per_layer_input": 64}, layers=_layers_of
    ),
}
