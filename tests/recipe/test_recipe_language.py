"""The recipe language: every key is read, and every fault is reported."""

from __future__ import annotations

from pathlib import Path

import pytest
from counting import calls_of
from every_key import EVERY_KEY
from gguf import MODEL_ARCH, MODEL_TENSORS, TENSOR_NAMES
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dynquant.arch.base import TensorName
from dynquant.errors import RecipeError
from dynquant.importance.experts import Policy
from dynquant.recipe import loader
from dynquant.recipe.feedback import Feedback
from dynquant.recipe.layers import LayerRange
from dynquant.recipe.loader import load_recipe, parse_recipe, shipped_recipes
from dynquant.recipe.roles import ROLES
from dynquant.recipe.rules import Fallback, name_pattern
from dynquant.recipe.yaml_nodes import MAX_BYTES

SEEDED = settings(deadline=None, derandomize=True)
RULE = "default: Q4_K\nrules:\n  - "


def parse(text: str):
    return parse_recipe(text, "r.yaml", "r")


def messages(text: str) -> list[str]:
    with pytest.raises(RecipeError) as e:
        parse(text)
    return list(e.value.messages)


WHOLE = """\
# comment
dynquant: 1
name: small
description: |
  for small
  machines
default: Q4_K

rules:
  - role: [ffn_down, attn_v]
    layers: [0-3, -2, -4--1]
    name: /^blk/
    type: Q6_K
    optional: true
  - name: no
    type: q8_0

fallback: [Q8_0, F16]
"""


def test_every_key_of_the_language_is_parsed():
    recipe = parse(EVERY_KEY)
    assert (recipe.intended, recipe.importance, recipe.effort) == (
        ("llama", "qwen3moe"),
        "required",
        "best",
    )
    assert recipe.experts == Policy(shrink=12, unseen="uniform")
    assert recipe.feedback == Feedback("required", 0.125, 0)
    first, second, third = recipe.rules
    assert first.selectors == {
        "role": "experts attn_v",
        "layers": "0-3 75%-100% {every: 4, from: 12.5%+2, of: experts}"
        " {in: 0-9, first: 3, last: 50%}",
        "name": "*.weight",
        "shape": "{row_multiple_of: 256, min_weights: 4096, dimensions: 3}",
        "when": "{experts: 8 >= 64, gqa: != 1, layers: < 99, tied_embeddings: false,"
        " importance: true, architecture: llama qwen3moe}",
        "not": "(role ffn_up_exps, layers 2 {last: 1}) (name *.x, shape {dimensions: 2})",
    }
    assert [t.name for t in first.fallback or ()] == ["Q5_1", "F16"]
    assert second.fallback is None
    assert (first.feedback, second.feedback) == (Feedback("auto", 1, 8), Feedback())
    assert (first.optional, first.override, first.note) == (True, False, "so that there is one")
    assert (second.action, third.action, second.type) == ("drop", "keep", None)
    chains = {name: [t.name for t in chain] for name, chain in recipe.fallback.of_type.items()}
    assert chains == {"IQ1_S": ["IQ4_NL", "F16"], "Q6_K": ["Q8_0"], "IQ2_S": []}
    assert (recipe.output.shard_bytes, recipe.output.tensor_order) == (50_000_000_000, "layer")
    assert recipe.metadata == {"general.name": "Whole", "general.size_label": "7B"}
    assert recipe.keeps_prediction
    assert recipe.readers == ("llama.cpp", "vLLM")


def test_example_recipe_is_parsed():
    recipe = parse(WHOLE)
    assert (recipe.name, recipe.description) == ("small", "for small\nmachines")
    assert (recipe.path, recipe.text) == ("r.yaml", WHOLE)
    assert (recipe.default.name, recipe.default_place.line) == ("Q4_K", 7)
    assert [t.name for t in recipe.fallback.of_all] == ["Q8_0", "F16"]
    rule = recipe.rules[0]
    assert (rule.type and rule.type.name, rule.optional, rule.where) == ("Q6_K", True, "r.yaml:10")
    assert rule.match.roles == ("ffn_down", "attn_v")
    assert rule.match.layers == (LayerRange(0, 3), LayerRange(-2, -2), LayerRange(-4, -1))
    assert rule.match.names == ("/^blk/",)


def test_no_is_a_string_and_not_false():
    assert parse(WHOLE).rules[1].match.names == ("no",)


