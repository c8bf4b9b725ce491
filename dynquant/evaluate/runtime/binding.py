"""Llama.cpp's C interface in the xllamacpp wheel: its structs and functions, checked by version.

The wheel contains llama.cpp as one shared library that exports all of llama.h, and installs
without a compiler. The wheel's own Python interface is an HTTP-like server that gives the
log-probabilities of one position of a text; a comparison needs those of all positions.

Parameters are passed as structs by value, whose layout changes between versions of llama.cpp. The
layouts here are those of `TESTED`. Before anything else, the default parameters that the library
returns are compared with the known ones, field by field; a library with another layout is refused.

Only the worker process (worker.py) loads the library: a file that makes llama.cpp abort ends that
process only.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int, c_int32, c_uint32, c_void_p
from functools import cache
from typing import Any

from numpy.typing import NDArray

from dynquant.errors import EvalError

TESTED = "2026.10.11549"
"""The version of the wheel whose layouts these are."""

LLAMA_TOKEN = c_int32

# Values of enums in llama.h and ggml.h.
LOAD_MMAP = 1
FLASH_DISABLED, FLASH_ENABLED = 0, 1
TYPE_F32 = 0
LOG_ERROR = 4


class ModelParams(Structure):
    """Struct llama_model_params, with room at the end for fields of a later version.

    Passed by value in memory on x86-64 and arm64, where the callee ignores what follows its own.
    """

    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int),
        ("load_mode", c_int),
        ("lazy_mode", c_int),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
        ("rest", ctypes.c_char * 128),
    )


class ContextParams(Structure):
    """Struct llama_context_params, as `ModelParams`."""

    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int),
        ("rope_scaling_type", c_int),
        ("pooling_type", c_int),
        ("attention_type", c_int),
        ("flash_attn_type", c_int),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int),
        ("type_v", c_int),
        ("callbacks", c_void_p * 3),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("rest", ctypes.c_char * 128),
    )


class Batch(Structure):
    """Struct llama_batch: tokens to process at once, of one or several sequences."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(LLAMA_TOKEN)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(ctypes.c_int8)),
    )


class ChainParams(Structure):
    """Struct llama_sampler_chain_params."""

    _fields_ = (("no_perf", c_bool),)


_MODEL_DEFAULTS = {
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "lazy_mode": 1,
    "vocab_only": False,
    "check_tensors": False,
    "use_extra_bufts": True,
    "no_host": False,
    "no_alloc": False,
    "load_mtp": False,
}
_CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_outputs_max_per_seq": 1,
    "ctx_type": 0,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "yarn_ext_factor": -1.0,
    "yarn_beta_slow": -1.0,
    "yarn_orig_ctx": 0,
    "defrag_thold": -1.0,
    "cb_eval": None,
    "type_k": 1,
    "type_v": 1,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
}

LogCallback = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)

