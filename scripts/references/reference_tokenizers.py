"""Texts, and small tokenizers for make_references.py, trained as those of each family."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

# Openings of books in the public domain, to train the tokenizers and to begin the prompts.
PROSE = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune,"
    " must be in want of a wife. However little known the feelings or views of such a man may be on"
    " his first entering a neighbourhood, this truth is so well fixed in the minds of the"
    " surrounding families, that he is considered as the rightful property of some one or other of"
    " their daughters. “My dear Mr. Bennet,” said his lady to him one day, “have you heard that"
    " Netherfield Park is let at last?”",
    "Call me Ishmael. Some years ago—never mind how long precisely—having little or no money in my"
    " purse, and nothing particular to interest me on shore, I thought I would sail about a little"
    " and see the watery part of the world. It is a way I have of driving off the spleen and"
    " regulating the circulation.",
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having"
    " nothing to do: once or twice she had peeped into the book her sister was reading, but it had"
    " no pictures or conversations in it, “and what is the use of a book,” thought Alice “without"
    " pictures or conversations?” So she was considering in her own mind (as well as she could, for"
    " the hot day made her feel very sleepy and stupid), whether the pleasure of making a"
    " daisy-chain would be worth the trouble of getting up and picking the daisies, when suddenly a"
    " White Rabbit with pink eyes ran close by her.",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age"
    " of foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the"
    " season of Light, it was the season of Darkness, it was the spring of hope, it was the winter"
    " of despair, we had everything before us, we had nothing before us.",
    "Four score and seven years ago our fathers brought forth on this continent, a new nation,"
    " conceived in Liberty, and dedicated to the proposition that all men are created equal.",
    "Miss Brooke had that kind of beauty which seems to be thrown into relief by poor dress.",
)

# Difficult texts for tokenizers. All in NFC: Qwen has a normalizer, llama.cpp has none.
TEXTS = (
    "The whale, said he, was white.",
    "I'll say it's they've, WE'D DON'T, rock 'n' roll; don’t",
    "In 1851 there were 12345678 words, 3.14159 on average, and 1,000,000,000 letters",
    "  two spaces,   three   and    four, trailing ",
    "tabs\tand\nnew\n\nlines\r\n  \n   indented\n",
    "naïve café Ünïcödé ß Ærø, Ελληνικά, Привет мир, עברית",
    "日本語の文章、中文句子。한국어 ทดสอบ नमस्ते १२३ ½ Ⅷ",
    "emoji 🙂🚀 👩‍👩‍👧 and a flag 🇫🇷, ™ © … — “quoted”",
    "def f(x): return x**2 + 0x1F # code_with_underscores != camelCase && /* */ <tag/>",
    " ",
    "a",
    "▁ already spaced ▁▁ Ġ",
    "<|im_start|>user\nHi <think>hm</think> there<|im_end|><|eot_id|> [INST] <s> <unk>",
)

# The splitting rules of the published tokenizers: facts of the formats, not prose.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35_SPLIT = QWEN2_SPLIT.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(
    r" ?[^\s\p{L}\p{N}]", r" ?[^\s\p{L}\p{M}\p{N}]"
)

Encode = Callable[[str], list[int]]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a small JSON file in the style of checkpoints."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def make_sentencepiece(folder: Path, vocab_size: int, controls: list[str]) -> Encode:
    """Train a tokenizer.model like Llama 2's: BPE, single digits, fallback to bytes."""
    model = io.BytesIO()
    # A writer and an iterator instead of paths, which the trainer would record in the file.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        control_symbols=controls,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.99,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "legacy": True,
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer",
            "unk_token": "<unk>",
        },
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return lambda text: [processor.bos_id(), *processor.encode(text)]


def make_bpe(
    folder: Path, n_learned: int, split: str, added: dict[str, bool], config: dict[str, Any]
) -> Encode:
    """Train a byte-level tokenizer.json like Llama 3's (if `config` has a bos_token) or Qwen's.

    n_learned: number of tokens before `added`
    added:     further tokens, and whether each is special
    """
    bos = config.get("bos_token")
    tokenizer = Tokenizer(models.BPE(ignore_merges=bos is not None))
    bytelevel = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), bytelevel]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_learned,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(PROSE, trainer)
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=special) for token, special in added.items()]
    )
    if bos is None:
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    decoder = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": special,
        }
        for token, special in added.items()
    }
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder, **config})
    return lambda text: tokenizer.encode(text).ids


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3_CHAT = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}"
    "<|end_header_id|>\n\n{{ message.content }}<|eot_id|>{% endfor %}"
)


def make_llama3_bpe(folder: Path) -> Encode:
    """Llama 3.1: numbers in groups of three, a BOS token before every text."""
    ends = ("<|begin_of_text|>", "<|end_of_text|>")
    turns = ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>")
    config = {
        "bos_token": "<|begin_of_text|>",
        "chat_template": LLAMA3_CHAT,
        "clean_up_tokenization_spaces": True,
        "eos_token": "<|eot_id|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return make_bpe(folder, 442, LLAMA3_SPLIT, dict.fromkeys(ends + turns, True), config)


def make_qwen_bpe(folder: Path, plain: tuple[str, ...] = (), split: str = QWEN2_SPLIT) -> Encode:
    """Qwen: single digits, no BOS token, fewer tokens than rows in the embedding."""
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "chat_template": CHATML,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    special = dict.fromkeys(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), True)
    added = special | dict.fromkeys(plain, False)
    return make_bpe(folder, 400, split, added, config)
