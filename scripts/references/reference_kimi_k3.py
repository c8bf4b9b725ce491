"""Kimi-K3's language model in plain PyTorch: a reference, since transformers 5.24 has no class.

Written from descriptions of the published modelling code (modeling_kimi_linear.py of
moonshotai/Kimi-K3): what each block computes, its epsilons, and the shapes of its tensors. Tokens
are processed one after the other, in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

Config = dict[str, Any]

LATENT_EPSILON = 1e-6
"""Of the norms in latent attention and of Q and K in delta attention, whatever rms_norm_eps is."""


class Norm(nn.Module):
    """A root-mean-square norm with factors."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [..., size], normalized."""
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a matrix without bias."""
    return nn.Linear(inputs, outputs, bias=False)


class Convolution(nn.Module):
    """A causal convolution of each channel, then SiLU."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [tokens, channels], each token with those before it."""
        channels, _, kernel = self.weight.shape
        before = nn.functional.pad(x.T[None], (kernel - 1, 0))
        return nn.functional.silu(nn.functional.conv1d(before, self.weight, groups=channels))[0].T


class Delta(nn.Module):
    """Delta attention: a state per head, which decays by channel and is corrected by tokens."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        of = c["linear_attn_config"]
        self.heads, self.size, self.bound = of["num_heads"], of["head_dim"], of["gate_lower_bound"]
        hidden, inner = c["hidden_size"], self.heads * self.size
        for x in "qkv":
            setattr(self, f"{x}_proj", linear(hidden, inner))
            setattr(self, f"{x}_conv1d", Convolution(inner, of["short_conv_kernel_size"]))
        self.A_log = nn.Parameter(torch.empty(self.size))  # of the heads, then zeros
        self.dt_bias = nn.Parameter(torch.empty(inner))
        self.f_a_proj, self.f_b_proj = linear(hidden, self.size), linear(self.size, inner)
        self.b_proj, self.g_proj = linear(hidden, self.heads), linear(hidden, inner)
        self.o_norm, self.o_proj = Norm(self.size, c["rms_norm_eps"]), linear(inner, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's result for x [tokens, hidden]."""
        shape = (len(x), self.heads, self.size)
        q, k, v = (
            getattr(self, f"{n}_conv1d")(getattr(self, f"{n}_proj")(x)).view(shape) for n in "qkv"
        )
        q, k = (y / torch.sqrt(y.square().sum(-1, keepdim=True) + LATENT_EPSILON) for y in (q, k))
        step = (self.f_b_proj(self.f_a_proj(x)) + self.dt_bias).view(shape)
        rate = self.A_log[: self.heads].exp()[:, None]
        decay = torch.exp(self.bound * torch.sigmoid(rate * step))
        strength = torch.sigmoid(self.b_proj(x))
        state = torch.zeros(self.heads, self.size, self.size)
        results = []
        for t in range(len(x)):
            state = decay[t][..., None] * state
            stored = torch.einsum("hk,hkv->hv", k[t], state)
            change = strength[t][:, None] * (v[t] - stored)
            state = state + torch.einsum("hk,hv->hkv", k[t], change)
            results.append(torch.einsum("hk,hkv->hv", q[t], state) * self.size**-0.5)
        gate = torch.sigmoid(self.g_proj(x)).view(shape)
        return self.o_proj((self.o_norm(torch.stack(results)) * gate).flatten(1))


