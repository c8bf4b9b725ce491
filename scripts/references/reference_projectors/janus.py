"""Janus Pro: a square picture, and two with margins."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from PIL import Image
from reference_tokenizers import make_llama3_bpe
from safetensors.torch import load_file, save_file

from reference_projectors import Case, Inputs, Media, picture, with_marks

_SIZE, _PATCH, _PLACEHOLDER = 84, 14, 450


def _inputs(folder: Path, one: Media) -> Inputs:
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    found = processor(images=[Image.fromarray(one)], return_tensors="pt")
    return {"pixel_values": found["pixel_values"]}


def _features(model: transformers.PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    return model.model.get_image_features(**inputs).pooler_output[0]


def _small(folder: Path) -> None:
    """Remove most of the model that draws, which neither file contains."""
    path = folder / "model.safetensors"
    stored = load_file(path)
    kept = {n: t for n, t in stored.items() if "vqmodel" not in n or t.dim() == 1}
    save_file(kept, path, {"format": "pt"})


CASES = {
    "janus": Case(
        transformers.JanusConfig(
            text_config={
                "model_type": "llama",
                "hidden_size": 32,
                "rms_norm_eps": 1e-6,
                "max_position_embeddings": 512,
                "vocab_size": 456,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "num_hidden_layers": 3,
                "intermediate_size": 72,
                "bos_token_id": 442,
                "eos_token_id": 447,
            },
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
        with_marks(make_llama3_bpe, "<begin_of_image>", "<end_of_image>", "<image_placeholder>"),
        {
            "background_color": [127, 127, 127],
            "do_pad": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "JanusImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "min_size": 14,
            "resample": 3,
            "size": {"height": _SIZE, "width": _SIZE},
        },
        (picture(_SIZE, _SIZE, 1), picture(97, 97, 2), picture(40, 120, 3)),
        _inputs,
        _features,
        "The whale<begin_of_image>",
        "<end_of_image> was white",
        "The whale<begin_of_image><__media__><end_of_image> was white",
        _PLACEHOLDER,
        rewrite=_small,
    ),
}
