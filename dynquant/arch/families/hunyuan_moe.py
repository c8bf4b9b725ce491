"""Hunyuan A13B: experts beside a shared one, norms on the heads of Q and K after their rotation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from dynquant.arch.base import Architecture
from dynquant.arch.config import Count, ExpertsCount, Truth, read_config
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    OUTPUT,
    OUTPUT_NORM,
    TIED,
    Config,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.families.hunyuan import QK_NORMS, Stretch, stretched_keys
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import fixed
from dynquant.arch.mixtures.experts import (
    Routing,
    expert_rows,
    router_row,
    routing_keys,
    shared_rows,
)
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import (
    DECODER,
    NO_WINDOW,
    Declared,
    Only,
    Settings,
    constant,
    harmless,
    reads,
)
from dynquant.errors import ArchitectureError

_NAME = "hunyuan-moe"
_LAYER, _OUT = "model.layers.{}.", "blk.{}."
_BLOCK = _LAYER + "mlp."
_ROWS = (
    *ATTENTION,
    *QK_NORMS,
    router_row(_BLOCK + "gate.wg.weight"),
    *expert_rows(_BLOCK, gate="gate_proj", up="up_proj", down="down_proj"),
    *shared_rows(_BLOCK + "shared_mlp."),
)


@dataclass(frozen=True)
class _Own:
    """Settings besides those of all decoders; published files list them for each layer."""

    num_experts: ExpertsCount = 1
    moe_topk: Count = 1
    num_shared_expert: Count = 1
    moe_intermediate_size: Count | None = None
    norm_topk_prob: Truth = True


def hunyuan_moe(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Hunyuan A13B: a fixed `alpha` of its dynamic rope scaling becomes its base."""
    config = {"rms_norm_eps": 1e-5, **config}  # transformers' default
    c = read_decoder(config, where)
    rope = read_rope(config, where, known=("linear", "dynamic", "yarn"))
    own = read_config(_Own, _of_all_layers(config, where), where)
    ArchitectureError.raise_any(_problems(c, own, where))
    n_ffn = c.intermediate_size
    routing = Routing(own.num_experts, own.moe_topk, n_ffn, shared_ffn=n_ffn, n_shared=1)
    keys = stretched_keys(_NAME, c, rope, config, where) | routing_keys(_NAME, routing)
    return Architecture(
        name=_NAME,
        keys=keys,
        rows=(*EMBEDDING, *_ROWS, *OUTPUT_NORM, *OUTPUT),
        sizes={
            **decoder_sizes(c),
            "experts": own.num_experts,
            "expert_ffn": n_ffn,
            "shared_ffn": n_ffn,
        },
        n_layers=c.num_hidden_layers,
        tied=TIED if c.tie_word_embeddings else None,
        ignored=IGNORED,
        n_experts=own.num_experts,
    )


def _of_all_layers(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return config.json with a number in place of a list of equal numbers, one for each layer."""
    found = dict(config)
    for name in reads(_Own):
        value = config.get(name)
        if not isinstance(value, list):
            continue
        numbers = cast("list[object]", value)
        if not numbers or any(number != numbers[0] for number in numbers):
            raise ArchitectureError(
                f"{where}: {name} differs between layers; llama.cpp computes this family with one"
                " number for all"
            )
        found[name] = numbers[0]
    return found


def _problems(c: Config, own: _Own, where: str) -> Iterator[str]:
    yield from fixed(c, {"attention_bias": False, "mlp_bias": False}, where)
    yield from fixed(own, {"num_shared_expert": 1, "norm_topk_prob": True}, where)
    if own.moe_intermediate_size not in (None, c.intermediate_size):
        yield (
            f"{where}: moe_intermediate_size is {own.moe_intermediate_size}; llama.cpp computes"
            f" this family with intermediate_size, {c.intermediate_size}"
        )
    if c.n_per_head == 2:
        yield f"{where}: heads have 2 weights; this family's rotary embeddings need more"


FAMILIES = {
    "HunYuanMoEV1ForCausalLM": Declared(
        hunyuan_moe,
        Settings(
            read=DECODER | reads(_Own),
            harmless=NO_WINDOW
            | harmless(
                "repeats another setting",
                "attention_head_dim org_vocab_size pad_id num_local_experts",
            )
            | harmless("generation_config.json lists the ends of a turn", "eod_token_id")
            | harmless(
                "used while training only", "moe_drop_tokens moe_random_routing_dropped_token"
            )
            | harmless(
                "of parts and tasks that the model does not have",
                "add_classification_head cla_share_factor class_num dense_list im_end_id"
                " im_newline_id im_start_id mask_init_id pool_type text_end_id text_start_id"
                " kv_lora_rank q_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim"
                " routed_scaling_factor",
            ),
            only={
                **constant(False, "use_cla use_mla group_limited_greedy"),
                **constant(0, "moe_layer_num_skipped"),
                **constant(True, "use_qk_norm use_rotary_pos_emb use_mixed_mlp_moe"),
                "norm_type": Only(
                    ("rms", "hf_rms", "fused"), "llama.cpp computes this family with 'rms'"
                ),
            },
            of_rope=reads(Stretch),
        ),
    )
}
GRAPHS = {
    "hunyuan-moe": GGUFGraph("HunYuanMoEV1ForCausalLM"),
}