class Latent(nn.Module):
    """Latent attention without positions, and a gate of its result."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.heads, self.nope = c["num_attention_heads"], c["qk_nope_head_dim"]
        self.rope, self.value, self.rank = c["qk_rope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]
        hidden, q_rank = c["hidden_size"], c["q_lora_rank"]
        self.q_a_proj, self.q_a_layernorm = linear(hidden, q_rank), Norm(q_rank, LATENT_EPSILON)
        self.q_b_proj = linear(q_rank, self.heads * (self.nope + self.rope))
        self.kv_a_proj_with_mqa = linear(hidden, self.rank + self.rope)
        self.kv_a_layernorm = Norm(self.rank, LATENT_EPSILON)
        self.kv_b_proj = linear(self.rank, self.heads * (self.nope + self.value))
        self.g_proj = linear(hidden, self.heads * self.value)
        self.o_proj = linear(self.heads * self.value, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's result for x [tokens, hidden]."""
        n = len(x)
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).view(n, self.heads, -1)
        short, shared = self.kv_a_proj_with_mqa(x).split([self.rank, self.rope], -1)
        both = self.kv_b_proj(self.kv_a_layernorm(short)).view(n, self.heads, -1)
        k, v = both.split([self.nope, self.value], -1)
        k = torch.cat([k, shared[:, None].expand(-1, self.heads, -1)], -1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * (self.nope + self.rope) ** -0.5
        future = torch.ones(n, n, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        found = torch.einsum("hqk,khd->qhd", weights, v).flatten(1)
        return self.o_proj(found * torch.sigmoid(self.g_proj(x)))


class Feedforward(nn.Module):
    """Gate, up and down with Kimi-K3's activation; names: of the three matrices."""

    def __init__(self, c: Config, hidden: int, inner: int, names: tuple[str, str, str]) -> None:
        super().__init__()
        self.names, self.bounds = (
            names,
            (
                c["activation_situ_beta"],
                c["activation_situ_linear_beta"],
            ),
        )
        gate, up, down = names
        setattr(self, gate, linear(hidden, inner))
        setattr(self, up, linear(hidden, inner))
        setattr(self, down, linear(inner, hidden))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the result for x [tokens, hidden]."""
        gate, up, down = (getattr(self, name) for name in self.names)
        b, linear_b = self.bounds
        g, u = gate(x), up(x)
        bounded = b * torch.tanh(g / b) * torch.sigmoid(g)
        return down(bounded * linear_b * torch.tanh(u / linear_b))


class Router(nn.Module):
    """The scores of the experts."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.used, self.scale = c["num_experts_per_token"], c["routed_scaling_factor"]
        self.weight = nn.Parameter(torch.empty(c["num_experts"], c["hidden_size"]))
        self.e_score_correction_bias = nn.Parameter(torch.empty(c["num_experts"]))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the experts of each token of x [tokens, hidden], and their weights."""
        scores = torch.sigmoid(x @ self.weight.T)
        chosen = (scores + self.e_score_correction_bias).topk(self.used, -1).indices
        weights = scores.gather(-1, chosen)
        return chosen, self.scale * weights / (weights.sum(-1, keepdim=True) + 1e-20)


class Mixture(nn.Module):
    """Experts on shorter vectors, and one for all tokens on whole vectors."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        hidden, short, inner = (
            c["hidden_size"],
            c["routed_expert_hidden_size"],
            c["moe_intermediate_size"],
        )
        self.gate = Router(c)
        self.experts = nn.ModuleList(
            Feedforward(c, short, inner, ("w1", "w3", "w2")) for _ in range(c["num_experts"])
        )
        self.shared_experts = Feedforward(c, hidden, inner * c["num_shared_experts"], _PROJECTIONS)
        self.routed_expert_down_proj = linear(hidden, short)
        self.routed_expert_norm = Norm(short, c["rms_norm_eps"])
        self.routed_expert_up_proj = linear(short, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's result for x [tokens, hidden]."""
        chosen, weights = self.gate(x)
        short = self.routed_expert_down_proj(x)
        every = torch.stack([expert(short) for expert in self.experts], 1)
        picked = every.gather(1, chosen[..., None].expand(-1, -1, short.shape[-1]))
        routed = self.routed_expert_norm((weights[..., None] * picked).sum(1))
        return self.routed_expert_up_proj(routed) + self.shared_experts(x)


_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def mixed(
    stream: torch.Tensor, states: list[torch.Tensor], norm: Norm, proj: nn.Linear
) -> torch.Tensor:
    """Return the earlier states and the stream, each [tokens, hidden], weighted by a softmax."""
    every = torch.stack([*states, stream])
    return (proj(norm(every)).softmax(0) * every).sum(0)


class Layer(nn.Module):
    """A layer; `starts`: whether it puts the stream aside."""

    def __init__(self, c: Config, number: int) -> None:
        super().__init__()
        hidden, epsilon = c["hidden_size"], c["rms_norm_eps"]
        self.starts = number % c["attn_res_block_size"] == 0
        is_delta = number + 1 in c["linear_attn_config"]["kda_layers"]
        self.self_attn = Delta(c) if is_delta else Latent(c)
        for name in ("self_attention_res", "mlp_res"):
            setattr(self, f"{name}_norm", Norm(hidden, epsilon))
            setattr(self, f"{name}_proj", linear(hidden, 1))
        self.input_layernorm = Norm(hidden, epsilon)
        self.post_attention_layernorm = Norm(hidden, epsilon)
        self.block = "mlp" if number < c["first_k_dense_replace"] else "block_sparse_moe"
        dense = Feedforward(c, hidden, c["intermediate_size"], _PROJECTIONS)
        setattr(self, self.block, dense if self.block == "mlp" else Mixture(c))

    def forward(self, stream: torch.Tensor, states: list[torch.Tensor]) -> torch.Tensor:
        """Return the stream [tokens, hidden] after the layer; adds to `states`."""
        x = stream
        if states:
            x = mixed(stream, states, self.self_attention_res_norm, self.self_attention_res_proj)
        found = self.self_attn(self.input_layernorm(x))
        if self.starts:
            states.append(stream)
        stream = found if self.starts else stream + found
        x = mixed(stream, states, self.mlp_res_norm, self.mlp_res_proj)
        return stream + getattr(self, self.block)(self.post_attention_layernorm(x))


class _Trunk(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        hidden = c["hidden_size"]
        self.embed_tokens = nn.Embedding(c["vocab_size"], hidden)
        self.layers = nn.ModuleList(Layer(c, n) for n in range(c["num_hidden_layers"]))
        self.output_attn_res_norm = Norm(hidden, c["rms_norm_eps"])
        self.output_attn_res_proj = linear(hidden, 1)
        self.norm = Norm(hidden, c["rms_norm_eps"])


class KimiK3(nn.Module):
    """The language model; its tensors have the published names without `language_model.`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.model = _Trunk(config)
        self.lm_head = linear(config["hidden_size"], config["vocab_size"])

    def forward(self, ids: torch.Tensor) -> CausalLMOutput:
        """Return the logits [1, tokens, vocab_size] of ids [1, tokens]."""
        model, states = self.model, []
        stream = model.embed_tokens(ids[0])
        for layer in model.layers:
            stream = layer(stream, states)
        last = mixed(stream, states, model.output_attn_res_norm, model.output_attn_res_proj)
        return CausalLMOutput(logits=self.lm_head(model.norm(last))[None])
