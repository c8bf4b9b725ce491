"""Idefics3 and SmolVLM: pictures of two, three and six tiles, and the whole picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from reference_tokenizers import make_llama3_bpe

from reference_projectors import Case, Inputs, Media, picture, with_marks

_TEXT: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "bos_token_id": 442,
    "eos_token_id": 447,
    "vocab_size": 464,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 72,
}
_VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
_CELLS = tuple(f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3))
_AROUND, _WHOLE, _IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"
_MARKS = ("\n\n", _AROUND, _WHOLE, _IMAGE, *_CELLS)
_PLACEHOLDER = 451


def _processed(folder: Path, one: Media) -> dict[str, Any]:
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    return processor(images=[Image.fromarray(one)], return_tensors="pt", return_row_col_info=True)


def _inputs(folder: Path, one: Media) -> Inputs:
    found = _processed(folder, one)
    return {name: found[name] for name in ("pixel_values", "pixel_attention_mask")}


def _features(model: transformers.PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    found = model.get_image_features(**inputs).pooler_output
    return torch.cat([each.reshape(-1, each.shape[-1]) for each in found])


def _text(n: int) -> Any:
    """Return what writes a prompt; n: embeddings of a tile."""

    def write(folder: Path, one: Media) -> str:
        found = _processed(folder, one)
        rows, columns = int(found["rows"][0][0]), int(found["cols"][0][0])
        lines = [
            "".join(f"{_AROUND}<row_{r + 1}_col_{c + 1}>" + _IMAGE * n for c in range(columns))
            for r in range(rows)
        ]
        whole = _AROUND + _WHOLE + _IMAGE * n + _AROUND
        return "The whale" + "\n".join(lines) + "\n\n" + whole + " was white"

    return write


def _case(
    config: transformers.PretrainedConfig, kind: str, tile: int, edge: int, n: int, **changes: Any
) -> Case:
    return Case(
        config,
        with_marks(make_llama3_bpe, *_MARKS),
        {
            "image_processor_type": kind,
            "do_image_splitting": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "max_image_size": {"longest_edge": tile},
            "size": {"longest_edge": edge},
            "resample": 1,
        },
        (picture(edge, edge // 2, 1), picture(97, 143, 2)),
        _inputs,
        _features,
        "",
        "",
        "The whale<__media__> was white",
        _PLACEHOLDER,
        text=_text(n),
        **changes,
    )


CASES = {
    "idefics3": _case(
        transformers.Idefics3Config(
            text_config=_TEXT,
            vision_config={**_VISION, "image_size": 56, "patch_size": 14},
            scale_factor=2,
            image_token_id=_PLACEHOLDER,
        ),
        "Idefics3ImageProcessor",
        56,
        112,
        4,
        published={"tie_word_embeddings": False},
    ),
    "smolvlm": _case(
        transformers.SmolVLMConfig(
            text_config=_TEXT,
            vision_config={**_VISION, "image_size": 50, "patch_size": 8},
            scale_factor=3,
            image_token_id=_PLACEHOLDER,
        ),
        "SmolVLMImageProcessor",
        50,
        150,
        4,
        # As published: what the class has as default is not stated.
        published={
            "vision_config": {
                **_VISION,
                "image_size": 50,
                "max_image_size": {"longest_edge": 50},
                "model_type": "smolvlm_vision",
                "patch_size": 8,
                "size": {"longest_edge": 150},
                "tie_word_embeddings": False,
                "use_base_siglip": False,
            }
        },
    ),
}
