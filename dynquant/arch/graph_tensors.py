"""The tensors that llama.cpp's graph of an architecture requires, by the families' tensor tables.

A family describes a config.json. Here the keys of a GGUF become a config.json with the same layers,
and the family's own table gives the names. Sizes have no effect on names, so they are small and
constant. Where llama.cpp does not require a tensor that every checkpoint of a family has, or
accepts another one in its place, the tables below say so. Source: src/models/ in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.experts import SIGMOID
from dynquant.arch.families import families
from dynquant.arch.families.exaone4 import LAYERS_WITH_WINDOWS
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, Scalar

_CLASSES = {
    "afmoe": "AfmoeForCausalLM",
    "apertus": "ApertusForCausalLM",
    "arcee": "ArceeForCausalLM",
    "baichuan": "BaichuanForCausalLM",
    "bailingmoe": "BailingMoeForCausalLM",
    "bailingmoe2": "BailingMoeV2ForCausalLM",
    "bailingmoe3": "BailingMoeV3ForCausalLM",
    "bert": "BertModel",
    "bitnet": "BitNetForCausalLM",
    "bloom": "BloomForCausalLM",
    "chatglm": "GlmForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "cohere2moe": "Cohere2MoeForCausalLM",
    "command-r": "CohereForCausalLM",
    "deepseek": "DeepseekForCausalLM",
    "deepseek2": "DeepseekV2ForCausalLM",
    "deepseek2-ocr": "DeepseekOCRForCausalLM",
    "deepseek32": "DeepseekV32ForCausalLM",
    "deepseek4": "DeepseekV4ForCausalLM",
    "dots1": "Dots1ForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
    "ernie4_5-moe": "Ernie4_5_MoeForCausalLM",
    "exaone-moe": "ExaoneMoeForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "falcon": "FalconForCausalLM",
    "falcon-h1": "FalconH1ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma-embedding": "Gemma3TextModel",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "gemma3n": "Gemma3nForCausalLM",
    "gemma4": "Gemma4ForCausalLM",
    "glm-dsa": "GlmMoeDsaForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "glm4moe": "Glm4MoeForCausalLM",
    "glm5-next": "Glm5NextForConditionalGeneration",
    "gpt-oss": "GptOssForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gptneox": "GPTNeoXForCausalLM",
    "granite": "GraniteForCausalLM",
    "granitehybrid": "GraniteMoeHybridForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "hunyuan-dense": "HunYuanDenseV1ForCausalLM",
    "hunyuan-moe": "HunYuanMoEV1ForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
    "jamba": "JambaForCausalLM",
    "kimi-k3": "KimiK3ForConditionalGeneration",
    "kimi-linear": "KimiLinearForCausalLM",
    "laguna": "LagunaForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
    "lfm2moe": "Lfm2MoeForCausalLM",
    "llama": "LlamaForCausalLM",
    "llama4": "Llama4ForCausalLM",
    "mamba": "MambaForCausalLM",
    "mamba2": "Mamba2ForCausalLM",
    "minicpm": "MiniCPMForCausalLM",
    "minicpm3": "MiniCPM3ForCausalLM",
    "minimax-m2": "MiniMaxM2ForCausalLM",
    "minimax-m3": "MiniMaxM3SparseForCausalLM",
    "mistral3": "Ministral3ForCausalLM",
    "mistral4": "Mistral4ForCausalLM",
    "mpt": "MptForCausalLM",
    "muse-glimmer": "MuseGlimmerForConditionalGeneration",
    "nemotron": "NemotronForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
    "nemotron_h_moe": "NemotronHForCausalLM",
    "nomic-bert": "NomicBertModel",
    "olmo": "OlmoForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "phi2": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "phimoe": "PhimoeForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2moe": "Qwen2MoeForCausalLM",
    "qwen2vl": "Qwen2VLForConditionalGeneration",
    "qwen3": "Qwen3ForCausalLM",
    "qwen35": "Qwen3_5ForCausalLM",
    "qwen35moe": "Qwen3_5MoeForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
    "qwen3next": "Qwen3NextForCausalLM",
    "qwen3vl": "Qwen3VLForConditionalGeneration",
    "qwen3vlmoe": "Qwen3VLMoeForConditionalGeneration",
    "qwen4exp": "Qwen4ExpForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "starcoder": "GPTBigCodeForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
}
"""The class of config.json for each architecture of a GGUF."""

DESCRIBED = frozenset(_CLASSES)
"""The architectures that families describe; the gguf package does not know all of them."""

_WITH_EXPERTS = {"llama": "MixtralForCausalLM", "granite": "GraniteMoeForCausalLM"}
"""The class of an architecture that has experts in some models only, for those models."""

_SECTIONS = {"rope_parameters": {"mrope_section": [1, 1, 1]}}
_DEEPSTACK: dict[str, Any] = {**_SECTIONS, "vision_config": {"deepstack_visual_indexes": []}}
_SETTINGS: dict[str, dict[str, Any]] = {
    "afmoe": {"mup_enabled": True},
    "bailingmoe": {"use_bias": False},
    "bitnet": {"hidden_act": "silu", "tie_word_embeddings": True},
    "deepseek4": {"num_key_value_heads": 1, "o_groups": 1},
    "gemma3n": {"vocab_size_per_layer_input": 64},
    "granitehybrid": {"mamba_n_heads": 2},
    "internlm2": {"bias": False},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    # Full layers may have no values.
    "gemma4": {"attention_k_eq_v": True, "global_head_dim": 32, "vocab_size_per_layer_input": 64},
    "glm5-next": {"linear_num_heads": 2, "qk_rope_head_dim": 0},
    "kimi-k3": {
        "attn_res_block_size": 1,
        "hidden_act": "situ",
        "latent_moe_use_norm": True,
        "linear_attn_config": {"num_heads": 2, "use_full_rank_gate": True},
        "mla_use_output_gate": True,
        "num_experts_per_tok": 2,
        "q_lora_rank": 32,
        "routed_expert_hidden_size": 64,
    },
    "kimi-linear": {"linear_num_heads": 2},
    "minimax-m3": {
        "index_n_heads": 2,
        "index_block_size": 4,
        "rotary_dim": 16,
    },
    "nomic-bert": {"hidden_act": "swiglu"},
    "phimoe": {"attention_bias": True, "lm_head_bias": True},
    "gemma-embedding": {"use_bidirectional_attention": True},
    "qwen2vl": _SECTIONS,
    "qwen35": _SECTIONS,
    "qwen35moe": _SECTIONS,
    "qwen4exp": {
        **_SECTIONS,
        "output_gate_type": "sigmoid",
        "indexer_n_heads": 1,
        "indexer_head_dim": 32,
        "indexer_budget": 4,
        "indexer_compress_ratio": 4,
        "ngram_vocab_size_base": 8,
        "split_ngram_parts": 1,
        "eos_token_id": 0,
    },
    "qwen3moe": {"norm_topk_prob": True},
    "qwen3vl": _DEEPSTACK,
    "qwen3vlmoe": _DEEPSTACK,
    "starcoder": {"num_key_value_heads": None},
}
"""Settings that the families require, where they are not the default."""

_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "num_experts_per_tok": 1,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "index_n_heads": 2,
    "index_head_dim": 64,
    "index_topk": 1,
    "sliding_window": 32,
}

_OPTIONAL = frozenset(
    {
        # Biases of Q, K and V are optional in the graphs of all families.
        *("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_qkv.bias"),
        # A prediction layer without these uses the model's own.
        *("nextn.embed_tokens.weight", "nextn.shared_head_head.weight"),
        "nextn.shared_head_norm.weight",
    }
)
_OPTIONAL_IN = {
    "bert": frozenset({"token_types.weight", "attn_output.bias", "ffn_up.bias", "ffn_down.bias"}),
    "nomic-bert": frozenset({"token_types.weight"}),
    "dots1": frozenset({"exp_probs_b.bias"}),
    "ernie4_5-moe": frozenset({"exp_probs_b.bias"}),
}
"""Tensors that the families declare and llama.cpp's graphs do not require."""