def test_type_can_be_written_in_any_case():
    rule = parse(WHOLE).rules[1]
    assert rule.type is not None and rule.type.name == "Q8_0"


def test_only_the_default_is_required():
    recipe = parse("default: F16")
    assert (recipe.name, recipe.description, recipe.rules) == ("r", "", ())
    assert recipe.fallback == Fallback()


@pytest.mark.parametrize(
    ("declared", "types"), [("error", []), ("F16", ["F16"]), ("[Q8_0, F16]", ["Q8_0", "F16"])]
)
def test_fallback_is_a_type_a_list_or_error(declared: str, types: list[str]):
    recipe = parse(f"default: Q4_K\nfallback: {declared}")
    assert [t.name for t in recipe.fallback.of_all] == types


@pytest.mark.slow
@SEEDED
@given(st.integers(1, 40), st.integers(-40, 39), st.integers(-40, 39))
def test_layer_numbers_are_like_python_indices(n_layers: int, first: int, last: int):
    layers = list(range(n_layers))
    assume(-n_layers <= first < n_layers and -n_layers <= last < n_layers)
    covered = [i for i in layers if LayerRange(first, last).covers(i, n_layers)]
    assert covered == [i for i in layers if layers[first] <= i <= layers[last]]


@pytest.mark.parametrize(
    ("first", "last", "covered"), [(2, 99, [2, 3]), (-99, 1, [0, 1]), (4, 4, []), (-5, -5, [])]
)
def test_layer_range_can_extend_beyond_the_model(first: int, last: int, covered: list[int]):
    assert [i for i in range(4) if LayerRange(first, last).covers(i, 4)] == covered


@pytest.mark.parametrize("family", [MODEL_ARCH.LLAMA, MODEL_ARCH.QWEN2, MODEL_ARCH.QWEN3MOE])
def test_every_role_of_a_family_is_in_the_vocabulary(family: MODEL_ARCH):
    names = [TENSOR_NAMES[kind].format(bid=7) + ".weight" for kind in MODEL_TENSORS[family]]
    assert {TensorName.parse(name).role for name in names} <= ROLES


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("blk.?.ffn_down.weight", "blk.3.ffn_down.weight", True),
        ("blk.?.ffn_down.weight", "blk.13.ffn_down.weight", False),
        ("*.ffn_down.weight", "blk.13.ffn_down.weight", True),
        ("blk.3.ffn_down", "blk.3.ffn_down.weight", False),
        ("ffn_down.weight", "blk.3.ffn_down.weight", False),
        ("blk.[0-2].*", "blk.2.attn_q.weight", True),
        ("BLK.*", "blk.2.attn_q.weight", False),
        ("/ffn_(up|gate)/", "blk.2.ffn_gate.weight", True),
        ("/^ffn/", "blk.2.ffn_gate.weight", False),
        (r"/\.\d\./", "blk.12.ffn_gate.weight", False),
    ],
)
def test_glob_matches_the_whole_name_and_regular_expression_any_part(
    pattern: str, name: str, fits: bool
):
    assert bool(name_pattern(pattern).search(name)) == fits


NOT_A_LAYER = (
    "is not a layer; write a number (3, or -1 for the last) or a range (0-3, 10-, -4--1, 0%-25%)"
)
TOP_KEYS = (
    "dynquant, name, description, extends, for, default, importance, feedback, target, effort,"
    " rules, fallback, output, metadata, prediction_layers, readers"
)

