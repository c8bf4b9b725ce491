"""The class of a config.json: as it names it, or derived from model_type and from base classes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from dynquant.arch.families import Family, families
from dynquant.errors import ArchitectureError
from dynquant.text_settings import text_settings

CLASSES = {
    "afmoe": "AfmoeForCausalLM",
    "apertus": "ApertusForCausalLM",
    "arcee": "ArceeForCausalLM",
    "baichuan": "BaichuanForCausalLM",
    "bailing_hybrid": "BailingHybridForCausalLM",
    "bamba": "BambaForCausalLM",
    "bert": "BertModel",
    "bitnet": "BitNetForCausalLM",
    "bloom": "BloomForCausalLM",
    "chatglm": "ChatGLMModel",
    "cohere": "CohereForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "cohere2_moe": "Cohere2MoeForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "deepseek_v32": "DeepseekV32ForCausalLM",
    "deepseek_v4": "DeepseekV4ForCausalLM",
    "dots1": "Dots1ForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
    "ernie4_5_moe": "Ernie4_5_MoeForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "exaone_moe": "ExaoneMoeForCausalLM",
    "falcon": "FalconForCausalLM",
    "falcon_h1": "FalconH1ForCausalLM",
    "falcon_mamba": "FalconMambaForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma3n": "Gemma3nForConditionalGeneration",
    "gemma3n_text": "Gemma3nForCausalLM",
    "gemma4": "Gemma4ForConditionalGeneration",
    "gemma4_text": "Gemma4ForCausalLM",
    "gemma4_unified": "Gemma4UnifiedForConditionalGeneration",
    "gemma4_unified_text": "Gemma4UnifiedForCausalLM",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "glm4_moe_lite": "Glm4MoeLiteForCausalLM",
    "glm4v": "Glm4vForConditionalGeneration",
    "glm4v_moe": "Glm4vMoeForConditionalGeneration",
    "glm5_next": "Glm5NextForConditionalGeneration",
    "glm5_next_text": "Glm5NextForConditionalGeneration",
    "glm_moe_dsa": "GlmMoeDsaForCausalLM",
    "glm_ocr": "GlmOcrForConditionalGeneration",
    "gpt2": "GPT2LMHeadModel",
    "gpt_bigcode": "GPTBigCodeForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "granite": "GraniteForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
    "granitemoeshared": "GraniteMoeSharedForCausalLM",
    "hunyuan_v1_dense": "HunYuanDenseV1ForCausalLM",
    "hunyuan_v1_moe": "HunYuanMoEV1ForCausalLM",
    "idefics3": "Idefics3ForConditionalGeneration",
    "internlm2": "InternLM2ForCausalLM",
    "internlm3": "InternLM3ForCausalLM",
    "internvl": "InternVLForConditionalGeneration",
    "jamba": "JambaForCausalLM",
    "kimi_k2": "KimiK2ForCausalLM",
    "kimi_k3": "KimiK3ForConditionalGeneration",
    "kimi_linear": "KimiLinearForCausalLM",
    "laguna": "LagunaForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
    "lfm2_moe": "Lfm2MoeForCausalLM",
    "llama": "LlamaForCausalLM",
    "llama4": "Llama4ForConditionalGeneration",
    "llama4_text": "Llama4ForCausalLM",
    "llava": "LlavaForConditionalGeneration",
    "mamba": "MambaForCausalLM",
    "mamba2": "Mamba2ForCausalLM",
    "minicpm": "MiniCPMForCausalLM",
    "minicpm3": "MiniCPM3ForCausalLM",
    "minimax_m2": "MiniMaxM2ForCausalLM",
    "minimax_m3_vl": "MiniMaxM3SparseForConditionalGeneration",
    "minimax_m3_vl_text": "MiniMaxM3VLForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "mistral3": "Mistral3ForConditionalGeneration",
    "mistral4": "Mistral4ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "mpt": "MptForCausalLM",
    "muse_glimmer": "MuseGlimmerForConditionalGeneration",
    "muse_glimmer_text": "MuseGlimmerForConditionalGeneration",
    "nemotron": "NemotronForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
    "nemotron_h_puzzle": "NemotronHPuzzleForCausalLM",
    "nomic_bert": "NomicBertModel",
    "olmo": "OlmoForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "phimoe": "PhimoeForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "qwen3_omni_moe": "Qwen3OmniMoeForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
    "qwen4_exp": "Qwen4ExpForConditionalGeneration",
    "qwen4_exp_text": "Qwen4ExpForCausalLM",
    "roberta": "RobertaModel",
    "sarvam_moe": "SarvamMoEForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "smolvlm": "SmolVLMForConditionalGeneration",
    "solar_open": "SolarOpenForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
    "voxtral": "VoxtralForConditionalGeneration",
    "xlm-roberta": "XLMRobertaModel",
    "youtu": "YoutuForCausalLM",
    "youtu_vl": "YoutuVLForConditionalGeneration",
}
"""Class by `model_type`, for a config.json without `architectures`; as in transformers'
modeling_auto.py. A type that several models of different layout use is not listed."""

_WITH_HEAD = frozenset(
    {
        "Dots1ForCausalLM",
        "ApertusForCausalLM",
        "GPTNeoXForCausalLM",
        "BaiChuanForCausalLM",
        "BaichuanForCausalLM",
        "BailingMoeForCausalLM",
        "BailingMoeV2ForCausalLM",
        "ExaoneMoeForCausalLM",
        "DeepseekV4ForCausalLM",
        "GptOssForCausalLM",
        "InternLM2ForCausalLM",
        "MiniMaxM2ForCausalLM",
        "MiniMaxM3VLForCausalLM",
        "NemotronForCausalLM",
        "Olmo2ForCausalLM",
        "Olmo3ForCausalLM",
        "OlmoeForCausalLM",
        "PhiForCausalLM",
        "PhimoeForCausalLM",
        "Qwen2MoeForCausalLM",
        "StableLmForCausalLM",
        "SarvamMoEForCausalLM",
    }
)
"""Classes whose graph in llama.cpp needs an output matrix in the file."""

_HEADED = {"GPT2Model": "GPT2LMHeadModel"}
"""The language model of a base class whose name does not follow the rule."""

_CONVERTED = (
    "if llama.cpp's convert_hf_to_gguf.py supports it, convert with that and give the resulting"
    " GGUF"
)


@dataclass(frozen=True)
class Class:
    """The class of a model.

    describe: the family's function
    headless: whether it is a base class, a language model without the output matrix
    needs_head: whether llama.cpp does not load a file without that matrix
    """

    name: str
    describe: Family
    headless: bool = False
    needs_head: bool = False


def class_of(config: Mapping[str, Any], where: str) -> Class:
    """Return the class of a config.json.

    where: the path of config.json, which begins every message

    Raises ArchitectureError with one line if the class is missing or not supported.
    """
    known = families()
    name = stated_class(config, where)
    if name in known:
        return Class(name, known[name])
    language_model = _HEADED.get(name) or re.sub("Model$", "ForCausalLM", name)
    if language_model in known:
        needs_head = language_model in _WITH_HEAD
        return Class(name, known[language_model], headless=True, needs_head=needs_head)
    stems = {_stem(other): other for other in known}
    near = [stems[s] for s in difflib.get_close_matches(_stem(name), stems, 3, 0.7)]
    hint = f" (similar classes that are supported: {', '.join(near)})" if near else ""
    if text := _text_class(config):
        hint = f" (its text model is a {text}, which is supported if it is saved separately)"
    raise ArchitectureError(f"{where}: architecture {name!r} is not supported; {_CONVERTED}{hint}")


def _text_class(config: Mapping[str, Any]) -> str | None:
    """Return the class of the text model inside a multimodal model; None if it is not known."""
    text = text_settings(config)
    if text is None:
        return None
    listed = text.get("architectures")
    named = cast("list[object]", listed)[0] if isinstance(listed, list) and listed else None
    if isinstance(named, str) and named in families():
        return named
    type_ = text.get("model_type")
    return CLASSES.get(type_) if isinstance(type_, str) else None


def stated_class(config: Mapping[str, Any], where: str) -> str:
    """Return the class that a config.json names; raise ArchitectureError if it names none."""
    listed = config.get("architectures")
    if listed is None or listed == []:
        type_: object = config.get("model_type")
        if isinstance(type_, str) and type_ in CLASSES:
            return CLASSES[type_]
        what = "no architectures and no model_type"
        if type_ is not None:
            what = f"no architectures, and model_type {type_!r} is not the name of a known one"
        raise ArchitectureError(
            f"{where}: has {what}; add the model's class, such as"
            ' "architectures": ["LlamaForCausalLM"]'
        )
    name = cast("list[object]", listed)[0] if isinstance(listed, list) else listed
    if not isinstance(listed, list) or not isinstance(name, str):
        raise ArchitectureError(
            f"{where}: architectures names no model class; give the class in a list, such as"
            ' ["LlamaForCausalLM"]'
        )
    return name


def _stem(architecture: str) -> str:
    return re.sub("For(CausalLM|ConditionalGeneration)|Model", "", architecture).lower()