_FUSED_ONLY = ("bloom", "falcon", "gpt2", "gptneox", "mpt", "starcoder")
"""Architectures whose graphs have Q, K and V in one matrix only."""

_NEEDS_QKV_BIAS = frozenset({"bloom", "gpt2", "gptneox", "starcoder"})
"""Architectures of these whose graphs require the bias of that matrix."""

_COMPUTED_IN_LAYERS = {
    "muse-glimmer": frozenset({"attn_q_norm.weight", "attn_k_norm.weight"}),
}
"""Tensors of each layer that no checkpoint of the family has: they are computed."""

_QKV = (frozenset({"attn_q.weight", "attn_k.weight", "attn_v.weight"}), {"attn_qkv.weight"})
_QK = (frozenset({"attn_q.weight", "attn_k.weight"}), {"attn_qkv.weight"})
_GATE_UP = (
    frozenset({"ffn_gate_exps.weight", "ffn_up_exps.weight"}),
    {"ffn_gate_up_exps.weight"},
)
_LINEAR = (frozenset({"attn_qkv.weight", "attn_gate.weight"}), {"ssm_in.weight"})
_FUSED: dict[str, tuple[tuple[frozenset[str], set[str]], ...]] = {
    **dict.fromkeys(_CLASSES, (_QKV,)),
    **dict.fromkeys(("bailingmoe2", "bailingmoe3", "minicpm3"), ()),
    **dict.fromkeys(("deepseek2", "deepseek2-ocr"), (_QKV, _GATE_UP)),
    **dict.fromkeys(_FUSED_ONLY, ()),
    **dict.fromkeys(("deepseek2", "deepseek2-ocr", "mistral4"), (_QKV, _GATE_UP)),
    "gemma4": (_QK, _QKV, _GATE_UP),
    "qwen3next": (_QKV, _GATE_UP, _LINEAR),
    "qwen35moe": (_QKV, _GATE_UP),
    "qwen4exp": (_QKV, _GATE_UP),
    "cohere2moe": (_QKV, _GATE_UP),
}
"""Matrices that a file may hold separately or as one, by architecture."""

