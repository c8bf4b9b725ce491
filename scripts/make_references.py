"""Make tests/references: a tiny random checkpoint of each family and what transformers says of it.

    pip install '.[references]'
    python scripts/make_references.py [FAMILY ...]

For each family, tests/references/<family>/ is a checkpoint as the family is published (its own
tokenizer files, its own layout), and beside it

    <family>.json   prompts: token ids; texts, each with its tokens by the family's own tokenizer
    <family>.npy    float32 [n_prompts, vocab_size]: log-probabilities of the token that follows

The weights are large, and the sizes odd on purpose: a row out of its place, a head too many or a
wrong rope frequency changes every log-probability by far more than the tests allow. tiny-books has
only the last two files; its checkpoint is tests/data/tiny-books. Everything is seeded, and the
weights come from numpy, so a second run writes the same files (log-probabilities to rounding).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from reference_tokenizers import (
    PROSE,
    TEXTS,
    Encode,
    make_llama3_bpe,
    make_qwen_bpe,
    make_sentencepiece,
    write_json,
)
from tokenizers import Tokenizer

TESTS = Path(__file__).resolve().parent.parent / "tests"
REFERENCES = TESTS / "references"
TINY_BOOKS = TESTS / "data" / "tiny-books"


@dataclass(frozen=True)
class Family:
    """One checkpoint to make.

    published: config keys spelled as the family's published files spell them, where transformers
               writes another form today; None removes a key
    """

    config: transformers.PretrainedConfig
    tokenizer: Callable[[Path], Encode]
    dtype: torch.dtype = torch.bfloat16
    shard_size: str = "1GB"
    published: dict[str, Any] = field(default_factory=dict)


def families() -> dict[str, Family]:
    """Return the checkpoints to make: hidden 32, everything else as odd as the family allows."""
    common = {"hidden_size": 32, "rms_norm_eps": 1e-5, "max_position_embeddings": 512}
    llama3_rope = {
        # Within the prompts' 24 tokens: of twelve frequencies one stays, two are blended, nine
        # are divided by the factor.
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_type": "llama3",
    }
    return {
        "llama-2": Family(
            transformers.LlamaConfig(
                **common,
                vocab_size=512,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                intermediate_size=88,
                bos_token_id=1,
                eos_token_id=2,
            ),
            lambda folder: make_sentencepiece(folder, 512, []),
            dtype=torch.float16,
            published={
                "dtype": None,
                "rope_parameters": None,
                "rope_theta": 10000.0,
                "torch_dtype": "float16",
            },
        ),
        "llama-3.1": Family(
            transformers.LlamaConfig(
                **common,
                vocab_size=448,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=24,
                intermediate_size=72,
                bos_token_id=442,
                eos_token_id=[443, 446, 447],
                rope_parameters={"rope_theta": 500000.0, **llama3_rope},
            ),
            make_llama3_bpe,
            published={
                "dtype": None,
                "rope_parameters": None,
                "rope_scaling": llama3_rope,
                "rope_theta": 500000.0,
                "torch_dtype": "bfloat16",
            },
        ),
        "mistral": Family(
            transformers.MistralConfig(
                **common,
                vocab_size=400,
                num_hidden_layers=2,
                num_attention_heads=3,
                num_key_value_heads=1,
                head_dim=40,
                intermediate_size=104,
                bos_token_id=1,
                eos_token_id=2,
                # llama.cpp has no window in its Llama graph, so the prompts stay inside this one.
                sliding_window=64,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            ),
            lambda folder: make_sentencepiece(folder, 400, ["[INST]", "[/INST]"]),
        ),
        "qwen2": Family(
            transformers.Qwen2Config(
                **common,
                vocab_size=416,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=88,
                tie_word_embeddings=True,
                bos_token_id=400,
                eos_token_id=402,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            ),
            make_qwen_bpe,
            published={
                "dtype": None,
                "layer_types": None,
                "rope_parameters": None,
                "rope_theta": 1000000.0,
                "torch_dtype": "bfloat16",
            },
        ),
        "qwen3": Family(
            transformers.Qwen3Config(
                **common,
                vocab_size=416,
                num_hidden_layers=2,
                num_attention_heads=6,
                num_key_value_heads=3,
                head_dim=24,
                intermediate_size=72,
                bos_token_id=400,
                eos_token_id=402,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            ),
            lambda folder: make_qwen_bpe(folder, ("<think>", "</think>")),
            shard_size="50KB",
        ),
    }


def randomize(model: transformers.PreTrainedModel, seed: int) -> None:
    """Give every parameter numbers so large that each one shows in the log-probabilities."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = rng.standard_normal(parameter.shape, dtype=np.float32)
            if name.endswith("norm.weight"):
                noise = 1 + 0.3 * noise
            elif name.endswith("bias"):
                noise = 0.5 * noise
            else:
                noise = 0.25 * noise
            parameter.copy_(torch.from_numpy(noise))


