"""`dynquant publish` to a hub on loopback: uploads, the merged card, resumption and refusals.

The oracles are huggingface_hub (its client makes all requests, and it reads the card), coreutils'
sha256sum and a CommonMark parser.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inprocess import run
from places import ROOT
from publishing_hub import Failure, PublishingHub, ServingUploads
from releases import release_of
from uploading import (
    HF,
    NAME,
    actions,
    card_of,
    check_sums,
    publish,
    published,
    refusals,
    serving,
    tables,
)

import dynquant
from dynquant.checkpoint.hub import HubName
from dynquant.publishing.publish import publish_release

huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs the extra `hub`")

# The library's own use of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[PublishingHub]:
    made = PublishingHub()
    with serving(made, tmp_path):
        yield made


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return release_of(tmp_path / "release", "q8_0")


def folders(tmp_path: Path) -> list[Path]:
    """Return three releases of one model."""
    return [
        release_of(tmp_path / "a", "q8_0", kld=0.01),
        release_of(tmp_path / "b", "q4_0", "f16", kld=0.03),
        release_of(tmp_path / "c", "q5_0", projector="mmproj-tiny.gguf"),
    ]


# What is uploaded


def test_a_release_becomes_a_new_repository(
    hub: PublishingHub, release: Path, tmp_path: Path
) -> None:
    done = published(release)
    stored = hub.repositories[NAME]
    assert stored.private is False
    assert stored.files.keys() - {".gitattributes"} == {
        "README.md",
        "SHA256SUMS",
        "published.json",
        "recipe-q8_0.yaml",
        "tiny-q8_0.gguf",
        "tiny-q8_0.gguf.manifest.json",
        "tiny-q8_0.plan.html",
    }
    assert actions(done).keys() == stored.files.keys() - {".gitattributes"}
    assert set(actions(done).values()) == {"create"}
    original = (release / "tiny-q8_0.gguf").read_bytes()
    assert stored.files["tiny-q8_0.gguf"] == original
    assert check_sums(stored, tmp_path / "check") == stored.files.keys() - {
        ".gitattributes",
        "README.md",
        "SHA256SUMS",
        "published.json",
    }


def test_releases_of_one_model_share_a_card_and_checksums(
    hub: PublishingHub, tmp_path: Path
) -> None:
    for folder in folders(tmp_path):
        published(folder)
    stored = hub.repositories[NAME]
    files, scores, *_ = tables(card_of(stored))
    assert [row[0] for row in files[1:]] == [
        "tiny-f16.gguf",
        "tiny-q8_0.gguf",
        "tiny-q5_0.gguf",
        "tiny-q4_0.gguf",
        "mmproj-tiny.gguf",
    ]
    assert [row[-1] for row in files] == [
        "mean KLD",
        "0.030000",
        "0.010000",
        "–",
        "0.030000",
        "–",
    ]
    assert [row[0] for row in scores[1:]] == ["tiny-f16", "tiny-q8_0", "tiny-q4_0"]
    hashes = {hashlib.sha256(c).hexdigest() for n, c in stored.files.items() if ".gguf" in n[-5:]}
    assert all(f"`{sha256}`" in card_of(stored) for sha256 in hashes)
    assert "llama.cpp, Ollama" in card_of(stored)
    assert len(check_sums(stored, tmp_path / "check")) > 15


@pytest.mark.slow
def test_the_order_of_publications_does_not_matter(hub: PublishingHub, tmp_path: Path) -> None:
    made = folders(tmp_path)
    for folder in made:
        published(folder)
    for folder in reversed(made):
        published(folder, to="hf://me/tiny-GGUF-2")
    first, second = hub.repositories[NAME].files, hub.repositories["me/tiny-GGUF-2"].files
    assert first["SHA256SUMS"] == second["SHA256SUMS"]
    one, two = (card.decode().partition("# Handmade")[2] for card in map(_card, (first, second)))
    assert one.replace(NAME, "me/tiny-GGUF-2") == two


def _card(files: dict[str, bytes]) -> bytes:
    return files["README.md"]


def test_figures_of_different_references_are_in_different_tables(
    hub: PublishingHub, tmp_path: Path
) -> None:
    published(release_of(tmp_path / "a", "q8_0", kld=0.01, reference="one.gguf"))
    published(release_of(tmp_path / "b", "q4_0", kld=0.02, reference="two.gguf"))
    card = card_of(hub.repositories[NAME])
    _, one, two, *_ = tables(card)
    assert [row[0] for row in (*one[1:], *two[1:])] == ["tiny-q8_0", "tiny-q4_0"]
    assert "Figures of different references cannot be compared" in card


def test_a_second_run_uploads_nothing_and_makes_no_commit(
    hub: PublishingHub, release: Path
) -> None:
    published(release)
    before = len(hub.uploads()), hub.repositories[NAME].messages
    done = published(release)
    assert (len(hub.uploads()), hub.repositories[NAME].messages) == before
    assert set(actions(done).values()) == {"keep"}


def test_an_interrupted_publication_resumes_with_the_next_file(
    hub: PublishingHub, tmp_path: Path
) -> None:
    folder = release_of(tmp_path / "release", "q8_0", "q4_0")
    hub.failures.append(Failure("^PUT", 403, after=1))
    (problem,) = refusals(publish(folder))
    assert problem.startswith(f"{HF}: tiny-q4_0.gguf cannot be uploaded")
    stored = hub.repositories[NAME]
    assert set(stored.files) == {".gitattributes", "tiny-q8_0.gguf"}
    hub.failures.clear()
    hub.asked.clear()
    done = published(folder)
    assert len(hub.uploads()) == 1
    assert actions(done)["tiny-q8_0.gguf"] == "keep"
    assert [row[0] for row in tables(card_of(stored))[0][1:]] == [
        "tiny-q8_0.gguf",
        "tiny-q4_0.gguf",
    ]


def test_two_publications_at_once_are_both_in_the_card(hub: PublishingHub, tmp_path: Path) -> None:
    one, other = release_of(tmp_path / "a", "q8_0"), release_of(tmp_path / "b", "q4_0")
    published(one)
    folder = release_of(tmp_path / "c", "f16")
    commits = 0

    def interrupt(_: str) -> None:
        nonlocal commits
        commits += 1
        if commits == 2:  # the first commit adds the GGUF, the second the card
            publish_release(other, HubName(NAME))

    hub.interrupt = interrupt
    done = published(folder)
    assert "was changed in the meantime" in done.err
    stored = hub.repositories[NAME]
    assert len(tables(card_of(stored))[0]) == 4
    assert len(check_sums(stored, tmp_path / "check")) == 12


def test_a_dry_run_prints_all_changes_and_makes_none(hub: PublishingHub, tmp_path: Path) -> None:
    one, other = release_of(tmp_path / "a", "q8_0"), release_of(tmp_path / "b", "q4_0")
    done = published(one, "--dry-run", "--private")
    assert hub.repositories == {}
    assert "would be created" in done.err
    assert set(actions(done).values()) == {"create"}
    published(one)
    before = hub.repositories[NAME].messages
    hub.asked.clear()
    done = published(other, "--dry-run")
    assert actions(done)["README.md"] == "update"
    assert actions(done)["tiny-q4_0.gguf"] == "create"
    assert hub.repositories[NAME].messages == before
    assert {a for a in hub.asked if a.startswith(("POST", "PUT"))} == {"POST /api/validate-yaml"}


def test_a_dry_run_does_what_the_publication_does(hub: PublishingHub, release: Path) -> None:
    dry = json.loads(published(release, "--dry-run", "--json").out)
    real = json.loads(published(release, "--json").out)
    assert dry["files"] == real["files"]
    assert (dry["commit"], real["commit"]) == (
        None,
        hub.repositories[NAME].branches["main"][-1].sha,
    )


def test_the_page_of_json_lists_the_keys_of_the_command(hub: PublishingHub, release: Path) -> None:
    page = (ROOT / "docs" / "reference" / "json.md").read_text()
    section = page.partition("\n## dynquant publish --json\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    document = json.loads(published(release, "--json").out)
    found = {key for key in document if key != "files"}
    found |= {f"files[].{key}" for file in document["files"] for key in file}
    assert {key for row in rows for key in re.findall(r"`(.+?)`", row)} == found


def test_private_creates_a_private_repository(hub: PublishingHub, release: Path) -> None:
    published(release, "--private")
    assert hub.repositories[NAME].private is True
    published(release, "--private")


def test_a_public_repository_does_not_become_private(hub: PublishingHub, release: Path) -> None:
    published(release)
    (problem,) = refusals(publish(release, "--private"))
    assert "exists and is public" in problem


@pytest.mark.parametrize("options", [("--branch", "v2"), ("--revision", "v2"), ("@v2",)])
def test_a_branch_starts_with_the_files_of_main(
    options: tuple[str, ...], hub: PublishingHub, tmp_path: Path
) -> None:
    published(release_of(tmp_path / "a", "q8_0"))
    before = hub.repositories[NAME].messages
    named = HF + options[0] if options[0].startswith("@") else HF
    options = () if named != HF else options
    published(release_of(tmp_path / "b", "q4_0"), *options, to=named)
    stored = hub.repositories[NAME]
    assert stored.messages == before
    files = stored.branches["v2"][-1].files
    assert len(tables(files["README.md"].decode())[0]) == 3


def test_shards_are_one_line_of_the_card(hub: PublishingHub, tmp_path: Path) -> None:
    published(release_of(tmp_path / "a", "q8_0", shard=2))
    stored = hub.repositories[NAME]
    (line,) = tables(card_of(stored))[0][1:]
    assert line[0] == "tiny-q8_0-00001-of-00003.gguf and 2 more"
    assert sum(name.endswith(".gguf") for name in stored.files) == 3


# What would be lost


def test_existing_files_are_replaced_only_with_force(hub: PublishingHub, tmp_path: Path) -> None:
    old = release_of(tmp_path / "a", "q8_0", name="tiny.gguf")
    new = release_of(tmp_path / "b", "q4_0", name="tiny.gguf")
    published(old)
    before = dict(hub.repositories[NAME].files)
    problems = refusals(publish(new))
    assert [p.split(": ")[1].split(" ")[0] for p in problems] == [
        "tiny.gguf",
        "tiny.gguf.manifest.json",
        "tiny.plan.html",
        "recipe-q8_0.yaml",
    ]
    assert hub.repositories[NAME].files == before
    done = published(new, "--force")
    stored = hub.repositories[NAME]
    assert stored.files["tiny.gguf"] == (new / "tiny.gguf").read_bytes()
    assert actions(done)["recipe-q8_0.yaml"] == "delete"
    assert "recipe-q8_0.yaml" not in stored.files
    assert stored.messages[-1] == "Publish tiny"
    assert len(tables(card_of(stored))[0]) == 2
    check_sums(stored, tmp_path / "check")


def test_a_replacement_and_its_card_are_one_commit(hub: PublishingHub, tmp_path: Path) -> None:
    published(release_of(tmp_path / "a", "q8_0", name="tiny.gguf"))
    n = len(hub.repositories[NAME].messages)
    published(release_of(tmp_path / "b", "q4_0", name="tiny.gguf"), "--force")
    assert len(hub.repositories[NAME].messages) == n + 1


def test_shards_that_are_replaced_by_one_file_are_deleted_with_force(
    hub: PublishingHub, tmp_path: Path
) -> None:
    published(release_of(tmp_path / "a", "q8_0", shard=2))
    new = release_of(tmp_path / "b", "q8_0")
    problems = refusals(publish(new))
    assert sum("would be deleted" in p for p in problems) == 3
    published(new, "--force")
    ggufs = [n for n in hub.repositories[NAME].files if n.endswith(".gguf")]
    assert ggufs == ["tiny-q8_0.gguf"]


def test_recipes_of_one_name_with_different_texts_are_two_files(
    hub: PublishingHub, tmp_path: Path
) -> None:
    for i, folder in enumerate("ab"):
        recipe = {"name": "mine", "sha256": "0" * 64, "text": f"# {i}\n", "extends": []}
        published(release_of(tmp_path / folder, "q8_0", name=f"{folder}.gguf", recipe=recipe))
    files = hub.repositories[NAME].files
    assert (files["recipe-mine.yaml"], files["recipe-mine-2.yaml"]) == (b"# 0\n", b"# 1\n")
    assert "(<recipe-mine-2.yaml>)" in card_of(hub.repositories[NAME])
    published(tmp_path / "b")
    assert "recipe-mine-3.yaml" not in hub.repositories[NAME].files


def test_a_recipe_that_another_model_uses_is_not_replaced(
    hub: PublishingHub, tmp_path: Path
) -> None:
    for i, (folder, name) in enumerate([("a", "x.gguf"), ("b", "y.gguf"), ("c", "x.gguf")]):
        text = f"# {i // 2}\n"
        recipe = {"name": "mine", "sha256": "0" * 64, "text": text, "extends": []}
        release = release_of(tmp_path / folder, "q8_0", name=name, recipe=recipe)
        published(release, "--force")
    files = hub.repositories[NAME].files
    assert (files["recipe-mine.yaml"], files["recipe-mine-2.yaml"]) == (b"# 0\n", b"# 1\n")
    check_sums(hub.repositories[NAME], tmp_path / "check")


def test_names_cannot_end_the_part_of_the_card(hub: PublishingHub, tmp_path: Path) -> None:
    end = "x\n<!-- dynquant publish: end -->\n# mine"
    recipe = {"name": end, "sha256": "0" * 64, "text": "default: Q8_0\n", "extends": []}
    imatrix = {"file": end, "sha256": "1" * 64, "datasets": [], "chunks": 1}
    published(release_of(tmp_path / "a", "q8_0", recipe=recipe, importance=imatrix))
    published(release_of(tmp_path / "b", "q4_0"))
    lines = card_of(hub.repositories[NAME]).splitlines()
    assert sum(line.startswith("<!-- dynquant publish") for line in lines) == 2
    assert "# mine" not in lines


def edit(hub: PublishingHub, change: Any) -> None:
    """Edit the card of the repository, as a person does on its page."""
    files = dict(hub.repositories[NAME].files)
    files["README.md"] = change(files["README.md"].decode()).encode()
    hub.commit(NAME, "main", "edited", files)


def test_text_and_keys_of_people_stay_in_the_card(hub: PublishingHub, tmp_path: Path) -> None:
    published(release_of(tmp_path / "a", "q8_0"))
    edit(hub, lambda card: card.replace("license: mit", "license: gemma\ndatasets: [a/b]"))
    edit(hub, lambda card: card.replace("<!-- dynquant publish: begin", "Hello.\n\n\\g", 1))
    edit(hub, lambda card: card.replace("\\g", "<!-- dynquant publish: begin") + "\nBye.\n")
    done = published(release_of(tmp_path / "b", "q4_0"))
    card = card_of(hub.repositories[NAME])
    data = huggingface_hub.ModelCard(card).data.to_dict()
    assert (data["license"], data["datasets"]) == ("gemma", ["a/b"])
    assert "keeps license: 'gemma'; the release has 'mit'" in done.err
    assert card.index("Hello.") < card.index("tiny-q4_0") < card.index("Bye.")
    again = published(release_of(tmp_path / "c", "q5_0"))
    assert "keeps license: 'gemma'" in again.err
    published(tmp_path / "c", "--force")
    assert "license: mit" in card_of(hub.repositories[NAME])


def test_an_edit_between_the_marks_is_replaced_only_with_force(
    hub: PublishingHub, tmp_path: Path
) -> None:
    published(release_of(tmp_path / "a", "q8_0"))
    edit(hub, lambda card: card.replace("## Files", "## My files"))
    new = release_of(tmp_path / "b", "q4_0")
    (problem,) = refusals(publish(new))
    assert "README.md was edited between the marks" in problem
    published(new, "--force")
    assert "## My files" not in card_of(hub.repositories[NAME])


def test_damaged_marks_are_refused(hub: PublishingHub, release: Path) -> None:
    published(release)
    edit(hub, lambda card: card.replace("<!-- dynquant publish: end -->", ""))
    (problem,) = refusals(publish(release, "--force"))
    assert "the marks of dynquant publish are damaged (begin instead of begin, end)" in problem


def test_the_text_of_an_existing_card_stays(hub: PublishingHub, release: Path) -> None:
    hub.add(NAME, {"README.md": b"---\nlicense: gemma\n---\n# My models\n\nSome text.\n"})
    published(release)
    card = card_of(hub.repositories[NAME])
    assert card.index("# My models\n\nSome text.") < card.index("# Handmade as GGUF")
    assert huggingface_hub.ModelCard(card).data.license == "gemma"


def test_other_ggufs_of_the_repository_are_listed(hub: PublishingHub, release: Path) -> None:
    hub.add(NAME, {"theirs.gguf": b"GGUF"})
    published(release)
    card = card_of(hub.repositories[NAME])
    _, others, *_ = tables(card)
    assert others[1] == ["theirs.gguf", "4.00 B", hashlib.sha256(b"GGUF").hexdigest()]


def test_a_model_whose_file_was_removed_leaves_the_card(hub: PublishingHub, tmp_path: Path) -> None:
    published(release_of(tmp_path / "a", "q8_0"))
    files = dict(hub.repositories[NAME].files)
    del files["tiny-q8_0.gguf"]
    hub.commit(NAME, "main", "removed", files)
    done = published(release_of(tmp_path / "b", "q4_0"))
    assert "tiny-q8_0.gguf was removed or changed; tiny-q8_0 leaves the card" in done.err
    assert "tiny-q8_0" not in card_of(hub.repositories[NAME])


def test_checksums_of_other_people_are_replaced_only_with_force(
    hub: PublishingHub, release: Path
) -> None:
    hub.add(NAME, {"SHA256SUMS": b"theirs\n"})
    (problem,) = refusals(publish(release))
    assert problem.startswith(f"{HF}: SHA256SUMS exists with other bytes")
    published(release, "--force")


def test_a_damaged_document_is_refused_and_replaced_with_force(
    hub: PublishingHub, release: Path
) -> None:
    hub.add(NAME, {"published.json": b'{"published": 1, "entries": 7}'})
    problems = refusals(publish(release))
    assert f"{HF}: published.json: 'entries' is 7, but should be a valid array" in problems
    published(release, "--force")


# Other models


@pytest.mark.parametrize(
    ("theirs", "ours", "what"),
    [
        ({"base_model": "org/tiny"}, {"base_model": "org/other"}, "is of 'org/tiny'"),
        (
            {"base_model": None, "model": {"repository": "hf://a/b", "commit": None, "mla": None}},
            {"base_model": None, "model": {"repository": "hf://a/c", "commit": None, "mla": None}},
            "is of 'a/b'",
        ),
    ],
)
def test_a_repository_of_another_model_is_refused(
    theirs: dict[str, Any],
    ours: dict[str, Any],
    what: str,
    hub: PublishingHub,
    tmp_path: Path,
) -> None:
    published(release_of(tmp_path / "a", "q8_0", **theirs))
    (problem,) = refusals(publish(release_of(tmp_path / "b", "q4_0", **ours), "--force"))
    assert what in problem
    assert problem.endswith("publish to another repository")


def test_another_embedding_is_another_model(hub: PublishingHub, release: Path) -> None:
    published(release)
    files = dict(hub.repositories[NAME].files)
    document = json.loads(files["published.json"])
    document["entries"][0]["embedding"] += 1
    files["published.json"] = json.dumps(document).encode()
    hub.commit(NAME, "main", "edited", files)
    (problem,) = refusals(publish(release))
    assert "is of another model: tiny-q8_0 has embedding" in problem


# The front matter


def test_the_hub_library_reads_the_card_of_a_repository(hub: PublishingHub, tmp_path: Path) -> None:
    published(release_of(tmp_path / "a", "q4_0"))
    card = huggingface_hub.ModelCard(card_of(hub.repositories[NAME]))
    assert card.data.to_dict() == {
        "license": "mit",
        "base_model": "org/tiny",
        "base_model_relation": "quantized",
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "dynquant"],
        "quantized_by": "me",
    }
    assert str(card) == card_of(hub.repositories[NAME])


def test_a_projector_changes_the_task_and_stays(hub: PublishingHub, tmp_path: Path) -> None:
    def task() -> str:
        return huggingface_hub.ModelCard(card_of(hub.repositories[NAME])).data.pipeline_tag

    published(release_of(tmp_path / "a", "q8_0"))
    assert task() == "text-generation"
    published(release_of(tmp_path / "b", "q4_0", projector="mmproj-tiny.gguf"))
    assert task() == "image-text-to-text"
    published(release_of(tmp_path / "c", "q5_0"))
    assert task() == "image-text-to-text"
    assert "--mmproj mmproj-tiny.gguf" in card_of(hub.repositories[NAME])


def test_front_matter_that_the_hub_refuses_is_reported_before_anything_is_created(
    hub: PublishingHub, tmp_path: Path
) -> None:
    folder = release_of(tmp_path / "a", "q8_0", license_="no-such-license")
    (problem,) = refusals(publish(folder))
    assert problem.startswith(f"{HF}: README.md is not accepted: ")
    assert "must be one of the known licenses" in problem
    assert hub.repositories == {}


def test_values_of_the_front_matter_may_be_dates_and_lists(
    hub: PublishingHub, release: Path, tmp_path: Path
) -> None:
    card = release / "README.md"
    card.write_text(card.read_text().replace("---\n", "---\nreleased: 2026-12-01\n", 1))
    published(release)
    published(release_of(tmp_path / "b", "q4_0"))
    data = huggingface_hub.ModelCard(card_of(hub.repositories[NAME])).data.to_dict()
    assert str(data["released"]) == "2026-12-01"


# Folders that are not releases


def test_a_changed_gguf_is_not_published(hub: PublishingHub, release: Path) -> None:
    path = release / "tiny-q8_0.gguf"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (problem,) = refusals(publish(release))
    assert problem == (
        f"{path}: has another SHA-256 than the release states and is not published; write the"
        " release again"
    )
    assert hub.repositories[NAME].messages == ["initial commit"]


def test_all_faults_of_a_folder_are_reported_without_a_request(
    hub: PublishingHub, release: Path
) -> None:
    (release / "plan.html").write_text("mine")
    (release / "recipe-q8_0.yaml").write_text("mine")
    assert refusals(publish(release)) == [
        f"{release / name}: was changed after the release; write the release again"
        for name in ("recipe-q8_0.yaml", "plan.html")
    ]
    (release / "plan.html").unlink()
    with (release / "SHA256SUMS").open("a") as file:
        file.write("nonsense\n")
    assert refusals(publish(release)) == [
        f"{release / 'plan.html'}: is missing; write the release again",
        f"{release / 'SHA256SUMS'}:5: is not a line of checksums; write the release again",
    ]
    assert hub.asked == []


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "."])
def test_names_of_checksums_stay_in_the_folder(
    name: str, hub: PublishingHub, release: Path
) -> None:
    (release / "SHA256SUMS").write_text(f"{'0' * 64}  {name}\n")
    (problem,) = refusals(publish(release))
    assert problem.startswith(f"{release / 'SHA256SUMS'}:1: is not a line of checksums")


def test_a_folder_without_checksums_is_refused(tmp_path: Path) -> None:
    (problem,) = refusals(publish(tmp_path))
    assert problem.startswith(f"{tmp_path}: has no SHA256SUMS; name a folder that")
    (problem,) = refusals(publish(tmp_path / "x"))
    assert problem == f"{tmp_path / 'x'}: is not a folder; name the folder of a release"


def test_files_that_are_not_released_stay_here(hub: PublishingHub, release: Path) -> None:
    (release / "notes.txt").write_text("private")
    done = published(release)
    assert "not part of the release: notes.txt" in done.err
    assert "notes.txt" not in hub.repositories[NAME].files


# Failures of the Hub


REFUSED = [
    ("/revision/main", Failure("GET .*/revision/", 429, {"Retry-After": "90"}), "in 90 s); wait"),
    ("/revision/main", Failure("GET .*/revision/", 500), "the Hub failed with 500; run the same"),
    ("commit", Failure("POST .*/commit/", 429), "received too many requests; wait, then run"),
    ("commit", Failure("POST .*/commit/", 503), "the Hub failed with 503; run the same command"),
    ("create", Failure("POST .*/create", 0), "cannot be created: the connection failed"),
]


@pytest.mark.parametrize(("where", "failure", "expected"), REFUSED)
def test_a_failure_of_the_hub_is_one_line(
    where: str, failure: Failure, expected: str, hub: PublishingHub, release: Path
) -> None:
    hub.failures.append(failure)
    (problem,) = refusals(publish(release))
    assert problem.startswith(f"{HF}: ")
    assert expected in problem
    hub.failures.clear()
    published(release)


@pytest.mark.parametrize("name", ["tiny-q8_0.gguf", "recipe-q8_0.yaml"])
def test_a_file_that_the_hub_leaves_out_is_an_error(
    name: str, hub: PublishingHub, release: Path
) -> None:
    hub.ignored.add(name)
    (problem,) = refusals(publish(release))
    assert problem.startswith(f"{HF}: {name} was sent, but is not there; look at the repository's")


def test_a_repository_that_changes_all_the_time_is_reported(
    hub: PublishingHub, release: Path
) -> None:
    published(release)
    number = 0

    def interrupt(_: str) -> None:
        nonlocal number
        number += 1
        hub.commit(NAME, "main", "theirs", {**hub.repositories[NAME].files, f"{number}": b""})

    hub.interrupt = interrupt
    files = dict(hub.repositories[NAME].files)
    hub.commit(NAME, "main", "removed", {n: c for n, c in files.items() if n != "README.md"})
    (problem,) = refusals(publish(release))
    assert "was changed 5 times in the meantime" in problem
    assert number == 5


def test_a_missing_token_is_reported_before_any_request(
    hub: PublishingHub, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (problem,) = refusals(publish(release))
    assert problem == (
        f"{HF}: no token was found; sign in (`hf auth login`, or HF_TOKEN) with a token that may"
        " write"
    )
    assert hub.asked == []
    done = published(release, "--dry-run")
    assert "a private repository cannot be seen" in done.err


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("bad", "the Hub does not accept the token"),
        ("reads", "the token has no permission to write to 'me'"),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
def test_a_token_without_permission_is_reported(
    token: str,
    expected: str,
    exists: bool,
    hub: PublishingHub,
    release: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if exists:
        hub.add(NAME, {})
    monkeypatch.setenv("HF_TOKEN", token)
    (problem,) = refusals(publish(release))
    assert expected in problem


def test_offline_mode_is_named(
    hub: PublishingHub, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.utils._http.close_session()
    (problem,) = refusals(publish(release))
    assert problem == f"{HF}: HF_HUB_OFFLINE is set; unset it to publish"


def test_a_missing_library_is_named(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", None)
    (problem,) = refusals(publish(release))
    assert problem.endswith("huggingface_hub is not installed; pip install 'dynquant-gguf[hub]'")


@pytest.mark.parametrize(
    "to",
    [
        "hf://tiny",
        "me/tiny",
        "hf://me/tiny/x.gguf",
        "https://huggingface.co/me/tiny",
        "hf://me/tiny@" + "0" * 40,
    ],
)
def test_a_wrong_name_is_wrong_usage(to: str, tmp_path: Path) -> None:
    done = run("publish", tmp_path, to)
    assert done.code == 2
    assert "Traceback" not in done.err


def test_python_has_the_same_function(hub: PublishingHub, release: Path) -> None:
    messages: list[str] = []
    done = dynquant.publish(release, f"{HF}@main", progress=messages.append)
    assert isinstance(done, dynquant.Published)
    assert done.commit == hub.repositories[NAME].branches["main"][-1].sha
    assert any("tiny-q8_0.gguf: uploading" in m for m in messages)
    with pytest.raises(dynquant.PublishError, match="is not the name of a model on the Hub"):
        dynquant.publish(release, "x")


@pytest.mark.slow
def test_the_command_uses_the_endpoint_and_token_of_the_environment(
    release: Path, tmp_path: Path
) -> None:
    hub = PublishingHub()
    with ServingUploads(hub) as served:
        environment = served.environment(tmp_path) | {"HF_TOKEN": "good", "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "dynquant.cli", "publish", str(release), HF],
            env=environment,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert "tiny-q8_0.gguf" in hub.repositories[NAME].files
    assert "%" not in done.stderr
