"""Show how far llama.cpp on our files is from transformers on the checkpoints.

    python scripts/checks/show_agreement.py [RECIPE ...]

For each reference in tests/references and each recipe (f32, q8_0 and dynamic-4bit unless named):
the largest difference of any log-probability of the token after a prompt, the mean KL divergence,
whether the tokens of the reference's texts are its own tokenizer's, and what tiny-books writes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import dynquant

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from agreement import FAMILIES, TINY_BOOKS, divergence, load_reference, max_difference
from llamacpp import Runtime, tokenize

PROMPT = "Once upon a time there was"


def main() -> None:
    """Print one line for each reference and recipe, then the sentences."""
    recipes = sys.argv[1:] or ["f32", "q8_0", "dynamic-4bit"]
    sentences: dict[str, str] = {}
    print(f"{'':18}{'recipe':14}{'max |Δ log p|':>14}{'mean KL':>12}{'tokens':>10}{'kB':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name in (*FAMILIES, TINY_BOOKS):
            reference = load_reference(name)
            if reference.embeds:
                continue
            texts = list(reference.tokens)
            for recipe in recipes:
                file = Path(folder) / f"{name}-{Path(recipe).stem}.gguf"
                dynquant.convert(reference.folder, file, recipe=recipe, threads=2)
                found = tokenize(file, texts, parse_special=reference.parses_special)
                n_equal = sum(a == b for a, b in zip(reference.tokens.values(), found, strict=True))
                with Runtime(file) as runtime:
                    ours = runtime.log_probabilities(reference.prompts)
                    if name == TINY_BOOKS:
                        sentences[recipe] = runtime.generate(PROMPT, 40)
                difference = max_difference(reference.log_probabilities, ours)
                kl = divergence(reference.log_probabilities, ours)
                tokens = f"{n_equal}/{len(texts)}"
                size = file.stat().st_size / 1000
                print(f"{name:18}{recipe:14}{difference:14.1e}{kl:12.1e}{tokens:>10}{size:8.0f}")
    for recipe, text in sentences.items():
        print(f"\ntiny-books, {recipe}: {PROMPT}[{' '.join(text.split())}]")


if __name__ == "__main__":
    main()
