"""tiny-books as GGUFs of three types, and an evaluation of them: made once for all processes."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from places import TINY_BOOKS

import dynquant
from dynquant.evaluate.evaluation import evaluate
from dynquant.evaluate.results import Evaluation
from dynquant.evaluate.settings import GREEDY, Settings
from dynquant.evaluate.tasks import SamplerPart

CONTEXT, N_WINDOWS = 16, 24
PROMPTS = tuple(
    f"{first} {last}"
    for first in ("The house", "She said", "In the morning", "He was", "There is")
    for last in ("and the", "that it")
)
"""Ten prompts are two groups."""

TEXTS = (
    """\
The miller came down to the river before it was light, as he did on every morning of the winter, to
see whether the wheel had frozen. He carried a lantern and an iron bar. His daughter walked behind
him with the dog, and none of them spoke until they had passed the old bridge. "There is no ice
today," said the girl. "The water is too fast for it." Her father held up the lantern and looked
for a long time at the dark stream. "It is not the ice that I am looking for," he answered at last.
"Your uncle lost a boat here when we were boys, and after a night like this one it has sometimes
come up again. Twice I have seen it. Nobody believed me the first time, and the second time I did
not say anything." The dog lay down between them, and they waited together for the morning.
""",
    """\
Dear Margaret, I have your letter of the fourth, and I was very glad to have it, although the news
of your mother's illness made us all sad. We are well here. The garden is full of apples, and John
has built a little house for the hens, which they do not like. On Sunday the doctor came to dinner
and stayed until ten; he asked about you twice, and I answered nothing at all. You must not think
that I have forgotten the book which you lent me. I read it by the fire every night, and always
fall asleep before the end of the page, so that I shall not be able to return it before the spring.
Write soon, and say whether the roof has been repaired. Your affectionate friend, Anne.
""",
)

SAMPLED = SamplerPart(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, seed=3)


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that `make` fills, once for all processes of pytest-xdist."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = root / name
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            part = root / f"{name}.part"
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder


@dataclass(frozen=True)
class Models:
    """Files in a folder: f32.gguf, q8_0.gguf, q4_0.gguf, and two texts."""

    folder: Path

    def gguf(self, name: str) -> Path:
        return self.folder / f"{name}.gguf"

    @property
    def texts(self) -> tuple[Path, Path]:
        return self.folder / "a.txt", self.folder / "b.txt"

    def settings(self, cache: Path, **changes: Any) -> Settings:
        """Return settings of a short evaluation by one thread."""
        chosen: dict[str, Any] = {
            "cache": cache,
            "texts": self.texts,
            "context": CONTEXT,
            "tokens": N_WINDOWS * CONTEXT,
            "prompts": PROMPTS,
            "n_predict": 12,
            "samplers": (GREEDY, SAMPLED),
            "threads": 1,
        }
        return Settings(**(chosen | changes))

    def evaluation(self, cache: Path, *names: str, **changes: Any) -> Evaluation:
        """Evaluate files against f32.gguf."""
        files = [self.gguf(name) for name in names]
        return evaluate(files, str(self.gguf("f32")), self.settings(cache, **changes))


def make_models(folder: Path) -> None:
    for name in ("f32", "q8_0", "q4_0"):
        dynquant.convert(TINY_BOOKS, folder / f"{name}.gguf", recipe=name, threads=1)
    for path, text in zip(Models(folder).texts, TEXTS, strict=True):
        path.write_text(text, "utf-8")


def make_evaluation(folder: Path, models: Models) -> None:
    found = models.evaluation(folder / "cache", "f32", "q8_0", "q4_0")
    (folder / "found.json").write_text(json.dumps(found.model_dump()))


@dataclass(frozen=True)
class Evaluated:
    """The evaluation of f32.gguf (the reference itself), q8_0.gguf and q4_0.gguf, and its cache."""

    models: Models
    cache: Path
    found: Evaluation

    def __getitem__(self, name: str) -> Any:
        return next(file for file in self.found.files if file.name == f"{name}.gguf")

    @property
    def reference(self) -> Path:
        (path,) = self.cache.glob("*.reference")
        return path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(shared(tmp_path_factory, "evaluated-models", make_models))


@pytest.fixture(scope="session")
def evaluated(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    folder = shared(tmp_path_factory, "evaluated", lambda f: make_evaluation(f, models))
    found = Evaluation.model_validate_json((folder / "found.json").read_bytes())
    return Evaluated(models, folder / "cache", found)


def without_cost(found: Evaluation) -> dict[str, Any]:
    """Return an evaluation without what depends on the machine's speed, and without its command."""
    document = found.model_dump()
    del document["command"]
    for file in document["files"]:
        del file["cost"]
    return document


def have_ended(pids: list[int]) -> bool:
    """Return whether processes end within the time that a loaded machine needs."""
    for _ in range(1000):
        if not any(psutil.pid_exists(p) and is_running(p) for p in pids):
            return True
        time.sleep(0.02)
    return False


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
