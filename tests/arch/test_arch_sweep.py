"""No setting of a config.json is ignored silently, in any family.

Every setting that a family's class has is changed to another value. The description of the model
must change, or be refused, or have a warning more; only settings that the family declares harmless
may do nothing. The oracle for names and defaults is transformers (config_fields.json, stored by
make_config_fields.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any

import pytest
from agreement import FAMILIES, load_reference
from places import TESTS
from subsets import FAST_FAMILIES, slow_except

from dynquant.arch.base import Architecture
from dynquant.arch.families import families
from dynquant.arch.load import describe
from dynquant.arch.settings import COMMON, Declared
from dynquant.arch.wrapped import OTHER_SETTINGS, Wrapped
from dynquant.errors import ArchitectureError
from dynquant.text_settings import text_settings

STORED: dict[str, dict[str, Any]] = json.loads(
    (TESTS / "references" / "config_fields.json").read_text("utf-8")
)
SWEPT = tuple(f for f in FAMILIES if f not in ("gpt-oss-mxfp4", "command-r-plus", "lfm2vl"))
"""Families without those that are another's in another form."""


@cache
def text_of(family: str) -> str:
    return (load_reference(family).folder / "config.json").read_text("utf-8")


def config_of(family: str) -> dict[str, Any]:
    """Return the config.json of a reference."""
    config: dict[str, Any] = json.loads(text_of(family))
    return config


def class_of(family: str) -> str:
    name: str = config_of(family)["architectures"][0]
    return name


def declared(family: str) -> Declared:
    found = families()[class_of(family)]
    if isinstance(found, Wrapped):
        found = found.family_of(text_settings(config_of(family)))
    assert isinstance(found, Declared)
    return found


def fields_of(family: str) -> dict[str, Any]:
    """Return the settings of the family with its values, else those of its class."""
    config = config_of(family)
    return {**STORED.get(class_of(family), {}), **(text_settings(config) or config)}


