#!/usr/bin/env python3
"""Measure a conversion of experts that are stored transposed, as in gpt-oss in BF16.

    python scripts/bench/bench_transposed.py [--experts 8] [--threads 1 2 16] [--recipe q8_0]

Writes one layer of gpt-oss's shape ([2880, 5760] and [2880, 2880] for each expert; 400 MB for eight
experts) to a temporary folder and converts it, each time in a separate process. Prints wall time,
the largest resident size (ru_maxrss), the bytes read from the checkpoint divided by the bytes that
the conversion needs (the gate and the up projection each read the matrix that holds both), and the
sha256 of the output.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
from bench_convert import run
from rich.console import Console
from rich.table import Table

REFERENCE = Path(__file__).resolve().parents[2] / "tests" / "references" / "gpt-oss"
HIDDEN, FFN, N_HEAD, N_HEAD_KV, HEAD_DIM = 2880, 2880, 6, 2, 16
SEED_BYTES = 1 << 22  # random weights that are repeated to fill the file

CONVERT = """
import sys
import threading
from pathlib import Path
import dynquant
from dynquant.tensors import ShardFile

model, out, recipe, threads, report = sys.argv[1:]
n_read, lock, read = [0], threading.Lock(), ShardFile.read

def counted(self, offset, into):
    with lock:
        n_read[0] += into.nbytes
    read(self, offset, into)

ShardFile.read = counted
dynquant.convert(
    model, out, recipe=recipe, threads=int(threads), force=True, manifest=None, verify_sample=0
)
Path(report).write_text(str(n_read[0]))
"""


def shapes(n_experts: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a gpt-oss of one layer with a small attention."""
    config = json.loads((REFERENCE / "config.json").read_text())
    layer, q, kv = "model.layers.0.", N_HEAD * HEAD_DIM, N_HEAD_KV * HEAD_DIM
    return {
        "model.embed_tokens.weight": (config["vocab_size"], HIDDEN),
        f"{layer}input_layernorm.weight": (HIDDEN,),
        f"{layer}self_attn.q_proj.weight": (q, HIDDEN),
        f"{layer}self_attn.q_proj.bias": (q,),
        f"{layer}self_attn.k_proj.weight": (kv, HIDDEN),
        f"{layer}self_attn.k_proj.bias": (kv,),
        f"{layer}self_attn.v_proj.weight": (kv, HIDDEN),
        f"{layer}self_attn.v_proj.bias": (kv,),
        f"{layer}self_attn.o_proj.weight": (HIDDEN, q),
        f"{layer}self_attn.o_proj.bias": (HIDDEN,),
        f"{layer}self_attn.sinks": (N_HEAD,),
        f"{layer}post_attention_layernorm.weight": (HIDDEN,),
        f"{layer}mlp.router.weight": (n_experts, HIDDEN),
        f"{layer}mlp.router.bias": (n_experts,),
        f"{layer}mlp.experts.gate_up_proj": (n_experts, HIDDEN, 2 * FFN),
        f"{layer}mlp.experts.gate_up_proj_bias": (n_experts, 2 * FFN),
        f"{layer}mlp.experts.down_proj": (n_experts, FFN, HIDDEN),
        f"{layer}mlp.experts.down_proj_bias": (n_experts, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (config["vocab_size"], HIDDEN),
    }


def write_checkpoint(folder: Path, n_experts: int) -> int:
    """Write the checkpoint; return the bytes that a conversion has to read."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(REFERENCE / name, folder)
    config = json.loads((REFERENCE / "config.json").read_text()) | {
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_local_experts": n_experts,
        "num_hidden_layers": 1,
        "layer_types": ["sliding_attention"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    header: dict[str, object] = {}
    end = needed = 0
    for name, shape in shapes(n_experts).items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        needed += (end - start) * (2 if "gate_up" in name else 1)
    text = json.dumps(header).encode()
    values = np.random.default_rng(0).standard_normal(SEED_BYTES // 2).astype(np.float32)
    block = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, end, SEED_BYTES):
            file.write(block[: end - start])
    return needed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--experts", type=int, default=8, help="default 8; gpt-oss-20b has 32")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 16])
    parser.add_argument("--recipe", default="q8_0")
    given = parser.parse_args()
    table = Table(box=None)
    for column in ("threads", "wall s", "CPU s", "peak MB", "read / needed", "sha256"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "gpt-oss"  # the output has the name of the folder as a key
        folder.mkdir()
        needed = write_checkpoint(folder, given.experts)
        out, report = folder / "x.gguf", folder / "n_read"
        for threads in given.threads:
            command = [sys.executable, "-c", CONVERT, str(folder), str(out)]
            made = run([*command, given.recipe, str(threads), str(report)], out)
            with out.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            read = int(report.read_text()) / needed
            table.add_row(
                str(threads),
                f"{made.wall:.1f}",
                f"{made.cpu:.1f}",
                f"{made.memory / 1e6:.0f}",
                f"{read:.2f}",
                sha256[:16],
            )
    Console().print(table)


if __name__ == "__main__":
    main()
