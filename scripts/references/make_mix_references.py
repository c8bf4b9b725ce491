"""Make tests/references/mixes.json: llama-quantize's type of each tensor, by mix and model.

    pip install '.[references]'
    python scripts/references/make_mix_references.py

The types come from llama.cpp: `llama_model_quantize` of the llama-cpp-python wheel, in a dry run on
sparse GGUF files with the keys and shapes of published models. tests/support/mixes.py describes
the format of the file.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from gguf import GGUFWriter

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from mixes import REFERENCE, Shapes, packed

# fmt: off
MIXES = (
    "Q1_0", "Q2_0", "Q4_0", "Q4_1", "MXFP4_MOE", "Q5_0", "Q5_1", "IQ2_XXS", "IQ2_XS", "IQ2_S",
    "IQ2_M", "IQ1_S", "IQ1_M", "TQ1_0", "TQ2_0", "Q2_K", "Q2_K_S", "IQ3_XXS", "IQ3_S", "IQ3_M",
    "IQ3_XS", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_S",
    "Q5_K_M", "Q6_K", "Q8_0", "F16",
)
# fmt: on
"""The names of llama-quantize, except aliases and those without rules (BF16, F32, COPY)."""

_LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +(\w+), size = .*?(?:\((\w+)\))?\n")
_REFUSAL = re.compile(r"failed to quantize: (.*)")
_NEEDS = "will require an imatrix"


class Builder:
    """Collects a model's keys and tensors under the names and shapes of its GGUF file."""

    def __init__(self, architecture: str, n_layers: int, hidden: int, heads: int, kv: int) -> None:
        self.architecture, self.n_layers, self.hidden = architecture, n_layers, hidden
        self.keys: dict[str, Any] = {
            "block_count": n_layers,
            "context_length": 4096,
            "embedding_length": hidden,
            "attention.head_count": heads,
            "attention.head_count_kv": kv,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.layer_norm_epsilon": 1e-5,
        }
        self.tensors: dict[str, tuple[tuple[int, ...], str]] = {}
        self.floats: list[str] = []
        self.floating("output_norm", (hidden,))
        self.layered("attn_norm", (hidden,), "0", floating=True)

    def one(self, role: str, shape: tuple[int, ...]) -> Builder:
        """Add a tensor outside the layers."""
        self.tensors[role] = (shape, "")
        return self

    def floating(self, role: str, shape: tuple[int, ...]) -> Builder:
        """Add a tensor outside the layers that is stored in F32."""
        self.floats.append(role)
        return self.one(role, shape)

    def layered(
        self, role: str, shape: tuple[int, ...], layers: str = "", *, floating: bool = False
    ) -> Builder:
        """Add a tensor of all layers, or of some."""
        self.tensors[role] = (shape, layers or f"0-{self.n_layers - 1}")
        if floating:
            self.floats.append(role)
        return self

    def vocabulary(self, size: int, *, tied: bool = False) -> Builder:
        """Add the embedding, and an output matrix unless it is tied."""
        self.one("token_embd", (size, self.hidden))
        return self if tied else self.one("output", (size, self.hidden))

    def attention(self, q: int, kv: int, layers: str = "") -> Builder:
        """Add queries, keys, values and output of q and kv rows."""
        for role, rows in {"q": q, "k": kv, "v": kv}.items():
            self.layered(f"attn_{role}", (rows, self.hidden), layers)
        return self.layered("attn_output", (self.hidden, q))

    def ffn(self, size: int, layers: str = "", kind: str = "", experts: int = 0) -> Builder:
        """Add gate, up and down; `_exps` with the given number of experts, or `_shexp`."""
        stack = (experts,) if experts else ()
        self.layered(f"ffn_gate{kind}", (*stack, size, self.hidden), layers)
        self.layered(f"ffn_up{kind}", (*stack, size, self.hidden), layers)
        return self.layered(f"ffn_down{kind}", (*stack, self.hidden, size), layers)

    def experts(self, n: int, size: int, layers: str = "", *, used: int = 2) -> Builder:
        """Add a router and experts."""
        self.keys |= {
            "expert_count": n,
            "expert_used_count": used,
            "expert_feed_forward_length": size,
        }
        self.layered("ffn_gate_inp", (n, self.hidden), layers, floating=True)
        return self.ffn(size, layers, "_exps", n)

    def latent(self, heads: int, *, merged: bool) -> Builder:
        """Add the attention of DeepSeek-V2-Lite: rank 512, heads of 128 + 64 weights."""
        self.keys |= {
            "attention.kv_lora_rank": 512,
            "attention.key_length_mla": 192,
            "attention.value_length_mla": 128,
            "leading_dense_block_count": 1,
            "expert_shared_count": 2,
        }
        self.layered("attn_q", (heads * 192, self.hidden))
        self.layered("attn_kv_a_mqa", (576, self.hidden))
        self.layered("attn_output", (self.hidden, heads * 128))
        if merged:
            return self.layered("attn_kv_b", (heads * 256, 512))
        self.layered("attn_k_b", (heads, 512, 128))
        return self.layered("attn_v_b", (heads, 128, 512))

    def shapes(self) -> Shapes:
        """Return the collected keys and tensors."""
        return Shapes(self.architecture, self.keys, self.tensors, tuple(self.floats))


