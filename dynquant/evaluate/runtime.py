"""A GGUF loaded by llama.cpp: its tokens, and the logits of all positions of a window.

Computed as exactly as llama.cpp can: F32 caches and plain attention. With an F32 file its
log-probabilities agree with transformers to about 1e-5, or 4e-4 with GELU, which ggml takes from a
table of F16; an F16 cache or fused attention changes them by 2e-3 to 9e-3.

Weights are mapped from the file; llama.cpp copies those whose type it stores interleaved for the
CPU (`repack`), as it does for its users.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynquant.arrays import F32, I32
from dynquant.errors import EvalError
from dynquant.evaluate.binding import (
    FLASH_DISABLED,
    FLASH_ENABLED,
    LOAD_MMAP,
    TYPE_F32,
    Batch,
    library,
    reason,
)

PIECE = 512
"""Tokens that are decoded at once: bounds the memory for logits."""

_ONLY_FUSED = ("minimax-m3",)
"""Architectures whose attention llama.cpp computes correctly with fused attention only."""


class LoadedModel(AbstractContextManager["LoadedModel"]):
    """A GGUF, or only its vocabulary, loaded by llama.cpp."""

    def __init__(self, path: Path, *, vocab_only: bool = False, n_gpu_layers: int = 0) -> None:
        """Load a file; of a model in shards, the first.

        Raises EvalError with llama.cpp's reason if it refuses the file.
        """
        self.path = path
        self._library = library()
        parameters = self._library.llama_model_default_params()
        parameters.load_mode = LOAD_MMAP
        parameters.n_gpu_layers = n_gpu_layers
        parameters.vocab_only = vocab_only
        self.handle: int | None = self._library.llama_model_load_from_file(
            str(path).encode(), parameters
        )
        if not self.handle:
            raise EvalError(f"{path}: llama.cpp does not load it: {reason()}")
        self._vocab = self._library.llama_model_get_vocab(self.handle)
        self.n_tokens: int = self._library.llama_vocab_n_tokens(self._vocab)

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._library.llama_model_free(self.handle)
        self.handle = None

    @property
    def architecture(self) -> str:
        """Return general.architecture."""
        return self.setting("general.architecture") or ""

    def setting(self, key: str) -> str | None:
        """Return the value of a scalar or text key as text, or None."""
        room = ctypes.create_string_buffer(256)
        n = self._library.llama_model_meta_val_str(self.handle, key.encode(), room, len(room))
        return room.value.decode(errors="replace") if n >= 0 else None

    def refusal(self) -> str | None:
        """Return why the model does not predict tokens one after another, or None."""
        for is_so, what in (
            (not self._library.llama_model_has_decoder(self.handle), "has no decoder"),
            (self._library.llama_model_has_encoder(self.handle), "has an encoder"),
            (self._library.llama_model_is_diffusion(self.handle), "is a diffusion model"),
        ):
            if is_so:
                return f"{self.path}: {what}; only models that predict the next token are evaluated"
        return None

    @property
    def bos(self) -> int | None:
        """Return the token that llama.cpp puts before a text, or None."""
        adds: bool = self._library.llama_vocab_get_add_bos(self._vocab)
        return int(self._library.llama_vocab_bos(self._vocab)) if adds else None

    @property
    def context_train(self) -> int:
        """Return the longest context that the model was trained with, in tokens."""
        return int(self._library.llama_model_n_ctx_train(self.handle))

    def text_of_bos(self) -> str:
        """Return the text of the BOS token, or nothing."""
        return self._text_of_marker(self._library.llama_vocab_bos(self._vocab))

    def text_of_eos(self) -> str:
        """Return the text of the EOS token, or nothing."""
        return self._text_of_marker(self._library.llama_vocab_eos(self._vocab))

    def _text_of_marker(self, token: int) -> str:
        return self.text_of(token).decode(errors="replace") if token >= 0 else ""

    def text_of(self, token: int) -> bytes:
        """Return a token's text as the vocabulary stores it."""
        found: bytes | None = self._library.llama_vocab_get_text(self._vocab, token)
        return found or b""

    def is_end(self, token: int) -> bool:
        """Return whether generation ends with a token."""
        return bool(self._library.llama_vocab_is_eog(self._vocab, token))

    def vocabulary(self) -> list[bytes]:
        """Return the texts of all tokens."""
        return [self.text_of(token) for token in range(self.n_tokens)]

    @property
    def chat_template(self) -> str | None:
        """Return the chat template of the file, or None."""
        found: bytes | None = self._library.llama_model_chat_template(self.handle, None)
        return found.decode(errors="replace") if found else None

    def tokenize(self, text: bytes, *, special: bool, bos: bool = True) -> I32:
        """Return the token ids of a text.

        special: whether the texts of control tokens become these tokens
        bos:     whether llama.cpp adds the tokens it adds at the begin; an end token is not added
        """
        # At most one token a byte, one before, one after, and one for a space.
        room = np.empty(len(text) + 3, np.int32)
        n = self._library.llama_tokenize(
            self._vocab, text, len(text), _pointer(room, ctypes.c_int32), len(room), bos, special
        )
        if n < 0:
            raise EvalError(f"{self.path}: llama.cpp cannot tokenize the text")
        tokens = room[:n].copy()
        if bos and n and self._library.llama_vocab_get_add_eos(self._vocab):
            tokens = tokens[:-1]
        return tokens

    def piece(self, token: int) -> bytes:
        """Return the bytes that a token adds to a text; none for a control token."""
        n = 512
        while True:
            room = ctypes.create_string_buffer(n)
            n = self._library.llama_token_to_piece(self._vocab, token, room, len(room), 0, False)
            if n >= 0:
                return room.raw[:n]
            n = -n  # the bytes that it needs


@dataclass(frozen=True)
class Sampler:
    """Settings of llama.cpp's sampler; a temperature of 0 takes the most likely token."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 1

    def chain(self, lib: Any, stream: int) -> int:
        """Return a new chain for one sequence, in llama.cpp's default order of its samplers.

        stream: number of the sequence, which its random numbers depend on
        """
        from dynquant.evaluate.binding import ChainParams

        chain: int = lib.llama_sampler_chain_init(ChainParams(True))
        links: list[int] = []
        if self.temperature <= 0:
            links.append(lib.llama_sampler_init_greedy())
        else:
            if self.top_k > 0:
                links.append(lib.llama_sampler_init_top_k(self.top_k))
            if self.top_p < 1:
                links.append(lib.llama_sampler_init_top_p(self.top_p, 1))
            if self.min_p > 0:
                links.append(lib.llama_sampler_init_min_p(self.min_p, 1))
            links.append(lib.llama_sampler_init_temp(self.temperature))
            links.append(lib.llama_sampler_init_dist((self.seed * 1_000_003 + stream) % 2**32))
        for link in links:
            lib.llama_sampler_chain_add(chain, link)
        return chain


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

    def samplers(self, settings: Sampler, streams: Sequence[int]) -> list[int]:
        """Return a new sampler chain for each stream; free them with `free`."""
        return [settings.chain(self._library, stream) for stream in streams]

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
            _pointer(self._tokens, ctypes.c_int32),
            None,
            _pointer(self._positions, ctypes.c_int32),
            _pointer(self._counts, ctypes.c_int32),
            _pointer(self._id_pointers, ctypes.POINTER(ctypes.c_int32)),
            _pointer(self._wanted, ctypes.c_int8),
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


def _pointer(array: NDArray[Any], kind: Any) -> Any:
    made: Any = array.ctypes
    return made.data_as(ctypes.POINTER(kind))
