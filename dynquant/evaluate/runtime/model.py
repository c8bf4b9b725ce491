"""A GGUF loaded by llama.cpp, or only its vocabulary.

Weights are mapped from the file; llama.cpp copies those whose type it stores interleaved for the
CPU (`repack`), as it does for its users.
"""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import numpy as np

from dynquant.arrays import I32
from dynquant.errors import EvalError
from dynquant.evaluate.runtime.binding import LOAD_MMAP, library, pointer, reason


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

    def chat_template(self, name: str | None = None) -> str | None:
        """Return a chat template of the file, the default one without a name, or None."""
        given = name.encode() if name else None
        found: bytes | None = self._library.llama_model_chat_template(self.handle, given)
        return found.decode(errors="replace") if found else None

    def tokenize(self, text: bytes, *, special: bool, bos: bool = True) -> I32:
        """Return the token ids of a text.

        special: whether the texts of control tokens become these tokens
        bos:     whether llama.cpp adds the tokens it adds at the begin; an end token is not added
        """
        # At most one token a byte, one before, one after, and one for a space.
        room = np.empty(len(text) + 3, np.int32)
        n = self._library.llama_tokenize(
            self._vocab, text, len(text), pointer(room, ctypes.c_int32), len(room), bos, special
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
