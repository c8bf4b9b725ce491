"""Files that are made to harm who reads them, one function each; `python tests/attacks.py` lists.

A function puts the files into a folder. Its name is the attack's, its docstring says what is fed,
and what is said to come of it is what tests/test_hostile.py finds.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from shutil import copytree
from typing import Any

HERE = Path(__file__).parent
REFERENCES = HERE / "references"
VOCABULARIES = HERE / "data" / "vocabularies"

Make = Callable[[Path], object]


@dataclass(frozen=True)
class Attack:
    """An attack on a reader of targets.py.

    comes: `result`, or the class of the error and a part of its message
    """

    name: str
    fed: str
    reader: str
    comes: tuple[str, str]
    make: Make


ATTACKS: list[Attack] = []


def on(reader: str, error: str = "result", says: str = "") -> Callable[[Make], Make]:
    """Note what a function makes as an attack on a reader."""

    def note(make: Make) -> Make:
        name = make.__name__.replace("_", " ").strip()
        fed = " ".join((make.__doc__ or "").split())
        ATTACKS.append(Attack(name, fed, reader, (error, says), make))
        return make

    return note


def table() -> str:
    """Return the attacks and their outcomes in Markdown."""
    lines = ["| reader | attack | what is fed | what happens |", "| --- | --- | --- | --- |"]
    for a in ATTACKS:
        error, says = a.comes
        comes = f"{error}: … {says} …" if says else "a result" if error == "result" else error
        cells = [a.reader, a.name, a.fed, comes]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


# Files


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    """Return a safetensors file with a header of any text."""
    return len(header).to_bytes(8, "little") + header + data


def checkpoint(at: Path, header: bytes, data: bytes = b"") -> None:
    """Write a folder with one file of tensors."""
    (at / "config.json").write_text("{}")
    (at / "model.safetensors").write_bytes(safetensors(header, data))


def entry(shape: str) -> bytes:
    """Return a header with one tensor of four bytes."""
    return b'{"w": {"dtype": "F32", "shape": %s, "data_offsets": [0, 4]}}' % shape.encode()


def indexed(at: Path, weight_map: dict[str, str]) -> None:
    """Write a folder whose index names files."""
    (at / "config.json").write_text("{}")
    index = json.dumps({"weight_map": weight_map})
    (at / "model.safetensors.index.json").write_text(index)


def text(value: bytes) -> bytes:
    """Return a string of a GGUF."""
    return struct.pack("<Q", len(value)) + value


def key(name: bytes, type_: int, value: bytes) -> bytes:
    """Return a key of a GGUF."""
    return text(name) + struct.pack("<I", type_) + value


def array(sub_type: int, count: int, values: bytes = b"") -> bytes:
    """Return the value of a key of type 9."""
    return struct.pack("<IQ", sub_type, count) + values


ARCHITECTURE = key(b"general.architecture", 8, text(b"llama"))


def row(name: bytes, dims: tuple[int, ...] = (32,), offset: int = 0, type_: int = 0) -> bytes:
    """Return a line of the tensor table, of F32 unless another type is given."""
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + shape + struct.pack("<IQ", type_, offset)


def gguf(keys: list[bytes], rows: list[bytes], data: bytes = b"") -> bytes:
    """Return a GGUF of keys and tensors."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(rows), len(keys)) + b"".join((*keys, *rows))
    return head + bytes(-len(head) % 32) + data


def sparse(path: Path, size: int) -> None:
    """Make a file longer by a hole, which takes no room on the disk."""
    with path.open("ab") as file:
        file.truncate(size)


def reference(at: Path, name: str, **changes: Any) -> None:
    """Copy a reference checkpoint and change its config.json."""
    copytree(REFERENCES / name, at, dirs_exist_ok=True)
    path = at / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tokenizer(at: Path, name: str, file: str = "tokenizer.json") -> dict[str, Any]:
    """Copy a vocabulary, and return one of its files."""
    copytree(VOCABULARIES / name, at, dirs_exist_ok=True)
    return json.loads((at / file).read_text(encoding="utf-8"))


def save(at: Path, content: Any, file: str = "tokenizer.json") -> None:
    """Write a file of a vocabulary."""
    (at / file).write_text(json.dumps(content), encoding="utf-8")


# Tensors


