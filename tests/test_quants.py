"""Every type on every ISA: one set of checks that a new type gets for nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    ggml_encode,
    gguf_decode,
    log_normal_importance,
    matrices,
    requires_importance,
    weighted_error,
)

from dynquant.errors import DynquantError, EncodeError
from dynquant.quants import (
    ALL,
    NotFiniteError,
    active_isa,
    decode,
    encode,
    encode_stored,
    isas,
    quant_type,
)
from dynquant.quants.search import EFFORTS
from dynquant.tensors import F32, U8, StoredType

TYPES = list(ALL)
BLOCK_TYPES = [name for name, qtype in ALL.items() if not qtype.is_float]
MATRICES = dict(matrices())

# The weighted error that each type may leave, x 1e-6 of the weighted sum of squares, on
# MATRICES["gaussian"] with and without importance. A ceiling may only go down.
CEILING = {
    "F32": (0, 0),
    "F16": (0.0427, 0.0424),
    "BF16": (2.73, 2.75),
    "Q8_0": (20.6, 28.6),
    "Q6_K": (233, 275),
    "Q5_1": (911, 1110),
    "Q5_K": (992, 1170),
    "Q5_0": (1430, 1630),
    "Q4_1": (4000, 4810),
    "Q4_K": (4120, 4920),
    "IQ4_NL": (4660, 5360),
    "Q4_0": (5880, 6550),
    "IQ4_XS": (4740, 5440),
    "IQ3_S": (12900, 17000),
    "Q3_K": (18100, 20700),
    "IQ3_XXS": (22600, 31700),
    "Q2_K": (52400, 67300),
    "IQ2_S": (45800, 57300),
    "IQ2_XS": (60300, 82800),
    "IQ2_XXS": (79000, 110000),
    "IQ1_M": (135000, 171000),
    "IQ1_S": (169000, 200000),
}


@pytest.fixture(params=isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DYNQUANT_ISA", request.param)
    return request.param


def on_isa(monkeypatch: pytest.MonkeyPatch, isa: str, x: F32, name: str, w: F32 | None) -> U8:
    monkeypatch.setenv("DYNQUANT_ISA", isa)
    return encode(x, name, w)


@pytest.mark.parametrize("name", TYPES)
def test_decodes_to_the_same_floats_as_the_gguf_package(isa: str, name: str) -> None:
    rng = np.random.default_rng(1)
    blocks = encode(rng.standard_normal((5, 512)).astype(np.float32), name)
    np.testing.assert_array_equal(decode(blocks, name, 512), gguf_decode(blocks, ALL[name]))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_decodes_any_bytes_with_a_finite_scale_as_the_gguf_package_does(
    isa: str, name: str
) -> None:
    qtype = ALL[name]
    rng = np.random.default_rng(2)
    blocks = rng.integers(0, 256, (64, qtype.row_size(256)), np.uint8)
    expected = gguf_decode(blocks, qtype)
    finite = np.isfinite(expected).all(axis=1)
    assert finite.any()
    np.testing.assert_array_equal(decode(blocks, name, 256)[finite], expected[finite])


@pytest.mark.parametrize("with_importance", [True, False])
@pytest.mark.parametrize("name", TYPES)
def test_every_isa_gives_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, name: str, with_importance: bool
) -> None:
    for x in (*MATRICES.values(), *(x for _, x in degenerate_rows())):
        w = log_normal_importance(x.shape[1]) if with_importance else None
        first, *others = [on_isa(monkeypatch, isa, x, name, w) for isa in isas()]
        for other in others:
            np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("name", TYPES)
def test_a_row_encodes_to_the_same_bytes_alone_and_among_others(name: str) -> None:
    x = MATRICES["student-t"][:7, :768]
    w = log_normal_importance(768)
    together = encode(x, name, w)
    for row in range(len(x)):
        np.testing.assert_array_equal(encode(x[row : row + 1], name, w)[0], together[row])


@pytest.mark.parametrize("name", TYPES)
def test_stays_under_its_error_ceiling(name: str) -> None:
    x = MATRICES["gaussian"]
    for w, ceiling in zip((log_normal_importance(x.shape[1]), None), CEILING[name], strict=True):
        assert weighted_error(x, decode(encode(x, name, w), name, x.shape[1]), w) <= ceiling * 1e-6


@pytest.mark.parametrize("with_importance", [True, False])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_loses_no_more_than_ggml(name: str, matrix: str, with_importance: bool) -> None:
    pytest.importorskip("xllamacpp")
    if not with_importance and requires_importance(ALL[name]):
        pytest.skip("ggml does not encode this type without importance")
    x = MATRICES[matrix]
    w = log_normal_importance(x.shape[1]) if with_importance else None
    ours = weighted_error(x, gguf_decode(encode(x, name, w), ALL[name]), w)
    theirs = weighted_error(x, gguf_decode(ggml_encode(x, ALL[name], w), ALL[name]), w)
    assert ours <= theirs


@pytest.mark.parametrize("with_importance", [True, False])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_more_effort_loses_less(name: str, matrix: str, with_importance: bool) -> None:
    x = MATRICES[matrix]
    w = log_normal_importance(x.shape[1]) if with_importance else None
    fast, normal, best = (
        weighted_error(x, decode(encode(x, name, w, effort=effort), name, x.shape[1]), w)
        for effort in EFFORTS
    )
    assert best < normal <= fast


def degenerate_rows() -> list[tuple[str, F32]]:
    """Rows that break careless encoders, 512 weights each."""
    rng = np.random.default_rng(3)
    normal = rng.standard_normal(512).astype(np.float32)
    outlier = (normal * 1e-3).astype(np.float32)
    outlier[77] = 50
    holes = normal.copy()
    holes[32:64] = holes[256:400] = 0
    rows = {
        "zero": np.zeros(512),
        "constant": np.full(512, 0.25),
        "negative constant": np.full(512, -3.0),
        "one outlier": outlier,
        "zero groups inside a block": holes,
        "subnormal": normal * 1e-41,
        "tiny": normal * 1e-30,
        "near f16's least": normal * 3e-8,
        "near f16's least scale": normal * 1e-5,
        "huge": normal * 1e30,
        "largest floats": np.sign(normal) * np.float64(3.4e38),
        "huge beside tiny": np.where(np.arange(512) % 7 == 0, 1e30, 1e-30),
        "positive": np.abs(normal) + 5,
        "negative": -np.abs(normal) - 5,
        "signed zeros": np.where(np.arange(512) % 2 == 0, -0.0, 0.0),
    }
    return [(name, np.asarray(row, np.float32).reshape(1, 512)) for name, row in rows.items()]


def degenerate_importances() -> list[tuple[str, F32 | None]]:
    rng = np.random.default_rng(4)
    some_zero = np.where(np.arange(512) % 3 == 0, 0, rng.random(512))
    zero_groups = np.where(np.arange(512) // 32 % 3 == 0, 0, 1)
    one = np.zeros(512)
    one[100] = 1
    table = {
        "zero": np.zeros(512),
        "some zero": some_zero,
        "zero for whole groups": zero_groups,
        "one weight alone": one,
        "tiny": np.full(512, 1e-38),
        "huge": np.full(512, 1e38),
        "wide": np.logspace(-38, 38, 512),
    }
    return [("none", None), *((name, w.astype(np.float32)) for name, w in table.items())]


@pytest.mark.parametrize(
    "w", [w for _, w in degenerate_importances()], ids=[n for n, _ in degenerate_importances()]
)
@pytest.mark.parametrize(
    "x", [x for _, x in degenerate_rows()], ids=[n for n, _ in degenerate_rows()]
)
@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_degenerate_rows_are_finite_and_no_worse_than_zeros(
    name: str, x: F32, w: F32 | None
) -> None:
    decoded = gguf_decode(encode(x, name, w), ALL[name]).astype(np.float64)
    assert np.isfinite(decoded).all()
    weights = np.ones(512) if w is None else w.astype(np.float64)
    exact = x.astype(np.float64)
    zeros = (weights * exact**2).sum()
    assert (weights * (exact - decoded) ** 2).sum() <= zeros * (1 + 1e-6)


@pytest.mark.parametrize("stored", list(StoredType))
@pytest.mark.parametrize("name", TYPES)
def test_stored_rows_encode_as_their_float_values_do(
    isa: str, name: str, stored: StoredType
) -> None:
    source = ALL[stored.value]
    rows = encode(MATRICES["student-t"], source)
    values = gguf_decode(rows, source)
    n_rows, n_per_row = values.shape
    out = np.empty((n_rows, ALL[name].row_size(n_per_row)), np.uint8)
    encode_stored(rows, stored, n_per_row, ALL[name], out)
    np.testing.assert_array_equal(out, encode(values, name))


@pytest.mark.parametrize("stored", [StoredType.F16, StoredType.BF16])
def test_every_half_float_survives_the_way_through_f32(isa: str, stored: StoredType) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    infinite = 0x7C00 if stored is StoredType.F16 else 0x7F80
    finite = every[(every & infinite) != infinite].reshape(1, -1)
    out = np.empty((1, finite.size * 2), np.uint8)
    encode_stored(finite.view(np.uint8), stored, finite.size, ALL[stored.value], out)
    np.testing.assert_array_equal(out.view(np.uint16), finite)


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_float_types_round_like_the_gguf_package_and_saturate(isa: str, name: str) -> None:
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


@pytest.mark.parametrize("stored", list(StoredType))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused_with_its_row(
    stored: StoredType, bad: float
) -> None:
    n_per_row = 768
    rows = encode(np.ones((9, n_per_row), np.float32), stored.value)
    itemsize = stored.itemsize
    pattern = np.float32(bad).view(np.uint32)
    half = {StoredType.F16: np.float16(bad).view(np.uint16), StoredType.BF16: pattern >> 16}
    raw = pattern if itemsize == 4 else half[stored]
    rows.view(f"<u{itemsize}")[6, 700] = raw
    out = np.empty((9, ALL["Q8_0"].row_size(n_per_row)), np.uint8)
    with pytest.raises(NotFiniteError) as error:
        encode_stored(rows, stored, n_per_row, ALL["Q8_0"], out)
    assert error.value.row == 6


@given(
    st.sampled_from(BLOCK_TYPES),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
    st.floats(-12, 12),
)
@settings(max_examples=100, deadline=None)
def test_any_shape_and_scale_stays_close(
    name: str, n_rows: int, n_blocks: int, seed: int, exponent: float
) -> None:
    n_per_row = n_blocks * ALL[name].block_size
    rng = np.random.default_rng(seed)
    x = (10.0**exponent * rng.standard_normal((n_rows, n_per_row))).astype(np.float32)
    decoded = gguf_decode(encode(x, name), ALL[name])
    held = float(np.abs(x).max()) < 65504 and float(np.abs(x).max()) > 1e-3
    close = 0.02 + 2e-6 * CEILING[name][1]
    assert weighted_error(x, decoded) <= (close if held else 1 + 1e-6)


def test_rows_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(EncodeError, match=r"a row of 300 weights is no multiple of Q4_K's block"):
        encode(np.zeros((1, 300), np.float32), "Q4_K")


def test_importance_of_the_wrong_shape_or_sign_is_refused() -> None:
    x = np.zeros((1, 256), np.float32)
    with pytest.raises(EncodeError, match=r"importance must be float32 \[256\]"):
        encode(x, "Q4_K", np.ones(255, np.float32))
    with pytest.raises(EncodeError, match="finite and not negative"):
        encode(x, "Q4_K", np.full(256, -1, np.float32))


def test_an_unknown_type_names_the_nearest() -> None:
    with pytest.raises(EncodeError, match=r"'q4km' is not a quant type; did you mean Q4_K\?"):
        quant_type("q4km")


def test_an_isa_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNQUANT_ISA", "sse9")
    with pytest.raises(DynquantError, match="DYNQUANT_ISA='sse9' is not to be had"):
        active_isa()


def test_no_rows_give_no_blocks() -> None:
    assert encode(np.empty((0, 256), np.float32), "Q4_K").shape == (0, 144)
