"""The reference's distributions: the likely tokens exactly, the unlikely ones by a random sample.

At each position the most likely tokens are kept with their log-probabilities as float32, as many as
are needed until the rest, the tail, has a probability of at most `tail`. Of the tail, `DRAWS`
tokens are kept, drawn at random in proportion to their probabilities. The KL divergence of a file
q from the reference p is the sum over the kept tokens, plus the tail's

    P(tail) * mean over the draws of (log p - log q),

whose expected value is exactly the sum over all tokens of the tail: the estimate has no bias, no
log-probability is clipped, and the divergence of the reference from itself is 0. The noise of one
position is at most about tail / sqrt(DRAWS) times the spread of log p - log q, and that of a mean
over n positions is smaller by sqrt(n). With `tail` = 0, everything is kept.

llama-perplexity stores 16 bits for each token of the vocabulary and clips log-probabilities at 16
below the largest; its floor is about 1e-4 nat.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray

from dynquant.arrays import F32, I32, I64
from dynquant.errors import EvalError
from dynquant.evaluate.packed import pack, unpack

F64 = NDArray[np.float64]

TAIL = 2.0**-6
"""Default limit on the probability of the tail."""

DRAWS = 64
"""Tokens drawn from each tail."""


_IMPOSSIBLE = np.float32(-1e4)
"""Log-probability of a token that a model excludes: finite, and its exponential is 0."""


class NotFiniteError(Exception):
    """A logit is infinite or not a number."""


def log_probabilities(logits: F32) -> F32:
    """Return float32 [n, n_tokens]: logits minus the logarithm of the sum of their exponentials.

    Raises NotFiniteError if a logit is infinite or not a number; a model may exclude a token with
    minus infinity.
    """
    largest = logits.max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():
        raise NotFiniteError
    shifted = logits - largest
    sums = np.exp(shifted).sum(axis=1, dtype=np.float64, keepdims=True)
    shifted -= np.log(sums).astype(np.float32)
    return np.maximum(shifted, _IMPOSSIBLE, out=shifted)


@dataclass(frozen=True)
class Distributions:
    """The reference's distributions at n successive positions.

    counts:   int32 [n]: how many tokens are kept; all tokens if it is the size of the vocabulary
    ids:      int32 [kept]: their ids in ascending order, position after position; only of
              positions that do not keep all
    logs:     float32 [all counts]: their log-probabilities, in the order of ids
    tail:     float32 [n]: probability of the other tokens
    drawn:    int32 [n, DRAWS]: tokens drawn from the tail
    drawn_logs: float32 [n, DRAWS]: their log-probabilities
    targets:  int32 [n]: the tokens that follow in the text
    target_logs: float32 [n]: their log-probabilities
    top:      int32 [n]: the most likely tokens
    """

    counts: I32
    ids: I32
    logs: F32
    tail: F32
    drawn: I32
    drawn_logs: F32
    targets: I32
    target_logs: F32
    top: I32

    def to_bytes(self) -> bytes:
        """Return an uncompressed npz archive."""
        return pack({f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def from_bytes(cls, content: bytes, n_tokens: int, where: str) -> Self:
        """Read what `to_bytes` wrote, which anybody may have written.

        Raises EvalError if it is damaged or names tokens outside of the vocabulary.
        """
        try:
            found = cls(**unpack(content, [f.name for f in fields(cls)]))
            found.check(n_tokens)
        except ValueError as e:
            raise EvalError(f"{where}: is damaged: {e}; make the reference again") from e
        return found

    def check(self, n_tokens: int) -> None:
        """Raise ValueError if the arrays do not fit each other or the vocabulary."""
        n = self.counts.size
        if n and not 0 <= self.counts.min() <= self.counts.max() <= n_tokens:
            raise ValueError("counts are negative or larger than the vocabulary")
        kept = self.counts[self.counts < n_tokens]
        for name, shape, kind in (
            ("counts", (n,), np.int32),
            ("ids", (int(kept.sum()),), np.int32),
            ("logs", (int(self.counts.sum()),), np.float32),
            ("tail", (n,), np.float32),
            ("drawn", (n, DRAWS), np.int32),
            ("drawn_logs", (n, DRAWS), np.float32),
            ("targets", (n,), np.int32),
            ("target_logs", (n,), np.float32),
            ("top", (n,), np.int32),
        ):
            array = getattr(self, name)
            if array.shape != shape or array.dtype != kind:
                raise ValueError(f"{name} has shape {array.shape} and type {array.dtype}")
            low, high = (0, 1) if name == "tail" else (_IMPOSSIBLE, 0)
            if kind == np.float32 and not ((array >= low) & (array <= high)).all():
                raise ValueError(f"{name} has numbers outside of {low:g} to {high:g}")
            is_ids = name != "counts" and kind == np.int32
            if is_ids and array.size and not 0 <= array.min() <= array.max() < n_tokens:
                raise ValueError(f"{name} has tokens outside of the vocabulary")

    def __len__(self) -> int:
        return len(self.counts)

    def ends(self, n_tokens: int) -> tuple[I64, I64]:
        """Return int64 [n] twice: where the logs and the ids of each position end."""
        counts = self.counts.astype(np.int64)
        return np.cumsum(counts), np.cumsum(np.where(counts < n_tokens, counts, 0))


def uniforms(window: int, n: int) -> F64:
    """Return float64 [n, DRAWS] in [0, 1): the random numbers of a window's draws."""
    return np.random.Generator(np.random.PCG64(window)).random((n, DRAWS))


