"""Make tests/references/projectors: tiny models that see or hear, and transformers' results.

    pip install '.[references]'
    python scripts/references/make_projector_references.py [CASE ...]

For each case, tests/references/projectors/<case>/ is a checkpoint in the published form, language
model and projector together. Beside it, <case>.npz has for each picture or sound, counted from 0:

    media_0        the picture, uint8 [height, width, 3], or the sound, float32 [samples]
    embeddings_0   float32 [n_tokens, width]: the projector's output by transformers, in float32
    logprobs_0     float32 [n_vocab]: log-probabilities of the token after the prompt
    blind_0        the same for the prompt with another picture or sound, which must differ
    ids_0          int64: the prompt's token ids, with a placeholder for each embedding
    prompt         the prompt for llama.cpp, with `<__media__>` in place of the medium

The cases are in reference_projectors/. Everything is seeded.
"""

from __future__ import annotations

import shutil
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from make_references import randomize
from reference_projectors import Case, Media, cases
from reference_tokenizers import Encode, write_json

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
    model = case.model.make()
    randomize(model, seed, norms=case.norms, weights=case.weights)
    randomize_towers(model, seed)
    case.model.save(model.to(torch.bfloat16), folder)
    write_json(folder / "preprocessor_config.json", case.processor)
    return case.tokenizer(folder)


@dataclass(frozen=True)
class Answer:
    """What a model makes of a prompt with one medium.

    embeddings: float32 [n_tokens, width], of all pieces of the medium
    ids:        int64 [n_ids], the prompt's
    logprobs:   float32 [n_vocab], of the token after the prompt
    """

    embeddings: torch.Tensor
    ids: torch.Tensor
    logprobs: torch.Tensor


def answer(model: torch.nn.Module, folder: Path, case: Case, encode: Encode, one: Media) -> Answer:
    """Return what a model makes of one of its case's media."""
    inputs = case.inputs(folder, one)
    pieces = case.features(model, inputs)
    prompt = encode(case.prompt_of_model(inputs))
    ids = torch.tensor(filled(prompt, case.placeholders, [len(piece) for piece in pieces]))
    more = case.more(ids[None]) if case.more else {}
    outputs = model(
        input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], **inputs, **more
    )
    return Answer(torch.cat(pieces), ids, torch.log_softmax(outputs.logits[0, -1].float(), dim=-1))


def filled(ids: list[int], placeholders: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Return a prompt's ids with each placeholder repeated: once for each embedding of its piece.

    sizes: the number of embeddings of each piece, in the order of the placeholders
    """
    places = [place for place, token in enumerate(ids) if token in placeholders]
    assert len(places) == len(sizes), "another number of placeholders than of pieces"
    repeats = dict(zip(places, sizes, strict=True))
    return [token for place, token in enumerate(ids) for _ in range(repeats.get(place, 1))]


def write_reference(name: str, folder: Path, case: Case, encode: Encode) -> str:
    """Write what transformers makes of each picture or sound; return a line about it."""
    model = case.model.load(folder)
    model.eval()
    with torch.no_grad():
        answers = [answer(model, folder, case, encode, one) for one in case.media]
    others = [*answers[1:], answers[0]]
    stored: dict[str, np.ndarray] = {"prompt": np.array(case.prompt)}
    sizes: list[str] = []
    for number, (one, found, other) in enumerate(zip(case.media, answers, others, strict=True)):
        stored |= {
            f"media_{number}": one,
            f"embeddings_{number}": found.embeddings.numpy().astype("<f4"),
            f"logprobs_{number}": found.logprobs.numpy().astype("<f4"),
            f"blind_{number}": other.logprobs.numpy().astype("<f4"),
            f"ids_{number}": found.ids.numpy(),
        }
        sizes.append(f"{tuple(one.shape)} as {tuple(found.embeddings.shape)}")
    np.savez_compressed(REFERENCES / f"{name}.npz", **stored)
    return ", ".join(sizes)


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
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{name}: {size / 1000:.0f} kB, {line}")


if __name__ == "__main__":
    main()
