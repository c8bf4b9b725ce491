"""llama.cpp's pre-tokenizers, with the rules that tokenizers state for them.

A pre-tokenizer is a sequence of regexes. Each splits all pieces left by the previous ones into its
matches and the text between them. `splits` are the regexes in the spelling of the models'
tokenizer.json; llama.cpp implements equivalent ones. Sources: for names, flags and regexes
llama_vocab::impl::load and llm_tokenizer_bpe in llama.cpp's src/llama-vocab.cpp (October 2026); for
the order and spelling of the splits the tokenizer.json of the model that each is named after.
"""

from __future__ import annotations

from dataclasses import dataclass

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"

# The regex of ByteLevel with `use_regex`.
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# In the tokenizers package: Digits with and without `individual_digits`, and Punctuation.
EACH_DIGIT = r"\p{N}"
DIGITS = r"\p{N}+"
PUNCTUATION_RUNS = "[[:punctuation:]]+"

_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = rf"{CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS_AND_SPACE}"
_QWEN = rf"{CONTRACTIONS}|{_WORD}|\p{{N}}|{_SIGNS_AND_SPACE}"

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE_WORD = r"[^\r\n\p{L}\p{N}]?"
_SIGNS_SLASH_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN35 = (
    rf"{CONTRACTIONS}|{_BEFORE_WORD}[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_EXAONE = (
    rf"{CONTRACTIONS}|{_BEFORE_WORD}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_TEKKEN = (
    rf"{_BEFORE_WORD}{_UPPER}*{_LOWER}+|{_BEFORE_WORD}{_UPPER}+{_LOWER}*|\p{{N}}"
    rf"|{_SIGNS_SLASH_AND_SPACE}"
)
_O200K = (
    rf"{_BEFORE_WORD}{_UPPER}*{_LOWER}+{CONTRACTIONS}?|{_BEFORE_WORD}{_UPPER}+{_LOWER}*{CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_SIGNS_SLASH_AND_SPACE}"
)

_UPPER_NOT_HAN = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER_NOT_HAN = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_KIMI = (
    rf"[\p{{Han}}]+|{_BEFORE_WORD}{_UPPER_NOT_HAN}*{_LOWER_NOT_HAN}+{CONTRACTIONS}?"
    rf"|{_BEFORE_WORD}{_UPPER_NOT_HAN}+{_LOWER_NOT_HAN}*{CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_SIGNS_AND_SPACE}"
)

# Escaped, because many letters look alike.
_CJK_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CJK_AND_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LETTERS = (
    "A-Za-z"
    "\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5"
    "\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3"
    "\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115"
    "\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_SIGNS = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
_DEEPSEEK_3_WORD = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
)
_DEEPSEEK_3 = rf"{_DEEPSEEK_3_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPARK = rf"{_DEEPSEEK_3_WORD}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class PreType:
    """A pre-tokenizer's name in llama.cpp, its rules, and the settings that the name implies.

    ignore_merges: a piece that is a token stays whole, even if the merges do not produce it
    clean_spaces:  detokenized text loses the space before punctuation
    expects_bos:   llama.cpp assumes a BOS token if the file names none
    """

    name: str
    splits: tuple[str, ...]
    ignore_merges: bool = False
    clean_spaces: bool = True
    expects_bos: bool = True


