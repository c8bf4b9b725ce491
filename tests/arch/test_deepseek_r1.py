"""The recipes for DeepSeek-R1 on its real shapes, against the files that they are modelled on.

The oracles are the published files: counts of types and sizes as loaders print them (UD-IQ1_S:
gpustack issue 1107, xinference issue 2934; UD-Q2_K_XL: ik_llama.cpp discussion 258), the sizes of
the other two, and the bytes by class of tensors from the shapes.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imatrices import write_legacy
from published_configs import DEEPSEEK_R1, SHARDS
from sparse import header_of, n_bytes, write_sparse

from dynquant.arch.base import Model
from dynquant.arch.load import load_model
from dynquant.errors import PlanError
from dynquant.importance.imatrix import Imatrix, read_imatrix
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.recipe.loader import load_recipe

pytestmark = pytest.mark.slow  # describing 91,991 stored tensors takes seconds

N_LAYERS, N_EXPERTS, N_HEADS, NOPE, KV_RANK = 61, 256, 128, 128, 512
TOTAL_BYTES = 688_574_839_360


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("DeepSeek-R1")
    return write_sparse(made, DEEPSEEK_R1, header_of(DEEPSEEK_R1), SHARDS["DeepSeek-R1"])


@pytest.fixture(scope="module")
def merged(folder: Path) -> Model:
    return load(folder, "merged")


@pytest.fixture(scope="module")
def split(folder: Path) -> Model:
    return load(folder, "split")


def load(folder: Path, mla: Any) -> Model:
    return load_model(folder, mla=mla, needs_vocab=False)


@pytest.fixture(scope="module")
def imatrix(merged: Model, split: Model, tmp_path_factory: pytest.TempPathFactory) -> Imatrix:
    """Importance for all tensors that calibration would cover; equal for all experts of a stack."""
    means = {
        t.name: np.ones(t.n_per_row, np.float32)
        for t in (*merged.tensors, *split.tensors)
        if len(t.shape) > 1 and t.parts.layer not in (None, N_LAYERS)
    }
    return read_imatrix(write_legacy(tmp_path_factory.mktemp("imatrix") / "r1.dat", means))


def plan_of(model: Model, imatrix: Imatrix, recipe: str = "deepseek-r1-iq1_s") -> Plan:
    return make_plan(model, load_recipe(recipe), imatrix=imatrix)


def own_warnings(plan: Plan) -> list[str]:
    """Warnings but for the names of the other layout, which the one imatrix has as well."""
    usual = ("ignored, not in the model", "layers that predict further ahead")
    return [w for w in plan.warnings if not any(words in w for words in usual)]


def bytes_of(plan: Plan, *roles: str, of_type: str | None = None) -> int:
    return sum(
        t.n_bytes
        for t in plan.tensors
        if plan.sources[t.name].parts.role in roles and of_type in (None, t.type.name)
    )


def layers_of(plan: Plan, role: str, of_type: str) -> list[int | None]:
    parts = [(plan.sources[t.name].parts, t.type.name) for t in plan.tensors]
    return [p.layer for p, type_name in parts if (p.role, type_name) == (role, of_type)]


def test_the_checkpoint_has_the_published_size(folder: Path) -> None:
    header = header_of(DEEPSEEK_R1)
    kinds = Counter(dtype for dtype, _ in header.values())
    assert len(header) == 91_991
    assert kinds["F8_E4M3"] == 45_808
    assert sum(n_bytes(*tensor) for tensor in header.values()) == TOTAL_BYTES
    shards = list(folder.glob("*.safetensors"))
    assert len(shards) == 163
    # The rest are headers; those of the published files have 11,888,393 bytes.
    assert 10e6 < sum(shard.stat().st_size for shard in shards) - TOTAL_BYTES < 12e6


OLD_CLASSES = {"F32": 361, "Q4_K": 190, "Q6_K": 184, "Q5_K": 116}
PUBLISHED: dict[str, tuple[dict[str, int], int]] = {
    "deepseek-r1-iq1_s": (OLD_CLASSES | {"IQ1_S": 168, "IQ2_XXS": 6}, 140_226_135_552),
    "deepseek-r1-iq1_m": (OLD_CLASSES | {"IQ1_S": 116, "Q2_K": 55, "Q3_K": 3}, 168_910_980_608),
    "deepseek-r1-iq2_xxs": (
        OLD_CLASSES | {"IQ2_XXS": 116, "Q2_K": 55, "Q3_K": 3},
        196_157_179_392,
    ),
    "deepseek-r1-q2_k_xl": (
        {"F32": 361, "Q4_K": 306, "Q6_K": 184, "Q2_K": 171, "Q3_K": 3},
        226_596_292_096,
    ),
}


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_merged_layout_has_the_published_types_and_bytes(
    recipe: str, merged: Model, imatrix: Imatrix
) -> None:
    counts, tensor_bytes = PUBLISHED[recipe]
    plan = plan_of(merged, imatrix, recipe)
    assert plan.type_counts == counts
    assert plan.tensor_bytes == tensor_bytes
    assert plan.n_weights == 671_026_419_200
    assert own_warnings(plan) == []


def test_file_type_and_size_equal_those_that_loaders_print(merged: Model, imatrix: Imatrix) -> None:
    plan = plan_of(merged, imatrix)
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


def test_merged_layout_has_the_published_share_of_each_class(
    merged: Model, imatrix: Imatrix
) -> None:
    plan = plan_of(merged, imatrix)
    assert {roles: bytes_of(plan, *roles) for roles in BUDGET} == BUDGET
    assert bytes_of(plan, "ffn_down_exps", of_type="IQ1_S") == 38_168_166_400
    assert bytes_of(plan, "ffn_down_exps", of_type="IQ2_XXS") == 5_813_305_344
    assert sum(t.n_bytes for t in plan.tensors if t.type.name == "F32") == 429_807_616


@pytest.mark.parametrize(
    ("recipe", "type_name", "layers"),
    [
        ("deepseek-r1-iq1_s", "IQ2_XXS", [3, 4, 5, 6, 7, 8]),
        ("deepseek-r1-iq1_m", "Q3_K", [3, 4, 5]),
        ("deepseek-r1-iq2_xxs", "Q3_K", [3, 4, 5]),
        ("deepseek-r1-q2_k_xl", "Q3_K", [3, 4, 5]),
        ("deepseek-r1-dq3_k_m", "Q6_K", [3, 4]),
        ("deepseek-r1-dq3_k_m", "Q4_K", list(range(5, 61, 5))),
    ],
)
def test_layers_with_more_bits_are_the_published_ones(
    recipe: str, type_name: str, layers: list[int], merged: Model, imatrix: Imatrix
) -> None:
    assert layers_of(plan_of(merged, imatrix, recipe), "ffn_down_exps", type_name) == layers


@pytest.mark.parametrize("recipe", [*PUBLISHED, "deepseek-r1-dq3_k_m"])
def test_split_layout_changes_only_the_keys_half(
    recipe: str, split: Model, merged: Model, imatrix: Imatrix
) -> None:
    plan, whole = plan_of(split, imatrix, recipe), plan_of(merged, imatrix, recipe)
    half = N_LAYERS * N_HEADS * NOPE * KV_RANK
    assert Counter(plan.type_counts) - Counter(whole.type_counts) == {"Q8_0": N_LAYERS}
    assert plan.n_weights == whole.n_weights
    assert plan.tensor_bytes - whole.tensor_bytes == half * (8.5 - 6.5625) / 8 == 123_928_576
    assert own_warnings(plan) == []


def test_unicoms_rule_has_the_shares_and_size_of_its_paper(merged: Model, imatrix: Imatrix) -> None:
    # arXiv 2505.02390: 75.9%, 20.7% and 3.4% of ffn_down_exps; 281 GiB and 3.59 bits per weight,
    # sizes rounded up (of UD-Q2_K_XL 212 GiB, which are 211.03).
    plan = plan_of(merged, imatrix, "deepseek-r1-dq3_k_m")
    counts = Counter(
        t.type.name for t in plan.tensors if plan.sources[t.name].parts.role == "ffn_down_exps"
    )
    shares = {name: f"{count / 58:.1%}" for name, count in counts.items()}
    assert shares == {"Q3_K": "75.9%", "Q4_K": "20.7%", "Q6_K": "3.4%"}
    assert f"{plan.bits_per_weight:.2f}" == "3.59"
    assert -(-plan.tensor_bytes // 2**30) == 281


@pytest.mark.parametrize("recipe", [r for r in PUBLISHED if r != "deepseek-r1-q2_k_xl"])
def test_recipes_with_iq_types_require_an_imatrix(recipe: str, split: Model) -> None:
    with pytest.raises(PlanError, match=f"{recipe}.yaml: needs importance"):
        make_plan(split, load_recipe(recipe))


@pytest.mark.parametrize("recipe", ["deepseek-r1-q2_k_xl", "deepseek-r1-dq3_k_m"])
def test_recipes_with_k_types_need_no_imatrix(recipe: str, split: Model) -> None:
    (warning,) = make_plan(split, load_recipe(recipe)).warnings
    assert "layers that predict further ahead" in warning


def test_all_of_layer_61_is_dropped(split: Model, imatrix: Imatrix) -> None:
    plan = plan_of(split, imatrix)
    assert len(plan.ignored) == 3 * N_EXPERTS + 9 + 5 + 6
    assert all(name.startswith("model.layers.61.") for name in plan.ignored)
    assert plan.keys["deepseek2.block_count"].value == N_LAYERS


def test_the_keys_are_the_published_ones(merged: Model) -> None:
    # As printed by loaders; `merged` because those files are older than split attention.
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
    # Not in those files, which are older: groups of experts.
    assert (found["expert_group_count"], found["expert_group_used_count"]) == (8, 4)
