"""Means of few tokens are mostly chance, and count accordingly."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from inprocess import run
from places import TINY_BOOKS

import dynquant
from dynquant.importance.imatrix import write_imatrix
from dynquant.importance.means import without_chance


def sums(n: int, true: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    x = true + np.random.default_rng(seed).normal(size=(n, len(true)))
    return x.sum(0).astype(np.float32), (x**2).sum(0).astype(np.float32)


def test_true_means_stay_and_chance_goes() -> None:
    true = np.where(np.arange(500) % 5, 0, 2.0)
    linear, squares = sums(20000, true, 0)
    found = without_chance(linear, squares, 20000)
    assert found is not None
    np.testing.assert_allclose(found, linear / 20000, rtol=1e-3)


def test_the_error_is_smaller_than_that_of_the_means_themselves() -> None:
    true = np.random.default_rng(1).normal(0, 0.1, 500)
    for n in (5, 30, 300):
        linear, squares = sums(n, true, n)
        found = without_chance(linear, squares, n)
        assert found is not None
        assert np.square(found - true).sum() < np.square(linear / n - true).sum()


def test_means_that_are_all_chance_are_unknown() -> None:
    unknown = [without_chance(*sums(10, np.zeros(2000), seed), 10) is None for seed in range(20)]
    assert 4 < sum(unknown) < 16


def test_one_token_or_none_has_no_mean() -> None:
    linear, squares = sums(1, np.ones(8), 0)
    assert without_chance(linear, squares, 1) is None
    assert without_chance(0 * linear, 0 * squares, 0) is None


def test_dead_channels_have_a_mean_of_zero() -> None:
    linear, squares = sums(1000, np.full(8, 3.0), 0)
    linear[2] = squares[2] = 0
    found = without_chance(linear, squares, 1000)
    assert found is not None and found[2] == 0 and (found[3:] > 2.9).all()


def imatrix_of_tiny_books(path: Path, *, signed: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write an imatrix of 1,000 tokens; return the mean squares and the means of each tensor."""
    rng = np.random.default_rng(0)
    figures: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for tensor in dynquant.load_model(TINY_BOOKS).tensors:
        if len(tensor.shape) == 2:
            squares = rng.lognormal(0, 1, (1, tensor.n_per_row)).astype(np.float32)
            figures[tensor.name] = squares, (0.5 * np.sqrt(squares)).astype(np.float32)
    entries = {name: (1000 * squares, [1000]) for name, (squares, _) in figures.items()}
    linear = {name: 1000 * means for name, (_, means) in figures.items()} if signed else None
    write_imatrix(path, entries, datasets=["a"], chunk_count=2, chunk_size=500, linear=linear)
    return figures


def test_conversion_and_verify_use_the_means(tmp_path: Path) -> None:
    signed, plain, out = tmp_path / "s.gguf", tmp_path / "p.gguf", tmp_path / "out.gguf"
    figures = imatrix_of_tiny_books(signed, signed=True)
    imatrix_of_tiny_books(plain, signed=False)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("default: IQ4_NL\n")
    dynquant.convert(TINY_BOOKS, out, recipe=recipe, imatrix=signed)
    name = "blk.1.ffn_down.weight"
    (tensor,) = [t for t in gguf.GGUFReader(out).tensors if t.name == name]
    f32 = tmp_path / "f32.gguf"
    dynquant.convert(TINY_BOOKS, f32, recipe="f32")
    (source,) = [t for t in gguf.GGUFReader(f32).tensors if t.name == name]
    squares, means = (values[0] for values in figures[name])
    share = 0.25  # of each mean square
    means = (means * (1 - (1 - share) / 999 / share)).astype(np.float32)
    expected = dynquant.encode(source.data, "IQ4_NL", squares, mean=means)
    assert (tensor.data == expected).mean() > 0.999  # the means are rounded otherwise
    assert not np.array_equal(tensor.data, dynquant.encode(source.data, "IQ4_NL", squares))
    assert run("verify", out, "--against", TINY_BOOKS, "--imatrix", signed).code == 0
    assert run("verify", out, "--against", TINY_BOOKS, "--imatrix", plain).code == 1
