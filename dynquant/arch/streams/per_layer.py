"""Models with an embedding for each layer, whose last layers have no keys and values.

These are Gemma 3n and the small Gemma 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from dynquant.arch.base import Row, on
from dynquant.arch.decoder import MLP
from dynquant.keys import Keys, i32s, u32

_IN, _OUT = "model.layers.{}.", "blk.{}."
PER_LAYER = (
    Row("model.embed_tokens_per_layer.weight", "per_layer_token_embd.weight", "vocab per_layers"),
    Row(
        "model.per_layer_model_projection.weight",
        "per_layer_model_proj.weight",
        "per_layers hidden",
    ),
    Row("model.per_layer_projection_norm.weight", "per_layer_proj_norm.weight", "per_layer"),
)
IN_EACH_LAYER = (
    Row(_IN + "per_layer_input_gate.weight", _OUT + "inp_gate.weight", "per_layer hidden"),
    Row(_IN + "per_layer_projection.weight", _OUT + "proj.weight", "hidden per_layer"),
    Row(_IN + "post_per_layer_input_norm.weight", _OUT + "post_norm.weight", "hidden"),
)


def per_layer_sizes(width: int, n_layers: int) -> dict[str, int]:
    """Return the dimensions that the rows above name.

    width: weights of a token's embedding for one layer
    """
    return {"per_layer": width, "per_layers": width * n_layers}


def per_layer_keys(arch: str, width: int, n_shared: int) -> Keys:
    """Return the keys of both; zeros if a model has neither."""
    return {
        f"{arch}.attention.shared_kv_layers": u32(n_shared),
        f"{arch}.embedding_length_per_layer_input": u32(width),
    }


def mlp_rows(n_own: int, wide: range) -> tuple[Row, ...]:
    """Return the feed-forward rows, of twice the width (`double`) in the layers `wide`."""
    double = (replace(row, shape=row.shape.replace("ffn", "double")) for row in MLP)
    return (*on(range(n_own), MLP), *on(wide, double))


def width_keys(arch: str, width: int, n_layers: int, wide: range) -> Keys:
    """Return the key of the feed-forward width, if some layers have it twice."""
    if not wide:
        return {}
    widths = [width * (1 + (layer in wide)) for layer in range(n_layers)]
    return {f"{arch}.feed_forward_length": i32s(widths)}


_OF_KV = frozenset({"blk.{}.attn_k.weight", "blk.{}.attn_v.weight", "blk.{}.attn_k_norm.weight"})


def with_copied_keys(rows: Iterable[Row], slides: tuple[bool, ...], n_shared: int) -> Iterator[Row]:
    """Yield the rows of attention for a graph that needs keys and values in all layers.

    It does not use those of the last layers, and checkpoints may have none. They are copies of
    those that the layer uses.
    """
    first = len(slides) - n_shared
    for row in rows:
        if row.name not in _OF_KV:
            yield row
            continue
        yield from on(range(first), (row,))
        for windowed, place in ((True, first - 2), (False, first - 1)):
            layers = {i for i in range(first, len(slides)) if slides[i] == windowed}
            yield from on(layers, (replace(row, stored=row.stored.replace("{}", str(place))),))


def unused_by_shared(n_layers: int, n_shared: int) -> dict[str, str]:
    """Return patterns of tensors that layers without keys and values do not use.

    Published models store them. llama.cpp's converter writes them, but no graph reads them, and an
    imatrix has no importance for them.
    """
    if not n_shared:
        return {}
    layers = "|".join(map(str, range(n_layers - n_shared, n_layers)))
    return {
        rf"((model|language_model)\.)*layers\.({layers})\.self_attn\.[kv]_(proj|norm)\..*": (
            "llama.cpp computes the layer with the keys and values of an earlier one, as"
            " transformers does"
        )
    }


def shared_problems(slides: tuple[bool, ...], n_shared: int, where: str) -> Iterator[str]:
    """Yield a message unless layers share keys and values as llama.cpp does.

    In transformers a layer has those of the last layer of its kind that has some. llama.cpp
    takes the last of these layers for a full one, and the one before for one with a window.

    slides:   which layers have a window
    n_shared: the last layers, without keys and values
    """
    first = len(slides) - n_shared
    if first < 2:
        yield (
            f"{where}: num_kv_shared_layers is {n_shared} of {len(slides)} layers; llama.cpp needs"
            " at least two with keys and values"
        )
        return
    for windowed, place in ((True, first - 2), (False, first - 1)):
        if windowed in slides[first:] and slides[place] != windowed:
            kind, has = ("with", "none") if windowed else ("without", "one")
            yield (
                f"{where}: num_kv_shared_layers is {n_shared}; llama.cpp gives layers {kind} a"
                f" window the keys and values of layer {place}, which has {has} (layer_types)"
            )
