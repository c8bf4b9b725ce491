#!/usr/bin/env python3
"""A conversion at size, killed again and again: the same file, and how much was done twice.

    python scripts/models/make_synthetic_llama.py /tmp/synthetic
    python scripts/checks/torture_convert.py /tmp/synthetic --kills 5 [--recipe dynamic-4bit] \
        [--seed 0]

Converts once undisturbed, then again with `kill -9` at random moments. The log of each run states
what it had encoded when it died (to a tenth of a second), and the journal what the next one finds;
the difference is made again. What is found is read back and hashed again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONVERT = """
import json, sys
from pathlib import Path
import dynquant
from dynquant.conversion.write import convert_plan

model, out, recipe, threads, log = sys.argv[1:]
plan = dynquant.make_plan(dynquant.load_model(model), dynquant.load_recipe(recipe))
with open(log, "w") as file:
    def report(p):
        print(json.dumps([p.bytes_done, p.bytes_resumed, p.bytes_total]), file=file, flush=True)
    convert_plan(plan, Path(out), threads=int(threads), progress=report)
"""


def started(
    model: Path, out: Path, recipe: str, threads: int, log: Path
) -> subprocess.Popen[bytes]:
    """Start a conversion, or resume it."""
    command = [sys.executable, "-c", CONVERT, str(model), str(out), recipe, str(threads), str(log)]
    return subprocess.Popen(command)


def last_of(log: Path) -> tuple[int, int, int]:
    """Return bytes done, bytes of an earlier run among them, and all bytes."""
    lines = log.read_text().splitlines() if log.exists() else []
    found: list[list[int]] = [json.loads(line) for line in lines if line.endswith("]")]
    done, resumed, total = found[-1] if found else (0, 0, 0)
    return done, resumed, total


def sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Kill, resume, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--recipe", default="dynamic-4bit")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory(dir=given.model.parent) as scratch:
        folder = Path(scratch)
        log, out = folder / "log", folder / "out" / "x.gguf"
        out.parent.mkdir()

        def start() -> subprocess.Popen[bytes]:
            log.unlink(missing_ok=True)
            return started(given.model, out, given.recipe, given.threads, log)

        began = time.monotonic()
        if start().wait():
            raise SystemExit("the undisturbed conversion failed")
        seconds = time.monotonic() - began
        wanted = sha256(out)
        out.unlink()
        print(f"undisturbed: {seconds:.1f} s, {last_of(log)[2]:,} bytes of tensors")
        encoded = again = 0
        for number in range(1, given.kills + 1):
            child = start()
            time.sleep(rng.uniform(0.2, 1) * seconds / given.kills)
            child.send_signal(signal.SIGKILL)
            if child.wait() == 0:
                raise SystemExit("finished before it was killed; take fewer kills")
            done, resumed, total = last_of(log)
            encoded += done - resumed
            again += resumed
            left = ", ".join(sorted(p.name for p in out.parent.iterdir()))
            print(
                f"kill {number}: {done - resumed:,} bytes encoded, {resumed:,} found; left: {left}"
            )
        began = time.monotonic()
        if start().wait():
            raise SystemExit("the last run failed")
        done, resumed, total = last_of(log)
        encoded, again = encoded + done - resumed, again + resumed
        print(f"last run: {done - resumed:,} bytes encoded, {resumed:,} found")
        verdict = "the same bytes" if sha256(out) == wanted else "DIFFERENT BYTES"
        left = sorted(p.name for p in out.parent.iterdir())
        print(f"{verdict}; left: {', '.join(left)}")
        print(
            f"encoded again: {(encoded - total) / total:.1%} of the work;"
            f" read back: {again / total:.1f} times the output"
        )
        if verdict != "the same bytes" or left != [out.name]:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
