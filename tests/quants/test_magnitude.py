"""Weighting by magnitude with weights and importances whose product overflows a float."""

from __future__ import annotations

import numpy as np
import pytest

from dynquant.quants import ALL, decode, encode, isas

BLOCK_TYPES = [name for name, qtype in ALL.items() if not qtype.is_float]


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_products_that_overflow_give_the_same_finite_weights_on_every_isa(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((2, 512)) * [[1e4], [7e37]]).astype(np.float32)
    w = np.full(512, 3e38, np.float32)
    w[::7] = 0
    found: set[bytes] = set()
    for isa in isas():
        monkeypatch.setenv("DYNQUANT_ISA", isa)
        blocks = encode(x, name, w, weighting="magnitude")
        found.add(blocks.tobytes())
        assert np.isfinite(decode(blocks, name, 512)).all()
    assert len(found) == 1