def changed(family: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    config = config_of(family)
    (text_settings(config) or config).update(changes)
    # A larger class states some settings twice.
    return config | {name: value for name, value in changes.items() if name in config}


def without(family: str, name: str) -> dict[str, Any]:
    config = config_of(family)
    (text_settings(config) or config).pop(name, None)
    return config


def plain(via: object) -> object:
    """Return a transform in a form that can be compared."""
    if isinstance(via, partial):
        return (plain(via.func), via.args, sorted(via.keywords.items()))
    return getattr(via, "__qualname__", via)


def shapes(found: Architecture) -> list[object]:
    """Return the stored tensors that a description asks for, with their shapes."""
    return [
        (
            row.stored,
            row.parts,
            row.name,
            [found.sizes[word] for word in row.shape.split()],
            row.layers,
        )
        for row in found.rows
    ] + [found.n_layers, found.tied, found.n_experts]


def footprint(found: Architecture) -> list[object]:
    """Return everything of a description that changes a file or is reported."""
    return [
        found.keys,
        shapes(found),
        [plain(found.via_of(row)) for row in found.rows],
        [(t.name, rows_of(t)) for t in found.extra],
        found.deviations,
        found.prediction and found.prediction.keys,
    ]


def rows_of(tensor: Any) -> list[float]:
    values: list[float] = tensor.source.values.tolist()
    return values


_WINDOWED = {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 6}
_GROUPED = {"topk_method": "group_limited_greedy"}
WITH: dict[str, dict[str, Any]] = {
    "sliding_window": {**_WINDOWED, "layer_types": None},
    "max_window_layers": {**_WINDOWED, "max_window_layers": 28, "layer_types": None},
    "use_sliding_window": {**_WINDOWED, "layer_types": None},
    "layer_types": {**_WINDOWED, "max_window_layers": 28},
    "expand": {"intermediate_size": None},
    "n_group": {**_GROUPED, "topk_group": 1},
    "topk_group": {**_GROUPED, "n_group": 3},
    "max_position_embeddings": {"model_max_length": None},
    "model_max_length": {"max_position_embeddings": None},
    "hidden_act": {"hidden_activation": None},
    "intermediate_size": {"block_ff_dim": None, "block_auto_adjust_ff_dim": False},
    "tie_word_embeddings": {"tie_embedding": None},
    "num_attention_heads": {"num_attention_heads_per_layer": None},
    "no_rope_layer_interval": {"no_rope_layers": None, "layer_types": None},
    "sliding_window_pattern": {"layer_types": None},
    "global_attn_every_n_layers": {"layer_types": None},
}
"""Other settings that a setting needs to act: it has no effect without windows, for example."""

OTHERS: dict[str, tuple[Any, ...]] = {
    "sliding_window": (6,),
    "max_window_layers": (0,),
    "hidden_act": ("relu",),
    "hidden_activation": ("relu",),
    "topk_method": ("other",),
    "scoring_func": ("other",),
    "head_dim": (16, 20),
    "num_key_value_heads": (1, 2),
    "attn_logit_softcapping": (3.0,),
    "final_logit_softcapping": (3.0,),
    "use_bidirectional_attention": (True,),
    "clip_qkv": (0.5,),
    "mlp_only_layers": ([0],),
    "q_lora_rank": (16,),
    "block_ff_dim": (200,),
    "n_group": (1, 3),
    "topk_group": (1,),
    "tie_word_embeddings": (True, False),
}


OF_MAMBA = {
    *("mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_head", "mamba_d_conv"),
    *("mamba_expand", "time_step_limit"),
}
WITHOUT_EFFECT = {
    "baichuan2": {"z_loss_weight"},  # it shows a Baichuan 2, whatever its value is
    "cohere2moe-rms": {"layer_norm_eps", "norm_topk_prob", "prefix_dense_sliding_window_pattern"},
    "exaone4": {"sliding_window_pattern"},
    "falcon-40b": {"multi_query"},
    "falcon-h1": {"mamba_expand", "mamba_norm_before_gate"},
    "falcon-h1-tied": {"mamba_expand"},
    "gemma4moe": {"use_double_wide_mlp"},
    "gemma4unified": {"use_double_wide_mlp"},
    "granite4": {"intermediate_size", "num_experts_per_tok", *OF_MAMBA},
    "granite4moe": OF_MAMBA,
    "granite4h": {"intermediate_size", "num_experts_per_tok", "rope_theta"},
    "nemotron-h": {
        *("n_routed_experts", "n_shared_experts", "moe_intermediate_size", "moe_latent_size"),
        *("moe_shared_expert_intermediate_size", "num_experts_per_tok", "routed_scaling_factor"),
        *("n_group", "topk_group", "norm_topk_prob", "num_nextn_predict_layers"),
    },
    "nemotron-h-moe": {"intermediate_size"},
    "nemotron-h-puzzle": {"intermediate_size"},
}
"""Settings of layers, windows, norms or experts that a model does not have."""


def others(family: str, name: str, value: object) -> Iterator[Any]:
    """Yield other legal values of a setting."""
    if name == "layer_types":
        n = fields_of(family)["num_hidden_layers"]
        kinds = ("full_attention", "sliding_attention")
        yield [kinds[layer == 0] for layer in range(n)]
    elif name in OTHERS:
        yield from (v for v in OTHERS[name] if v != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from {value + 1, 2 * value or 2}
    elif isinstance(value, float):
        yield 0.7 * value + 0.01


ROPES = ("rope_parameters", "rope_scaling")


def without_theta(family: str) -> dict[str, Any] | None:
    """Return rotary settings with sections, whose defaults are made for larger heads; else None."""
    config = config_of(family)
    rope: dict[str, Any] = (text_settings(config) or config).get("rope_parameters") or {}
    has_sections = "mrope_section" in rope
    return {k: v for k, v in rope.items() if k != "rope_theta"} if has_sections else None


def silent(family: str, name: str) -> list[Any]:
    """Return the values of a setting that change nothing, without a word."""
    base = dict(WITH.get(name, {}))
    if name == "rope_theta":
        base["rope_parameters"] = without_theta(family)
    if name == "layer_types":
        base[name] = ["full_attention"] * fields_of(family)["num_hidden_layers"]
    if name == "rope_theta" and fields_of(family).get("layer_rope_theta"):
        base["layer_rope_theta"] = None
    if name == "rope_theta":
        stated = fields_of(family).get("rope_parameters") or {}
        is_one = not any(isinstance(v, dict) for v in stated.values())
        rest = {k: v for k, v in stated.items() if k != name} if is_one else {}
        base["rope_parameters"] = rest or None
    try:
        before = footprint(describe(changed(family, base), "config.json"))
    except ArchitectureError:
        before, base = footprint(describe(config_of(family), "config.json")), {}
    found: list[Any] = []
    inside = changed(family, base)
    inside = text_settings(inside) or inside
    for value in others(family, name, inside.get(name, fields_of(family)[name])):
        try:
            after = footprint(describe(changed(family, {**base, name: value}), "config.json"))
        except ArchitectureError:
            continue
        if after == before:
            found.append(value)
    return found


@pytest.mark.parametrize("family", slow_except(FAST_FAMILIES, SWEPT))
def test_a_setting_with_another_value_is_used_or_refused_or_reported(family: str) -> None:
    allowed = {*COMMON, *declared(family).settings.harmless, *ROPES, *OTHER_SETTINGS}
    allowed |= WITHOUT_EFFECT.get(family, set())
    names = [n for n in fields_of(family) if n not in allowed]
    assert len(names) >= 8
    assert {name: v for name in names if (v := silent(family, name))} == {}


def described(config: dict[str, Any]) -> Architecture | None:
    """Return the description; None if the config.json is refused."""
    try:
        return describe(config, "config.json")
    except ArchitectureError:
        return None


def differs_without(family: str, name: str, default: object) -> bool:
    """Return whether a missing setting means another value than the class's default.

    Not if the shapes of stored tensors differ: these are compared before anything is written.
    """
    missing = described(without(family, name))
    stated = described({**without(family, name), name: default})
    if missing is None or (stated and shapes(missing) != shapes(stated)):
        return False
    return stated is None or footprint(missing) != footprint(stated)


SIZED = {
    "num_hidden_layers",
    "num_key_value_heads",
    "linear_head_dim",
    "linear_lower_bound",
    "linear_num_heads",
}
"""Settings whose default may not fit the reference's other sizes."""


@pytest.mark.parametrize("family", slow_except(FAST_FAMILIES, SWEPT))
def test_a_missing_setting_has_the_default_of_its_class(family: str) -> None:
    fields = {k: v for k, v in STORED.get(class_of(family), {}).items() if k not in SIZED}
    found = {n: v for n, v in fields.items() if v is not None and differs_without(family, n, v)}
    assert found == {}


LONG = {"short_factor": [1.0, 1.2, 1.7, 2.9], "long_factor": [1.1, 2.3, 5.9, 17.0]}
SCALED: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": LONG,
}
SUB: dict[str, dict[str, Any]] = {
    "linear": {"factor": 5.0, "partial_rotary_factor": 0.75, "rope_theta": 777.0},
    "yarn": {
        "factor": 5.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 0.7,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
        "rope_theta": 777.0,
    },
    "llama3": {
        "factor": 5.0,
        "low_freq_factor": 2.0,
        "high_freq_factor": 5.0,
        "original_max_position_embeddings": 32,
        "rope_theta": 777.0,
    },
    "longrope": {
        "short_factor": [1.0, 1.2, 1.7, 3.9],
        "long_factor": [1.1, 2.3, 5.9, 18.0],
        "attention_factor": 1.5,
        "rope_theta": 777.0,
    },
}


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("family", slow_except(FAST_FAMILIES, SWEPT))
def test_a_setting_of_the_rope_is_used_or_refused_or_reported(family: str, kind: str) -> None:
    if "rope_theta" not in fields_of(family) and not config_of(family).get("rope_parameters"):
        pytest.skip("no rope")
    if "rope_theta" in declared(family).settings.harmless:
        pytest.skip("its layers are not rotated")
    if config_of(family).get("position_embedding_type") == "nope":
        pytest.skip("no rope")
    silent: list[str] = []
    base = {"rope_type": kind, "rope_theta": 10000.0, **SCALED[kind]}
    of_config = {"rope_scaling": None, "original_max_position_embeddings": None}
    before = described(changed(family, {**of_config, "rope_parameters": base}))
    for name, value in SUB[kind].items() if before else ():
        more = {**of_config, "rope_parameters": {**base, name: value}}
        after = described(changed(family, more))
        if before and after and footprint(after) == footprint(before):
            silent.append(name)
    assert silent == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reference_has_no_unknown_setting(family: str) -> None:
    found = describe(config_of(family), "config.json").deviations
    assert [text for text in found if "not known" in text] == []


def test_unknown_settings_are_one_warning_with_their_names() -> None:
    more = {"new_norm": 2.0, "rope_parameters": {"rope_type": "default", "spiral": 3}}
    found = describe(changed("qwen3", more), "config.json").deviations
    assert found == (
        "config.json: not known as a setting of this family: 'new_norm', 'rope_parameters.spiral';"
        " if the model's own code uses it, the file's results differ; remove it if not",
    )


def test_an_unknown_setting_of_the_rope_of_some_layers_is_reported() -> None:
    sets = config_of("gemma3")["rope_parameters"]
    sets["sliding_attention"]["spiral"] = 3
    (warning,) = describe(changed("gemma3", {"rope_parameters": sets}), "config.json").deviations
    assert "'rope_parameters.sliding_attention.spiral';" in warning


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_an_unknown_setting_that_is_off_is_not_reported(value: object) -> None:
    assert describe(changed("qwen3", {"new_norm": value}), "config.json").deviations == ()


def test_unknown_settings_beyond_eight_are_counted() -> None:
    more = {f"new_{i}": i + 1 for i in range(11)}
    (warning,) = describe(changed("llama-2", more), "config.json").deviations
    assert "'new_6' and 3 more;" in warning


def test_a_gemma_that_is_not_causal_is_refused() -> None:
    with pytest.raises(ArchitectureError, match="use_bidirectional_attention is true"):
        describe(changed("gemma", {"use_bidirectional_attention": True}), "config.json")


def test_a_supported_value_of_a_setting_is_not_reported() -> None:
    assert describe(changed("cohere2", {"use_parallel_block": True}), "c").deviations == ()


def test_warnings_apply_to_merged_attention_too() -> None:
    found = describe(changed("deepseek-v2", {"topk_group": 1, "new_norm": 1}), "config.json")
    assert found.merged is not None
    assert found.merged.deviations == found.deviations
    assert len(found.deviations) == 2


TOO_MANY: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("mixtral", {"num_experts_per_tok": 6}, "num_experts_per_tok is 6, .* only 5 experts"),
    ("olmoe", {"num_experts_per_tok": 6}, "only 5 experts"),
    ("gpt-oss", {"num_experts_per_tok": 6}, "only 5 experts"),
    ("deepseek-v3", {"num_experts_per_tok": 10}, "only 9 experts"),
    ("deepseek-v3", {"num_experts_per_tok": 7}, "topk_group 2 leaves only 6 of 9 experts"),
    ("deepseek-v3", {"topk_group": 1}, "is 4, but topk_group 1 leaves only 3 of 9 experts"),
    ("glm4moe", {"num_experts_per_tok": 4}, "topk_group 1 leaves only 3 of 6 experts"),
)