FAULTS = {
    "empty": ("", ["1:1: empty; a recipe has at least `default: Q4_K`"]),
    "only a comment": ("# x\n", ["1:1: empty; a recipe has at least `default: Q4_K`"]),
    "a list": ("- Q4_K", ["1:1: a recipe must be `key: value` lines, not a list"]),
    "a word": ("Q4_K", ["1:1: a recipe must be `key: value` lines, not the text 'Q4_K'"]),
    "no default": ("name: x", ["1:1: no default; add one, such as `default: Q4_K`"]),
    "unknown type": (
        "default: q4km",
        ["1:10: 'q4km' is not a quant type; did you mean Q4_K? (`dynquant types` lists them)"],
    ),
    "no value": ("default:\n", ["1:9: no value; add one or remove the key"]),
    "list for a type": ("default: [Q4_K]", ["1:10: expected one value, not a list"]),
    "duplicate key": (
        "default: Q4_K\ndefault: Q5_K\ndefault: Q6_K",
        [
            "2:1: key 'default' is repeated; line 1 has the first one",
            "3:1: key 'default' is repeated; line 1 has the first one",
        ],
    ),
    "unknown keys": (
        "default: Q4_K\ndefualt: Q5_K\nxyzzy: 1",
        [
            "2:1: unknown key 'defualt'; did you mean default?",
            f"3:1: unknown key 'xyzzy'; the keys of a recipe are {TOP_KEYS}",
        ],
    ),
    "version": (
        "dynquant: 2\ndefault: Q4_K",
        ["1:11: version '2' of the recipe language; this dynquant reads version 1"],
    ),
    "rules without a rule": (
        "default: Q4_K\nrules:",
        ["2:7: rules must be a list, each rule after a dash, not nothing"],
    ),
    "rule without a dash": (
        "default: Q4_K\nrules:\n  role: attn_v",
        ["3:3: rules must be a list, each rule after a dash, not a mapping"],
    ),
    "rule of one word": (
        RULE + "attn_v",
        ["3:5: a rule must be `key: value` lines, not the text 'attn_v'"],
    ),
    "rule for everything": (
        RULE + "type: Q6_K",
        [
            "3:5: rule without selectors; add role, layers, name, shape or when, or change the"
            " default"
        ],
    ),
    "misspelt key of a rule": (
        RULE + "role: attn_v\n    tpye: Q6_K",
        [
            "3:5: rule without a type; add one, such as `type: Q6_K`",
            "4:5: unknown key 'tpye'; did you mean type?",
        ],
    ),
    "roles": (
        RULE + "{role: [ffn_dwon, down_proj, FFN_UP, qqqqq], type: Q6_K}",
        [
            "3:13: 'ffn_dwon' is not a role; did you mean ffn_down?",
            "3:23: 'down_proj' is not a role; GGUF's name for it is ffn_down",
            "3:34: 'FFN_UP' is not a role; did you mean ffn_up?",
            "3:42: 'qqqqq' is not a role; use GGUF's names, such as ffn_down or attn_v",
        ],
    ),
    "empty list": (
        RULE + "{role: [], type: Q6_K}",
        ["3:12: empty list; add a value or remove the key"],
    ),
    "mapping for a role": (
        RULE + "{role: {a: b}, type: Q6_K}",
        ["3:12: expected one value, not a mapping"],
    ),
    "layers": (
        RULE + "{layers: [first, 3-1, -1--4, 03, 0 - 3, 99999], type: Q6_K}",
        [
            f"3:15: 'first' {NOT_A_LAYER}",
            "3:22: '3-1' is reversed; write 1-3",
            "3:27: '-1--4' is reversed; write -4--1",
            f"3:34: '03' {NOT_A_LAYER}",
            f"3:38: '0 - 3' {NOT_A_LAYER}",
            f"3:45: '99999' {NOT_A_LAYER}",
        ],
    ),
    "optional": (
        RULE + "{role: attn_v, type: Q6_K, optional: yes}",
        ["3:42: 'yes' is neither true nor false; write true or false"],
    ),
    "regular expression": (
        RULE + "{name: '/blk(/', type: Q6_K}",
        ["3:12: '/blk(/' is not a regular expression: missing ): blk("],
    ),
    "open regular expression": (
        RULE + "{name: [/blk, //], type: Q6_K}",
        [
            "3:13: '/blk' is not a name; write a regular expression between two slashes",
            "3:19: '//' is not a name; write a regular expression between two slashes",
        ],
    ),
    "fallback": (
        "default: Q4_K\nfallback: [Q8_0, f17]",
        ["2:18: 'f17' is not a quant type; did you mean F16? (`dynquant types` lists them)"],
    ),
    "star without quotes": (
        RULE + "name: *.ffn_down.weight",
        ["3:11: '*.ffn_down.weight' is a YAML alias; quote text that begins with *"],
    ),
    "alias": (
        RULE + "name: *ffn",
        ["3:11: '*ffn' is a YAML alias; quote text that begins with *"],
    ),
    "anchor": (
        "default: &a Q4_K",
        ["1:10: '&a' is a YAML anchor or tag, which recipes do not use; quote or remove it"],
    ),
    "tag": (
        "default: !!str Q4_K",
        ["1:10: '!!str' is a YAML anchor or tag, which recipes do not use; quote or remove it"],
    ),
    "indentation": (
        RULE + "role: attn_v\n   type: Q6_K",
        [
            "4:4: 'type:' is not YAML: does not line up with the lines above; check indentation"
            " and dashes"
        ],
    ),
    "tab": ("default: Q4_K\n\trules: []", ["2:1: 'rules:' is not YAML: a tab; indent with spaces"]),
    "open quote": ('default: "Q4_K', ["1:10: '\"Q4_K' is not YAML: a quote is not closed"]),
    "open bracket": ("default: [Q4_K", ["1:15: this is not YAML: a bracket is not closed"]),
    "missing colon": (
        "default Q4_K\nname: x",
        ["2:5: ':' is not YAML: unexpected ': '; quote the text, or check the line above"],
    ),
    "two documents": (
        "default: Q4_K\n---\ndefault: Q4_K",
        ["2:1: '---' is not YAML: a second document; write one recipe per file"],
    ),
    "control character": (
        "default: Q4_K\nname: \a",
        ["2:7: character '\\x07' is not YAML; remove it"],
    ),
}


