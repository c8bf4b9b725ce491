"""Make tests/references/imatrix: what `dynquant imatrix` collects of the tiny checkpoints.

    pip install -e '.[dev,calibrate]'
    python scripts/references/make_imatrix_references.py [FAMILY ...]

A file of each family named, or of all in FAMILIES, from the first windows of text.txt beside them.
Tests without torch compare them with what llama.cpp multiplies; tests with torch make them again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from transformers.utils import logging

from dynquant.calibrate.imatrix import Settings, make_imatrix
from dynquant.errors import CalibrationError
from dynquant.texts import read_texts

REFERENCES = Path(__file__).resolve().parents[2] / "tests" / "references"
OUT = REFERENCES / "imatrix"

FAMILIES = (
    # Dense: plain; with norms of heads, windows and GELU; matrices stored transposed.
    *("llama-3.1", "gemma3", "gpt2"),
    # Experts: in one parameter; with a shared one and its gate; with biases; all at once.
    *("qwen3moe", "qwen2moe", "gpt-oss", "llama4"),
    # Latent attention: beside shared experts; with queries that grow in long texts.
    *("deepseek-v3", "mistral4-groups"),
    # States: gated delta nets, Mamba 2, Mamba 1 with and without attention, short convolutions.
    *("qwen3next", "granite4h", "falcon-h1", "jamba", "falcon-mamba", "lfm2"),
)
CONTEXT, WINDOWS = 64, 2


def main() -> None:
    """Make the files of the families named on the command line, or of all."""
    logging.set_verbosity_error()
    settings = Settings(
        tuple(read_texts([OUT / "text.txt"], CalibrationError)),
        context=CONTEXT,
        chunks=WINDOWS,
        threads=1,
    )
    for family in sys.argv[1:] or FAMILIES:
        out = OUT / f"{family}.gguf"
        warnings = make_imatrix(
            REFERENCES / family,
            out,
            settings,
            force=True,
            progress=lambda _, __: None,
            say=lambda _: None,
        )
        print(f"{out.name}: {out.stat().st_size:,} bytes", *warnings, sep="; ")


if __name__ == "__main__":
    main()
