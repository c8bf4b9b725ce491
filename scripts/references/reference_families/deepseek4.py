"""DeepSeek-V4: all kinds of attention, hyper-connections, and experts by a table and by scores.

The checkpoint has the names of published ones. One prompt is longer than the 128 tokens that the
last layer compresses into one, and the indexer of the second layer chooses three windows of those
that a prompt has. The seed is chosen so that no two windows tie for the last place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from reference_tokenizers import make_llama3_bpe
from safetensors.torch import load_file, save_file

from reference_families import COMMON, Family

_NAMES = {
    r"^model\.embed_tokens\.": "embed.",
    r"^model\.hc_head\.hc_": "hc_head_",
    r"^model\.": "",
    r"\.attn\.norm\.": ".attn.kv_norm.",
}
"""From the names that transformers writes to published names."""

_F32 = re.compile(r"(^|.*\.)(hc_\w+_(base|scale)|attn_sink|ape|bias)")
"""Tensors that are F32 as in published checkpoints, which have larger ones too."""


@dataclass(frozen=True)
class PublishedV4:
    """A model whose checkpoint has published names."""

    config: transformers.DeepseekV4Config

    def make(self) -> transformers.PreTrainedModel:
        """Return the model with arbitrary weights."""
        return transformers.AutoModelForCausalLM.from_config(self.config)

    def save(self, model: transformers.PreTrainedModel, folder: Path) -> None:
        """Write config.json and the weights, with tables of experts, different for each token.

        Hyper-connections and the bias of scores have larger numbers, so that they matter.
        """
        for name, numbers in model.state_dict().items():
            if name.endswith(("scale", "base", "correction_bias")):
                numbers *= 5
        random = torch.Generator().manual_seed(0)
        n, used = self.config.n_routed_experts, self.config.num_experts_per_tok
        for name, table in model.named_buffers():
            if name.endswith("tid2eid"):
                rows = [torch.randperm(n, generator=random)[:used] for _ in range(len(table))]
                table.copy_(torch.stack(rows))
        model.save_pretrained(folder)
        path = folder / "model.safetensors"
        renamed: dict[str, torch.Tensor] = {}
        for name, tensor in load_file(path).items():
            for before, after in _NAMES.items():
                name = re.sub(before, after, name)
            renamed[name] = tensor.float() if _F32.fullmatch(name) else tensor
        save_file(renamed, path, {"format": "pt"})

    def load(self, folder: Path) -> transformers.PreTrainedModel:
        """Return the model with the weights of a folder, in float32, with eager attention."""
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )


_YARN = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 16,
    "original_max_position_embeddings": 64,
    "type": "yarn",
}
_CONFIG = transformers.DeepseekV4Config(
    **COMMON | {"rms_norm_eps": 1e-6},
    vocab_size=448,
    num_hidden_layers=3,
    num_attention_heads=6,
    head_dim=40,
    qk_rope_head_dim=12,
    q_lora_rank=12,
    o_groups=2,
    o_lora_rank=10,
    sliding_window=6,
    compress_ratios=[0, 4, 128],
    compress_rope_theta=160000.0,
    index_n_heads=7,
    index_head_dim=64,
    index_topk=3,
    num_hash_layers=1,
    moe_intermediate_size=12,
    n_routed_experts=5,
    num_experts_per_tok=3,
    routed_scaling_factor=1.5,
    swiglu_limit=1.5,
    hc_sinkhorn_iters=3,
    bos_token_id=442,
    eos_token_id=443,
    rope_parameters={**_YARN, "rope_type": "yarn"},
)

FAMILIES = {
    "deepseek-v4": Family(
        _CONFIG,
        make_llama3_bpe,
        published={
            **dict.fromkeys(
                ("layer_types", "mlp_layer_types", "compress_rates", "partial_rotary_factor")
            ),
            "compress_ratios": [0, 4, 128, 0],
            "dtype": None,
            "expert_dtype": "fp4",
            "num_hash_layers": 1,
            "qk_rope_head_dim": 12,
            "rope_parameters": None,
            "rope_scaling": _YARN,
            "topk_method": "noaux_tc",
            "torch_dtype": "bfloat16",
        },
        model=PublishedV4(_CONFIG),
        long=139,
    ),
}
