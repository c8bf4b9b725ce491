"""llama.cpp as an oracle, through the `xllamacpp` wheel: predictions, texts and tokens of a GGUF.

As exact as llama.cpp can be: on CPU, with plain attention and F32 caches, and weights used as
stored. With F32 files all log-probabilities agree with transformers to about 1e-5.

Properties of the server that `Runtime.log_probabilities` depends on:

* it reports the probabilities of the plain logits, before any sampler: neither a logit bias nor
  the temperature changes them;
* it reports no probabilities if the sampled token ends inside a UTF-8 character (half an emoji) or
  is an end token; therefore a bias makes it always sample one harmless token;
* by default it reports only the most likely tokens; n_probs = vocabulary size makes it report all.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xllamacpp
from numpy.typing import NDArray

F32 = NDArray[np.float32]

HARMLESS = "a"
"""Text whose last token is complete UTF-8 in any vocabulary with bytes or letters."""


class Runtime:
    """A GGUF loaded by llama.cpp. A context manager: its threads end with the block."""

    def __init__(
        self, path: Path, *, n_ctx: int = 512, n_threads: int = 1, adapter: Path | None = None
    ) -> None:
        """Load the file, and an adapter of it; raise RuntimeError if llama.cpp rejects one.

        Its log is suppressed.
        """
        # Before the server starts: the library must not be used in two ways at once.
        self._n_vocab = vocabulary_size(path)
        (tokens,) = tokenize(path, [HARMLESS])
        self._harmless = tokens[-1]
        parameters = _parameters(path, n_ctx, n_threads)
        if adapter is not None:
            applied = xllamacpp.CommonAdapterLoraInfo()
            applied.path, applied.scale = str(adapter), 1.0
            parameters.lora_adapters = [applied]
        self._server: Any = xllamacpp.Server(parameters)

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        # The server stops its threads when it is garbage collected; there is no other reference.
        self._server = None

    def log_probabilities(self, prompts: Sequence[Sequence[int]]) -> F32:
        """Return float32 [n_prompts, n_vocab]: log-probabilities after each prompt of token ids.

        Nothing is added to a prompt, which must itself begin with a BOS token if one is needed.
        """
        return np.stack([self._after(prompt) for prompt in prompts])

    def _after(self, prompt: Sequence[int]) -> F32:
        answer = self._complete(
            prompt=list(prompt),
            max_tokens=1,
            logprobs=self._n_vocab,
            post_sampling_probs=False,
            ignore_eos=True,
            logit_bias=[[self._harmless, 1e6]],
        )
        if answer["usage"]["prompt_tokens"] != len(prompt):
            raise AssertionError(f"llama.cpp read {answer['usage']} of a prompt of {len(prompt)}")
        (sampled,) = answer["choices"][0]["logprobs"]["content"]
        reported = {entry["id"]: entry["logprob"] for entry in sampled["top_logprobs"]}
        if reported.keys() != set(range(self._n_vocab)):
            raise AssertionError(f"llama.cpp reported {len(reported)} of {self._n_vocab} tokens")
        return np.array([reported[token] for token in range(self._n_vocab)], np.float32)

    def generate(self, prompt: str, n_tokens: int) -> str:
        """Return the most likely continuation of a text, without the text."""
        answer = self._complete(prompt=prompt, max_tokens=n_tokens)
        text: str = answer["choices"][0]["text"]
        return text

    def _complete(self, **request: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._server.handle_completions(
            {"temperature": 0.0, "cache_prompt": False, **request}
        )
        if "choices" not in answer:
            raise AssertionError(f"llama.cpp answered {answer}")
        return answer


def _parameters(path: Path, n_ctx: int, n_threads: int) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_gpu_layers = 0
    parameters.n_ctx = n_ctx
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = n_threads
    parameters.cpuparams_batch.n_threads = n_threads
    parameters.n_threads_http = 1
    # Defaults are an F16 cache and fused attention; measured on the reference checkpoints, each of
    # them changes a log-probability by 2e-3 to 9e-3.
    parameters.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    kinds = xllamacpp.llama_flash_attn_type
    parameters.flash_attn_type = (
        kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if _is_only_fused(path)
        else kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    parameters.warmup = False
    parameters.verbosity = -1
    return parameters


def _is_only_fused(path: Path) -> bool:
    """Return whether llama.cpp computes the architecture's attention with fused attention only.

    Without it, the attention of MiniMax M3 reads all tokens.
    """
    with path.open("rb") as file:
        return b"minimax-m3" in file.read(1 << 10)


def log_probabilities(
    path: Path, prompts: Sequence[Sequence[int]], *, adapter: Path | None = None
) -> F32:
    """Return `Runtime.log_probabilities` of a file, and an adapter, loaded for this call only."""
    with Runtime(path, adapter=adapter) as runtime:
        return runtime.log_probabilities(prompts)


def embeddings(path: Path, prompts: Sequence[Sequence[int]], n: int) -> F32:
    """Return float32 [n_prompts, n]: an embedding model's vector, or a classifier's scores.

    Pooled as the file states, and not normalized. The server returns a whole vector for a
    classifier too, of which only the first n numbers are scores.
    """
    parameters = _parameters(path, n_ctx=512, n_threads=1)
    parameters.embedding = True
    server: Any = xllamacpp.Server(parameters)
    vectors: list[F32] = []
    for prompt in prompts:
        answer = server.handle_embeddings({"input": list(prompt), "embd_normalize": -1})
        (found,) = answer["data"]
        vectors.append(np.array(found["embedding"][:n], np.float32))
    return np.stack(vectors)


def drafts(path: Path, prompts: Sequence[Sequence[int]], n_tokens: int) -> tuple[int, int]:
    """Continue prompts with drafts of the file's prediction layer, one token at a time.

    Returns how many tokens were drafted, and how many of them the model itself would have chosen.
    """
    parameters = _parameters(path, n_ctx=512, n_threads=1)
    kinds = xllamacpp.common_speculative_type
    parameters.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_MTP]
    parameters.speculative.draft.n_max = 1
    server: Any = xllamacpp.Server(parameters)
    drafted = accepted = 0
    for prompt in prompts:
        request = {"prompt": list(prompt), "n_predict": n_tokens, "temperature": 0.0}
        answer = server.handle_completions({**request, "ignore_eos": True, "cache_prompt": False})
        drafted += answer["timings"]["draft_n"]
        accepted += answer["timings"]["draft_n_accepted"]
    return drafted, accepted


def generate(path: Path, prompt: str, n_tokens: int) -> str:
    """Return the most likely continuation of a text."""
    with Runtime(path) as runtime:
        return runtime.generate(prompt, n_tokens)


# Tokenizing needs no server and no weights: the wheel's shared library exports llama.cpp's own
# functions, and with `vocab_only` they accept files that contain only a vocabulary.


class _ModelParams(ctypes.Structure):
    """Struct llama_model_params of the pinned wheel: the needed fields, and room for the rest.

    It is passed by value and larger than the library's; on x86-64 and arm64 the excess is ignored.
    """

    _fields_ = (
        ("devices", ctypes.c_void_p),
        ("tensor_buft_overrides", ctypes.c_void_p),
        ("n_gpu_layers", ctypes.c_int32),
        ("split_mode", ctypes.c_int),
        ("load_mode", ctypes.c_int),
        ("lazy_mode", ctypes.c_int),
        ("main_gpu", ctypes.c_int32),
        ("tensor_split", ctypes.c_void_p),
        ("progress_callback", ctypes.c_void_p),
        ("progress_callback_user_data", ctypes.c_void_p),
        ("kv_overrides", ctypes.c_void_p),
        ("vocab_only", ctypes.c_bool),
        ("check_tensors", ctypes.c_bool),
        ("use_extra_bufts", ctypes.c_bool),
        ("no_host", ctypes.c_bool),
        ("no_alloc", ctypes.c_bool),
        ("rest", ctypes.c_char * 128),
    )


_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def _library() -> ctypes.CDLL:
    found = importlib.util.find_spec("xllamacpp.xllamacpp")
    if found is None or found.origin is None:
        raise ImportError("the xllamacpp wheel has no shared library")
    library = ctypes.CDLL(found.origin)
    library.llama_model_default_params.restype = _ModelParams
    library.llama_model_load_from_file.restype = ctypes.c_void_p
    library.llama_model_load_from_file.argtypes = [ctypes.c_char_p, _ModelParams]
    library.llama_model_free.argtypes = [ctypes.c_void_p]
    library.llama_model_get_vocab.restype = ctypes.c_void_p
    library.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
    library.llama_vocab_n_tokens.argtypes = [ctypes.c_void_p]
    library.llama_vocab_is_eog.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    library.llama_vocab_is_eog.restype = ctypes.c_bool
    library.llama_tokenize.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_int32,
        ctypes.POINTER(ctypes.c_int32),
        ctypes.c_int32,
        ctypes.c_bool,
        ctypes.c_bool,
    ]
    return library


@contextmanager
def _silence(library: ctypes.CDLL) -> Iterator[None]:
    """Suppress llama.cpp's log; the logger of a running server is restored afterwards."""
    logger, its_argument = ctypes.c_void_p(), ctypes.c_void_p()
    library.llama_log_get(ctypes.byref(logger), ctypes.byref(its_argument))
    nothing = _LogCallback(lambda *_: None)
    library.llama_log_set(nothing, None)
    try:
        yield
    finally:
        library.llama_log_set(logger, its_argument)


