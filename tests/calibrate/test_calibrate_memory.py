"""The memory that a run needs is said beforehand, from shapes, and kept.

The measured test needs torch: `pytest -m torch` where the extra `calibrate` is installed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from places import TINY_BOOKS
from sparse import header_of, n_bytes, write_sparse

from dynquant.arch.load import load_model
from dynquant.calibrate.memory import needed_bytes

COMMAND = """
import resource, sys
from dynquant.cli import app
try:
    app(sys.argv[1:])
except SystemExit:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def needed(tokens: int = 10_000, threads: int = 1, group: int = 2048) -> int:
    model = load_model(TINY_BOOKS)
    return needed_bytes(model, tokens=tokens, distinct=500, group=group, threads=threads)


def test_more_tokens_and_threads_need_more() -> None:
    hidden = 256
    assert needed(tokens=20_000) - needed(tokens=10_000) > 10_000 * hidden * 4 * 2
    assert needed(threads=2) > needed(threads=1)
    assert needed(group=4096) > needed(group=2048)


NEEDS_TORCH = pytest.mark.skipif(find_spec("torch") is None, reason="needs the extra calibrate")


def said_and_taken(*options: str) -> tuple[float, int]:
    """Run `dynquant imatrix`; return what it said it needs, and its largest resident size."""
    command = [sys.executable, "-c", COMMAND, "imatrix", *options, "--threads", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = re.search(r"needs at most ([\d.]+) (MB|GB)", done.stderr)
    assert said is not None, done.stderr
    limit = float(said[1]) * {"MB": 1e6, "GB": 1e9}[said[2]]
    return limit, int(done.stdout.split()[-1]) * 1024


@pytest.mark.torch
@pytest.mark.slow
@NEEDS_TORCH
def test_what_is_said_is_kept(tmp_path: Path) -> None:
    said, taken = said_and_taken(str(TINY_BOOKS), "-o", str(tmp_path / "x.gguf"))
    assert taken < said


DENSE: dict[str, Any] = {
    **json.loads((TINY_BOOKS / "config.json").read_text()),
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "layer_types": None,
    "dtype": "float32",
}
MIXTURE: dict[str, Any] = {
    **DENSE,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_hidden_layers": 2,
    "num_experts": 64,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 1024,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


@pytest.mark.torch
@pytest.mark.slow
@NEEDS_TORCH
@pytest.mark.parametrize("config", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_a_model_larger_than_what_is_said_needs_no_more(
    config: dict[str, Any], tmp_path: Path
) -> None:
    tensors = {name: ("F32", shape) for name, (_, shape) in header_of(config).items()}
    model = write_sparse(tmp_path, config, tensors)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_BOOKS / name, model)
    text = tmp_path / "text.txt"
    text.write_text("a man walks along the sea and sings. " * 200)
    options = "--text", str(text), "-c", "256", "--chunks", "2"
    said, taken = said_and_taken(str(model), "-o", str(tmp_path / "x.gguf"), *options)
    assert taken < said < sum(n_bytes(*tensor) for tensor in tensors.values())
