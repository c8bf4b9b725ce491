"""A change of the encoders' output has a new revision, so that resuming and comparing are safe.

This is not a golden output: encoders may change, with a new ENCODER_REVISION, an
*Output:* line in the changelog, and the new hash that the failing test prints.
"""

from __future__ import annotations

import hashlib

import numpy as np

from dynquant.quants import ALL, ENCODER_REVISION, Batch, QuantType, encode
from dynquant.quants.encoder import CORE, CoreEncoder
from dynquant.quants.search import EFFORTS

_FIRST = "044c5687eb945b8c62b5fae4fc1f3239ff150f27b9dd651501f6a4862572b0dd"
_HALF_GAIN = "51fb2177010ab3695d7616a66125a84ea1d2833e519ea5c882a7e0b9080e8844"
_HALF_Q2_K = "9fe20480f9f581199412ffd27690c9902a6ab1f7a8e4584cb478c1e5db9f5fc1"
_WITH_MEANS = "b02664a890754288f00a7ffd39630d0dc2ba7dff724b7bb2dc9bd49cd592c91a"
OUTPUT_OF = {1: _FIRST, 2: _FIRST, 3: _HALF_GAIN, 4: _HALF_Q2_K, 5: _WITH_MEANS}
"""The hash of `output` for each revision that this test has seen. Revision 2 gives other bytes for
weights on the grid of Q4_0 and Q2_0 only (test_on_grid.py). Revision 5 adds means, without which
the bytes are those of revision 4."""


def output() -> str:
    """Return the hash of the blocks of every type and effort: without importance, with it, and
    with means.
    """
    chance = np.random.default_rng(12)
    x = (chance.standard_t(4, (3, 768)) * chance.lognormal(0, 1, (3, 1))).astype(np.float32)
    x[1, 256:512] = 0
    importance = chance.lognormal(0, 1, 768).astype(np.float32)
    mean = (chance.normal(0, 0.5, 768) * np.sqrt(importance)).astype(np.float32)
    digest = hashlib.sha256()
    for name in ALL:
        for effort in EFFORTS:
            for w, m in ((None, None), (importance, None), (importance, mean)):
                digest.update(encode(x, name, w, mean=m, effort=effort).tobytes())
    return digest.hexdigest()


def test_a_change_of_output_has_a_new_revision() -> None:
    found = output()
    assert OUTPUT_OF.get(ENCODER_REVISION) == found, (
        f"the encoders give other bytes than revision {ENCODER_REVISION}: raise ENCODER_REVISION,"
        f" add an *Output:* line to CHANGELOG.md, and record {found} for the new revision"
    )


def test_a_type_that_is_equal_but_not_identical_is_copied() -> None:
    blocks = encode(np.ones((2, 256), np.float32), "Q4_K")
    other = QuantType(**vars(ALL["Q4_K"]))
    assert other is not ALL["Q4_K"]
    found = CORE.encode(Batch(blocks, other, 256, ALL["Q4_K"]))
    assert np.array_equal(found.blocks, blocks)


def test_an_empty_batch_has_no_blocks() -> None:
    found = CoreEncoder().encode(Batch(np.empty(0, np.uint8), ALL["F32"], 256, ALL["Q4_K"]))
    assert found.blocks.shape == (0, 144)
