#!/usr/bin/env python3
"""Conversions from a hub on loopback: bytes requested, disk used, kills, and trouble on the way.

    python scripts/models/make_synthetic_llama.py /tmp/synthetic --shards 8
    python scripts/checks/check_stream.py /tmp/synthetic [--recipe q4_k_m] [--delay 0.05]

The hub keeps large files on another host, at addresses that expire, as the Hugging Face Hub does.
--delay is the time that each answer with weights takes to begin. Each line is one conversion, in a
separate process:

    download   the whole model first, as without an option
    stream     --stream
    shards     --keep-source none
    killed     --stream, killed with SIGKILL at about the given shares, then run to its end
    trouble    --stream, while one answer in eight is 429, 503, cut off, too short, or expired
    changed    --stream, while a file changes: an error, and no output

and states the seconds, the bytes of weights that the hub sent, divided by the bytes of all tensors,
and the largest number of bytes that the cache and the copies had on the disk. All outputs but those
of `changed` must have the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from tiny_hub import Hub, Serving  # noqa: E402

MODEL = "hf://synthetic/llama"
KILLS = (0.3, 0.6)
TROUBLE = ("429", "cut", "503", "short", "expired")


@dataclass
class Run:
    """What one conversion needed: seconds, bytes sent, and the peak of bytes on the disk."""

    code: int
    seconds: float
    sent: int
    peak: int
    stderr: str


class Disk:
    """Watches the bytes of the files below some folders."""

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak = 0
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, sum(map(size_below, self._folders)))

    def stop(self) -> int:
        """Return the largest size that was seen."""
        self._stop.set()
        self._thread.join()
        return self.peak


def size_below(folder: Path) -> int:
    """Return the bytes that the files below a folder occupy."""
    found = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink():
                found += path.stat().st_blocks * 512
        except OSError:
            continue  # it was deleted meanwhile
    return found


def tensor_bytes(folder: Path) -> int:
    """Return the bytes of all tensors in a folder's safetensors."""
    found = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            found += path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
    return found


class Bench:
    """A hub with one model, and conversions from it."""

    def __init__(self, hub: Hub, serving: Serving, work: Path, recipe: str) -> None:
        self.hub, self.serving, self.work, self.recipe = hub, serving, work, recipe

    def start(self, out: Path, *options: str) -> subprocess.Popen[str]:
        """Start a conversion."""
        command = [sys.executable, "-m", "dynquant.cli", "convert", MODEL, "-o", str(out)]
        return subprocess.Popen(
            [*command, "-r", self.recipe, *options],
            env={**self.serving.environment(self.work / "home"), "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, out: Path, *options: str, kill: float | None = None) -> Run:
        """Convert; kill: when this share of the weights was sent, send SIGKILL."""
        self.hub.sent.clear()
        home, copies = self.work / "home", Path(f"{out}.sources")
        disk = Disk(home, copies)
        started = time.monotonic()
        process = self.start(out, *options)
        if kill is not None:
            total = tensor_bytes(self.hub.models["synthetic/llama"])
            while process.poll() is None and sent(self.hub) < kill * total:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        _, stderr = process.communicate()
        seconds = time.monotonic() - started
        return Run(process.returncode, seconds, sent(self.hub), disk.stop(), stderr)


def sent(hub: Hub) -> int:
    """Return the bytes of weights that the hub sent."""
    return sum(n for _, _, n in list(hub.sent))


def sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Print a line for each conversion; exit with code 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", default="q4_k_m")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--at-most", type=float, default=1.02, help="of sent / needed")
    given = parser.parse_args()
    needed = tensor_bytes(given.folder)
    hub = Hub({"synthetic/llama": given.folder}, is_large=True, delay=given.delay)
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as name, Serving(hub) as serving:
        work = Path(name)
        bench = Bench(hub, serving, work, given.recipe)

        def show(what: str, run: Run) -> None:
            mb = 1e6
            print(
                f"{what:14} {run.seconds:7.1f} s  sent {run.sent / mb:9.1f} MB"
                f"  {run.sent / needed:6.3f} of needed  disk {run.peak / mb:8.1f} MB",
                flush=True,
            )

        n_files = len(list(given.folder.glob("*.safetensors")))
        print(f"{needed / 1e6:.1f} MB of tensors in {n_files} files")
        show("download", bench.run(work / "download.gguf"))
        wanted = sha256(work / "download.gguf")
        shutil.rmtree(work / "home")
        for what, options in {
            "stream": ["--stream"],
            "shards": ["--keep-source", "none"],
        }.items():
            run = bench.run(work / f"{what}.gguf", *options)
            show(what, run)
            if run.code or sha256(work / f"{what}.gguf") != wanted:
                problems.append(f"{what}: code {run.code}, or other bytes\n{run.stderr}")
            if run.sent > given.at_most * needed:
                problems.append(f"{what}: {run.sent} bytes were sent, {needed} are needed")
        out, total = work / "killed.gguf", 0
        for share in KILLS:
            run = bench.run(out, "--stream", kill=share - total / needed)
            total += run.sent
            show(f"killed at {share:.0%}", run)
        run = bench.run(out, "--stream")
        total += run.sent
        show("then resumed", run)
        show("killed, all", replace(run, sent=total))
        if run.code or sha256(out) != wanted:
            problems.append(f"killed: code {run.code}, or other bytes\n{run.stderr}")
        for _ in range(40):
            for one in TROUBLE:
                hub.trouble.extend([one, *[""] * 7])
        run = bench.run(work / "trouble.gguf", "--stream")
        hub.trouble.clear()
        show("trouble", run)
        if run.code or sha256(work / "trouble.gguf") != wanted:
            problems.append(f"trouble: code {run.code}, or other bytes\n{run.stderr}")
        changed(bench, problems)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


def changed(bench: Bench, problems: list[str]) -> None:
    """Change a file in the middle of a conversion, and print its error."""
    model = bench.hub.models["synthetic/llama"]
    copy = bench.work / "copy"
    shutil.copytree(model, copy, copy_function=os.link)
    last = max(copy.glob("*.safetensors"))
    bench.hub.models["synthetic/llama"] = copy
    bench.hub.is_large = False
    bench.hub.sent.clear()
    out = bench.work / "changed.gguf"
    process = bench.start(out, "--stream")
    while process.poll() is None and sent(bench.hub) < tensor_bytes(model) // 3:
        time.sleep(0.01)
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.unlink()  # it is a link to the original
    last.write_bytes(content)
    _, stderr = process.communicate()
    line = next((li for li in stderr.splitlines() if li.startswith("error: ")), "no error")
    print(f"{'changed':14} code {process.returncode}: {line}")
    if process.returncode != 1 or out.exists() or "changed while it was read" not in line:
        problems.append(f"changed: {stderr}")


if __name__ == "__main__":
    main()
