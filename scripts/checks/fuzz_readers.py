"""Fuzz all readers of untrusted files and report findings.

    python scripts/checks/fuzz_readers.py [TARGET ...] [--seconds N] [--seed N] [--keep FOLDER]
    pip install . atheris; python scripts/checks/fuzz_readers.py --guided [...]

Each reader reads changed files for N seconds (default 60): valid files with one to four changes. It
runs in a separate process with 4 GiB of additional address space. Every outcome but a result or a
DynquantError is a finding, and so is an input that takes more than 10 seconds. A finding is printed
with its place in the code, and its files are kept.

The corpus comes from tests/support/targets.py, the changes from tests/support/mutations.py. They do
not depend on the code that is reached. With --guided, atheris (libFuzzer with coverage of Python)
keeps inputs that reach new lines and changes them further, one file at a time. Its log is kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from importlib.machinery import SourceFileLoader
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

if TYPE_CHECKING:
    from targets import Files, Target

SPACE = 4 << 30
HANG = 10.0


class HangError(BaseException):
    """An input takes too long; a BaseException, so that no error handler catches it."""


def main() -> None:
    """Fuzz the given targets, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("findings"))
    parser.add_argument("--guided", action="store_true", help="use coverage; needs atheris")
    given = parser.parse_args()
    atheris = importlib.import_module("atheris") if given.guided else None
    targets = _module(atheris).TARGETS
    print(
        f"{'reader':<15}{'executions':>11}{'refused':>9}{'findings':>9}  slowest   peak",
        "  lines: at first, at the end, inputs kept" if given.guided else "",
        flush=True,
    )
    failed = False
    for name in given.targets or targets:
        process = multiprocessing.get_context("fork").Process(
            target=_fuzz, args=(targets[name], given.seconds, given.seed, given.keep, atheris)
        )
        process.start()
        process.join(given.seconds + 10 * HANG)
        if process.is_alive() or process.exitcode:
            print(f"{name}: {'does not end' if process.is_alive() else f'exit {process.exitcode}'}")
            process.kill()
            failed = True
    raise SystemExit(failed)


def _module(atheris: Any = None) -> ModuleType:
    """Import tests/support/targets.py; with atheris, its imports are instrumented."""
    if atheris is None:
        return importlib.import_module("targets")
    found = importlib.util.find_spec("dynquant.errors")
    if found is None or not isinstance(found.loader, SourceFileLoader):
        raise SystemExit("error: atheris needs an install without -e")
    with atheris.instrument_imports(include=["dynquant"]):
        return importlib.import_module("targets")


def _fuzz(target: Target, seconds: float, seed: int, keep: Path, atheris: Any) -> None:
    target.corpus()
    session = Session(target, keep)
    signal.signal(signal.SIGALRM, _hang)
    end = time.monotonic() + seconds
    if atheris is not None:
        _guided(session, end, seed, atheris)
    random = Random(seed)
    while time.monotonic() < end:
        session.execute(target.mutant(random))
    session.finish()


class Session:
    """The executions and findings of one reader."""

    def __init__(self, target: Target, keep: Path) -> None:
        """Limit the memory of this process."""
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + SPACE, used + SPACE))
        self.target = target
        self.keep = keep
        self._folder = Path(mkdtemp())
        self._findings: Counter[str] = Counter()
        self._executions = self._refused = 0
        self._slowest = 0.0

    def execute(self, files: Files) -> None:
        """Let the reader read files; record the outcome."""
        shutil.rmtree(self._folder)
        self._folder.mkdir()
        _module().write_files(self._folder, files)
        started = time.perf_counter()
        try:
            signal.setitimer(signal.ITIMER_REAL, HANG)
            self._refused += _module().is_refused(self.target, self._folder)
        except BaseException as e:
            signal.setitimer(signal.ITIMER_REAL, 0)
            if isinstance(e, KeyboardInterrupt):
                raise
            where = _where(e)
            self._findings[where] += 1
            if self._findings[where] == 1:
                _keep(self.keep / f"{self.target.name} {len(self._findings)}", files, e)
                print(f"  {where}", flush=True)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        took = time.perf_counter() - started
        if took > self._slowest:
            self._slowest = took
            _keep(self.keep / f"{self.target.name} slowest", files, None)
        self._executions += 1

    def finish(self, more: str = "") -> NoReturn:
        """Print a row of the table and end the process."""
        shutil.rmtree(self._folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{self.target.name:<15}{self._executions:>11}{self._refused:>9}"
            f"{len(self._findings):>9}  {self._slowest * 1e3:5.0f} ms  {peak:.0f} MiB {more}",
            flush=True,
        )
        os._exit(bool(self._findings))


