"""Figures against plain numpy, and intervals that contain the truth as often as they claim."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from evaluating import F64, measures

from dynquant.arrays import I64
from dynquant.evaluate.distributions import Measures
from dynquant.evaluate.figures import differences, figures_of
from dynquant.evaluate.intervals import intervals, share_interval
from dynquant.evaluate.results import Estimate, Figures

WINDOWS = measures(12, 31, seed=1)


def all_of(name: str, windows: list[Measures] = WINDOWS) -> F64:
    return np.concatenate([getattr(w, name) for w in windows]).astype(np.float64)


def percentile(name: str, fraction: float) -> float:
    """Return a percentile as llama-perplexity does: linear between the two nearest tokens."""
    ordered = np.sort(all_of(name))
    place = fraction * (len(ordered) - 1)
    low = min(int(place), len(ordered) - 2)
    return float(ordered[low] + (place - low) * (ordered[low + 1] - ordered[low]))


def delta_p() -> F64:
    return np.exp(-all_of("nll")) - np.exp(-all_of("base_nll"))


EXPECTED: dict[str, Callable[[], float]] = {
    "ppl": lambda: math.exp(all_of("nll").mean()),
    "ppl_base": lambda: math.exp(all_of("base_nll").mean()),
    "ppl_ratio": lambda: math.exp(all_of("nll").mean()) / math.exp(all_of("base_nll").mean()),
    "mean_kld": lambda: all_of("kl").mean(),
    "median_kld": lambda: float(np.median(all_of("kl"))),
    "kld_90": lambda: percentile("kl", 0.9),
    "kld_95": lambda: percentile("kl", 0.95),
    "kld_99": lambda: percentile("kl", 0.99),
    "kld_999": lambda: percentile("kl", 0.999),
    "maximum_kld": lambda: all_of("kl").max(),
    "same_top": lambda: all_of("same_top").mean(),
    "mean_dp": lambda: delta_p().mean(),
    "rms_dp": lambda: math.sqrt((delta_p() ** 2).mean()),
    "windows": lambda: 12,
    "tokens": lambda: 12 * 31,
}


@pytest.fixture(scope="module")
def figures() -> Figures:
    return figures_of(WINDOWS)


@pytest.mark.parametrize("name", EXPECTED)
def test_figures_equal_those_of_plain_numpy(figures: Figures, name: str) -> None:
    found = getattr(figures, name)
    value = found.value if isinstance(found, Estimate) else found
    assert value == pytest.approx(EXPECTED[name](), rel=1e-12)


def test_all_figures_are_compared() -> None:
    assert set(EXPECTED) | {"sampling_error"} == set(Figures.model_fields)


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - {"windows", "tokens", "maximum_kld"}))
def test_intervals_contain_their_figures_and_have_a_width(figures: Figures, name: str) -> None:
    found: Estimate = getattr(figures, name)
    assert found.low < found.high
    assert found.low <= found.value <= found.high


def test_sampling_error_is_that_of_the_mean_of_all_tokens() -> None:
    noisy = [replace(w, noise=np.full(31, 0.5)) for w in WINDOWS]
    assert figures_of(noisy).sampling_error == pytest.approx(0.5 / math.sqrt(12 * 31))


def unchanged(w: Measures) -> Measures:
    return replace(
        w, kl=w.kl * 0, nll=w.base_nll, same_top=np.ones_like(w.same_top), noise=w.noise * 0
    )


def test_the_reference_itself_loses_nothing() -> None:
    found = figures_of([unchanged(w) for w in WINDOWS])
    for name in ("mean_kld", "median_kld", "kld_999", "mean_dp", "rms_dp"):
        assert getattr(found, name) == Estimate(value=0, low=0, high=0), name
    for name in ("ppl_ratio", "same_top"):
        assert getattr(found, name) == Estimate(value=1, low=1, high=1), name


def test_one_window_has_figures_without_a_width() -> None:
    found = figures_of(WINDOWS[:1])
    assert found.mean_kld.low == found.mean_kld.value == found.mean_kld.high
    assert found.windows == 1


def test_a_perplexity_beyond_all_numbers_is_reported_as_very_large() -> None:
    # Tokens that the file excludes have a log-probability of -1e4.
    lost = [replace(w, nll=np.full(31, 1e4)) for w in WINDOWS]
    assert 1e300 < figures_of(lost).ppl.value < math.inf


# ---- differences ----


def test_difference_is_that_of_the_figures() -> None:
    other = measures(12, 31, seed=500, by=0.6)
    found, a, b = differences(WINDOWS, other), figures_of(WINDOWS), figures_of(other)
    assert found["mean_kld"].value == pytest.approx(a.mean_kld.value - b.mean_kld.value)
    assert found["ln_ppl"].value == pytest.approx(math.log(a.ppl.value / b.ppl.value))
    assert found["same_top"].value == pytest.approx(a.same_top.value - b.same_top.value)


def test_differences_are_antisymmetric() -> None:
    other = measures(12, 31, seed=500, by=0.6)
    found, reverse = differences(WINDOWS, other), differences(other, WINDOWS)
    for name, it in found.items():
        expected = (-it.value, -it.high, -it.low)
        back = reverse[name]
        assert (back.value, back.low, back.high) == pytest.approx(expected, abs=1e-15), name


def test_a_file_does_not_differ_from_itself() -> None:
    assert set(differences(WINDOWS, WINDOWS).values()) == {Estimate(value=0, low=0, high=0)}


def test_a_paired_difference_is_known_better_than_the_figures() -> None:
    # Both files lose on the same difficult windows; the difference is the same in each.
    rng = np.random.default_rng(1)
    hard = rng.exponential(size=(40, 1)) * np.ones(31)
    a = [replace(WINDOWS[0], kl=h + 0.01) for h in hard]
    b = [replace(WINDOWS[0], kl=h) for h in hard]
    width = figures_of(b).mean_kld
    pair = differences(a, b)["mean_kld"]
    assert pair.low == pytest.approx(0.01) == pair.high
    assert width.high - width.low > 0.2


# ---- intervals ----


def mean_of(x: F64) -> Callable[[I64], F64]:
    return lambda numbers: x[numbers].mean(axis=-1)[None]


@pytest.mark.slow
@pytest.mark.parametrize("draw", ["standard_normal", "standard_exponential"])
def test_intervals_contain_the_truth_95_times_in_100(draw: str) -> None:
    rng = np.random.default_rng(7)
    truth = {"standard_normal": 0.0, "standard_exponential": 1.0}[draw]
    hits = 0
    for _ in range(250):
        _, low, high = intervals(mean_of(getattr(rng, draw)(80)), 80)
        hits += bool(low[0] <= truth <= high[0])
    # Two standard errors are 2.8 %; the percentile bootstrap of 80 skewed numbers covers 94 %.
    assert 0.91 <= hits / 250 <= 0.98


def test_intervals_of_several_figures_are_those_of_each() -> None:
    rng = np.random.default_rng(8)
    x, y = rng.standard_normal((2, 30))
    both = intervals(lambda numbers: np.stack([x[numbers].mean(-1), y[numbers].mean(-1)]), 30)
    for i, one in enumerate((x, y)):
        single = intervals(mean_of(one), 30)
        assert [f[i] for f in both] == [f[0] for f in single]


@pytest.mark.parametrize("n", [2, 3, 50])
def test_interval_of_equal_numbers_is_the_number(n: int) -> None:
    value, low, high = intervals(mean_of(np.full(n, 0.25)), n)
    assert value[0] == low[0] == high[0] == 0.25


def test_interval_of_a_single_window_is_the_value() -> None:
    value, low, high = intervals(mean_of(np.array([3.0])), 1)
    assert value[0] == low[0] == high[0] == 3


def test_intervals_are_the_same_every_time() -> None:
    x = np.random.default_rng(9).standard_normal(20)
    assert intervals(mean_of(x), 20)[1:] == intervals(mean_of(x), 20)[1:]


@pytest.mark.parametrize("n", [1, 8, 300])
def test_share_of_none_or_all_has_an_interval_by_wilson(n: int) -> None:
    z2 = 1.959963984540054**2
    assert share_interval(0, n) == pytest.approx((0, z2 / (n + z2)), abs=1e-12)
    assert share_interval(n, n) == pytest.approx((n / (n + z2), 1), abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(1, 8), (4, 8), (63, 64)])
def test_interval_of_a_share_is_that_of_wilsons_formula(k: int, n: int) -> None:
    z, p = 1.959963984540054, k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert share_interval(k, n) == pytest.approx((middle - half, middle + half), abs=1e-9)
