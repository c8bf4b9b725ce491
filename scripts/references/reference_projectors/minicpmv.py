"""MiniCPM-V 2.6 to 4.5, of which transformers has no classes.

Their encoder is that of transformers' MiniCPM-V 4.6 without merging. What follows it is written
here from the published settings and tensors: queries attend to the patches, whose keys have sines
and cosines of the place. Heads have 128 weights: the language model is wider than other tiny ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from reference_tokenizers import make_qwen_bpe, write_json
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import MiniCPMV4_6VisionModel

from reference_projectors import QWEN_TEXT, Case, Inputs, Media, picture

MARKS = ("<image>", "</image>", "<slice>", "</slice>")
SIZE, PATCH = 64, 4
MEDIA = (picture(SIZE, SIZE, 1), picture(96, 48, 2))
VISION: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 70 * PATCH,
    "patch_size": PATCH,
}
_MARKS = (*MARKS, "<unk>")
_TOKEN = 403 + len(_MARKS) - 1
_QUERIES, _WIDTH = 7, 128
_TEXT: dict[str, Any] = {
    **QWEN_TEXT,
    "hidden_size": _WIDTH,
    "vocab_size": 408,
    "num_hidden_layers": 1,
    "intermediate_size": 24,
    "tie_word_embeddings": True,
}


def sines(positions: torch.Tensor, width: int) -> torch.Tensor:
    """Return sines, then cosines, of positions at frequencies from 1 to 1/10000."""
    frequencies = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


class Resampler(nn.Module):
    """Queries that attend to the patches of one picture."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(_QUERIES, _WIDTH))
        self.kv_proj = nn.Linear(VISION["hidden_size"], _WIDTH, bias=False)
        self.attn = nn.MultiheadAttention(_WIDTH, _WIDTH // 128)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(_WIDTH, eps=1e-6) for _ in range(3))
        self.proj = nn.Parameter(torch.zeros(_WIDTH, _WIDTH))

    def forward(self, patches: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return the embeddings, float32 [queries, width], of patches [n, hidden]."""
        values = self.ln_kv(self.kv_proj(patches))
        row, column = (
            n.reshape(-1)
            for n in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        )
        places = torch.cat([sines(column, _WIDTH // 2), sines(row, _WIDTH // 2)], dim=-1)
        found, _ = self.attn(self.ln_q(self.query), values + places, values)
        return self.ln_post(found) @ self.proj


class MiniCPMV(nn.Module):
    """The whole model, with the published names of its parts."""

    def __init__(self, text: type, config: transformers.PretrainedConfig) -> None:
        super().__init__()
        vision = transformers.MiniCPMV4_6VisionConfig(**VISION, attn_implementation="eager")
        self.llm = text(config)
        self.vpm = MiniCPMV4_6VisionModel(vision)
        del self.vpm.vit_merger
        self.resampler = Resampler()

    def features(
        self, pixel_values: torch.Tensor, target_sizes: torch.Tensor
    ) -> list[torch.Tensor]:
        """Return the embeddings of each piece of a picture."""
        seen = self.vpm(pixel_values, target_sizes=target_sizes, use_vit_merger=False)
        sizes = target_sizes.tolist()
        pieces = seen.last_hidden_state[0].split([h * w for h, w in sizes])
        return [self.resampler(x, h, w) for x, (h, w) in zip(pieces, sizes, strict=True)]

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixel_values: torch.Tensor,
        target_sizes: torch.Tensor,
    ) -> Any:
        """Return the language model's output, with the picture's embeddings in their places."""
        embedded = self.llm.get_input_embeddings()(input_ids).clone()
        embedded[input_ids == _TOKEN] = torch.cat(self.features(pixel_values, target_sizes))
        return self.llm(inputs_embeds=embedded, attention_mask=attention_mask)


@dataclass(frozen=True)
class _Published:
    """One version of the model."""

    version: float | str
    text: type
    config: transformers.PretrainedConfig

    def make(self) -> MiniCPMV:
        """Return the model with arbitrary weights."""
        return MiniCPMV(self.text, self.config)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write config.json and the weights."""
        stored = {n: t.contiguous() for n, t in model.state_dict().items() if "lm_head" not in n}
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        config = self.config.to_diff_dict()
        write_json(
            folder / "config.json",
            {
                **config,
                **_TEXT,
                "architectures": ["MiniCPMV"],
                "model_type": "minicpmv",
                "version": self.version,
                "query_num": _QUERIES,
                "image_size": SIZE,
                "patch_size": PATCH,
                "drop_vision_last_layer": False,
                "slice_config": {"max_slice_nums": 9, "patch_size": PATCH},
                "slice_mode": True,
                "use_image_id": True,
                "vision_batch_size": 16,
                "batch_vision_input": True,
                "vision_config": {**VISION, "model_type": "siglip"},
            },
        )

    def load(self, folder: Path) -> MiniCPMV:
        """Return the model with the weights of a folder, in float32."""
        model = self.make()
        model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        model.llm.tie_weights()
        return model.float()


def _inputs(_: Path, one: Media) -> Inputs:
    """Return the whole picture and its slices, as llama.cpp cuts it."""
    whole = Image.fromarray(one)
    pieces = [whole]
    if one.shape[:2] == (96, 48):
        # About 64 x 64 pixels of the same shape, in whole patches; llama.cpp rounds halves up.
        tall = whole.resize((SIZE, 2 * SIZE), Image.Resampling.BICUBIC)
        pieces = [whole.resize((44, 92), Image.Resampling.BICUBIC)]
        pieces += [tall.crop((0, n * SIZE, SIZE, (n + 1) * SIZE)) for n in range(2)]
    sizes = [[p.height // PATCH, p.width // PATCH] for p in pieces]
    return {
        "pixel_values": torch.cat([_patches(piece) for piece in pieces], dim=-1)[None],
        "target_sizes": torch.tensor(sizes, dtype=torch.int32),
    }


def _patches(piece: Image.Image) -> torch.Tensor:
    """Return a picture's patches side by side, float32 [colours, patch, patches * patch]."""
    pixels = torch.from_numpy(np.asarray(piece).copy()).permute(2, 0, 1).float() / 255
    rows = pixels.unfold(1, PATCH, PATCH).permute(0, 3, 1, 2)
    return (rows.reshape(3, PATCH, -1) - 0.5) / 0.5


def slices(inputs: Inputs, placeholder: str) -> str:
    """Return the whole picture and the slices below it, if any, as placeholders between marks."""
    n_slices = len(inputs["target_sizes"]) - 1
    below = [f"<slice>{placeholder}</slice>"] * n_slices
    return f"<image>{placeholder}</image>" + "\n".join(below)


def _case(version: float | str, text: type, config: transformers.PretrainedConfig) -> Case:
    config._attn_implementation = "eager"
    return Case(
        model=_Published(version, text, config),
        tokenizer=partial(make_qwen_bpe, plain=_MARKS),
        processor={
            "image_processor_type": "MiniCPMVImageProcessor",
            "norm_mean": [0.5, 0.5, 0.5],
            "norm_std": [0.5, 0.5, 0.5],
            "patch_size": PATCH,
            "scale_resolution": SIZE,
            "max_slice_nums": 9,
            "slice_mode": True,
        },
        media=MEDIA,
        inputs=_inputs,
        features=lambda model, inputs: model.features(**inputs),
        in_prompt=partial(slices, placeholder="<unk>"),
        placeholders=(_TOKEN,),
        weights=0.1,
    )


CASES = {
    "minicpmv2.6": _case(2.6, transformers.Qwen2ForCausalLM, transformers.Qwen2Config(**_TEXT)),
}
