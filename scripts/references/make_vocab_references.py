"""Make tests/data/vocabularies: a small tokenizer of each kind, and its tokens of some texts.

    pip install '.[references]'
    python scripts/references/make_vocab_references.py

Each kind has a folder in the published form of a family, and a file KIND.json with the tokens of
the texts in reference_tokenizers.py, as computed by the library of the kind (tokenizers, tiktoken,
sentencepiece). Everything is learned from the same prose, so a second run writes the same files.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

from reference_ranks import make_hunyuan, make_tekken, make_tiktoken
from reference_tokenizers import TEXTS
from reference_unigram import make_unigram
from reference_vocabularies import (
    make_gemma4_bpe,
    make_gemma_bpe,
    make_spm_json,
    make_wordpiece,
)

VOCABULARIES = Path(__file__).resolve().parents[2] / "tests" / "data" / "vocabularies"

KINDS = {
    "bert": make_wordpiece,
    "bert-cased": partial(make_wordpiece, lowercase=False),
    "gemma": make_gemma_bpe,
    "gemma4": make_gemma4_bpe,
    "hunyuan": make_hunyuan,
    "kimi-k2": make_tiktoken,
    "phi-3": make_spm_json,
    "t5": make_unigram,
    "tekken": make_tekken,
    "xlm-r": partial(make_unigram, xlm_r=True),
}


def main() -> None:
    """Write all kinds."""
    for name, make in KINDS.items():
        folder = VOCABULARIES / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        encode = make(folder)
        lines = ",\n".join(
            json.dumps({"text": text, "tokens": encode(text)}, ensure_ascii=False) for text in TEXTS
        )
        (VOCABULARIES / f"{name}.json").write_text(f"[\n{lines}\n]\n", "utf-8")
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{name}: {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