@on("safetensors", "CheckpointError", "is not a list of sizes")
def sizes_too_long_to_be_printed(at: Path) -> None:
    """a shape [10^4000, 10^4000], whose product Python refuses to print"""
    checkpoint(at, entry(f"[{10**4000}, {10**4000}]"), bytes(4))


@on("safetensors", "CheckpointError", "is not a list of sizes")
def a_shape_whose_product_takes_hours(at: Path) -> None:
    """a shape of 500 sizes of 4000 digits each"""
    checkpoint(at, entry(str([10**3999] * 500)), bytes(4))


@on("safetensors", "CheckpointError", "nested more than 64 deep")
def a_shape_nested_as_deep_as_json_reads(at: Path) -> None:
    """a shape of 800 lists in each other, which json reads and repr may not"""
    checkpoint(at, entry("[" * 800 + "]" * 800), bytes(4))


@on("safetensors", "CheckpointError", "nested more than 64 deep")
def a_header_of_brackets(at: Path) -> None:
    """a header of a million opening brackets"""
    checkpoint(at, b"[" * 1_000_000)


@on("safetensors", "CheckpointError", "twice")
def a_key_of_the_header_100_000_times(at: Path) -> None:
    """one name, given 100,000 times"""
    checkpoint(at, b"{" + b'"a": 1, ' * 100_000 + b'"a": 2}')


@on("safetensors", "CheckpointError", "a name of 5010 letters")
def a_name_with_a_number_too_long_for_int(at: Path) -> None:
    """a tensor model.999...9.w of 5000 digits"""
    name = b"model.%s.w" % (b"9" * 5000)
    checkpoint(at, b'{"%s": []}' % (name + b"xx"))


@on("safetensors", "CheckpointError", "not a printable name")
def a_name_that_a_terminal_obeys(at: Path) -> None:
    """a tensor named ESC ]0;owned BEL, which changes a terminal's title"""
    checkpoint(at, b'{"\\u001b]0;owned\\u0007": []}')


@on("safetensors", "CheckpointError", "not a regular file")
def a_pipe_for_weights(at: Path) -> None:
    """model.safetensors is a FIFO that nobody writes"""
    (at / "config.json").write_text("{}")
    os.mkfifo(at / "model.safetensors")


@on("safetensors", "CheckpointError", "not a regular file")
def a_device_without_end_for_weights(at: Path) -> None:
    """model.safetensors is a link to /dev/zero"""
    (at / "config.json").write_text("{}")
    (at / "model.safetensors").symlink_to("/dev/zero")


@on("safetensors", "CheckpointError", "convert it to safetensors first")
def a_pickle_that_runs_code(at: Path) -> None:
    """pytorch_model.bin is a pickle that would write into the folder"""
    (at / "config.json").write_text("{}")

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.write_text, (at / "owned", "owned")

    (at / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


# The index


@on("index", "CheckpointError", "is not the name of a file in this folder")
def a_shard_name_longer_than_the_system_takes(at: Path) -> None:
    """a shard named by 5000 letters, for which stat fails otherwise than for a missing file"""
    indexed(at, {"a": "x" * 5000})


@on("index", "CheckpointError", "is not the name of a file in this folder")
def a_shard_name_that_a_terminal_obeys(at: Path) -> None:
    """a shard named ESC [2J"""
    indexed(at, {"a": "\x1b[2J"})


@on("index", "CheckpointError", "is not the name of a file in this folder")
def a_shard_in_another_folder(at: Path) -> None:
    """shards named ../x, /etc/passwd, C:\\x and \\\\host\\x"""
    indexed(at, dict(zip("abcd", ["../x", "/etc/passwd", "C:\\x", "\\\\host\\x"], strict=True)))


@on("index", "CheckpointError", "missing")
def a_tensor_of_the_index_with_a_number_too_long_for_int(at: Path) -> None:
    """an index that names model.999...9.w of 5000 digits"""
    indexed(at, {f"model.{'9' * 5000}.w": "m"})


@on("index", "CheckpointError", "a link to a file that is not there")
def a_shard_that_is_a_link_to_itself(at: Path) -> None:
    """m -> m"""
    indexed(at, {"a": "m"})
    (at / "m").symlink_to("m")


@on("index", "CheckpointError", "at most 67108864 are read")
def an_index_of_a_terabyte(at: Path) -> None:
    """an index with a hole of 1 TiB, which takes no room on the disk"""
    indexed(at, {"a": "m"})
    sparse(at / "model.safetensors.index.json", 1 << 40)


@on("index", "CheckpointError", "not a regular file")
def an_index_that_is_a_pipe(at: Path) -> None:
    """model.safetensors.index.json is a FIFO"""
    (at / "config.json").write_text("{}")
    os.mkfifo(at / "model.safetensors.index.json")


# GGUF


@on("gguf", "CheckpointError", "keys and tensor table of more than")
def strings_in_a_hole_of_a_terabyte(at: Path) -> None:
    """an array of strings of 16 MB each, in a hole of 1 TiB"""
    n = 1 << 24
    found = gguf([key(b"a", 9, array(8, 1000))], [])
    found = found[:24] + key(b"a", 9, array(8, 1000)) + struct.pack("<Q", n)
    (at / "m.gguf").write_bytes(found)
    with (at / "m.gguf").open("r+b") as file:
        for i in range(20):
            file.seek(len(found) - 8 + i * (n + 8))
            file.write(struct.pack("<Q", n))
    sparse(at / "m.gguf", 1 << 40)


@on("gguf", "CheckpointError", "this is no header")
def arrays_that_become_sixteen_times_as_large(at: Path) -> None:
    """three arrays of 16 million bytes each, of which Python makes objects"""
    one = array(0, 1 << 24) + bytes(1 << 24)
    (at / "m.gguf").write_bytes(gguf([key(n, 9, one) for n in (b"a", b"b", b"c")], []))


@on("gguf", "CheckpointError", "at most 1048576")
def tables_of_two_million_keys(at: Path) -> None:
    """a count of two million keys, in a file long enough for them"""
    (at / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2_000_000))
    sparse(at / "m.gguf", 1 << 27)


