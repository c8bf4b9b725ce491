"""What the encoders minimise for each tensor of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from handmade import DOWN, small_plan

from dynquant.checkpoint.gguf import read_gguf
from dynquant.conversion.write import convert_plan
from dynquant.plan.objective import search_for
from dynquant.quants import encode
from dynquant.quants.search import Gain
from dynquant.tensors import Computed


@pytest.mark.parametrize(
    ("name", "gain"),
    [
        ("token_embd.weight", "least-squares"),
        ("per_layer_token_embd.weight", "least-squares"),
        ("blk.0.ffn_down.weight", None),
        ("output.weight", None),
        ("blk.3.ffn_down_exps.weight", None),
    ],
)
def test_only_tables_that_are_looked_up_have_a_gain_that_is_not_the_default(
    name: str, gain: Gain | None
) -> None:
    assert search_for(name, "fast").gain == gain
    assert search_for(name, "fast").effort == "fast"


@pytest.mark.parametrize(("name", "gain"), [("token_embd.weight", "least-squares"), (DOWN, "half")])
def test_conversion_encodes_tables_and_matrices_with_their_gains(
    tmp_path: Path, name: str, gain: Gain
) -> None:
    plan = small_plan("IQ3_S")
    out = tmp_path / "x.gguf"
    convert_plan(plan, out, threads=1)
    file = read_gguf(out)
    (found,) = (t for t in file.tensors if t.name == name)
    source = plan.sources[name].source
    assert isinstance(source, Computed)
    blocks = encode(np.asarray(source.values), "IQ3_S", gain=gain)
    start = file.data_offset + found.offset
    assert out.read_bytes()[start : start + found.n_bytes] == blocks.tobytes()
