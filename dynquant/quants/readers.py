"""Which programs read which types: a table of readers of GGUF, from their sources.

docs/reference/readers.md is generated from this table. To update a reader, read the named file in
the new version, and change `types`, `version` and `date`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dynquant.errors import EncodeError
from dynquant.quants.table import ALL, KEPT, QuantType


@dataclass(frozen=True)
class Reader:
    """A program that loads GGUF files.

    version: the release or commit whose source was read
    date:    the day of that commit; for packages and closed programs, the day it was checked
    source:  repository and file that list the types
    types:   the types of weights that it reads
    of:      the types that it reads instead, by architecture, where that has a separate loader
    architectures: those that it loads, where its source lists them; empty if it does not
    since:   the first version with a type, for types that later versions brought: `b2221`, or
             its pull request
    limits:  what else it requires of a file
    adapters: where it loads LoRA adapters in GGUF; "" if it does not
    """

    name: str
    version: str
    date: str
    source: str
    types: frozenset[str]
    of: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    architectures: frozenset[str] = frozenset()
    since: Mapping[str, str] = field(default_factory=dict[str, str])
    limits: str = ""
    adapters: str = ""

    def reads(self, type_name: str, architecture: str = "") -> bool:
        """Whether it reads a type in a file of an architecture; "" is any without an exception."""
        return type_name in self.of.get(architecture, self.types)

    def loads(self, architecture: str) -> bool:
        """Whether its source lists an architecture, or lists none."""
        return not self.architectures or architecture in self.architectures

    def exceptions(self, type_name: str) -> tuple[str, ...]:
        """Return the architectures for which `reads` is not the same as for all others."""
        usual = type_name in self.types
        return tuple(a for a, types in self.of.items() if (type_name in types) != usual)

    def ever_reads(self, type_name: str) -> bool:
        """Whether it reads a type for some architecture."""
        return any(type_name in types for types in (self.types, *self.of.values()))


def _types(names: str) -> frozenset[str]:
    return frozenset(names.split())


_EVERY = frozenset((*ALL, *KEPT))
_FLOATS = _types("F32 F16 BF16")
_LEGACY = _types("Q4_0 Q4_1 Q5_0 Q5_1 Q8_0")
_K = _types("Q2_K Q3_K Q4_K Q5_K Q6_K")
_IQ = _types("IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS")
_BASIC = _FLOATS | _LEGACY | _K

# llama.cpp's build number is the number of commits up to the one that brought a type.
_SINCE = {
    "BF16": "b2808",
    "IQ2_XXS": "b1792",
    "IQ2_XS": "b1827",
    "IQ3_XXS": "b2015",
    "IQ1_S": "b2172",
    "IQ4_NL": "b2221",
    "IQ3_S": "b2253",
    "IQ2_S": "b2275",
    "IQ4_XS": "b2281",
    "IQ1_M": "b2539",
    "TQ1_0": "b3672",
    "TQ2_0": "b3672",
    "MXFP4": "pull request 15091",
    "NVFP4": "pull request 19769",
    "Q1_0": "pull request 21273",
    "Q2_0": "pull request 24448",
}

# transformers 5 has a second loader, for these architectures only.
_TRANSFORMERS_OWN = _FLOATS | _types("Q4_0 Q4_1 Q8_0") | _K | _IQ

_READERS = (
    Reader(
        "llama.cpp",
        "0c1e57098",
        "2026-10-01",
        "ggml-org/llama.cpp: ggml/include/ggml.h, ggml/src/gguf.cpp",
        _EVERY,
        since=_SINCE,
        adapters="src/llama-adapter.cpp",
    ),
    Reader(
        "Ollama",
        "0.33.0-rc2 (fb3076099)",
        "2026-08-21",
        "ollama/ollama: fs/ggml/type.go, fs/ggml/ggml.go",
        _EVERY - _types("TQ1_0 TQ2_0 Q2_0"),
        limits="its own reader, before llama.cpp's, has to know the size of every type",
        adapters="docs/modelfile.mdx, ADAPTER",
    ),
    Reader(
        "LM Studio",
        "the llama.cpp engine that is installed in it",
        "2026-11-29",
        "closed source; its engine is llama.cpp",
        _EVERY,
        limits="types newer than its engine are not read; update the engine",
    ),
    Reader(
        "vLLM",
        "vllm-gguf-plugin 0.0.5",
        "2026-08-10",
        "vllm-project/vllm-gguf-plugin: vllm_gguf_plugin/quantization/utils.py",
        _BASIC | _IQ,
        limits="the gate and up matrices of experts need the same type",
    ),
    Reader(
        "mistral.rs",
        "0.9.2 (9e922623f), 0.9.5",
        "2026-08-22",
        "EricLBuehler/mistral.rs: mistralrs-quant/src/gguf/weight_source.rs, archive.rs;"
        " docs/src/content/docs/reference/gguf-support.md",
        _BASIC,
        of={"gpt-oss": _BASIC | {"MXFP4"}},
        architectures=_types(
            "llama mistral3 gemma gemma2 gemma3 phi2 phi3 phimoe qwen2 qwen3 qwen3moe qwen3next"
            " qwen35 qwen35moe starcoder2 deepseek2 glm4 glm4moe smollm3 granite granitemoe"
            " granitehybrid gpt-oss hunyuan-dense hunyuan-moe lfm2 lfm2moe"
        ),
        limits="all shards have to be named",
    ),
    Reader(
        "candle",
        "0.11.0 (2a13b0f3f)",
        "2026-08-14",
        "huggingface/candle: candle-core/src/quantized/mod.rs;"
        " candle-transformers/src/models/quantized_*.rs",
        _BASIC,
        architectures=_types(
            "llama gemma gemma2 gemma3 gemma-embedding glm4 lfm2 phi2 phi3 qwen2 qwen3 qwen3moe"
            " smollm3"
        ),
        limits="a program for each architecture",
    ),
    Reader(
        "transformers",
        "5.24.0 with gguf 0.19.0",
        "2026-11-29",
        "huggingface/transformers: modeling_gguf_pytorch_utils.py, integrations/gguf/dequant.py;"
        " ggml-org/llama.cpp: gguf-py/gguf/quants.py",
        _BASIC | _IQ | _types("TQ1_0 TQ2_0 MXFP4 NVFP4"),
        of=dict.fromkeys(("qwen35", "qwen35moe", "lfm2"), _TRANSFORMERS_OWN),
        architectures=_types(
            "llama qwen2 qwen2moe qwen3 qwen3moe qwen35 qwen35moe gpt-oss lfm2 falcon phi3 bloom t5"
            " t5encoder stablelm gpt2 starcoder2 mamba nemotron gemma2 gemma3 gemma4 deci"
            " minimax-m2"
        ),
        limits="of shards, only the given one is read, without an error",
    ),
    Reader(
        "ik_llama.cpp",
        "8337e4cd3",
        "2026-08-15",
        "ikawrakow/ik_llama.cpp: ggml/include/ggml.h, ggml/src/ggml.c",
        _EVERY - _types("TQ1_0 TQ2_0 NVFP4 Q2_0"),
        limits="Q1_0 is named Q1_0_G128 there",
        adapters="src/llama.cpp, llama_lora_adapter_init",
    ),
)

READERS: dict[str, Reader] = {reader.name: reader for reader in _READERS}
"""The readers by name, those built on llama.cpp's engine first."""


