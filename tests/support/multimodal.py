"""llama.cpp's mtmd, which sees and hears, through the `xllamacpp` wheel's shared library.

As exact as llama.cpp can be: on CPU, one thread, plain attention and F32 caches.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int, c_int32, c_size_t, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynquant.evaluate.runtime import binding

F32 = NDArray[np.float32]
Media = NDArray[np.uint8] | F32
"""A picture, uint8 [height, width, 3], or a sound, float32 [samples]."""

_TEXT = 0
_FLASH_OFF = 0


class _Params(Structure):
    """Struct mtmd_context_params of the pinned wheel."""

    _fields_ = (
        ("use_gpu", c_bool),
        ("device", c_void_p),
        ("print_timings", c_bool),
        ("n_threads", c_int),
        ("image_marker", c_char_p),
        ("media_marker", c_char_p),
        ("flash_attn_type", c_int),
        ("warmup", c_bool),
        ("image_min_tokens", c_int),
        ("image_max_tokens", c_int),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("batch_max_tokens", c_int32),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("rest", ctypes.c_char * 64),
    )


class _Text(Structure):
    """Struct mtmd_input_text."""

    _fields_ = (
        ("text", c_char_p),
        ("text_len", c_size_t),
        ("add_special", c_bool),
        ("parse_special", c_bool),
    )


_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "mtmd_context_params_default": (_Params, []),
    "mtmd_default_marker": (c_char_p, []),
    "mtmd_init_from_file": (c_void_p, [c_char_p, c_void_p, _Params]),
    "mtmd_free": (None, [c_void_p]),
    "mtmd_support_vision": (c_bool, [c_void_p]),
    "mtmd_support_audio": (c_bool, [c_void_p]),
    "mtmd_log_set": (None, [c_void_p, c_void_p]),
    "mtmd_helper_log_set": (None, [c_void_p, c_void_p]),
    "mtmd_bitmap_init": (c_void_p, [ctypes.c_uint32, ctypes.c_uint32, c_void_p]),
    "mtmd_bitmap_init_from_audio": (c_void_p, [c_size_t, c_void_p]),
    "mtmd_bitmap_free": (None, [c_void_p]),
    "mtmd_input_chunks_init": (c_void_p, []),
    "mtmd_input_chunks_size": (c_size_t, [c_void_p]),
    "mtmd_input_chunks_get": (c_void_p, [c_void_p, c_size_t]),
    "mtmd_input_chunks_free": (None, [c_void_p]),
    "mtmd_input_chunk_get_type": (c_int, [c_void_p]),
    "mtmd_input_chunk_get_tokens_text": (POINTER(c_int32), [c_void_p, POINTER(c_size_t)]),
    "mtmd_input_chunk_get_n_tokens": (c_size_t, [c_void_p]),
    "mtmd_tokenize": (c_int32, [c_void_p, c_void_p, POINTER(_Text), c_void_p, c_size_t]),
    "mtmd_encode_chunk": (c_int32, [c_void_p, c_void_p]),
    "mtmd_get_output_embd": (POINTER(c_float), [c_void_p]),
    "mtmd_helper_eval_chunks": (
        c_int32,
        [*[c_void_p] * 3, c_int32, c_int32, c_int32, c_bool, POINTER(c_int32)],
    ),
    "llama_model_n_embd_inp": (c_int32, [c_void_p]),
}

Log = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
_lines: list[str] = []


@Log
def _log(level: int, text: bytes, _: int | None) -> None:
    _lines.append(text.decode(errors="replace"))


_M_PERTURB = -6
"""Option of glibc's mallopt: what it fills memory with that it hands out, complemented."""