def models() -> dict[str, Shapes]:
    """Return a model of each kind that mixes distinguish, with the sizes in its config.json."""
    llama8 = Builder("llama", 32, 4096, 32, 8).vocabulary(128256).attention(4096, 1024).ffn(14336)
    llama2 = Builder("llama", 32, 4096, 32, 32).vocabulary(32000).attention(4096, 4096).ffn(11008)
    llama70 = Builder("llama", 80, 8192, 64, 8).vocabulary(128256).attention(8192, 1024).ffn(28672)
    llama65 = Builder("llama", 80, 8192, 64, 64).vocabulary(32000).attention(8192, 8192).ffn(22016)
    qwen4 = Builder("qwen3", 36, 2560, 32, 8).vocabulary(151936, tied=True)
    qwen72 = Builder("qwen2", 80, 8192, 64, 8).vocabulary(152064).attention(8192, 1024).ffn(29568)
    small = Builder("qwen2", 24, 896, 14, 2).vocabulary(151936, tied=True).attention(896, 128)
    mixtral = Builder("llama", 32, 4096, 32, 8).vocabulary(32000).attention(4096, 1024)
    qwen30 = Builder("qwen3moe", 48, 2048, 32, 4).vocabulary(151936).attention(4096, 512)
    qwen15 = Builder("qwen2moe", 24, 2048, 16, 16).vocabulary(151936).attention(2048, 2048)
    qwen15.keys["expert_shared_feed_forward_length"] = 5632
    qwen15.layered("ffn_gate_inp_shexp", (2048,), floating=True)
    phi = Builder("phi3", 32, 3072, 32, 32).vocabulary(32064).layered("attn_qkv", (9216, 3072))
    phi.keys["rope.dimension_count"] = 96
    phi.layered("attn_output", (3072, 3072)).layered("ffn_up", (16384, 3072))
    gemma = Builder("gemma2", 26, 2304, 8, 4).vocabulary(256000, tied=True).attention(2048, 1024)
    gemma.keys["attention.sliding_window"] = 4096
    gpt_oss = Builder("gpt-oss", 24, 2880, 64, 8).vocabulary(201088).attention(4096, 512)
    gpt_oss.keys["attention.sliding_window"] = 128
    return {
        "Llama-3.1-8B": llama8.shapes(),
        "Llama-2-7B": llama2.shapes(),
        "Llama-3.1-70B": llama70.shapes(),
        "Llama-65B": llama65.shapes(),
        "Qwen3-4B": qwen4.attention(4096, 1024).ffn(9728).shapes(),
        "Qwen2.5-72B": qwen72.shapes(),
        "Qwen2.5-0.5B": small.ffn(4864).shapes(),
        "Mixtral-8x7B": mixtral.experts(8, 14336).shapes(),
        "Qwen3-30B-A3B": qwen30.experts(128, 768, used=8).shapes(),
        "Qwen1.5-MoE-A2.7B": qwen15.experts(60, 1408, used=4).ffn(5632, "", "_shexp").shapes(),
        "DeepSeek-V2-Lite": _deepseek_v2_lite(merged=False).shapes(),
        "DeepSeek-V2-Lite, attn_kv_b": _deepseek_v2_lite(merged=True).shapes(),
        "Qwen3-Next-80B-A3B": _qwen3_next().shapes(),
        "gpt-oss-20b": gpt_oss.experts(32, 2880, used=4).shapes(),
        "Phi-3-mini": phi.layered("ffn_down", (3072, 8192)).shapes(),
        "gemma-2-2b": gemma.ffn(9216).shapes(),
        "Falcon-7B": _falcon(32, 4544, 71, 1).vocabulary(65024).shapes(),
        "Falcon-40B": _falcon(60, 8192, 128, 8).vocabulary(65024).shapes(),
    }


def _deepseek_v2_lite(*, merged: bool) -> Builder:
    built = Builder("deepseek2", 27, 2048, 16, 16 if merged else 1).vocabulary(102400)
    built.latent(16, merged=merged).ffn(10944, "0").experts(64, 1408, "1-26", used=6)
    return built.ffn(2816, "1-26", "_shexp")


