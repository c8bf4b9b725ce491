"""The table of model families, from the registry of families and the reference checkpoints."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dynquant.arch.families import Family, families
from dynquant.arch.load import describe
from dynquant.arch.settings import Declared
from dynquant.arch.wrapped import OTHER_PARTS, Wrapped
from dynquant.text_settings import text_settings

REFERENCES = Path(__file__).resolve().parents[2] / "tests" / "references"


PUBLISHED = {
    "BambaForCausalLM": "Bamba 9B",
    "AfmoeForCausalLM": "Trinity Nano, Mini, Large",
    "BaiChuanForCausalLM": "Baichuan-7B",
    "BaichuanForCausalLM": "Baichuan-13B, Baichuan2-7B, 13B",
    "BailingMoeForCausalLM": "Ling and Ring 1, 1.5",
    "BailingMoeV2ForCausalLM": "Ling and Ring 2.0",
    "BailingMoeV3ForCausalLM": "Ling 3",
    "BertForSequenceClassification": "ms-marco-MiniLM",
    "BertModel": "all-MiniLM, bge-en",
    "ChatGLMModel": "ChatGLM3-6B, GLM-4-9B (own code)",
    "BitNetForCausalLM": "BitNet b1.58 with SiLU",
    "BloomForCausalLM": "BLOOM, BLOOMZ",
    "BitnetForCausalLM": "1bitLLM's BitNet b1.58 large, xl, 3B",
    "CohereForCausalLM": "Command-R, R+",
    "Cohere2ForCausalLM": "Command-R7B, Command-A",
    "Cohere2MoeForCausalLM": "Command-A-plus, North-Mini-Code",
    "DeepseekForCausalLM": "DeepSeek-V1",
    "DeepseekOCRForCausalLM": "DeepSeek-OCR, OCR 2",
    "DeepseekV2ForCausalLM": "DeepSeek-V2, V2-Lite",
    "DeepseekV3ForCausalLM": "DeepSeek-V3, V3.1, R1, Kimi-K2",
    "DeepseekV32ForCausalLM": "DeepSeek-V3.2",
    "FalconForCausalLM": "Falcon 7B, 40B, 180B, Falcon2 11B",
    "GPT2LMHeadModel": "GPT-2, DistilGPT2, Cerebras-GPT",
    "GPTBigCodeForCausalLM": "StarCoder, SantaCoder",
    "GPTNeoXForCausalLM": "Pythia, GPT-NeoX 20B, Dolly, RedPajama",
    "DeepseekV4ForCausalLM": "DeepSeek-V4 Flash, Pro",
    "FalconH1ForCausalLM": "Falcon-H1 0.5B to 34B",
    "FalconMambaForCausalLM": "Falcon-Mamba 7B",
    "Gemma3ForConditionalGeneration": "Gemma 3, MedGemma",
    "Gemma3TextModel": "EmbeddingGemma",
    "Gemma3nForConditionalGeneration": "Gemma 3n E2B, E4B",
    "Gemma4ForConditionalGeneration": "Gemma 4 E2B, E4B, 12B, 26B-A4B, 31B, QAT",
    "Glm4ForCausalLM": "GLM-4-0414",
    "Glm4MoeForCausalLM": "GLM-4.5, 4.6, 4.7",
    "Glm4MoeLiteForCausalLM": "GLM-4.7-Flash",
    "GlmMoeDsaForCausalLM": "GLM-5, 5.1, 5.2",
    "Glm4vForConditionalGeneration": "GLM-4.1V, 4.6V-Flash",
    "Glm4vMoeForConditionalGeneration": "GLM-4.5V, 4.6V",
    "Glm5NextForConditionalGeneration": "GLM-5.3-Flash",
    "GraniteMoeHybridForCausalLM": "Granite 4 Micro, Tiny, Small, 1B, 350M",
    "GlmOcrForConditionalGeneration": "GLM-OCR",
    "Dots1ForCausalLM": "dots.llm1",
    "Ernie4_5ForCausalLM": "ERNIE 4.5 0.3B",
    "Ernie4_5_MoeForCausalLM": "ERNIE 4.5 21B-A3B, 300B-A47B",
    "ExaoneMoeForCausalLM": "K-EXAONE-236B-A23B",
    "HunYuanMoEV1ForCausalLM": "Hunyuan A13B",
    "InternLM2ForCausalLM": "InternLM2, InternLM2.5",
    "InternLM3ForCausalLM": "InternLM3-8B",
    "KimiK3ForConditionalGeneration": "Kimi-K3",
    "KimiLinearForCausalLM": "Kimi-Linear 48B-A3B",
    "LagunaForCausalLM": "Laguna XS.2, S 2.1, M.1",
    "JambaForCausalLM": "Jamba 1.5 to 1.7, Jamba Reasoning",
    "Lfm2ForCausalLM": "LFM2, LFM2.5, LFM2-VL",
    "Lfm2MoeForCausalLM": "LFM2-8B-A1B, LFM2.5-8B-A1B",
    "LlamaForCausalLM": "Llama 2, 3, 3.1 to 3.3",
    "Mistral3ForConditionalGeneration": (
        "Mistral Small 3.1, 3.2, Devstral 2, Magistral 1.2, Ministral 3"
    ),
    "Llama4ForConditionalGeneration": "Llama 4 Scout, Maverick",
    "MiniCPM3ForCausalLM": "MiniCPM3-4B",
    "MiniCPMForCausalLM": "MiniCPM-1B, 2B, MiniCPM4, 4.1",
    "Mamba2ForCausalLM": "Mamba-Codestral 7B, mamba2-*-hf",
    "MambaForCausalLM": "mamba-*-hf",
    "MiniMaxM2ForCausalLM": "MiniMax M2, M2.5, M2.7",
    "MiniMaxM3SparseForConditionalGeneration": "MiniMax M3",
    "Mistral4ForCausalLM": "Mistral Small 4 119B",
    "MistralForCausalLM": "Mistral 7B, Nemo, Small 3",
    "MptForCausalLM": "MPT 7B, 30B",
    "MuseGlimmerForConditionalGeneration": "Muse Glimmer 30B",
    "NemotronHForCausalLM": "Nemotron-H, Nano 2, Nemotron 3 and 3.5",
    "NemotronForCausalLM": "Nemotron-4, Minitron",
    "NemotronHPuzzleForCausalLM": "Nemotron 3 Puzzle 75B-A9B",
    "NomicBertModel": "nomic-embed-text v1, v1.5",
    "OlmoForCausalLM": "OLMo 1, 1.7",
    "Phi3ForCausalLM": "Phi-3, Phi-4, Phi-4-mini",
    "PhiForCausalLM": "Phi-1, Phi-1.5, Phi-2",
    "Qwen2ForCausalLM": "Qwen2, Qwen2.5",
    "Qwen2VLForConditionalGeneration": "Qwen2-VL, Qwen2.5-VL, Qwen2.5-Omni",
    "Qwen3ForCausalLM": "Qwen3, Qwen3-Embedding",
    "Qwen3MoeForCausalLM": "Qwen3-30B-A3B, Qwen3-Coder",
    "Qwen3NextForCausalLM": "Qwen3-Next, Qwen3-Coder-Next",
    "Qwen3_5ForConditionalGeneration": "Qwen3.5, 3.6, 3.8, MiniCPM-V 4.6",
    "Qwen3_5MoeForConditionalGeneration": "Qwen3.5-35B-A3B, 122B-A10B",
    "Qwen4ExpForConditionalGeneration": "Qwen3.8-Flash-Next",
    "Qwen3VLForConditionalGeneration": "Qwen3-VL",
    "Qwen3VLMoeForConditionalGeneration": "Qwen3-VL-30B-A3B, 235B-A22B",
    "SarvamMoEForCausalLM": "Sarvam-30B",
    "SolarOpenForCausalLM": "Solar Open 100B",
    "StableLmForCausalLM": "StableLM 2, 3B, Zephyr",
    "XLMRobertaForSequenceClassification": "bge-reranker",
    "XLMRobertaModel": "bge-m3, multilingual-E5",
    "YoutuForCausalLM": "Youtu-LLM-2B",
    "YoutuVLForConditionalGeneration": "Youtu-VL-4B",
}
"""Published models of a class, as people call them."""


def family_rows() -> list[tuple[str, ...]]:
    """Return a row for each family: what it is, published models, classes, GGUF architectures,
    what is left out, references.
    """
    classes: dict[Family, list[str]] = {}
    for name, family in families().items():
        if (own := _own(family)) is not None:
            classes.setdefault(own, []).append(name)
    references = _references()
    rows: list[tuple[str, ...]] = []
    for family, names in classes.items():
        proven = {r: arch for r, (class_, arch) in references.items() if class_ in names}
        larger = [n for n in names if isinstance(families()[n], Wrapped)]
        what = _what(family)
        if larger == names and "language model" not in what:
            what += " (language model)"
        models = ", ".join(PUBLISHED[n] for n in names if n in PUBLISHED)
        architectures = _code(sorted(set(proven.values())))
        left_out = _left_out(proven, is_larger=bool(larger))
        checked = ", ".join(map(_checked, proven))
        rows.append((what, models, _code(names), architectures, left_out, checked))
    return sorted(rows, key=lambda row: row[0].lower())


_NOTHING_LOST = re.compile(r"llama.cpp computes .*|the positions .*|not used .*")
"""Reasons for stored tensors that are not needed: nothing of the model is left out."""


def _left_out(references: Iterable[str], *, is_larger: bool) -> str:
    """Return what the file does not have of a checkpoint, with the reason.

    is_larger: whether a class of the family also sees, hears or speaks
    """
    parts = ["vision and audio models"] if is_larger else []
    reasons: dict[str, None] = {}
    for reference in references:
        path = REFERENCES / reference / "config.json"
        found = describe(json.loads(path.read_text("utf-8")), path.name)
        if found.prediction is not None:
            parts.append("prediction layers, if not kept")
        own = {p: r for p, r in found.ignored.items() if p not in OTHER_PARTS}
        reasons |= dict.fromkeys(r for r in own.values() if not _NOTHING_LOST.fullmatch(r))
    return "; ".join(dict.fromkeys((*parts, *reasons)))


def around_any() -> str:
    """Return the classes around a language model of any family."""
    return _code(name for name, family in families().items() if _own(family) is None)


def _own(family: Family) -> Family | None:
    """Return a family, or that of its language model; None for classes around any."""
    return family.family if isinstance(family, Wrapped) else family


def _references() -> dict[str, tuple[str, str]]:
    """Return the class and the GGUF architecture of each reference checkpoint."""
    found: dict[str, tuple[str, str]] = {}
    for path in sorted(REFERENCES.glob("*/config.json")):
        config: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
        if "architectures" in config:
            class_ = _class_of(config)
            found[path.parent.name] = class_, describe(config, path.name).name
    return found


def _class_of(config: Mapping[str, Any]) -> str:
    """Return the class of a reference; of another family in a larger model, the class of that."""
    stated = config["architectures"][0]
    known = families()
    larger = known[stated]
    if not isinstance(larger, Wrapped):
        return stated
    inside = larger.family_of(text_settings(config))
    if inside is larger.family:
        return stated
    return next(name for name, family in known.items() if family is inside)


def _checked(reference: str) -> str:
    """Return the name of a reference, and that its answers are not those of transformers."""
    stored = json.loads((REFERENCES / f"{reference}.json").read_text("utf-8"))
    return f"{reference} (own implementation)" if stored.get("by") else reference


def _what(family: Family) -> str:
    """Return the first sentence of a family's docstring, without its beginning."""
    function = family.family if isinstance(family, Declared) else family
    text = inspect.getdoc(function) or ""
    first = " ".join(text.split("\n\n")[0].split())
    what = re.sub(r"^Describe (an?|the)? ?", "", first).rstrip(".")
    return what[:1].upper() + what[1:] if not what.startswith("gpt") else what


def _code(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)
