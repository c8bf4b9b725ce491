"""Blocks that no encoder writes are found; the decoders of gguf and llama.cpp are the oracle."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from oracles import NOT_IN_GGUF, ggml_accepts, gguf_decode, matrices

from dynquant.arrays import U8
from dynquant.quants import ALL, QuantType, encode
from dynquant.quants.table import KEPT
from dynquant.verification.blocks import bad_blocks
from dynquant.verification.verify import verify

try:
    import xllamacpp
except ImportError:
    xllamacpp = None

OWN_RULES = ("NVFP4", "TQ1_0", "TQ2_0", "MXFP4")
"""Types that have invalid blocks other than those that decode to numbers that are not finite."""


def random_blocks(qtype: QuantType, n: int = 300, seed: int = 0) -> U8:
    """Return blocks of random bytes: one f16 scale in 32 is not finite."""
    rng = np.random.default_rng([seed, qtype.ggml_type])
    if qtype.name == "F32":
        words = rng.integers(0, 2**32, n, np.uint32)
        words[::9] |= 0x7F800000
        return words.view(np.uint8).reshape(n, 4)
    blocks = rng.integers(0, 256, (n, qtype.type_size), np.uint8)
    if qtype.name == "BF16":
        blocks[::9] |= np.array([0x80, 0x7F], np.uint8)
    if qtype.name == "MXFP4":
        blocks[:, 0] = rng.integers(250, 256, n)
        blocks[::3, 1:] &= 0x33  # smaller levels, which overflow at larger scales only
    return blocks


def is_bad(blocks: U8, qtype: QuantType) -> np.ndarray:
    """Return whether each block, checked separately, is bad."""
    return np.array([bool(bad_blocks(blocks[i : i + 1], qtype)) for i in range(len(blocks))])


def decoded_bad(blocks: U8, qtype: QuantType) -> np.ndarray:
    return ~np.isfinite(gguf_decode(blocks, qtype)).all(axis=1)


def skip_without_oracle(qtype: QuantType) -> None:
    if qtype.name in NOT_IN_GGUF and xllamacpp is None:
        pytest.skip("only llama.cpp decodes this type, and xllamacpp is not installed")


@pytest.mark.oracle
@pytest.mark.parametrize("name", [n for n in ALL if n not in OWN_RULES])
def test_block_is_bad_if_and_only_if_a_decoded_weight_is_not_finite(name: str) -> None:
    qtype = ALL[name]
    skip_without_oracle(qtype)
    blocks = random_blocks(qtype)
    wanted = decoded_bad(blocks, qtype)
    assert 0 < wanted.sum() < len(wanted)
    assert np.array_equal(is_bad(blocks, qtype), wanted)
    assert sum(b.count for b in bad_blocks(blocks, qtype)) >= wanted.sum()
    assert min(b.first for b in bad_blocks(blocks, qtype)) == wanted.argmax()


def test_mxfp4_exponent_is_bad_if_weights_overflow_or_it_is_not_a_number() -> None:
    blocks = random_blocks(ALL["MXFP4"])
    wanted = decoded_bad(blocks, ALL["MXFP4"]) | (blocks[:, 0] == 255)
    assert np.array_equal(is_bad(blocks, ALL["MXFP4"]), wanted)
    assert (~wanted[blocks[:, 0] == 254]).any()


def test_nvfp4_scale_is_bad_if_it_is_not_a_number() -> None:
    blocks = random_blocks(ALL["NVFP4"])
    wanted = np.isin(blocks[:, :4], (127, 255)).any(axis=1)
    assert wanted.any()
    assert np.array_equal(is_bad(blocks, ALL["NVFP4"]), wanted)


@pytest.mark.parametrize(("name", "scale"), [("TQ1_0", 52), ("TQ2_0", 64)])
def test_ternary_scale_is_bad_if_a_decoded_weight_is_not_finite(name: str, scale: int) -> None:
    blocks = random_blocks(ALL[name])
    blocks[:, :scale] = 0
    assert np.array_equal(is_bad(blocks, ALL[name]), decoded_bad(blocks, ALL[name]))


def test_valid_ternary_bytes_are_those_of_the_gguf_package() -> None:
    digits = np.stack(np.meshgrid(*[[-1, 0, 1]] * 5, indexing="ij")).reshape(5, -1)
    weights = np.zeros((243, 256), np.float32)
    weights[:, [32 * k for k in range(5)]] = digits.T
    weights[:, [240 + 4 * k for k in range(4)]] = digits[:4].T
    weights[:, 31] = 1  # so that the scale is one
    made = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.TQ1_0)
    for byte, n in ((0, 243), (48, 81)):
        blocks = np.repeat(made[:1], 256, axis=0)
        blocks[:, byte] = np.arange(256)
        assert len(set(made[:, byte])) == n
        assert np.array_equal(~is_bad(blocks, ALL["TQ1_0"]), np.isin(np.arange(256), made[:, byte]))


def test_ternary_code_of_three_is_bad() -> None:
    blocks = random_blocks(ALL["TQ2_0"])
    blocks[:, 64:] = np.array([1.0], "<f2").view(np.uint8)
    blocks[::2, :64] &= 0x55
    decoded = gguf_decode(blocks, ALL["TQ2_0"])
    assert np.array_equal(is_bad(blocks, ALL["TQ2_0"]), (decoded == 2).any(axis=1))


@pytest.mark.oracle
@pytest.mark.skipif(xllamacpp is None, reason="needs xllamacpp")
@pytest.mark.parametrize("name", ALL)
def test_blocks_that_llamacpp_refuses_are_bad(name: str) -> None:
    blocks = random_blocks(ALL[name], 100, seed=1)
    refused = np.array([not ggml_accepts(b[None], ALL[name]) for b in blocks])
    assert is_bad(blocks, ALL[name])[refused].all()
    if name not in OWN_RULES:
        assert not is_bad(blocks, ALL[name])[~refused].any()


@pytest.mark.parametrize("name", ALL)
def test_blocks_of_our_encoder_are_not_bad(name: str) -> None:
    for _, x in matrices(4, 512):
        blocks = encode(x, name).reshape(-1, ALL[name].type_size)
        assert bad_blocks(blocks, ALL[name]) == []


def test_doubles_are_checked_but_integers_are_not() -> None:
    x = np.array([1.0, np.inf, 2.0, np.nan])
    (found,) = bad_blocks(x.view(np.uint8).reshape(-1, 8), KEPT["F64"])
    assert (found.count, found.first) == (2, 1)
    assert bad_blocks(np.full((4, 4), 255, np.uint8), KEPT["I32"]) == []


@pytest.mark.parametrize("name", [n for n in ALL if n not in NOT_IN_GGUF])
def test_bad_block_in_a_file_is_located_by_tensor_row_and_byte(name: str, tmp_path: Path) -> None:
    qtype = ALL[name]
    x = np.random.default_rng(0).standard_normal((40, 512)).astype(np.float32)
    blocks = encode(x, qtype)
    bad = random_blocks(qtype)
    bad = bad[decoded_bad(bad, qtype).argmax()] if name != "NVFP4" else np.full(36, 127, np.uint8)
    blocks[17, -qtype.type_size :] = bad
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("a.weight", np.ones(5, np.float32))
    writer.add_tensor("b.weight", blocks, raw_dtype=gguf.GGMLQuantizationType(qtype.ggml_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    at = gguf.GGUFReader(tmp_path / "x.gguf").tensors[1].data_offset
    found = [f for f in verify(tmp_path / "x.gguf").faults if f.tensor == "b.weight"]
    offsets = {f.offset for f in found if f.what.startswith("row 17 has")}
    assert offsets == {at + 18 * blocks.shape[1] - qtype.type_size}