@pytest.mark.parametrize(("family", "changes", "message"), TOO_MANY)
def test_more_experts_a_token_than_can_be_chosen_are_refused(
    family: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArchitectureError, match=message):
        describe(changed(family, changes), "config.json")


GROUPED = ("glm4moe", "dots1", "exaone-moe", "nemotron-h-moe")


@pytest.mark.parametrize("family", GROUPED)
def test_groups_that_llama_cpp_does_not_load_are_refused(family: str) -> None:
    for groups in ({"n_group": 2, "topk_group": 3}, {"n_group": 5, "topk_group": 2}):
        with pytest.raises(ArchitectureError, match="needs equal groups"):
            describe(changed(family, groups), "config.json")


@pytest.mark.parametrize("family", ["deepseek-v3", "youtu", "glm4moelite"])
def test_rotated_halves_stated_by_a_null_are_refused(family: str) -> None:
    with pytest.raises(ArchitectureError, match="rope_interleave is False"):
        describe(changed(family, {"rope_interleave": None}), "config.json")


def test_a_null_of_norm_topk_prob_is_false_as_in_transformers() -> None:
    null, false = (
        describe(changed("deepseek-v3", {"norm_topk_prob": value}), "config.json").keys
        for value in (None, False)
    )
    assert null == false
    assert null != describe(config_of("deepseek-v3"), "config.json").keys


@pytest.mark.parametrize("family", GROUPED)
def test_groups_that_are_all_used_have_no_keys(family: str) -> None:
    found = describe(changed(family, {"n_group": 2, "topk_group": 2}), "config.json")
    assert not [key for key in found.keys if ".expert_group_" in key]


@pytest.mark.parametrize("family", ["deepseek-v2", "deepseek-v3", "qwen3next"])
def test_an_epsilon_that_llama_cpp_uses_in_more_norms_is_reported(family: str) -> None:
    before = describe(config_of(family), "config.json").deviations
    after = describe(changed(family, {"rms_norm_eps": 1e-5}), "config.json").deviations
    (warning,) = set(after) - set(before)
    assert "rms_norm_eps is 1e-05" in warning
    assert "own code has 1e-06 there" in warning
