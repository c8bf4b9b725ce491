"""Encoders of two installed versions of dynquant: CPU time per type, and whether bytes are equal.

    python scripts/bench/bench_revisions.py --before PYTHON [--types Q4_K,IQ1_S] [--rounds 5]

PYTHON is the interpreter of an environment with the earlier version; this environment has the
later one. Each round runs both in turn, each in its own process on one thread, with the same rows
(gaussian, with log-normal importance). The fastest round of each counts. Ends with exit code 1 if
the blocks of a type differ.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import TypedDict

from rich.console import Console
from rich.table import Table

import dynquant

MEASURE = """
import hashlib, json, sys, time
import numpy as np
import dynquant

seconds, sha256 = {}, {}
rng = np.random.default_rng(0)
x = rng.standard_normal((256, 4096), dtype=np.float32)
importance = np.exp(rng.standard_normal(4096, dtype=np.float32))
for name in sys.argv[1:]:
    blocks = dynquant.encode(x[:16], name, importance)
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        blocks = dynquant.encode(x, name, importance)
        best = min(best, time.process_time() - start)
    seconds[name], sha256[name] = best, hashlib.sha256(blocks).hexdigest()
print(json.dumps({"seconds": seconds, "sha256": sha256}))
"""
"""Uses the public API only, so that it runs with every version."""


class Measured(TypedDict):
    """CPU seconds, and the SHA-256 of the blocks, of each type."""

    seconds: dict[str, float]
    sha256: dict[str, str]


def measure(python: str, types: list[str]) -> Measured:
    """Measure the dynquant of an interpreter."""
    command = [python, "-P", "-c", MEASURE, *types]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: Measured = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure what the command line asks for and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", required=True, help="the interpreter of the earlier version")
    parser.add_argument("--types", help="comma-separated; default: all quantized ones")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    types = [name for name, t in dynquant.types().items() if not t.is_float]
    if given.types:
        types = given.types.split(",")
    rounds = [
        (measure(given.before, types), measure(sys.executable, types)) for _ in range(given.rounds)
    ]
    table = Table(box=None)
    for column in ("type", "before ms", "after ms", "after / before", "bytes"):
        table.add_column(column, justify="right" if column != "type" else "left")
    changed = 0
    for name in types:
        before, after = (min(pair[i]["seconds"][name] for pair in rounds) for i in (0, 1))
        hashes = {each["sha256"][name] for pair in rounds for each in pair}
        changed += len(hashes) > 1
        verdict = "equal" if len(hashes) == 1 else "DIFFERENT"
        table.add_row(
            name, f"{before * 1e3:.1f}", f"{after * 1e3:.1f}", f"{after / before:.3f}", verdict
        )
    Console().print(table)
    sys.exit(min(changed, 1))


if __name__ == "__main__":
    main()
