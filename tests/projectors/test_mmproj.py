"""`--mmproj` and `--only-mmproj`: two files from one command, checked, resumed and released."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from inprocess import Done, run
from packers import Stored, stored_in, write_stored
from places import REFERENCES
from tiny_hub import Hub, Serving

import dynquant
from dynquant.arch.load_projector import load_projector
from dynquant.cli.mmproj import completed
from dynquant.errors import ArchitectureError, CheckpointError, ReleaseError
from dynquant.release.finished import open_finished
from dynquant.release.folder import Release, make_release, release_json

MODEL = REFERENCES / "projectors" / "qwen3vl"
OTHER = REFERENCES / "projectors" / "gemma3"
WITHOUT = REFERENCES / "qwen3moe"
BESIDE = "mmproj-Qwen3Vl-F16.gguf"


def changed(folder: Path, change: Callable[[Stored], Stored], model: Path = MODEL) -> Path:
    """Copy a model with other tensors."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return write_stored(folder, config, change(stored_in(folder))) or folder


def convert(out: Path, *options: object, model: Path | str = MODEL) -> Done:
    return run("convert", model, "-o", out, "--threads", 1, *options)


def errors(done: Done) -> list[str]:
    assert done.code == 1
    found = [line for line in done.err.splitlines() if line.startswith("error: ")]
    return [line.removeprefix("error: ") for line in found]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("M --mmproj", "M --mmproj=F16"),
        ("M --mmproj -o a.gguf", "M --mmproj=F16 -o a.gguf"),
        ("M --mmproj Q8_0 -o a.gguf", "M --mmproj Q8_0 -o a.gguf"),
        ("M --mmproj=Q8_0", "M --mmproj=Q8_0"),
        ("-- --mmproj", "-- --mmproj"),
    ],
)
def test_the_value_of_mmproj_may_be_left_out(given: str, meant: str) -> None:
    assert completed(given.split()) == meant.split()


def test_the_projector_is_written_beside_the_language_model(tmp_path: Path) -> None:
    done = convert(tmp_path / "a.gguf", "-r", "q8_0", "--mmproj")
    assert done.code == 0, done.err
    assert "left out" not in done.err
    dynquant.convert(load_projector(MODEL), tmp_path / "b.gguf", recipe="f16", threads=2)
    assert (tmp_path / BESIDE).read_bytes() == (tmp_path / "b.gguf").read_bytes()
    keys = dynquant.inspect(tmp_path / BESIDE).keys
    assert (keys["general.architecture"].value, keys["general.type"].value) == ("clip", "mmproj")
    assert dynquant.inspect(tmp_path / "a.gguf").keys["general.type"].value == "model"


def test_parts_that_the_model_does_not_use_are_left_out_silently(tmp_path: Path) -> None:
    done = convert(tmp_path / "p.gguf", "--only-mmproj", model=OTHER)
    assert done.code == 0
    assert "left out" not in done.err


def test_without_mmproj_a_warning_names_the_option(tmp_path: Path) -> None:
    done = convert(tmp_path / "a.gguf", "-r", "f16")
    assert "the vision model, which llama.cpp reads from a separate file; `--mmproj`" in done.err
    assert not list(tmp_path.glob("mmproj*"))


def test_a_complete_projector_is_kept(tmp_path: Path) -> None:
    convert(tmp_path / "a.gguf", "-r", "f16", "--mmproj")
    before = (tmp_path / BESIDE).stat().st_mtime_ns
    done = convert(tmp_path / "b.gguf", "-r", "q8_0", "--mmproj")
    assert done.code == 0
    assert f"{BESIDE}: is complete already" in done.err
    assert (tmp_path / BESIDE).stat().st_mtime_ns == before


def test_another_file_in_its_place_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / BESIDE).write_bytes(b"something else")
    (line,) = errors(convert(tmp_path / "a.gguf", "-r", "f16", "--mmproj"))
    assert line.endswith(f"{BESIDE}: exists; replace it with --force, or name another output")
    assert not (tmp_path / "a.gguf").exists()


def test_one_changed_byte_is_noticed(tmp_path: Path) -> None:
    convert(tmp_path / "a.gguf", "-r", "f16", "--mmproj")
    content = bytearray((tmp_path / BESIDE).read_bytes())
    content[-40] ^= 1
    (tmp_path / BESIDE).write_bytes(content)
    lines = errors(convert(tmp_path / "b.gguf", "-r", "f16", "--mmproj"))
    assert lines[0].endswith("exists; replace it with --force, or name another output")


