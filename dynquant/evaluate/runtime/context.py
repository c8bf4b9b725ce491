"""The caches of a loaded model, and the logits of all positions of a window.

Computed as exactly as llama.cpp can: F32 caches and plain attention. With an F32 file its
log-probabilities agree with transformers to about 1e-5, or 4e-4 with GELU, which ggml takes from a
table of F16; an F16 cache or fused attention changes them by 2e-3 to 9e-3.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType

import numpy as np

from dynquant.arrays import F32, I32
from dynquant.errors import EvalError
from dynquant.evaluate.runtime.binding import (
    FLASH_DISABLED,
    FLASH_ENABLED,
    TYPE_F32,
    Batch,
    library,
    pointer,
    reason,
)
from dynquant.evaluate.runtime.model import LoadedModel
from dynquant.evaluate.runtime.sampling import sampler_chain
from dynquant.evaluate.tasks import SamplerPart

PIECE = 512
"""Tokens that are decoded at once: bounds the memory for logits."""

_ONLY_FUSED = ("minimax-m3",)
"""Architectures whose attention llama.cpp computes correctly with fused attention only."""


class Context(AbstractContextManager["Context"]):
    """The caches of a loaded model, for one or several sequences.

    seconds, n_decoded: time spent in `decode`, and tokens processed by it
    """

    def __init__(
        self, model: LoadedModel, *, n_ctx: int, n_threads: int, n_sequences: int = 1
    ) -> None:
        """Make caches for sequences of at most n_ctx tokens each."""
        self._library = library()
        self._n_tokens = model.n_tokens
        p = self._library.llama_context_default_params()
        p.n_ctx = n_ctx * n_sequences
        p.n_seq_max = n_sequences
        p.n_batch = p.n_ubatch = PIECE
        p.n_threads = p.n_threads_batch = n_threads
        p.type_k = p.type_v = TYPE_F32
        is_fused = model.architecture in _ONLY_FUSED
        p.flash_attn_type = FLASH_ENABLED if is_fused else FLASH_DISABLED
        self.handle: int | None = self._library.llama_init_from_model(model.handle, p)
        if not self.handle:
            raise EvalError(
                f"{model.path}: llama.cpp cannot make a context of {n_ctx} tokens: {reason()}"
            )
        self._name = model.path
        self.seconds = 0.0
        self.n_decoded = 0
        self._memory = self._library.llama_get_memory(self.handle)
        self._batch = _BatchRoom(PIECE)

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._library.llama_free(self.handle)
        self.handle = None

    def forget(self) -> None:
        """Empty the caches of all sequences."""
        self._library.llama_memory_clear(self._memory, True)

    def forget_sequence(self, sequence: int) -> None:
        """Empty the cache of one sequence."""
        self._library.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def logits(self, window: I32, first: int) -> Iterator[tuple[int, F32]]:
        """Yield the logits after the tokens first .. n - 2 of a window, some positions at a time.

        window: int32 [n], token ids; the caches are emptied before

        Yields the first position of a piece and float32 [n_positions, n_tokens], valid until the
        next piece.
        """
        self.forget()
        last = len(window) - 1
        for start in range(0, last, PIECE):
            stop = min(start + PIECE, last)
            wanted = [position >= first for position in range(start, stop)]
            self.decode(window[start:stop], range(start, stop), [0] * (stop - start), wanted)
            if n := sum(wanted):
                pointer = self._library.llama_get_logits(self.handle)
                yield max(start, first), np.ctypeslib.as_array(pointer, (n, self._n_tokens))

    def decode(
        self,
        tokens: Sequence[int] | I32,
        positions: Sequence[int],
        sequences: Sequence[int],
        wanted: Sequence[bool],
    ) -> None:
        """Process at most PIECE tokens of one or several sequences.

        wanted: whether the logits after each token are computed
        """
        self._batch.fill(tokens, positions, sequences, wanted)
        started = time.perf_counter()
        code = self._library.llama_decode(self.handle, self._batch.struct)
        if code:
            raise EvalError(f"{self._name}: llama.cpp cannot compute it (code {code}): {reason()}")
        self._library.llama_synchronize(self.handle)
        self.seconds += time.perf_counter() - started
        self.n_decoded += len(tokens)

    def logits_at(self, index: int) -> F32:
        """Return float32 [n_tokens]: the logits after token `index` of the last call of decode."""
        pointer = self._library.llama_get_logits_ith(self.handle, index)
        return np.ctypeslib.as_array(pointer, (self._n_tokens,))

    def sample(self, chain: int, index: int) -> int:
        """Return the token that a sampler chain chooses after token `index` of the last call."""
        return int(self._library.llama_sampler_sample(chain, self.handle, index))

    def samplers(self, settings: SamplerPart, streams: Sequence[int]) -> list[int]:
        """Return a new sampler chain for each stream; free them with `free`."""
        return [sampler_chain(settings, stream) for stream in streams]

    def free(self, chains: Sequence[int]) -> None:
        """Free sampler chains."""
        for chain in chains:
            self._library.llama_sampler_free(chain)


class _BatchRoom:
    """Memory for a batch, which llama.cpp reads through pointers."""

    def __init__(self, n: int) -> None:
        self._tokens, self._positions, self._ids = (np.zeros(n, np.int32) for _ in range(3))
        self._counts = np.ones(n, np.int32)
        self._wanted = np.zeros(n, np.int8)
        addresses = self._ids.ctypes.data + 4 * np.arange(n, dtype=np.uint64)
        self._id_pointers = addresses.astype(np.uint64)
        self.struct = Batch(
            0,
            pointer(self._tokens, ctypes.c_int32),
            None,
            pointer(self._positions, ctypes.c_int32),
            pointer(self._counts, ctypes.c_int32),
            pointer(self._id_pointers, ctypes.POINTER(ctypes.c_int32)),
            pointer(self._wanted, ctypes.c_int8),
        )

    def fill(
        self,
        tokens: Sequence[int] | I32,
        positions: Sequence[int],
        sequences: Sequence[int],
        wanted: Sequence[bool],
    ) -> None:
        n = len(tokens)
        self._tokens[:n], self._positions[:n] = tokens, positions
        self._ids[:n], self._wanted[:n] = sequences, wanted
        self.struct.n_tokens = n
