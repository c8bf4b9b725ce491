"""PhiMoE, computed as in llama.cpp's graph, which differs from the model in two places."""

from __future__ import annotations

import torch
import transformers
from reference_tokenizers import make_sentencepiece
from transformers.models.phimoe.modeling_phimoe import PhimoeTopKRouter

from reference_families import COMMON, Family

ROPE = {
    # The original length is not shorter than llama.cpp's context in the tests, 512 tokens.
    "long_factor": [1.1, 2.3, 5.9, 17.0],
    "long_mscale": 1.243,
    "original_max_position_embeddings": 512,
    "short_factor": [1.0, 1.2, 1.7, 2.9],
    "short_mscale": 1.243,
    "type": "longrope",
}


class RootMeanSquareNorm(torch.nn.Module):
    """A norm with a bias that does not subtract the mean."""

    def __init__(self, norm: torch.nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x divided by its root mean square, scaled and shifted."""
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (x * scale) + self.bias


class NormalizedRouter(torch.nn.Module):
    """The experts with the highest scores and weights that sum to one, in place of SparseMixer."""

    def __init__(self, router: PhimoeTopKRouter) -> None:
        super().__init__()
        self.weight, self.top_k = router.weight, router.top_k

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the scores, and weights and indices of the chosen experts."""
        scores = torch.nn.functional.linear(x, self.weight)
        weights, chosen = torch.softmax(scores, dim=-1).topk(self.top_k)
        return scores, weights / weights.sum(-1, keepdim=True), chosen


def adapt(model: transformers.PreTrainedModel) -> None:
    """Replace PhiMoE's norms and routing by llama.cpp's."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.LayerNorm):
                setattr(parent, name, RootMeanSquareNorm(child))
            elif isinstance(child, PhimoeTopKRouter):
                setattr(parent, name, NormalizedRouter(child))


FAMILIES = {
    "phimoe": Family(
        transformers.PhimoeConfig(
            **{**COMMON, "max_position_embeddings": 4096},
            vocab_size=400,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=24,
            num_local_experts=4,
            num_experts_per_tok=2,
            attention_bias=True,
            lm_head_bias=True,
            sliding_window=40,
            bos_token_id=1,
            eos_token_id=2,
            rope_scaling=dict(ROPE),
        ),
        lambda folder: make_sentencepiece(folder, 400, []),
        published={
            "architectures": ["PhiMoEForCausalLM"],
            "dtype": None,
            "original_max_position_embeddings": 512,
            "rope_parameters": None,
            "rope_scaling": ROPE,
            "rope_theta": 10000.0,
            "torch_dtype": "bfloat16",
        },
        adapt=adapt,
    ),
}
