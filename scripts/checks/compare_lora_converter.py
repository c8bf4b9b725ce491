"""GGUFs of the reference adapters beside those of llama.cpp's convert_lora_to_gguf.py.

    python scripts/checks/compare_lora_converter.py LLAMA_CPP [FAMILY ...] [--python PYTHON]

LLAMA_CPP is a llama.cpp source tree, PYTHON an interpreter that has what its converter needs. For
each family: factors that are equal bit for bit, those that differ or that one file has alone, and
keys that differ. Where the scale of the tensors is not one number (rsLoRA, `alpha_pattern`), the
converter ignores it, and the factors lora_b must differ.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from gguf import GGUFReader

import dynquant

REFERENCES = Path(__file__).resolve().parents[2] / "tests" / "references"
ADAPTERS = REFERENCES / "adapters"


def theirs(tree: Path, family: str, out: Path, python: str) -> str:
    """Run llama.cpp's converter; return its last line if it fails."""
    done = subprocess.run(
        [
            python,
            str(tree / "convert_lora_to_gguf.py"),
            *("--base", str(REFERENCES / family), "--outfile", str(out), str(ADAPTERS / family)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def compare(ours: GGUFReader, other: GGUFReader) -> None:
    """Print the differences of two files."""
    factors = {t.name: t for t in ours.tensors}
    others = {t.name: t for t in other.tensors}
    both = [name for name in factors if name in others]
    equal = [
        name
        for name in both
        if factors[name].shape.tolist() == others[name].shape.tolist()
        and np.asarray(factors[name].data).tobytes() == np.asarray(others[name].data).tobytes()
    ]
    print(f"  {len(equal)} of {len(factors)} factors equal bit for bit")
    for name in both:
        if name not in equal:
            print(f"  differs: {name}")
    for name in sorted(factors.keys() ^ others.keys()):
        print(f"  only {'ours' if name in factors else 'theirs'}: {name}")
    keys = [
        {
            n: f.contents()
            for n, f in file.fields.items()
            if not n.startswith(("GGUF.", "dynquant."))
        }
        for file in (ours, other)
    ]
    for name in sorted({*keys[0], *keys[1]}):
        mine, its = keys[0].get(name), keys[1].get(name)
        if mine != its:
            print(f"  key {name}: ours {_short(mine)}, theirs {_short(its)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def main() -> None:
    """Compare the adapters of the families named, or of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tree", type=Path)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--python", default=sys.executable)
    given = parser.parse_args()
    families = given.families or sorted(p.name for p in ADAPTERS.iterdir() if p.is_dir())
    with tempfile.TemporaryDirectory() as folder:
        for family in families:
            print(family)
            ours, other = Path(folder, f"{family}.gguf"), Path(folder, f"{family}.theirs.gguf")
            dynquant.convert(ADAPTERS / family, ours, base=REFERENCES / family, recipe="f32")
            if why := theirs(given.tree, family, other, given.python):
                print(f"  llama.cpp's converter fails: {why}")
            else:
                compare(GGUFReader(ours), GGUFReader(other))


if __name__ == "__main__":
    main()