_MLP_PARTS = ("ffn_gate", "ffn_up", "ffn_down")
_EITHER = {
    "jamba": (
        frozenset(f"{part}.weight" for part in _MLP_PARTS),
        frozenset({"ffn_gate_inp.weight", *(f"{part}_exps.weight" for part in _MLP_PARTS)}),
    ),
}
"""Sets of tensors of which each layer has one, where no key states which."""

_COMPUTED = {"gemma4": frozenset({"rope_freqs.weight"})}
"""Tensors that no checkpoint has and the graph of an architecture requires."""

_LONGROPE = ("minicpm", "minicpm3", "phi3", "phimoe")
_ROPE_FACTORS = frozenset({"rope_factors_long.weight", "rope_factors_short.weight"})
"""LongRoPE: a model with the key of its magnitude has both sets of factors. llama.cpp loads it
without them, and then rotates by other angles."""


@dataclass(frozen=True)
class Graph:
    """The tensors that a graph requires.

    whole:  names outside the layers
    layers: of each layer, the names without `blk.N.`; prediction layers come last
    n_own:  the number of layers without prediction layers
    fused:  matrices that may be separate or one: the names of the parts and of the one
    tied:   whether the embedding is the output matrix if there is no output.weight
    either: sets of names of which each layer needs one, besides those in `layers`
    """

    whole: frozenset[str]
    layers: tuple[frozenset[str], ...]
    n_own: int
    fused: tuple[tuple[frozenset[str], set[str]], ...]
    tied: bool
    either: tuple[frozenset[str], ...] = ()

    def absent(self, layer: int, names: frozenset[str]) -> frozenset[str]:
        """Return the required tensors of a layer that are not among its names."""
        absent = self.layers[layer] - names
        for parts, one in self.fused:
            for needed, other in ((parts, one), (one, parts)):
                if needed <= self.layers[layer] and other <= names:
                    absent -= needed
        if self.either:
            absent |= max(self.either, key=lambda one: len(one & names)) - names
        return absent