def _qwen3_next() -> Builder:
    built = Builder("qwen3next", 48, 2048, 16, 2).vocabulary(151936)
    built.keys |= {
        "expert_shared_feed_forward_length": 512,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 4096,
        "ssm.state_size": 128,
        "ssm.time_step_rank": 32,
        "ssm.group_count": 16,
    }
    whole = [i for i in range(48) if i % 4 == 3]
    linear = ",".join(str(i) for i in range(48) if i not in whole)
    built.attention(8192, 512, ",".join(map(str, whole)))
    built.layered("attn_output", (2048, 4096), ",".join(map(str, whole)))
    built.layered("attn_qkv", (8192, 2048), linear).layered("attn_gate", (4096, 2048), linear)
    built.layered("ssm_ba", (64, 2048), linear).layered("ssm_out", (2048, 4096), linear)
    built.layered("ssm_conv1d", (8192, 4), linear, floating=True)
    return built.experts(512, 512, used=10).ffn(512, "", "_shexp")


def _falcon(n_layers: int, hidden: int, heads: int, kv: int) -> Builder:
    built = Builder("falcon", n_layers, hidden, heads, kv)
    built.layered("attn_qkv", ((heads + 2 * kv) * 64, hidden))
    built.layered("attn_output", (hidden, hidden)).layered("ffn_up", (4 * hidden, hidden))
    return built.layered("ffn_down", (hidden, 4 * hidden))


def write_hollow(model: Shapes, path: Path) -> None:
    """Write a sparse GGUF of F16 and F32 tensors."""
    writer = GGUFWriter(path, model.architecture)
    for key, value in model.keys.items():
        name = f"{model.architecture}.{key}"
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(name, value)
    n_bytes = 0
    for name, shape, floating in model.named():
        dtype = np.dtype(np.float32 if floating else np.float16)
        size = prod(shape) * dtype.itemsize
        writer.add_tensor_info(name, shape, dtype, size)
        n_bytes += -(-size // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 32 + n_bytes)


def ask(path: Path, mix: str, *, importance: bool) -> tuple[dict[str, str] | str, bool]:
    """Return llama.cpp's types or its error, and whether it needs an imatrix."""
    log: list[str] = []

    @llama_cpp.llama_log_callback
    def listen(_level: int, text: bytes, _user: Any) -> None:
        log.append(text.decode())

    llama_cpp.llama_log_set(listen, ctypes.c_void_p())
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{mix}")
    params.dry_run = True
    one = (ctypes.c_float * 1)(1.0)
    entries = (llama_cpp.llama_model_imatrix_data * 2)()
    entries[0].name, entries[0].data, entries[0].size = b"any", one, 1
    if importance:
        params.imatrix = entries
    status = llama_cpp.llama_model_quantize(str(path).encode(), b"unused", ctypes.byref(params))
    text = "".join(log)
    if refusal := _REFUSAL.search(text):
        return refusal[1], False
    if status:
        raise RuntimeError(f"{path.name}, {mix}: {text[-500:]}")
    types = {name: (new or old).upper() for name, old, new in _LINE.findall(text)}
    return types, _NEEDS in text


def main() -> None:
    """Run llama.cpp for each model and mix, and write the file."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models().items():
            path = Path(folder) / "hollow.gguf"
            path.unlink(missing_ok=True)
            write_hollow(model, path)
            types: dict[str, Any] = {}
            needs: list[str] = []
            for mix in MIXES:
                answers = [ask(path, mix, importance=importance) for importance in (False, True)]
                entries = [a if isinstance(a, str) else _checked(model, a) for a, _ in answers]
                types[mix] = entries[0] if entries[0] == entries[1] else entries
                if answers[0][1]:
                    needs.append(mix)
            found[name] = {**asdict(model), "needs_imatrix": needs, "types": types}
            print(name, len(list(model.named())), "tensors")
    made_by = f"llama-cpp-python {version('llama-cpp-python')}"
    REFERENCE.write_text(_text({"made_by": made_by, "models": found}) + "\n")
    print(REFERENCE, REFERENCE.stat().st_size, "bytes")


def _checked(model: Shapes, types: dict[str, str]) -> dict[str, str]:
    """Return the entry; check that the log has every tensor, and that F32 tensors stay F32."""
    floats = {name for name, _, floating in model.named() if floating}
    missing = {name for name, _, _ in model.named()} ^ types.keys()
    changed = {name for name in floats & types.keys() if types[name] != "F32"}
    if missing or changed:
        raise RuntimeError(f"{model.architecture}: missing {missing}, no longer F32 {changed}")
    return packed({name: type_ for name, type_ in types.items() if name not in floats})


def _text(value: Any, depth: int = 0) -> str:
    """Return JSON with a line per tensor and mix, so that versions can be compared."""
    if depth == 4 or not isinstance(value, dict):
        return json.dumps(value)
    inner = ",\n".join(
        f"{' ' * (depth + 1)}{json.dumps(key)}: {_text(one, depth + 1)}"
        for key, one in value.items()
    )
    return f"{{\n{inner}\n{' ' * depth}}}"


if __name__ == "__main__":
    main()
