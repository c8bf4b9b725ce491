"""The memory that a run needs is said beforehand, from shapes, and kept.

The measured test needs torch: `pytest -m torch` where the extra `calibrate` is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from places import TINY_BOOKS

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


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.skipif(find_spec("torch") is None, reason="needs the extra calibrate")
def test_what_is_said_is_kept(tmp_path: Path) -> None:
    options = ["imatrix", str(TINY_BOOKS), "--threads", "2", "-o", str(tmp_path / "x.gguf")]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *options], capture_output=True, text=True, check=True
    )
    said = re.search(r"needs at most ([\d.]+) (MB|GB)", done.stderr)
    assert said is not None
    limit = float(said[1]) * {"MB": 1e6, "GB": 1e9}[said[2]]
    assert int(done.stdout.split()[-1]) * 1024 < limit
