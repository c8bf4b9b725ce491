"""Sizes have three significant digits, and a column has one unit."""

from __future__ import annotations

import pytest

from dynquant.figures import size_column, size_text, three_digits


@pytest.mark.parametrize(
    ("n_bytes", "expected"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_000, "1.00 kB (0.977 KiB)"),
        (93_110_000, "93.1 MB (88.8 MiB)"),
        (999_400_000, "999 MB (953 MiB)"),
        (999_600_000, "1.00 GB (0.931 GiB)"),
        (140_231_123_456, "140 GB (131 GiB)"),
        (720_000_000_000, "720 GB (671 GiB)"),
        (1_342_000_000_000, "1.34 TB (1.22 TiB)"),
        (-38_500, "-38.5 kB (-37.6 KiB)"),
    ],
)
def test_size_has_the_unit_of_its_magnitude(n_bytes: int, expected: str) -> None:
    assert size_text(n_bytes) == expected


def test_a_column_has_the_unit_of_its_largest_size() -> None:
    assert size_column([14_930_000, 5_600_000, 4_096]) == ["14.9 MB", "5.60 MB", "0.00410 MB"]
    assert size_column([]) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (1234.5, "1,234"), (99.96, "100"), (0.0056, "0.00560"), (1e-9, "0.00000000100")],
)
def test_a_number_has_three_digits_and_no_exponent(value: float, expected: str) -> None:
    assert three_digits(value) == expected
