"""Parts on the command line, and the examples of the guide, run as local processes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from inprocess import Done, run
from places import ROOT, TINY_BOOKS

import dynquant

GUIDE = (ROOT / "docs" / "guides" / "clusters.md").read_text("utf-8")


def block(heading: str, language: str) -> str:
    """Return the first block of a language after a heading of the guide."""
    found = re.search(rf"## {heading}\n.*?```{language}\n(.*?)```", GUIDE, re.DOTALL)
    assert found
    return found[1]


class Cluster:
    """A folder with a plan, and the output that one process makes by it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan = folder / "plan.json"
        dynquant.make_plan(TINY_BOOKS, "q4_k_m").save(self.plan)
        whole = folder / "whole"
        whole.mkdir()
        self.convert("-o", whole / "out.gguf")
        self.expected = (whole / "out.gguf").read_bytes()
        self.manifest = (whole / "out.gguf.manifest.json").read_bytes()

    def convert(self, *more: object) -> Done:
        return run("convert", TINY_BOOKS, "--plan", self.plan, *more)

    def join(self, *more: object) -> Done:
        return run("join", TINY_BOOKS, "--plan", self.plan, "-o", self.out, *more)

    @property
    def out(self) -> Path:
        return self.folder / "out.gguf"

    def shell(self, command: str, cwd: Path, **env: str) -> None:
        """Run a command of the guide: dynquant is that of these tests, a model TINY_BOOKS."""
        tool = cwd / "bin" / "dynquant"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dynquant "$@"\n')
        tool.chmod(0o755)
        path = f"{tool.parent}:/usr/bin:/bin"
        given = {"PATH": path, "MODEL": str(TINY_BOOKS), "PYTHONPATH": str(ROOT), **env}
        subprocess.run(["bash", "-euc", command], cwd=cwd, env=given, check=True)

    def check(self, folder: Path | None = None) -> None:
        place = folder or self.folder
        assert (place / "out.gguf").read_bytes() == self.expected
        assert (place / "out.gguf.manifest.json").read_bytes() == self.manifest
        assert not [*place.glob("out.gguf.*-of-*")]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.mark.parametrize("more", [(), ("--separate",)])
def test_parts_are_written_and_joined(cluster: Cluster, more: tuple[str, ...]) -> None:
    for part in ("3/3", "1/3", "2/3"):
        done = cluster.convert("-o", cluster.out, "--part", part, *more)
        assert done.code == 0, done.err
        assert f"out.gguf: part {part}, " in done.err
    joined = cluster.join()
    assert joined.code == 0
    assert "joining " in joined.err
    assert "joined and checked in " in joined.err
    assert "resum" not in joined.err
    cluster.check()
    again = cluster.join()
    assert (again.code, "is complete already, by an earlier join" in again.err) == (0, True)


def test_a_missing_part_is_an_error_with_the_command(cluster: Cluster) -> None:
    assert cluster.convert("-o", cluster.out, "--part", "1/2").code == 0
    done = cluster.join()
    assert done.code == 1
    assert "part 2/2 is missing; run `dynquant convert … --part 2/2` (again)" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--part", "3/2"), "is not a part such as 3/16"),
        (("--separate",), "--separate needs --part K/N"),
        (("--part", "1/2", "--mmproj"), "leave out --mmproj"),
        (("--part", "1/2", "--max-error", "1", "--summary", "x"), "leave out --max-error, --summ"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(
    cluster: Cluster, options: tuple[str, ...], message: str
) -> None:
    done = cluster.convert("-o", cluster.out, *options)
    assert done.code == 2
    assert message in " ".join(done.err.replace("│", " ").split())


def test_a_part_needs_a_saved_plan(tmp_path: Path) -> None:
    done = run("convert", TINY_BOOKS, "-r", "q8_0", "-o", tmp_path / "x.gguf", "--part", "1/2")
    assert done.code == 2
    assert "--part needs --plan PLAN.json" in " ".join(done.err.replace("│", " ").split())


def test_a_part_is_an_event_of_the_log(cluster: Cluster) -> None:
    done = cluster.convert("-o", cluster.out, "--part", "1/2", "--log-format", "json")
    *_, last = map(json.loads, done.err.splitlines())
    assert (last["event"], last["part"], last["file"]) == ("part", "1/2", None)
    assert 0 < last["bytes"] < len(cluster.expected)


@pytest.mark.slow
def test_the_example_for_slurm(cluster: Cluster) -> None:
    script = block("Slurm", "bash")
    assert re.search(r"--array=1-(\d+)", script)
    for number in ("2", "3", "1"):
        env = {"SLURM_ARRAY_TASK_ID": number, "SLURM_ARRAY_TASK_COUNT": "3"}
        cluster.shell(script, cluster.folder, SLURM_CPUS_PER_TASK="1", **env)
    after = re.search(r"--wrap '(.*)'", GUIDE)
    assert after
    cluster.shell(after[1], cluster.folder)
    cluster.check()


@pytest.mark.slow
def test_the_example_for_kubernetes(cluster: Cluster) -> None:
    spec: dict[str, Any] = yaml.safe_load(block("Kubernetes", "yaml"))["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    (command,) = container["args"]
    assert (spec["completionMode"], container["command"]) == ("Indexed", ["sh", "-c"])
    assert f"/{spec['completions']}" in command
    local = command.replace(f"/{spec['completions']}", "/3")
    for name in ("plan.json", "out.gguf"):
        local = local.replace(f"/data/{name}", str(cluster.folder / name))
    local = local.replace("/data/model", str(TINY_BOOKS))
    for index in (2, 0, 1):
        cluster.shell(local, cluster.folder, JOB_COMPLETION_INDEX=str(index))
    assert cluster.join().code == 0
    cluster.check()


def dynquant_steps(job: dict[str, Any]) -> Iterator[str]:
    return (s["run"] for s in job["steps"] if s.get("run", "").startswith("dynquant "))


@pytest.mark.slow
def test_the_example_for_github(cluster: Cluster) -> None:
    jobs: dict[str, Any] = yaml.safe_load(block("GitHub Actions", "yaml"))["jobs"]
    collected = cluster.folder / "collected"
    collected.mkdir()
    shutil.copy(cluster.plan, collected)
    for part in jobs["part"]["strategy"]["matrix"]["part"]:
        runner = cluster.folder / f"runner-{part}"
        runner.mkdir()
        shutil.copy(cluster.plan, runner)
        (command,) = dynquant_steps(jobs["part"])
        cluster.shell(command.replace("${{ matrix.part }}", str(part)), runner)
        (upload,) = (s["with"] for s in jobs["part"]["steps"] if "upload" in s.get("uses", ""))
        for path in runner.glob(upload["path"]):
            shutil.move(path, collected)
    (command,) = dynquant_steps(jobs["join"])
    cluster.shell(command, collected)
    cluster.check(collected)