@on("gguf", "CheckpointError", "at most 65536")
def an_alignment_of_two_gigabytes(at: Path) -> None:
    """general.alignment 2^31, to which an output would be padded"""
    alignment = key(b"general.alignment", 4, struct.pack("<I", 1 << 31))
    (at / "m.gguf").write_bytes(gguf([ARCHITECTURE, alignment], []))


@on("gguf", "CheckpointError", "not a printable name")
def a_tensor_of_a_gguf_that_a_terminal_obeys(at: Path) -> None:
    """a tensor named ESC [2J"""
    (at / "m.gguf").write_bytes(gguf([ARCHITECTURE], [row(b"\x1b[2J")], bytes(128)))


@on("gguf")
def a_layer_that_is_counted_up_to(at: Path) -> None:
    """a tensor blk.999999999999.attn_q.weight: it is in no layer"""
    name = b"blk.999999999999.attn_q.weight"
    (at / "m.gguf").write_bytes(gguf([ARCHITECTURE], [row(name, (32, 2))], bytes(256)))


@on("gguf")
def layers_ahead_without_end(at: Path) -> None:
    """block_count 2^63 and nextn_predict_layers 2^62: numbers that no model has tell nothing"""
    keys = [
        key(b"llama.block_count", 10, struct.pack("<Q", 1 << 63)),
        key(b"llama.nextn_predict_layers", 10, struct.pack("<Q", 1 << 62)),
    ]
    name = b"blk.0.attn_q.weight"
    (at / "m.gguf").write_bytes(gguf([ARCHITECTURE, *keys], [row(name, (32, 2))], bytes(256)))


@on("gguf")
def types_that_follow_no_rule(at: Path) -> None:
    """100 roles of 4 layers, their types at random: the shortest recipe of them takes minutes"""
    random = Random(0)
    names = [b"blk.%d.r%d.weight" % (i, r) for i in range(4) for r in range(100)]
    # F32, F16 and BF16 by their numbers in ggml.h
    rows = [row(n, (32, 2), 256 * i, random.choice((0, 1, 30))) for i, n in enumerate(names)]
    (at / "m.gguf").write_bytes(gguf([ARCHITECTURE], rows, bytes(256 * 400)))


@on("gguf")
def a_tensor_without_dimensions(at: Path) -> None:
    """a tensor of no dimensions, which is one row of one weight"""
    (at / "m.gguf").write_bytes(gguf([ARCHITECTURE], [row(b"output_norm.weight", ())], bytes(32)))


