"""Show which of the most-downloaded GGUF repositories dynquant can make from safetensors.

    python scripts/checks/show_demand.py

Downloads are of 30 days, from stored pages of Hugging Face of July to November 2026; snapshots of
different repositories differ by up to four months, so ranks are rough. The class is that of the
base model's config.json; it is missing where this file has not been read.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from dynquant.arch.families import families

QWEN35 = "Qwen3_5ForConditionalGeneration"
QWEN35_MOE = "Qwen3_5MoeForConditionalGeneration"
GEMMA4 = "Gemma4ForConditionalGeneration"


@dataclass(frozen=True)
class Repository:
    """A repository of GGUF files.

    thousands: downloads in 30 days
    of:        class of the base model; None if it is not known
    sees:      whether the base model also sees
    """

    name: str
    thousands: int
    of: str | None
    sees: bool = False


SAMPLE = (
    Repository("unsloth/Qwen3-Coder-30B-A3B-Instruct-GGUF", 12600, "Qwen3MoeForCausalLM"),
    Repository("unsloth/Qwen3.8-27B-GGUF", 10700, QWEN35, sees=True),
    Repository("ornith-ai/Ornith-1.0-9B-GGUF", 2520, QWEN35, sees=True),
    Repository("DavidAU/Qwen3.6-27B-…-MTP-GGUF", 1370, QWEN35, sees=True),
    Repository("unsloth/Qwen3.6-35B-A3B-GGUF", 1170, QWEN35_MOE, sees=True),
    Repository("unsloth/gemma-4-26B-A4B-it-GGUF", 1080, GEMMA4, sees=True),
    Repository("unsloth/Muse-Glimmer-30B-GGUF", 1080, "MuseGlimmerForConditionalGeneration", True),
    Repository("LiquidAI/LFM2.5-2.6B-GGUF", 1040, "Lfm2ForCausalLM"),
    Repository("unsloth/Qwen3.5-9B-GGUF", 1020, QWEN35, sees=True),
    Repository("unsloth/Qwen3.8-Flash-Next-GGUF", 936, "Qwen4ExpForConditionalGeneration", True),
    Repository("unsloth/Qwen3.6-27B-MTP-GGUF", 811, QWEN35, sees=True),
    Repository("prism-ml/Ternary-Bonsai-27B-gguf", 734, None),
    Repository("unsloth/Qwen3.6-35B-A3B-MTP-GGUF", 674, QWEN35_MOE, sees=True),
    Repository("unsloth/gemma-4-31B-it-qat-GGUF", 661, GEMMA4, sees=True),
    Repository("unsloth/gemma-4-E4B-it-GGUF", 532, GEMMA4, sees=True),
    Repository("unsloth/gemma-4-26B-A4B-it-qat-GGUF", 518, GEMMA4, sees=True),
    Repository("unsloth/Kimi-K3-GGUF", 485, "KimiK3ForConditionalGeneration", sees=True),
    Repository("unsloth/gemma-4-31B-it-GGUF", 469, GEMMA4, sees=True),
    Repository("LiquidAI/LFM2.5-8B-A1B-GGUF", 465, "Lfm2MoeForCausalLM"),
    Repository("unsloth/Qwen-AgentWorld-35B-A3B-GGUF", 452, QWEN35_MOE, sees=True),
    Repository("unsloth/GLM-5.2-GGUF", 408, "GlmMoeDsaForCausalLM"),
    Repository("unsloth/DeepSeek-V4-Flash-0731-GGUF", 394, "DeepseekV4ForCausalLM"),
    Repository("DavidAU/Qwen3.6-40B-…-GGUF", 392, QWEN35, sees=True),
    Repository("Jackrong/Qwopus3.6-27B-v2-MTP-GGUF", 325, QWEN35, sees=True),
    Repository("antirez/glm-5.3-flash-gguf", 203, "Glm5NextForConditionalGeneration", sees=True),
    Repository("ibm-granite/granite-4.2-30b-GGUF", 194, None),
    Repository("unsloth/GLM-4.7-Flash-GGUF", 193, "Glm4MoeLiteForCausalLM"),
    Repository("unsloth/gpt-oss-20b-GGUF", 155, "GptOssForCausalLM"),
    Repository("unsloth/Qwen3-Coder-Next-GGUF", 143, "Qwen3NextForCausalLM"),
    Repository("unsloth/DeepSeek-V4-Pro-0813-GGUF", 122, "DeepseekV4ForCausalLM"),
)
"""Of two figures for one repository, the smaller one."""


def is_made(repository: Repository) -> bool:
    """Whether dynquant reads the base model's class; not if the class is not known."""
    return repository.of in families()


def main() -> None:
    """Print the table and the shares."""
    table = Table("repository", "thousands", "sees", "class", "dynquant makes it", box=None)
    for repository in SAMPLE:
        made = "yes" if is_made(repository) else "class not known" if not repository.of else "no"
        text = ", language model" if made == "yes" and repository.sees else ""
        table.add_row(
            repository.name,
            f"{repository.thousands:,}",
            "yes" if repository.sees else "",
            repository.of or "",
            made + text,
        )
    Console(width=150).print(table)
    made = [repository for repository in SAMPLE if is_made(repository)]
    downloads = sum(r.thousands for r in made) / sum(r.thousands for r in SAMPLE)
    print(f"\n{len(made)} of {len(SAMPLE)} repositories, {downloads:.1%} of their downloads")


if __name__ == "__main__":
    main()
