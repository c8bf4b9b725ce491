"""Qwen3.8-Flash-Next: Qwen3.5 with hyper-connections, sparse attention and hashed n-grams.

Hyper-connections replace all layer norms: several residual streams, mixed before and after each
part of a layer. An indexer selects blocks of tokens for full attention. One layer adds an embedding
of the last tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, cast

from dynquant.arch.base import Architecture, Row, on
from dynquant.arch.config import Count, Natural, read_config
from dynquant.arch.families.qwen3_next import MIXTURE, hybrid
from dynquant.arch.families.qwen_moe import READ, read_experts
from dynquant.arch.graph_limits import fixed
from dynquant.arch.linear_attention import Linear
from dynquant.arch.ngrams import Ngrams
from dynquant.arch.sections import SECTIONS, section_keys, split_sections, unrotated_pairs
from dynquant.arch.settings import (
    DECODER,
    NO_WINDOW,
    Declared,
    Settings,
    constant,
    harmless,
    reads,
)
from dynquant.arch.wrapped import Wrapped
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, i32s, u32
from dynquant.transforms import depthwise_kernels, parts_of_groups, plus_one

_SECTIONS = (11, 11, 10)
"""transformers' default."""

_IN, _OUT = "model.layers.{}.", "blk.{}."
_MIXER = {
    "hc_norm": ("norm", "streams"),
    "input_mix_weight_down": ("down", "rank streams"),
    "input_mix_weight_up": ("up", "streams rank"),
    "block_inject_weight": ("inject", "n_streams streams"),
}
_STREAMS = tuple(
    Row(f"{_IN}{place}_hyper_connection.{stored}.weight", f"{_OUT}hc_{part}_{name}.weight", shape)
    for place, part in (("attn", "attn"), ("mlp", "ffn"))
    for stored, (name, shape) in _MIXER.items()
)
_LAST = tuple(
    Row(f"model.hyper_connection_mixer.{stored}.weight", f"output_hc_{name}.weight", shape)
    for stored, (name, shape) in _MIXER.items()
    if name != "inject"
)
_INDEXER = (
    Row(
        _IN + "self_attn.indexer.index_qk_proj.weight",
        _OUT + "indexer.q_proj.weight",
        "index_qk hidden",
    ),
    Row(
        _IN + "self_attn.indexer.index_qk_proj.weight",
        _OUT + "indexer.k_proj.weight",
        "index_qk hidden",
    ),
    Row(_IN + "self_attn.indexer.q_layernorm.weight", _OUT + "indexer.q_norm.weight", "index_head"),
    Row(_IN + "self_attn.indexer.k_layernorm.weight", _OUT + "indexer.k_norm.weight", "index_head"),
)
_FROM_ONE = (
    *("hc_attn_norm", "hc_ffn_norm", "output_hc_norm", "indexer.q_norm", "indexer.k_norm"),
    *("ple_norm_key", "ple_norm_query", "ple_norm_conv"),
)
"""Norms that are stored minus one."""

_INDEXED = "indexed_attention"
_REPLACED = ("attn_norm.weight", "post_attention_norm.weight", "output_norm.weight")
"""Norms of Qwen3.5 in whose place are hyper-connections."""

_MAX_RATIO = 64
"""llama.cpp's limit on the tokens of a block."""


@dataclass(frozen=True)
class _Streams:
    hidden_size: Count
    indexer_n_heads: Count
    indexer_head_dim: Count
    indexer_budget: Count
    indexer_compress_ratio: Count
    indexer_kv_heads: Count = 1
    hc_count: Count = 4
    hc_lowrank: Count = 320
    hidden_act: str = "silu"
    output_gate_type: str | None = None
    mtp_num_hidden_layers: Natural = 0

    def problems(self, n_rotated: int, where: str) -> Iterator[str]:
        """Yield a message for each setting that llama.cpp's graph cannot compute."""
        yield from fixed(self, {"indexer_kv_heads": 1}, where)
        gate = self.output_gate_type or self.hidden_act
        if gate != "sigmoid":
            yield (
                f"{where}: output_gate_type is {gate!r} (by default hidden_act); llama.cpp computes"
                " this family with 'sigmoid'"
            )
        if self.hc_count < 2:
            yield f"{where}: hc_count is {self.hc_count}; llama.cpp needs at least two streams"
        if self.indexer_budget % self.indexer_compress_ratio:
            yield (
                f"{where}: indexer_budget {self.indexer_budget} is not a multiple of"
                f" indexer_compress_ratio {self.indexer_compress_ratio}"
            )
        if self.indexer_compress_ratio > _MAX_RATIO:
            yield (
                f"{where}: indexer_compress_ratio is {self.indexer_compress_ratio}; llama.cpp has"
                f" at most {_MAX_RATIO}"
            )
        if n_rotated > self.indexer_head_dim:
            yield (
                f"{where}: heads have {n_rotated} rotated weights, but indexer_head_dim is"
                f" {self.indexer_head_dim}"
            )

    def keys(self, arch: str, recurrent: list[bool]) -> Keys:
        """Return the keys of hyper-connections and of the indexer."""
        counts = {
            "hyper_connection.count": self.hc_count,
            "hyper_connection.low_rank": self.hc_lowrank,
            "attention.indexer.head_count": self.indexer_n_heads,
            "attention.indexer.key_length": self.indexer_head_dim,
            "attention.indexer.top_k": self.indexer_budget,
        }
        ratios = [0 if r else self.indexer_compress_ratio for r in recurrent]
        return {f"{arch}.{name}": u32(value) for name, value in counts.items()} | {
            f"{arch}.attention.compress_ratios": i32s(ratios)
        }

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that the rows name."""
        return {
            "streams": self.hc_count * self.hidden_size,
            "n_streams": self.hc_count,
            "rank": self.hc_lowrank,
            "index_qk": (self.indexer_n_heads + 1) * self.indexer_head_dim,
            "index_head": self.indexer_head_dim,
        }


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
    streams = read_config(_Streams, plain, where)
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
    n_queries = streams.indexer_n_heads * streams.indexer_head_dim
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
            *on(range(found.n_layers), _STREAMS),
            *on(full_layers, _INDEXER),
            *ngrams.rows(arch),
            *_LAST,
        ),
        sizes={**found.sizes, **streams.sizes, **ngrams.sizes},
        via={
            **found.via,
            **dict.fromkeys(_FROM_ONE, plus_one),
            "indexer.q_proj": partial(parts_of_groups, n_groups=1, parts=((0, n_queries),)),
            "indexer.k_proj": partial(
                parts_of_groups,
                n_groups=1,
                parts=((n_queries, n_queries + streams.indexer_head_dim),),
            ),
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
            read=DECODER | READ | reads(Linear, Ngrams, _Streams),
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