@contextmanager
def _vocabulary(path: Path) -> Iterator[tuple[ctypes.CDLL, int]]:
    """Load the vocabulary of a GGUF, with or without tensors; RuntimeError if llama.cpp refuses."""
    library = _library()
    parameters = library.llama_model_default_params()
    defaults = [getattr(parameters, name) for name, _ in _ModelParams._fields_[-6:-1]]
    if defaults != [False, False, True, False, False]:
        raise RuntimeError(f"this xllamacpp has another llama_model_params: {defaults}")
    parameters.vocab_only = True
    with _silence(library):
        model = library.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise RuntimeError(f"{path}: llama.cpp does not load this vocabulary")
    try:
        yield library, library.llama_model_get_vocab(model)
    finally:
        library.llama_model_free(model)


def loads(path: Path) -> bool:
    """Return whether llama.cpp loads a model with its tensors; it computes nothing with them."""
    library = _library()
    parameters = library.llama_model_default_params()
    with _silence(library):
        model = library.llama_model_load_from_file(str(path).encode(), parameters)
    if model:
        library.llama_model_free(model)
    return bool(model)


def vocabulary_size(path: Path) -> int:
    """Return the number of tokens in a GGUF's vocabulary."""
    with _vocabulary(path) as (library, vocab):
        return int(library.llama_vocab_n_tokens(vocab))


def ends(path: Path) -> list[int]:
    """Return the ids of the tokens at which llama.cpp stops."""
    with _vocabulary(path) as (library, vocab):
        n = library.llama_vocab_n_tokens(vocab)
        return [i for i in range(n) if library.llama_vocab_is_eog(vocab, i)]


def tokenize(
    path: Path, texts: Sequence[str], *, add_special: bool = True, parse_special: bool = False
) -> list[list[int]]:
    """Return llama.cpp's token ids of each text, by the vocabulary of a GGUF.

    add_special:   add tokens at the begin and end according to add_bos_token and similar keys
    parse_special: parse the text of a control token as that token
    """
    with _vocabulary(path) as (library, vocab):
        results: list[list[int]] = []
        for text in texts:
            encoded = text.encode()
            # At most one token per byte, plus a first and a last one and one for a space.
            room = (ctypes.c_int32 * (len(encoded) + 3))()
            n = library.llama_tokenize(
                vocab, encoded, len(encoded), room, len(room), add_special, parse_special
            )
            if n < 0:
                raise AssertionError(f"{text!r} has {-n} tokens, more than bytes")
            results.append(room[:n])
        return results
