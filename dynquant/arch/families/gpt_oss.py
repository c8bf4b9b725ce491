"""gpt-oss: an attention sink per head, windows in every other layer, experts with biases.

One tensor holds gate and up projections of all experts, their rows alternating. Checkpoints in
bfloat16 store each expert's matrix as [hidden, 2 * ffn], those in MXFP4 as [2 * ffn, hidden].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, ExpertsCount, Positive, read_config, without_nulls
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    O_BIAS,
    OUTPUT,
    OUTPUT_NORM,
    QKV_BIASES,
    Config,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.mixtures.experts import Routing, router_row, routing_keys, with_expert_count
from dynquant.arch.positions.rope import deviations, read_rope
from dynquant.arch.settings import DECODER, Declared, Settings, harmless, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import u32
from dynquant.tensors import TensorSource
from dynquant.transforms import elements_of_each, rows_of_each, transposed

NAME = "gpt-oss"
_IN, _OUT = "model.layers.{}.", "blk.{}."
_EXPERTS = _IN + "mlp.experts."

_RENAMED = {"blk.{}.ffn_norm.weight": "blk.{}.post_attention_norm.weight"}
_ATTENTION = (
    *(replace(row, name=_RENAMED.get(row.name, row.name)) for row in ATTENTION),
    *QKV_BIASES,
    *O_BIAS,
    Row(_IN + "self_attn.sinks", _OUT + "attn_sinks.weight", "heads"),
)
_ROUTER = (
    router_row(_IN + "mlp.router.weight"),
    Row(_IN + "mlp.router.bias", _OUT + "ffn_gate_inp.bias", "experts"),
)


@dataclass(frozen=True)
class _Config:
    """config.json's settings besides those of all decoders, with transformers' defaults."""

    num_experts: ExpertsCount
    num_experts_per_tok: Count
    sliding_window: Count = 128
    swiglu_alpha: Positive = 1.702
    swiglu_limit: Positive = 7.0
    layer_types: tuple[str, ...] | None = None


_DEFAULTS = {"attention_bias": True, "rms_norm_eps": 1e-5}
_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""transformers' defaults for a config.json without rope settings."""


def gpt_oss(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a gpt-oss, in bfloat16 or with experts stored as MXFP4."""
    present = without_nulls(config)
    if not present.get("rope_parameters") and not present.get("rope_scaling"):
        present["rope_parameters"] = _ROPE
    present = {"rope_theta": 150000.0, **_DEFAULTS, **present}
    c = read_decoder(present, where, head_dim=64)
    own = read_config(_Config, with_expert_count(present), where)
    ArchitectureError.raise_any(_problems(c, own, where))
    rope = read_rope(present, where, known=("yarn",), approximated=("truncate",))
    n_ffn = c.intermediate_size
    routing = Routing(own.num_experts, own.num_experts_per_tok, expert_ffn=n_ffn)
    return Architecture(
        name=NAME,
        keys=decoder_keys(NAME, c, rope, c.n_per_head)
        | routing_keys(NAME, routing)
        | {f"{NAME}.attention.sliding_window": u32(own.sliding_window)},
        rows=(
            *(*EMBEDDING, *_ATTENTION, *_ROUTER),
            *_experts(n_ffn, transpose=not _stored_as_mxfp4(config)),
            *(*OUTPUT_NORM, *OUTPUT),
        ),
        sizes={
            **decoder_sizes(c),
            "heads": c.num_attention_heads,
            "experts": own.num_experts,
            "expert_ffn": n_ffn,
            "expert_ffn_twice": 2 * n_ffn,
        },
        n_layers=c.num_hidden_layers,
        tied=None,
        ignored=IGNORED,
        n_experts=own.num_experts,
        deviations=deviations(rope, where),
    )


def _problems(c: Config, own: _Config, where: str) -> Iterator[str]:
    # In the graph alpha and limit are constants, biases and the output matrix are always read.
    for key, found, fixed in (
        ("attention_bias", c.attention_bias, True),
        ("tie_word_embeddings", c.tie_word_embeddings, False),
        ("swiglu_alpha", own.swiglu_alpha, 1.702),
        ("swiglu_limit", own.swiglu_limit, 7.0),
    ):
        if found != fixed:
            yield f"{where}: {key} is {found}; llama.cpp computes this family with {fixed}"
    kinds = ("sliding_attention", "full_attention")
    alternate = tuple(kinds[layer % 2] for layer in range(c.num_hidden_layers))
    if own.layer_types not in (None, alternate):
        yield (
            f"{where}: layer_types does not alternate between {kinds[0]!r} and {kinds[1]!r},"
            " beginning with the former, as llama.cpp's graph does"
        )


def _stored_as_mxfp4(config: Mapping[str, Any]) -> bool:
    quantized = config.get("quantization_config")
    if not isinstance(quantized, dict):
        return False
    return cast("dict[str, Any]", quantized).get("quant_method") == "mxfp4"


def _experts(n_ffn: int, *, transpose: bool) -> tuple[Row, ...]:
    """Return the rows of the experts' matrices, stored transposed or not, and of their biases.

    Of the alternating rows and biases, the gate has the first and up has the second.
    """
    into = "hidden expert_ffn_twice" if transpose else "expert_ffn_twice hidden"
    out = "expert_ffn hidden" if transpose else "hidden expert_ffn"
    weights: list[Row] = []
    biases: list[Row] = []
    for first, name in enumerate(("ffn_gate_exps", "ffn_up_exps")):
        half = partial(_alternate_rows, first=first, n=2 * n_ffn, transpose=transpose)
        of_bias = partial(elements_of_each, start=first, stop=2 * n_ffn, step=2)
        stored, target = _EXPERTS + "gate_up_proj", f"{_OUT}{name}"
        weights.append(Row(stored, f"{target}.weight", f"experts {into}", via=half))
        biases.append(
            Row(f"{stored}_bias", f"{target}.bias", "experts expert_ffn_twice", via=of_bias)
        )
    stored, target = _EXPERTS + "down_proj", _OUT + "ffn_down_exps"
    via = transposed if transpose else None
    weights.append(Row(stored, f"{target}.weight", f"experts {out}", via=via))
    biases.append(Row(f"{stored}_bias", f"{target}.bias", "experts hidden"))
    return (*weights, *biases)


def _alternate_rows(source: TensorSource, first: int, n: int, *, transpose: bool) -> TensorSource:
    """Return every second of each expert's n rows, from `first` on."""
    return rows_of_each(transposed(source) if transpose else source, first, n, 2)


FAMILIES = {
    "GptOssForCausalLM": Declared(
        gpt_oss,
        Settings(
            read=DECODER | reads(_Config, more="num_local_experts n_routed_experts"),
            harmless=harmless("repeats num_experts_per_tok", "experts_per_token")
            | harmless("the rope states it", "initial_context_length"),
        ),
    )
}
GRAPHS = {
    "gpt-oss": GGUFGraph("GptOssForCausalLM"),
}
