"""Gemma 4's tokenizer model: merges as in byte-level BPE, spelled and with bytes as SentencePiece.

A text is not split into words, so tokens may span several. llama.cpp splits it at line ends, and a
run of line ends that is a token stays whole. Sources: llm_tokenizer_bpe and llama_vocab::impl::load
in llama.cpp's src/llama-vocab.cpp; the tokenizers package.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from gguf import TokenType
from gguf.constants import Keys as Gguf
from tokenizers import models

from dynquant.errors import VocabError
from dynquant.keys import Keys, boolean, f32s, i32s, string, strings
from dynquant.vocab.bpe import (
    Merge,
    contradictions,
    read_bpe_model,
    unknown_parts,
    unsupported_settings,
)
from dynquant.vocab.files import AddedToken, TokenizerFiles, as_list, some
from dynquant.vocab.loading import GEMMA4_SHOWN
from dynquant.vocab.rules import GEMMA4, SPACES, SPANNING, check_rules, steps_of
from dynquant.vocab.special import Special, read_special
from dynquant.vocab.spm import BYTE, missing_bytes, own_rules, prepared
from dynquant.vocab.templates import chat_template_keys
from dynquant.vocab.tokens import ADDED_SCORE, SPACE, Token, added_type, lay_out

_MODEL_TYPES = re.compile(r"gemma4(_\w+)?")
SUPPRESSED = "tokenizer.ggml.suppress_tokens"
"""Tokens that llama.cpp never generates."""


def is_gemma4(files: TokenizerFiles) -> bool:
    """Return whether llama.cpp has this tokenizer model for the model, a Gemma 4."""
    kinds = (config.get("model_type") for config in files.configs)
    return any(isinstance(kind, str) and _MODEL_TYPES.fullmatch(kind) for kind in kinds)


def read_gemma4(files: TokenizerFiles) -> Keys:
    """Return the keys of a tokenizer.json with merges and byte fallback, as llama.cpp's Gemma 4.

    Raises VocabError if the file is damaged or contradictory, if it has rules that llama.cpp does
    not have, or if no file names a first token, which llama.cpp always adds.
    """
    path = files.folder / "tokenizer.json"
    vocab, merges = read_bpe_model(files)
    _check_steps(path, files, merges)
    VocabError.raise_any(
        [
            *contradictions(path, vocab, files),
            *unknown_parts(path, vocab, merges),
            *unsupported_settings(path, files.model),
        ]
    )
    VocabError.raise_any(_unlike(path, files, vocab, merges))
    _report_line_ends(path, files, vocab, merges)
    laid = {i: Token(text, _type(text, files), ADDED_SCORE) for text, i in vocab.items()}
    # Runs of spaces are listed as added tokens too, in a spelling that no text has.
    merged = {a + b for a, b in merges if SPACE in a + b}
    laid |= {
        i: prepared(Token(token.text, _added_type(token), ADDED_SCORE))
        for i, token in files.added_tokens.items()
        if token.special or token.text not in merged
    }
    tokens = lay_out(files.folder, laid, files.vocab_size)
    special = read_special(files, tokens)
    _add_first(files, special)
    return {
        Gguf.Tokenizer.MODEL: string("gemma4"),
        Gguf.Tokenizer.LIST: strings([token.text for token in tokens]),
        Gguf.Tokenizer.SCORES: f32s([token.score for token in tokens]),
        Gguf.Tokenizer.TOKEN_TYPE: i32s([int(token.type) for token in tokens]),
        Gguf.Tokenizer.MERGES: strings([f"{a} {b}" for a, b in merges]),
        **special.keys(),
        Gguf.Tokenizer.ADD_PREFIX: boolean(False),
        **_suppressed(files, len(tokens)),
        **chat_template_keys(files),
    }


def _type(text: str, files: TokenizerFiles) -> TokenType:
    if BYTE.fullmatch(text):
        return TokenType.BYTE
    return TokenType.UNKNOWN if text == files.model.get("unk_token") else TokenType.NORMAL


def _added_type(token: AddedToken) -> TokenType:
    """Return the type of an added token; those of tool calls stay visible in answers."""
    return TokenType.USER_DEFINED if token.text in GEMMA4_SHOWN else added_type(token)


def _check_steps(path: Path, files: TokenizerFiles, merges: Sequence[Merge]) -> None:
    name = own_rules(files)
    kept = f"the output has the rules of transformers' {name}, which ignores it" if name else ""
    splits = steps_of(files, "pre_tokenizer")
    facts: set[str] = set()
    if not any(step.get("type") == "Replace" for step in steps_of(files, "normalizer")):
        facts.add(SPACES)
    if splits and any(SPACE in (a + b)[1:] for a, b in merges):
        facts.add(SPANNING)
    check_rules(path, files, GEMMA4, frozenset(facts), kept=kept)
    if SPACES in facts and not name:
        raise VocabError(
            f"{path}: the normalizer does not replace spaces by {SPACE}, as llama.cpp's"
            f" {GEMMA4.name} does; this tokenizer cannot be converted"
        )


def _unlike(
    path: Path, files: TokenizerFiles, vocab: Mapping[str, int], merges: Sequence[Merge]
) -> Iterator[str]:
    """Yield a message for each property of the model that llama.cpp's tokenizer does not have."""
    start, end = f"{path}: ", "; this tokenizer cannot be converted"
    if spaced := [a + b for a, b in merges if " " in a + b]:
        yield f"{start}merges with spaces in their parts ({some(spaced)}); llama.cpp has none{end}"
    if missing := missing_bytes(vocab):
        yield (
            f"{start}no tokens for {len(missing)} of the 256 bytes, which llama.cpp falls back"
            f" to{end}"
        )
    if files.model.get("ignore_merges") is not True:
        return
    if whole := _unreached(vocab, merges, (t for t in vocab if not BYTE.fullmatch(t))):
        yield (
            f"{start}ignore_merges is true, but llama.cpp's {GEMMA4.name} has no such setting,"
            f" which changes the result for {len(whole)} tokens that the merges do not produce"
            f" ({some(whole)}){end}"
        )


