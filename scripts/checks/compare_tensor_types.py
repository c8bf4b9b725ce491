"""Compare what llama-quantize makes of lists of PATTERN=TYPE with what dynquant takes them for.

On models of a few small matrices: lists that `dynquant recipe export` writes, which have to give
every tensor its type, and random ones that `dynquant recipe import` reads, with rows that no block
of 256 divides among them. The other side is `llama_model_quantize` of the llama-cpp-python wheel
(to be installed by hand), whose regular expressions are std::regex. Prints what differs, and fails.

    python scripts/checks/compare_tensor_types.py [--rounds N]
"""

from __future__ import annotations

import argparse
import ctypes
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from dynquant.arch.base import ModelTensor
from dynquant.errors import RecipeError
from dynquant.interchange.items import Base
from dynquant.interchange.patterns import Header
from dynquant.interchange.tensor_types import recipe_of_tensor_types, tensor_types
from dynquant.quants.table import ALL
from dynquant.recipe.loader import parse_recipe
from dynquant.recipe.match import assign
from dynquant.recipe.protection import protection

LAYERS, EXPERTS = 12, 4
TYPES = ("Q4_K", "Q6_K", "Q8_0", "Q5_0", "Q4_0", "F16", "BF16", "F32", "Q2_K", "TQ1_0")
PATTERNS = (
    "ffn_down",
    r"attn_(q_a|q_b)\.weight",
    r"blk\.(0|1|[3-5])\.",
    r"^blk\.[0-2]\.ffn_(gate|up)\.weight$",
    r"blk\.1[01]\..*_exps",
    r"\.ffn_.*_shexp\.weight",
    r"output\.weight",
    r"^output\.weight$",
    r"blk\.\d+\.attn_k_b\.weight",
    r"blk\.[0-9]+\.attn_v_b",
    r"attn_norm\.weight",
    r"Blk\.3\.FFN_GATE_exps",
    "blk.5.attn_output.weight",
    "exps$",
    r"blk\.([2-9]|1[0-9])\.ffn_down_exps\.weight$",
    r"(?!blk)output",
    ".*kv_a.*",
)


def shapes() -> dict[str, tuple[int, ...]]:
    """Return a DeepSeek of small matrices, with names that lists have trouble with."""
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (512, 256),
        "per_layer_token_embd.weight": (8, 256),
        "output_norm.weight": (256,),
        "output.weight": (512, 256),
        "blk.0.Odd role=x.weight": (8, 256),
        "blk.3.one_row.weight": (1, 256),
    }
    for i in range(LAYERS):
        roles = ("attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_output")
        found |= {f"blk.{i}.{role}.weight": (256, 256) for role in roles}
        found |= {f"blk.{i}.{norm}.weight": (256,) for norm in ("attn_norm", "ffn_norm")}
        found[f"blk.{i}.attn_k_b.weight"] = (EXPERTS, 256, 96)
        found[f"blk.{i}.attn_v_b.weight"] = (EXPERTS, 256, 256)
        if i < 3:
            found |= {f"blk.{i}.ffn_{kind}.weight": (256, 256) for kind in ("gate", "up", "down")}
            continue
        found[f"blk.{i}.ffn_gate_inp.weight"] = (EXPERTS, 256)
        for kind in ("gate", "up", "down"):
            found[f"blk.{i}.ffn_{kind}_exps.weight"] = (EXPERTS, 256, 256)
            found[f"blk.{i}.ffn_{kind}_shexp.weight"] = (256, 256)
    return found


def write_model(path: Path) -> None:
    """Write the model with the keys that llama-quantize reads."""
    writer = gguf.GGUFWriter(path, "deepseek2")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(256)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(512)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(2)
    writer.add_leading_dense_block_count(3)
    writer.add_q_lora_rank(256)
    writer.add_kv_lora_rank(256)
    writer.add_key_length(256)
    writer.add_value_length(256)
    writer.add_rope_dimension_count(64)
    writer.add_expert_feed_forward_length(256)
    writer.add_expert_shared_count(1)
    writer.add_expert_weights_scale(1.0)
    writer.add_rope_scaling_yarn_log_mul(0.1)
    seeded = np.random.default_rng(0)
    for name, shape in shapes().items():
        writer.add_tensor(name, seeded.standard_normal(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantized(source: Path, output: Path, words: Sequence[str], default: str) -> dict[str, str]:
    """Return the types that llama-quantize gives: by the words, elsewhere the default."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = gguf.LlamaFileType[f"MOSTLY_{default}"]
    params.pure = True
    overrides = (llama_cpp.llama_model_tensor_override * (len(words) + 1))()
    for override, word in zip(overrides, words, strict=False):
        pattern, _, name = word.partition("=")
        override.pattern = pattern.lower().encode()  # as its command line does
        override.type = ALL[name.upper()].ggml_type
    params.tt_overrides = overrides
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(output).encode(), ctypes.byref(params)
    )
    if status:
        sys.exit(f"llama_model_quantize fails with {status} on {' '.join(words)}")
    return {t.name: t.tensor_type.name for t in gguf.GGUFReader(output).tensors}


def differing(ours: Mapping[str, str], theirs: Mapping[str, str], words: Sequence[str]) -> int:
    """Print the tensors whose types differ; return their number."""
    wrong = [name for name in ours if ours[name] != theirs[name] and ".one_row." not in name]
    for name in wrong:
        print(f"{name}: {ours[name]}, llama-quantize {theirs[name]}: {' '.join(words)}")
    return len(wrong)


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p())
    seeded = random.Random(0)
    tensors = [ModelTensor(name, Header(shape, ALL["F32"])) for name, shape in shapes().items()]
    free = [t for t in tensors if not protection(t) and ".one_row." not in t.name]
    wrong = exported = imported = 0
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "model.gguf", Path(folder) / "out.gguf"
        write_model(source)
        for _ in range(rounds):
            types = {t.name: ALL["F32"] for t in tensors}
            for t in free:
                fits = [n for n in TYPES if not t.n_per_row % ALL[n].block_size]
                types[t.name] = ALL[seeded.choice(fits)]
            words = tensor_types(tensors, types).split()
            found = quantized(source, output, words, "Q8_0")
            wrong += differing({n: t.name for n, t in types.items()}, found, words)
            exported += 1
        for _ in range(rounds):
            words = [
                f"{seeded.choice(PATTERNS)}={seeded.choice(TYPES).lower()}"
                for _ in range(seeded.randint(1, 6))
            ]
            default = seeded.choice(["Q6_K", "Q8_0", "Q4_0"])
            recipe = parse_recipe(
                recipe_of_tensor_types("\n".join(words), "list", Base(ALL[default])), "r", "r"
            )
            # patterns may take nothing, which rules may not
            lenient = replace(recipe, rules=tuple(replace(r, optional=True) for r in recipe.rules))
            try:
                given = assign(lenient, tensors).assignments
            except RecipeError as e:
                sys.exit(f"{' '.join(words)}: {e}")
            found = quantized(source, output, words, default)
            wrong += differing({n: a.type.name for n, a in given.items()}, found, words)
            imported += 1
    print(f"{exported} exported and {imported} imported lists, {wrong} tensors differ")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
