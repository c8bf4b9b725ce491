"""What stages take: counts of a model, and what they grow with."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from agreement import load_reference
from places import TINY_BOOKS

from dynquant.arch.base import Model
from dynquant.arch.load import load_model
from dynquant.auto.forecast import Counts, Job, forecast
from dynquant.auto.stages import Asked, stages_of
from dynquant.budget.solve import opened
from dynquant.plan.make import make_plan
from dynquant.recipe.loader import load_recipe
from dynquant.recipe.target import Target


@cache
def model() -> Model:
    return load_model(TINY_BOOKS)


@cache
def job() -> Job:
    target = Target(size=3_000_000)
    asked = Asked(str(TINY_BOOKS), Path("o.gguf"), target, ("--target-size", "3MB"), Path())
    plan, groups = opened(
        load_recipe("budget"), target, lambda recipe, **more: make_plan(model(), recipe, **more)
    )
    return Job(asked, model(), plan, groups, 3_000_000, threads=2, speed=1e10)


def seconds(changed: Job) -> dict[str, float]:
    return {name: e.seconds for name, e in forecast(changed, stages_of(changed.asked)).items()}


def test_matrices_are_counted_and_an_embedding_that_makes_the_logits_is_a_product() -> None:
    counts = Counts.of(model())
    sizes = {t.name: t.n_rows * t.n_per_row for t in model().tensors if len(t.shape) > 1}
    assert counts.weights == sum(sizes.values())
    assert counts.active == counts.weights
    assert counts.squares == 4 * (3 * 256**2 + 768**2) + 256**2


def test_the_file_of_second_moments_has_the_size_that_is_said() -> None:
    # `dynquant imatrix --moments layers` of this model wrote 9,793,340 bytes.
    assert Counts.of(model()).moments == pytest.approx(9_793_340, rel=0.02)


def test_a_token_is_multiplied_by_the_experts_that_it_chooses() -> None:
    mixture = load_model(load_reference("mixtral").folder, needs_vocab=False)
    used, n = (
        mixture.keys[f"llama.{name}"].value for name in ("expert_used_count", "expert_count")
    )
    assert isinstance(used, int) and isinstance(n, int)
    assert used < n
    sizes = {t.name: t.n_rows * t.n_per_row for t in mixture.tensors if len(t.shape) > 1}
    experts = sum(size for name, size in sizes.items() if "_exps" in name)
    rest = sum(sizes.values()) - experts - sizes["token_embd.weight"]
    assert Counts.of(mixture).active == pytest.approx(rest + experts * used / n)


def test_stages_grow_with_what_they_do(tmp_path: Path) -> None:
    few, many = tmp_path / "few.txt", tmp_path / "many.txt"
    few.write_text("word " * 1000)
    many.write_text("word " * 10_000)
    plain = job()
    measured = [
        seconds(
            replace(plain, asked=replace(plain.asked, texts=(t,), tuning=(t,), calibration=(t,)))
        )
        for t in (few, many)
    ]
    for name in ("importance", "sensitivity", "solve", "evaluate"):
        assert measured[0][name] < measured[1][name]
    assert measured[0]["convert"] == measured[1]["convert"]
    assert seconds(replace(plain, threads=1))["convert"] > seconds(plain)["convert"]


def test_errors_that_are_not_kept_are_measured_by_solve() -> None:
    without = replace(job(), asked=replace(job().asked, skip=frozenset({"sensitivity"})))
    assert seconds(without)["solve"] > seconds(job())["solve"]


def test_the_output_takes_no_more_than_it_may_have() -> None:
    assert forecast(job(), stages_of(job().asked))["convert"].n_bytes == 3_000_000