def _report_line_ends(
    path: Path, files: TokenizerFiles, vocab: Mapping[str, int], merges: Sequence[Merge]
) -> None:
    """Warn of tokens with line ends that llama.cpp, which splits there, finds in other texts."""
    added = {token.text for token in files.added_tokens.values()}
    plain = [text for text in vocab if "\n" in text and text not in added]
    mixed = [text for text in plain if text.strip("\n")]
    if mixed:
        files.warn(
            f"{path}: tokens with a line end beside other characters ({some(mixed)}): llama.cpp"
            " splits a text at line ends, and never finds them"
        )
    # Of a run only merges of shorter runs can be a part, which are much fewer.
    short = {text: i for text, i in vocab.items() if not text.strip("\n")}
    doubled = [(a, b) for a, b in merges if a in short and b in short]
    runs = _unreached(short, doubled, (text for text in plain if text in short))
    if runs:
        files.warn(
            f"{path}: tokens of line ends that the merges do not produce ({some(runs)}): llama.cpp"
            " finds them nevertheless"
        )


def _unreached(
    vocab: Mapping[str, int], merges: Sequence[Merge], texts: Iterable[str]
) -> list[str]:
    """Return those of the texts that the merges do not produce."""
    bpe = models.BPE(dict(vocab), list(merges))
    return [text for text in texts if [t.value for t in bpe.tokenize(text)] != [text]]


def _add_first(files: TokenizerFiles, special: Special) -> None:
    """Record that the first token is added, as llama.cpp does whatever the key states."""
    if "bos" not in special.ids:
        raise VocabError(
            f"{files.folder}: no file names the bos token, which llama.cpp adds before every text"
            " of a Gemma 4; name it in tokenizer_config.json"
        )
    if files.tokenizer_config.get("add_bos_token") is False:
        files.warn(
            f"{files.folder / 'tokenizer_config.json'}: add_bos_token is false, but llama.cpp"
            " always adds the first token of a Gemma 4"
        )
    special.add["bos"] = True


def _suppressed(files: TokenizerFiles, n_tokens: int) -> Keys:
    """Return the key of the tokens that generation_config.json forbids to generate."""
    name = "generation_config.json"
    listed = as_list(files.read(name).get("suppress_tokens") or [], str(files.folder / name))
    ids = [i for i in listed if type(i) is int and 0 <= i < n_tokens]
    return {SUPPRESSED: i32s(ids)} if ids else {}