def test_no_imatrix_is_asked_for_a_projector(tmp_path: Path) -> None:
    (line,) = errors(convert(tmp_path / "a.gguf", "-r", "q8_0", "--mmproj", "iq2_xxs"))
    assert "no program writes an imatrix of a projector, so name a larger type" in line
    assert "--imatrix" not in line


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("clip.vision.image_max_pixels=abc", "is 'abc', and must be a whole number"),
        ("clip.vision.image_max_pixels=-5", "is -5, and must be a whole number"),
        ("clip.vision.attention.head_count=7", "24 is not a multiple of attention.head_count 7"),
        ("clip.vision.patch_size=0", "clip.vision.patch_size is 0"),
        ("clip.projector_type=xyz", "the plan decides this key"),
    ],
)
def test_keys_with_which_llama_cpp_ends_are_refused(
    setting: str, message: str, tmp_path: Path
) -> None:
    (line,) = errors(convert(tmp_path / "p.gguf", "--only-mmproj", "--set", setting))
    assert message in line


def test_a_key_of_the_projector_does_not_get_into_the_language_model(tmp_path: Path) -> None:
    key = "clip.vision.image_max_pixels=9999"
    done = convert(tmp_path / "a.gguf", "-r", "f16", "--mmproj", "--set", key)
    assert done.code == 2
    assert "set those of the projector" in " ".join(done.err.replace("│", " ").split())
    assert not [*tmp_path.iterdir()]


def test_the_projector_alone(tmp_path: Path) -> None:
    done = convert(tmp_path / "p.gguf", "--only-mmproj", "-r", "q8_0")
    assert done.code == 0
    assert [p.name for p in tmp_path.glob("*.gguf")] == ["p.gguf"]
    assert convert(tmp_path / "q.gguf", "--only-mmproj", "--mmproj", "q8_0").code == 0
    assert (tmp_path / "p.gguf").read_bytes() == (tmp_path / "q.gguf").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        ("--only-mmproj", "--imatrix", "x"),
        ("--only-mmproj", "--target-size", "1GB"),
        ("--only-mmproj", "-r", "f16", "--mmproj", "q8_0"),
        ("--only-mmproj", "--mmproj-out", "x.gguf"),
    ],
)
def test_options_of_the_language_model_are_refused_for_the_projector_alone(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    assert convert(tmp_path / "p.gguf", *options).code == 2


def test_a_place_for_the_projector(tmp_path: Path) -> None:
    place = tmp_path / "mmproj-F16.gguf"
    assert convert(tmp_path / "a.gguf", "-r", "f16", "--mmproj-out", place).code == 0
    assert sorted(p.name for p in tmp_path.glob("*.gguf")) == ["a.gguf", "mmproj-F16.gguf"]


def test_one_name_for_both_files_is_refused(tmp_path: Path) -> None:
    (line,) = errors(convert(tmp_path / BESIDE, "-r", "f16", "--mmproj"))
    both = f"the projector ({BESIDE}) and the language model ({BESIDE}) would both be written"
    assert both in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "projector", ["a.gguf", "a.gguf.part", "a.gguf.manifest.json", "a.gguf.journal"]
)
def test_a_name_that_the_other_file_uses_meanwhile_is_refused(
    projector: str, tmp_path: Path
) -> None:
    options = ("-r", "f16", "--mmproj-out", tmp_path / projector, "--force")
    (line,) = errors(convert(tmp_path / "a.gguf", *options))
    assert "would both be written there;" in line
    assert not list(tmp_path.iterdir())


