"""Run the steps of .github/workflows/example-release.yml on this machine, without GitHub.

This script reads the workflow and the action that it uses, and runs their `run` steps with bash in
the same way as GitHub. It lists the steps that need GitHub (checkout, Python, artifacts,
attestation), but does not run them. The workspace contains links to the files of the checkout.
dynquant is installed in a new virtual environment; with --installed, the installed one is used.

    python scripts/checks/run_example_release.py
    python scripts/checks/run_example_release.py --installed --with model=hf://org/model
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "example-release.yml"
INSTALL = "Install dynquant"
EXPRESSION = re.compile(r"\$\{\{\s*([\w.-]+)\s*\}\}")
SHELL = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c"]


@dataclass
class Runner:
    """The environment of the steps: folders, PATH, inputs, and the artifacts to upload."""

    workspace: Path
    temp: Path
    path: str
    skipped: frozenset[str] = frozenset()
    given: Mapping[str, str] = field(default_factory=dict)
    uploads: list[Path] = field(default_factory=list)

    def steps(self, listed: list[dict[str, Any]], known: dict[str, str], action: Path) -> None:
        """Run steps in order; known: values of expressions, to which outputs of steps are added."""
        for step in listed:
            name = step["name"]
            uses = step.get("uses", "")
            given = {k: expand(str(v), known) for k, v in step.get("with", {}).items()}
            if name in self.skipped:
                print(f"== {name}: skipped", flush=True)
            elif uses.startswith("./"):
                print(f"== {name}: {uses}", flush=True)
                outputs = self.action(ROOT / uses, given)
                known |= {f"steps.{step.get('id')}.outputs.{k}": v for k, v in outputs.items()}
            elif uses:
                print(f"== {name}: only on GitHub ({uses})", flush=True)
                if uses.startswith("actions/upload-artifact@"):
                    self.uploads.append(self.workspace / given["path"])
            else:
                print(f"== {name}", flush=True)
                outputs = self.run(step, known, action)
                known |= {f"steps.{step.get('id')}.outputs.{k}": v for k, v in outputs.items()}

    def action(self, folder: Path, given: Mapping[str, str]) -> dict[str, str]:
        """Run a composite action and return its outputs."""
        described = yaml.safe_load((folder / "action.yml").read_text())
        known: dict[str, str] = {}
        given = {**given, **self.given}
        if unknown := given.keys() - described["inputs"].keys():
            sys.exit(f"error: {folder.name} has no input {', '.join(sorted(unknown))}")
        for name, declared in described["inputs"].items():
            if name not in given and declared.get("required"):
                sys.exit(f"error: {folder.name} needs the input {name}")
            known[f"inputs.{name}"] = given.get(name, str(declared.get("default", "")))
        self.steps(described["runs"]["steps"], known, folder)
        return {k: expand(v["value"], known) for k, v in described.get("outputs", {}).items()}

    def run(self, step: dict[str, Any], known: Mapping[str, str], action: Path) -> dict[str, str]:
        """Run the script of a step and return its outputs."""
        written = self.temp / "output"
        written.write_text("")
        variables = {k: expand(str(v), known) for k, v in step.get("env", {}).items()}
        runner = {
            "PATH": self.path,
            "RUNNER_TEMP": str(self.temp),
            "GITHUB_WORKSPACE": str(self.workspace),
            "GITHUB_ACTION_PATH": str(action),
            "GITHUB_OUTPUT": str(written),
            "GITHUB_STEP_SUMMARY": str(self.temp / "summary.md"),
        }
        shell = {**os.environ, **runner, **variables}
        done = subprocess.run([*SHELL, step["run"]], cwd=self.workspace, env=shell)
        if done.returncode:
            print(f"{step['name']}: exit code {done.returncode}", file=sys.stderr)
            sys.exit(done.returncode)
        lines = (line.partition("=") for line in written.read_text().splitlines())
        return {name: value.strip() for name, _, value in lines}


def expand(text: str, known: Mapping[str, str]) -> str:
    """Replace ${{ expressions }} by their values; outputs of steps that did not run are empty."""

    def value(found: re.Match[str]) -> str:
        if found[1] in known or found[1].startswith("steps."):
            return known.get(found[1], "")
        sys.exit(f"error: {found[0]} is not supported by this script")

    return EXPRESSION.sub(value, text)


def linked(workspace: Path) -> None:
    """Fill a workspace with links to the files of the checkout."""
    for entry in ROOT.iterdir():
        if entry.name not in (".git", "build") and not (workspace / entry.name).exists():
            (workspace / entry.name).symlink_to(entry)


def scripts_path(temp: Path, installed: bool) -> str:
    """Return a PATH with this Python first, or with a new environment without dynquant."""
    folder = Path(sys.executable).parent
    if not installed:
        venv.create(temp / "venv", with_pip=True)
        folder = temp / "venv" / "bin"
    return os.pathsep.join((str(folder), os.environ["PATH"]))


def main() -> None:
    """Run the steps of the example and list the artifacts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--workspace", type=Path, help="an empty folder; default: a temporary folder"
    )
    parser.add_argument("--installed", action="store_true", help="use the dynquant of this Python")
    parser.add_argument("--skip", action="append", default=[], metavar="STEP", help="skip a step")
    parser.add_argument(
        "--with", action="append", default=[], metavar="NAME=VALUE", help="an input of the action"
    )
    options = parser.parse_args()
    given = dict(text.split("=", 1) for text in getattr(options, "with"))
    workflow = yaml.safe_load(WORKFLOW.read_text())
    with tempfile.TemporaryDirectory() as scratch:
        workspace = (options.workspace or Path(scratch) / "workspace").resolve()
        temp = Path(scratch) / "temp"
        for folder in (workspace, temp):
            folder.mkdir(parents=True, exist_ok=True)
        linked(workspace)
        skipped = frozenset([*options.skip, *([INSTALL] if options.installed else [])])
        runner = Runner(workspace, temp, scripts_path(temp, options.installed), skipped, given)
        for job in workflow["jobs"].values():
            runner.steps(job["steps"], {}, ROOT)
        print("== Job summary")
        print((temp / "summary.md").read_text(), end="")
        print("== Artifacts")
        for path in sorted(p for folder in runner.uploads for p in folder.iterdir()):
            print(f"{path.stat().st_size:>12,}  {path.relative_to(workspace)}")


if __name__ == "__main__":
    main()
