"""hf://org/model through huggingface_hub, from a hub on loopback.

Commands run in separate processes, because the library reads its environment when it is imported.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import pytest
from adapters import ADAPTERS, alone
from agreement import load_reference
from ggufs import keys_of, tensors_of
from tiny_hub import COMMIT, Hub, Serving

import dynquant
from dynquant.checkpoint.hub import HubName, parse_hub_name
from dynquant.errors import CheckpointError

pytest.importorskip("huggingface_hub", reason="needs the extra `hub`")

Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]
MODEL = "hf://tiny/llama"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository: a checkpoint, and files that no conversion needs."""
    made = shutil.copytree(load_reference("llama-2").folder, tmp_path / "repository")
    for name in ("consolidated.safetensors", "pytorch_model.bin", "extra/config.json", "a.onnx"):
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_bytes(b"not needed")
    (made / "README.md").write_text("---\nlicense: mit\n---\n")
    return made


@pytest.fixture
def hub(folder: Path) -> Hub:
    return Hub({"tiny/llama": folder})


@pytest.fixture
def serving(hub: Hub) -> Iterator[Serving]:
    with Serving(hub) as served:
        yield served


@pytest.fixture
def run(serving: Serving, tmp_path: Path) -> Run:
    """Run a command with this hub and an empty cache."""

    def run_(*args: object, **more: str) -> Done:
        environment = {**serving.environment(tmp_path), **more}
        return subprocess.run(
            [sys.executable, "-m", "dynquant.cli", *map(str, args)],
            env=environment,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )

    return run_


def convert(run: Run, model: str, *args: object, **more: str) -> Done:
    return run("convert", model, "-o", "out.gguf", "-r", "f32", "--force", *args, **more)


def refusal(done: Done) -> str:
    """Return the line with which a command failed."""
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = [li for li in done.stderr.splitlines() if li.startswith("error: ")]
    assert "Traceback" not in done.stderr
    return line


@pytest.mark.slow
def test_a_model_on_the_hub_equals_its_folder_plus_its_origin(
    run: Run, serving: Serving, folder: Path, tmp_path: Path
) -> None:
    done = convert(run, MODEL)
    assert done.returncode == 0, done.stderr
    dynquant.convert(folder, tmp_path / "local.gguf", recipe="f32", threads=2)
    found, local = keys_of(tmp_path / "out.gguf"), keys_of(tmp_path / "local.gguf")
    assert tensors_of(tmp_path / "out.gguf") == tensors_of(tmp_path / "local.gguf")
    origin = {
        "general.source.repo_url": f"{serving.endpoint}/tiny/llama",
        "dynquant.source": MODEL,
        "dynquant.source_revision": COMMIT,
    }
    assert {k: found[k][1] for k in origin} == origin
    assert found["general.name"][1] == "Llama"
    assert {
        k: v for k, v in found.items() if not k.startswith(("general.", "dynquant.source"))
    } == {k: v for k, v in local.items() if not k.startswith("general.")}
    assert found["general.license"][1] == "mit"


@pytest.mark.slow
def test_only_files_that_a_conversion_needs_are_fetched(run: Run, hub: Hub) -> None:
    convert(run, MODEL)
    assert hub.fetched() == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
    }


@pytest.mark.slow
def test_a_revision_is_recorded_as_its_commit(run: Run, tmp_path: Path) -> None:
    assert convert(run, f"{MODEL}@v1").returncode == 0
    assert keys_of(tmp_path / "out.gguf")["dynquant.source_revision"][1] == "1" * 40
    assert keys_of(tmp_path / "out.gguf")["dynquant.source"][1] == MODEL


@pytest.mark.slow
def test_plan_and_dry_run_accept_a_model_on_the_hub(run: Run) -> None:
    plan = run("plan", MODEL, "-r", "q8_0", "--json")
    assert json.loads(plan.stdout)["architecture"] == "llama"
    assert convert(run, MODEL, "--dry-run").returncode == 0


@pytest.mark.slow
def test_numbered_shards_without_an_index_are_fetched(run: Run, hub: Hub, folder: Path) -> None:
    name = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / name)
    done = convert(run, MODEL)
    assert done.returncode == 0, done.stderr
    assert {n for n in hub.fetched() if n.endswith(".safetensors")} == {name}


