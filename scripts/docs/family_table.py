"""The table of model families, from the registry of families and the reference checkpoints."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynquant.arch.families import Family, families
from dynquant.arch.load import describe
from dynquant.arch.settings import Declared
from dynquant.arch.wrapped import Wrapped

REFERENCES = Path(__file__).resolve().parents[2] / "tests" / "references"


PUBLISHED = {
    "BertForSequenceClassification": "ms-marco-MiniLM",
    "BertModel": "all-MiniLM, bge-en",
    "CohereForCausalLM": "Command-R, R+",
    "Cohere2ForCausalLM": "Command-R7B, Command-A",
    "DeepseekForCausalLM": "DeepSeek-V1",
    "DeepseekOCRForCausalLM": "DeepSeek-OCR, OCR 2",
    "DeepseekV2ForCausalLM": "DeepSeek-V2, V2-Lite",
    "DeepseekV3ForCausalLM": "DeepSeek-V3, V3.1, R1, Kimi-K2",
    "Gemma3ForConditionalGeneration": "Gemma 3, MedGemma",
    "Gemma3TextModel": "EmbeddingGemma",
    "Gemma3nForConditionalGeneration": "Gemma 3n E2B, E4B",
    "Gemma4ForConditionalGeneration": "Gemma 4 E2B, E4B, 12B, 26B-A4B, 31B, QAT",
    "Glm4ForCausalLM": "GLM-4-0414",
    "Glm4MoeForCausalLM": "GLM-4.5, 4.6, 4.7",
    "Glm4MoeLiteForCausalLM": "GLM-4.7-Flash",
    "Glm4vForConditionalGeneration": "GLM-4.1V, 4.6V-Flash",
    "Glm4vMoeForConditionalGeneration": "GLM-4.5V, 4.6V",
    "Glm5NextForConditionalGeneration": "GLM-5.3-Flash",
    "GraniteMoeHybridForCausalLM": "Granite 4 Micro, 1B, 350M",
    "Dots1ForCausalLM": "dots.llm1",
    "Ernie4_5ForCausalLM": "ERNIE 4.5 0.3B",
    "Ernie4_5_MoeForCausalLM": "ERNIE 4.5 21B-A3B, 300B-A47B",
    "HunYuanMoEV1ForCausalLM": "Hunyuan A13B",
    "InternLM3ForCausalLM": "InternLM3-8B",
    "KimiK3ForConditionalGeneration": "Kimi-K3",
    "KimiLinearForCausalLM": "Kimi-Linear 48B-A3B",
    "Lfm2ForCausalLM": "LFM2, LFM2.5, LFM2-VL",
    "Lfm2MoeForCausalLM": "LFM2-8B-A1B, LFM2.5-8B-A1B",
    "LlamaForCausalLM": "Llama 2, 3, 3.1 to 3.3",
    "Mistral3ForConditionalGeneration": (
        "Mistral Small 3.1, 3.2, Devstral 2, Magistral 1.2, Ministral 3"
    ),
    "Llama4ForConditionalGeneration": "Llama 4 Scout, Maverick",
    "MiniMaxM2ForCausalLM": "MiniMax M2, M2.5, M2.7",
    "MistralForCausalLM": "Mistral 7B, Nemo, Small 3",
    "MuseGlimmerForConditionalGeneration": "Muse Glimmer 30B",
    "NomicBertModel": "nomic-embed-text v1, v1.5",
    "Phi3ForCausalLM": "Phi-3, Phi-4, Phi-4-mini",
    "Qwen2ForCausalLM": "Qwen2, Qwen2.5",
    "Qwen2VLForConditionalGeneration": "Qwen2-VL, Qwen2.5-VL, Qwen2.5-Omni",
    "Qwen3ForCausalLM": "Qwen3, Qwen3-Embedding",
    "Qwen3MoeForCausalLM": "Qwen3-30B-A3B, Qwen3-Coder",
    "Qwen3NextForCausalLM": "Qwen3-Next, Qwen3-Coder-Next",
    "Qwen3_5ForConditionalGeneration": "Qwen3.5, 3.6, 3.8, MiniCPM-V 4.6",
    "Qwen3_5MoeForConditionalGeneration": "Qwen3.5-35B-A3B, 122B-A10B",
    "Qwen3VLForConditionalGeneration": "Qwen3-VL",
    "Qwen3VLMoeForConditionalGeneration": "Qwen3-VL-30B-A3B, 235B-A22B",
    "SolarOpenForCausalLM": "Solar Open 100B",
    "XLMRobertaForSequenceClassification": "bge-reranker",
    "XLMRobertaModel": "bge-m3, multilingual-E5",
}
"""Published models of a class, as people call them."""


def family_rows() -> list[tuple[str, ...]]:
    """Return a row for each family: what it is, published models, classes, GGUF architectures,
    references.
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
        rows.append((what, models, _code(names), architectures, ", ".join(map(_checked, proven))))
    return sorted(rows, key=lambda row: row[0].lower())


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
            class_ = config["architectures"][0]
            found[path.parent.name] = class_, describe(config, path.name).name
    return found


def _checked(reference: str) -> str:
    """Return the name of a reference, and that its answers are not those of transformers."""
    stored = json.loads((REFERENCES / f"{reference}.json").read_text("utf-8"))
    return f"{reference} (own implementation)" if stored.get("answers") else reference


def _what(family: Family) -> str:
    """Return the first sentence of a family's docstring, without its beginning."""
    function = family.family if isinstance(family, Declared) else family
    text = inspect.getdoc(function) or ""
    first = " ".join(text.split("\n\n")[0].split())
    what = re.sub(r"^Describe (an?|the)? ?", "", first).rstrip(".")
    return what[:1].upper() + what[1:] if not what.startswith("gpt") else what


def _code(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)
