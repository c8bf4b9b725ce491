"""DeepSeek-OCR's encoders: SAM, and after it CLIP, or in DeepSeek-OCR-2 a Qwen2 with queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, LayersCount, read_config
from dynquant.arch.settings import Settings, constant, harmless
from dynquant.arch.towers import sam
from dynquant.arch.towers.processor import contradictions
from dynquant.arch.towers.sam import Sam
from dynquant.arch.towers.vision import GELU, OUT, Vision, biased, vision_keys
from dynquant.arch.towers.whole import CLIP, Tower, Whole
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, u32
from dynquant.tensors import TensorSource
from dynquant.transforms import Reshaped

_CLIP, _QWEN, _SAM = "clip-l-14-224", "qwen2-0-5b", "sam_vit_b"
_SEES = "model.vision_model."
_LAYER = _SEES + "transformer.layers.{}."
_QUERIES = "model.qwen2_model."
_QUERY_LAYER = _QUERIES + "model.model.layers.{}."
_LEAST_TILES = 2


@dataclass(frozen=True)
class _Clip:
    width: Count
    layers: LayersCount
    heads: Count
    image_size: Count = 224
    patch_size: Count = 14


@dataclass(frozen=True)
class _Width:
    dim: Count


@dataclass(frozen=True)
class _Qwen:
    """What the model's own code fixes, unless these settings state it."""

    layers: LayersCount = 24
    num_attention_heads: Count = 14
    intermediate_size: Count = 4864


_KV_HEADS = 2


def _settings(config: Mapping[str, Any], name: str, where: str) -> tuple[dict[str, Any], str]:
    """Return the settings of one encoder and their place."""
    widths = config.get("width")
    found: object = cast("dict[str, Any]", widths).get(name) if isinstance(widths, dict) else None
    if not isinstance(found, dict):
        raise ArchitectureError(f"{where}: width: has no {name}; download config.json again")
    return cast("dict[str, Any]", found), f"{where}: width.{name}"


