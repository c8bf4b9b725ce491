"""Muse Glimmer: layers with a window and rope, one with neither, scaled queries, gates, a cap."""

from __future__ import annotations

import transformers
from reference_tokenizers import make_llama3_bpe

from reference_families import COMMON, Family

FAMILIES = {
    "muse-glimmer": Family(
        transformers.MuseGlimmerConfig(
            text_config={
                **COMMON,
                "vocab_size": 448,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 12,
                "intermediate_size": 88,
                "sliding_window": 7,
                "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
                "layer_rope_theta": [50000.0, 50000.0, 0],
                "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
                "qk_scale_factor": 2.3,
                "output_multiplier": 2.5,
                "final_logit_softcapping": 9.0,
                "bos_token_id": 442,
                "eos_token_id": 443,
                "tie_word_embeddings": False,
            },
            vision_config={
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "patch_size": 2,
                "pos_emb_height": 2,
                "pos_emb_width": 2,
            },
            out_hidden_size=32,
            projector_hidden_size=8,
            image_token_id=446,
            video_token_id=447,
        ),
        make_llama3_bpe,
        norms=0.0,
    ),
}
