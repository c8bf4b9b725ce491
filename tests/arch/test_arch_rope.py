from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.arch.positions.rope import llama3_factors, read_rope
from dynquant.errors import ArchitectureError
from dynquant.tensors import Computed, TensorSource, row_bytes
from dynquant.transforms import interleaved_heads

KNOWN = ("linear", "dynamic", "yarn", "llama3")
LLAMA_31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

# transformers 5.23, `ROPE_INIT_FUNCTIONS["llama3"]`: default frequencies over scaled ones.
TRANSFORMERS = {
    "Llama 3.1 8B": (
        {**LLAMA_31, "rope_theta": 500000.0},
        128,
        [1.0] * 29 + [1.207484, 1.553415, 2.026313, 2.69453, 3.684253, 5.257327] + [8.0] * 29,
    ),
    "Llama 3.2 1B": (
        {**LLAMA_31, "rope_theta": 500000.0, "factor": 32.0},
        64,
        [1.0] * 15 + [1.651329, 3.292263, 9.66673] + [32.0] * 14,
    ),
    "short": (
        {**LLAMA_31, "rope_theta": 10000.0, "original_max_position_embeddings": 64},
        32,
        [1.0, 1.0, 1.293976, 2.765173, 7.667385] + [8.0] * 11,
    ),
}


def as_float32(source: TensorSource, start: int, stop: int) -> np.ndarray:
    into = np.empty((stop - start) * row_bytes(source), np.uint8)
    source.read(start, stop, into)
    return into.view("<f4").reshape(stop - start, -1)


@pytest.mark.parametrize("model", TRANSFORMERS)
def test_llama3_factors_equal_those_of_transformers(model: str) -> None:
    settings, head_dim, expected = TRANSFORMERS[model]
    rope = read_rope({"rope_parameters": settings, "max_position_embeddings": 1}, "", KNOWN)
    found = llama3_factors(rope, head_dim)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-6)


@pytest.mark.slow
@given(
    theta=st.floats(1e3, 1e7),
    factor=st.floats(1.0, 64.0),
    low=st.floats(0.5, 4.0),
    width=st.floats(0.25, 8.0),
    original=st.integers(16, 100_000),
    half=st.integers(1, 128),
)
def test_llama3_factors_equal_the_three_cases_of_the_formula(
    theta: float, factor: float, low: float, width: float, original: int, half: int
) -> None:
    high = low + width
    settings = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    rope = read_rope({"rope_parameters": settings}, "", KNOWN)
    inverse = theta ** (-np.arange(half) / half)
    wavelength = 2 * np.pi / inverse
    smooth = (original / wavelength - low) / (high - low)
    between = (1 - smooth) * inverse / factor + smooth * inverse
    scaled = np.where(wavelength > original / low, inverse / factor, between)
    scaled = np.where(wavelength < original / high, inverse, scaled)
    np.testing.assert_allclose(llama3_factors(rope, 2 * half), inverse / scaled, rtol=1e-5)


def test_llama3_factors_jump_if_both_limits_are_equal() -> None:
    settings = {**LLAMA_31, "low_freq_factor": 4.0, "rope_theta": 10000.0}
    rope = read_rope({"rope_parameters": settings}, "", KNOWN)
    assert set(llama3_factors(rope, 128).tolist()) == {1.0, 8.0}