def make_checkpoint(folder: Path, family: Family, seed: int) -> Encode:
    """Write one family's checkpoint and return its tokenizer."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = transformers.AutoModelForCausalLM.from_config(family.config)
    randomize(model, seed)
    model.to(family.dtype).save_pretrained(folder, max_shard_size=family.shard_size)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config.update(family.published)
    removed = {key for key, value in family.published.items() if value is None}
    write_json(folder / "config.json", {key: v for key, v in config.items() if key not in removed})
    return family.tokenizer(folder)


def family_prompts(encode: Encode, n_tokens: int, seed: int) -> list[list[int]]:
    """Return six prompts of 8 to 24 tokens: beginnings of prose, then ids drawn at random."""
    rng = np.random.default_rng(seed)
    prompts = [encode(text)[:n] for text, n in zip(PROSE, (8, 13, 19, 24), strict=False)]
    return prompts + [rng.integers(3, n_tokens, n).tolist() for n in (11, 24)]


def write_reference(name: str, folder: Path, encode: Encode, prompts: list[list[int]]) -> None:
    """Write what transformers, in float32 with the plain attention, and the tokenizer say."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        logits = [model(torch.tensor([ids])).logits[0, -1] for ids in prompts]
        log_probabilities = torch.log_softmax(torch.stack(logits), dim=-1).numpy()
    np.save(REFERENCES / f"{name}.npy", log_probabilities.astype("<f4"))
    lines = [
        '{"prompts": [',
        ",\n".join(json.dumps(ids) for ids in prompts),
        '], "texts": [',
        ",\n".join(json.dumps({"text": text, "tokens": encode(text)}) for text in TEXTS),
        "]}",
    ]
    (REFERENCES / f"{name}.json").write_text("\n".join(lines) + "\n", "utf-8")


def make_tiny_books() -> None:
    """Write the reference of tests/data/tiny-books.

    Eight prompts of 4 to 200 tokens, then 40 that end all over the prose: how far a quantized file
    diverges differs so much from token to token that the mean of a few says little.
    """
    tokenizer = Tokenizer.from_file(str(TINY_BOOKS / "tokenizer.json"))

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text).ids

    whole = encode("\n\n".join(PROSE))
    prompts = [encode(text)[:n] for text, n in zip(PROSE, (4, 40, 120, 80, 12, 16), strict=True)]
    prompts += [whole[:200], whole[60:220]]
    ends = np.linspace(8, len(whole), 40).astype(int).tolist()
    prompts += [whole[max(0, end - 128) : end] for end in ends]
    write_reference("tiny-books", TINY_BOOKS, encode, prompts)


def main() -> None:
    """Make the families named on the command line, or all."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    known = families()
    wanted = sys.argv[1:] or [*known, "tiny-books"]
    REFERENCES.mkdir(exist_ok=True)
    for name in wanted:
        if name == "tiny-books":
            make_tiny_books()
            continue
        seed = 1000 + list(known).index(name)
        encode = make_checkpoint(REFERENCES / name, known[name], seed)
        prompts = family_prompts(encode, 400, seed)
        write_reference(name, REFERENCES / name, encode, prompts)
        size = sum(path.stat().st_size for path in (REFERENCES / name).iterdir())
        print(f"{name}: {size / 1000:.0f} kB, prompts of {[len(ids) for ids in prompts]} tokens")


if __name__ == "__main__":
    main()
