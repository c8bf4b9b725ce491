"""Check that no ceiling of an error rose since an earlier commit, or measure the families again.

    python scripts/checks/compare_ceilings.py [REVISION]
    python scripts/checks/compare_ceilings.py --measure [FAMILY ...]

Compares tests/quants/ceilings.json and tests/references/kl_ceilings.json with their content at a
revision (default: HEAD~1). Prints each ceiling that rose or is missing, and exits with 1 if there
is one. A revision without a file has no ceilings in it.

--measure converts the reference of each family with each recipe, asks llama.cpp, and rewrites
kl_ceilings.json: measured divergences with a margin of 2 %, rounded up to three digits. Ceilings of
other models in the file stay as they are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FILES = ("tests/quants/ceilings.json", "tests/references/kl_ceilings.json")


def leaves(document: Mapping[str, Any], *above: str) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield each ceiling of a document with its keys."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from leaves(value, *above, key)
        else:
            yield (*above, key), value


def raised(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return a line for each ceiling that is higher than before, or missing."""
    found = dict(leaves(after))
    lines = []
    for keys, earlier in leaves(before):
        if keys not in found:
            lines.append(f"{', '.join(keys)}: {earlier:g} is missing")
        elif found[keys] > earlier:
            lines.append(f"{', '.join(keys)}: rose from {earlier:g} to {found[keys]:g}")
    return lines


def content_of(path: str) -> dict[str, Any]:
    """Return a file's content in the checkout."""
    content: dict[str, Any] = json.loads((ROOT / path).read_text("utf-8"))
    return content


def at_revision(revision: str, path: str) -> dict[str, Any]:
    """Return a file's content at a revision; empty if the revision does not have it."""
    if not git("ls-tree", "--name-only", revision, path):
        return {}
    content: dict[str, Any] = json.loads(git("show", f"{revision}:{path}"))
    return content


def git(*arguments: str) -> str:
    """Return what git prints; its own message goes to stderr if it fails."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(families: Sequence[str]) -> None:
    """Rewrite kl_ceilings.json with fresh values of these families, or of all."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from agreement import FAMILIES
    from ceilings import KL_CEILINGS, RECIPES, ceiling_of, distance_from_transformers, kl_ceilings

    stored = kl_ceilings() if KL_CEILINGS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for family in families or FAMILIES:
            stored[family] = {
                recipe: ceiling_of(distance_from_transformers(family, recipe, out))
                for recipe in RECIPES
                for out in [Path(folder) / f"{family}-{recipe}.gguf"]
            }
            print(family, stored[family])
    KL_CEILINGS.write_text(lines_of(stored), "utf-8")


def lines_of(ceilings: Mapping[str, Mapping[str, float]]) -> str:
    """Return JSON with one line for each family, in the order of names."""
    lines = [f"  {json.dumps(name)}: {json.dumps(ceilings[name])}" for name in sorted(ceilings)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    """Compare, or measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", nargs="?", default="HEAD~1")
    parser.add_argument("--measure", nargs="*", metavar="FAMILY")
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure)
        return
    lines = [
        f"{path}: {line}"
        for path in FILES
        for line in raised(at_revision(options.revision, path), content_of(path))
    ]
    print("\n".join(lines) or f"no ceiling rose since {options.revision}")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
