"""A file's vocabulary as llama.cpp reads it, and the tokens of texts and prompts."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dynquant.arrays import I32, U8
from dynquant.errors import EvalError
from dynquant.evaluate.answers import PromptSet
from dynquant.evaluate.process import describe
from dynquant.evaluate.reference import EnginePart
from dynquant.evaluate.tasks import Describe, Described


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp reads of a file without its weights.

    texts:   the tokens of each text
    chats:   the tokens of each file of conversations
    prompts: the tokens of each prompt
    pieces:  the bytes of each token, if there are prompts
    """

    path: Path
    facts: Described
    texts: tuple[I32, ...]
    prompts: PromptSet
    pieces: tuple[bytes, ...]
    chats: tuple[I32, ...] = ()

    def engine(self, gpu_layers: int) -> EnginePart:
        """Return what a reference records of llama.cpp."""
        engine = self.facts.engine
        return EnginePart(
            wheel=engine["wheel"],
            version=engine["version"],
            commit=engine["commit"],
            gpu_layers=gpu_layers,
        )


def read_vocabulary(
    path: Path,
    texts: Sequence[Path],
    prompts: Sequence[str],
    *,
    tokens: int,
    chat: bool,
    chats: Sequence[Path] = (),
) -> Vocabulary:
    """Read a file's vocabulary in a worker process.

    tokens: how many of each text are used, at most
    chat:   render the prompts by the file's chat template, if it has one
    chats:  files of conversations, as in `Describe`; the GGUF must have a chat template

    Raises EvalError if llama.cpp refuses the file, if it predicts no tokens, or with all
    conversations for which the template fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "tokens.npz")
        facts = describe(
            Describe(
                path=str(path),
                texts=[str(text) for text in texts],
                tokens=tokens,
                prompts=list(prompts),
                chat=chat,
                out=str(out),
                chats=[str(path) for path in chats],
            )
        )
        if facts.refusal:
            raise EvalError(facts.refusal)
        with np.load(out, allow_pickle=False) as arrays:
            of_texts = tuple(arrays[f"text{i}"] for i in range(len(texts)))
            of_chats = tuple(arrays[f"chat{i}"] for i in range(len(chats)))
            of_prompts = tuple(tuple(arrays[f"prompt{i}"].tolist()) for i in range(len(prompts)))
            pieces = _pieces(arrays["pieces"], arrays["piece_lengths"]) if prompts else ()
    EvalError.raise_any(
        f"{path}: the prompt {prompt!r} has no tokens"
        for prompt, tokens in zip(prompts, of_prompts, strict=True)
        if not tokens
    )
    is_chat = chat and facts.has_chat_template
    return Vocabulary(
        path, facts, of_texts, PromptSet(tuple(prompts), of_prompts, is_chat), pieces, of_chats
    )


def _pieces(joined: U8, lengths: I32) -> tuple[bytes, ...]:
    content = joined.tobytes()
    ends: list[int] = np.cumsum(lengths).tolist()
    return tuple(
        content[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)
    )