@pytest.mark.slow
def test_shards_in_the_index_are_fetched(run: Run, hub: Hub, folder: Path, tmp_path: Path) -> None:
    name = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / name)
    header = (folder / name).read_bytes()
    n = int.from_bytes(header[:8], "little")
    tensors = json.loads(header[8 : 8 + n]).keys() - {"__metadata__"}
    index = {"weight_map": dict.fromkeys(tensors, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    done = convert(run, MODEL)
    assert done.returncode == 0, done.stderr
    assert {f for f in hub.fetched() if f.endswith(".safetensors")} == {name}


@pytest.mark.slow
def test_a_cached_model_needs_no_hub(run: Run, tmp_path: Path) -> None:
    assert convert(run, MODEL).returncode == 0
    first = (tmp_path / "out.gguf").read_bytes()
    assert convert(run, MODEL, HF_HUB_OFFLINE="1").returncode == 0
    assert (tmp_path / "out.gguf").read_bytes() == first


@pytest.mark.slow
def test_no_file_is_fetched_twice(run: Run, hub: Hub) -> None:
    assert convert(run, MODEL).returncode == 0
    first = hub.fetched()
    hub.asked.clear()
    assert convert(run, MODEL).returncode == 0
    assert first
    assert hub.fetched() == set()


@pytest.mark.slow
def test_progress_goes_to_stderr_unless_quiet(run: Run) -> None:
    done = convert(run, MODEL)
    assert done.stdout == ""
    assert "Fetching" in done.stderr
    quiet = convert(run, f"{MODEL}@v1", "--quiet")
    assert (quiet.returncode, quiet.stdout) == (0, "")
    assert "Fetching" not in quiet.stderr


@pytest.mark.slow
def test_the_token_of_the_library_is_used(run: Run, hub: Hub) -> None:
    hub.gated.add("tiny/llama")
    hub.tokens.add("hf_opens")
    assert "hf://tiny/llama: is gated; request access on its page, then sign in" in refusal(
        convert(run, MODEL)
    )
    assert convert(run, MODEL, HF_TOKEN="hf_opens").returncode == 0


@pytest.mark.slow
def test_a_missing_model_is_reported_in_one_line(run: Run) -> None:
    assert refusal(convert(run, "hf://tiny/none")) == (
        "error: hf://tiny/none: does not exist or is private; correct the name, or sign in"
        " (`hf auth login`, or HF_TOKEN)"
    )


@pytest.mark.slow
def test_a_missing_revision_is_reported_in_one_line(run: Run) -> None:
    line = refusal(convert(run, f"{MODEL}@v9"))
    assert line == f"error: {MODEL}@v9: the model has no such revision"


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}],
    ids=["offline mode", "no connection"],
)
def test_an_unreachable_hub_is_reported_in_one_line(run: Run, how: dict[str, str]) -> None:
    line = refusal(convert(run, MODEL, **how))
    assert line.startswith(f"error: {MODEL}: the Hub cannot be reached, and the cache does")


@pytest.mark.slow
def test_a_name_that_the_library_refuses_is_reported_in_one_line(run: Run) -> None:
    assert "cannot be fetched: HFValidationError" in refusal(convert(run, "hf://a--b/..c"))


@pytest.mark.slow
def test_an_unknown_family_is_refused_before_its_weights_are_fetched(
    run: Run, hub: Hub, folder: Path
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["NewForCausalLM"]}))
    assert "'NewForCausalLM' is not" in refusal(convert(run, MODEL))
    assert "model.safetensors" not in hub.fetched()


