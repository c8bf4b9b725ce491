"""`dynquant recipe from-gguf`, `import`, `export`: input, output, and --force."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import Result
from gguf import GGUFReader
from places import TINY_BOOKS
from typer.testing import CliRunner

from dynquant.arch.load import load_model
from dynquant.cli import app
from dynquant.errors import DynquantError
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.recipe.loader import load_recipe

TINY = TINY_BOOKS
LISTS = {
    "tensor-type-file": "attn_v=q6_k\nblk\\.[0-1]\\.ffn_down=q5_k\n",
    "custom-q": "attn_v=q6_k,blk\\.[0-1]\\.ffn_down=q5_k",
    "thireus": "# made\n^blk\\.[0-3]\\.attn_v\\.weight$=q6_k\n"
    "^blk\\.[0-1]\\.ffn_down\\.weight$=q5_k",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*args: object, text: str | None = None) -> Result:
    return CliRunner().invoke(app, ["recipe", *map(str, args)], input=text)


def messages(*args: object) -> tuple[str, ...]:
    error = run(*args).exception
    assert isinstance(error, DynquantError)
    return error.messages


def plan_of(recipe: str | Path) -> Plan:
    return make_plan(load_model(TINY), load_recipe(recipe))


def types_of(plan: Plan) -> dict[str, str]:
    return {t.name: t.type.name for t in plan.tensors}


@pytest.mark.slow
def test_recipe_from_a_converted_file_gives_the_same_plan(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    made = CliRunner().invoke(app, ["convert", str(TINY), "-o", str(file), "-r", "dynamic-4bit"])
    assert made.exit_code == 0
    done = run("from-gguf", file, "-o", "again.yaml")
    assert (done.exit_code, done.stdout) == (0, "")
    again = plan_of(tmp_path / "again.yaml")
    assert types_of(again) == types_of(plan_of("dynamic-4bit"))
    written = {t.name: t.tensor_type.name for t in GGUFReader(file).tensors}
    assert types_of(again) == written
    assert run("from-gguf", file).stdout == (tmp_path / "again.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("form", LISTS)
def test_a_list_is_read_from_a_file_and_from_stdin(form: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(LISTS[form])
    options = ["--format", form, "--default", "q4_K"]
    from_file = run("import", "list", *options)
    from_stdin = run("import", "-", *options, text=LISTS[form])
    assert from_file.exit_code == from_stdin.exit_code == 0
    assert from_stdin.stdout == from_file.stdout.replace(" list ", " stdin ")
    (tmp_path / "r.yaml").write_text(from_file.stdout)
    types = types_of(plan_of(tmp_path / "r.yaml"))
    assert {types[f"blk.{i}.attn_v.weight"] for i in range(4)} == {"Q6_K"}
    assert [types[f"blk.{i}.ffn_down.weight"] for i in range(4)] == ["Q5_K"] * 2 + ["Q4_K"] * 2


@pytest.mark.slow
def test_custom_q_list_can_be_an_argument() -> None:
    options = ["--format", "custom-q", "--default", "Q4_K"]
    done = run("import", LISTS["custom-q"], *options)
    assert done.exit_code == 0
    assert "# The types of custom-q (--custom-q): 2 patterns." in done.stdout
    (message,) = messages("import", "attn_v=q6_k,attn_k=iq4_ks", *options)
    assert message.startswith("custom-q: item 2: 'iq4_ks' is a type of ik_llama.cpp")


@pytest.mark.slow
def test_imported_list_can_extend_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "parent.yaml").write_text("default: Q5_0\n")
    options = ["--format", "custom-q", "--extends", "parent.yaml", "-o", "sub/child.yaml"]
    assert run("import", "attn_v=q6_k", *options).exit_code == 0
    assert plan_of(tmp_path / "sub" / "child.yaml").type_counts.keys() == {"Q5_0", "Q6_K", "F32"}


@pytest.mark.slow
def test_default_or_extends_is_required_but_not_both() -> None:
    (message,) = messages("import", "attn_v=q6_k", "--format", "custom-q")
    assert message.endswith("add --default TYPE or --extends RECIPE")
    both = ["--default", "Q4_K", "--extends", "q8_0"]
    assert run("import", "attn_v=q6_k", "--format", "custom-q", *both).exit_code == 2
    (message,) = messages("import", "a=q6_k", "--format", "custom-q", "--default", "q4km")
    assert message.startswith("--default: 'q4km' is not a quant type")


@pytest.mark.slow
def test_export_gives_every_matrix_its_type() -> None:
    done = run("export", "dynamic-4bit", TINY)
    assert done.exit_code == 0
    pairs = [(re.compile(w.split("=")[0]), w.split("=")[1].upper()) for w in done.stdout.split()]
    for name, type_name in types_of(plan_of("dynamic-4bit")).items():
        found = next((q for p, q in pairs if p.search(name)), "F32")
        assert found == type_name, name


@pytest.mark.slow
def test_exported_and_imported_recipe_has_the_same_plan(tmp_path: Path) -> None:
    assert run("export", "dynamic-6bit", TINY, "-o", "types.txt").exit_code == 0
    options = ["--format", "tensor-type-file", "--default", "F16", "-o", "again.yaml"]
    assert run("import", "types.txt", *options).exit_code == 0
    again = types_of(plan_of(tmp_path / "again.yaml"))
    assert again == types_of(plan_of("dynamic-6bit"))


@pytest.mark.slow
def test_existing_file_is_replaced_only_with_force(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    (message,) = messages("export", "q8_0", TINY, "-o", "there")
    assert message == "there: exists; replace it with --force, or name another output"
    assert (tmp_path / "there").read_text() == "mine"
    assert run("export", "q8_0", TINY, "-o", "there", "--force").exit_code == 0
    assert (tmp_path / "there").read_text().startswith("^")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.slow
def test_unreadable_input_and_unwritable_output_are_reported(tmp_path: Path) -> None:
    options = ["--format", "thireus", "--default", "Q4_K"]
    assert messages("import", "none.recipe", *options)[0].startswith("none.recipe: cannot be read")
    (tmp_path / "bytes").write_bytes(b"a=q8_0\n\xff\xfe")
    assert messages("import", "bytes", *options) == ("bytes:2: not UTF-8 text; save it as UTF-8",)
    (tmp_path / "long").write_bytes(b"#" * (1 << 21))
    assert "this is not a list of types" in messages("import", "long", *options)[0]
    assert "cannot be written" in messages("export", "q8_0", TINY, "-o", "no/such/folder")[0]
    assert "download it" in messages("from-gguf", "hf://org/model/x.gguf")[0]
    (tmp_path / "not.gguf").write_bytes(b"text")
    assert messages("from-gguf", "not.gguf")[0].startswith("not.gguf: ")