@on("gguf", "CheckpointError", "not a folder")
def a_gguf_that_is_a_pipe(at: Path) -> None:
    """a FIFO"""
    os.mkfifo(at / "m.gguf")


@on("gguf", "CheckpointError", "not a folder")
def a_gguf_that_is_a_device(at: Path) -> None:
    """a link to /dev/zero"""
    (at / "m.gguf").symlink_to("/dev/zero")


@on("split", "CheckpointError", "is the same file as")
def thousands_of_shards_that_are_one_file(at: Path) -> None:
    """2000 links to one shard, each of which would be read and kept"""
    count = key(b"split.count", 4, struct.pack("<I", 2000))
    name = "m-{:05}-of-02000.gguf"
    (at / name.format(1)).write_bytes(gguf([ARCHITECTURE, count], []))
    for i in range(2, 2001):
        (at / name.format(i)).symlink_to(name.format(1))


@on("split", "CheckpointError", "its name does not tell the others")
def a_count_of_shards_without_end(at: Path) -> None:
    """split.count 2^64 - 1"""
    count = key(b"split.count", 10, struct.pack("<Q", 2**64 - 1))
    (at / "m-00001-of-00002.gguf").write_bytes(gguf([ARCHITECTURE, count], []))


# The imatrix


@on("imatrix", "ImportanceError", "not a regular file")
def an_imatrix_that_is_a_pipe(at: Path) -> None:
    """a FIFO"""
    os.mkfifo(at / "imatrix")


@on("imatrix", "ImportanceError", "not a regular file")
def an_imatrix_without_end(at: Path) -> None:
    """a link to /dev/zero, which would be hashed for ever"""
    (at / "imatrix").symlink_to("/dev/zero")


@on("imatrix", "ImportanceError", "at most 17179869184 are read")
def an_imatrix_of_a_terabyte(at: Path) -> None:
    """a hole of 1 TiB, which would be hashed for an hour"""
    sparse(at / "imatrix", 1 << 40)


@on("imatrix", "ImportanceError", "and a tensor at most 65536 experts")
def counts_that_become_sixteen_times_as_large(at: Path) -> None:
    """a tensor of 2^22 rows of one sum, in a hole: each count would be an object"""
    n = 1 << 22
    rows = [row(b"a.in_sum2", (1, n)), row(b"a.counts", (1, n), 4 * n)]
    (at / "imatrix").write_bytes(gguf([], rows))
    sparse(at / "imatrix", (at / "imatrix").stat().st_size + 8 * n)


@on("legacy imatrix", "ImportanceError", "cannot be in")
def entries_of_a_legacy_imatrix_without_end(at: Path) -> None:
    """2^31 - 1 entries, in 4 bytes"""
    (at / "imatrix").write_bytes(struct.pack("<i", 2**31 - 1))


# config.json


@on("config", "ArchitectureError", "num_hidden_layers is 1000000000")
def a_thousand_million_layers(at: Path) -> None:
    """num_hidden_layers 10^9"""
    reference(at, "llama-3.1", num_hidden_layers=10**9)


@on("config", "ArchitectureError", "num_hidden_layers is 1000000000")
def a_thousand_million_layers_with_windows(at: Path) -> None:
    """num_hidden_layers 10^9, where each layer has a kind of attention"""
    reference(at, "olmo3", num_hidden_layers=10**9)


@on("config", "ArchitectureError", "num_experts is 1000000000")
def a_thousand_million_experts(at: Path) -> None:
    """num_experts 10^9, each a name of its own"""
    reference(at, "qwen3moe", num_experts=10**9)


@on("config", "ArchitectureError", "num_nextn_predict_layers is 1000000000")
def a_thousand_million_layers_ahead(at: Path) -> None:
    """num_nextn_predict_layers 10^9"""
    reference(at, "glm4moe", num_nextn_predict_layers=10**9)


@on("config", "ArchitectureError", "heads of 1000000000 weights")
def a_head_of_a_thousand_million_weights(at: Path) -> None:
    """head_dim 10^9, each pair of which has a rope factor"""
    reference(at, "llama-3.1", head_dim=10**9)


@on("config", "DynquantError", "at most 1048576 are written")
def a_vocabulary_to_be_padded_without_end(at: Path) -> None:
    """vocab_size 2^31 - 1, to which the tokens would be padded"""
    reference(at, "llama-3.1", vocab_size=2**31 - 1)


