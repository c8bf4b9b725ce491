"""What llama.cpp refuses is told of files that others made; nothing is claimed of sound ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from ggufs import write
from handmade import weights

from dynquant.verification.findings import Verified
from dynquant.verification.standalone import verify

TOKENS = ["a", "b", "c", "d"]
LAYER = ("attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate")


def llama(n_layers: int = 2) -> dict[str, tuple[np.ndarray, str]]:
    """The tensors of a Llama, each with its type; no family of ours is asked."""
    tensors = {"token_embd.weight": (weights(4, 256), "Q8_0")}
    for i in range(n_layers):
        for role in (*LAYER, "ffn_up", "ffn_down"):
            x = (weights(256), "F32") if "norm" in role else (weights(4, 256), "Q8_0")
            tensors[f"blk.{i}.{role}.weight"] = x
    return tensors | {"output_norm.weight": (weights(256), "F32")}


def written(
    path: Path, tensors: dict[str, tuple[np.ndarray, str]], without: str = "", **keys: Any
) -> Path:
    """Write a file with the gguf package; keys: of the tokenizer and such, instead of these."""
    writer = gguf.GGUFWriter(path, str(keys.get("architecture", "llama")))
    given = {"block_count": 2, "model": "gpt2", "tokens": TOKENS, "merges": ["a b"]} | keys
    given = {k: v for k, v in given.items() if k != without}
    if "block_count" in given:
        writer.add_block_count(given["block_count"])
    if "model" in given:
        writer.add_tokenizer_model(given["model"])
    if "tokens" in given:
        writer.add_token_list(given["tokens"])
    if "merges" in given:
        writer.add_token_merges(given["merges"])
    if "file_type" in given:
        writer.add_file_type(given["file_type"])
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


def told(found: Verified) -> str:
    return "\n".join(map(str, found.faults))


def test_a_file_of_the_gguf_package_is_sound(tmp_path: Path) -> None:
    found = verify(written(tmp_path / "x.gguf", llama()))
    assert (told(found), found.warnings) == ("", ())
    assert "no manifest" in found.unchecked[0]


@pytest.mark.parametrize("type_name", ["F16", "BF16", "Q8_0"])
def test_norms_that_are_not_f32_are_faults(tmp_path: Path, type_name: str) -> None:
    # llama.cpp aborts at the first token of such a file: "unsupported types" in binary_op.
    tensors = llama() | {"blk.1.attn_norm.weight": (weights(256), type_name)}
    (fault,) = verify(written(tmp_path / "x.gguf", tensors)).faults
    assert fault.tensor == "blk.1.attn_norm.weight"
    assert fault.what.startswith(f"is {type_name}, and llama.cpp adds and multiplies F32 here")


def test_biases_that_are_not_f32_are_faults(tmp_path: Path) -> None:
    tensors = llama() | {"blk.0.attn_q.bias": (weights(4), "F16")}
    (fault,) = verify(written(tmp_path / "x.gguf", tensors)).faults
    assert fault.tensor == "blk.0.attn_q.bias"


def test_types_of_activations_are_faults(tmp_path: Path) -> None:
    x = np.zeros((4, 8 * 40), np.uint8)  # as the gguf package counts
    tensors = llama() | {"blk.0.ffn_up.weight": (x, "Q8_1")}
    found = verify(written(tmp_path / "x.gguf", tensors))
    assert "Q8_1, which is no type of weights" in told(found)
    assert "blocks of Q8_1" in found.unchecked


def test_rows_too_short_for_their_type_and_types_unknown_are_faults(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf", llama())
    content = bytearray(path.read_bytes())
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.ffn_up.weight")
    parts = tensor.field.parts
    at = tensor.field.offset + sum(int(p.nbytes) for p in parts[:-2])
    path.write_bytes(bytes(content[:at]) + (12).to_bytes(4, "little") + bytes(content[at + 4 :]))
    assert verify(path).faults  # 256 weights are one block of Q4_K: its size is another
    short = at - 16  # the first dimension
    content[short : short + 8] = (128).to_bytes(8, "little")
    content[at : at + 4] = (12).to_bytes(4, "little")
    path.write_bytes(content)
    assert "blk.0.ffn_up.weight has rows of 128 weights" in told(verify(path))
    content[at : at + 4] = (31).to_bytes(4, "little")
    path.write_bytes(content)
    assert "ggml type 31" in told(verify(path))


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
def test_a_tensor_that_the_architecture_needs_is_missed(tmp_path: Path, name: str) -> None:
    tensors = llama()
    del tensors[name]
    (fault,) = verify(written(tmp_path / "x.gguf", tensors)).faults
    assert f"{name} is missing" in fault.what


def test_layers_are_counted(tmp_path: Path) -> None:
    assert "1 of 3 layers have no tensors (llama.block_count): blk.2" in told(
        verify(written(tmp_path / "a.gguf", llama(), block_count=3))
    )
    assert "blk.1.*: llama.block_count counts 1 layers" in told(
        verify(written(tmp_path / "b.gguf", llama(), block_count=1))
    )
    many = told(verify(written(tmp_path / "c.gguf", llama(), block_count=2**32 - 1)))
    assert "4294967293 of 4294967295 layers" in many
    assert "llama.block_count is not there" in told(
        verify(written(tmp_path / "d.gguf", llama(), without="block_count"))
    )


@pytest.mark.parametrize("key", ["model", "tokens", "merges"])
def test_a_tokenizer_that_lacks_a_key_is_told(tmp_path: Path, key: str) -> None:
    (fault,) = verify(written(tmp_path / "x.gguf", llama(), without=key)).faults
    assert f"tokenizer.ggml.{key} is missing" in fault.what


def test_an_embedding_of_another_vocabulary_is_told(tmp_path: Path) -> None:
    (fault,) = verify(written(tmp_path / "x.gguf", llama(), tokens=[*TOKENS, "e"])).faults
    assert (fault.tensor, fault.what[:28]) == ("token_embd.weight", "has 4 rows for 5 tokens (tok")


def test_types_that_need_an_imatrix_without_one_are_a_warning(tmp_path: Path) -> None:
    blocks = np.zeros((4, 66), np.uint8)
    blocks[:, 2:] = 1
    blocks[:, 1] = 0x3C
    tensors = llama() | {f"blk.{i}.ffn_up.weight": (blocks, "IQ2_XXS") for i in range(2)}
    found = verify(written(tmp_path / "x.gguf", tensors))
    assert found.is_sound
    assert "blk.{0-1}.ffn_up.weight: of types that need an imatrix (IQ2_XXS)" in found.warnings[0]


@pytest.mark.parametrize(("number", "says"), [(15, "Q4_K_M"), (27, "IQ3_M"), (999, "none that")])
def test_a_file_type_that_no_tensor_has_is_a_warning(
    tmp_path: Path, number: int, says: str
) -> None:
    found = verify(written(tmp_path / "x.gguf", llama(), file_type=number))
    assert [says in w for w in found.warnings] == [True]
    right = written(tmp_path / "y.gguf", llama(), file_type=gguf.LlamaFileType.MOSTLY_Q8_0)
    assert verify(right).warnings == ()


def test_rows_that_no_block_of_256_divides_are_told_where_others_have_such_blocks(
    tmp_path: Path,
) -> None:
    q6_k = (np.ones((4, 210), np.uint8), "Q6_K")
    tensors = llama() | {
        "blk.0.ffn_up.weight": q6_k,
        "blk.0.ffn_down.weight": (weights(4, 96), "Q8_0"),
    }
    (warning,) = verify(written(tmp_path / "x.gguf", tensors)).warnings
    assert "blk.0.ffn_down.weight: rows of 96 weights hold no whole blocks of 256" in warning


def test_weights_that_are_all_zero_are_warnings_and_zero_biases_are_not(tmp_path: Path) -> None:
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
        "blk.0.ffn_down_exps.weight: 1 of 3 experts hold only zeros: 1",
        "blk.0.attn_q.weight: holds only zeros",
    ]


def test_nothing_is_claimed_of_an_architecture_that_nobody_knows(tmp_path: Path) -> None:
    tensors = {"strange.weight": (weights(4, 64), "Q8_0")}
    found = verify(written(tmp_path / "x.gguf", tensors, architecture="strange"))
    assert found.is_sound
    assert "architecture 'strange' needs" in found.unchecked[-1]


def test_a_file_without_an_architecture_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf", llama())
    path.write_bytes(path.read_bytes().replace(b"general.architecture", b"general.architectura"))
    (fault,) = verify(path).faults
    assert fault.what == "general.architecture is missing; llama.cpp asks for it"


def test_a_vocabulary_and_an_imatrix_lack_nothing(tmp_path: Path) -> None:
    assert verify(write(tmp_path / "v.gguf", lambda w: w.add_tokenizer_model("gpt2"))).is_sound
    path = write(
        tmp_path / "i.gguf",
        lambda w: [w.add_type("imatrix"), w.add_tensor("a.in_sum2", weights(1, 8))],
    )
    assert verify(path).is_sound
