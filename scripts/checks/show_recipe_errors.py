"""Prints the messages of the command line for a collection of bad recipes.

python scripts/checks/show_recipe_errors.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY_BOOKS = ROOT / "tests" / "data" / "tiny-books"
RULE = "default: Q4_K\nrules:\n  - "

CASES: dict[str, tuple[dict[str, str], str]] = {
    "misspelt words: type, role, key, group, architecture": (
        {
            "r.yaml": "defualt: Q4_K\ndefault: q4km\nfor: lama\nrules:\n  - role: ffn_dwon\n"
            "    type: Q6_K\n  - {role: shared_expert, tpye: Q6_K}\n"
            "  - {role: down_proj, type: Q6_K}\n"
        },
        "check r.yaml",
    ),
    "wrong indentation": ({"r.yaml": RULE + "role: attn_v\n   type: Q6_K\n"}, "check r.yaml"),
    "a tab": ({"r.yaml": RULE + "role: attn_v\n\ttype: Q6_K\n"}, "check r.yaml"),
    "a star without quotes": (
        {"r.yaml": RULE + "name: *.ffn_down.weight\n    type: Q6_K\n"},
        "check r.yaml",
    ),
    "bad layers": (
        {
            "r.yaml": RULE + "{layers: [9-3, first, 0%-200%, {evry: 2}, {from: 3}], type: Q6_K}\n"
            "  - {layers: {of: experts}, type: Q6_K}\n"
        },
        "check r.yaml",
    ),
    "bad conditions, sizes, choices": (
        {
            "r.yaml": RULE + "{when: {gqa: many, expert: 8}, type: Q6_K}\neffort: high\n"
            "importance: needed\noutput: {shard_size: 50 apples}\n"
        },
        "check r.yaml",
    ),
    "two actions, and none": (
        {"r.yaml": RULE + "{role: attn_v, type: Q6_K, keep: true}\n  - role: attn_q\n"},
        "check r.yaml",
    ),
    "choose without a solver": (
        {"r.yaml": RULE + "{role: ffn, choose: [Q4_K, Q5_K]}\n"},
        "check r.yaml",
    ),
    "rules that match nothing": (
        {
            "r.yaml": RULE + "{role: experts, type: Q6_K}\n  - {layers: 9, type: Q6_K}\n"
            "  - {name: ffn_down, type: Q6_K}\n  - {role: norms, type: BF16}\n"
        },
        f"check r.yaml {TINY_BOOKS}",
    ),
    "a shadowed rule (a warning)": (
        {
            "r.yaml": RULE + "{role: ffn, layers: 0-1, type: Q6_K}\n"
            "  - {layers: 2--1, type: Q5_K}\n  - {role: ffn_down, type: Q8_0}\n"
        },
        f"check r.yaml {TINY_BOOKS}",
    ),
    "circular extends": (
        {"r.yaml": "extends: b.yaml\n", "b.yaml": "name: b\nextends: r.yaml\n"},
        "check r.yaml",
    ),
    "a parent that is not there": ({"r.yaml": "extends: dynamic-4bits\n"}, "check r.yaml"),
    "a recipe for another architecture (a warning)": (
        {"r.yaml": "extends: dynamic-4bit\nfor: deepseek2\n"},
        f"check r.yaml {TINY_BOOKS}",
    ),
    "rows that do not divide, and no fallback": (
        {"r.yaml": "default: Q4_K\n"},
        f"check r.yaml {ROOT / 'tests' / 'references' / 'mixtral'}",
    ),
    "the fallback is used (a warning, with its cost)": (
        {"r.yaml": "default: Q4_K\nfallback: {Q4_K: [IQ4_NL, F16], any: error}\n"},
        f"check r.yaml {ROOT / 'tests' / 'references' / 'mixtral'}",
    ),
    "protection is overridden (a warning)": (
        {"r.yaml": RULE + "{role: router, override: true, type: F16}\nfallback: F16\n"},
        f"check r.yaml {ROOT / 'tests' / 'references' / 'mixtral'}",
    ),
}


def main() -> None:
    """Print each case: its files, the command, what it says and its exit code."""
    for title, (files, command) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                (Path(folder) / name).write_text(text)
            words = [sys.executable, "-m", "dynquant.cli", "recipe", *command.split()]
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        shown = (done.stdout + done.stderr).replace(f"{ROOT}/", "")
        print(f"## {title}\n")
        for name, text in files.items():
            print("\n".join(f"    {name}:{n}  {t}" for n, t in enumerate(text.splitlines(), 1)))
        print(f"\n    $ dynquant recipe {command}".replace(f"{ROOT}/", ""))
        print(
            "".join(f"    {line}\n" for line in shown.splitlines()) + f"    exit {done.returncode}"
        )
        print()


if __name__ == "__main__":
    main()