@on("config", "ArchitectureError", "at most 65536 are read")
def a_million_layer_types(at: Path) -> None:
    """layer_types of 1,000,000 wrong words, each an error of its own"""
    reference(at, "gpt-oss", layer_types=["x"] * 1_000_000)


@on("config", "ArchitectureError", "num_attention_heads is 0")
def no_heads_to_divide_by(at: Path) -> None:
    """num_attention_heads 0"""
    reference(at, "llama-3.1", num_attention_heads=0)


@on("config", "ArchitectureError", "num_key_value_heads is -1")
def heads_below_zero(at: Path) -> None:
    """num_key_value_heads -1"""
    reference(at, "llama-3.1", num_key_value_heads=-1)


@on("config", "ArchitectureError", "rms_norm_eps is nan")
def an_epsilon_that_is_no_number(at: Path) -> None:
    """rms_norm_eps NaN"""
    reference(at, "llama-3.1", rms_norm_eps=float("nan"))


@on("config", "ArchitectureError", "rope_theta is 1e+300")
def a_float_that_no_key_can_hold(at: Path) -> None:
    """rope_theta 10^300, beyond a float32"""
    reference(at, "qwen2", rope_theta=1e300, rope_parameters=None)


@on("config", "ArchitectureError", "partial_rotary_factor is 1000000000")
def a_part_that_is_more_than_all(at: Path) -> None:
    """partial_rotary_factor 10^9, of which a key is made"""
    reference(at, "glm", partial_rotary_factor=10**9)


@on("config", "ArchitectureError", "original_max_position_embeddings is 1")
def a_logarithm_of_zero(at: Path) -> None:
    """original_max_position_embeddings 1, by whose logarithm is divided"""
    reference(at, "phi3", original_max_position_embeddings=1)


@on("config", "CheckpointError", "nested more than 64 deep")
def a_config_without_bottom(at: Path) -> None:
    """config.json with 100,000 objects in each other"""
    reference(at, "llama-3.1")
    (at / "config.json").write_text('{"a":' * 100_000)


@on("config", "CheckpointError", "not JSON")
def a_number_too_long_for_int(at: Path) -> None:
    """config.json with a number of 100,000 digits"""
    reference(at, "llama-3.1")
    (at / "config.json").write_text('{"vocab_size": ' + "9" * 100_000 + "}")


@on("config", "CheckpointError", "at most 16777216 are read")
def a_config_of_a_terabyte(at: Path) -> None:
    """config.json with a hole of 1 TiB"""
    reference(at, "llama-3.1")
    sparse(at / "config.json", 1 << 40)


@on("config", "CheckpointError", "not a regular file")
def a_config_that_is_a_pipe(at: Path) -> None:
    """config.json is a FIFO"""
    reference(at, "llama-3.1")
    (at / "config.json").unlink()
    os.mkfifo(at / "config.json")


@on("config")
def code_in_the_checkpoint(at: Path) -> None:
    """auto_map and modeling_evil.py, which transformers runs if told to trust it"""
    reference(at, "llama-3.1", auto_map={"AutoConfig": "evil.Config", "AutoTokenizer": "evil.T"})
    (at / "evil.py").write_text("import pathlib; pathlib.Path(__file__, '../owned').write_text('')")


# The tokenizer


@on("tokenizer", "VocabError", "twice in one object")
def a_hundred_thousand_tokens_twice(at: Path) -> None:
    """100,000 tokens, all of them twice: counting each among all takes hours"""
    tokenizer(at, "phi-3")
    pairs = "".join(f'"t{i}": 1, ' for i in range(100_000))
    (at / "tokenizer.json").write_text("{" + pairs + pairs + '"a": 1}')


@on("tokenizer", "VocabError", "nested more than 64 deep")
def rules_in_rules(at: Path) -> None:
    """a pre-tokenizer of 400 sequences in each other"""
    found = tokenizer(at, "phi-3")
    rule: Any = {"type": "ByteLevel"}
    for _ in range(400):
        rule = {"type": "Sequence", "pretokenizers": [rule]}
    save(at, found | {"pre_tokenizer": rule})


