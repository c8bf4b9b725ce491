"""Make tests/references/projectors: tiny models that see or hear, and transformers' results.

    pip install '.[references]'
    python scripts/references/make_projector_references.py [CASE ...]

For each case, tests/references/projectors/<case>/ is a checkpoint in the published form, language
model and projector together. Beside it, <case>.npz has for each picture or sound, counted from 0:

    media_0        the picture, uint8 [height, width, 3], or the sound, float32 [samples]
    embeddings_0   float32 [n_tokens, width]: the projector's output by transformers, in float32
    logprobs_0     float32 [n_vocab]: log-probabilities of the token after the prompt
    blind_0        the same for the prompt with another picture or sound, which must differ
    ids_0          int64: the prompt's token ids
    prompt         the prompt for llama.cpp
    before, after  numbers of tokens before and after the medium

The cases are in reference_projectors/. Everything is seeded.
"""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from make_references import model_class, randomize
from reference_families import Family
from reference_projectors import Case, Inputs, Media, cases
from reference_tokenizers import Encode, write_json
from safetensors.torch import load_file, save_file

REFERENCES = Path(__file__).resolve().parents[2] / "tests" / "references" / "projectors"

TOWERS = (
    "visual.",
    "vision",
    "audio",
    "multi_modal_projector",
    "connector",
    "projector",
    "embed_vision",
    "vpm.",
    "resampler.",
)
"""What names of towers and of what joins them to the language model contain."""

BOUNDS = {"input_min": -1.0, "input_max": 1.0, "output_min": -1.0, "output_max": 1.0}
"""Bounds of the numbers before and after a matrix, in buffers of Gemma 4, with their signs."""


def randomize_towers(model: transformers.PreTrainedModel, seed: int) -> None:
    """Set the tensors of towers to numbers large enough to affect the embeddings."""
    rng = np.random.default_rng(seed)
    stored = model.state_dict()
    buffers = {n: b for n, b in model.named_buffers() if n in stored and b.is_floating_point()}
    with torch.no_grad():
        for name, parameter in sorted([*model.named_parameters(), *buffers.items()]):
            if not any(part in name for part in TOWERS):
                continue
            drawn = rng.standard_normal(parameter.shape, dtype=np.float32)
            noise = torch.from_numpy(np.asarray(drawn))
            last = name.rpartition(".")[2]
            if last in BOUNDS:
                # Within the numbers that occur: a few are clipped.
                parameter.copy_(BOUNDS[last] * (1.5 + 0.5 * noise.abs()))
            elif last == "bias":
                parameter.copy_(0.2 * noise)
            elif parameter.dim() == 1:
                # RMS norms of Gemma are stored less one.
                parameter.copy_((0.0 if "soft_emb_norm" in name else 1.0) + 0.2 * noise)
            elif "position" in name or "pos_embed" in name:
                parameter.copy_(0.5 * noise)
            else:
                n_in = parameter[0].numel()
                parameter.copy_(1.2 * noise / n_in**0.5)


def make_checkpoint(folder: Path, case: Case, seed: int) -> Encode:
    """Write one case's checkpoint and return its tokenizer."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    own = case.model
    model = own.make() if own else model_class(case.config).from_config(case.config)
    randomize(
        model, Family(case.config, case.tokenizer, norms=case.norms, weights=case.weights), seed
    )
    randomize_towers(model, seed)
    model.to(case.dtype)
    if own:
        own.save(model, folder)
    else:
        case.write(model, folder)
    if case.renamed:
        stored = load_file(folder / "model.safetensors")
        save_file(
            {_renamed(n, case): t for n, t in stored.items()},
            folder / "model.safetensors",
            {"format": "pt"},
        )
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config.update(case.published)
    removed = {key for key, value in case.published.items() if value is None}
    write_json(folder / "config.json", {k: v for k, v in config.items() if k not in removed})
    write_json(folder / "preprocessor_config.json", case.processor)
    return case.tokenizer(folder)


def _renamed(name: str, case: Case) -> str:
    for before, after in case.renamed.items():
        if name.startswith(before):
            return after + name.removeprefix(before)
    return name


def loaded(case: Case, folder: Path) -> transformers.PreTrainedModel:
    """Return a checkpoint's model in float32, with eager attention."""
    if case.model:
        return case.model.load(folder)
    if case.read:
        return case.read(folder)
    stated = None if case.own_config else transformers.AutoConfig.from_pretrained(folder)
    config = stated or case.config
    return model_class(config).from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    )


def write_reference(name: str, folder: Path, case: Case, encode: Encode) -> str:
    """Write what transformers makes of each picture or sound; return a line about it."""
    model = loaded(case, folder)
    model.eval()
    stored: dict[str, np.ndarray] = {"prompt": np.array(case.prompt)}
    sizes: list[str] = []
    with torch.no_grad():
        others = [*case.media[1:], case.media[0]]
        for number, (one, other) in enumerate(zip(case.media, others, strict=True)):
            features, ids, found = answer(model, folder, case, encode, one)
            *_, blind = answer(model, folder, case, encode, other)
            stored |= {
                f"media_{number}": one,
                f"embeddings_{number}": features.numpy().astype("<f4"),
                f"logprobs_{number}": found.numpy().astype("<f4"),
                f"blind_{number}": blind.numpy().astype("<f4"),
                f"ids_{number}": ids.numpy(),
            }
            sizes.append(f"{tuple(one.shape)} as {tuple(features.shape)}")
    np.savez_compressed(REFERENCES / f"{name}.npz", **stored)
    return ", ".join(sizes)


def answer(
    model: transformers.PreTrainedModel, folder: Path, case: Case, encode: Encode, one: Media
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the embeddings of a medium, the prompt's ids, and its log-probabilities."""
    case = case.of(one)
    inputs: Inputs = case.inputs(folder, one)
    found = case.features(model, inputs)
    pieces = found if isinstance(found, list) else [found]
    features = torch.cat(pieces)
    ids = torch.tensor(_prompt(case, folder, encode, one, [len(piece) for piece in pieces]))
    if case.ids:
        start = len(encode(case.before))
        ids[start : start + len(features)] = torch.tensor(case.ids(inputs, features))
    outputs = model(
        input_ids=ids[None],
        attention_mask=torch.ones_like(ids)[None],
        **inputs,
        **case.more(ids[None], case.token),
    )
    return features, ids, torch.log_softmax(outputs.logits[0, -1].float(), dim=-1)


def _prompt(
    case: Case, folder: Path, encode: Encode, one: Media, sizes: Sequence[int]
) -> list[int]:
    """Return a prompt's ids, with the placeholder's id for each embedding.

    sizes: embeddings of each piece of the medium
    """
    if case.text:
        ids = encode(case.text(folder, one))
        assert ids.count(case.token) == sum(sizes), "another number of embeddings"
        return ids
    first, *others = map(encode, case.texts(len(sizes)))
    n_bos = len(encode(""))
    ids = list(first)
    for size, text in zip(sizes, others, strict=True):
        ids += [*[case.token] * size, *text[n_bos:]]
    return ids


def main() -> None:
    """Make the references of the cases named on the command line, or of all."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    known = cases()
    REFERENCES.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or known:
        folder = REFERENCES / name
        encode = make_checkpoint(folder, known[name], zlib.crc32(name.encode()))
        line = write_reference(name, folder, known[name], encode)
        if rewrite := known[name].rewrite:
            rewrite(folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{name}: {size / 1000:.0f} kB, {line}")


if __name__ == "__main__":
    main()
