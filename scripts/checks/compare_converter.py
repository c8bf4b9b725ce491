"""F32 files of the reference checkpoints beside those of llama.cpp's convert_hf_to_gguf.py.

    python scripts/checks/compare_converter.py LLAMA_CPP [FAMILY ...] [--python PYTHON] [--no-mtp]
        [--mmproj]

LLAMA_CPP is a llama.cpp source tree, PYTHON an interpreter that has what its converter needs. Its
list of known vocabularies goes by a hash of token ids, which no made-up vocabulary has, so it is
given the pre-tokenizer that dynquant recognized. For some families it needs --no-mtp if a
checkpoint has no prediction layers. For each family: tensors equal bit for bit, tensors that differ
or that one file has alone, and keys that differ. With --mmproj, the projectors of the checkpoints
in tests/references/projectors are compared.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from gguf import GGUFReader

import dynquant
from dynquant.arch.load_projector import load_projector

REFERENCES = Path(__file__).resolve().parents[2] / "tests" / "references"
PROJECTORS = REFERENCES / "projectors"

_PEER = """
import runpy, sys
tree, pre, *arguments = sys.argv[1:]
sys.path.insert(0, tree)
sys.argv = ["convert_hf_to_gguf.py", *arguments]
from conversion import base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
runpy.run_path(tree + "/convert_hf_to_gguf.py", run_name="__main__")
"""

EXPECTED = {
    r"dynquant\..*": "says what made the file",
    r"GGUF\..*": "counts of what follows",
    r"general\.quantization_version": "the converter leaves it to llama-quantize",
}
"""Keys that differ in every file, and why."""

Value = object


def keys_of(file: GGUFReader) -> dict[str, Value]:
    """Return the keys as Python values."""
    return {name: field.contents() for name, field in file.fields.items()}


def differences(ours: dict[str, Value], theirs: dict[str, Value]) -> Iterator[str]:
    """Yield a line for each key that is not the same in both."""
    for name in sorted({*ours, *theirs}):
        if any(re.fullmatch(pattern, name) for pattern in EXPECTED):
            continue
        if name not in theirs:
            yield f"only ours: {name} = {_short(ours[name])}"
        elif name not in ours:
            yield f"only theirs: {name} = {_short(theirs[name])}"
        elif ours[name] != theirs[name]:
            yield f"{name}: {_short(ours[name])}, theirs {_short(theirs[name])}"


def _short(value: Value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _apart(a: np.ndarray, b: np.ndarray) -> str:
    if a.shape != b.shape or a.dtype != np.float32 or b.dtype != np.float32:
        return f"{a.dtype} {list(a.shape)}, theirs {b.dtype} {list(b.shape)}"
    return f"by at most {np.abs(a - b).max() / np.abs(b).max():.0e} of the largest"


def compare(source: Path, tree: Path, python: str, folder: Path, more: Sequence[str]) -> bool:
    """Convert one checkpoint with both, print what differs; return whether all tensors agree.

    more: options of the converter
    """
    family = source.name
    model = load_projector(source) if source.parent == PROJECTORS else source
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    plan = dynquant.convert(model, ours, recipe="f32", force=True).plan
    pre = plan.keys.get("tokenizer.ggml.pre")
    arguments = [str(source), "--outtype", "f32", "--outfile", str(theirs), *more]
    theirs.unlink(missing_ok=True)
    done = subprocess.run(
        [python, "-c", _PEER, str(tree), str(pre.value) if pre else "default", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(f"{family}: llama.cpp fails: {done.stderr.strip().splitlines()[-1]}")
        return False
    a, b = GGUFReader(ours), GGUFReader(theirs)
    mine = {t.name: t for t in a.tensors}
    other = {t.name: t for t in b.tensors}
    both = mine.keys() & other.keys()
    unequal = sorted(
        n
        for n in both
        if list(mine[n].shape) != list(other[n].shape)
        or mine[n].tensor_type != other[n].tensor_type
        or not np.array_equal(mine[n].data.view(np.uint8), other[n].data.view(np.uint8))
    )
    print(f"{family} ({plan.architecture}): {len(both) - len(unequal)} tensors equal bit for bit")
    for what, names in (
        ("differ", [f"{n} ({_apart(mine[n].data, other[n].data)})" for n in unequal]),
        ("only ours", sorted(mine.keys() - both)),
        ("only theirs", sorted(other.keys() - both)),
    ):
        if names:
            print(f"    tensors {what}: {', '.join(names)}")
    for line in differences(keys_of(a), keys_of(b)):
        print(f"    {line}")
    return not unequal and mine.keys() == other.keys()


def main() -> None:
    """Compare the families named on the command line, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tree", type=Path, metavar="LLAMA_CPP")
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--python", default=sys.executable, help="default: this one")
    parser.add_argument("--no-mtp", action="store_true", help="an option of the converter")
    parser.add_argument("--mmproj", action="store_true", help="compare projectors")
    given = parser.parse_args()
    more = [f"--{name.replace('_', '-')}" for name in ("no_mtp", "mmproj") if getattr(given, name)]
    folder_of = PROJECTORS if given.mmproj else REFERENCES
    known = sorted(p.parent.name for p in folder_of.glob("*/config.json"))
    with tempfile.TemporaryDirectory() as folder:
        agreed = [
            compare(folder_of / f, given.tree, given.python, Path(folder), more)
            for f in given.families or known
        ]
    print(f"all tensors agree in {sum(agreed)} of {len(agreed)}")


if __name__ == "__main__":
    main()