@on("tokenizer", "VocabError", "no known pre-tokenizer of llama.cpp has its rules")
def a_pre_tokenizer_that_takes_for_ever(at: Path) -> None:
    """the regular expression (a+)+$ to split by, which is compared and never run"""
    found = tokenizer(at, "phi-3")
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
    rules = [split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]
    model = found["model"] | {"byte_fallback": False}
    rule = {"type": "Sequence", "pretokenizers": rules}
    save(at, found | {"pre_tokenizer": rule, "model": model, "normalizer": None})


@on("tokenizer", "VocabError", "at most 4096 are read")
def a_token_of_a_million_letters(at: Path) -> None:
    """a token of 1,000,000 letters, which can be parted in as many ways"""
    found = tokenizer(at, "phi-3")
    found["model"]["vocab"]["a" * 1_000_000] = 3000
    save(at, found)


@on("tokenizer", "VocabError", "pairs that make a token are no merges")
def tokens_that_part_in_very_many_ways(at: Path) -> None:
    """tokens a, aa, aaa ... of up to 800 letters: 320,000 pairs that are no merges"""
    found = tokenizer(at, "phi-3")
    found["model"]["vocab"] |= {"a" * n: 10_000 + n for n in range(2, 800)}
    save(at, found)


@on("tokenizer", "VocabError", "are not texts with their scores")
def scores_that_are_no_numbers(at: Path) -> None:
    """unigram scores NaN, 10^300 and 10^400"""
    found = tokenizer(at, "t5")
    found["model"]["vocab"] += [["x", float("nan")], ["y", 1e300], ["z", 10**400]]
    save(at, found)


@on("tokenizer", "VocabError", "half a character")
def half_a_character(at: Path) -> None:
    """a token of half a surrogate pair, which no UTF-8 can hold"""
    found = tokenizer(at, "phi-3")
    found["model"]["vocab"]["\ud800"] = 3000
    save(at, found)


@on("tokenizer", "VocabError", "is not a token id")
def an_id_too_long_for_int(at: Path) -> None:
    """added_tokens_decoder with an id of 5000 digits"""
    tokenizer(at, "phi-3")
    save(at, {"added_tokens_decoder": {"9" * 5000: {"content": "x"}}}, "tokenizer_config.json")


@on("tokenizer", "VocabError", "has id 2147483647")
def an_id_to_be_padded_to(at: Path) -> None:
    """a token with id 2^31 - 1"""
    found = tokenizer(at, "phi-3")
    found["model"]["vocab"]["x" * 4000] = 2**31 - 1
    save(at, found)


@on("tokenizer", "VocabError", "at most 1048576 are read")
def two_thousand_million_special_tokens(at: Path) -> None:
    """tekken.json with default_num_special_tokens 2^31 - 385, and 384 tokens after them"""
    found = tokenizer(at, "tekken", "tekken.json")
    found["config"] |= {"default_num_special_tokens": 2**31 - 385, "default_vocab_size": 2**31 - 1}
    save(at, found, "tekken.json")


@on("tokenizer", "VocabError", "merges do not lead to 1 tokens")
def a_token_of_sixty_thousand_bytes(at: Path) -> None:
    """tiktoken.model with a token of 60,000 bytes, which are joined in order of rank"""
    copytree(VOCABULARIES / "kimi-k2", at, dirs_exist_ok=True)
    path = at / "tiktoken.model"
    lines = path.read_text().rstrip("\n").split("\n")
    token = base64.b64encode(b"in the " * 9000).decode()
    path.write_text("\n".join([*lines, f"{token} {len(lines)}", ""]))
    save(at, {"tokenizer_class": "TikTokenTokenizer"}, "tokenizer_config.json")


@on("tokenizer", "VocabError", "bytes too early")
def a_piece_of_two_to_the_63_bytes(at: Path) -> None:
    """a SentencePiece model whose first piece is 2^63 bytes long"""
    (at / "tokenizer.model").write_bytes(b"\x0a" + b"\x80" * 9 + b"\x01")


@on("tokenizer", "VocabError", "a score that is not a number")
def a_piece_whose_score_is_no_number(at: Path) -> None:
    """a SentencePiece model with a score of NaN, which llama.cpp would sort by"""
    piece = b"\x0a\x01a\x15" + struct.pack("<f", float("nan"))
    rest = b"\x12\x00\x1a\x00"  # a trainer and a normalizer that say nothing
    (at / "tokenizer.model").write_bytes(b"\x0a" + bytes([len(piece)]) + piece + rest)