def deepseekocr(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the encoders of a DeepSeek-OCR."""
    where = f"{whole.where}: vision_config"
    first, second = _settings(config, _SAM, where), _settings(config, _CLIP, where)
    seen, own = read_config(Sam, *first), read_config(_Clip, *second)
    if seen.downsample_channels[1] != own.width:
        raise ArchitectureError(
            f"{first[1]}: downsample_channels ends with {seen.downsample_channels[1]}, but CLIP has"
            f" width {own.width}; take both from one model"
        )
    v = _vision(own.width, 4 * own.width, own.layers, own.heads, 1e-5)
    ArchitectureError.raise_any(_problems(seen, first[1], whole))
    side = own.image_size // own.patch_size
    return Architecture(
        name=CLIP,
        keys=vision_keys(v, whole, "deepseekocr") | GELU | sam.keys(seen) | _tiles(9),
        rows=(*_clip(), *sam.rows(seen), *_joins("both"), _NEWLINE),
        sizes=sam.sizes(seen)
        | {
            "hidden": own.width,
            "last": own.width,
            "three_hidden": 3 * own.width,
            "both": 2 * own.width,
            "ffn": 4 * own.width,
            "positions": side * side + 1,
            "text": whole.n_text,
        },
        n_layers=own.layers,
        tied=None,
        ignored={
            r".*vision_model\.embeddings\.patch_embedding\.weight": "SAM sees the patches instead",
            r".*\.position_ids": "numbers from zero on, which need no tensor",
        },
        deviations=tuple(_warnings(whole, 640)),
    )


def deepseekocr2(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the encoders of a DeepSeek-OCR-2."""
    where = f"{whole.where}: vision_config"
    first, second = _settings(config, _SAM, where), _settings(config, _QWEN, where)
    seen, width = read_config(Sam, *first), read_config(_Width, *second).dim
    own = read_config(_Qwen, config, where)
    v = _vision(width, own.intermediate_size, own.layers, own.num_attention_heads, 1e-6)
    ArchitectureError.raise_any(_problems(seen, first[1], whole))
    return Architecture(
        name=CLIP,
        keys=vision_keys(v, whole, "deepseekocr2")
        | GELU
        | sam.keys(seen)
        | _tiles(6)
        | {"clip.vision.attention.head_count_kv": u32(_KV_HEADS)},
        rows=(*_qwen(), *sam.rows(seen), *_joins("hidden")),
        sizes=sam.sizes(seen)
        | {
            "hidden": width,
            "last": width,
            "kv": _KV_HEADS * (width // own.num_attention_heads),
            "ffn": own.intermediate_size,
            "few": 144,
            "many": 256,
            "text": whole.n_text,
        },
        n_layers=own.layers,
        tied=None,
        deviations=tuple(_warnings(whole, 768)),
    )


def _problems(seen: Sam, where: str, whole: Whole) -> Iterator[str]:
    yield from sam.problems(seen, where)
    yield from contradictions(whole, patch_size=sam.PATCH)


def _vision(width: int, ffn: int, layers: int, heads: int, epsilon: float) -> Vision:
    return Vision(
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=sam.SIZE,
        patch_size=sam.PATCH,
        layer_norm_eps=epsilon,
    )


def _tiles(most: int) -> Keys:
    return {
        "clip.vision.preproc_min_tiles": u32(_LEAST_TILES),
        "clip.vision.preproc_max_tiles": u32(most),
    }


def _warnings(whole: Whole, tile: int) -> Iterator[str]:
    yield (
        f"{whole.folder}: pictures larger than {tile} pixels are also seen in tiles; llama.cpp"
        " interpolates the learned positions of these in another way than the model's own code, so"
        " their embeddings differ"
    )


def _one_row(source: TensorSource) -> TensorSource:
    return Reshaped(source, (1, *source.shape))


_NEWLINE = Row("model.image_newline", "v.image_newline", "text")


def _joins(width: str) -> tuple[Row, ...]:
    return (
        Row("model.view_seperator", "v.view_seperator", "text", via=_one_row),
        *biased("model.projector.layers", "mm.model.fc", f"text {width}"),
    )


def _clip() -> tuple[Row, ...]:
    return (
        Row(_SEES + "embeddings.class_embedding", "v.class_embd", "hidden"),
        Row(
            _SEES + "embeddings.position_embedding.weight",
            "v.position_embd.weight",
            "positions hidden",
        ),
        *biased(_SEES + "pre_layrnorm", "v.pre_ln", "hidden"),
        *biased(_LAYER + "layer_norm1", OUT + "ln1", "hidden"),
        *biased(_LAYER + "self_attn.qkv_proj", OUT + "attn_qkv", "three_hidden hidden"),
        *biased(_LAYER + "self_attn.out_proj", OUT + "attn_out", "hidden hidden"),
        *biased(_LAYER + "layer_norm2", OUT + "ln2", "hidden"),
        *biased(_LAYER + "mlp.fc1", OUT + "ffn_up", "ffn hidden"),
        *biased(_LAYER + "mlp.fc2", OUT + "ffn_down", "hidden ffn"),
    )


def _qwen() -> tuple[Row, ...]:
    attention, mlp = _QUERY_LAYER + "self_attn.", _QUERY_LAYER + "mlp."
    return (
        Row(_QUERIES + "query_768.weight", "v.resample_query_768.weight", "few hidden"),
        Row(_QUERIES + "query_1024.weight", "v.resample_query_1024.weight", "many hidden"),
        Row(_QUERY_LAYER + "input_layernorm.weight", OUT + "ln1.weight", "hidden"),
        *biased(attention + "q_proj", OUT + "attn_q", "hidden hidden"),
        *biased(attention + "k_proj", OUT + "attn_k", "kv hidden"),
        *biased(attention + "v_proj", OUT + "attn_v", "kv hidden"),
        Row(attention + "o_proj.weight", OUT + "attn_out.weight", "hidden hidden"),
        Row(_QUERY_LAYER + "post_attention_layernorm.weight", OUT + "ln2.weight", "hidden"),
        Row(mlp + "gate_proj.weight", OUT + "ffn_gate.weight", "ffn hidden"),
        Row(mlp + "up_proj.weight", OUT + "ffn_up.weight", "ffn hidden"),
        Row(mlp + "down_proj.weight", OUT + "ffn_down.weight", "hidden ffn"),
        Row(_QUERIES + "model.model.norm.weight", "v.post_ln.weight", "hidden"),
    )


_READ = frozenset({"width", "layers", "num_attention_heads", "intermediate_size"})
_SETTINGS = Settings(
    read=_READ,
    harmless=harmless("the encoders' own settings, in width, state it", "mlp_ratio model_name"),
    only=constant(sam.SIZE, "image_size") | constant(sam.PATCH, "patch_size"),
)
_JOINS = r"projector|view_seperator"
PROJECTORS = {
    "DeepseekOCRForCausalLM": (
        Tower(
            deepseekocr,
            rf"(vision_model|sam_model|image_newline|{_JOINS})(\.|$)",
            _SETTINGS,
        ),
    ),
    "DeepseekOCR2ForCausalLM": (
        Tower(deepseekocr2, rf"(qwen2_model|sam_model|{_JOINS})(\.|$)", _SETTINGS),
    ),
}