@pytest.mark.parametrize(("text", "expected"), FAULTS.values(), ids=FAULTS.keys())
def test_fault_is_reported_with_its_place_and_a_remedy(text: str, expected: list[str]):
    assert messages(text) == [f"r.yaml:{message}" for message in expected]


def test_all_faults_are_reported_in_the_order_of_the_file():
    places = [
        tuple(map(int, message.split(":")[1:3]))
        for message in messages(
            "defualt: Q4_K\nfallback: [Q4_X]\nrules:\n  - {role: atn_v, layers: x, type: Q9}\n"
            "  - {type: Q6_K, type: Q5_K}\n"
        )
    ]
    assert len(places) == 8
    assert places == sorted(places)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\ndefault: Q4_K",
        "default: " + "[" * 100_000,
        "default: " + "{a: " * 30_000,
        "default: Q4_K\nrules:\n" + "  - {role: attn_v, type: Q6_K, x: y}\n" * 300,
    ],
    ids=["laughs", "deep lists", "deep mappings", "many faults"],
)
def test_hostile_text_is_refused_in_linear_time(text: str):
    found: list[str] = []
    # Valid text takes 25 calls per character.
    assert calls_of(lambda: found.extend(messages(text))) < 50 * len(text)
    assert found


@pytest.mark.slow
@SEEDED
@given(st.text(alphabet="ab:-[]{}*&!'\"#|>%@`, \n\t/Q4_K", max_size=60))
def test_any_text_is_a_recipe_or_a_recipe_error(text: str):
    try:
        parse("default: Q4_K\n" + text)
    except RecipeError as e:
        assert all(message.startswith("r.yaml:") for message in e.messages)


def test_path_is_shown_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.yaml").write_text("default: Q4_X")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"^mine\.yaml:1:10: 'Q4_X' is not"):
        load_recipe("mine.yaml")


def test_byte_order_mark_is_removed(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xef\xbb\xbfdefault: Q4_K")
    assert load_recipe(path).text == "default: Q4_K"


def test_bytes_that_are_not_utf8_are_refused_with_their_place(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"default: Q4_K\nname: \xff")
    with pytest.raises(RecipeError, match=r"mine\.yaml:2:7: not UTF-8 text; save it as UTF-8"):
        load_recipe(path)


def test_huge_file_is_refused_without_reading_it(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(RecipeError, match=f"more than {MAX_BYTES} bytes; this is not a recipe"):
        load_recipe(path)


def test_missing_recipe_is_reported_with_the_nearest_name():
    with pytest.raises(RecipeError) as e:
        load_recipe("dynamic-4bits")
    assert str(e.value) == (
        "'dynamic-4bits' is neither a shipped recipe nor a file; did you mean dynamic-4bit?"
        " (`dynquant recipes` lists the shipped ones)"
    )


def test_folder_is_refused_as_recipe(tmp_path: Path):
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


def test_path_object_never_names_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="neither a shipped recipe nor a file"):
        load_recipe(Path("q8_0"))


def test_installed_recipes_have_precedence_over_those_of_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loader, "__file__", str(tmp_path / "dynquant/recipe/loader.py"))
    for folder in ("recipes", "dynquant/recipes"):
        assert all(folder not in str(path) for path in shipped_recipes().values())
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.yaml").write_text("default: F32")
        assert shipped_recipes() == {"x": tmp_path / folder / "x.yaml"}