_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [LogCallback, c_void_p]),
    "llama_version": (c_char_p, []),
    "ggml_commit": (c_char_p, []),
    "llama_print_system_info": (c_char_p, []),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_model_has_decoder": (c_bool, [c_void_p]),
    "llama_model_has_encoder": (c_bool, [c_void_p]),
    "llama_model_is_diffusion": (c_bool, [c_void_p]),
    "llama_model_n_ctx_train": (c_int32, [c_void_p]),
    "llama_model_meta_val_str": (c_int32, [c_void_p, c_char_p, c_char_p, ctypes.c_size_t]),
    "llama_model_chat_template": (c_char_p, [c_void_p, c_char_p]),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParams]),
    "llama_free": (None, [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_synchronize": (None, [c_void_p]),
    "llama_get_logits": (POINTER(c_float), [c_void_p]),
    "llama_get_logits_ith": (POINTER(c_float), [c_void_p, c_int32]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_vocab_get_add_bos": (c_bool, [c_void_p]),
    "llama_vocab_get_add_eos": (c_bool, [c_void_p]),
    "llama_vocab_bos": (LLAMA_TOKEN, [c_void_p]),
    "llama_vocab_eos": (LLAMA_TOKEN, [c_void_p]),
    "llama_vocab_is_eog": (c_bool, [c_void_p, LLAMA_TOKEN]),
    "llama_vocab_get_text": (c_char_p, [c_void_p, LLAMA_TOKEN]),
    "llama_token_to_piece": (
        c_int32,
        [c_void_p, LLAMA_TOKEN, c_char_p, c_int32, c_int32, c_bool],
    ),
    "llama_tokenize": (
        c_int32,
        [c_void_p, c_char_p, c_int32, POINTER(LLAMA_TOKEN), c_int32, c_bool, c_bool],
    ),
    "llama_supports_gpu_offload": (c_bool, []),
    "llama_sampler_chain_init": (c_void_p, [ChainParams]),
    "llama_sampler_chain_add": (None, [c_void_p, c_void_p]),
    "llama_sampler_init_greedy": (c_void_p, []),
    "llama_sampler_init_dist": (c_void_p, [c_uint32]),
    "llama_sampler_init_top_k": (c_void_p, [c_int32]),
    "llama_sampler_init_top_p": (c_void_p, [c_float, ctypes.c_size_t]),
    "llama_sampler_init_min_p": (c_void_p, [c_float, ctypes.c_size_t]),
    "llama_sampler_init_temp": (c_void_p, [c_float]),
    "llama_sampler_sample": (LLAMA_TOKEN, [c_void_p, c_void_p, c_int32]),
    "llama_sampler_free": (None, [c_void_p]),
}


@cache
def library() -> Any:
    """Return llama.cpp's shared library with the types of its functions; its log is discarded.

    Raises EvalError if the wheel is missing or has another interface than the known one.
    """
    version = importlib.metadata.version("xllamacpp")
    found = importlib.util.find_spec("xllamacpp.xllamacpp")
    path = found.origin if found else None
    if path is None:
        raise EvalError(_other_interface(version, "it has no shared library"))
    try:
        loaded = ctypes.CDLL(path)
    except OSError as e:
        raise EvalError(_other_interface(version, f"it cannot be loaded: {e}")) from e
    for name, (result, arguments) in _FUNCTIONS.items():
        try:
            function = getattr(loaded, name)
        except AttributeError:
            raise EvalError(_other_interface(version, f"it has no {name}")) from None
        function.restype, function.argtypes = result, arguments
    for defaults, known in (
        (loaded.llama_model_default_params(), _MODEL_DEFAULTS),
        (loaded.llama_context_default_params(), _CONTEXT_DEFAULTS),
    ):
        for field, value in known.items():
            if (its := getattr(defaults, field)) != value:
                struct = type(defaults).__name__
                raise EvalError(
                    _other_interface(version, f"{struct}.{field} is {its}, not {value}")
                )
    loaded.llama_log_set(_log, None)
    loaded.llama_backend_init()
    return loaded


def has_gpu() -> bool:
    """Return whether the library can compute on a GPU."""
    return bool(library().llama_supports_gpu_offload())


def reason() -> str:
    """Return the cause among the errors that llama.cpp logged since the last call."""
    found = _errors.copy()
    _errors.clear()
    # The first error is the cause; the functions that called it add theirs. A prefix names the
    # function: "llama_model_load: error loading model: ...".
    return found[0].rpartition("error loading model: ")[2] if found else "it gives no reason"


_errors: list[str] = []


@LogCallback
def _log(level: int, text: bytes, _: int | None) -> None:
    if level == LOG_ERROR and (message := text.decode(errors="replace").strip()):
        _errors.append(message)


def _other_interface(version: str, why: str) -> str:
    return (
        f"xllamacpp {version} has another interface than dynquant knows ({why});"
        f" install the tested version: pip install xllamacpp=={TESTED}"
    )


def engine() -> dict[str, str]:
    """Return what computes the figures: wheel, build of llama.cpp, and the CPU's features."""
    lib = library()
    return {
        "wheel": f"xllamacpp {importlib.metadata.version('xllamacpp')}",
        "version": lib.llama_version().decode(),
        "commit": lib.ggml_commit().decode(),
        "system": " ".join(lib.llama_print_system_info().decode().split()),
    }


def pointer(array: NDArray[Any], kind: Any) -> Any:
    """Return the address of an array's numbers, as a pointer to a type of ctypes."""
    made: Any = array.ctypes
    return made.data_as(ctypes.POINTER(kind))