def knows(name: str) -> bool:
    """Return whether a family describes this architecture of a GGUF."""
    return name in DESCRIBED


def graph_of(name: str, keys: Keys) -> Graph:
    """Return the tensors that the graph of an architecture requires, for a model with these keys.

    name: an architecture that `knows` knows
    Raises ArchitectureError if the keys describe no model of the family.
    """
    described = _described(name, keys)
    either = _EITHER.get(name, ())
    optional = _OPTIONAL.union(_OPTIONAL_IN.get(name, ()), *either)
    if name in _NEEDS_QKV_BIAS:
        optional -= {"attn_qkv.bias"}
    keys_only = optional | described.numbers | described.integers.keys()
    rows = [row for row in described.rows if not (row.optional or _ends_with(row.name, keys_only))]
    if described.tied is not None:
        rows = [row for row in rows if row.stored != described.tied[0]]
    own = range(described.n_layers)
    ahead = described.prediction.layers if described.prediction else range(own.stop, own.stop)
    factors = _ROPE_FACTORS if f"{name}.rope.scaling.attn_factor" in keys else frozenset[str]()
    return Graph(
        frozenset(row.name for row in rows if "{}" not in row.name)
        | (factors if name in _LONGROPE else frozenset[str]())
        | {f"{d}.weight" for d in ("dense_2", "dense_3") if f"{name}.{d}_feat_out" in keys}
        | _COMPUTED.get(name, frozenset[str]()),
        tuple(
            frozenset(_in_layer(row) for row in rows if _is_in(row, layer, own))
            | _COMPUTED_IN_LAYERS.get(name, frozenset[str]())
            for layer in range(ahead.stop)
        ),
        own.stop,
        _FUSED[name],
        any(row.name == "output.weight" for row in described.rows) and described.tied is not None,
        either,
    )


def own_layers(name: str, keys: Keys) -> tuple[int | None, int]:
    """Return the number of layers, and how many of them, the last, predict further ahead.

    The number is None if the keys do not state it.
    """
    count = _number(keys, f"{name}.block_count")
    ahead = _number(keys, f"{name}.nextn_predict_layers") or 0
    return count, ahead if count is not None and 0 <= ahead < count else 0


def _ends_with(name: str, endings: frozenset[str]) -> bool:
    return name.removeprefix("blk.{}.") in endings


def _in_layer(row: Row) -> str:
    return row.name.removeprefix("blk.{}.")


def _is_in(row: Row, layer: int, own: range) -> bool:
    return "{}" in row.name and layer in (own if row.layers is None else row.layers)


def _described(name: str, keys: Keys) -> Architecture:
    """Describe the model by its family, with tied embeddings if its graph permits them."""
    count, ahead = own_layers(name, keys)
    experts = _number(keys, f"{name}.expert_count") or 0
    kind = _CLASSES[name]
    if experts:
        kind = _WITH_EXPERTS.get(name, kind)
    if name == "deepseek2" and _number(keys, f"{name}.expert_gating_func") == SIGMOID:
        kind = "DeepseekV3ForCausalLM"
    n_layers = (count or 0) - ahead
    config = {
        **_SIZES,
        **_SETTINGS.get(name, {}),
        **_layers_of(name, keys, n_layers),
        "num_hidden_layers": n_layers,
        "num_nextn_predict_layers": ahead,
        "num_experts": max(experts, 1),
        "n_routed_experts": max(experts, 1),
    }
    family, where = families()[kind], f"the keys of {name}"
    try:
        found = family({**config, "tie_word_embeddings": True}, where)
    except ArchitectureError:
        found = family({**config, "tie_word_embeddings": False}, where)
    is_split = f"{name}.attention.key_length_mla" in keys
    return found if is_split or found.merged is None else found.merged


