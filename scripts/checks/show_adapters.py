"""How far adapters' answers are from those of the model that PEFT merged.

    python scripts/checks/show_adapters.py [FAMILY ...]

For each adapter of tests/references/adapters: the largest difference of a log-probability between
PEFT's `merge_and_unload` in transformers, which is stored, and llama.cpp (the xllamacpp wheel) with
the base alone, with the adapter merged by dynquant, and with the adapter's GGUF.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parents[2] / "tests"
sys.path.insert(0, str(TESTS / "support"))

import llamacpp  # noqa: E402  (after the path of the tests' support)
from adapters import ADAPTERS, FAMILIES, alone, merged  # noqa: E402
from agreement import load_reference, max_difference  # noqa: E402


def show(family: str, folder: Path) -> None:
    """Print the differences of a family's adapter."""
    prompts, wanted = load_reference(family).prompts, np.load(ADAPTERS / f"{family}.npy")
    base = merged(family, folder / "base.gguf", force=True)
    with_it = merged(family, folder / "merged.gguf", ADAPTERS / family, force=True)
    adapter = alone(family, folder / "adapter.gguf", force=True)
    found = (
        llamacpp.log_probabilities(base, prompts),
        llamacpp.log_probabilities(with_it, prompts),
        llamacpp.log_probabilities(base, prompts, adapter=adapter),
    )
    differences = [max_difference(wanted, one) for one in found]
    print(f"{family:12} {' '.join(f'{d:<10.2g}' for d in differences).rstrip()}")


def main() -> None:
    """Show the families named on the command line, or all."""
    print(f"{'family':12} {'base':10} {'merged':10} applied")
    with tempfile.TemporaryDirectory() as folder:
        for family in sys.argv[1:] or FAMILIES:
            show(family, Path(folder))


if __name__ == "__main__":
    main()
