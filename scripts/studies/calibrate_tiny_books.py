"""Make an imatrix of a small model: the mean square of each input channel of its layers' matrices.

    pip install '.[references]'
    python scripts/studies/calibrate_tiny_books.py OUT.gguf --text FILE [--chunks 128] \
        [--model FOLDER]

What llama-imatrix does in the runtime, done with transformers in float32: the text's first chunks
of 512 tokens, each read on its own and without a BOS token, squares summed over all of them. As
there, the output matrix is left out. The text must not be the one that a comparison is made on. On
one machine a second run writes the same file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
from tokenizers import Tokenizer

import dynquant
from dynquant.arrays import F32
from dynquant.importance.imatrix import write_imatrix

TINY_BOOKS = Path(__file__).resolve().parents[2] / "tests" / "data" / "tiny-books"
CHUNK = 512
"""Tokens of a chunk, the default of llama-imatrix."""


def calibrate(folder: Path, chunks: list[list[int]]) -> dict[str, tuple[F32, list[int]]]:
    """Return sums of squares [1, n_per_row] and the count of tokens of each layer's matrices."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    sums: dict[str, torch.Tensor] = {}

    def count(name: str, linear: torch.nn.Linear) -> None:
        sums[name] = torch.zeros(linear.in_features, dtype=torch.float64)

        def before(_: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            sums[name] += inputs[0].flatten(0, -2).double().square().sum(0)

        linear.register_forward_pre_hook(before)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            count(name, module)
    with torch.no_grad():
        for chunk in chunks:
            model(torch.tensor([chunk]))
    architecture = dynquant.load_model(folder).architecture
    (number,) = (a for a, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(number, model.config.num_hidden_layers)
    n_tokens = sum(map(len, chunks))
    return {
        f"{names.get_name(name)}.weight": (s.numpy().astype(np.float32)[None], [n_tokens])
        for name, s in sums.items()
    }


def main() -> None:
    """Calibrate as the command line says and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT.gguf")
    parser.add_argument("--text", type=Path, required=True, help="what to read")
    parser.add_argument("--model", type=Path, default=TINY_BOOKS, help="default: tiny-books")
    parser.add_argument("--chunks", type=int, default=128, help=f"at most, of {CHUNK} tokens")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    ids = tokenizer.encode(arguments.text.read_text("utf-8"), add_special_tokens=False).ids
    starts = range(0, len(ids) - CHUNK + 1, CHUNK)[: arguments.chunks]
    if not starts:
        parser.error(f"{arguments.text} has {len(ids)} tokens; a chunk is {CHUNK}")
    entries = calibrate(arguments.model, [ids[i : i + CHUNK] for i in starts])
    write_imatrix(
        arguments.out,
        entries,
        datasets=[arguments.text.name],
        chunk_count=len(starts),
        chunk_size=CHUNK,
    )
    print(f"{arguments.out}: {len(entries)} matrices, {len(starts)} chunks of {CHUNK} tokens")


if __name__ == "__main__":
    main()