def _layers_of(name: str, keys: Keys, n_layers: int) -> Mapping[str, Any]:
    """Return the settings that decide which tensors a layer has."""
    found: dict[str, Any] = {
        "first_k_dense_replace": _number(keys, f"{name}.leading_dense_block_count") or 0,
        "num_shared_experts": _number(keys, f"{name}.expert_shared_count") or 0,
        "shared_intermediate_size": _number(keys, f"{name}.expert_shared_feed_forward_length") or 0,
    }
    if name == "afmoe":
        found["num_dense_layers"] = found["first_k_dense_replace"]
    if name == "ernie4_5-moe":
        found["moe_layer_start_index"] = found["first_k_dense_replace"]
        has_shared = bool(_number(keys, f"{name}.expert_shared_feed_forward_length"))
        found["moe_num_shared_experts"] = int(has_shared)
    if name == "llama4":
        found["intermediate_size_mlp"] = _SIZES["intermediate_size"]
        found["interleave_moe_layer_step"] = _number(keys, f"{name}.interleave_moe_layer_step") or 1
        # As the graph expects, see families/llama4.py.
        found["use_qk_norm"] = _number(keys, f"{name}.expert_count") != 128
    if name == "command-r":
        found["use_qk_norm"] = n_layers >= 64  # as the graph expects, see families/cohere.py
    if name == "bailingmoe3":
        heads = _value(keys, f"{name}.attention.head_count_kv")
        if isinstance(heads, tuple):
            kinds = ("linear_attention", "full_attention")
            found["layer_types"] = [kinds[bool(n)] for n in heads[:n_layers]]
        found["q_lora_rank"] = _number(keys, f"{name}.attention.q_lora_rank")
    if name == "exaone4" and n_layers != LAYERS_WITH_WINDOWS:
        found["sliding_window"] = None
    # llama.cpp recognises the Lite models by these numbers of layers.
    tokens = _value(keys, "tokenizer.ggml.tokens")
    n_tokens = len(tokens) if isinstance(tokens, tuple) else None
    n_vocab = _number(keys, f"{name}.vocab_size") or n_tokens
    lite = n_layers in (26, 27) or (n_layers, n_vocab) == (48, 128256)
    if name == "mistral4":
        found["q_lora_rank"] = None
    if name in ("deepseek2", "mistral4") and not lite:
        found["q_lora_rank"] = _number(keys, f"{name}.attention.q_lora_rank") or None
    if name in ("deepseek32", "glm-dsa"):
        found["q_lora_rank"] = 32
    if name == "deepseek4":
        found |= _of_deepseek4(keys, n_layers)
    if name == "minimax-m3":
        sparse = [int(layer >= found["first_k_dense_replace"]) for layer in range(n_layers)]
        found["moe_layer_freq"] = sparse
        found["shared_intermediate_size"] = _SIZES["intermediate_size"]
        found["sparse_attention_config"] = {"sparse_attention_freq": sparse}
    if name == "glm-dsa":
        found["indexer_types"] = _indexer_types(keys, n_layers)
    if name == "gemma3n":
        found |= {
            "num_kv_shared_layers": max(0, n_layers - 20),
            "activation_sparsity_pattern": [0.95] * min(n_layers, 10) + [0.0] * (n_layers - 10),
        }
    if name == "gemma4":
        found |= _of_gemma4(keys, n_layers)
    if name == "stablelm":
        found["use_parallel_residual"] = bool(_value(keys, "stablelm.use_parallel_residual"))
    if name == "glm5-next":
        own = _value(keys, "glm5-next.attention.indexer.types")
        if isinstance(own, tuple):
            found["indexer_types"] = [("shared", "full")[bool(n)] for n in own[:n_layers]]
    other = "conv" if name.startswith("lfm2") else "linear_attention"
    if name in ("glm5-next", "kimi-k3", "kimi-linear", "lfm2", "lfm2moe"):
        found["num_dense_layers"] = found["first_k_dense_replace"]
        heads = _value(keys, f"{name}.attention.head_count_kv")
        if isinstance(heads, tuple):
            found["layer_types"] = ["full_attention" if n else other for n in heads[:n_layers]]
    if name == "qwen4exp":
        layers = _value(keys, "qwen4exp.ple.layers")
        found["ple_layer_ids"] = [
            layer + 1
            for layer in (layers if isinstance(layers, tuple) else ())
            if isinstance(layer, int)
        ]
    if name == "granitehybrid":
        experts = _number(keys, f"{name}.expert_count") or 0
        heads = _of_layers(keys, f"{name}.attention.head_count_kv", n_layers)
        found["layer_types"] = ["attention" if n else "mamba" for n in heads]
        found["num_local_experts"] = experts
        found["shared_intermediate_size"] |= int(not experts)  # without experts it is the MLP
    if name == "jamba":
        heads = _of_layers(keys, f"{name}.attention.head_count_kv", n_layers)
        found["layers_block_type"] = ["attention" if n else "mamba" for n in heads]
    if name in ("nemotron_h", "nemotron_h_moe"):
        found["layers_block_type"] = _kinds_of_nemotron(name, keys, n_layers)
        found["moe_latent_size"] = _number(keys, f"{name}.moe_latent_size") or None
    if name in ("qwen3next", "qwen35", "qwen35moe", "qwen4exp"):
        found["full_attention_interval"] = _number(keys, f"{name}.full_attention_interval") or 4
        recurrent = _value(keys, f"{name}.attention.recurrent_layers")
        if isinstance(recurrent, tuple):
            kinds = ("full_attention", "linear_attention")
            found["layer_types"] = [kinds[bool(r)] for r in recurrent[:n_layers]]
    return found


