"""Tensors that llama.cpp refuses are reported in files of any program; sound files pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from ggufs import write
from handmade import weights

from dynquant.verification.findings import Verification
from dynquant.verification.verify import verify

TOKENS = ["a", "b", "c", "d"]
LAYER = ("attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate")


def llama(n_layers: int = 2) -> dict[str, tuple[np.ndarray, str]]:
    """Return the tensors of a Llama with their types, independent of dynquant's families."""
    tensors = {"token_embd.weight": (weights(4, 256), "Q8_0")}
    for i in range(n_layers):
        for role in (*LAYER, "ffn_up", "ffn_down"):
            x = (weights(256), "F32") if "norm" in role else (weights(4, 256), "Q8_0")
            tensors[f"blk.{i}.{role}.weight"] = x
    return tensors | {"output_norm.weight": (weights(256), "F32")}


def written(
    path: Path, tensors: dict[str, tuple[np.ndarray, str]], without: str = "", **keys: Any
) -> Path:
    """Write a file with the gguf package.

    without: a default key to leave out; keys: values that replace or extend the default keys
    """
    writer = gguf.GGUFWriter(path, str(keys.get("architecture", "llama")))
    values = {"block_count": 2, "model": "gpt2", "tokens": TOKENS, "merges": ["a b"]} | keys
    values = {k: v for k, v in values.items() if k != without}
    if "block_count" in values:
        writer.add_block_count(values["block_count"])
    if "model" in values:
        writer.add_tokenizer_model(values["model"])
    if "tokens" in values:
        writer.add_token_list(values["tokens"])
    if "merges" in values:
        writer.add_token_merges(values["merges"])
    if "file_type" in values:
        writer.add_file_type(values["file_type"])
    for name, (x, type_name) in tensors.items():
        ggml_type = gguf.GGMLQuantizationType[type_name]
        if x.dtype == np.uint8:
            writer.add_tensor(name, x, raw_dtype=ggml_type)
        else:
            writer.add_tensor(name, gguf.quants.quantize(x, ggml_type), raw_dtype=ggml_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def faults_of(found: Verification) -> str:
    return "\n".join(map(str, found.faults))


def test_file_written_by_the_gguf_package_is_sound(tmp_path: Path) -> None:
    found = verify(written(tmp_path / "x.gguf", llama()))
    assert (faults_of(found), found.warnings) == ("", ())
    assert "no manifest" in found.unchecked[0]


@pytest.mark.parametrize("type_name", ["F16", "BF16", "Q8_0"])
def test_norms_other_than_f32_are_faults(tmp_path: Path, type_name: str) -> None:
    # llama.cpp aborts at the first token of such a file: "unsupported types" in binary_op.
    tensors = llama() | {"blk.1.attn_norm.weight": (weights(256), type_name)}
    (fault,) = verify(written(tmp_path / "x.gguf", tensors)).faults
    assert fault.tensor == "blk.1.attn_norm.weight"
    assert fault.what.startswith(f"is {type_name}, but llama.cpp computes with F32 here")


def test_biases_other_than_f32_are_faults(tmp_path: Path) -> None:
    biases = {f"blk.{n}.attn_q.bias": (weights(4), t) for n, t in enumerate(("F16", "F32"))}
    tensors = llama() | biases
    (fault,) = verify(written(tmp_path / "x.gguf", tensors)).faults
    assert fault.tensor == "blk.0.attn_q.bias"


def test_activation_types_are_faults(tmp_path: Path) -> None:
    x = np.zeros((4, 8 * 40), np.uint8)  # as the gguf package counts
    tensors = llama() | {"blk.0.ffn_up.weight": (x, "Q8_1")}
    found = verify(written(tmp_path / "x.gguf", tensors))
    assert "Q8_1, which is not a type for weights" in faults_of(found)
    assert "blocks of Q8_1" in found.unchecked


def test_rows_too_short_for_their_type_and_unknown_types_are_faults(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf", llama())
    content = bytearray(path.read_bytes())
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.ffn_up.weight")
    parts = tensor.field.parts
    at = tensor.field.offset + sum(int(p.nbytes) for p in parts[:-2])
    path.write_bytes(bytes(content[:at]) + (12).to_bytes(4, "little") + bytes(content[at + 4 :]))
    assert verify(path).faults  # 256 weights are one block of Q4_K, which has a different size
    short = at - 16  # the first dimension
    content[short : short + 8] = (128).to_bytes(8, "little")
    content[at : at + 4] = (12).to_bytes(4, "little")
    path.write_bytes(content)
    assert "blk.0.ffn_up.weight has rows of 128 weights" in faults_of(verify(path))
    content[at : at + 4] = (31).to_bytes(4, "little")
    path.write_bytes(content)
    assert "ggml type 31" in faults_of(verify(path))


@pytest.mark.parametrize(
    "name",
    [
        "token_embd.weight",
        "output_norm.weight",
        "blk.1.ffn_down.weight",
        "blk.0.attn_v.weight",
        "blk.1.attn_norm.weight",
    ],
)
def test_missing_tensor_that_the_architecture_needs_is_reported(tmp_path: Path, name: str) -> None:
    tensors = llama()
    del tensors[name]
    (fault,) = verify(written(tmp_path / "x.gguf", tensors)).faults
    assert f"{name} is missing" in fault.what


def test_wrong_number_of_layers_is_reported(tmp_path: Path) -> None:
    assert "1 of the 3 layers of llama.block_count have no tensors: blk.2" in faults_of(
        verify(written(tmp_path / "a.gguf", llama(), block_count=3))
    )
    assert "blk.1.* is beyond the 1 layer of llama.block_count" in faults_of(
        verify(written(tmp_path / "b.gguf", llama(), block_count=1))
    )
    many = faults_of(verify(written(tmp_path / "c.gguf", llama(), block_count=2**32 - 1)))
    assert "4294967293 of the 4294967295 layers" in many
    assert "llama.block_count is missing" in faults_of(
        verify(written(tmp_path / "d.gguf", llama(), without="block_count"))
    )


@pytest.mark.parametrize("key", ["model", "tokens", "merges"])
def test_missing_tokenizer_key_is_reported(tmp_path: Path, key: str) -> None:
    (fault,) = verify(written(tmp_path / "x.gguf", llama(), without=key)).faults
    assert f"tokenizer.ggml.{key} is missing" in fault.what


def test_embedding_of_another_vocabulary_size_is_reported(tmp_path: Path) -> None:
    (fault,) = verify(written(tmp_path / "x.gguf", llama(), tokens=[*TOKENS, "e"])).faults
    assert (fault.tensor, fault.what[:28]) == ("token_embd.weight", "has 4 rows for 5 tokens (tok")


def test_types_that_need_an_imatrix_are_a_warning_without_one(tmp_path: Path) -> None:
    blocks = np.zeros((4, 66), np.uint8)
    blocks[:, 2:] = 1
    blocks[:, 1] = 0x3C
    tensors = llama() | {f"blk.{i}.ffn_up.weight": (blocks, "IQ2_XXS") for i in range(2)}
    found = verify(written(tmp_path / "x.gguf", tensors))
    assert found.is_sound
    assert "blk.{0-1}.ffn_up.weight: the type needs an imatrix (IQ2_XXS)" in found.warnings[0]


@pytest.mark.parametrize(("number", "words"), [(15, "Q4_K_M"), (27, "IQ3_M"), (999, "is unknown")])
def test_file_type_that_no_tensor_has_is_a_warning(tmp_path: Path, number: int, words: str) -> None:
    found = verify(written(tmp_path / "x.gguf", llama(), file_type=number))
    assert [words in w for w in found.warnings] == [True]
    right = written(tmp_path / "y.gguf", llama(), file_type=gguf.LlamaFileType.MOSTLY_Q8_0)
    assert verify(right).warnings == ()


def test_fallback_types_are_no_warning(tmp_path: Path) -> None:
    """They are reported when a plan is made; the file is as it should be."""
    q6_k = (np.ones((4, 210), np.uint8), "Q6_K")
    tensors = llama() | {
        "blk.0.ffn_up.weight": q6_k,
        "blk.0.ffn_down.weight": (weights(4, 96), "Q8_0"),
    }
    assert verify(written(tmp_path / "x.gguf", tensors)).warnings == ()


def test_weights_that_are_all_zero_are_warnings_but_zero_biases_are_not(tmp_path: Path) -> None:
    experts = weights(3, 4, 256)
    experts[1] = 0
    zero = np.zeros((4, 256), np.float32)
    last = zero.copy()
    last[3, 255] = 1
    tensors = llama() | {
        "blk.0.attn_q.bias": (np.zeros(4, np.float32), "F32"),
        "blk.0.attn_q.weight": (zero, "Q8_0"),
        "blk.1.attn_q.weight": (last, "Q8_0"),
        "blk.0.ffn_down_exps.weight": (experts, "Q8_0"),
    }
    found = verify(written(tmp_path / "x.gguf", tensors, architecture="deepseek2"))
    assert [w.partition(": ")[2] for w in found.warnings] == [
        "blk.0.ffn_down_exps.weight: 1 of 3 experts are all zeros: 1",
        "blk.0.attn_q.weight: all zeros",
    ]


def test_unknown_architecture_is_sound_with_unchecked_tensors(tmp_path: Path) -> None:
    tensors = {"strange.weight": (weights(4, 64), "Q8_0")}
    found = verify(written(tmp_path / "x.gguf", tensors, architecture="strange"))
    assert found.is_sound
    assert "does not know the architecture 'strange'" in found.unchecked[-1]


def test_missing_architecture_is_reported(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf", llama())
    path.write_bytes(path.read_bytes().replace(b"general.architecture", b"general.architectura"))
    (fault,) = verify(path).faults
    assert fault.what == "general.architecture is missing; llama.cpp needs it"


def test_files_that_are_not_models_need_no_tensors(tmp_path: Path) -> None:
    assert verify(write(tmp_path / "v.gguf", lambda w: w.add_tokenizer_model("gpt2"))).is_sound
    path = write(
        tmp_path / "i.gguf",
        lambda w: [w.add_type("imatrix"), w.add_tensor("a.in_sum2", weights(1, 8))],
    )
    assert verify(path).is_sound
