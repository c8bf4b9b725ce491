"""InternLM2, Baichuan 1 and 2, and ChatGLM3 in plain torch.

Sources: modeling_internlm2.py of internlm/internlm2-chat-7b, modeling_baichuan.py of Baichuan-7B,
Baichuan-13B and Baichuan2 (RMSNorm, W_pack, rope or ALiBi, NormHead), and modeling_chatglm.py of
THUDM/chatglm3-6b and glm-4-9b-chat (multi-query attention, half of each head rotated).
"""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import tiktoken
import torch
import transformers
from plain_models import (
    Config,
    Plain,
    Shapes,
    Weights,
    attend,
    gated,
    gated_block,
    gated_shapes,
    heads,
    rms_norm,
    rotate_halves,
    rotate_pairs,
)
from reference_tokenizers import LLAMA3_SPLIT, Encode, make_sentencepiece, write_json
from torch import Tensor
from torch.nn.functional import linear, normalize

from reference_families import Family


def internlm2(w: Weights, c: Config, ids: Tensor) -> Tensor:
    """Return the scores: a group of wqkv has several heads of Q, then one of K, then one of V."""
    epsilon, n, n_kv = c["rms_norm_eps"], c["num_attention_heads"], c["num_key_value_heads"]
    d, theta = c["hidden_size"] // n, c["rope_theta"]
    x = w["model.tok_embeddings.weight"][ids]
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        normed = rms_norm(x, w[f"{at}attention_norm.weight"], epsilon)
        groups = linear(normed, w[f"{at}attention.wqkv.weight"]).reshape(len(x), n_kv, -1, d)
        q = groups[:, :, :-2].flatten(1, 2).transpose(0, 1)
        k, v = groups[:, :, -2].transpose(0, 1), groups[:, :, -1].transpose(0, 1)
        found = attend(rotate_halves(q, theta), rotate_halves(k, theta), v)
        x = x + linear(found, w[f"{at}attention.wo.weight"])
        normed = rms_norm(x, w[f"{at}ffn_norm.weight"], epsilon)
        gate, down, up = (w[f"{at}feed_forward.w{i}.weight"] for i in (1, 2, 3))
        x = x + gated(normed, gate, up, down)
    return linear(rms_norm(x, w["model.norm.weight"], epsilon), w["output.weight"])


