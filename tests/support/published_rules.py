"""How the published tokenizer.json of each family splits a text.

Regular expressions are spelled exactly as in the files, so that tests cover parsing as well as
meaning. If files of a family differ, each has an entry.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dynquant.vocab.pretokenizer import named

Rule = dict[str, Any]

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_SLASHED_TAIL = _TAIL.replace(r"[\r\n]*", r"[\r\n/]*")

LLAMA3_SPLIT = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
QWEN_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
O200K_SPLIT = "|".join(
    [*(f"{word}{_CONTRACTIONS}?" for word in _CASED), r"\p{N}{1,3}", _SLASHED_TAIL]
)
TEKKEN_SPLIT = "|".join([*_CASED, r"\p{N}", _SLASHED_TAIL])
KIMI_SPLIT = "|".join(
    [
        r"[\p{Han}]+",
        *(word.replace(r"\p{M}]", r"\p{M}&&[^\p{Han}]]") + f"{_CONTRACTIONS}?" for word in _CASED),
        r"\p{N}{1,3}",
        _TAIL,
    ]
)
_DEEPSEEK_3_SPLITS = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)

NFC: Rule = {"type": "NFC"}
DIGITS: Rule = {"type": "Digits", "individual_digits": True}


def _bytes(use_regex: bool) -> Rule:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split(regex: str, behavior: str = "Isolated") -> Rule:
    pattern = {"Regex": regex}
    invert = behavior == "Removed"
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def _sequence(*rules: Rule) -> Rule:
    return {"type": "Sequence", "pretokenizers": list(rules)}


@dataclass(frozen=True)
class Published:
    """The rules of a family, and their name in the GGUF.

    config: keys of its tokenizer_config.json besides the special tokens
    """

    pre_tokenizer: Rule
    pre: str
    normalizer: Rule | None = None
    ignore_merges: bool = False
    has_bos: bool = True
    config: dict[str, Any] = field(default_factory=dict[str, Any])


_CLEAN = {"clean_up_tokenization_spaces": True}
_AS_IS = {"clean_up_tokenization_spaces": False}
_NO_NORMALIZER: Rule = {"type": "Sequence", "normalizers": []}

FAMILIES = {
    "gpt-2": Published(_bytes(True), "gpt-2", has_bos=False),
    "bloom": Published(
        _sequence(_split(" ?[^(\\s|[.,!?…。，、।۔،])]+"), _bytes(False)), "bloom", config=_AS_IS
    ),
    "falcon": Published(
        _sequence(
            {"type": "Punctuation", "behavior": "Contiguous"},
            _bytes(True),
            {"type": "Digits", "individual_digits": False},
            _split("[0-9][0-9][0-9]"),
        ),
        "falcon",
        has_bos=False,
    ),
    "llama-3": Published(
        _sequence(_split(LLAMA3_SPLIT), _bytes(False)),
        "llama-bpe",
        ignore_merges=True,
        config=_CLEAN,
    ),
    "mistral-nemo": Published(
        _sequence(_split(TEKKEN_SPLIT), _bytes(False)), "tekken", ignore_merges=True, config=_AS_IS
    ),
    "qwen2": Published(
        _sequence(_split(QWEN_SPLIT), _bytes(False)), "qwen2", NFC, has_bos=False, config=_AS_IS
    ),
    "phi-4": Published(
        _sequence(_split(LLAMA3_SPLIT, "Removed"), _bytes(False)), "dbrx", config=_AS_IS
    ),
    "phi-4-mini": Published(
        _sequence(_split(O200K_SPLIT, "Removed"), _bytes(False)), "gpt-4o", config=_AS_IS
    ),
    # The letters are too many to repeat; test_vocab_shared.py has them from llama.cpp's vocabulary.
    "deepseek-v2": Published(
        _sequence(*map(_split, named("deepseek-llm").splits[:-1]), DIGITS, _bytes(False)),
        "deepseek-llm",
        _NO_NORMALIZER,
        config=_AS_IS,
    ),
    "deepseek-coder": Published(
        _sequence(
            _split(r"[\r\n]"),
            _split(r"\s?\p{L}+"),
            _split(r"\s?\p{P}+"),
            _split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"),
            DIGITS,
            _bytes(False),
        ),
        "deepseek-coder",
        _NO_NORMALIZER,
        config=_AS_IS,
    ),
    "deepseek-v3": Published(
        _sequence(*map(_split, _DEEPSEEK_3_SPLITS), _bytes(False)),
        "deepseek-v3",
        _NO_NORMALIZER,
        config=_AS_IS,
    ),
    "kimi-k2": Published(_sequence(_split(KIMI_SPLIT), _bytes(False)), "kimi-k2", config=_AS_IS),
    "glm-4": Published(
        _sequence(_split(LLAMA3_SPLIT), _bytes(False)), "chatglm-bpe", has_bos=False, config=_AS_IS
    ),
    "glm-4.5": Published(
        _sequence(_split(LLAMA3_SPLIT), _bytes(False)),
        "glm4",
        ignore_merges=True,
        has_bos=False,
        config=_AS_IS,
    ),
    "gpt-oss": Published(_sequence(_split(O200K_SPLIT), _bytes(False)), "gpt-4o", config=_AS_IS),
    "command-r": Published(_sequence(DIGITS, _bytes(True)), "smollm", NFC, config=_AS_IS),
    "olmoe": Published(_bytes(True), "gpt-2", NFC, has_bos=False, config=_AS_IS),
    "olmo-2": Published(
        _sequence(_split(LLAMA3_SPLIT, "Removed"), _bytes(False)), "dbrx", config=_AS_IS
    ),
    "granite-3": Published(_sequence(DIGITS, _bytes(True)), "starcoder", config=_CLEAN),
    "granite-4": Published(
        _sequence(_split(LLAMA3_SPLIT, "Removed"), _bytes(False)), "dbrx", config=_AS_IS
    ),
    "starcoder2": Published(_sequence(DIGITS, _bytes(True)), "starcoder", config=_CLEAN),
}
