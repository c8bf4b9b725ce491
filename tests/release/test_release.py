"""Releases: checksums, recipes, model card and page of finished GGUFs.

The oracles are coreutils' sha256sum, huggingface_hub's reader of model cards, a CommonMark parser
and the standard library's HTML parser.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import yaml
from handmade import KEYS, names, small_tensors
from handmade_manifests import IMATRIX, write_manifest
from inprocess import Done, run
from markdown_it import MarkdownIt  # rich brings it
from pages import read_page
from places import TINY_BOOKS
from releases import make

import dynquant
from dynquant.arch.base import Model, ModelTensor
from dynquant.conversion.write import convert_plan
from dynquant.errors import CheckpointError, ManifestError, ReleaseError
from dynquant.keys import Keys, string, strings
from dynquant.plan.make import make_plan
from dynquant.quants.readers import readers_text
from dynquant.recipe.loader import load_recipe
from dynquant.release.finished import Finished, open_finished
from dynquant.release.folder import Release, make_release, sums_text, write_release
from dynquant.release.markdown import code, table, text

HOSTILE = """a|b `c` <script>alert(1)</script> [x](y) _z_ \\ *w* http://x.y\n# no head"""


@pytest.fixture
def made(tmp_path: Path) -> Finished:
    """A finished GGUF with a handmade manifest."""
    write_manifest(make(tmp_path, "x.gguf"), "q8_0")
    return open_finished(tmp_path / "x.gguf")


def released(*made: Finished, **options: object) -> Release:
    release = make_release(made, **options)  # type: ignore[arg-type]
    write_release(release, force=False)
    return release


def card_of(release: Release) -> str:
    return (release.folder / "README.md").read_text("utf-8")


def front_of(release: Release) -> dict[str, object]:
    return yaml.safe_load(card_of(release).split("---\n")[1])