# One of several names with the same rules and flags is listed (gpt-2 for mpt, olmo, phi-2 …;
# starcoder for refact; smollm for command-r). Among names that differ in flags, the first is used
# if the tokenizer does not state them.
PRE_TYPES = (
    PreType("gpt-2", (GPT_2,)),
    PreType("starcoder", (EACH_DIGIT, GPT_2)),
    PreType("smollm", (EACH_DIGIT, GPT_2), clean_spaces=False),
    PreType("bloom", (" ?[^(\\s|[.,!?…。，、।۔،])]+",)),
    PreType("falcon", (PUNCTUATION_RUNS, GPT_2, DIGITS, "[0-9][0-9][0-9]")),
    PreType("llama-bpe", (_CL100K,), ignore_merges=True),
    PreType("glm4", (_CL100K,), ignore_merges=True, expects_bos=False),
    PreType("dbrx", (_CL100K,)),
    PreType("chatglm-bpe", (_CL100K,), expects_bos=False),
    PreType("qwen2", (_QWEN,), clean_spaces=False),
    PreType("qwen35", (_QWEN35,), clean_spaces=False),
    PreType("laguna", (r"[^\n]+|[\n]+", _QWEN), clean_spaces=False),
    PreType("exaone-moe", (_EXAONE,)),
    PreType("tekken", (_TEKKEN,), ignore_merges=True, clean_spaces=False),
    PreType("gpt-4o", (_O200K,), clean_spaces=False),
    PreType("tiny_aya", (r"\d{1,3}(?=(?:\d{3})*\b)", _O200K), clean_spaces=False),
    PreType("kimi-k2", (_KIMI,), clean_spaces=False),
    PreType(
        "deepseek-llm",
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            rf"\s?[{_DEEPSEEK_SIGNS}]+",
            r"\s+$",
            _CJK_AND_HANGUL,
            EACH_DIGIT,
        ),
        clean_spaces=False,
    ),
    PreType(
        "deepseek-coder",
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_AND_HANGUL, EACH_DIGIT),
        clean_spaces=False,
    ),
    PreType("deepseek-v3", (r"\p{N}{1,3}", _CJK_AND_KANA, _DEEPSEEK_3), clean_spaces=False),
    PreType("spark2_5", (r"\p{N}{1,3}", _CJK_AND_KANA, _SPARK, EACH_DIGIT), clean_spaces=False),
    PreType(
        "bailingmoe",
        (
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
            r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ),
        clean_spaces=False,
    ),
    PreType(
        "seed-coder",
        (
            rf"{CONTRACTIONS}|{_WORD}|\p{{N}}{{1}}"
            r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        clean_spaces=False,
    ),
    PreType(
        "minicpm5",
        (r"\p{N}{1,3}", rf"{CONTRACTIONS}|{_WORD}|\p{{N}}+|{_SIGNS_AND_SPACE}"),
        ignore_merges=True,
    ),
)

# All names that llama.cpp accepts for a byte-level vocabulary: the values of `--pre`.
_NAMES = """
    a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe command-r
    dbrx deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 exaone exaone-moe exaone4 f2llmv2
    falcon falcon-h1 falcon3 gigachat glm4 glm5 gpt-2 gpt-4o gpt3-finnish granite-docling
    granite-embed-multi-97m grok-2 hunyuan hunyuan-dense hy_v4 jais jais-2 jina-de jina-es
    jina-v1-en jina-v2-code jina-v2-de jina-v2-es jina-v5-nano joyai-llm kanana2 kimi-k2 kormo
    laguna lfm2 llada-moe llama-bpe llama-v3 llama3 llama4 megrez mellum mellum2 midm-2.0
    minerva-7b minicpm5 minimax-m2 modern-bert mpt olmo phi-2 pixtral poro-chat qwen2 qwen35
    refact roberta-bpe seed-coder smaug-bpe smollm solar-open spark2_5 stablelm2 starcoder
    superbpe talkie tekken tiny_aya trillion ufakzeka viking youtu
"""
NAMES = tuple(_NAMES.split())

# The splits of transformers' tokenizer classes, for models without a tokenizer.json.
CLASS_SPLITS = {
    "GPT2Tokenizer": (GPT_2,),
    "CodeGenTokenizer": (GPT_2,),
    "Qwen2Tokenizer": (_QWEN,),
    "Qwen3_5Tokenizer": (_QWEN35,),
}

# The tokenizer class of models that do not state it, by model_type.
MODEL_CLASSES = {
    "gpt2": "GPT2Tokenizer",
    "codegen": "CodeGenTokenizer",
    "phi": "CodeGenTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen2_moe": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "qwen3_moe": "Qwen2Tokenizer",
}

# The tokenizer class of models that may state another; transformers does not use that one.
CORRECTED_CLASSES: dict[str, str] = dict.fromkeys(
    ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), "Qwen3_5Tokenizer"
)
