"""Llama 4, with a tiny vision model."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from reference_tokenizers import make_llama3_bpe

from reference_families import COMMON, Family


class _WithoutImages:
    """A Llama 4, of which only the language model answers.

    The whole model of transformers 5.24 fails at a text without images.
    """

    def make(self) -> transformers.PreTrainedModel:
        """Return the model with arbitrary weights."""
        return transformers.Llama4ForConditionalGeneration(FAMILIES["llama4"].config)

    def save(self, model: transformers.PreTrainedModel, folder: Path) -> None:
        """Write config.json and the weights."""
        model.save_pretrained(folder)

    def load(self, folder: Path) -> transformers.PreTrainedModel:
        """Return the language model with the weights of a folder, in float32."""
        model = transformers.Llama4ForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        return model.language_model


FAMILIES = {
    # Five layers: all kinds of attention with and without experts.
    "llama4": Family(
        transformers.Llama4Config(
            text_config={
                **COMMON,
                "vocab_size": 448,
                "num_hidden_layers": 5,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 12,
                "intermediate_size": 20,
                "intermediate_size_mlp": 56,
                "num_local_experts": 5,
                "num_experts_per_tok": 2,
                "interleave_moe_layer_step": 2,
                "bos_token_id": 442,
                "eos_token_id": [443, 446, 447],
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 500000.0,
                    "factor": 8.0,
                    "high_freq_factor": 4.0,
                    "low_freq_factor": 1.0,
                    "original_max_position_embeddings": 64,
                },
            },
            vision_config={
                "hidden_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "intermediate_size": 8,
                "vision_output_dim": 8,
                "image_size": 28,
                "projector_input_dim": 8,
                "projector_output_dim": 8,
            },
            tie_word_embeddings=False,
            boi_token_index=430,
            eoi_token_index=431,
            image_token_index=432,
        ),
        make_llama3_bpe,
        model=_WithoutImages(),
    ),
}
