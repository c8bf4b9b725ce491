"""With the means of the input channels, an encoder keeps the bias of each row small.

The bias of a row is what its errors add to the mean of its output, sum mean * (x - decoded).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dynquant
from dynquant.errors import EncodeError
from dynquant.quants import ALL, codec, decode
from dynquant.quants.codec import NotFiniteError
from dynquant.quants.encoder import MEANS_BELOW, uses_means

WITH_MEANS = [name for name, qtype in ALL.items() if uses_means(qtype)]
RIDGE = 1e-3


def drawn(n_rows: int, n: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """Return weights, importances, and means that are a good part of the importances."""
    chance = np.random.default_rng(seed)
    x = (0.02 * chance.standard_t(5, (n_rows, n))).astype(np.float32)
    w = chance.lognormal(0, 1, n).astype(np.float32)
    return x, w, (chance.normal(0, 0.5, n) * np.sqrt(w)).astype(np.float32)


def losses(x: Any, blocks: Any, name: str, w: Any, mean: Any) -> tuple[float, float]:
    """Return sum w err^2 and sum (sum mean err)^2."""
    errors = x - decode(blocks, name, x.shape[1]).astype(np.float64)
    return float((errors**2 @ w).sum()), float(((errors @ mean) ** 2).sum())


@pytest.mark.parametrize("name", WITH_MEANS)
def test_the_bias_falls_by_more_than_the_errors_rise(name: str) -> None:
    x, w, mean = drawn(40, 1024)
    plain = losses(x, dynquant.encode(x, name, w), name, w, mean)
    ours = losses(x, dynquant.encode(x, name, w, mean=mean), name, w, mean)
    assert ours[1] < 0.4 * plain[1]
    assert ours[0] < 1.01 * plain[0]
    assert sum(ours) < sum(plain)


@pytest.mark.parametrize("name", ["IQ2_XXS", "Q2_K", "IQ4_NL"])
def test_the_second_block_is_encoded_from_the_best_weights_for_the_first_one(name: str) -> None:
    size = ALL[name].block_size
    x, w, mean = drawn(32, 2 * size)
    first, second = slice(0, size), slice(size, 2 * size)
    found = dynquant.encode(x, name, w, mean=mean)
    blocks = dynquant.encode(x[:, first], name, w[first])
    bias = (x[:, first] - decode(blocks, name, size).astype(np.float64)) @ mean[first]
    later = mean[second].astype(np.float64)
    metric = np.diag(w[second] + RIDGE * w.mean()) + np.outer(later, later)
    errors = np.linalg.solve(metric, -np.outer(later, bias)).T
    target = (x[:, second] - errors).astype(np.float32)
    expected = dynquant.encode(target, name, w[second])
    half = ALL[name].type_size
    assert np.array_equal(found[:, :half], blocks)
    # Weights that are equal up to the last bit may be rounded to another code.
    assert (found[:, half:] == expected).all(axis=1).mean() > 0.9


@pytest.mark.parametrize("name", WITH_MEANS)
def test_means_of_zero_change_no_byte(name: str) -> None:
    x, w, mean = drawn(18, 512)
    expected = dynquant.encode(x, name, w)
    assert np.array_equal(dynquant.encode(x, name, w, mean=0 * mean), expected)


@pytest.mark.parametrize("name", [name for name in ALL if name not in WITH_MEANS])
def test_types_of_more_bits_do_not_use_them(name: str) -> None:
    assert ALL[name].bpw >= MEANS_BELOW
    x, w, mean = drawn(3, 512)
    expected = dynquant.encode(x, name, w)
    assert np.array_equal(dynquant.encode(x, name, w, mean=mean), expected)


@pytest.mark.parametrize("name", WITH_MEANS)
@pytest.mark.parametrize("stored", ["F32", "F16", "BF16"])
def test_portions_of_rows_and_builds_of_the_core_give_the_same_bytes(
    name: str, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w, mean = drawn(37, 768, seed=3)
    rows = dynquant.encode(x, stored)
    found: list[bytes] = []
    for isa in codec.isas():
        monkeypatch.setenv("DYNQUANT_ISA", isa)
        for step in (37, 5, 16):
            parts: list[Any] = []
            for at in range(0, 37, step):
                part = np.ascontiguousarray(rows[at : at + step])
                out = np.empty((len(part), ALL[name].row_size(768)), np.uint8)
                codec.encode_floats(
                    part.reshape(-1), ALL[stored], 768, ALL[name], out, w, mean=mean
                )
                parts.append(out)
            found.append(np.concatenate(parts).tobytes())
    assert len(set(found)) == 1


def test_the_first_row_that_is_not_finite_is_named() -> None:
    x, w, mean = drawn(40, 1024)
    x[35, 3] = x[21, 1000] = np.nan
    x[22, 0] = np.inf
    with pytest.raises(NotFiniteError) as e:
        dynquant.encode(x, "Q4_K", w, mean=mean)
    assert e.value.row == 21


@pytest.mark.parametrize("name", WITH_MEANS)
def test_extreme_figures_give_finite_weights(name: str) -> None:
    x, w, mean = drawn(4, 768)
    for scale in (0, 1e-30, 1e30):
        for size in (1e-20, 1e15):
            blocks = dynquant.encode(x, name, scale * w, mean=size * mean)
            assert np.isfinite(decode(blocks, name, 768)).all()
    w[:700] = 0
    assert np.isfinite(decode(dynquant.encode(x, name, w, mean=mean), name, 768)).all()


def test_a_mean_needs_an_importance_and_its_shape() -> None:
    x, w, mean = drawn(2, 256)
    with pytest.raises(EncodeError, match="mean needs an importance"):
        dynquant.encode(x, "Q4_K", mean=mean)
    with pytest.raises(EncodeError, match=r"mean must be floats \[256\]"):
        dynquant.encode(x, "Q4_K", w, mean=mean[:-1])
    mean[0] = np.nan
    with pytest.raises(EncodeError, match="mean must be finite"):
        dynquant.encode(x, "Q4_K", w, mean=mean)
