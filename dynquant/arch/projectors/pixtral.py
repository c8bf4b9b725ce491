"""Pixtral and Mistral 3: pictures of any size, with a mark after each row of patches.

Mistral Small 3.1 and 3.2, Magistral, Devstral and Ministral 3 merge patches; Pixtral 12B does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from dynquant.arch.base import Architecture
from dynquant.arch.config import read_config
from dynquant.arch.towers import tokens
from dynquant.arch.towers.limits import other_limit
from dynquant.arch.towers.pixtral import SETTINGS, Joined, encoder, longest_edge, merging
from dynquant.arch.towers.whole import Tower, Whole
from dynquant.untrusted import shown

_MOST_TOKENS = 1024
"""llama.cpp's limit of tokens for a picture."""


def _choice_problems(config: Mapping[str, Any], where: str) -> Iterator[str]:
    """Yield messages if other results than those of the last layer, of all patches, are used."""
    layer = config.get("vision_feature_layer")
    if layer not in (None, -1, [-1]):
        yield f"{where}: vision_feature_layer is {shown(layer)}; llama.cpp uses the last layer, -1"
    strategy = config.get("vision_feature_select_strategy")
    if strategy not in (None, "full"):
        yield (
            f"{where}: vision_feature_select_strategy is {shown(strategy)}; llama.cpp uses all"
            " patches, 'full'"
        )


def _marked(found: Architecture, whole: Whole, patch: int) -> Architecture:
    """Add the embedding of the mark after a row of patches, and warn of pictures too large.

    patch: pixels of a side that become one token
    """
    break_id = tokens.token_id("[IMG_BREAK]", whole)
    edge = longest_edge(whole, found.sizes["picture"])
    most = (-(-edge // patch)) ** 2
    where = f"{whole.folder}: pictures of at most {edge} pixels of a side"
    return replace(
        found,
        rows=(*found.rows, tokens.embedding_row(break_id, "v.token_embd.img_break")),
        deviations=(*found.deviations, *other_limit(most, _MOST_TOKENS, where)),
    )


def mistral3(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a Mistral 3, whose patches are merged."""
    joined = read_config(Joined, whole.config, whole.where)
    problems = _choice_problems(whole.config, whole.where)
    found = merging(encoder(config, whole, joined, "pixtral", problems), whole, joined)
    return _marked(found, whole, found.sizes["patch"] * joined.spatial_merge_size)


def pixtral(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a Pixtral in the class of LLaVA."""
    stated = {"multimodal_projector_bias": True, **whole.config, "spatial_merge_size": 1}
    of_class = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    problems = _choice_problems({**of_class, **whole.config}, whole.where)
    joined = read_config(Joined, stated, whole.where)
    found = encoder(config, whole, joined, "pixtral", problems)
    return _marked(found, whole, found.sizes["patch"])


def _tower(describe: Callable[[Mapping[str, Any], Whole], Architecture]) -> Tower:
    within = r"(vision_tower|multi_modal_projector)\."
    return Tower(describe, within, SETTINGS, shared=tokens.NAMES)


PROJECTORS = {
    "Mistral3ForConditionalGeneration": (_tower(mistral3),),
    "LlavaForConditionalGeneration/pixtral": (_tower(pixtral),),
}