def internlm2_shapes(c: Config) -> Shapes:
    """Return the stored tensors."""
    hidden, ffn, n = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    found: Shapes = {
        "model.tok_embeddings.weight": (c["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "output.weight": (c["vocab_size"], hidden),
    }
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        rows = (n + 2 * c["num_key_value_heads"]) * hidden // n
        found |= {
            f"{at}attention_norm.weight": (hidden,),
            f"{at}ffn_norm.weight": (hidden,),
            f"{at}attention.wqkv.weight": (rows, hidden),
            f"{at}attention.wo.weight": (hidden, hidden),
            f"{at}feed_forward.w1.weight": (ffn, hidden),
            f"{at}feed_forward.w3.weight": (ffn, hidden),
            f"{at}feed_forward.w2.weight": (hidden, ffn),
        }
    return found


def alibi(n_head: int, n_tokens: int) -> Tensor:
    """Return the bias of the scores, [heads, tokens, tokens] (arXiv:2108.12409).

    The slopes are powers of 2^(-8/n); with another number of heads than a power of two, every
    second power of twice as many heads follows.
    """
    power = 2 ** math.floor(math.log2(n_head))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(n_head - power)]
    places = torch.arange(n_tokens)
    return torch.tensor(slopes)[:, None, None] * (places[None, :] - places[:, None])


def baichuan(w: Weights, c: Config, ids: Tensor) -> Tensor:
    """Return the scores: with 40 layers ALiBi, else rope; Baichuan 2 normalizes the output rows."""
    epsilon, n = c["rms_norm_eps"], c["num_attention_heads"]
    bias = alibi(n, len(ids)) if c["num_hidden_layers"] == 40 else None
    x = w["model.embed_tokens.weight"][ids]
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        normed = rms_norm(x, w[f"{at}input_layernorm.weight"], epsilon)
        q, k, v = (
            heads(p, n) for p in linear(normed, w[f"{at}self_attn.W_pack.weight"]).chunk(3, 1)
        )
        if bias is None:
            q, k = rotate_halves(q, 10000.0), rotate_halves(k, 10000.0)
        x = x + linear(attend(q, k, v, bias), w[f"{at}self_attn.o_proj.weight"])
        normed = rms_norm(x, w[f"{at}post_attention_layernorm.weight"], epsilon)
        x = x + gated_block(w, f"{at}mlp.", normed)
    head = w["lm_head.weight"]
    head = normalize(head, dim=1) if "z_loss_weight" in c else head
    return linear(rms_norm(x, w["model.norm.weight"], epsilon), head)


def baichuan_shapes(c: Config) -> Shapes:
    """Return the stored tensors."""
    hidden = c["hidden_size"]
    found: Shapes = {
        "model.embed_tokens.weight": (c["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (c["vocab_size"], hidden),
    }
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        found |= gated_shapes(f"{at}mlp.", hidden, c["intermediate_size"])
        found |= {
            f"{at}input_layernorm.weight": (hidden,),
            f"{at}post_attention_layernorm.weight": (hidden,),
            f"{at}self_attn.W_pack.weight": (3 * hidden, hidden),
            f"{at}self_attn.o_proj.weight": (hidden, hidden),
        }
    return found


def chatglm(w: Weights, c: Config, ids: Tensor) -> Tensor:
    """Return the scores: the first half of each head is rotated, in adjacent pairs."""
    epsilon, d = c["layernorm_epsilon"], c["kv_channels"]
    n, n_kv, theta = c["num_attention_heads"], c["multi_query_group_num"], 10000.0 * c["rope_ratio"]
    x = w["transformer.embedding.word_embeddings.weight"][ids]
    for layer in range(c["num_layers"]):
        at = f"transformer.encoder.layers.{layer}."
        normed = rms_norm(x, w[f"{at}input_layernorm.weight"], epsilon)
        of_qkv = f"{at}self_attention.query_key_value."
        qkv = linear(normed, w[f"{of_qkv}weight"], w[f"{of_qkv}bias"])
        parts = qkv.split([n * d, n_kv * d, n_kv * d], 1)
        q, k, v = (heads(part, part.shape[1] // d) for part in parts)
        q, k = rotate_pairs(q, theta, d // 2), rotate_pairs(k, theta, d // 2)
        x = x + linear(attend(q, k, v), w[f"{at}self_attention.dense.weight"])
        normed = rms_norm(x, w[f"{at}post_attention_layernorm.weight"], epsilon)
        gate, up = w[f"{at}mlp.dense_h_to_4h.weight"].chunk(2)
        x = x + gated(normed, gate, up, w[f"{at}mlp.dense_4h_to_h.weight"])
    x = rms_norm(x, w["transformer.encoder.final_layernorm.weight"], epsilon)
    return linear(x, w["transformer.output_layer.weight"])


def chatglm_shapes(c: Config) -> Shapes:
    """Return the stored tensors, with the rotary frequencies that checkpoints have."""
    hidden, ffn, d = c["hidden_size"], c["ffn_hidden_size"], c["kv_channels"]
    qkv = (c["num_attention_heads"] + 2 * c["multi_query_group_num"]) * d
    found: Shapes = {
        "transformer.embedding.word_embeddings.weight": (c["padded_vocab_size"], hidden),
        "transformer.encoder.final_layernorm.weight": (hidden,),
        "transformer.output_layer.weight": (c["padded_vocab_size"], hidden),
    }
    for layer in range(c["num_layers"]):
        at = f"transformer.encoder.layers.{layer}."
        found |= {
            f"{at}input_layernorm.weight": (hidden,),
            f"{at}post_attention_layernorm.weight": (hidden,),
            f"{at}self_attention.query_key_value.weight": (qkv, hidden),
            f"{at}self_attention.query_key_value.bias": (qkv,),
            f"{at}self_attention.dense.weight": (hidden, hidden),
            f"{at}mlp.dense_h_to_4h.weight": (2 * ffn, hidden),
            f"{at}mlp.dense_4h_to_h.weight": (hidden, ffn),
        }
    return found


_COMMON: dict[str, Any] = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 480,
}
_INTERNLM2: dict[str, Any] = {
    **_COMMON,
    "architectures": ["InternLM2ForCausalLM"],
    "attn_implementation": "eager",
    "bias": False,
    "hidden_size": 32,
    "intermediate_size": 72,
    "max_position_embeddings": 512,
    "model_type": "internlm2",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "rope_theta": 1000000,
}
_BAICHUAN: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 18,
    "intermediate_size": 20,
    "model_max_length": 512,
    "model_type": "baichuan",
    "num_attention_heads": 3,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
}
# Rope needs an even number of weights in a head; the heads of the second are no power of two.
_BAICHUAN_7B: dict[str, Any] = {
    **_BAICHUAN,
    "architectures": ["BaiChuanForCausalLM"],
    "max_position_embeddings": 512,
    "num_hidden_layers": 32,
}
_BAICHUAN_2_13B: dict[str, Any] = {
    **_BAICHUAN,
    "architectures": ["BaichuanForCausalLM"],
    "num_hidden_layers": 40,
    "z_loss_weight": 0,
}
_CHATGLM: dict[str, Any] = {
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "architectures": ["ChatGLMModel"],
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "eos_token_id": [400, 404, 405],
    "ffn_hidden_size": 88,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 32,
    "kv_channels": 8,
    "layernorm_epsilon": 1e-5,
    "model_type": "chatglm",
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "original_rope": True,
    "pad_token_id": 400,
    "padded_vocab_size": 416,
    "post_layer_norm": True,
    "rmsnorm": True,
    "rope_ratio": 500,
    "seq_length": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 416,
}


_CHATGLM_3: dict[str, Any] = {
    **_CHATGLM,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "padded_vocab_size": 472,
    "rope_ratio": 1,
    "vocab_size": None,
}


def _spm(folder: Path) -> Encode:
    return make_sentencepiece(folder, 480, [])


def _glm4(folder: Path) -> Encode:
    """Write GLM-4-9B's tokenizer.model: ranks, and special tokens in tokenizer_config.json."""
    from reference_ranks import train_ranks  # which needs dynquant, unlike the others

    ranks = train_ranks(LLAMA3_SPLIT, 400)
    lines = "".join(f"{base64.b64encode(t).decode()} {rank}\n" for t, rank in ranks.items())
    (folder / "tokenizer.model").write_text(lines, "utf-8")
    texts = ("<|endoftext|>", "[MASK]", "[gMASK]", "<sop>", "<|user|>", "<|observation|>")
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    write_json(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {
                str(i): {"content": text, **flags, "special": True}
                for i, text in enumerate(texts, 400)
            },
            "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLM4Tokenizer", None]},
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "ChatGLM4Tokenizer",
        },
    )
    encoding = tiktoken.Encoding(
        "glm4", pat_str=LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens={}
    )
    return lambda text: encoding.encode(text, disallowed_special=())


def _chatglm3(folder: Path) -> Encode:
    """Write ChatGLM3's files; its class has nine further tokens that no file names."""
    encode = make_sentencepiece(folder, 440, [])
    write_json(
        folder / "tokenizer_config.json",
        {
            "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
            "do_lower_case": False,
            "remove_space": False,
            "tokenizer_class": "ChatGLMTokenizer",
        },
    )
    return lambda text: encode(text)[1:]


_NONE = transformers.PretrainedConfig()
FAMILIES = {
    "internlm2": Family(_NONE, _spm, model=Plain(_INTERNLM2, internlm2_shapes, internlm2)),
    "baichuan": Family(
        _NONE, _spm, weights=0.15, model=Plain(_BAICHUAN_7B, baichuan_shapes, baichuan)
    ),
    "baichuan2": Family(
        _NONE, _spm, weights=0.15, model=Plain(_BAICHUAN_2_13B, baichuan_shapes, baichuan)
    ),
    "chatglm": Family(_NONE, _glm4, model=Plain(_CHATGLM, chatglm_shapes, chatglm)),
    "chatglm3": Family(_NONE, _chatglm3, model=Plain(_CHATGLM_3, chatglm_shapes, chatglm)),
}