@pytest.mark.slow
@given(
    n_head=st.integers(1, 4),
    pairs=st.integers(1, 6),
    n_per_row=st.integers(1, 5),
    bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_interleaved_rows_equal_swapped_axes(
    n_head: int, pairs: int, n_per_row: int, bounds: tuple[float, float]
) -> None:
    rows = n_head * pairs * 2
    matrix = np.arange(rows * n_per_row, dtype=np.float32).reshape(rows, n_per_row)
    swapped = matrix.reshape(n_head, 2, pairs, n_per_row).swapaxes(1, 2).reshape(rows, n_per_row)
    start, last = sorted(round(b * (rows - 1)) for b in bounds)
    stop = last + 1
    found = as_float32(interleaved_heads(Computed(matrix), n_head), start, stop)
    np.testing.assert_array_equal(found, swapped[start:stop].reshape(stop - start, -1))


@pytest.mark.slow
@given(n_head=st.integers(1, 6), pairs=st.integers(1, 8))
def test_an_interleaved_bias_equals_swapped_axes(n_head: int, pairs: int) -> None:
    bias = np.arange(n_head * pairs * 2, dtype=np.float32)
    swapped = bias.reshape(n_head, 2, pairs).swapaxes(1, 2).reshape(-1)
    found = as_float32(interleaved_heads(Computed(bias), n_head), 0, 1)
    np.testing.assert_array_equal(found[0], swapped)


def test_settings_of_transformers_5_and_older_are_equivalent() -> None:
    old = {"rope_scaling": {**LLAMA_31, "type": "llama3"}, "rope_theta": 500000.0}
    new = {"rope_parameters": {**LLAMA_31, "rope_theta": 500000.0}}
    assert read_rope(old, "", KNOWN) == read_rope(new, "", KNOWN)


def test_the_older_of_both_names_has_precedence_as_in_transformers() -> None:
    config = {"rope_parameters": {"rope_type": "default"}, "rope_scaling": LLAMA_31}
    assert read_rope(config, "", KNOWN).rope_type == "llama3"


def test_the_oldest_name_of_the_type_is_recognised() -> None:
    config = {
        "rope_scaling": {"type": "linear", "factor": 2},
        "max_position_embeddings": 64,
    }
    rope = read_rope(config, "", KNOWN)
    assert (rope.rope_type, rope.factor, rope.rope_theta) == ("linear", 2.0, 10000.0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 4096),
        ({"rope_parameters": {"original_max_position_embeddings": 64}}, 64),
        ({"original_max_position_embeddings": 32}, 32),
        (
            {
                "rope_parameters": {"original_max_position_embeddings": 64},
                "original_max_position_embeddings": 32,
            },
            32,
        ),
    ],
)
def test_original_context_length_is_found_as_in_transformers(
    config: dict[str, object], expected: int
) -> None:
    rope = read_rope({"max_position_embeddings": 4096, **config}, "", KNOWN)
    assert rope.original_max_position_embeddings == expected


BAD = {
    "unknown type": (
        {"rope_scaling": {"rope_type": "longrope", "max_position_embeddings": 1}},
        r"x: rope_scaling: llama.cpp does not compute rope_type 'longrope' .*linear",
    ),
    "factor missing": (
        {"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 1.0}},
        r"factor is missing; rope_type 'llama3' needs it\n.*high_freq_factor is missing",
    ),
    "factor of another type": (
        {"rope_parameters": {"rope_type": "yarn", "factor": "4"}},
        r"x: rope_parameters: factor is '4', but should be a valid number",
    ),
    "factor not positive": (
        {"rope_parameters": {"rope_type": "yarn", "factor": -1.0}},
        "factor is -1.0, but should be greater than 0",
    ),
    "by layer type": (
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
        "rope_parameters must be one set of settings, the same for all layers",
    ),
    "betas without a key": (
        {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 16, "beta_slow": 2}},
        "beta_fast is 16.0; llama.cpp computes .* with 32.0\n.*beta_slow is 2.0; .* with 1.0",
    ),
    "corrections not truncated": (
        {"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}},
        "truncate is False; llama.cpp computes this architecture with True",
    ),
    "a list": ({"rope_scaling": [1]}, "rope_scaling must be one set of settings"),
    "partial": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; llama.cpp computes"),
}


@pytest.mark.parametrize("case", BAD)
def test_unsupported_rope_settings_are_rejected(case: str) -> None:
    config, problem = BAD[case]
    with pytest.raises(ArchitectureError, match=problem):
        read_rope({"max_position_embeddings": 64, **config}, "x", KNOWN)
