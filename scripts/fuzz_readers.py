"""Fuzzes every reader of files that strangers may write, and says what it found.

    python scripts/fuzz_readers.py [TARGET ...] [--seconds N] [--seed N] [--keep FOLDER]

Each reader gets N seconds (60) of files that were valid and have one to four changes, in a process
of its own that may have 4 GiB of address space more than it begins with. Anything but a result or a
DynquantError is a finding, and so is an input that takes more than 10 seconds: it is printed with
the place it comes from, and its files are kept.

The corpus is that of tests/targets.py, the changes are those of tests/mutations.py. They know
nothing of what code they reach: coverage would need atheris.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random
from tempfile import mkdtemp

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from targets import TARGETS, Files, Target, is_refused, write_files  # noqa: E402

SPACE = 4 << 30
HANG = 10.0


class HangError(BaseException):
    """An input takes too long; no handler of errors may keep it."""


def main() -> None:
    """Fuzz the targets that were named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("findings"))
    given = parser.parse_args()
    print(
        f"{'reader':<15}{'executions':>11}{'refused':>9}{'findings':>9}  slowest   peak", flush=True
    )
    failed = False
    for name in given.targets or TARGETS:
        process = multiprocessing.get_context("fork").Process(
            target=_fuzz, args=(TARGETS[name], given.seconds, given.seed, given.keep)
        )
        process.start()
        process.join(given.seconds + 10 * HANG)
        if process.is_alive() or process.exitcode:
            print(f"{name}: {'hangs' if process.is_alive() else f'exit {process.exitcode}'}")
            process.kill()
            failed = True
    raise SystemExit(failed)


def _fuzz(target: Target, seconds: float, seed: int, keep: Path) -> None:
    signal.signal(signal.SIGALRM, _hang)
    target.corpus()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPACE, used + SPACE))
    findings: Counter[str] = Counter()
    executions = refused = 0
    slowest = 0.0
    folder = Path(mkdtemp())
    random = Random(seed)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        files = target.mutant(random)
        shutil.rmtree(folder)
        folder.mkdir()
        write_files(folder, files)
        started = time.perf_counter()
        try:
            signal.setitimer(signal.ITIMER_REAL, HANG)
            refused += is_refused(target, folder)
        except BaseException as e:
            signal.setitimer(signal.ITIMER_REAL, 0)
            if isinstance(e, KeyboardInterrupt):
                raise
            where = _where(e)
            findings[where] += 1
            if findings[where] == 1:
                _keep(keep / f"{target.name} {len(findings)}", files, e)
                print(f"  {where}", flush=True)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        took = time.perf_counter() - started
        if took > slowest:
            slowest = took
            _keep(keep / f"{target.name} slowest", files, None)
        executions += 1
    shutil.rmtree(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{target.name:<15}{executions:>11}{refused:>9}{len(findings):>9}"
        f"  {slowest * 1e3:5.0f} ms  {peak:.0f} MiB",
        flush=True,
    )
    if findings:
        raise SystemExit(1)


def _hang(*_: object) -> None:
    raise HangError


def _where(e: BaseException) -> str:
    """Return the error and the innermost lines of the project that it comes through."""
    frames = [f for f in traceback.extract_tb(e.__traceback__) if "/dynquant/" in f.filename]
    places = [f"{Path(f.filename).name}:{f.lineno}" for f in frames[-2:]]
    return f"{type(e).__name__} at {' > '.join(places)}: {str(e)[:100]!r}"


def _keep(folder: Path, files: Files, e: BaseException | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_files(folder, files)
    if e is not None:
        (folder / "traceback.txt").write_text("".join(traceback.format_exception(e)))


if __name__ == "__main__":
    main()
