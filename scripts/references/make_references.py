"""Make tests/references: a tiny random checkpoint of each family, and transformers' results for it.

    pip install '.[references]'
    python scripts/references/make_references.py [FAMILY ...]

For each family, tests/references/<family>/ is a checkpoint in the published form of the family
(tokenizer files, layout). Two files are next to it:

    <family>.json   prompts: token ids; texts, each with its token ids by the family's tokenizer;
                    by: what computed the results, if not a class of transformers
    <family>.npy    float32 [n_prompts, vocab_size]: log-probabilities of the next token; for
                    embedding models [n_prompts, hidden_size]: the mean over the tokens; for
                    classifiers [n_prompts, n_labels]: their scores

The configurations are in reference_families/. Weights are large, so that any fault shows in the
log-probabilities. tiny-books has only these two files; its checkpoint is tests/data/tiny-books.
Everything is seeded, and the weights come from numpy, so that a second run writes the same files
(log-probabilities up to rounding).
"""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from plain_models import BY, Plain
from reference_families import Family, families
from reference_tokenizers import (
    PROSE,
    TEXTS,
    Encode,
    write_json,
)
from tokenizers import Tokenizer

TESTS = Path(__file__).resolve().parents[2] / "tests"
REFERENCES = TESTS / "references"
TINY_BOOKS = TESTS / "data" / "tiny-books"


FACTORS = (
    "norm.weight",
    "norm_1.weight",
    "norm_2.weight",
    "norm_f.weight",
    "ln_1.weight",
    "ln_2.weight",
    "ln_f.weight",
    "ln_attn.weight",
    "ln_mlp.weight",
    "_scalar",
    "router.scale",
    "expert_scale",
    "output_scale",
)
"""Endings of the names of factors, which are near one: norms, and scales of Gemma 3n and 4."""

EMBEDDINGS = ("embed_tokens.weight", "embeddings.weight", "embed_in.weight", "wte.weight")

STATE_SPACE = tuple(
    f"{block}.{name}" for block in ("mamba", "mixer") for name in ("A_log", "D", "dt_bias")
)
"""Endings of the names of state space layers' vectors, whose effect is small."""


def randomize(
    model: transformers.PreTrainedModel,
    seed: int,
    *,
    norms: float = 1.0,
    spread: float = 0.3,
    weights: float = 0.25,
    embedding: float = 0.25,
) -> None:
    """Set all stored tensors to numbers large enough to affect the log-probabilities.

    The means and standard deviations are those of Family.
    """
    rng = np.random.default_rng(seed)
    stored = model.state_dict()
    tensors = dict(model.named_parameters())
    # In transformers the bias of router scores is a buffer, not a parameter.
    tensors |= {name: buffer for name, buffer in model.named_buffers() if name in stored}
    with torch.no_grad():
        for name, parameter in sorted(tensors.items()):
            if not parameter.is_floating_point():
                continue  # constants of hashes, which follow from the configuration
            noise = rng.standard_normal(parameter.shape, dtype=np.float32)
            if name.lower().endswith(FACTORS) or "layernorm.norms." in name:
                noise = norms + spread * noise
            elif name.endswith(("correction_bias", "expert_bias")):
                noise = 0.1 * noise  # with more noise some experts would never be chosen
            elif name.endswith("modality_router.weight"):
                noise = 4 * noise  # Gemma 3n divides its input by the hidden size
            elif ".act_fn." in name:
                noise = 0.7 * (np.sign(noise) + noise)  # small ones have little effect
            elif name.endswith(STATE_SPACE):
                pass
            elif name.endswith("_hc.scale"):
                noise = 1 + noise
            elif ".ple.norm_" in name:
                noise = 1.0 * noise  # of a root, and of one among several streams
            elif name.endswith(("sinks", "_hc.base")):
                noise = 2 * noise
            elif name.endswith("bias"):
                noise = 0.5 * noise
            elif name.endswith(EMBEDDINGS):
                noise = embedding * noise
            else:
                noise = weights * noise
            parameter.copy_(torch.from_numpy(np.asarray(noise)))


def model_class(config: transformers.PretrainedConfig) -> type:
    """Return the model class for a configuration; for embedding models the one without a head."""
    if "bert" in config.model_type:
        return transformers.AutoModel
    if hasattr(config, "vision_config"):
        return transformers.AutoModelForImageTextToText
    if hasattr(config, "audio_config"):
        return transformers.AutoModelForMultimodalLM
    return transformers.AutoModelForCausalLM


