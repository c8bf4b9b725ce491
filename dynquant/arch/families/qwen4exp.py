"""Qwen3.8-Flash-Next: Qwen3.5 with hyper-connections, sparse attention and hashed n-grams.

Hyper-connections replace all layer norms: several residual streams, mixed before and after each
part of a layer. An indexer selects blocks of tokens for full attention. One layer adds an embedding
of the last tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, cast

from dynquant.arch.attention.linear import Linear, recurrent_of
from dynquant.arch.base import Architecture, on
from dynquant.arch.config import read_config
from dynquant.arch.families.qwen3_next import MIXTURE, hybrid
from dynquant.arch.families.qwen_moe import READ, read_experts
from dynquant.arch.gguf_files.graph import GATE_UP, QKV, FileKeys, GGUFGraph
from dynquant.arch.positions.sections import SECTIONS, section_keys, split_sections, unrotated_pairs
from dynquant.arch.settings import (
    DECODER,
    NO_WINDOW,
    Declared,
    Settings,
    constant,
    harmless,
    reads,
)
from dynquant.arch.streams.low_rank import INDEXER, LAST_MIXER, STREAMS, Streams
from dynquant.arch.streams.ngrams import Ngrams
from dynquant.arch.wrapped import Wrapped
from dynquant.errors import ArchitectureError
from dynquant.transforms import depthwise_kernels, plus_one

_SECTIONS = (11, 11, 10)
"""transformers' default."""

_OUT = "blk.{}."
_FROM_ONE = (
    *("hc_attn_norm", "hc_ffn_norm", "output_hc_norm", "indexer.q_norm", "indexer.k_norm"),
    *("ple_norm_key", "ple_norm_query", "ple_norm_conv"),
)
"""Norms that are stored minus one."""

_INDEXED = "indexed_attention"
_REPLACED = ("attn_norm.weight", "post_attention_norm.weight", "output_norm.weight")
"""Norms of Qwen3.5 in whose place are hyper-connections."""


def qwen4exp(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Qwen3.8-Flash-Next without its prediction layer, which llama.cpp does not have."""
    plain, sections = split_sections(config, where, _SECTIONS)
    if isinstance(found := plain.get("layer_types"), list | tuple):
        kinds = cast("Sequence[object]", found)
        # Published files name these layers as those of Qwen3.5.
        plain["layer_types"] = ["full_attention" if k == _INDEXED else k for k in kinds]
    shared = {"shared_expert_intermediate_size": 512, "norm_topk_prob": True, **plain}
    experts = read_experts(shared, where, norm_topk_prob=True)
    linear = read_config(Linear, plain, where)
    streams = read_config(Streams, plain, where)
    ngrams = read_config(Ngrams, plain, where)
    c = {**plain, "intermediate_size": experts.moe_intermediate_size}
    arch, layout = "qwen4exp", linear.by_purpose
    found = hybrid(arch, c, where, linear, layout, MIXTURE, experts)
    recurrent = linear.recurrent(found.n_layers)
    n_rotated = found.keys[f"{arch}.rope.dimension_count"].value
    assert isinstance(n_rotated, int)
    ArchitectureError.raise_any(
        chain(streams.problems(n_rotated, where), ngrams.problems(recurrent, where))
    )
    full_layers = [layer for layer, is_linear in enumerate(recurrent) if not is_linear]
    rows = (
        row
        for row in found.rows
        if row.name.removeprefix(_OUT) not in _REPLACED and row.layers != [found.n_layers]
    )
    return replace(
        found,
        keys={k: v for k, v in found.keys.items() if k != f"{arch}.feed_forward_length"}
        | streams.keys(arch, recurrent)
        | ngrams.keys(arch)
        | section_keys(arch, sections, n_rotated, where),
        rows=(
            *rows,
            *on(range(found.n_layers), STREAMS),
            *on(full_layers, INDEXER),
            *ngrams.rows(arch),
            *LAST_MIXER,
        ),
        sizes={**found.sizes, **streams.sizes, **ngrams.sizes},
        via={
            **found.via,
            **dict.fromkeys(_FROM_ONE, plus_one),
            **streams.via,
            "ple_conv1d": depthwise_kernels,
        },
        ignored={
            **found.ignored,
            r"(.*\.)?mtp\..*": "the prediction layer, which llama.cpp does not compute",
        },
        prediction=None,
        integers=ngrams.integers(arch),
        deviations=(*found.deviations, *unrotated_pairs(sections, n_rotated, where)),
    )


_QWEN4EXP = Wrapped(
    Declared(
        qwen4exp,
        Settings(
            read=DECODER | READ | reads(Linear, Ngrams, Streams),
            harmless={
                **NO_WINDOW,
                **harmless("llama.cpp's state is F32", "mamba_ssm_dtype"),
                **harmless("the checkpoint stores the constants made with it", "seed"),
                **harmless("llama.cpp counts them itself", "number_of_conv_states"),
                **harmless(
                    "the prediction layer is left out",
                    "mtp_num_hidden_layers mtp_use_dedicated_embeddings",
                ),
            },
            only=constant(True, "attn_output_gate"),
            of_rope=SECTIONS,
            layer_types=("full_attention", "linear_attention", _INDEXED),
        ),
    )
)
FAMILIES = {
    "Qwen4ExpForCausalLM": _QWEN4EXP,
    "Qwen4ExpForConditionalGeneration": _QWEN4EXP,
}


def _layers_of(keys: FileKeys) -> dict[str, Any]:
    """Return the kinds of a GGUF's layers, and which have embeddings of n-grams."""
    layers = keys.value("ple.layers")
    found = [i + 1 for i in layers if isinstance(i, int)] if isinstance(layers, tuple) else []
    return {**recurrent_of(keys), "ple_layer_ids": found}


GRAPHS = {
    "qwen4exp": GGUFGraph(
        "Qwen4ExpForCausalLM",
        settings={
            "rope_parameters": {"mrope_section": [1, 1, 1]},
            "output_gate_type": "sigmoid",
            "indexer_n_heads": 1,
            "indexer_head_dim": 32,
            "indexer_budget": 4,
            "indexer_compress_ratio": 4,
            "ngram_vocab_size_base": 8,
            "split_ngram_parts": 1,
            "eos_token_id": 0,
        },
        layers=_layers_of,
        fused=(QKV, GATE_UP),
    ),
}
