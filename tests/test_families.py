"""A tiny random checkpoint of each family becomes a GGUF that llama.cpp reads as transformers does.

The oracles are transformers and each family's own tokenizer (stored by scripts/make_references.py)
and llama.cpp.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import F32, F32_TOLERANCE, FAMILIES, Reference, load_reference, max_difference

import dynquant

llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)

VISIBLE = 100 * F32_TOLERANCE
"""What one wrong tensor has to change at least, so that the comparison cannot miss it."""

UNSEEN = re.compile(r"pooler\..*|encoder\.layer\.\d+\.attention\.self\.key\.bias")
"""What no result of BERT depends on: the pooler, which llama.cpp leaves out, and what K has the
same for all tokens, which adds the same to all scores of a token's attention."""


def converted(folder: Path, out: Path) -> Path:
    dynquant.convert(folder, out, recipe="f32", threads=2)
    return out


def log_probabilities(reference: Reference, folder: Path, out: Path) -> F32:
    ask = llamacpp.embeddings if reference.embeds else llamacpp.log_probabilities
    result: F32 = ask(converted(folder, out), reference.prompts)
    return result


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_of_the_f32_file_equal_transformers(family: str, tmp_path: Path) -> None:
    reference = load_reference(family)
    ours = log_probabilities(reference, reference.folder, tmp_path / "f32.gguf")
    assert max_difference(reference.log_probabilities, ours) < F32_TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_the_familys_own_tokenizers(family: str, tmp_path: Path) -> None:
    reference = load_reference(family)
    ours = llamacpp.tokenize(
        converted(reference.folder, tmp_path / "f32.gguf"),
        list(reference.tokens),
        parse_special=reference.parses_special,
    )
    assert dict(zip(reference.tokens, ours, strict=True)) == reference.tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_one_tensor_with_its_rows_reversed_is_noticed(family: str, tmp_path: Path) -> None:
    reference = load_reference(family)
    missed = {}
    for name in stored_tensors(reference.folder):
        if not is_in_an_early_layer(name) or UNSEEN.fullmatch(name):
            continue
        folder = shutil.copytree(reference.folder, tmp_path / "mutated", dirs_exist_ok=True)
        reverse_rows(folder, name)
        out = tmp_path / f"{name}.gguf"
        ours = log_probabilities(reference, folder, out)
        difference = max_difference(reference.log_probabilities, ours)
        if difference < VISIBLE:
            missed[name] = difference
    assert not missed


CONFIG_MISTAKES: tuple[tuple[str, str, Callable[[dict[str, Any]], Any]], ...] = (
    ("gemma", "rope base", lambda c: c.update(rope_theta=100.0)),
    ("gemma", "norm epsilon", lambda c: c.update(rms_norm_eps=1e-1)),
    ("gemma2", "cap of attention", lambda c: c.update(attn_logit_softcapping=50.0)),
    ("gemma2", "cap of logits", lambda c: c.update(final_logit_softcapping=30.0)),
    ("gemma2", "query scaling", lambda c: c.update(query_pre_attn_scalar=20)),
    ("gemma2", "window", lambda c: c.update(sliding_window=8)),
    ("gemma2", "which layers slide", lambda c: c.update(layer_types=["sliding_attention"] * 3)),
    ("gemma3", "cap of logits", lambda c: c.update(final_logit_softcapping=None)),
    ("gemma3", "query scaling", lambda c: c.update(query_pre_attn_scalar=12)),
    ("gemma3", "window", lambda c: c.update(sliding_window=8)),
    ("gemma3", "which layers slide", lambda c: c.update(layer_types=None)),
    (
        "gemma3",
        "rope scaling of global layers",
        lambda c: c["rope_parameters"]["full_attention"].update(rope_type="default"),
    ),
    (
        "gemma3",
        "rope base of local layers",
        lambda c: c["rope_parameters"]["sliding_attention"].update(rope_theta=10000.0),
    ),
    ("glm", "part of a head that turns", lambda c: c.update(partial_rotary_factor=1.0)),
    ("glm4", "part of a head that turns", lambda c: c.update(partial_rotary_factor=0.5)),
    ("glm4moe", "part of a head that turns", lambda c: c.update(partial_rotary_factor=0.6)),
    ("glm4moe", "scale of the experts", lambda c: c.update(routed_scaling_factor=1.0)),
    ("glm4moe", "weights that sum to one", lambda c: c.update(norm_topk_prob=False)),
    ("glm4moe", "groups of experts", lambda c: c.update(n_group=1)),
    ("glm4moe", "experts of a token", lambda c: c.update(num_experts_per_tok=3)),
    ("command-r", "scale of logits", lambda c: c.update(logit_scale=0.0625)),
    ("command-r", "norm epsilon", lambda c: c.update(layer_norm_eps=1e-1)),
    ("command-r", "rope base", lambda c: c.update(rope_theta=10000.0)),
    ("cohere2", "scale of logits", lambda c: c.update(logit_scale=0.0625)),
    ("cohere2", "window", lambda c: c.update(sliding_window=8)),
    ("cohere2", "which layers slide and turn", lambda c: c.pop("sliding_window_pattern")),
    ("starcoder2", "rope base", lambda c: c.update(rope_theta=100.0)),
    ("starcoder2", "norm epsilon", lambda c: c.update(norm_epsilon=1e-1)),
    ("bert", "norm epsilon", lambda c: c.update(layer_norm_eps=1e-1)),
    ("nomic-bert", "rope base", lambda c: c["rope_parameters"].update(rope_theta=10000.0)),
    ("llama-3.1", "rope scaling", lambda c: c.pop("rope_scaling")),
    ("llama-3.1", "rope base", lambda c: c.update(rope_theta=10000.0)),
    ("mistral", "rope base", lambda c: c["rope_parameters"].update(rope_theta=10000.0)),
    ("qwen2", "rope base", lambda c: c.update(rope_theta=10000.0)),
    ("qwen3", "norm epsilon", lambda c: c.update(rms_norm_eps=1e-1)),
)


@pytest.mark.parametrize(
    ("family", "mistake"),
    [pytest.param(f, m, id=f"{f}, {what}") for f, what, m in CONFIG_MISTAKES],
)
def test_another_configuration_is_noticed(
    family: str, mistake: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    reference = load_reference(family)
    folder = shutil.copytree(reference.folder, tmp_path / "mutated")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    mistake(config)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    ours = log_probabilities(reference, folder, tmp_path / "f32.gguf")
    assert max_difference(reference.log_probabilities, ours) > VISIBLE


def is_in_an_early_layer(name: str) -> bool:
    """Tell whether a tensor is of the first four layers or of none: Command-R+ has 64 alike."""
    layer = re.search(r"\.(\d+)\.", name)
    return layer is None or int(layer[1]) < 4


def stored_tensors(folder: Path) -> dict[str, Path]:
    """Return the file of each stored tensor."""
    return {
        name: path
        for path in sorted(folder.glob("*.safetensors"))
        for name in safetensors_header(path)[0]
    }


def safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the tensors of a safetensors file and where their data begins."""
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n])
    header.pop("__metadata__", None)
    return header, 8 + n


def reverse_rows(folder: Path, name: str) -> None:
    """Reverse the rows of a tensor where it is stored, or the elements of a vector."""
    path = stored_tensors(folder)[name]
    tensors, begin = safetensors_header(path)
    start, stop = (begin + offset for offset in tensors[name]["data_offsets"])
    content = np.fromfile(path, np.uint8)
    rows = content[start:stop].reshape(tensors[name]["shape"][0], -1)
    rows[:] = rows[::-1].copy()
    content.tofile(path)