def test_the_plan_of_a_projector_has_no_second_projector(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert run("plan", MODEL, "--only-mmproj", "--save", plan).code == 0
    (line,) = errors(convert(tmp_path / "p.gguf", "--plan", plan, "--mmproj"))
    assert "is the plan of a projector, too; carry it out without --mmproj" in line


def test_a_saved_or_drawn_plan_has_one_file(tmp_path: Path) -> None:
    for option in ("--save", "--html"):
        done = run("plan", MODEL, "-r", "f16", "--mmproj", "F16", option, tmp_path / "x")
        assert done.code == 2


def test_faults_of_both_files_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    (tmp_path / BESIDE).write_bytes(b"")
    lines = errors(convert(tmp_path / "a.gguf", "-r", "f16", "--mmproj"))
    assert [line.split(": ")[0].rpartition("/")[2] for line in lines] == [BESIDE, "a.gguf"]


def test_one_fault_of_both_files_is_reported_once(tmp_path: Path) -> None:
    (line,) = errors(convert(tmp_path / "a.gguf", "-r", "f16", "--mmproj", model="nowhere"))
    assert line.startswith("nowhere: not a folder;")


def test_a_model_that_neither_sees_nor_hears(tmp_path: Path) -> None:
    (line,) = errors(convert(tmp_path / "a.gguf", "-r", "f16", "--mmproj", model=WITHOUT))
    assert line.endswith(
        "'Qwen3MoeForCausalLM' has no part that sees or hears, so there is no projector to write"
    )


def test_a_copy_that_was_saved_without_its_encoder(tmp_path: Path) -> None:
    text = changed(tmp_path / "m", lambda t: {n: v for n, v in t.items() if ".visual." not in n})
    with pytest.raises(ArchitectureError, match="has no tensors of the vision encoder; this copy"):
        load_projector(text)


def test_a_tensor_that_is_missing(tmp_path: Path) -> None:
    name = "model.visual.blocks.1.attn.proj.weight"
    model = changed(tmp_path / "m", lambda t: {n: v for n, v in t.items() if n != name})
    with pytest.raises(ArchitectureError, match=rf"{name} is missing; the projector needs it"):
        load_projector(model)


def test_a_tensor_that_the_projector_does_not_have(tmp_path: Path) -> None:
    def extra(stored: Stored) -> Stored:
        name = "model.visual.extra.weight"
        return stored | {name: stored["model.visual.pos_embed.weight"]}

    with pytest.raises(ArchitectureError, match=r"extra\.weight is not a tensor of the projector"):
        load_projector(changed(tmp_path / "m", extra))


def test_fit_says_that_it_does_not_count_the_projector() -> None:
    done = run("plan", MODEL, "--fit", "20MB", "--mmproj")
    assert "--fit counts the language model; llama.cpp also loads the projector, 272 kB" in done.err


def test_tensors_of_two_projectors(tmp_path: Path) -> None:
    def both(stored: Stored) -> Stored:
        others = stored_in(OTHER)
        return stored | {n: v for n, v in others.items() if n.startswith("multi_modal_projector.")}

    with pytest.raises(ArchitectureError) as refused:
        load_projector(changed(tmp_path / "m", both))
    assert [m.rpartition(": ")[2] for m in refused.value.messages] == [
        f"multi_modal_projector.{name} is not a tensor of this model's projector; take weights and"
        " config.json from one model"
        for name in ("mm_input_projection_weight", "mm_soft_emb_norm.weight")
    ]


def test_a_gguf_has_no_second_part(tmp_path: Path) -> None:
    convert(tmp_path / "a.gguf", "-r", "f16")
    with pytest.raises(ArchitectureError, match="a GGUF holds one part of a model;"):
        load_projector(tmp_path / "a.gguf")


def test_without_the_image_processors_settings(tmp_path: Path) -> None:
    model = shutil.copytree(MODEL, tmp_path / "m")
    (model / "preprocessor_config.json").unlink()
    with pytest.raises(ArchitectureError, match=r"has no preprocessor_config\.json, which says"):
        load_projector(model)


def test_a_damaged_settings_file_is_named(tmp_path: Path) -> None:
    model = shutil.copytree(MODEL, tmp_path / "m")
    (model / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: not JSON"):
        load_projector(model)


def test_plan_shows_both_files() -> None:
    done = run("plan", MODEL, "-r", "q8_0", "--mmproj")
    assert "projector (clip) by recipe f16" in done.out
    assert "qwen3vl by recipe q8_0" in done.out
    both = json.loads(run("plan", MODEL, "-r", "q8_0", "--mmproj", "Q8_0", "--json").out)
    assert both["architecture"] == "qwen3vl"
    assert both["mmproj"]["recipe"] == "q8_0"
    alone = json.loads(run("plan", MODEL, "--only-mmproj", "--json").out)
    assert alone["architecture"] == "clip"


def test_a_saved_plan_of_a_projector(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert run("plan", MODEL, "--only-mmproj", "-r", "q8_0", "--save", plan).code == 0
    assert convert(tmp_path / "p.gguf", "--plan", plan).code == 0
    assert convert(tmp_path / "q.gguf", "--only-mmproj", "-r", "q8_0").code == 0
    assert (tmp_path / "p.gguf").read_bytes() == (tmp_path / "q.gguf").read_bytes()


def test_verify_compares_with_the_larger_model(tmp_path: Path) -> None:
    convert(tmp_path / "p.gguf", "--only-mmproj")
    assert dynquant.verify(tmp_path / "p.gguf", against=str(MODEL)).is_sound
    other = dynquant.verify(tmp_path / "p.gguf", against=str(OTHER))
    assert "is another model than" in str(other.faults[0])


def test_verify_finds_a_missing_tensor_and_key(tmp_path: Path) -> None:
    rules = {
        "default": "F16",
        "rules": [{"name": "v.blk.1.ffn_up.weight", "drop": True}],
        "metadata": {"clip.vision.block_count": 2},
    }
    dynquant.convert(load_projector(MODEL), tmp_path / "p.gguf", recipe=rules, threads=1)
    faults = [str(fault) for fault in dynquant.verify(tmp_path / "p.gguf").faults]
    assert any("v.blk.1.ffn_up.weight is missing; llama.cpp needs it" in f for f in faults)
    assert any("beyond the 2 layers of clip.vision.block_count" in f for f in faults)


def release_of(*files: Path) -> Release:
    return make_release([open_finished(file) for file in files])


def test_a_release_with_a_projector(tmp_path: Path) -> None:
    convert(tmp_path / "a.gguf", "-r", "q8_0", "--mmproj")
    release = release_of(tmp_path / BESIDE, tmp_path / "a.gguf")
    card = release.texts["README.md"].decode()
    assert "pipeline_tag: image-text-to-text" in card
    assert f"llama-server -m a.gguf --mmproj {BESIDE}" in card
    assert f"`{BESIDE}` is a projector, with which llama.cpp reads pictures" in card
    for name, path in release.links.items():
        assert path.name == name
    document = json.loads(json.dumps({k: len(v) for k, v in release_json_of(release).items()}))
    assert (document["models"], document["projectors"]) == (1, 1)


def release_json_of(release: Release) -> dict[str, list[object]]:
    for name, content in release.texts.items():
        (release.folder / name).write_bytes(content)
    found = release_json(release)
    return {name: found[name] for name in ("models", "projectors")}


def test_a_projector_of_another_model_is_not_released(tmp_path: Path) -> None:
    convert(tmp_path / "a.gguf", "-r", "q8_0", "--no-manifest")
    convert(tmp_path / "b.gguf", "-r", "q8_0")
    convert(tmp_path / "p.gguf", "--only-mmproj", model=OTHER)
    with pytest.raises(ReleaseError, match=r"is of 'Gemma3', but .* is of 'Qwen3Vl'; take both"):
        release_of(tmp_path / "a.gguf", tmp_path / "p.gguf")
    with pytest.raises(ReleaseError, match=r"from another model\.safetensors than .*b\.gguf; take"):
        release_of(tmp_path / "b.gguf", tmp_path / "p.gguf")


def test_an_adapter_is_not_released(tmp_path: Path) -> None:
    adapter = REFERENCES / "adapters" / "qwen3"
    base = ("--base", REFERENCES / "qwen3")
    assert run("convert", adapter, *base, "-o", tmp_path / "a.gguf", "-q").code == 0
    with pytest.raises(ReleaseError, match="is an adapter; a release is of models"):
        release_of(tmp_path / "a.gguf")


def test_a_release_needs_the_language_model_of_the_projector(tmp_path: Path) -> None:
    convert(tmp_path / "a.gguf", "-r", "q8_0", "--mmproj")
    with pytest.raises(ReleaseError, match="is a projector; name the GGUF of its language model"):
        release_of(tmp_path / BESIDE)
    wide = {"default": "F16", "metadata": {"clip.vision.projection_dim": 64}}
    dynquant.convert(load_projector(MODEL), tmp_path / "p.gguf", recipe=wide, threads=1)
    with pytest.raises(ReleaseError, match=r"projection_dim is 64, but the embeddings of .* 32"):
        release_of(tmp_path / "a.gguf", tmp_path / "p.gguf")


@pytest.mark.slow
def test_only_shards_with_the_encoder_are_fetched_from_the_hub(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="needs the extra `hub`")
    repository = shutil.copytree(MODEL, tmp_path / "repository")
    config = json.loads((repository / "config.json").read_text("utf-8"))
    stored = stored_in(repository)
    parts = {
        "model-00001-of-00002.safetensors": {n: t for n, t in stored.items() if "visual" in n},
        "model-00002-of-00002.safetensors": {n: t for n, t in stored.items() if "visual" not in n},
    }
    (repository / "model.safetensors").unlink()
    for name, tensors in parts.items():
        write_stored(tmp_path / "part", config, tensors)
        shutil.move(tmp_path / "part" / "model.safetensors", repository / name)
    listed = {tensor: name for name, tensors in parts.items() for tensor in tensors}
    index = {"metadata": {}, "weight_map": listed}
    (repository / "model.safetensors.index.json").write_text(json.dumps(index))
    hub = Hub({"tiny/sees": repository})
    with Serving(hub) as serving:
        command = [sys.executable, "-m", "dynquant", "convert", "hf://tiny/sees", "--only-mmproj"]
        done = subprocess.run(
            [*command, "-o", tmp_path / "p.gguf"],
            env=serving.environment(tmp_path),
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert "model-00001-of-00002.safetensors" in hub.fetched()
    assert "model-00002-of-00002.safetensors" not in hub.fetched()
    keys = dynquant.inspect(tmp_path / "p.gguf").keys
    assert keys["dynquant.source"].value == "hf://tiny/sees"
    assert dynquant.verify(tmp_path / "p.gguf", against=str(MODEL)).is_sound