def reader_name(name: str) -> str:
    """Return the name of a reader; raise EncodeError naming the nearest one if it is not known."""
    if name in READERS:
        return name
    by_lower = {_letters(known): known for known in READERS}
    near = difflib.get_close_matches(_letters(name), by_lower, n=1, cutoff=0.5)
    hint = f"; did you mean {by_lower[near[0]]}?" if near else ""
    raise EncodeError(f"{name!r} is not a reader{hint} (known: {', '.join(READERS)})")


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def unread(
    types: Iterable[str], architecture: str, *, is_adapter: bool = False
) -> dict[str, tuple[str, ...]]:
    """Return for every reader what it does not read: types, and `architecture NAME`.

    is_adapter: whether the file is a LoRA adapter, which most readers do not load at all
    """
    given = tuple(dict.fromkeys(types))
    return {
        name: (
            *(t for t in given if not reader.reads(t, architecture)),
            *(() if reader.loads(architecture) else (f"architecture {architecture}",)),
            *(("LoRA adapters in GGUF",) if is_adapter and not reader.adapters else ()),
        )
        for name, reader in READERS.items()
    }


def readers_text(types: Iterable[str], architecture: str, *, is_adapter: bool = False) -> str:
    """Return which readers read all types, and which do not because of which types.

    For example `llama.cpp, Ollama; not mistral.rs, candle (IQ4_NL)`.

    is_adapter: whether the file is a LoRA adapter
    """
    missing = unread(types, architecture, is_adapter=is_adapter)
    reading = ", ".join(name for name, absent in missing.items() if not absent)
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, absent in missing.items():
        if absent:
            groups.setdefault(absent, []).append(name)
    others = (f"{', '.join(names)} ({', '.join(absent)})" for absent, names in groups.items())
    return "; ".join((reading or "none of those known", *(f"not {other}" for other in others)))


def read_by_all(type_: QuantType, readers: Iterable[str], architecture: str = "") -> bool:
    """Whether all of the named readers read a type."""
    return all(READERS[name].reads(type_.name, architecture) for name in readers)


def similar_read(wanted: QuantType, readers: Sequence[str], architecture: str = "") -> QuantType:
    """Return the type nearest in size that all readers read: with as many bits, or a few more."""
    larger = [t for t in ALL.values() if t.bpw >= wanted.bpw]
    return min(
        (t for t in larger if read_by_all(t, readers, architecture)),
        key=lambda t: t.bpw,
        default=ALL["F32"],
    )


def fallback_read(
    wanted: QuantType, n_per_row: int, readers: Sequence[str], architecture: str
) -> QuantType | None:
    """Return the smallest type that may replace one in rows of n_per_row, and all readers read.

    It precedes the wanted type in the table, so that it has no larger error at equal bits: Q4_1
    for Q4_K, and not Q4_0.
    """
    names = list(ALL)
    better = names[: names.index(wanted.name)] if wanted.name in ALL else []
    fitting = [
        t
        for t in (ALL[name] for name in better)
        if t.bpw >= wanted.bpw
        and not n_per_row % t.block_size
        and read_by_all(t, readers, architecture)
    ]
    return min(fitting, key=lambda t: t.bpw, default=None)
