"""Distributions as bytes: complete after a round trip, and any damage is an EvalError."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from evaluating import changed, distilled, random_logits, same

from dynquant.errors import EvalError
from dynquant.evaluate.distributions import Distributions, Measures, compare

N_TOKENS = 60
LOGITS = random_logits(4, N_TOKENS, 21)
STORED = distilled(LOGITS, tail=0.1)


def read(content: bytes) -> Distributions:
    return Distributions.from_bytes(content, N_TOKENS, "window 3")


def npz(save: Callable[..., None] = np.savez, **arrays: Any) -> bytes:
    """Return the stored distributions with some arrays replaced; numpy writes them."""
    room = io.BytesIO()
    save(room, **({f.name: getattr(STORED, f.name) for f in fields(STORED)} | arrays))
    return room.getvalue()


def test_distributions_survive_a_round_trip() -> None:
    assert 0 < STORED.counts.min() <= STORED.counts.max() < N_TOKENS
    assert same(read(STORED.to_bytes()), STORED)


def test_complete_distributions_survive_a_round_trip() -> None:
    whole = distilled(LOGITS, tail=0)
    assert same(read(whole.to_bytes()), whole)


def test_measures_survive_a_round_trip() -> None:
    found = compare(STORED, 0, changed(LOGITS, 22))
    assert same(Measures.from_bytes(found.to_bytes()), found)


def test_bytes_are_the_same_every_time() -> None:
    assert STORED.to_bytes() == distilled(LOGITS, tail=0.1).to_bytes()


def test_numpy_reads_the_bytes() -> None:
    with np.load(io.BytesIO(STORED.to_bytes()), allow_pickle=False) as arrays:
        assert np.array_equal(arrays["logs"], STORED.logs)


def array_alone() -> bytes:
    room = io.BytesIO()
    np.save(room, STORED.logs)
    return room.getvalue()


def with_member(content: bytes) -> bytes:
    """Return an archive in which the bytes of one array are replaced."""
    room = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(STORED.to_bytes())) as old,
        zipfile.ZipFile(room, "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, content if name == "logs.npy" else old.read(name))
    return room.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def flipped(at: int) -> bytes:
    content = bytearray(STORED.to_bytes())
    content[at] ^= 1
    return bytes(content)


F4 = "{'descr': '<f4', 'fortran_order': False, 'shape': "
OBJECTS = np.array([{"a": 1}], object)
DAMAGED = {
    "nothing": b"",
    "text": b"PK, but not an archive",
    "an array alone": array_alone(),
    "cut": STORED.to_bytes()[:-40],
    "one bit of a number": flipped(STORED.to_bytes().index(STORED.logs.tobytes()) + 9),
    "without an array": npz()[: npz().index(b"PK\x01\x02")],
    "a pickle": npz(lambda room, **a: np.savez(room, allow_pickle=True, **a), logs=OBJECTS),
    "compressed": npz(np.savez_compressed),
    "a claim of 4 TB": with_member(header(F4 + "(1099511627776,), }\n") + bytes(64)),
    "a negative shape": with_member(header(F4 + "(-1,), }\n") + bytes(64)),
    "a header that is code": with_member(header("[" * 5000)),
    "a header of brackets": with_member(header("{" + "(" * 30 + "\n")),
    "text in an array": npz(logs=np.array(["a", "b"])),
    "dates in an array": npz(counts=np.array(["2026-01-01"], "M8[D]")),
    "complex numbers": npz(counts=np.zeros(4, complex)),
    "structs": npz(counts=np.zeros(4, "i4,f4")),
    "big-endian numbers": npz(top=STORED.top.astype(">i4")),
    "float64": npz(logs=STORED.logs.astype(np.float64)),
    "a scalar": npz(counts=np.int32(3)),
    "two dimensions": npz(counts=STORED.counts[None]),
    "one position less": npz(tail=STORED.tail[:-1]),
    "draws of another number": npz(drawn=STORED.drawn[:, :-1]),
    "fewer ids than counts": npz(ids=STORED.ids[:-1]),
    "fewer logs than counts": npz(logs=STORED.logs[:-1]),
    "a negative count": npz(counts=STORED.counts * [1, 1, 1, -1]),
    "a count beyond the vocabulary": npz(counts=STORED.counts + np.int32(N_TOKENS)),
    "a negative id": npz(ids=STORED.ids - np.int32(N_TOKENS)),
    "an id beyond the vocabulary": npz(ids=STORED.ids + np.int32(N_TOKENS)),
    "a target beyond the vocabulary": npz(targets=STORED.targets + np.int32(N_TOKENS)),
    "a drawn token beyond the vocabulary": npz(drawn=STORED.drawn + np.int32(N_TOKENS)),
    "a top beyond the vocabulary": npz(top=STORED.top - np.int32(N_TOKENS)),
    "NaN": npz(logs=STORED.logs * np.float32(np.nan)),
    "infinite": npz(target_logs=np.full(4, -np.inf, np.float32)),
    "a probability above 1": npz(logs=STORED.logs + np.float32(50)),
    "a log-probability of -1e30": npz(drawn_logs=STORED.drawn_logs * np.float32(1e30)),
    "a tail above 1": npz(tail=STORED.tail + np.float32(1)),
    "a negative tail": npz(tail=-STORED.tail),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_distributions_are_an_error_with_their_place(what: str) -> None:
    with pytest.raises(EvalError, match=r"^window 3: is damaged: .+; make the reference again$"):
        read(DAMAGED[what])


def test_random_damage_is_an_error_or_gives_valid_distributions() -> None:
    content, rng = STORED.to_bytes(), random.Random(1)
    refused = 0
    for _ in range(400):
        changed_bytes = bytearray(content)
        for _ in range(rng.choice([1, 1, 4, 40])):
            changed_bytes[rng.randrange(len(content))] = rng.randrange(256)
        try:
            compare(read(bytes(changed_bytes)), 0, LOGITS)
        except EvalError:
            refused += 1
    assert refused > 300
