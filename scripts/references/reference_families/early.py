"""GPT-2, GPT-NeoX, StableLM, Phi-2, OLMo 1, Falcon, MPT, Bloom and StarCoder 1.

Their config.json is in the published form: the names of settings differ from class to class.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers
from reference_pretokenizers import make_family_bpe
from reference_tokenizers import make_qwen_bpe

from reference_families import Family, with_gelu_table

_PUBLISHED: dict[str, Any] = {"dtype": None, "rope_parameters": None, "torch_dtype": "float16"}
_SHAPE: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 385,
    "eos_token_id": 385,
    "pad_token_id": None,
}
# As above, by the names of GPT-2. A position is a row of a matrix.
_GPT2: dict[str, Any] = {
    "vocab_size": 400,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 520,
    "n_inner": 88,
    "bos_token_id": 385,
    "eos_token_id": 385,
}


def published(**changes: Any) -> dict[str, Any]:
    """Return the published form of settings, with changes for one model."""
    return {**_PUBLISHED, **changes}


_GPT2_BPE = partial(make_family_bpe, family="gpt-2")
# Small embeddings, see GELU.
_GELU: dict[str, Any] = {"dtype": torch.float16, "weights": 0.3, "embedding": 0.06}
# With a separate output matrix, which the weights scale too.
_GELU_APART: dict[str, Any] = {**_GELU, "weights": 0.12}

FAMILIES = {
    "gpt2": Family(
        transformers.GPT2Config(**_GPT2), _GPT2_BPE, published=published(n_ctx=520), **_GELU
    ),
    "gptneox": Family(
        transformers.GPTNeoXConfig(**_SHAPE, intermediate_size=88, rotary_pct=0.5),
        partial(make_family_bpe, family="olmoe"),
        published=published(
            rotary_emb_base=10000, rotary_pct=0.5, attention_bias=None, is_decoder=None
        ),
        **_GELU_APART,
    ),
    # One residual after the other, whole heads rotated.
    "gptneox-serial": Family(
        transformers.GPTNeoXConfig(
            **_SHAPE,
            intermediate_size=56,
            rotary_pct=1.0,
            use_parallel_residual=False,
        ),
        partial(make_family_bpe, family="olmoe"),
        published=published(
            rotary_emb_base=10000, rotary_pct=1.0, attention_bias=None, is_decoder=None
        ),
        draw=1,
        **_GELU_APART,
    ),
    "stablelm": Family(
        transformers.StableLmConfig(
            **{**_SHAPE, "vocab_size": 416, "bos_token_id": 400, "eos_token_id": 400},
            num_key_value_heads=2,
            intermediate_size=88,
            use_qkv_bias=True,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 20000.0,
                "partial_rotary_factor": 0.5,
            },
        ),
        make_qwen_bpe,
        published=published(rope_theta=20000.0, partial_rotary_factor=0.5),
    ),
    # As the 12B: a norm for each head, attention and MLP in parallel.
    "stablelm-12b": Family(
        transformers.StableLmConfig(
            **{**_SHAPE, "vocab_size": 416, "bos_token_id": 400, "eos_token_id": 400},
            num_key_value_heads=2,
            intermediate_size=72,
            qk_layernorm=True,
            use_parallel_residual=True,
        ),
        make_qwen_bpe,
        published=published(rope_theta=10000, partial_rotary_factor=0.25),
    ),
    "phi2": Family(
        transformers.PhiConfig(
            **{**_SHAPE, "num_attention_heads": 2},
            intermediate_size=88,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.375,
            },
        ),
        _GPT2_BPE,
        published=published(rope_theta=10000.0, partial_rotary_factor=0.375),
        **{**_GELU_APART, "weights": 0.14},
        norms=1.3,
        draw=2,
        adapt=with_gelu_table,
    ),
    # Smaller than most queries, so that the clip acts.
    "olmo": Family(
        transformers.OlmoConfig(
            **_SHAPE,
            num_key_value_heads=2,
            intermediate_size=88,
            clip_qkv=1.25,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        partial(make_family_bpe, family="olmoe"),
        published=published(rope_theta=10000.0),
    ),
    "falcon": Family(
        transformers.FalconConfig(**_SHAPE),
        partial(make_family_bpe, family="falcon"),
        published=published(
            activation=None,
            apply_residual_connection_post_layernorm=False,
            ffn_hidden_size=None,
            max_position_embeddings=None,
            num_kv_heads=None,
            num_ln_in_parallel_attn=None,
        ),
        **_GELU,
    ),
    "falcon-40b": Family(
        transformers.FalconConfig(
            **_SHAPE, num_kv_heads=2, ffn_hidden_size=88, new_decoder_architecture=True
        ),
        partial(make_family_bpe, family="falcon"),
        published=published(rope_theta=10000.0),
        **_GELU,
    ),
    "mpt": Family(
        transformers.MptConfig(
            d_model=32,
            n_heads=4,
            n_layers=2,
            max_seq_len=512,
            vocab_size=400,
            attn_config={"clip_qkv": 1.25},
        ),
        partial(make_family_bpe, family="olmoe"),
        published=published(
            architectures=["MPTForCausalLM"],
            attn_config={
                "alibi": True,
                "alibi_bias_max": 8,
                "attn_impl": "torch",
                "attn_pdrop": 0,
                "attn_type": "multihead_attention",
                "attn_uses_sequence_id": False,
                "clip_qkv": 1.25,
                "prefix_lm": False,
                "qk_ln": False,
                "softmax_scale": None,
            },
        ),
        **_GELU,
    ),
    "bloom": Family(
        transformers.BloomConfig(
            vocab_size=400,
            hidden_size=32,
            n_layer=2,
            n_head=4,
            bos_token_id=384,
            eos_token_id=385,
            pad_token_id=3,
        ),
        partial(make_family_bpe, family="bloom"),
        published=published(
            seq_length=2048,
            offset_alibi=100,
        ),
        **_GELU,
    ),
    "starcoder": Family(
        transformers.GPTBigCodeConfig(**_GPT2, activation_function="gelu"),
        partial(make_family_bpe, family="granite-3"),
        published=published(inference_runner=0, pad_key_length=True),
        **_GELU,
    ),
    # As SantaCoder's relatives with a K and V for each head.
    "starcoder-mha": Family(
        transformers.GPTBigCodeConfig(**_GPT2, multi_query=False),
        partial(make_family_bpe, family="granite-3"),
        published=published(),
        draw=2,
        **_GELU,
    ),
}
