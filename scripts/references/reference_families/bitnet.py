"""BitNet b1.58 with the activation of llama.cpp's graph; the published 2B-4T has another one.

transformers has no class for the first BitNets (1bitLLM's b1.58). In their published modelling code
the norms have other names, and each linear layer rounds its weights while it runs: to -d, 0 or d,
with d the mean magnitude of the matrix. transformers' own function computes that here, once, when
the model is loaded. Activations are not rounded to 8 bits, which llama.cpp does in its own way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from reference_tokenizers import make_llama3_bpe, make_sentencepiece, write_json
from safetensors.torch import load_file, save_file

from reference_families import COMMON, Family

CONFIG: dict[str, Any] = {
    **COMMON,
    "vocab_size": 448,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 88,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
FIRST: dict[str, Any] = {
    "architectures": ["BitnetForCausalLM"],
    "input_bits": 8,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "float16",
    "vocab_size": 400,
    "weight_bits": 1,
}
NAMES = {"attn_sub_norm": "inner_attn_ln", "ffn_sub_norm": "ffn_layernorm"}


@dataclass(frozen=True)
class RoundedWhileItRuns:
    """The first BitNets: other names of norms, and weights that the model rounds."""

    def make(self) -> transformers.PreTrainedModel:
        """Return the model with arbitrary weights."""
        rope = {"rope_type": "default", "rope_theta": FIRST["rope_theta"]}
        sizes = {**CONFIG, "vocab_size": FIRST["vocab_size"]}
        config = transformers.BitNetConfig(**sizes, rope_parameters=rope)
        return transformers.BitNetForCausalLM(config)

    def save(self, model: transformers.PreTrainedModel, folder: Path) -> None:
        """Write config.json and the weights under the published names."""
        write_json(folder / "config.json", {**CONFIG, **FIRST})
        save_file(
            {
                _renamed(name): x.contiguous()
                for name, x in model.state_dict().items()
                if name != "lm_head.weight"
            },
            folder / "model.safetensors",
            {"format": "pt"},
        )

    def load(self, folder: Path) -> transformers.PreTrainedModel:
        """Return the model with the weights that it computes with."""
        torch._dynamo.config.disable = True  # the function is compiled otherwise
        from transformers.integrations.bitnet import WeightQuant

        stored = load_file(folder / "model.safetensors")
        model = self.make()
        names = {_renamed(name): name for name in model.state_dict()}
        weights = {
            names[name]: WeightQuant.apply(x) if "_proj" in name else x
            for name, x in stored.items()
        }
        model.load_state_dict(weights, strict=False)
        model.tie_weights()
        return model.float()


def _renamed(name: str) -> str:
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


FAMILIES = {
    "bitnet": Family(
        transformers.BitNetConfig(
            **CONFIG,
            rope_parameters={"rope_type": "default", "rope_theta": 77000.0},
            bos_token_id=442,
            eos_token_id=443,
            pad_token_id=0,
        ),
        make_llama3_bpe,
        published={"dtype": None, "torch_dtype": "bfloat16"},
    ),
    "bitnet-first": Family(
        transformers.BitNetConfig(),
        partial(make_sentencepiece, vocab_size=400, controls=[]),
        dtype=torch.float32,
        model=RoundedWhileItRuns(),
    ),
}