@pytest.mark.slow
def test_a_repository_without_safetensors_is_refused(run: Run, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    line = refusal(convert(run, MODEL))
    assert f"{MODEL}@{COMMIT}: has no model.safetensors; to take a GGUF" in line


@pytest.mark.slow
def test_a_gguf_is_fetched_with_its_shards_and_no_other_file(
    run: Run, hub: Hub, folder: Path, tmp_path: Path
) -> None:
    local = tmp_path / "local.gguf"
    dynquant.convert(load_reference("llama-2").folder, local, recipe="f32", threads=2)
    shutil.copy(local, folder / "extra" / "other-f32.gguf")
    writer = gguf.GGUFWriter(folder / "extra" / "m.gguf", "llama", split_max_tensors=10)
    for tensor in gguf.GGUFReader(local).tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    shards = sorted(p.name for p in (folder / "extra").glob("m-*.gguf"))
    assert len(shards) > 1
    done = convert(run, f"{MODEL}@main/extra/{shards[1]}")
    assert done.returncode == 0, done.stderr
    assert hub.fetched() == set(shards)
    assert tensors_of(tmp_path / "out.gguf") == tensors_of(local)
    found = keys_of(tmp_path / "out.gguf")
    assert found["dynquant.source"][1] == f"{MODEL}/extra/{shards[1]}"
    assert found["dynquant.source_revision"][1] == COMMIT


@pytest.mark.slow
def test_the_origin_is_kept_when_an_output_is_converted(run: Run, tmp_path: Path) -> None:
    convert(run, MODEL)
    assert run("convert", "out.gguf", "-o", "again.gguf", "-r", "q8_0").returncode == 0
    kept = ("general.source.repo_url", "dynquant.source", "dynquant.source_revision")
    first, again = keys_of(tmp_path / "out.gguf"), keys_of(tmp_path / "again.gguf")
    assert {k: first[k] for k in kept} == {k: again[k] for k in kept}


def test_a_missing_library_is_reported_with_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError) as e:
        dynquant.load_model(MODEL)
    assert str(e.value) == (
        f"{MODEL}: huggingface_hub is not installed; pip install 'dynquant-gguf[hub]'"
    )


NAMES = {
    "hf://org/model": HubName("org/model"),
    "hf:/org/model": HubName("org/model"),  # as pathlib writes it
    "hf://org/m.o-d_el/": HubName("org/m.o-d_el"),
    "hf://org/model@v1.0": HubName("org/model", "v1.0"),
    "hf://org/model@feature/x": HubName("org/model", "feature/x"),
    "hf://org/model@refs/pr/3": HubName("org/model", "refs/pr/3"),
    "hf://org/model/a b/x.gguf": HubName("org/model", None, "a b/x.gguf"),
    "hf://org/model@v1/a/x.gguf": HubName("org/model", "v1", "a/x.gguf"),
    "hf://org/model@refs/pr/3/a/x.gguf": HubName("org/model", "refs/pr/3", "a/x.gguf"),
}


@pytest.mark.parametrize("text", NAMES)
def test_a_name_is_parsed_into_model_revision_and_file(text: str) -> None:
    assert parse_hub_name(text) == NAMES[text]


@pytest.mark.parametrize(
    "text", ["hf://model", "hf://org/model@", "hf://org/model/sub", "hf://", "hf:///org/model"]
)
def test_other_forms_are_refused_with_the_supported_ones(text: str) -> None:
    with pytest.raises(CheckpointError, match="write hf://ORG/MODEL, "):
        parse_hub_name(text)


@pytest.mark.slow
def test_adapter_and_its_base_are_fetched_without_the_weights_of_the_base(
    hub: Hub, run: Run, tmp_path: Path
) -> None:
    hub.models["tiny/lora"] = ADAPTERS / "llama-2"
    done = run("convert", "hf://tiny/lora", "--base", MODEL, "-o", "lora.gguf")
    assert done.returncode == 0, done.stderr
    assert "adapter_model.safetensors" in hub.fetched()
    assert not any(name.startswith("model") for name in hub.fetched())
    local = alone("llama-2", tmp_path / "x.gguf")
    assert tensor_bytes(tmp_path / "lora.gguf") == tensor_bytes(local)


def tensor_bytes(path: Path) -> dict[str, bytes]:
    return {t.name: t.data.tobytes() for t in gguf.GGUFReader(path).tensors}


@pytest.mark.slow
def test_repository_that_is_not_an_adapter_is_refused(run: Run) -> None:
    done = run("convert", MODEL, "--merge-adapter", MODEL, "-r", "f32", "-o", "x.gguf")
    assert done.returncode == 1
    assert "has no adapter_config.json; give the folder of a PEFT adapter" in done.stderr


@pytest.mark.slow
def test_gguf_that_the_repository_does_not_have_is_reported(run: Run) -> None:
    assert f"{MODEL}/none.gguf: has no none.gguf" in refusal(convert(run, f"{MODEL}/none.gguf"))