@on("tokenizer", "VocabError", "outside of the folder")
def a_chat_template_that_publishes_a_secret(at: Path) -> None:
    """chat_template.jinja is a link to a file elsewhere, whose text would be in the output"""
    tokenizer(at, "phi-3")
    (at.parent / "secret").write_text("a key")
    (at / "chat_template.jinja").symlink_to("../secret")


@on("tokenizer", "VocabError", "outside of the folder")
def a_vocabulary_that_publishes_a_secret(at: Path) -> None:
    """vocab.txt is a link to /etc/passwd, whose lines would be tokens"""
    (at / "vocab.txt").symlink_to("/etc/passwd")


@on("tokenizer", "VocabError", "outside of the folder")
def a_folder_of_templates_elsewhere(at: Path) -> None:
    """additional_chat_templates is a link to another folder"""
    tokenizer(at, "phi-3")
    (at.parent / "others").mkdir()
    (at.parent / "others" / "x.jinja").write_text("a key")
    (at / "additional_chat_templates").symlink_to("../others")


@on("tokenizer")
def a_chat_template_that_runs_code(at: Path) -> None:
    """a template that reaches for os.system when it is rendered, which it is not"""
    tokenizer(at, "phi-3")
    code = "{{ cycler.__init__.__globals__.os.system('touch owned') }}"
    (at / "chat_template.jinja").write_text(code)


@on("tokenizer", "NoVocabError", "no tokenizer")
def a_tokenizer_that_is_a_pipe(at: Path) -> None:
    """tokenizer.json is a FIFO, which counts as none"""
    os.mkfifo(at / "tokenizer.json")


# Words beside the weights


@on("model card", "CheckpointError", "an alias")
def front_matter_that_laughs_a_thousand_million_times(at: Path) -> None:
    """README.md with ten lists, each of nine aliases of the one before"""
    reference(at, "llama-3.1")
    lines = ["l0: &l0 [lol, lol]", *(f"l{i}: &l{i} [{f'*l{i - 1}, ' * 9}x]" for i in range(1, 11))]
    (at / "README.md").write_text("\n".join(["---", *lines, "tags: *l10", "---"]))


@on("model card", "CheckpointError", "nested too deep")
def front_matter_without_bottom(at: Path) -> None:
    """README.md with 10,000 lists in each other"""
    reference(at, "llama-3.1")
    (at / "README.md").write_text("---\ntags: " + "[" * 10_000 + "\n---\n")


@on("model card", "CheckpointError", "front matter is not YAML")
def front_matter_that_runs_code(at: Path) -> None:
    """README.md with a tag !!python/object/apply:os.system"""
    reference(at, "llama-3.1")
    (at / "README.md").write_text("---\ntags: !!python/object/apply:os.system [touch owned]\n---\n")


@on("model card", "CheckpointError", "front matter is not YAML")
def a_date_that_is_none(at: Path) -> None:
    """README.md with 2024-99-99, of which YAML makes a date"""
    reference(at, "llama-3.1")
    (at / "README.md").write_text("---\nversion: 2024-99-99\n---\n")


@on("model card", "CheckpointError", "a link out of the folder")
def a_model_card_elsewhere(at: Path) -> None:
    """README.md is a link to /etc/passwd"""
    reference(at, "llama-3.1")
    (at / "README.md").symlink_to("/etc/passwd")


@on("model card", "ArchitectureError", "is not in this folder")
def modules_elsewhere(at: Path) -> None:
    """modules.json that names ../../ as the folder of its pooling"""
    reference(at, "llama-3.1")
    (at / "modules.json").write_text('[{"type": "m.Pooling", "path": "../../"}]')


@on("model card", "ArchitectureError", "pooling by")
def a_mode_that_cannot_be_looked_up(at: Path) -> None:
    """1_Pooling/config.json with a list for its mode"""
    reference(at, "llama-3.1")
    (at / "p").mkdir()
    (at / "modules.json").write_text('[{"type": "m.Pooling", "path": "p"}]')
    (at / "p" / "config.json").write_text('{"pooling_mode": ["mean"]}')


# Recipes and lists of types


def recipe(at: Path, rule: str) -> None:
    """Write a recipe of one rule, which need take no tensor."""
    (at / "r.yaml").write_text(f"default: F16\nrules: [{{{rule}, type: F16, optional: true}}]\n")


