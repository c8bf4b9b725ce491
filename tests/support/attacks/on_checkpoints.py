"""Attacks with weights and their metadata: safetensors, an index, a GGUF, an imatrix."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from random import Random
from typing import Any

from attacks.making import (
    ARCHITECTURE,
    LLAMA,
    array,
    checkpoint,
    entry,
    gguf,
    indexed,
    key,
    on,
    row,
    sparse,
)

# Tensors


@on("safetensors", "CheckpointError", "is not a list of sizes")
def sizes_too_long_to_print(at: Path) -> None:
    """a shape [10^4000, 10^4000]; Python refuses to print the product"""
    checkpoint(at, entry(f"[{10**4000}, {10**4000}]"), bytes(4))


@on("safetensors", "CheckpointError", "is not a list of sizes")
def a_shape_whose_product_takes_hours(at: Path) -> None:
    """a shape of 500 sizes with 4000 digits each"""
    checkpoint(at, entry(str([10**3999] * 500)), bytes(4))


@on("safetensors", "CheckpointError", "nested more than 64 deep")
def a_deeply_nested_shape(at: Path) -> None:
    """a shape of 800 nested lists; json reads it, but repr may fail"""
    checkpoint(at, entry("[" * 800 + "]" * 800), bytes(4))


@on("safetensors", "CheckpointError", "nested more than 64 deep")
def a_header_of_brackets(at: Path) -> None:
    """a header of a million opening brackets"""
    checkpoint(at, b"[" * 1_000_000)


@on("safetensors", "CheckpointError", "twice")
def a_header_key_repeated_100_000_times(at: Path) -> None:
    """one tensor name repeated 100,000 times"""
    checkpoint(at, b"{" + b'"a": 1, ' * 100_000 + b'"a": 2}')


@on("safetensors", "CheckpointError", "the name has 5010 characters")
def a_name_with_a_number_too_long_for_int(at: Path) -> None:
    """a tensor named model.999...9.w with 5000 digits"""
    name = b"model.%s.w" % (b"9" * 5000)
    checkpoint(at, b'{"%s": []}' % (name + b"xx"))


@on("safetensors", "CheckpointError", "not a printable name")
def a_name_with_a_terminal_escape(at: Path) -> None:
    """a tensor named ESC ]0;owned BEL, which changes the title of a terminal"""
    checkpoint(at, b'{"\\u001b]0;owned\\u0007": []}')


@on("safetensors", "CheckpointError", "not a regular file")
def weights_that_are_a_pipe(at: Path) -> None:
    """model.safetensors is a FIFO without a writer"""
    (at / "config.json").write_text("{}")
    os.mkfifo(at / "model.safetensors")


@on("safetensors", "CheckpointError", "not a regular file")
def weights_that_are_an_endless_device(at: Path) -> None:
    """model.safetensors is a link to /dev/zero"""
    (at / "config.json").write_text("{}")
    (at / "model.safetensors").symlink_to("/dev/zero")


@on("safetensors", "CheckpointError", "convert it to safetensors first")
def a_pickle_that_runs_code(at: Path) -> None:
    """pytorch_model.bin is a pickle that writes a file when it is loaded"""
    (at / "config.json").write_text("{}")

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.write_text, (at / "owned", "owned")

    (at / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


# The index


@on("index", "CheckpointError", "is not the name of a file in this folder")
def a_shard_name_that_is_too_long(at: Path) -> None:
    """a shard name of 5000 letters; the error of stat is not that of a missing file"""
    indexed(at, {"a": "x" * 5000})


@on("index", "CheckpointError", "is not the name of a file in this folder")
def a_shard_name_with_a_terminal_escape(at: Path) -> None:
    """a shard named ESC [2J"""
    indexed(at, {"a": "\x1b[2J"})


@on("index", "CheckpointError", "is not the name of a file in this folder")
def a_shard_in_another_folder(at: Path) -> None:
    """shards named ../x, /etc/passwd, C:\\x and \\\\host\\x"""
    indexed(at, dict(zip("abcd", ["../x", "/etc/passwd", "C:\\x", "\\\\host\\x"], strict=True)))


@on("index", "CheckpointError", "missing")
def an_index_entry_with_a_number_too_long_for_int(at: Path) -> None:
    """an index with the tensor model.999...9.w of 5000 digits"""
    indexed(at, {f"model.{'9' * 5000}.w": "m"})


@on("index", "CheckpointError", "is a link to a missing file")
def a_shard_that_is_a_link_to_itself(at: Path) -> None:
    """m -> m"""
    indexed(at, {"a": "m"})
    (at / "m").symlink_to("m")


@on("index", "CheckpointError", "at most 67108864 are read")
def an_index_of_a_terabyte(at: Path) -> None:
    """an index with a hole of 1 TiB, which takes no space on the disk"""
    indexed(at, {"a": "m"})
    sparse(at / "model.safetensors.index.json", 1 << 40)


@on("index", "CheckpointError", "not a regular file")
def an_index_that_is_a_pipe(at: Path) -> None:
    """model.safetensors.index.json is a FIFO"""
    (at / "config.json").write_text("{}")
    os.mkfifo(at / "model.safetensors.index.json")


# GGUF


@on("gguf", "CheckpointError", "keys and tensor table have more than")
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


@on("gguf", "CheckpointError", "too many for a GGUF header")
def arrays_that_grow_16_times_in_memory(at: Path) -> None:
    """three arrays of 16 million bytes each; Python makes an object of each byte"""
    one = array(0, 1 << 24) + bytes(1 << 24)
    (at / "m.gguf").write_bytes(gguf([key(n, 9, one) for n in (b"a", b"b", b"c")], []))


@on("gguf", "CheckpointError", "at most 1048576")
def tables_of_two_million_keys(at: Path) -> None:
    """a count of two million keys, in a file of sufficient size"""
    (at / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2_000_000))
    sparse(at / "m.gguf", 1 << 27)


@on("gguf", "CheckpointError", "at most 65536")
def an_alignment_of_two_gigabytes(at: Path) -> None:
    """general.alignment 2^31; an output would be padded to it"""
    alignment = key(b"general.alignment", 4, struct.pack("<I", 1 << 31))
    (at / "m.gguf").write_bytes(gguf([ARCHITECTURE, alignment], []))


@on("gguf", "CheckpointError", "not a printable name")
def a_gguf_tensor_name_with_a_terminal_escape(at: Path) -> None:
    """a tensor named ESC [2J"""
    (at / "m.gguf").write_bytes(gguf([ARCHITECTURE], [row(b"\x1b[2J")], bytes(128)))


@on("gguf")
def a_huge_layer_number(at: Path) -> None:
    """a tensor blk.999999999999.attn_q.weight, which belongs to no layer"""
    name = b"blk.999999999999.attn_q.weight"
    (at / "m.gguf").write_bytes(gguf([ARCHITECTURE], [row(name, (32, 2))], bytes(256)))


@on("gguf", "CheckpointError", "layers of llama.block_count have no tensors")
def huge_numbers_of_layers(at: Path) -> None:
    """block_count 2^63 and nextn_predict_layers 2^62"""
    keys = [
        key(b"llama.block_count", 10, struct.pack("<Q", 1 << 63)),
        key(b"llama.nextn_predict_layers", 10, struct.pack("<Q", 1 << 62)),
    ]
    name = b"blk.0.attn_q.weight"
    (at / "m.gguf").write_bytes(gguf([LLAMA, *keys], [row(name, (32, 2))], bytes(256)))


@on("gguf")
def random_types(at: Path) -> None:
    """100 roles in 4 layers with random types; their shortest recipe would take minutes"""
    random = Random(0)
    names = [b"blk.%d.r%d.weight" % (i, r) for i in range(4) for r in range(100)]
    # F32, F16 and BF16 by their numbers in ggml.h
    rows = [row(n, (32, 2), 256 * i, random.choice((0, 1, 30))) for i, n in enumerate(names)]
    (at / "m.gguf").write_bytes(gguf([ARCHITECTURE], rows, bytes(256 * 400)))


@on("gguf")
def a_tensor_without_dimensions(at: Path) -> None:
    """a tensor without dimensions, which is one row of one weight"""
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
    """2000 links to one shard; each would be read and kept"""
    count = key(b"split.count", 4, struct.pack("<I", 2000))
    name = "m-{:05}-of-02000.gguf"
    (at / name.format(1)).write_bytes(gguf([ARCHITECTURE, count], []))
    for i in range(2, 2001):
        (at / name.format(i)).symlink_to(name.format(1))


@on("split", "CheckpointError", "its name does not give the names of the others")
def a_huge_number_of_shards(at: Path) -> None:
    """split.count 2^64 - 1"""
    count = key(b"split.count", 10, struct.pack("<Q", 2**64 - 1))
    (at / "m-00001-of-00002.gguf").write_bytes(gguf([ARCHITECTURE, count], []))


# The imatrix


@on("imatrix", "ImportanceError", "not a regular file")
def an_imatrix_that_is_a_pipe(at: Path) -> None:
    """a FIFO"""
    os.mkfifo(at / "imatrix")


@on("imatrix", "ImportanceError", "not a regular file")
def an_imatrix_that_is_an_endless_device(at: Path) -> None:
    """a link to /dev/zero; hashing would never end"""
    (at / "imatrix").symlink_to("/dev/zero")


@on("imatrix", "ImportanceError", "at most 17179869184 are read")
def an_imatrix_of_a_terabyte(at: Path) -> None:
    """a hole of 1 TiB; hashing would take an hour"""
    sparse(at / "imatrix", 1 << 40)


@on("imatrix", "ImportanceError", "at most 65536 experts are supported")
def counts_that_grow_16_times_in_memory(at: Path) -> None:
    """a tensor of 2^22 rows with one sum each, in a hole; each count would become an object"""
    n = 1 << 22
    rows = [row(b"a.in_sum2", (1, n)), row(b"a.counts", (1, n), 4 * n)]
    (at / "imatrix").write_bytes(gguf([], rows))
    sparse(at / "imatrix", (at / "imatrix").stat().st_size + 8 * n)


@on("legacy imatrix", "ImportanceError", "entries do not fit in")
def a_huge_number_of_legacy_entries(at: Path) -> None:
    """2^31 - 1 entries, in 4 bytes"""
    (at / "imatrix").write_bytes(struct.pack("<i", 2**31 - 1))
