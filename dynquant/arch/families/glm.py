"""GLM-4: part of each head is rotated, in adjacent pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dynquant.arch.base import Architecture, Row, on
from dynquant.arch.config import AheadCount, read_config
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    OUTPUT,
    OUTPUT_NORM,
    QKV_BIASES,
    TIED,
    decoder_sizes,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.positions.partial_rotation import partial_keys, read_partial
from dynquant.arch.positions.sections import SECTIONS, section_keys, split_sections
from dynquant.arch.prediction import prediction_of, prediction_rows
from dynquant.arch.settings import DECODER, NO_WINDOW, Declared, Settings, harmless, reads
from dynquant.arch.wrapped import Wrapped
from dynquant.errors import ArchitectureError
from dynquant.transforms import half_split_heads

_LAYER, _OUT = "model.layers.{}.", "blk.{}."
_FUSED_MLP = (
    # Gate rows before up rows; llama.cpp's graph splits the product.
    Row(_LAYER + "mlp.gate_up_proj.weight", _OUT + "ffn_up.weight", "gate_up hidden"),
    Row(_LAYER + "mlp.down_proj.weight", _OUT + "ffn_down.weight", "hidden ffn"),
)
_POST_NORMS = (
    Row(_LAYER + "post_self_attn_layernorm.weight", _OUT + "post_attention_norm.weight", "hidden"),
    Row(_LAYER + "post_mlp_layernorm.weight", _OUT + "post_ffw_norm.weight", "hidden"),
)


@dataclass(frozen=True)
class _Ahead:
    num_nextn_predict_layers: AheadCount = 0


def _dense(
    arch: str,
    config: Mapping[str, Any],
    where: str,
    norms: tuple[Row, ...],
    head_dim: int | None = 128,
    n_ahead: int = 0,
) -> Architecture:
    # transformers' defaults: a bias, and heads of 128 weights.
    c, rope = read_partial({"attention_bias": True, **config}, where, head_dim, partial=0.5)
    biases = QKV_BIASES if c.attention_bias else ()
    layer = (*ATTENTION, *biases, *norms, *_FUSED_MLP)
    every = range(c.num_hidden_layers + n_ahead)
    ahead = every[c.num_hidden_layers :]
    return Architecture(
        name=arch,
        keys=partial_keys(arch, c, rope),
        rows=(*EMBEDDING, *on(every, layer), *prediction_rows(ahead), *OUTPUT_NORM, *OUTPUT),
        sizes={
            **decoder_sizes(c),
            "gate_up": 2 * c.intermediate_size,
            "hidden_twice": 2 * c.hidden_size,
        },
        n_layers=c.num_hidden_layers,
        tied=TIED if c.tie_word_embeddings else None,
        ignored=IGNORED,
        prediction=prediction_of(arch, ahead),
    )


def glm(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a GLM-4 of 2024, which has ChatGLM's graph in llama.cpp."""
    found = _dense("chatglm", config, where, norms=())
    if found.sizes["q"] != found.sizes["hidden"]:
        raise ArchitectureError(
            f"{where}: num_attention_heads times head_dim is {found.sizes['q']}, not hidden_size"
            f" {found.sizes['hidden']}, as llama.cpp's chatglm assumes"
        )
    return found


def glm4(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a GLM-4 of 2025 (0414): norms also after attention and MLP."""
    return _dense("glm4", config, where, norms=_POST_NORMS)


def glm4v(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe the language model of a GLM-4V: a GLM-4 with rotary sections.

    llama.cpp rotates pairs with sections in the half-split order, so that Q and K are reordered.
    """
    return _sectioned(config, where)


def glm_ocr(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe the language model of GLM-OCR: as GLM-4V's, with a layer for multi-token prediction.

    Its class has no biases, whatever attention_bias says.
    """
    n_ahead = read_config(_Ahead, config, where).num_nextn_predict_layers
    return _sectioned({**config, "attention_bias": False}, where, n_ahead)


def _sectioned(config: Mapping[str, Any], where: str, n_ahead: int = 0) -> Architecture:
    plain, sections = split_sections(config, where, (8, 12, 12))
    found = _dense("glm4", plain, where, _POST_NORMS, head_dim=None, n_ahead=n_ahead)
    head, n_q, n_kv = (found.sizes[name] for name in ("head", "q", "kv"))
    n_rotated = found.keys["glm4.rope.dimension_count"].value
    assert isinstance(n_rotated, int)
    return replace(
        found,
        keys=found.keys | section_keys("glm4", sections, n_rotated, where),
        via={
            "attn_q": partial(half_split_heads, n_head=n_q // head, n_rotated=n_rotated),
            "attn_k": partial(half_split_heads, n_head=n_kv // head, n_rotated=n_rotated),
        },
    )


_SETTINGS = Settings(read=DECODER, harmless=NO_WINDOW)
_GLM4V = Wrapped(Declared(glm4v, replace(_SETTINGS, of_rope=SECTIONS)))
_GLM_OCR = Settings(
    read=(DECODER - {"attention_bias"}) | reads(_Ahead),
    harmless=NO_WINDOW | harmless("its class has no biases", "attention_bias"),
    of_rope=SECTIONS,
)
FAMILIES = {
    "GlmForCausalLM": Declared(glm, _SETTINGS),
    "Glm4ForCausalLM": Declared(glm4, _SETTINGS),
    "Glm4vForConditionalGeneration": _GLM4V,
    "Glm46VForConditionalGeneration": _GLM4V,
    "GlmOcrForConditionalGeneration": Wrapped(Declared(glm_ocr, _GLM_OCR)),
}
GRAPHS = {
    "chatglm": GGUFGraph("GlmForCausalLM"),
    "glm4": GGUFGraph("Glm4ForCausalLM"),
}