@on("recipe")
def a_pattern_with_two_to_the_63_ways(at: Path) -> None:
    """name: /^([a-z0-9_.]+)+!$/, and more of the kind"""
    patterns = [r"^([a-z0-9_.]+)+!$", r"(\w|\w)*!", r"(.*)*(.*)*!", r".*.*.*.*.*.*.*!"]
    recipe(at, "name: [" + ", ".join(f"'/{p}/'" for p in (*patterns, "(.|.)" * 50 + "!")) + "]")


@on("recipe", "RecipeError", "may take for ever")
def a_pattern_that_refers_back(at: Path) -> None:
    r"""name: /(\w+)+\1!/"""
    recipe(at, r"name: '/(\w+)+\1!/'")


@on("recipe", "RecipeError", "nested too deep")
def a_pattern_of_brackets(at: Path) -> None:
    """name: / and 5000 brackets"""
    recipe(at, f"name: '/{'(' * 5000}a{')' * 5000}/'")


@on("recipe", "RecipeError", "repetition number is too large")
def a_pattern_that_repeats_too_often(at: Path) -> None:
    """name: /a{99999999999}/"""
    recipe(at, "name: '/a{99999999999}/'")


@on("recipe", "RecipeError", "recipes that each extend the next")
def a_chain_of_a_thousand_recipes(at: Path) -> None:
    """a recipe that extends one that extends one ..."""
    for i in range(1000):
        (at / f"{i}.yaml").write_text(f"extends: {i + 1}.yaml")
    (at / "r.yaml").write_text("extends: 0.yaml")


@on("recipe", "RecipeError", "neither a shipped recipe nor a file")
def a_recipe_that_extends_a_pipe(at: Path) -> None:
    """extends a FIFO"""
    os.mkfifo(at / "p")
    (at / "r.yaml").write_text("extends: p")


@on("recipe", "RecipeError", "neither a shipped recipe nor a file")
def a_recipe_that_extends_a_device(at: Path) -> None:
    """extends /dev/zero"""
    (at / "r.yaml").write_text("extends: /dev/zero")


@on("recipe", "RecipeError", "neither a shipped recipe nor a file")
def a_recipe_that_extends_a_name_too_long(at: Path) -> None:
    """extends a name of 5000 letters"""
    (at / "r.yaml").write_text(f"extends: {'x' * 5000}")


@on("list of types", "RecipeError", "at most 4096 are read")
def a_pattern_of_a_hundred_thousand_letters(at: Path) -> None:
    """a pattern of 100,000 brackets, looked at from each of them"""
    (at / "types.txt").write_text("[" * 100_000 + "=q4_k")


@on("list of types", "RecipeError", "takes no tensor")
def patterns_of_a_list_that_take_for_ever(at: Path) -> None:
    """(.|.) fifty times and zz, which is searched in every name that GGUF knows"""
    (at / "types.txt").write_text("attn_q=q8_0\na" + "(.|.)" * 50 + "x=q4_k")


# The journal


@on("journal", "ConvertError", "is not a journal")
def a_journal_without_bottom(at: Path) -> None:
    """an identity of 100,000 lists in each other, beside a checkpoint that is converted"""
    (at / "m.journal").write_bytes(b"[" * 100_000 + b"\n")


@on("journal", "ConvertError", "begin anew")
def a_journal_of_another_conversion(at: Path) -> None:
    """an identity whose source is a text of a megabyte, and 64 objects in each other"""
    deep: Any = "x"
    for _ in range(60):
        deep = {"a": deep}
    identity = json.dumps({"version": deep, "source": "x" * 1_000_000})
    record = struct.pack("<IQQQ5d", 2**32 - 2, 2**64 - 1, 0, 0, *[float("nan")] * 5)
    record += struct.pack("<I", zlib.crc32(record))
    (at / "m.journal").write_bytes(identity.encode() + b"\n" + record)


@on("journal", "ConvertError", "Too many levels of symbolic links")
def a_journal_that_is_a_link(at: Path) -> None:
    """m.journal is a link to a file elsewhere, which would be emptied"""
    (at.parent / "precious").write_text("precious")
    (at / "m.journal").symlink_to("../precious")


@on("journal", "ConvertError", "cannot be read")
def a_journal_that_is_a_pipe(at: Path) -> None:
    """m.journal is a FIFO"""
    os.mkfifo(at / "m.journal")


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
