"""Lists of PATTERN=TYPE as recipes; the oracle is the first matching pattern in Python's re."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import jsonschema
import pytest
import yaml
from headers import Shapes, dense, latent_experts, tensors_of, two_parts
from hypothesis import given, settings
from hypothesis import strategies as st

from dynquant.errors import RecipeError
from dynquant.interchange.item_lists import recipe_of_custom_q, recipe_of_thireus
from dynquant.interchange.items import Base
from dynquant.interchange.tensor_types import recipe_of_tensor_types
from dynquant.quants.table import ALL
from dynquant.recipe.loader import parse_recipe
from dynquant.recipe.match import assign
from dynquant.recipe.protection import protection
from dynquant.recipe.rules import Recipe
from dynquant.recipe.schema import recipe_schema

VALIDATOR = jsonschema.Draft7Validator(recipe_schema())
Q4 = Base(ALL["Q4_K"])
MODELS = [latent_experts(61, 3), latent_experts(4, 0), dense(12), dense(2, tied=True)]

THIREUS = r"""## Made by a program
# Model name: Some-Model

^output_norm\.weight$=f32
^token_embd\.weight$=q8_0
^output\.weight$=q8_0

^blk\.([0-9]|[1-5][0-9]|60)\.attn_k_b\.weight$=q8_0
^blk\.([0-9]|[1-5][0-9]|60)\.attn_q_a\.weight$=q6_k
^blk\.([0-9]|[1-5][0-9]|60)\.attn_q_b\.weight$=q6_k
^blk\.([0-9]|[1-5][0-9]|60)\.attn_q_a_norm\.weight$=f32
^blk\.([3-9]|[1-5][0-9]|60)\.ffn_gate_inp\.weight$=f32
^blk\.([3-9]|[1-5][0-9]|60)\.exp_probs_b\.bias$=f32
^blk\.[0-2]\.ffn_down\.weight$=q8_0
^blk\.(24|4[0-9]|3[2-9]|51|53|55)\.ffn_down_exps\.weight$=iq4_xs
^blk\.([3-9]|1[0-9]|2[0-3]|2[5-9]|3[0-1]|50|52|54|5[6-9]|60)\.ffn_down_exps\.weight$=iq3_s

# +f32       	361	32.0  	  0.40 GiB
## THE END!
"""

CUSTOM_Q = r"""
# Attention
blk\.(0|1)\.attn_q_b.*=q8_0
blk\..*\.attn_k_b\.weight=q8_0