def distil(logits: F32, targets: I32, *, tail: float, random: F64) -> Distributions:
    """Return the distributions of some positions.

    logits:  float32 [n, n_tokens]
    targets: int32 [n], the tokens that follow
    tail:    limit on the probability of the tokens that are not kept
    random:  float64 [n, DRAWS], rows of `uniforms`
    """
    n, n_tokens = logits.shape
    logs = log_probabilities(logits)
    counts = np.full(n, n_tokens, np.int32)
    drawn = np.zeros((n, DRAWS), np.int32)
    drawn_logs = np.zeros((n, DRAWS), np.float32)
    tails = np.zeros(n, np.float32)
    ids: list[I32] = []
    kept_logs: list[F32] = []
    for row in range(n):
        mine = logs[row]
        is_kept = mine >= _smallest_kept(mine, tail)
        kept = np.flatnonzero(is_kept)
        # Ids take space, too: of more than half of the vocabulary, everything is kept.
        if len(kept) > n_tokens // 2:
            kept_logs.append(mine)
            continue
        rest = np.flatnonzero(~is_kept)
        sums = np.cumsum(np.exp(mine[rest].astype(np.float64)))
        places = cast(I64, sums.searchsorted(random[row] * sums[-1], side="right"))
        counts[row], tails[row] = len(kept), sums[-1]
        drawn[row] = rest[np.minimum(places, len(rest) - 1)]
        drawn_logs[row] = mine[drawn[row]]
        ids.append(kept.astype(np.int32))
        kept_logs.append(mine[kept])
    return Distributions(
        counts=counts,
        ids=np.concatenate([np.zeros(0, np.int32), *ids]),
        logs=np.concatenate(kept_logs),
        tail=tails,
        drawn=drawn,
        drawn_logs=drawn_logs,
        targets=targets,
        target_logs=logs[np.arange(n), targets],
        top=logs.argmax(axis=1).astype(np.int32),
    )


_BIN = 1 / 64
"""Width in nats of the bins in which the tail's probability is summed."""

_BINS = 64 * 40
"""exp(-40) is nothing beside any tail that a user asks for."""


def _smallest_kept(logs: F32, tail: float) -> float:
    """Return the log-probability from which on tokens are kept: those below have at most `tail`.

    logs: float32 [n_tokens], log-probabilities of one position
    """
    if tail <= 0:
        return -np.inf
    bins = np.minimum(logs * np.float32(-1 / _BIN), _BINS - 1).astype(np.int32)
    np.maximum(bins, 0, out=bins)
    mass = np.bincount(bins, np.exp(logs), _BINS)
    below = np.cumsum(mass[::-1])[::-1]
    first_left_out = int(np.argmax(below <= tail)) if below[-1] <= tail else _BINS
    return -first_left_out * _BIN


def stacked(parts: list[Distributions]) -> Distributions:
    """Return the distributions of successive pieces as one."""
    return Distributions(
        *(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Distributions))
    )


@dataclass(frozen=True)
class Measures:
    """What a file's distributions are, compared with the reference's, at n positions.

    kl:       float64 [n]: KL divergence of the file from the reference, nats
    nll:      float64 [n]: -log-probability of the token that follows, by the file
    base_nll: float64 [n]: the same by the reference
    same_top: bool [n]: whether the most likely token is the same
    noise:    float64 [n]: standard error of `kl` by the draws from the reference's tail
    """

    kl: F64
    nll: F64
    base_nll: F64
    same_top: NDArray[np.bool_]
    noise: F64

    def to_bytes(self) -> bytes:
        """Return an uncompressed npz archive."""
        return pack({f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read what `to_bytes` wrote on this machine; raise ValueError if it is damaged."""
        return cls(**unpack(content, [f.name for f in fields(cls)]))


def compare(reference: Distributions, start: int, logits: F32) -> Measures:
    """Compare a file with the reference at successive positions.

    start:  the first of these positions in `reference`
    logits: float32 [n, n_tokens], the file's
    """
    n, n_tokens = logits.shape
    logs = log_probabilities(logits)
    part = slice(start, start + n)
    log_ends, id_ends = reference.ends(n_tokens)
    kl = np.empty(n, np.float64)
    for row in range(n):
        at = start + row
        count = int(reference.counts[at])
        p = reference.logs[log_ends[at] - count : log_ends[at]]
        q = logs[row]
        if count < n_tokens:
            q = q[reference.ids[id_ends[at] - count : id_ends[at]]]
        kl[row] = np.dot(np.exp(p, dtype=np.float64), (p - q).astype(np.float64))
    gaps = reference.drawn_logs[part] - np.take_along_axis(logs, reference.drawn[part], 1)
    own = np.take_along_axis(logs, reference.targets[part][:, None], 1)[:, 0]
    tail = reference.tail[part].astype(np.float64)
    kl += tail * gaps.mean(axis=1, dtype=np.float64)
    return Measures(
        kl=kl,
        nll=-own.astype(np.float64),
        base_nll=-reference.target_logs[part].astype(np.float64),
        same_top=logs.argmax(axis=1) == reference.top[part],
        noise=tail * gaps.std(axis=1, dtype=np.float64) / np.sqrt(DRAWS),
    )


def joined(parts: list[Measures]) -> Measures:
    """Return the measures of successive pieces as one."""
    return Measures(
        *(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Measures))
    )