def _hand_out_zeros(wanted: bool) -> None:
    """Let memory be zero before it is used, where the C library can; it makes llama.cpp slow."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_PERTURB, 0xFF if wanted else 0)


def _needs_zeros(projector: Path) -> bool:
    """Return whether llama.cpp's graph of a projector reads memory that nothing has set.

    That of Pixtral multiplies such memory by zero, to clear it. Where it holds what reads as NaN,
    so does the result.
    """
    with projector.open("rb") as file:
        head = file.read(1 << 13)
    return b"pixtral" in head or b"lightonocr" in head


@cache
def _library() -> Any:
    loaded = binding.library()
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    loaded.mtmd_log_set(_log, None)
    loaded.mtmd_helper_log_set(_log, None)
    defaults = loaded.mtmd_context_params_default()
    if (defaults.warmup, defaults.image_min_tokens, defaults.batch_max_tokens) != (True, -1, 1024):
        raise RuntimeError("this xllamacpp has another mtmd_context_params")
    return loaded


@dataclass(frozen=True)
class Seen:
    """What llama.cpp makes of a prompt with pictures or sounds.

    tokens:            the tokens of each text between them
    embeddings:        float32 [n_tokens, n_embd_inp] of each piece of a picture or sound
    log_probabilities: float32 [n_vocab], of the token after the prompt
    """

    tokens: list[list[int]]
    embeddings: list[F32]
    log_probabilities: F32


class Multimodal:
    """A language model and its projector, loaded by llama.cpp; a context manager."""

    def __init__(self, text: Path, projector: Path, *, n_ctx: int = 2048) -> None:
        """Load both files; raise RuntimeError with llama.cpp's log if it rejects one."""
        self._lib = _library()
        _hand_out_zeros(_needs_zeros(projector))
        _lines.clear()
        parameters = self._lib.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = self._lib.llama_model_load_from_file(str(text).encode(), parameters)
        if not self._model:
            raise RuntimeError(f"{text}: {binding.reason()}")
        self._n_ctx = n_ctx
        its = self._lib.mtmd_context_params_default()
        its.use_gpu, its.n_threads, its.warmup, its.flash_attn_type = False, 1, False, _FLASH_OFF
        self._context = self._lib.mtmd_init_from_file(str(projector).encode(), self._model, its)
        if not self._context:
            self._lib.llama_model_free(self._model)
            raise RuntimeError(f"{projector}: " + "".join(_lines[-12:]))

    def __enter__(self) -> Multimodal:
        return self

    def __exit__(self, *_: object) -> None:
        _hand_out_zeros(False)
        self._lib.mtmd_free(self._context)
        self._lib.llama_model_free(self._model)

    @property
    def log(self) -> str:
        """What llama.cpp logged since the files were loaded."""
        return "".join(_lines)

    def see(self, prompt: str, media: Sequence[Media], *, add_special: bool = True) -> Seen:
        """Return what llama.cpp makes of a prompt; `<__media__>` in it stands for each medium."""
        lib = self._lib
        bitmaps = [self._bitmap(one) for one in media]
        chunks = lib.mtmd_input_chunks_init()
        encoded = prompt.encode()
        text = _Text(encoded, len(encoded), add_special, True)
        room = (c_void_p * max(1, len(bitmaps)))(*bitmaps)
        if failed := lib.mtmd_tokenize(
            self._context, chunks, ctypes.byref(text), room, len(bitmaps)
        ):
            raise RuntimeError(f"mtmd_tokenize returned {failed}: " + "".join(_lines[-5:]))
        tokens: list[list[int]] = []
        embeddings: list[F32] = []
        for number in range(lib.mtmd_input_chunks_size(chunks)):
            chunk = lib.mtmd_input_chunks_get(chunks, number)
            if lib.mtmd_input_chunk_get_type(chunk) == _TEXT:
                n = c_size_t()
                found = lib.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(n))
                tokens.append(found[: n.value])
            else:
                embeddings.append(self._embed(chunk))
        seen = Seen(tokens, embeddings, self._predict(chunks))
        lib.mtmd_input_chunks_free(chunks)
        for bitmap in bitmaps:
            lib.mtmd_bitmap_free(bitmap)
        return seen

    def _bitmap(self, one: Media) -> int:
        data = np.ascontiguousarray(one)
        if data.ndim == 1:
            return self._lib.mtmd_bitmap_init_from_audio(len(data), data.ctypes.data)
        height, width, _ = data.shape
        return self._lib.mtmd_bitmap_init(width, height, data.ctypes.data)

    def _embed(self, chunk: int) -> F32:
        if self._lib.mtmd_encode_chunk(self._context, chunk):
            raise RuntimeError("mtmd_encode_chunk failed: " + "".join(_lines[-5:]))
        n = self._lib.mtmd_input_chunk_get_n_tokens(chunk)
        width = self._lib.llama_model_n_embd_inp(self._model)
        found = self._lib.mtmd_get_output_embd(self._context)
        return np.ctypeslib.as_array(found, (n, width)).copy()

    def _predict(self, chunks: int) -> F32:
        lib = self._lib
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = self._n_ctx
        parameters.n_threads = parameters.n_threads_batch = 1
        parameters.flash_attn_type = binding.FLASH_DISABLED
        parameters.type_k = parameters.type_v = binding.TYPE_F32
        context = lib.llama_init_from_model(self._model, parameters)
        past = c_int32()
        failed = lib.mtmd_helper_eval_chunks(
            self._context, context, chunks, 0, 0, self._n_ctx, True, ctypes.byref(past)
        )
        if failed:
            raise RuntimeError(f"mtmd_helper_eval_chunks returned {failed}: {_lines[-5:]}")
        n = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (n,)).astype(float)
        lib.llama_free(context)
        shifted = logits - logits.max()
        return (shifted - np.log(np.exp(shifted).sum())).astype(np.float32)
