"""The keys that the quantizer adds to a model's own."""

from __future__ import annotations

from collections.abc import Mapping

from gguf import GGML_QUANT_VERSION, LlamaFileType

from dynquant.distribution import our_version
from dynquant.importance.imatrix import Imatrix
from dynquant.keys import Keys, string, u32
from dynquant.quants.encoder import ENCODER_REVISION
from dynquant.quants.search import Effort
from dynquant.quants.table import QuantType
from dynquant.recipe.rules import Recipe


def file_type(recipe: Recipe, weights: Mapping[QuantType, int]) -> LlamaFileType:
    """Return llama.cpp's file type: that of the recipe's mix, or the type of most weights.

    Float types count only where nothing is quantized: norms are F32 in every file. Of
    llama.cpp's names for mixes of a type, the medium one is used (Q4_K: MOSTLY_Q4_K_M).
    """
    if f"MOSTLY_{recipe.name}" in LlamaFileType.__members__:
        return LlamaFileType[f"MOSTLY_{recipe.name}"]
    quantized = {t: n for t, n in weights.items() if not t.is_float} or weights
    if not quantized:
        return LlamaFileType.GUESSED
    name = max(quantized, key=lambda t: (quantized[t], t.name)).name
    for candidate in (f"ALL_{name}", f"MOSTLY_{name}", f"MOSTLY_{name}_M", f"MOSTLY_{name}_MOE"):
        if candidate in LlamaFileType.__members__:
            return LlamaFileType[candidate]
    return LlamaFileType.GUESSED


def quantizer_keys(
    recipe: Recipe, effort: Effort, weights: Mapping[QuantType, int], imatrix: Imatrix | None
) -> Keys:
    """Return the keys about the recipe, the imatrix and this dynquant."""
    keys = {
        "general.file_type": u32(int(file_type(recipe, weights))),
        "general.quantization_version": u32(GGML_QUANT_VERSION),
    }
    # quantize.imatrix.* with the names and types of llama-quantize, but without its local paths.
    if imatrix:
        keys["quantize.imatrix.file"] = string(imatrix.path.name)
        if imatrix.datasets:
            keys["quantize.imatrix.dataset"] = string(imatrix.datasets[0])
        keys["quantize.imatrix.entries_count"] = u32(len(imatrix.entries))
        if imatrix.chunk_count is not None:
            keys["quantize.imatrix.chunks_count"] = u32(imatrix.chunk_count)
    keys |= {
        "dynquant.version": string(our_version()),
        "dynquant.recipe": string(recipe.name),
        "dynquant.recipe_sha256": string(recipe.sha256),
        "dynquant.effort": string(effort),
        "dynquant.encoder_revision": u32(ENCODER_REVISION),
    }
    if imatrix:
        keys["dynquant.imatrix_sha256"] = string(imatrix.sha256)
        keys["dynquant.imatrix_shrink"] = u32(recipe.experts.shrink)
        keys["dynquant.imatrix_unseen"] = string(recipe.experts.unseen)
    return keys


def with_ours(model_keys: Keys, ours: Keys) -> Keys:
    """Return the file's keys; those of the quantizer precede tokenizer.*, as in llama.cpp."""
    theirs = [(k, v) for k, v in model_keys.items() if k not in ours]
    first = next((i for i, (k, _) in enumerate(theirs) if k.startswith("tokenizer.")), len(theirs))
    return dict(theirs[:first]) | ours | dict(theirs[first:])
