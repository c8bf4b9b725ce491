"""Hunyuan, dense: norms on the heads of Q and K after their rotation, and a stretched rope base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.base import Architecture, ModelTensor, Row
from dynquant.arch.config import Positive, read_config
from dynquant.arch.decoder import (
    IGNORED,
    TIED,
    WEIGHTS,
    Config,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import fixed
from dynquant.arch.positions.rope import Rope, llama3_factors, read_rope, rope_settings
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
from dynquant.keys import Keys, u32
from dynquant.tensors import Computed

_NAME = "hunyuan-dense"
_IN, _OUT = "model.layers.{}.self_attn.", "blk.{}."
QK_NORMS = (
    Row(_IN + "query_layernorm.weight", _OUT + "attn_q_norm.weight", "head"),
    Row(_IN + "key_layernorm.weight", _OUT + "attn_k_norm.weight", "head"),
)

_STATED, _CONTEXT = 32768, 262144
"""Published models with `alpha` state the first as max_position_embeddings, and are made for the
second, as llama.cpp's converter says."""


@dataclass(frozen=True)
class Stretch:
    """How much the longest wavelength grows, in the rope settings."""

    alpha: Positive | None = None


def hunyuan(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a dense Hunyuan: a fixed `alpha` of its dynamic rope scaling becomes its base."""
    c = read_decoder(config, where)
    rope = read_rope(config, where, known=("linear", "dynamic", "yarn", "llama3"))
    ArchitectureError.raise_any(_problems(c, where))
    extra: tuple[ModelTensor, ...] = ()
    if rope.rope_type == "llama3":
        extra = (ModelTensor("rope_freqs.weight", Computed(llama3_factors(rope, c.n_per_head))),)
    return Architecture(
        name=_NAME,
        keys=stretched_keys(_NAME, c, rope, config, where),
        rows=WEIGHTS + QK_NORMS,
        sizes=decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=TIED if c.tie_word_embeddings else None,
        extra=extra,
        ignored=IGNORED,
    )


def stretched_keys(name: str, c: Config, rope: Rope, config: Mapping[str, Any], where: str) -> Keys:
    """Return the decoder's keys; `alpha` stretches the longest wavelength by that factor."""
    alpha = read_config(Stretch, rope_settings(config), where).alpha
    if alpha is None or rope.rope_type != "dynamic":
        return decoder_keys(name, c, rope, c.n_per_head)
    base = rope.rope_theta * alpha ** (c.n_per_head / (c.n_per_head - 2))
    keys = decoder_keys(name, c, replace(rope, rope_theta=base), c.n_per_head)
    if c.max_position_embeddings == _STATED:
        keys[f"{name}.context_length"] = u32(_CONTEXT)
    return keys


def _problems(c: Config, where: str) -> Iterator[str]:
    yield from fixed(c, {"attention_bias": False, "mlp_bias": False}, where)
    if c.n_per_head == 2:
        yield f"{where}: heads have 2 weights; this family's rotary embeddings need more"


FAMILIES = {
    "HunYuanDenseV1ForCausalLM": Declared(
        hunyuan,
        Settings(
            read=DECODER,
            harmless=NO_WINDOW
            | harmless("repeats another setting", "attention_head_dim org_vocab_size pad_id")
            | harmless("generation_config.json lists the ends of a turn", "eod_token_id")
            | harmless(
                "of parts and tasks that the model does not have",
                "add_classification_head cla_share_factor class_num dense_list im_end_id"
                " im_newline_id im_start_id mask_init_id pool_type text_end_id text_start_id",
            ),
            only=constant(False, "use_cla")
            | constant(True, "use_qk_norm use_rotary_pos_emb")
            | {"norm_type": Only(("rms", "hf_rms"), "llama.cpp computes this family with 'rms'")},
            of_rope=reads(Stretch),
        ),
    )
}
GRAPHS = {
    "hunyuan-dense": GGUFGraph("HunYuanDenseV1ForCausalLM"),
}