def make_checkpoint(folder: Path, family: Family, seed: int) -> Encode:
    """Write one family's checkpoint and return its tokenizer."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    own = family.model
    model = own.make() if own else model_class(family.config).from_config(family.config)
    randomize(
        model,
        seed,
        norms=family.norms,
        spread=family.spread,
        weights=family.weights,
        embedding=family.embedding,
    )
    model = model.to(family.dtype)
    if own:
        own.save(model, folder)
    else:
        model.save_pretrained(
            folder, max_shard_size=family.shard_size, save_original_format=not family.stacks
        )
    change_config(folder, family.published)
    return family.tokenizer(folder)


def change_config(folder: Path, changes: dict[str, Any]) -> None:
    """Change keys of config.json; None removes a key."""
    config = json.loads((folder / "config.json").read_text("utf-8")) | changes
    removed = {key for key, value in changes.items() if value is None}
    write_json(folder / "config.json", {key: v for key, v in config.items() if key not in removed})


def family_prompts(encode: Encode, n_tokens: int, seed: int, long: int = 0) -> list[list[int]]:
    """Return six prompts of 8 to 24 tokens: beginnings of prose, followed by random ids.

    long: tokens of a seventh; none if 0
    """
    rng = np.random.default_rng(seed)
    prompts = [encode(text)[:n] for text, n in zip(PROSE, (8, 13, 19, 24), strict=False)]
    return prompts + [rng.integers(3, n_tokens, n).tolist() for n in (11, 24, long) if n]


def load(
    folder: Path, config: transformers.PretrainedConfig | None = None
) -> transformers.PreTrainedModel:
    """Return a checkpoint's model in float32, with eager attention.

    config: the model's settings; None reads those of the checkpoint
    """
    config = config or transformers.AutoConfig.from_pretrained(folder)
    return model_class(config).from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    )


def write_reference(
    name: str,
    model: transformers.PreTrainedModel,
    encode: Encode,
    prompts: list[list[int]],
    by: str = "",
) -> None:
    """Write the results of the model and the tokenizer; by: what computed them, if stated."""
    model.eval()
    with torch.no_grad():
        outputs = [model(torch.tensor([ids])) for ids in prompts]
        if "logits" in outputs[0] and outputs[0].logits.dim() == 2:
            found = torch.stack([o.logits[0] for o in outputs])  # of a classifier
        elif "logits" in outputs[0]:
            found = torch.stack([torch.log_softmax(o.logits[0, -1], dim=-1) for o in outputs])
        else:
            found = torch.stack([o.last_hidden_state[0].mean(dim=0) for o in outputs])
    np.save(REFERENCES / f"{name}.npy", found.numpy().astype("<f4"))
    lines = [
        '{"prompts": [',
        ",\n".join(json.dumps(ids) for ids in prompts),
        '], "texts": [',
        ",\n".join(json.dumps({"text": text, "tokens": encode(text)}) for text in TEXTS),
        "]}" if not by else f'], "by": {json.dumps(by)}}}',
    ]
    (REFERENCES / f"{name}.json").write_text("\n".join(lines) + "\n", "utf-8")


def make_tiny_books() -> None:
    """Write the reference of tests/data/tiny-books.

    Eight prompts of 4 to 200 tokens, then 40 that end at different places in the prose: the
    divergence of a quantized file varies so much by token that the mean of a few means little.
    """
    tokenizer = Tokenizer.from_file(str(TINY_BOOKS / "tokenizer.json"))

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text).ids

    whole = encode("\n\n".join(PROSE))
    prompts = [encode(text)[:n] for text, n in zip(PROSE, (4, 40, 120, 80, 12, 16), strict=True)]
    prompts += [whole[:200], whole[60:220]]
    ends = np.linspace(8, len(whole), 40).astype(int).tolist()
    prompts += [whole[max(0, end - 128) : end] for end in ends]
    write_reference("tiny-books", load(TINY_BOOKS), encode, prompts)


def main() -> None:
    """Make the references of the families named on the command line, or of all."""
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
        seed = zlib.crc32(name.encode()) + known[name].draw
        encode = make_checkpoint(REFERENCES / name, known[name], seed)
        prompts = family_prompts(encode, 400, seed, known[name].long)
        composed = known[name].model
        model = (composed.load if composed else load)(REFERENCES / name)
        if known[name].adapt:
            known[name].adapt(model)
        by = BY if isinstance(composed, Plain) else known[name].by
        write_reference(name, model, encode, prompts, by)
        size = sum(path.stat().st_size for path in (REFERENCES / name).iterdir())
        print(f"{name}: {size / 1000:.0f} kB, prompts of {[len(ids) for ids in prompts]} tokens")


if __name__ == "__main__":
    main()