# Routed Experts
blk\.3\.ffn_down_exps\.weight=q6_k
blk\..*\.ffn_(gate|up)_exps\.weight=iq3_s
output\.weight=q6_k
"""


def rules_of(text: str) -> list[tuple[tuple[str, ...], list[str], tuple[str, ...], str]]:
    """Return roles, layers, names and type of each rule."""
    found: list[tuple[tuple[str, ...], list[str], tuple[str, ...], str]] = []
    for rule in parse_recipe(text, "r.yaml", "r").rules:
        assert rule.type is not None
        found.append(
            (rule.match.roles, list(map(str, rule.match.layers)), rule.match.names, rule.type.name)
        )
    return found


def types_by(recipe: Recipe, shapes: Shapes) -> dict[str, str]:
    """Return the type of each tensor; as in the tools, a rule may apply to no tensor."""
    lenient = replace(recipe, rules=tuple(replace(r, optional=True) for r in recipe.rules))
    given = assign(lenient, tensors_of(shapes)).assignments
    return {name: a.type.name for name, a in given.items()}


def first_match(words: Sequence[str], shapes: Shapes, default: str) -> dict[str, str]:
    """Return the type of each tensor by the first matching pattern, as in all the tools."""
    pairs = [(re.compile(w.split("=")[0]), w.split("=")[1].upper()) for w in words]
    return {
        t.name: "F32" if protection(t) else next((q for p, q in pairs if p.search(t.name)), default)
        for t in tensors_of(shapes)
    }


@pytest.mark.slow
def test_generated_list_becomes_rules_by_role_and_layers() -> None:
    text = recipe_of_thireus(THIREUS, "Some.recipe", Q4)
    assert rules_of(text) == [
        (("token_embd", "output"), [], (), "Q8_0"),
        (("attn_k_b",), ["0-60"], (), "Q8_0"),
        (("attn_q_a", "attn_q_b"), ["0-60"], (), "Q6_K"),
        (("ffn_down",), ["0-2"], (), "Q8_0"),
        (("ffn_down_exps",), ["24", "32-49", "51", "53", "55"], (), "IQ4_XS"),
        (("ffn_down_exps",), ["3-23", "25-31", "50", "52", "54", "56-60"], (), "IQ3_S"),
    ]
    assert "# Left out: 4 patterns for norms, routers and biases, F32 in every recipe." in text
    words = [w for w in THIREUS.split() if "=" in w]
    recipe = parse_recipe(text, "r.yaml", "r")
    assert types_by(recipe, MODELS[0]) == first_match(words, MODELS[0], "Q4_K")
    assert assign(recipe, tensors_of(MODELS[0])).warnings == ()


@pytest.mark.slow
def test_script_for_custom_q_may_have_comments() -> None:
    text = recipe_of_custom_q(CUSTOM_Q, "-", Q4)
    assert rules_of(text) == [
        (("attn_q_b",), ["0-1"], (), "Q8_0"),
        (("attn_k_b",), [], (), "Q8_0"),
        (("ffn_down_exps",), ["3"], (), "Q6_K"),
        (("ffn_gate_exps", "ffn_up_exps"), [], (), "IQ3_S"),
        ((), [], (r"/output\.weight/",), "Q6_K"),  # attn_output.weight also ends like this
    ]
    joined = ",".join(w for w in CUSTOM_Q.split("\n") if w and not w.startswith("#"))
    assert rules_of(recipe_of_custom_q(joined, "-", Q4)) == rules_of(text)


@pytest.mark.parametrize(
    ("pattern", "roles", "layers"),
    [
        ("ffn_down_exps", ("ffn_down_exps",), []),
        (r"ffn_down\.weight", ("ffn_down",), []),
        (r"\.attn_v\.weight$", ("attn_v",), []),
        ("^output.weight$", ("output",), []),
        (r"blk\.\d+\.attn_v\.", ("attn_v",), []),
        (r"blk\.[0-9]+\.attn_(q|k)\.weight", ("attn_q", "attn_k"), []),
        (r"blk\.(?:3|7|1[02])\.ffn_up\.weight", ("ffn_up",), ["3", "7", "10", "12"]),
        (r"blk\.[1-9][0-9]\.ffn_up\.weight", ("ffn_up",), ["10-99"]),
        ("blk.3.attn_v.weight", ("attn_v",), ["3"]),
        (r"blk\.[0-2]\.ffn_gate_exps.*", ("ffn_gate_exps",), ["0-2"]),
    ],
)
def test_pattern_for_roles_and_layers_becomes_a_rule_with_them(
    pattern: str, roles: tuple[str, ...], layers: list[str]
) -> None:
    text = recipe_of_tensor_types(f"{pattern}=q6_k", "t", Q4)
    assert rules_of(text) == [(roles, layers, (), "Q6_K")]


@pytest.mark.parametrize(
    "pattern",
    [
        "attn_q",  # also attn_q_a, attn_q_b and attn_qkv
        "ffn_down",  # also ffn_down_exps
        r"output\.weight",  # also attn_output
        r"token_embd\.weight",  # also per_layer_token_embd
        r"blk\.3\.",
        r"blk\.3\..*_exps",
        r"blk\.(3\.attn_q|4\.attn_k)\.weight",
        r"blk\.3\.attn_q\.weight|output",
        r"blk\.3|4\.attn_q\.weight",
        r"3\.attn_v\.weight",
        r"no_such_role\.weight",
        r"blk\..*\.output\.weight",
    ],
)
def test_other_patterns_are_kept_unchanged(pattern: str) -> None:
    text = recipe_of_tensor_types(f"{pattern}=q6_k", "t", Q4)
    assert rules_of(text) == [((), [], (f"/{pattern}/",), "Q6_K")]


PIECES = ("blk", "^blk", "^", "", "[^v]blk")
NUMBERS = ("", "3", ".*", r"\d+", "[0-9]+", "(0|[2-5]|1[01])", "[1-9][0-9]", "(?:0|1)", "1.")
NAMES = (
    "attn_q",
    "attn_(k_b|v_b)",
    "ffn_(gate|up)_exps",
    "ffn_down",
    "ffn_.*_shexp",
    "attn_.*",
    "attn_norm",
    "output",
    "token_embd",
    "exps",
    "ffn_down_exps",
)


@st.composite
def lists(draw: st.DrawFn) -> list[str]:
    words: list[str] = []
    for _ in range(draw(st.integers(1, 8))):
        dot = draw(st.sampled_from([r"\.", "."]))
        pattern = draw(st.sampled_from(PIECES))
        if number := draw(st.sampled_from(NUMBERS)):
            pattern += f"{dot}{number}{dot}"
        pattern += draw(st.sampled_from(NAMES))
        pattern += draw(st.sampled_from(["", f"{dot}weight", f"{dot}weight$", ".*", f"{dot}"]))
        words.append(f"{pattern}={draw(st.sampled_from(['q8_0', 'q6_k', 'f16', 'f32', 'q4_0']))}")
    return words


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(lists(), st.sampled_from(MODELS))
def test_every_tensor_gets_the_type_of_the_first_pattern_found(
    words: list[str], shapes: Shapes
) -> None:
    for text in (
        recipe_of_tensor_types(" ".join(words), "t", Q4),
        recipe_of_custom_q(",".join(words), "c", Q4),
        recipe_of_thireus("\n".join(words), "t", Q4),
    ):
        recipe = parse_recipe(text, "r.yaml", "r")
        assert types_by(recipe, shapes) == first_match(words, shapes, "Q4_K")
        assert VALIDATOR.is_valid(yaml.safe_load(text))


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(lists())
def test_lists_for_models_in_two_parts_distinguish_the_parts(words: list[str]) -> None:
    words = [r"^dec\.blk\.[0-3]\.ffn_up\.weight$=q5_0", *words]
    recipe = parse_recipe(recipe_of_tensor_types("\n".join(words), "t", Q4), "r.yaml", "r")
    shapes = two_parts(6)
    assert types_by(recipe, shapes) == first_match(words, shapes, "Q4_K")


def test_only_patterns_of_llama_quantize_are_converted_to_lower_case() -> None:
    word = "Blk.0.FFN_UP.weight=Q8_0"
    assert rules_of(recipe_of_tensor_types(word, "t", Q4))[0][0] == ("ffn_up",)
    assert rules_of(recipe_of_custom_q(word, "c", Q4))[0][2] == ("/Blk.0.FFN_UP.weight/",)


def test_indivisible_rows_get_the_types_of_llama_quantize() -> None:
    words = "attn_k=q4_k attn_v=q5_k attn_q=iq2_xxs ffn_up=q3_k"
    recipe = parse_recipe(recipe_of_tensor_types(words, "t", Base(ALL["Q6_K"])), "r.yaml", "r")
    types = types_by(recipe, dense(1, hidden=896, ffn=4864))
    given = {role: types[f"blk.0.{role}.weight"] for role in ("attn_k", "attn_v", "attn_q")}
    # tensor_type_fallback in llama-quant.cpp
    assert given == {"attn_k": "Q5_0", "attn_v": "Q5_1", "attn_q": "IQ4_NL"}
    assert (types["blk.0.ffn_up.weight"], types["token_embd.weight"]) == ("Q4_0", "Q8_0")
    odd = types_by(recipe, dense(1, hidden=100, ffn=300))
    assert {odd[name] for name, s in dense(1, hidden=100, ffn=300).items() if len(s) > 1} == {"F16"}


def test_missing_default_is_an_error() -> None:
    with pytest.raises(
        RecipeError, match="the type of tensors that no pattern matches is not given"
    ):
        recipe_of_tensor_types("attn_v=q6_k", "t", Base())


@pytest.mark.slow
def test_recipe_can_be_extended_instead_of_a_default() -> None:
    text = recipe_of_tensor_types(
        "ffn_down_exps=q8_0 ffn_up=q6_k", "t", Base(extends="dynamic-4bit")
    )
    recipe = parse_recipe(text, "r.yaml", "r")
    types = types_by(recipe, dense(12))
    assert (types["blk.0.ffn_up.weight"], types["blk.0.ffn_down.weight"]) == ("Q6_K", "Q5_K")
    with pytest.raises(RecipeError, match="no_such"):
        recipe_of_tensor_types("ffn_up=q6_k", "t", Base(extends="no_such"))


def test_pattern_for_everything_is_the_default_and_ends_the_list() -> None:
    text = recipe_of_tensor_types("attn_v=q6_k .*=q5_k ffn_up=q8_0", "t", Base())
    recipe = parse_recipe(text, "r.yaml", "r")
    assert (recipe.default.name, len(recipe.rules)) == ("Q5_K", 1)
    assert "# Left out: 1 pattern after one that matches every tensor." in text
    extending = recipe_of_tensor_types("attn_v=q6_k .*=q5_k", "t", Base(extends="q8_0"))
    assert set(types_by(parse_recipe(extending, "r.yaml", "r"), MODELS[2]).values()) == {
        "F32",
        "Q5_K",
        "Q6_K",
    }


MAKERS: dict[str, Callable[[str, str, Base], str]] = {
    "tensor-type-file": recipe_of_tensor_types,
    "custom-q": recipe_of_custom_q,
    "thireus": recipe_of_thireus,
}


@pytest.mark.parametrize("form", MAKERS)
def test_all_faults_are_reported_at_once_with_their_lines(form: str) -> None:
    lines = ["attn_v=q6_k", "attn_q", "=q8_0", "attn_k=", "ffn_up=q4km", "[=q8_0", "x=q8_0"]
    with pytest.raises(RecipeError) as e:
        MAKERS[form]("\n".join(lines), "list.txt", Q4)
    assert [m.split(" ")[0] for m in e.value.messages] == [f"list.txt:{n}:" for n in range(2, 7)]


def test_unsupported_types_of_other_programs_are_reported_with_all_lines() -> None:
    types = ["q8_0", "iq4_ks", "iq2_k", "iq4_ks", "iq4_ks", "q4_k_r4", "q6_k", "iq1_kt", "iq2_k"]
    text = "\n".join(f"blk\\.{i}\\.attn_v={t}" for i, t in enumerate(types))
    with pytest.raises(RecipeError) as e:
        recipe_of_thireus(f"# head\n{text}", "list.recipe", Q4)
    assert [(m.split(" is a type")[0], m.split("; ")[2:]) for m in e.value.messages] == [
        ("list.recipe:3: 'iq4_ks'", ["3 patterns have it (lines 3, 5-6)"]),
        ("list.recipe:4: 'iq2_k'", ["2 patterns have it (lines 4, 10)"]),
        ("list.recipe:7: 'q4_k_r4'", []),
        ("list.recipe:9: 'iq1_kt'", []),
    ]
    with pytest.raises(RecipeError, match=r"^--custom-q: item 2: 'iq4_ks'.*\(items 2, 4-5\)"):
        recipe_of_custom_q(text.replace("\n", ","), "--custom-q", Q4)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"(?i)attn_v", r"(?i is"),
        (r"(?P<a>b)", "(?P is"),
        (r"(?<a)b", "(?< is"),
        (r"(?!blk)attn_v", "(?! is"),
        (r"(a|b)\1", r"\1 is a back reference"),
        (r"attn_v\Z", r"\Z differs"),
        (r"attn[[:digit:]]", "[ inside []"),
        (r"attn[]x]", "[] and [^]"),
        (r"a{,3}", "{ without a count"),
        (r"a*+b", "*+ is possessive"),
        (r"[a--b]", "-- inside []"),
        (r"(attn", "not a regular expression"),
        (r"*attn", "not a regular expression"),
    ],
)
def test_patterns_that_python_reads_differently_are_refused(pattern: str, why: str) -> None:
    with pytest.raises(RecipeError) as e:
        recipe_of_thireus(f"attn_q=q8_0\n{pattern}=q8_0\n", "c", Q4)
    (message,) = e.value.messages
    assert message.startswith("c:2: ")
    assert why in message


def test_classes_that_lower_case_inverts_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"^t:1: .*\\D becomes \\d"):
        recipe_of_tensor_types(r"blk\.\D=q8_0", "t", Q4)
    assert recipe_of_custom_q(r"blk\.\d\.\D=q8_0", "c", Q4)
