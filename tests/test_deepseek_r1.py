"""The recipe deepseek-r1-iq1_s on DeepSeek-R1's real shapes, beside the file it is modelled on.

The oracle is the published file: its counts of types and its size as loaders print them (gpustack
issue 1107, xinference issue 2934), its bytes by class of tensors from the shapes.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_holes
from imatrices import write_legacy

from dynquant.arch.base import Model
from dynquant.arch.load import load_model
from dynquant.errors import PlanError
from dynquant.importance.imatrix import Imatrix, read_imatrix
from dynquant.plan.plan import Plan, make_plan
from dynquant.recipe.language import load_recipe

HIDDEN, FFN, EXPERT_FFN, N_EXPERTS, N_HEADS = 7168, 18432, 2048, 256, 128
Q_RANK, KV_RANK, NOPE, ROPE, VALUE, VOCAB = 1536, 512, 128, 64, 128, 129280
N_LAYERS, N_DENSE = 61, 3

# config.json of DeepSeek-R1, but that the weights here are BF16, as in its dequantized copies.
CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "first_k_dense_replace": N_DENSE,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "kv_lora_rank": KV_RANK,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": EXPERT_FFN,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": N_EXPERTS,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": N_HEADS,
    "num_experts_per_tok": 8,
    "num_hidden_layers": N_LAYERS,
    "num_key_value_heads": N_HEADS,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": Q_RANK,
    "qk_nope_head_dim": NOPE,
    "qk_rope_head_dim": ROPE,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "v_head_dim": VALUE,
    "vocab_size": VOCAB,
}


def shapes_of_r1() -> dict[str, tuple[int, ...]]:
    """Stored names and shapes, layer 61 among them."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCAB, HIDDEN),
    }
    for layer in range(N_LAYERS + 1):
        at = f"model.layers.{layer}."
        shapes |= {
            f"{at}input_layernorm.weight": (HIDDEN,),
            f"{at}post_attention_layernorm.weight": (HIDDEN,),
            f"{at}self_attn.q_a_proj.weight": (Q_RANK, HIDDEN),
            f"{at}self_attn.q_a_layernorm.weight": (Q_RANK,),
            f"{at}self_attn.q_b_proj.weight": (N_HEADS * (NOPE + ROPE), Q_RANK),
            f"{at}self_attn.kv_a_proj_with_mqa.weight": (KV_RANK + ROPE, HIDDEN),
            f"{at}self_attn.kv_a_layernorm.weight": (KV_RANK,),
            f"{at}self_attn.kv_b_proj.weight": (N_HEADS * (NOPE + VALUE), KV_RANK),
            f"{at}self_attn.o_proj.weight": (HIDDEN, N_HEADS * VALUE),
        }
        if layer < N_DENSE:
            shapes |= mlp(f"{at}mlp.", FFN)
            continue
        shapes |= mlp(f"{at}mlp.shared_experts.", EXPERT_FFN)
        shapes[f"{at}mlp.gate.weight"] = (N_EXPERTS, HIDDEN)
        shapes[f"{at}mlp.gate.e_score_correction_bias"] = (N_EXPERTS,)
        for expert in range(N_EXPERTS):
            shapes |= mlp(f"{at}mlp.experts.{expert}.", EXPERT_FFN)
    at = f"model.layers.{N_LAYERS}."
    return shapes | {
        f"{at}eh_proj.weight": (HIDDEN, 2 * HIDDEN),
        f"{at}enorm.weight": (HIDDEN,),
        f"{at}hnorm.weight": (HIDDEN,),
        f"{at}embed_tokens.weight": (VOCAB, HIDDEN),
        f"{at}shared_head.norm.weight": (HIDDEN,),
        f"{at}shared_head.head.weight": (VOCAB, HIDDEN),
    }


