"""Janus Pro: a square picture, and two with margins."""

from __future__ import annotations

import transformers
from reference_tokenizers import make_llama3_bpe

from reference_projectors import (
    LLAMA3_TEXT,
    Case,
    OfTransformers,
    Tensors,
    picture,
    processed,
    with_marks,
)

_SIZE, _PATCH, _PLACEHOLDER = 84, 14, 450


def _without_drawing(tensors: Tensors) -> Tensors:
    """Remove most of the model that draws, which neither of dynquant's files contains."""
    return {n: t for n, t in tensors.items() if "vqmodel" not in n or t.dim() == 1}


CASES = {
    "janus": Case(
        model=OfTransformers(
            transformers.JanusConfig(
                text_config={**LLAMA3_TEXT, "model_type": "llama", "rms_norm_eps": 1e-6},
                vision_config={
                    "hidden_size": 24,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 2,
                    "image_size": _SIZE,
                    "patch_size": _PATCH,
                    "mlp_ratio": 1.7,
                    "projection_dim": 32,
                    "num_image_tokens": 36,
                },
                vq_config={
                    "base_channels": 32,
                    "channel_multiplier": [1],
                    "embed_dim": 4,
                    "image_token_embed_dim": 8,
                    "latent_channels": 4,
                    "num_embeddings": 4,
                    "num_patches": 2,
                    "num_res_blocks": 1,
                    "projection_dim": 8,
                },
                image_token_id=_PLACEHOLDER,
            ),
            tensors=_without_drawing,
        ),
        tokenizer=with_marks(
            make_llama3_bpe, "<begin_of_image>", "<end_of_image>", "<image_placeholder>"
        ),
        processor={
            "background_color": [127, 127, 127],
            "do_pad": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "JanusImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "min_size": 14,
            "resample": 3,
            "size": {"height": _SIZE, "width": _SIZE},
        },
        media=(picture(_SIZE, _SIZE, 1), picture(97, 97, 2), picture(40, 120, 3)),
        inputs=processed("pixel_values"),
        # llama.cpp adds no marks.
        prompt="The whale<begin_of_image><__media__><end_of_image> was white",
        in_prompt="<image_placeholder>",
        placeholders=(_PLACEHOLDER,),
    ),
}
