"""References that transformers runs, and the arithmetic in which llama.cpp differs from it."""

from __future__ import annotations

from agreement import FAMILIES, load_reference
from places import REFERENCES

IMATRICES = REFERENCES / "imatrix"
"""What `dynquant imatrix` collected: scripts/references/make_imatrix_references.py."""

STORED = tuple(sorted(path.stem for path in IMATRICES.glob("*.gguf")))

UNKNOWN = {
    # Families whose code is in their own repositories.
    *("baichuan", "baichuan2", "bailingmoe", "bailingmoe2", "chatglm", "chatglm3"),
    *("deepseek", "deepseek-ocr", "internlm2", "kimi-k3", "minicpm", "nemotron-h-puzzle"),
    # Says that it is a Llama, and has norms that a Llama does not have.
    "bitnet-first",
    # Its class needs settings that the reference's config.json does not have.
    "qwen3omnimoe",
}
"""References that transformers does not run."""

RUNNABLE = [f for f in FAMILIES if f not in UNKNOWN and not load_reference(f).embeds]

SAME = 5e-5
"""Largest relative difference of sums in F32 arithmetic of another order. Measured on the
references: 2e-5 (qwen3vlmoe), most below 1e-6."""

GELU = 1e-3
"""The same where llama.cpp reads GELU from a table of half-floats: 5e-4 (gemma4)."""

BOUNDS = {
    **dict.fromkeys(("bloom", "falcon", "falcon-40b", "gpt2", "gptneox", "gptneox-serial"), GELU),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma4", "gemma4unified", "mpt"), GELU),
    **dict.fromkeys(("phi2", "starcoder", "starcoder-mha", "starcoder2"), GELU),
    # llama.cpp does not read the epsilon of their norms.
    **dict.fromkeys(("qwen2vl", "qwen2.5vl"), GELU),
    # GELU, and a standard deviation with n - 1 in place of n, which matters for few channels.
    "gemma3n": 0.3,
    # llama.cpp computes attention in half-floats: it has this family's with fused attention only.
    "minimax-m3": 0.02,
}
"""Families whose sums differ by more than F32 arithmetic, and by how much at most. The references
themselves are computed with llama.cpp's arithmetic (`adapt` in scripts/references)."""

OTHER_EXPERTS = {
    # llama.cpp computes other norms and another routing, of which convert warns.
    "phimoe",
    # The difference of GELU is enough for a token to choose another expert.
    "gemma4moe",
}
"""Families whose tokens choose other experts in llama.cpp."""


OUTPUT_FACTOR = {"minicpm3": 8.0}
"""What llama.cpp's inputs of the output matrix are of ours: transformers multiplies the hidden
states after the decoder that is run. One factor for all channels changes no importance."""


def bound_of(family: str) -> float:
    """Return the largest permitted relative difference of a tensor's sums."""
    return BOUNDS.get(family, SAME)
