"""Gemma 1, 2 and 3, and the multimodal layout of Gemma 3, without the vision model.

Windows are shorter than the prompts, and soft caps low enough to affect the results.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from reference_tokenizers import Encode, make_sentencepiece, write_json
from reference_vocabularies import make_gemma_bpe
from safetensors.torch import load_file, save_file
from transformers.modeling_outputs import BaseModelOutput

from reference_families import COMMON, GELU, Family

_WEIGHTS: dict[str, Any] = {**GELU, "norms": 0.0}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GEMMA3: dict[str, Any] = {
    **COMMON,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    # More than the tokenizer has, as in published models.
    "vocab_size": 452,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 72,
    "sliding_window": 7,
}

_DENSE = {"2_Dense": (32, 44), "3_Dense": (44, 32)}
"""Folders of EmbeddingGemma's matrices after pooling: weights of their inputs and outputs."""


class _WithDense(torch.nn.Module):
    """A text model and two matrices; as these are linear, they may come before the mean."""

    def __init__(self, text: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.text = text
        self.dense = torch.nn.ModuleList(
            torch.nn.Linear(n_in, n_out, bias=False) for n_in, n_out in _DENSE.values()
        )

    def forward(self, ids: torch.Tensor) -> BaseModelOutput:
        found = self.text(ids).last_hidden_state
        for matrix in self.dense:
            found = matrix(found)
        return BaseModelOutput(last_hidden_state=found)


class EmbeddingGemma:
    """The files of sentence-transformers: a text model, pooling, and two Dense modules."""

    def make(self) -> _WithDense:
        """Return the model with arbitrary weights."""
        config = FAMILIES["gemma-embedding"].config
        return _WithDense(transformers.Gemma3TextModel(config))

    def save(self, model: _WithDense, folder: Path) -> None:
        """Write the text model, and each matrix to a folder with its sizes."""
        model.text.save_pretrained(folder)
        for (name, (n_in, n_out)), matrix in zip(_DENSE.items(), model.dense, strict=True):
            (folder / name).mkdir()
            settings = {
                "in_features": n_in,
                "out_features": n_out,
                "bias": False,
                "activation_function": "torch.nn.modules.linear.Identity",
            }
            write_json(folder / name / "config.json", settings)
            save_file({"linear.weight": matrix.weight.data}, folder / name / "model.safetensors")

    def load(self, folder: Path) -> _WithDense:
        """Return the model with the weights of a folder, in float32, with eager attention."""
        model = _WithDense(
            transformers.Gemma3TextModel.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager"
            )
        )
        for name, matrix in zip(_DENSE, model.dense, strict=True):
            weight = load_file(folder / name / "model.safetensors")["linear.weight"]
            matrix.weight.data = weight.float()
        return model


def _embedding(folder: Path) -> Encode:
    """Write Gemma's vocabulary, and modules.json: the mean over all tokens, then two matrices."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", **dict.fromkeys(_DENSE, "Dense")}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n", "utf-8")
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    return make_gemma_bpe(folder)


FAMILIES = {
    "gemma": Family(
        transformers.GemmaConfig(
            **COMMON,
            **_IDS,
            vocab_size=400,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=20,
            intermediate_size=88,
        ),
        lambda folder: make_sentencepiece(folder, 400, []),
        **_WEIGHTS,
        published={
            "dtype": None,
            "hidden_act": "gelu",
            "hidden_activation": None,
            "rope_parameters": None,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "torch_dtype": "bfloat16",
        },
    ),
    "gemma2": Family(
        transformers.Gemma2Config(
            **COMMON,
            **_IDS,
            vocab_size=400,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=20,
            intermediate_size=72,
            query_pre_attn_scalar=13,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=0.7,
            sliding_window=7,
        ),
        lambda folder: make_sentencepiece(folder, 400, []),
        **_WEIGHTS,
        published={
            "dtype": None,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_types": None,
            "rope_parameters": None,
            "rope_theta": 10000.0,
            "torch_dtype": "bfloat16",
        },
    ),
    "gemma3": Family(
        transformers.Gemma3TextConfig(
            **_GEMMA3,
            num_hidden_layers=3,
            query_pre_attn_scalar=2,
            final_logit_softcapping=0.7,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        ),
        make_gemma_bpe,
        **_WEIGHTS,
    ),
    "gemma-embedding": Family(
        transformers.Gemma3TextConfig(
            **_GEMMA3,
            num_hidden_layers=3,
            query_pre_attn_scalar=2,
            use_bidirectional_attention=True,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        ),
        _embedding,
        **_WEIGHTS,
        model=EmbeddingGemma(),
    ),
}