def checked_by_coreutils(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum on this machine")
    command = ["sha256sum", "--check", "--strict", *options, "SHA256SUMS"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_release_is_written_to_the_folder_of_the_file(made: Finished) -> None:
    release = released(made)
    assert names(made.path.parent) == sorted(
        [
            "README.md",
            "SHA256SUMS",
            "plan.html",
            "recipe-q8_0.yaml",
            "x.gguf",
            "x.gguf.manifest.json",
        ]
    )
    assert release.missing == (
        "README.md: does not name the source; add --base-model ORG/NAME",
        "README.md: has no license, because the source states none; add --license ID",
    )


@pytest.mark.slow
def test_coreutils_accepts_the_checksums_of_all_files_but_the_card(made: Finished) -> None:
    release = released(made)
    done = checked_by_coreutils(release.folder)
    assert done.returncode == 0, done.stderr
    assert {line.split(":")[0] for line in done.stdout.splitlines()} == set(release.names) - {
        "README.md",
        "SHA256SUMS",
    }


@pytest.mark.slow
def test_coreutils_finds_a_changed_byte(made: Finished) -> None:
    release = released(made)
    content = bytearray(made.path.read_bytes())
    content[-1] ^= 1
    made.path.write_bytes(content)
    assert checked_by_coreutils(release.folder).returncode == 1


@pytest.mark.parametrize("name", ["a b.gguf", "back\\slash.gguf", "line\nbreak.gguf", "é.gguf"])
def test_coreutils_reads_escaped_names(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    sums = sums_text([(hashlib.sha256(b"x").hexdigest(), name)])
    (tmp_path / "SHA256SUMS").write_bytes(sums.encode())
    assert checked_by_coreutils(tmp_path).returncode == 0


def test_hashes_are_those_of_the_manifest_without_reading_the_file(made: Finished) -> None:
    messages: list[str] = []
    assert made.manifest
    assert made.sha256(messages.append) == (made.manifest.output.files[0].sha256,)
    assert messages == []


def test_file_newer_than_its_manifest_is_read(made: Finished) -> None:
    content = bytearray(made.path.read_bytes())
    content[-1] ^= 1
    made.path.write_bytes(content)
    messages: list[str] = []
    assert made.manifest
    assert made.sha256(messages.append) != (made.manifest.output.files[0].sha256,)
    assert len(messages) == 1
    assert "reading" in messages[0]


@pytest.mark.slow
def test_file_without_manifest_is_read_and_a_warning_given(tmp_path: Path) -> None:
    release = released(open_finished(make(tmp_path, "x.gguf")))
    assert checked_by_coreutils(tmp_path).returncode == 0
    assert "x.gguf: has no manifest" in release.missing[0]
    assert not list(tmp_path.glob("recipe*"))
    assert "error" not in card_of(release).split("## Types by role")[1]


@pytest.mark.slow
def test_release_in_another_folder_has_links_not_copies(made: Finished, tmp_path: Path) -> None:
    release = released(made, folder=tmp_path / "out")
    assert (tmp_path / "out" / "x.gguf").samefile(made.path)
    assert checked_by_coreutils(tmp_path / "out").returncode == 0
    assert names(tmp_path / "out") == sorted(release.names)
    assert names(tmp_path) == ["out", "x.gguf", "x.gguf.manifest.json"]


@pytest.mark.slow
def test_existing_files_are_replaced_only_with_force(made: Finished, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "plan.html").write_text("mine")
    release = make_release([made])
    with pytest.raises(ReleaseError) as e:
        write_release(release, force=False)
    assert [m.partition(":")[0] for m in e.value.messages] == [
        str(tmp_path / "plan.html"),
        str(tmp_path / "README.md"),
    ]
    assert (tmp_path / "README.md").read_text() == "mine"
    assert not (tmp_path / "SHA256SUMS").exists()
    write_release(release, force=True)
    assert card_of(release).startswith("---\n")


@pytest.mark.slow
def test_recipe_file_equals_the_recipe_of_the_manifest(made: Finished) -> None:
    released(made)
    assert made.manifest
    content = (made.path.parent / "recipe-q8_0.yaml").read_bytes()
    assert hashlib.sha256(content).hexdigest() == made.manifest.recipe.sha256
    assert load_recipe(made.path.parent / "recipe-q8_0.yaml").sha256 == load_recipe("q8_0").sha256


@pytest.mark.slow
def test_hostile_recipe_name_does_not_leave_the_folder(tmp_path: Path) -> None:
    texts = {"text": "extends: b\n", "extends": ["default: Q8_0\n"]}
    recipe = {"name": "../../x/é", "sha256": "0" * 64, **texts}
    write_manifest(make(tmp_path, "x.gguf"), "q8_0", recipe=recipe)
    release = released(open_finished(tmp_path / "x.gguf"))
    assert [n for n in release.texts if n.startswith("recipe")] == ["recipe-x.yaml"]


@pytest.mark.slow
def test_several_files_of_one_model_have_one_card(tmp_path: Path) -> None:
    for name, recipe, error in (("a.gguf", "q8_0", 0.0002), ("b.gguf", "f16", 0.0)):
        write_manifest(make(tmp_path, name, recipe), recipe, errors=error)
    release = released(*map(open_finished, (tmp_path / "a.gguf", tmp_path / "b.gguf")))
    assert {"a.plan.html", "b.plan.html", "recipe-q8_0.yaml", "recipe-f16.yaml"} <= set(
        names(tmp_path)
    )
    lines = [line for line in card_of(release).splitlines() if line.startswith("| `")]
    assert lines[0].startswith("| `a.gguf` | q8_0 |")
    assert lines[0].endswith("| 0.0002 |")
    assert lines[1].startswith("| `b.gguf` | f16 |")
    assert checked_by_coreutils(tmp_path).returncode == 0


@pytest.mark.slow
def test_different_recipes_with_the_same_name_are_two_files(tmp_path: Path) -> None:
    for i, name in enumerate(("a.gguf", "b.gguf")):
        recipe = {"name": "mine", "sha256": "0" * 64, "text": f"# {i}\n", "extends": []}
        write_manifest(make(tmp_path, name), "q8_0", recipe=recipe)
    release = released(*map(open_finished, (tmp_path / "a.gguf", tmp_path / "b.gguf")))
    assert (tmp_path / "recipe-mine.yaml").read_text() == "# 0\n"
    assert (tmp_path / "recipe-mine-2.yaml").read_text() == "# 1\n"
    assert "(<recipe-mine-2.yaml>)" in card_of(release)


@pytest.mark.slow
def test_files_of_different_models_are_refused(tmp_path: Path) -> None:
    one = make(tmp_path, "a.gguf", keys={"dynquant.source": string("hf://a/b")})
    other = make(tmp_path, "b.gguf", keys={"dynquant.source": string("hf://a/c")})
    with pytest.raises(ReleaseError, match=r"source 'a/c' instead of 'a/b'"):
        make_release([open_finished(one), open_finished(other)])
    with pytest.raises(ReleaseError, match=r"^a\.gguf: is given twice"):
        make_release([open_finished(one), open_finished(one)])


@pytest.mark.slow
@pytest.mark.parametrize("named", ["x.gguf", "x-00002-of-00003.gguf"])
def test_shards_are_released_together(named: str, tmp_path: Path) -> None:
    make(tmp_path, "x.gguf", shard=2)
    write_manifest(tmp_path / "x.gguf", "q8_0")
    made = open_finished(tmp_path / named)
    assert len(made.paths) == 3
    assert made.manifest
    release = released(made)
    assert checked_by_coreutils(tmp_path).returncode == 0
    card = card_of(release)
    assert "| `x-00001-of-00003.gguf` and 2 more |" in card
    assert "llama-server -m x-00001-of-00003.gguf" in card


@pytest.mark.slow
def test_manifest_of_another_file_is_refused(tmp_path: Path) -> None:
    write_manifest(make(tmp_path, "a.gguf"), "q8_0")
    make(tmp_path, "b.gguf", "f16")
    (tmp_path / "a.gguf.manifest.json").rename(tmp_path / "b.gguf.manifest.json")
    with pytest.raises(ReleaseError) as e:
        open_finished(tmp_path / "b.gguf")
    assert [m.split(": ")[1].split(" ")[0] for m in e.value.messages] == ["does", "disagrees"]


def test_damaged_manifest_is_refused(made: Finished) -> None:
    assert made.manifest_path
    made.manifest_path.write_text(made.manifest_path.read_text()[:-20])
    with pytest.raises(ManifestError):
        open_finished(made.path)


def test_file_that_is_not_a_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("x")
    with pytest.raises(CheckpointError):
        open_finished(tmp_path / "x.gguf")


# The card


@pytest.mark.slow
def test_hub_reads_the_front_matter(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    keys = {
        "dynquant.source": string("hf://some-org/Some.Model"),
        "general.license": string("other"),
        "general.license.name": string("some: license"),
        "general.license.link": string("https://some.org/license"),
        "general.languages": strings(["en", "no"]),
    }
    write_manifest(make(tmp_path, "x.gguf", keys=keys), "q8_0", importance=IMATRIX)
    release = released(open_finished(tmp_path / "x.gguf"), repository="me/Some.Model-GGUF")
    assert release.missing == ()
    data = hub.ModelCard(card_of(release)).data.to_dict()
    assert data == front_of(release)
    assert data == {
        "language": ["en", "no"],
        "license": "other",
        "license_name": "some: license",
        "license_link": "https://some.org/license",
        "base_model": "some-org/Some.Model",
        "base_model_relation": "quantized",
        "quantized_by": "me",
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "dynquant", "imatrix"],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"general.languages": strings(["en", "no", "yes", "on"]), "general.license": string("mit")},
        {"general.license": string("a: b #c"), "general.license.name": string(HOSTILE)},
    ],
)
def test_hub_library_accepts_the_front_matter_and_writes_the_same(
    keys: Keys, tmp_path: Path
) -> None:
    """What the library checks without the network: `validate` asks the Hub."""
    hub = pytest.importorskip("huggingface_hub")
    write_manifest(make(tmp_path, "x.gguf", keys=keys), "q8_0", importance=IMATRIX)
    release = released(open_finished(tmp_path / "x.gguf"), repository="me/x-GGUF", base_model="a/b")
    front = front_of(release)
    assert hub.metadata_load(release.folder / "README.md") == front
    card = hub.ModelCard(card_of(release))
    assert isinstance(card.data, hub.ModelCardData)
    assert card.data.to_dict() == front
    again = hub.ModelCard(str(card))
    assert (again.data.to_dict(), again.text) == (front, card.text)
    assert hub.ModelCardData(**front).to_dict() == front
    hub.utils.validate_repo_id(front["base_model"])
    assert all(isinstance(v, str) for v in [*front["tags"], *front.get("language", [])])


@pytest.mark.slow
def test_options_add_facts_missing_in_the_files(made: Finished) -> None:
    release = released(made, license_="mit", base_model="a/b")
    assert front_of(release) | {"license": "mit", "base_model": "a/b"} == front_of(release)
    assert release.missing == ()


@pytest.mark.parametrize("name", ["a", "a/b/c", "../b", "a/b)", "a /b"])
def test_invalid_hub_name_is_refused(name: str, made: Finished) -> None:
    with pytest.raises(ReleaseError, match="is not the name of a Hub repository"):
        make_release([made], base_model=name)


@pytest.mark.slow
def test_card_shows_errors_by_role(tmp_path: Path) -> None:
    down = {f"blk.{i}.ffn_down.weight": error for i, error in enumerate((0.01, 0.03))}
    write_manifest(make(tmp_path, "x.gguf"), "q8_0", errors=down)
    card = card_of(released(open_finished(tmp_path / "x.gguf")))
    rows = [[c.strip() for c in line.split("|")] for line in card.splitlines() if "|" in line]
    by_role = {row[1]: row[4:8] for row in rows if len(row) == 9}
    assert by_role["`ffn_down`"] == ["8.500", "0.02", "0.01", "0.25"]
    assert by_role["`ffn_up_exps`"][1:] == ["–", "–", "–"]


@pytest.mark.slow
def test_card_states_which_programs_read_the_types(made: Finished) -> None:
    types = card_of(released(made)).split("## Types by role")[1]
    (line,) = [line for line in types.splitlines() if line.startswith("Programs that read")]
    text = readers_text(made.type_counts, made.architecture)
    assert line == f"Programs that read these types: {text}."


@pytest.mark.slow
def test_card_shows_sources_imatrix_and_commands(tmp_path: Path) -> None:
    model = {"repository": "hf://a/b", "commit": "c" * 40, "mla": None}
    write_manifest(make(tmp_path, "x.gguf"), "q8_0", importance=IMATRIX, model=model)
    card = card_of(released(open_finished(tmp_path / "x.gguf"), repository="me/b-GGUF"))
    for expected in (
        "1" * 64,
        "2" * 64,
        "`model.safetensors`",
        f"dynquant verify x.gguf \\\n  --against hf://a/b@{'c' * 40} --imatrix i.gguf\n",
        "sha256sum --check --ignore-missing SHA256SUMS\n",
        "pip install dynquant-gguf==0.1.0\n",
        "llama-server -m x.gguf --port 8080\n",
        "hf download me/b-GGUF --include 'x*.gguf' --local-dir .\n",
        load_recipe("q8_0").sha256,
    ):
        assert expected in card


@pytest.mark.slow
def test_card_shows_the_second_moments_and_how_to_verify_with_them(tmp_path: Path) -> None:
    model = {"repository": "hf://a/b", "commit": "c" * 40, "mla": None}
    moments = {"file": "m.safetensors", "header_sha256": "7" * 64}
    path = write_manifest(
        make(tmp_path, "x.gguf"), "q8_0", importance=IMATRIX, moments=moments, model=model
    )
    document = json.loads(path.read_text())
    document["tensors"][0]["feedback"] = {
        "damping": 0.05,
        "sweeps": 2,
        "matrices": 1,
        "taken": 1,
        "error_plain": 3.0,
        "error_feedback": 2.0,
    }
    path.write_text(json.dumps(document))
    card = card_of(released(open_finished(tmp_path / "x.gguf")))
    assert (
        f"error feedback: 1 tensor, second moments `m.safetensors`, header SHA-256 `{'7' * 64}`"
        in card
    )
    assert " --imatrix i.gguf --moments m.safetensors\n" in card


def test_card_names_merged_adapters_and_how_to_verify_with_them(tmp_path: Path) -> None:
    model = {"repository": "hf://a/b", "commit": "c" * 40, "mla": None}
    path = write_manifest(make(tmp_path, "x.gguf"), "q8_0", model=model)
    document = json.loads(path.read_text())
    adapter = {"name": "my-lora", "sha256": "5" * 64, "config_sha256": "6" * 64}
    path.write_text(json.dumps(document | {"merged_adapters": [adapter]}))
    card = card_of(released(open_finished(tmp_path / "x.gguf")))
    assert f"merged adapter: `my-lora`, SHA-256 `{'5' * 64}` of the factors" in card
    assert " --merge-adapter my-lora\n" in card


@pytest.mark.slow
def test_a_file_from_local_files_is_not_said_to_equal_the_repository(tmp_path: Path) -> None:
    """A local GGUF keeps the key of the repository that it was made from."""
    model = {"repository": "hf://a/b", "commit": "c" * 40, "mla": None}
    hashes = {"sha256": "3" * 64, "header_sha256": "4" * 64, "sha256_from": "read"}
    source = {"name": "b-f16.gguf", "bytes": 1, **hashes}
    for folder, options in (("a", {"model": model, "sources": [source]}), ("b", {})):
        (tmp_path / folder).mkdir()
        write_manifest(make(tmp_path / folder, "x.gguf"), "q8_0", **options)
        made = open_finished(tmp_path / folder / "x.gguf")
        card = card_of(released(made, base_model="a/b"))
        assert "--against hf://" not in card
        assert "made from local files" in card


@pytest.mark.slow
def test_hash_of_a_recipe_is_that_of_the_file_beside_the_card(tmp_path: Path) -> None:
    texts = {"text": "extends: q8_0\n", "extends": ["default: Q8_0\n"]}
    recipe = {"name": "mine", "sha256": "5" * 64, **texts}
    write_manifest(make(tmp_path, "x.gguf"), "q8_0", recipe=recipe)
    card = card_of(released(open_finished(tmp_path / "x.gguf")))
    own = hashlib.sha256((tmp_path / "recipe-mine.yaml").read_bytes()).hexdigest()
    assert f"SHA-256 `{own}`; one file for the recipe and those that it extends" in card
    assert f"whose texts have the hash `{'5' * 64}` (`dynquant.recipe_sha256`)" in card


@pytest.mark.slow
def test_recipe_of_a_release_needs_no_other_file(tmp_path: Path) -> None:
    """It gives the types of the GGUF without the recipes that it extends."""
    (tmp_path / "more.yaml").write_text("default: Q5_0\nrules: [{role: ffn_down, type: Q8_0}]")
    (tmp_path / "mine.yaml").write_text("extends: [q8_0, more.yaml]\nname: mine")
    model = Model("llama", dict(KEYS), small_tensors(), {})
    plan = make_plan(model, load_recipe(tmp_path / "mine.yaml"))
    out = tmp_path / "out"
    out.mkdir()
    convert_plan(plan, out / "x.gguf", threads=1, manifest="none")
    card = card_of(released(open_finished(out / "x.gguf")))
    assert [path.name for path in out.glob("*.yaml")] == ["recipe-mine.yaml"]
    again = make_plan(model, load_recipe(out / "recipe-mine.yaml"))
    types = [[(t.name, t.type.name) for t in each.tensors] for each in (plan, again)]
    assert types[0] == types[1]
    assert {name for _, name in types[0]} == {"F32", "Q5_0", "Q8_0"}
    own = hashlib.sha256((out / "recipe-mine.yaml").read_bytes()).hexdigest()
    assert f"SHA-256 `{own}`" in card
    assert f"{own}  recipe-mine.yaml" in (out / "SHA256SUMS").read_text()


def test_recipe_that_cannot_be_one_file_is_refused_with_its_manifest(tmp_path: Path) -> None:
    recipe = {"name": "mine", "sha256": "0" * 64, "text": "a: b\n", "extends": ["x: y\n"]}
    write_manifest(make(tmp_path, "x.gguf"), "q8_0", recipe=recipe)
    with pytest.raises(ReleaseError) as e:
        released(open_finished(tmp_path / "x.gguf"))
    assert str(e.value).startswith(f"{tmp_path}/x.gguf.manifest.json: recipe mine:1:1: ")


@pytest.mark.slow
def test_same_file_gives_the_same_release(made: Finished, tmp_path: Path) -> None:
    one, two = (make_release([made], folder=tmp_path / n) for n in "ab")
    assert one.texts == two.texts
    assert str(tmp_path) not in (b"".join(one.texts.values())).decode()


def elements(markdown: str) -> str:
    return MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(markdown)


def test_hostile_text_is_escaped_in_tables() -> None:
    page = read_page(elements("\n".join(table(("a", "b"), [(text(HOSTILE), code(HOSTILE))]))))
    line = " ".join(HOSTILE.split())
    shown = [cell.text for cell in page.all("td")]
    assert shown == [line, line.replace("|", "¦")]
    assert not any(page.all(tag) for tag in ("script", "a", "em", "h1", "img"))


@pytest.mark.slow
def test_hostile_names_are_escaped_in_the_card(tmp_path: Path) -> None:
    importance = IMATRIX | {"file": HOSTILE.replace("/", ""), "datasets": [HOSTILE]}
    recipe = {"name": HOSTILE, "sha256": "0" * 64, "text": "x", "extends": []}
    path = make(tmp_path, "x.gguf", keys={"general.name": string(HOSTILE)})
    write_manifest(path, "q8_0", importance=importance, recipe=recipe)
    card = card_of(released(open_finished(path)))
    page = read_page(elements(card.split("---\n", 2)[2]))
    assert [e.text for e in page.all("h1")] == [f"{' '.join(HOSTILE.split())} as GGUF"]
    assert not page.all("script")
    assert {e.attributes["href"] for e in page.all("a")} <= {
        "x.gguf.manifest.json",
        "plan.html",
        *(n for n in names(tmp_path) if n.startswith("recipe-")),
    }


@pytest.mark.slow
def test_page_of_the_plan_has_every_tensor_and_the_recipe(made: Finished) -> None:
    release = released(made)
    page = read_page((release.folder / "plan.html").read_text())
    assert {c.all("b")[0].text for c in page.all("div", "c")} == {t.name for t in made.tensors}
    assert made.manifest
    assert page.all("pre")[0].text.strip() == made.manifest.recipe.text.strip()


# The command


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF that `dynquant convert` wrote, with its manifest and measured errors."""
    out = tmp_path_factory.mktemp("converted") / "x.gguf"
    assert run("convert", TINY_BOOKS, "-o", out, "-r", "q8_0", "--threads", "1").code == 0
    return out


def bf16_weights(tensor: ModelTensor) -> np.ndarray:
    """Return all weights of a tensor that is stored as BF16, as float64."""
    stored = np.empty(tensor.n_rows * tensor.n_per_row * 2, np.uint8)
    tensor.source.read(0, tensor.n_rows, stored)
    return (stored.view("<u2").astype("<u4") << 16).view("<f4").astype(np.float64)


def release(converted: Path, folder: Path, *options: str) -> Done:
    return run("release", converted, "--folder", folder, *options)


def released_json(converted: Path, folder: Path) -> dict[str, Any]:
    done = release(converted, folder, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.mark.slow
def test_command_prints_the_paths_of_all_files(converted: Path, tmp_path: Path) -> None:
    done = release(converted, tmp_path / "out")
    assert {Path(line) for line in done.out.splitlines()} == set((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_command_with_license_and_source_has_no_warnings(converted: Path, tmp_path: Path) -> None:
    done = release(converted, tmp_path / "out", "--license", "mit", "--base-model", "a/b")
    assert (done.code, done.err) == (0, "")


@pytest.mark.slow
def test_command_prints_missing_license_and_source_as_warnings(
    converted: Path, tmp_path: Path
) -> None:
    lines = release(converted, tmp_path / "out").err.splitlines()
    assert [line.rpartition("; ")[2] for line in lines] == [
        "add --base-model ORG/NAME",
        "add --license ID",
    ]
    assert all(line.startswith("warning: README.md: ") for line in lines)


@pytest.mark.slow
def test_command_fails_without_output_if_files_exist(converted: Path, tmp_path: Path) -> None:
    assert release(converted, tmp_path / "out").code == 0
    done = release(converted, tmp_path / "out", "--json")
    assert (done.code, done.out) == (1, "")


@pytest.mark.slow
def test_command_replaces_existing_files_with_force(converted: Path, tmp_path: Path) -> None:
    assert release(converted, tmp_path / "out").code == 0
    (tmp_path / "out" / "README.md").write_text("mine")
    assert release(converted, tmp_path / "out", "--force").code == 0
    assert (tmp_path / "out" / "README.md").read_text("utf-8").startswith("---\n")


@pytest.mark.slow
def test_json_has_the_files_with_their_hashes(converted: Path, tmp_path: Path) -> None:
    listed = released_json(converted, tmp_path / "out")["files"]
    for file in listed:
        content = (tmp_path / "out" / file["name"]).read_bytes()
        assert file["bytes"] == len(content)
        if file["name"] not in ("README.md", "SHA256SUMS"):
            assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert {file["name"] for file in listed} == {*names(tmp_path / "out")}


@pytest.mark.slow
def test_json_has_size_and_path_of_the_model(converted: Path, tmp_path: Path) -> None:
    (model,) = released_json(converted, tmp_path / "out")["models"]
    assert model["bytes"] == converted.stat().st_size
    assert Path(model["path"]).samefile(converted)


@pytest.mark.slow
def test_json_has_the_error_that_the_conversion_measured(converted: Path, tmp_path: Path) -> None:
    sources = {t.name: t for t in dynquant.load_model(TINY_BOOKS).tensors}
    errors: list[float] = []
    n_weights: list[int] = []
    for t in gguf.GGUFReader(converted).tensors:
        if t.tensor_type.name == "Q8_0":
            x = bf16_weights(sources[t.name])
            errors.append(np.sum((x - gguf.quants.dequantize(t.data, t.tensor_type).ravel()) ** 2))
            errors[-1] /= np.sum(x**2)
            n_weights.append(x.size)
    (model,) = released_json(converted, tmp_path / "out")["models"]
    assert model["error"] == pytest.approx(np.average(errors, weights=n_weights), rel=1e-4)


@pytest.mark.slow
def test_json_lists_missing_parts(converted: Path, tmp_path: Path) -> None:
    assert len(released_json(converted, tmp_path / "out")["lacks"]) == 2


@pytest.mark.slow
def test_card_names_the_version_of_dynquant(converted: Path, tmp_path: Path) -> None:
    assert release(converted, tmp_path / "out").code == 0
    assert dynquant.__version__ in (tmp_path / "out" / "README.md").read_text("utf-8")
