"""An imatrix that is estimated from the weights: figures, and where it is named as such.

The expected figures are computed here from the checkpoint's own tensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inprocess import run
from places import REFERENCES

import dynquant
from dynquant.checkpoint.gguf import read_gguf
from dynquant.importance.from_weights import DATASET, write_from_weights
from dynquant.importance.imatrix import read_imatrix


def stored(family: str, name: str) -> Any:
    """Return a tensor of BF16, float64."""
    for file in sorted((REFERENCES / family).glob("*.safetensors")):
        content = file.read_bytes()
        size = int.from_bytes(content[:8], "little")
        entry = json.loads(content[8 : 8 + size]).get(name)
        if entry is not None:
            assert entry["dtype"] == "BF16"
            start, stop = (8 + size + at for at in entry["data_offsets"])
            words = np.frombuffer(content[start:stop], "<u2").astype(np.uint32) << 16
            return words.view(np.float32).reshape(entry["shape"]).astype(np.float64)
    raise KeyError(name)


def found(family: str, out: Path) -> dict[str, Any]:
    """Return the mean squares of each entry, [n_rows, n_per_row]."""
    write_from_weights(dynquant.load_model(REFERENCES / family), out)
    entries = read_imatrix(out).entries
    return {name: entry.means() for name, entry in entries.items()}


def relative(rows: Any) -> Any:
    return rows / rows.mean(axis=-1, keepdims=True)


def test_matrices_have_what_the_weights_before_them_say(tmp_path: Path) -> None:
    entries = found("qwen3", tmp_path / "w.gguf")
    layer = "model.layers.1"
    gain = stored("qwen3", f"{layer}.input_layernorm.weight") ** 2
    for role in ("attn_q", "attn_k", "attn_v"):
        np.testing.assert_allclose(entries[f"blk.1.{role}.weight"][0], relative(gain), rtol=1e-5)
    config = json.loads((REFERENCES / "qwen3/config.json").read_text())
    n_heads, n_kv = config["num_attention_heads"], config["num_key_value_heads"]
    v = stored("qwen3", f"{layer}.self_attn.v_proj.weight") ** 2 @ gain
    of_query = [v.reshape(n_kv, -1)[head // (n_heads // n_kv)] for head in range(n_heads)]
    np.testing.assert_allclose(
        entries["blk.1.attn_output.weight"][0], relative(np.concatenate(of_query)), rtol=1e-5
    )
    gain = stored("qwen3", f"{layer}.post_attention_layernorm.weight") ** 2
    gate, up = (stored("qwen3", f"{layer}.mlp.{n}_proj.weight") ** 2 @ gain for n in ("gate", "up"))
    np.testing.assert_allclose(entries["blk.1.ffn_down.weight"][0], relative(gate * up), rtol=1e-5)


def test_each_expert_has_its_own_neurons(tmp_path: Path) -> None:
    entries = found("qwen3moe", tmp_path / "w.gguf")
    layer = "model.layers.0"
    gain = stored("qwen3moe", f"{layer}.post_attention_layernorm.weight") ** 2
    rows = entries["blk.0.ffn_down_exps.weight"]
    assert len(rows) > 4
    for expert, row in enumerate(rows):
        names = (f"{layer}.mlp.experts.{expert}.{n}_proj.weight" for n in ("gate", "up"))
        gate, up = (stored("qwen3moe", name) ** 2 @ gain for name in names)
        np.testing.assert_allclose(row, relative(gate * up), rtol=1e-5)


@pytest.mark.parametrize("family", ["deepseek-v3", "gemma3n", "falcon-mamba", "phi3", "llama4"])
def test_what_is_not_known_is_weighted_equally(family: str, tmp_path: Path) -> None:
    entries = found(family, tmp_path / "w.gguf")
    assert entries
    assert all(np.isfinite(rows).all() and (rows >= 0).all() for rows in entries.values())
    assert any((rows == 1).all() for rows in entries.values())


def test_plan_manifest_and_file_name_the_source(tmp_path: Path) -> None:
    imatrix, out = tmp_path / "w.imatrix.gguf", tmp_path / "out.gguf"
    model = REFERENCES / "qwen3"
    done = run("imatrix", "from-weights", model, "-o", imatrix)
    assert (done.code, done.out) == (0, "")
    assert "knows no activations" in done.err
    assert DATASET in run("plan", model, "-r", "q8_0", "--imatrix", imatrix).out
    done = run("convert", model, "-o", out, "-r", "q8_0", "--imatrix", imatrix)
    assert done.code == 0
    assert read_gguf(out).keys["quantize.imatrix.dataset"].value == DATASET
    manifest = json.loads(Path(f"{out}.manifest.json").read_text())
    assert manifest["importance"]["datasets"] == [DATASET]


def test_wrong_input_is_refused_at_once(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"mine")
    done = run("imatrix", "from-weights", tmp_path / "none", "-o", out)
    assert done.code == 1
    assert "none: does not exist" in done.err
    assert "out.gguf: exists; replace it with --force" in done.err
    assert out.read_bytes() == b"mine"
