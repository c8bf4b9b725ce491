"""Every type on every ISA: one set of checks that includes each new type automatically."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from ceilings import type_ceilings
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    degenerate_rows,
    ggml,
    ggml_encode,
    gguf_decode,
    log_normal_importance,
    matrices,
    requires_importance,
    weighted_error,
)
from subsets import FAST_TYPES, slow_except

from dynquant.arrays import F32, U8
from dynquant.errors import DynquantError, EncodeError
from dynquant.quants import (
    ALL,
    CORE,
    Batch,
    NotFiniteError,
    QuantType,
    active_isa,
    decode,
    encode,
    isas,
    quant_type,
)
from dynquant.quants.search import EFFORTS, GAINS, HALFWAY, WEIGHTINGS, Effort, Gain
from dynquant.quants.table import FLOATS

TYPES = list(ALL)
BLOCK_TYPES = [name for name, qtype in ALL.items() if not qtype.is_float]
MATRICES = dict(matrices())

# For the other types, ggml builds tables of grid neighbors before it encodes the first block; for
# IQ1_M this takes many seconds.
QUICK_IN_GGML = [name for name in BLOCK_TYPES if not name.startswith(("IQ1", "IQ2", "IQ3"))]

# The largest permitted weighted error of each type, x 1e-6 of the weighted sum of squares, on
# MATRICES["gaussian"] with and without importance. scripts/checks/compare_ceilings.py checks that
# no ceiling rises.
CEILING = type_ceilings()

# Range of a row's largest magnitude in which the error of a type is normal: types with f16 scales,
# and NVFP4, whose scales are 8-bit floats.
RANGES = dict.fromkeys(BLOCK_TYPES, (0.001, 65504)) | {"NVFP4": (0.02, 2000)}


@pytest.fixture(params=isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DYNQUANT_ISA", request.param)
    return request.param


def on_isa(
    monkeypatch: pytest.MonkeyPatch, isa: str, x: F32, name: str, w: F32 | None, effort: Effort
) -> U8:
    monkeypatch.setenv("DYNQUANT_ISA", isa)
    return encode(x, name, w, effort=effort)


@pytest.mark.oracle
@pytest.mark.parametrize("name", TYPES)
def test_number_and_sizes_are_those_of_ggml(name: str) -> None:
    pytest.importorskip("xllamacpp")
    qtype, library = ALL[name], ggml()
    assert library.ggml_type_name(qtype.ggml_type).decode().upper() == name
    assert library.ggml_blck_size(qtype.ggml_type) == qtype.block_size
    assert library.ggml_type_size(qtype.ggml_type) == qtype.type_size


@pytest.mark.parametrize("name", TYPES)
def test_number_and_sizes_are_those_of_the_gguf_package(name: str) -> None:
    if name not in gguf.GGMLQuantizationType.__members__:
        pytest.skip("not a type of this gguf package")
    ggml_type = gguf.GGMLQuantizationType[name]
    qtype = ALL[name]
    assert qtype.ggml_type == ggml_type
    assert (qtype.block_size, qtype.type_size) == gguf.GGML_QUANT_SIZES[ggml_type]


@pytest.mark.parametrize("name", TYPES)
def test_decodes_to_the_same_floats_as_the_gguf_package(isa: str, name: str) -> None:
    rng = np.random.default_rng(1)
    blocks = encode(rng.standard_normal((5, 512)).astype(np.float32), name)
    np.testing.assert_array_equal(decode(blocks, name, 512), gguf_decode(blocks, ALL[name]))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_any_bytes_with_a_finite_scale_decode_as_in_the_gguf_package(isa: str, name: str) -> None:
    qtype = ALL[name]
    rng = np.random.default_rng(2)
    blocks = rng.integers(0, 256, (64, qtype.row_size(256)), np.uint8)
    expected = gguf_decode(blocks, qtype)
    finite = np.isfinite(expected).all(axis=1)
    assert finite.any()
    np.testing.assert_array_equal(decode(blocks, name, 256)[finite], expected[finite])


@pytest.mark.parametrize("effort", slow_except(["normal"], EFFORTS))
@pytest.mark.parametrize("with_importance", [True, False])
@pytest.mark.parametrize("name", slow_except(FAST_TYPES, TYPES))
def test_every_isa_gives_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, name: str, with_importance: bool, effort: Effort
) -> None:
    for x in (*MATRICES.values(), *(x for _, x in degenerate_rows())):
        w = log_normal_importance(x.shape[1]) if with_importance else None
        first, *others = [on_isa(monkeypatch, isa, x, name, w, effort) for isa in isas()]
        for other in others:
            np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("name", TYPES)
def test_bytes_of_a_row_do_not_depend_on_other_rows(name: str) -> None:
    x = MATRICES["student-t"][:7, :768]
    w = log_normal_importance(768)
    together = encode(x, name, w)
    for row in range(len(x)):
        np.testing.assert_array_equal(encode(x[row : row + 1], name, w)[0], together[row])


@pytest.mark.parametrize("name", TYPES)
def test_least_squares_error_is_below_the_ceiling(name: str) -> None:
    x = MATRICES["gaussian"]
    for w, ceiling in zip((log_normal_importance(x.shape[1]), None), CEILING[name], strict=True):
        blocks = encode(x, name, w, gain="least-squares")
        assert weighted_error(x, decode(blocks, name, x.shape[1]), w) <= ceiling * 1e-6


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_default_gain_is_half_where_least_squares_shortens_blocks(name: str) -> None:
    x = MATRICES["gaussian"]
    w = log_normal_importance(x.shape[1])
    gain = "half" if name in HALFWAY else "least-squares"
    np.testing.assert_array_equal(encode(x, name, w), encode(x, name, w, gain=gain))


@pytest.mark.oracle
@pytest.mark.parametrize("with_importance", [True, False])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("name", slow_except(QUICK_IN_GGML, BLOCK_TYPES))
def test_error_is_at_most_that_of_ggml(name: str, matrix: str, with_importance: bool) -> None:
    pytest.importorskip("xllamacpp")
    if not with_importance and requires_importance(ALL[name]):
        pytest.skip("ggml does not encode this type without importance")
    x = MATRICES[matrix]
    w = log_normal_importance(x.shape[1]) if with_importance else None
    ours = weighted_error(x, gguf_decode(encode(x, name, w), ALL[name]), w)
    theirs = weighted_error(x, gguf_decode(ggml_encode(x, ALL[name], w), ALL[name]), w)
    assert ours <= theirs


# Types whose encoders reach the optimum of the format at normal effort, or almost.
OPTIMAL_AT_NORMAL = ("MXFP4", "NVFP4", "Q1_0", "Q2_0", "TQ1_0", "TQ2_0")


@pytest.mark.parametrize("with_importance", [True, False])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("name", slow_except(FAST_TYPES, BLOCK_TYPES))
def test_more_effort_gives_no_larger_error(name: str, matrix: str, with_importance: bool) -> None:
    x = MATRICES[matrix]
    w = log_normal_importance(x.shape[1]) if with_importance else None
    fast, normal, best = [
        weighted_error(x, decode(encode(x, name, w, effort=effort), name, x.shape[1]), w)
        for effort in EFFORTS
    ]
    assert best <= normal <= fast
    if name not in OPTIMAL_AT_NORMAL:
        assert best < normal


@pytest.mark.parametrize("stored", FLOATS.values(), ids=FLOATS)
@pytest.mark.parametrize("name", slow_except(FAST_TYPES, TYPES))
def test_stored_rows_encode_like_their_float_values(isa: str, name: str, stored: QuantType) -> None:
    source = ALL[stored.name]
    rows = encode(MATRICES["student-t"], source)
    values = gguf_decode(rows, source)
    n_rows, n_per_row = values.shape
    out = CORE.encode(Batch(rows, stored, n_per_row, ALL[name])).blocks
    assert len(out) == n_rows
    np.testing.assert_array_equal(out, encode(values, name))


@pytest.mark.parametrize("stored", [ALL["F16"], ALL["BF16"]])
def test_every_half_float_is_unchanged_by_way_of_f32(isa: str, stored: QuantType) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    infinite = 0x7C00 if stored is ALL["F16"] else 0x7F80
    finite = every[(every & infinite) != infinite].reshape(1, -1)
    batch = Batch(finite.view(np.uint8), stored, finite.size, ALL[stored.name])
    out = CORE.encode(batch).blocks
    np.testing.assert_array_equal(out.view(np.uint16), finite)


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_float_types_round_as_in_the_gguf_package_and_saturate(isa: str, name: str) -> None:
    rng = np.random.default_rng(5)
    patterns = rng.integers(0, 1 << 32, 50_000, np.uint64).astype(np.uint32)
    x = patterns.view(np.float32)
    x = x[np.isfinite(x)].reshape(1, -1)
    most = 65504.0 if name == "F16" else float(np.uint32(0x7F7F0000).view(np.float32))
    decoded = gguf_decode(encode(x, name), ALL[name])
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).astype(np.float32) if name == "F16" else bf16_rounded(x)
    np.testing.assert_array_equal(decoded, np.clip(expected, -most, most))


def bf16_rounded(x: F32) -> F32:
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("stored", FLOATS.values(), ids=FLOATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_weight_is_refused_with_its_row(stored: QuantType, bad: float) -> None:
    n_per_row = 768
    rows = encode(np.ones((9, n_per_row), np.float32), stored)
    itemsize = stored.type_size
    pattern = np.float32(bad).view(np.uint32)
    half = {ALL["F16"]: np.float16(bad).view(np.uint16), ALL["BF16"]: pattern >> 16}
    raw = pattern if itemsize == 4 else half[stored]
    rows.view(f"<u{itemsize}")[6, 700] = raw
    with pytest.raises(NotFiniteError) as error:
        CORE.encode(Batch(rows, stored, n_per_row, ALL["Q8_0"]))
    assert error.value.row == 6


@pytest.mark.slow
@given(
    st.sampled_from(BLOCK_TYPES),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
    st.floats(-12, 12),
)
@settings(max_examples=100, deadline=None)
def test_error_is_bounded_for_any_shape_and_scale(
    name: str, n_rows: int, n_blocks: int, seed: int, exponent: float
) -> None:
    n_per_row = n_blocks * ALL[name].block_size
    rng = np.random.default_rng(seed)
    x = (10.0**exponent * rng.standard_normal((n_rows, n_per_row))).astype(np.float32)
    decoded = gguf_decode(encode(x, name), ALL[name])
    least, most = RANGES[name]
    in_range = least < float(np.abs(x).max()) < most
    # A few weights can have four times the average error of many.
    assert weighted_error(x, decoded) <= min(
        1 + 1e-6, 4e-6 * CEILING[name][1] if in_range else np.inf
    )


def test_rows_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(EncodeError, match=r"a row of 300 weights is no multiple of Q4_K's block"):
        encode(np.zeros((1, 300), np.float32), "Q4_K")


def test_importance_of_the_wrong_shape_or_sign_is_refused() -> None:
    x = np.zeros((1, 256), np.float32)
    with pytest.raises(EncodeError, match=r"importance must be floats \[256\]"):
        encode(x, "Q4_K", np.ones(255, np.float32))
    with pytest.raises(EncodeError, match="finite and not negative"):
        encode(x, "Q4_K", np.full(256, -1, np.float32))


def test_unknown_type_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(EncodeError, match=r"'q4km' is not a quant type; did you mean Q4_K\?"):
        quant_type("q4km")


def projection(x: F32, decoded: F32, w: F32) -> float:
    """Return <x, decoded> / <x, x>, weighted."""
    exact = x.astype(np.float64)
    return float((w * exact * decoded).sum() / (w * exact * exact).sum())


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_0", "IQ1_M", "IQ1_S", "IQ2_XXS", "TQ1_0"])
def test_gains_range_from_the_least_error_to_the_length_of_the_original(name: str) -> None:
    x = MATRICES["gaussian"]
    w = log_normal_importance(x.shape[1])
    decoded = [gguf_decode(encode(x, name, w, gain=gain), ALL[name]) for gain in GAINS]
    lengths = [projection(x, d, w) for d in decoded]
    errors = [weighted_error(x, d, w) for d in decoded]
    assert lengths == sorted(lengths)
    assert lengths[-1] == pytest.approx(1, abs=2e-3)
    assert errors == sorted(errors)


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q2_0"])
@pytest.mark.parametrize(("gain", "most"), [("half", 1.25), ("preserving", 1.5)])
def test_a_block_whose_important_weight_is_rounded_away_is_not_blown_up(
    name: str, gain: Gain, most: float
) -> None:
    # As in models with attention sinks: one input channel is thousands of times as large as the
    # others, and its weights are small.
    chance = np.random.default_rng(3)
    x = chance.standard_normal((8, 256)).astype(np.float32)
    w = chance.chisquare(1, 256).astype(np.float32)
    x[:, 17], w[17] = 1e-2, 1e8
    plain, gained = (
        gguf_decode(encode(x, name, w, gain=g), ALL[name]) for g in ("least-squares", gain)
    )
    lengths = np.linalg.norm(gained, axis=1) / np.linalg.norm(plain, axis=1)
    assert lengths.max() < most + 1e-2


@pytest.mark.parametrize("name", [n for n in BLOCK_TYPES if n != "Q1_0"])
def test_weighting_by_magnitude_lowers_the_error_of_large_weights(name: str) -> None:
    x = MATRICES["student-t"]
    plain, by_magnitude = (
        gguf_decode(encode(x, name, weighting=weighting), ALL[name]) for weighting in WEIGHTINGS
    )
    blocks = x.reshape(-1, ALL[name].block_size).astype(np.float64)
    mean = (blocks**2).mean(axis=1, keepdims=True)
    weight = np.sqrt(mean + blocks**2).reshape(x.shape)
    errors = [(weight * (x - d.astype(np.float64)) ** 2).sum() for d in (plain, by_magnitude)]
    assert errors[1] < errors[0]


def test_mix_of_llama_quantize_is_refused_as_a_mix() -> None:
    with pytest.raises(EncodeError, match=r"'Q4_K_M' is llama-quantize's name of a mixture"):
        quant_type("Q4_K_M")


def test_type_for_activations_is_refused_as_such() -> None:
    with pytest.raises(EncodeError, match="'Q8_K' is a type of GGUF, but none that weights"):
        quant_type("Q8_K")


def test_unknown_isa_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNQUANT_ISA", "sse9")
    with pytest.raises(DynquantError, match="DYNQUANT_ISA='sse9' is not supported on this CPU"):
        active_isa()


def test_no_rows_give_no_blocks() -> None:
    assert encode(np.empty((0, 256), np.float32), "Q4_K").shape == (0, 144)
