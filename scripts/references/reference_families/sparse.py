"""DeepSeek-V3.2 and GLM-5: latent attention that reads the tokens an indexer chooses.

The indexer chooses five tokens, fewer than any prompt has. Its heads have 64 weights, the least
that llama.cpp computes. The seeds of the weights are chosen so that no two tokens tie for the last
place: a token whose scores are negative for all heads has zero, and only chance orders zeros.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from reference_tokenizers import Encode, make_llama3_bpe, make_qwen_bpe

from reference_families import COMMON, Family
from reference_families.deepseek import ATTENTION, published, yarn

_INDEXER: dict[str, Any] = {"index_n_heads": 7, "index_head_dim": 64, "index_topk": 5}


def _glm_tokenizer(folder: Path) -> Encode:
    return make_qwen_bpe(folder, ("[gMASK]", "<sop>", "<|user|>", "<|observation|>"))


FAMILIES = {
    "deepseek-v3.2": Family(
        transformers.DeepseekV32Config(
            **COMMON | {"rms_norm_eps": 1e-6},
            **ATTENTION,
            **_INDEXER,
            vocab_size=448,
            num_hidden_layers=3,
            q_lora_rank=12,
            first_k_dense_replace=1,
            moe_intermediate_size=16,
            n_routed_experts=6,
            n_shared_experts=1,
            num_experts_per_tok=3,
            n_group=3,
            topk_group=2,
            routed_scaling_factor=2.5,
            norm_topk_prob=True,
            bos_token_id=442,
            eos_token_id=443,
            rope_parameters={"rope_theta": 10000, **yarn(1.0)},
        ),
        make_llama3_bpe,
        published=published(
            1.0,
            layer_types=None,
            mlp_layer_types=None,
            first_k_dense_replace=1,
            num_nextn_predict_layers=1,
            scoring_func="sigmoid",
            topk_method="noaux_tc",
        ),
        draw=26,
    ),
    "glm5": Family(
        transformers.GlmMoeDsaConfig(
            # The epsilon of latent norms in transformers.
            **COMMON | {"rms_norm_eps": 1e-6},
            **_INDEXER,
            vocab_size=416,
            num_hidden_layers=4,
            num_attention_heads=3,
            num_key_value_heads=3,
            intermediate_size=72,
            moe_intermediate_size=24,
            n_routed_experts=5,
            num_experts_per_tok=2,
            n_shared_experts=1,
            routed_scaling_factor=2.5,
            norm_topk_prob=True,
            kv_lora_rank=20,
            q_lora_rank=20,
            qk_nope_head_dim=12,
            qk_rope_head_dim=8,
            v_head_dim=16,
            first_k_dense_replace=1,
            indexer_types=["full", "shared", "full", "shared"],
            bos_token_id=400,
            eos_token_id=[400, 402],
            pad_token_id=400,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        _glm_tokenizer,
        published={
            "dtype": "bfloat16",
            "mlp_layer_types": None,
            "indexer_rope_interleave": True,
            "moe_layer_freq": 1,
            "num_nextn_predict_layers": 1,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
        },
        draw=37,
    ),
}
