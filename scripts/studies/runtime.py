"""What llama.cpp makes of a file: logits of every position, and how they differ from another's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from dynquant.arrays import F32, I64

F64 = NDArray[np.float64]

WINDOW = 512
"""Tokens in a window; each starts with an empty context."""


class NotLoadedError(Exception):
    """The runtime does not take a file."""


class Runtime:
    """A GGUF loaded by llama.cpp; a context manager.

    Attention and cache are in float32, so that the weights make all the difference, and weights
    stay as the file has them: packed for AMX, llama-cpp-python 0.3.36 crashes on some machines.
    """

    def __init__(self, path: Path, threads: int) -> None:
        llama_cpp.llama_log_set(_silence, None)
        parameters = llama_cpp.llama_model_default_params()
        parameters.use_extra_bufts = False
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise NotLoadedError(path.name)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        wanted = llama_cpp.llama_context_default_params()
        wanted.n_ctx = wanted.n_batch = wanted.n_ubatch = WINDOW
        wanted.n_threads = wanted.n_threads_batch = threads
        wanted.type_k = wanted.type_v = llama_cpp.GGML_TYPE_F32
        wanted.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(self._model, wanted)

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def tokenize(self, text: bytes) -> list[int]:
        """Return the token ids of a text, with no token before it."""
        room = (llama_cpp.llama_token * len(text))()
        n = llama_cpp.llama_tokenize(self._vocab, text, len(text), room, len(room), False, False)
        return list(room[:n])

    def logits(self, window: I64) -> F32:
        """Return float32 [WINDOW - 1, n_vocab]: of every token that has a next one."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        batch = llama_cpp.llama_batch_init(WINDOW, 0, 1)
        batch.n_tokens = WINDOW
        for i, token in enumerate(window):
            batch.token[i], batch.pos[i], batch.logits[i] = int(token), i, True
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        failed = llama_cpp.llama_decode(self._context, batch)
        llama_cpp.llama_batch_free(batch)
        if failed:
            raise AssertionError(f"llama_decode: {failed}")
        n_vocab = llama_cpp.llama_vocab_n_tokens(self._vocab)
        found = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(found, (WINDOW, n_vocab))[:-1].copy()


@llama_cpp.llama_log_callback
def _silence(*_: object) -> None:
    """Drop what llama.cpp says."""


def windows_of(path: Path, text: Path, n_windows: int) -> I64:
    """Return token ids [n_windows, WINDOW] of a text's beginning, by a file's vocabulary."""
    with Runtime(path, 1) as runtime:
        ids = runtime.tokenize(text.read_bytes()[: 16 * n_windows * WINDOW])
    if len(ids) < n_windows * WINDOW:
        raise SystemExit(f"error: {text} has {len(ids)} tokens; {n_windows} windows are too many")
    return np.array(ids[: n_windows * WINDOW], np.int64).reshape(n_windows, WINDOW)


def _log_softmax(logits: F32) -> F32:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Reference:
    """The F32 file's log-probabilities [n_windows, WINDOW - 1, n_vocab], and what came next."""

    log_p: F32
    p: F32
    windows: I64

    @classmethod
    def of(cls, path: Path, windows: I64, threads: int) -> Reference:
        """Read the text with a file."""
        with Runtime(path, threads) as runtime:
            log_p = np.stack([_log_softmax(runtime.logits(window)) for window in windows])
        return cls(log_p, np.exp(log_p), windows)

    def compare(self, path: Path, threads: int) -> tuple[F64, F64]:
        """Return of a file, [n_windows, WINDOW - 1]: -ln of the next token's probability, and KL.

        With d the difference of the logits, both follow from ln sum p exp(d) and sum p d, without
        the cancellation of two logarithms that are almost equal.
        """
        losses, divergences = [], []
        at = np.arange(WINDOW - 1)
        with Runtime(path, threads) as runtime:
            for window, p, log_p in zip(self.windows, self.p, self.log_p, strict=True):
                d = runtime.logits(window) - log_p
                d -= np.einsum("tv,tv->t", p, d)[:, None]
                log_sum = np.log1p(np.einsum("tv,tv->t", p, np.expm1(d)).astype(np.float64))
                losses.append(log_sum - d[at, window[1:]] - log_p[at, window[1:]])
                divergences.append(log_sum - np.einsum("tv,tv->t", p, d))
        return np.stack(losses), np.stack(divergences)
