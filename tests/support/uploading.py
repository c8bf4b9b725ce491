"""`dynquant publish` in this process, with a hub on loopback."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from inprocess import Done, run
from markdown_it import MarkdownIt  # rich brings it
from publishing_hub import PublishingHub, ServingUploads, Stored

NAME = "me/tiny-GGUF"
HF = f"hf://{NAME}"


@contextmanager
def serving(hub: PublishingHub, home: Path) -> Iterator[str]:
    """Let huggingface_hub, which is imported already, use a hub; the token is valid for "me"."""
    from huggingface_hub import constants

    with ServingUploads(hub) as served:
        changed = {
            "ENDPOINT": served.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{served.endpoint}/{{repo_id}}/resolve/{{revision}}/"
            "{filename}",
            "HF_HUB_DISABLE_XET": True,
            "HF_TOKEN_PATH": str(home / "no-token"),
            "HF_STORED_TOKENS_PATH": str(home / "no-tokens"),
        }
        with (
            mock.patch.multiple(constants, **changed),
            mock.patch.dict("os.environ", {"HF_TOKEN": "good"}),
        ):
            yield served.endpoint


def publish(folder: Path, *options: str, to: str = HF) -> Done:
    return run("publish", folder, to, *options)


def published(folder: Path, *options: str, to: str = HF) -> Done:
    done = publish(folder, *options, to=to)
    assert done.code == 0, done.err
    return done


def refusals(done: Done) -> list[str]:
    """Return the errors of a command that failed, one a line."""
    assert (done.code, done.out) == (1, ""), done
    assert "Traceback" not in done.err
    return [li.removeprefix("error: ") for li in done.err.splitlines() if li.startswith("error: ")]


def actions(done: Done) -> dict[str, str]:
    """Return what a command did to each file, as it printed it."""
    rows = [line.split(None, 2) for line in done.out.splitlines()]
    return {name: action for action, _, name in rows}


def card_of(stored: Stored) -> str:
    return stored.files["README.md"].decode()


def tables(markdown: str) -> list[list[list[str]]]:
    """Return the cells of all tables, as a reader sees them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    found: list[list[list[str]]] = []
    for i, token in enumerate(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("td_open", "th_open"):
            shown = tokens[i + 1].children or []
            found[-1][-1].append("".join(t.content for t in shown))
    return found


def check_sums(stored: Stored, folder: Path) -> set[str]:
    """Return the names of the files whose checksums coreutils finds correct; all must be."""
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum on this machine")
    folder.mkdir()
    for name, content in stored.files.items():
        (folder / name).write_bytes(content)
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.rpartition(":")[0] for line in done.stdout.splitlines()}