def mlp(at: str, ffn: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{at}gate_proj.weight": (ffn, HIDDEN),
        f"{at}up_proj.weight": (ffn, HIDDEN),
        f"{at}down_proj.weight": (HIDDEN, ffn),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_holes(tmp_path_factory.mktemp("DeepSeek-R1"), CONFIG, shapes_of_r1())


@pytest.fixture(scope="module")
def merged(folder: Path) -> Model:
    return load(folder, "merged")


@pytest.fixture(scope="module")
def split(folder: Path) -> Model:
    return load(folder, "split")


def load(folder: Path, mla: Any) -> Model:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dynquant.arch.load.read_vocab", lambda *_, **__: {})
        return load_model(folder, mla=mla)


def imatrix_of(model: Model, path: Path) -> Imatrix:
    """Importance for all that a calibration run would see; for stacks, the same for all experts."""
    means = {
        t.name: np.ones(t.n_per_row, np.float32)
        for t in model.tensors
        if len(t.shape) > 1 and t.parts.layer not in (None, N_LAYERS)
    }
    return read_imatrix(write_legacy(path, means))


def plan_of(model: Model, path: Path) -> Plan:
    return make_plan(model, load_recipe("deepseek-r1-iq1_s"), imatrix=imatrix_of(model, path))


def bytes_of(plan: Plan, *roles: str, of_type: str | None = None, quantized: bool = True) -> int:
    return sum(
        t.n_bytes
        for t in plan.tensors
        if plan.sources[t.name].parts.role in roles
        and of_type in (None, t.type.name)
        and (t.type.name != "F32") == quantized
    )


def test_the_shapes_are_those_of_the_published_checkpoint() -> None:
    shapes = shapes_of_r1()
    assert len(shapes) == 45_808 + 375
    assert sum(prod(shape) for shape in shapes.values()) == 684_489_845_504


def test_merged_it_has_the_published_types_and_bytes(merged: Model, tmp_path: Path) -> None:
    plan = plan_of(merged, tmp_path / "r1.dat")
    assert plan.type_counts == {
        "F32": 361,
        "Q4_K": 190,
        "Q6_K": 184,
        "IQ1_S": 168,
        "Q5_K": 116,
        "IQ2_XXS": 6,
    }
    assert plan.n_weights == 671_026_419_200
    assert plan.tensor_bytes == 140_226_135_552
    assert plan.keys["general.file_type"].value == 24  # LLAMA_FTYPE_MOSTLY_IQ1_S
    assert f"{plan.bits_per_weight:.2f}" == "1.67"
    assert f"{plan.tensor_bytes / 2**30:.2f}" == "130.60"


BUDGET = {
    ("ffn_gate_exps", "ffn_up_exps"): 85_144_371_200,
    ("attn_output",): 4_029_677_568,
    ("attn_q_b",): 1_295_253_504,
    ("ffn_gate_shexp", "ffn_up_shexp"): 1_170_735_104,
    ("attn_kv_b",): 839_516_160,
    ("output",): 760_166_400,
    ("ffn_down_shexp",): 698_449_920,
    ("token_embd",): 521_256_960,
    ("ffn_gate", "ffn_up"): 445_906_944,
    ("attn_q_a",): 377_782_272,
    ("ffn_down",): 325_140_480,
    ("attn_kv_a_mqa",): 206_599_680,
}


def test_merged_each_class_has_its_share_of_the_bytes(merged: Model, tmp_path: Path) -> None:
    plan = plan_of(merged, tmp_path / "r1.dat")
    assert {roles: bytes_of(plan, *roles) for roles in BUDGET} == BUDGET
    assert bytes_of(plan, "ffn_down_exps", of_type="IQ1_S") == 38_168_166_400
    assert bytes_of(plan, "ffn_down_exps", of_type="IQ2_XXS") == 5_813_305_344
    assert sum(t.n_bytes for t in plan.tensors if t.type.name == "F32") == 429_807_616
    assert plan.warnings == ()


def test_split_only_the_keys_half_changes_and_the_plan_says_so(
    split: Model, merged: Model, tmp_path: Path
) -> None:
    plan, whole = plan_of(split, tmp_path / "s.dat"), plan_of(merged, tmp_path / "m.dat")
    half = N_LAYERS * N_HEADS * NOPE * KV_RANK
    assert Counter(plan.type_counts) - Counter(whole.type_counts) == {"Q8_0": N_LAYERS}
    assert plan.n_weights == whole.n_weights
    assert plan.tensor_bytes - whole.tensor_bytes == half * (8.5 - 6.5625) / 8
    assert [w for w in plan.warnings if "fallback Q8_0 instead of Q6_K" in w] == list(plan.warnings)


def test_without_an_imatrix_it_is_refused(split: Model) -> None:
    with pytest.raises(PlanError, match="IQ1_S needs importance") as e:
        make_plan(split, load_recipe("deepseek-r1-iq1_s"))
    assert any("IQ2_XXS needs importance" in message for message in e.value.messages)


def test_layer_61_is_dropped_whole(split: Model, tmp_path: Path) -> None:
    plan = plan_of(split, tmp_path / "r1.dat")
    assert len(plan.ignored) == 3 * N_EXPERTS + 9 + 5 + 6
    assert all(name.startswith("model.layers.61.") for name in plan.ignored)
    assert plan.keys["deepseek2.block_count"].value == N_LAYERS


def test_the_keys_are_the_published_ones(merged: Model) -> None:
    # As loaders print them; `merged` because those files are older than split attention.
    found = {k.removeprefix("deepseek2."): v.value for k, v in merged.keys.items()}
    expected = {
        "block_count": 61,
        "context_length": 163840,
        "embedding_length": 7168,
        "feed_forward_length": 18432,
        "attention.head_count": 128,
        "attention.head_count_kv": 128,
        "rope.freq_base": 10000.0,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "expert_used_count": 8,
        "leading_dense_block_count": 3,
        "vocab_size": 129280,
        "attention.q_lora_rank": 1536,
        "attention.kv_lora_rank": 512,
        "attention.key_length": 192,
        "attention.value_length": 128,
        "expert_feed_forward_length": 2048,
        "expert_count": 256,
        "expert_shared_count": 1,
        "expert_weights_scale": 2.5,
        "expert_weights_norm": True,
        "expert_gating_func": 2,
        "rope.dimension_count": 64,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 40.0,
        "rope.scaling.original_context_length": 4096,
        "rope.scaling.yarn_log_multiplier": 0.1,
    }
    assert {key: found[key] for key in expected} == expected
    # Later than those files: which experts may be chosen, by groups.
    assert (found["expert_group_count"], found["expert_group_used_count"]) == (8, 4)