def _of_deepseek4(keys: Keys, n_layers: int) -> dict[str, Any]:
    """Return which layers of a DeepSeek-V4 are compressed, and which have a table of experts."""
    ratios = _value(keys, "deepseek4.attention.compress_ratios")
    found = ratios if isinstance(ratios, tuple) and len(ratios) >= n_layers else (0,) * n_layers
    return {
        "compress_ratios": list(found),
        "num_hash_layers": _number(keys, "deepseek4.hash_layer_count") or 0,
    }


def _indexer_types(keys: Keys, n_layers: int) -> list[str]:
    """Return which layers of a GLM-5 need an indexer; the graph requires that they have one."""
    full = _value(keys, "glm-dsa.attention.indexer.types")
    if isinstance(full, tuple) and len(full) == n_layers and full[0]:
        return ["full" if is_full else "shared" for is_full in full]
    return ["full"] * n_layers


def _kinds_of_nemotron(name: str, keys: Keys, n_layers: int) -> list[str]:
    """Return the kinds of layers, which follow from their heads of K and V and their widths."""
    kv, widths = (
        _of_layers(keys, f"{name}.{key}", n_layers)
        for key in ("attention.head_count_kv", "feed_forward_length")
    )
    wide = "moe" if _number(keys, f"{name}.expert_count") else "mlp"
    return [
        wide if width else "attention" if heads else "mamba"
        for heads, width in zip(kv, widths, strict=True)
    ]


def _of_layers(keys: Keys, key: str, n_layers: int) -> list[object]:
    """Return a value for each layer: an array's, or one for all; zero beyond an array's end."""
    found = _value(keys, key)
    values = found if isinstance(found, tuple) else (found or 0,) * n_layers
    return [*values[:n_layers], *[0] * (n_layers - len(values))]


def _of_gemma4(keys: Keys, n_layers: int) -> dict[str, Any]:
    """Return which layers of a Gemma 4 have a window, keys and values, experts and embeddings."""
    found: dict[str, Any] = {
        "num_kv_shared_layers": _number(keys, "gemma4.attention.shared_kv_layers") or 0,
        "hidden_size_per_layer_input": _number(keys, "gemma4.embedding_length_per_layer_input")
        or 0,
        "enable_moe_block": bool(_number(keys, "gemma4.expert_count")),
        "top_k_experts": 1,
    }
    slides = _value(keys, "gemma4.attention.sliding_window_pattern")
    if isinstance(slides, tuple):
        kinds = ("full_attention", "sliding_attention")
        found["layer_types"] = [kinds[bool(slide)] for slide in slides[:n_layers]]
    return found


def _value(keys: Keys, key: str) -> Scalar | tuple[Scalar, ...] | None:
    return keys[key].value if key in keys else None


def _number(keys: Keys, key: str) -> int | None:
    found = _value(keys, key)
    return found if type(found) is int else None
