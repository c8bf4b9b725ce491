"""The memory of a context, against the sizes that llama.cpp prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from places import REFERENCES, TINY_BOOKS
from subsets import slow_except

import dynquant
from dynquant.budget.memory import BATCH, Memory, memory_of
from dynquant.evaluate.runtime.binding import LogCallback, library
from dynquant.evaluate.runtime.model import LoadedModel
from dynquant.plan.make import make_plan
from dynquant.recipe.loader import parse_recipe

CONTEXT = 4096
FAMILIES = ("deepseek-v3.2", "falcon-h1", "gemma3", "glm5", "jamba", "mamba", "qwen3next")
"""Latent attention, an indexer, windows, state with and without attention."""
WITHOUT_BUFFERS = ("deepseek-v3.2", "glm5")
"""Indexers have large buffers."""


def estimated(model: Path) -> Memory:
    recipe = parse_recipe("default: F32", "f32", "f32")
    return memory_of(make_plan(dynquant.load_model(model), recipe), CONTEXT)


_IGNORE = LogCallback(lambda *_: None)  # llama.cpp calls it until the process ends


@contextmanager
def logged() -> Iterator[list[str]]:
    """Collect what llama.cpp logs, and then silence it again."""
    lines: list[str] = []
    collect = LogCallback(lambda _, text, __: lines.append(text.decode(errors="replace")))
    library().llama_log_set(collect, None)
    try:
        yield lines
    finally:
        library().llama_log_set(_IGNORE, None)


def printed(path: Path) -> dict[str, float]:
    """Return the MiB of buffers, by kind, that llama.cpp prints for a context."""
    lib = library()
    with LoadedModel(path) as model, logged() as lines:
        parameters = lib.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = CONTEXT, CONTEXT, BATCH
        context = lib.llama_init_from_model(model.handle, parameters)
        assert context
        lib.llama_free(context)
    text = "".join(lines)
    return {
        kind: sum(map(float, re.findall(rf"{kind} buffer size *= *([\d.]+) MiB", text)))
        for kind in ("KV", "RS", "compute")
    }


@pytest.mark.oracle
@pytest.mark.parametrize("family", slow_except(("gemma3", "deepseek-v3.2"), FAMILIES))
def test_estimates_are_what_llama_cpp_allocates(tmp_path: Path, family: str) -> None:
    dynquant.convert(REFERENCES / family, tmp_path / "m.gguf", recipe="f32", threads=1)
    memory, found = estimated(REFERENCES / family), printed(tmp_path / "m.gguf")
    assert memory.cache / 2**20 == pytest.approx(found["KV"], abs=0.02)
    assert memory.state / 2**20 == pytest.approx(found["RS"], abs=0.02)
    if family not in WITHOUT_BUFFERS:
        assert memory.buffers / 2**20 == pytest.approx(found["compute"], rel=0.1)


@pytest.mark.oracle
def test_buffers_of_a_vocabulary_are_estimated(tmp_path: Path) -> None:
    dynquant.convert(TINY_BOOKS, tmp_path / "m.gguf", recipe="q8_0", threads=1)
    found = printed(tmp_path / "m.gguf")
    memory = estimated(TINY_BOOKS)
    assert memory.buffers / 2**20 == pytest.approx(found["compute"], rel=0.2)
    assert memory.cache / 2**20 == pytest.approx(found["KV"], rel=0.01)


def test_memory_grows_with_the_context() -> None:
    recipe = parse_recipe("default: F32", "f32", "f32")
    plan = make_plan(dynquant.load_model(TINY_BOOKS), recipe)
    short, long = (memory_of(plan, n) for n in (1000, 3000))
    assert long.cache == 3 * short.cache > 0
    assert long.total > short.total