def _guided(session: Session, end: float, seed: int, atheris: Any) -> NoReturn:
    """Let libFuzzer run the loop; its input is a line `NUMBER NAME` and the content of a file.

    The number is the index of the set of files in the corpus.
    """
    target, corpus = session.target, session.target.corpus()
    mutant = _module().mutant
    seeds = Path(mkdtemp())
    for number, files in enumerate(corpus):
        for name in files:
            if name.endswith(target.mutable):
                seed_file = seeds / f"{number} {name.replace('/', ' ')}"
                seed_file.write_bytes(f"{number} {name}\n".encode() + files[name])
    most = 2 * max(path.stat().st_size for path in seeds.iterdir())
    log = session.keep / f"{target.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), 2)

    def change(data: bytes, most: int, seed: int) -> bytes:
        line, _, content = data.partition(b"\n")
        random = Random(seed)
        if random.random() < 0.5:
            # The last change may have made the file invalid JSON, which cannot be changed as JSON.
            try:
                content = mutant(line.decode().partition(" ")[2], content, random)
            except (ValueError, RecursionError):
                content = atheris.Mutate(content, most)
        else:
            content = atheris.Mutate(content, most)
        return (line + b"\n" + content)[:most]

    def execute(data: bytes) -> None:
        if time.monotonic() > end:
            session.finish(_coverage(log))
        line, _, content = data.partition(b"\n")
        number, _, name = line.decode("latin-1").partition(" ")
        # libFuzzer's first input is empty.
        if number.isdecimal() and int(number) < len(corpus) and name in corpus[int(number)]:
            session.execute({**corpus[int(number)], name: content})

    flags = [f"-seed={seed + 1}", f"-max_len={most}", "-timeout=0", "-rss_limit_mb=0"]
    atheris.Setup([sys.argv[0], *flags, str(seeds)], execute, custom_mutator=change)
    atheris.Fuzz()
    raise AssertionError("libFuzzer ends the process")


def _coverage(log: Path) -> str:
    """Return the numbers of places reached at the start and the end, and of inputs kept."""
    found = re.findall(r"INITED.* cov: (\d+)|cov: (\d+) .*corp: (\d+)", log.read_text("latin-1"))
    first = next((line[0] for line in found if line[0]), "?")
    last = next((line[1:] for line in reversed(found) if line[1]), ("?", "?"))
    return f" {first}, {last[0]}, {last[1]}"


def _hang(*_: object) -> None:
    raise HangError


def _where(e: BaseException) -> str:
    """Return the error and the innermost lines of the package in its traceback."""
    frames = [f for f in traceback.extract_tb(e.__traceback__) if "/dynquant/" in f.filename]
    places = [f"{Path(f.filename).name}:{f.lineno}" for f in frames[-2:]]
    return f"{type(e).__name__} at {' > '.join(places)}: {str(e)[:100]!r}"


def _keep(folder: Path, files: Files, e: BaseException | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _module().write_files(folder, files)
    if e is not None:
        (folder / "traceback.txt").write_text("".join(traceback.format_exception(e)))


if __name__ == "__main__":
    main()
