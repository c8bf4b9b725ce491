"""The command line: stdout has data, stderr has messages, and the exit code states the result."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
import pytest
from handmade import names
from imatrices import write_legacy
from inprocess import run
from places import ROOT, TINY_BOOKS
from subsets import slow_except

from dynquant.cli.options import recipe_names
from dynquant.quants.search import EFFORTS
from dynquant.quants.table import ALL

COMMANDS = ("convert", "plan", "inspect", "manifest", "types", "recipes")
RECIPE = """\
description: for the tests
default: Q8_0
rules:
  - {role: ffn_down, layers: 1, type: Q4_0}
  - {name: blk.1.ffn_down.weight, type: Q8_0}
"""


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic Llama of 1.3 million weights; also tests the script that makes large ones."""
    folder = tmp_path_factory.mktemp("llama")
    sizes = {"layers": 2, "hidden": 256, "ffn": 512, "heads": 8, "kv-heads": 2, "vocab": 512}
    script = ROOT / "scripts" / "models" / "make_synthetic_llama.py"
    options = [f"--{name}={size}" for name, size in sizes.items()]
    subprocess.run([sys.executable, script, folder, *options], check=True, capture_output=True)
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(RECIPE)
    return tmp_path / "small.yaml"


@pytest.mark.slow
def test_the_version_is_printed() -> None:
    expected = f"dynquant {version('dynquant-gguf')}\n"
    assert run("--version") == run("-V") == (0, expected, "")


@pytest.mark.slow
def test_the_package_is_a_command() -> None:
    command = [sys.executable, "-m", "dynquant", "--version"]
    assert subprocess.run(command, capture_output=True).stdout.startswith(b"dynquant ")


@pytest.mark.parametrize("args", [["--help"], *([c, "--help"] for c in COMMANDS)])
def test_help_goes_to_stdout(args: list[str]) -> None:
    done = run(*args)
    assert done.code == 0
    assert done.out.startswith("Usage: dynquant")
    assert done.err == ""


@pytest.mark.parametrize(
    "args",
    [
        ["convrt"],
        ["convert"],
        ["convert", "m", "-o", "x.gguf"],
        ["convert", "m", "--recipe", "q8_0"],
        ["convert", "m", "-o", "x.gguf", "--recipe", "q8_0", "--threads", "0"],
        ["convert", "m", "-o", "x.gguf", "--recipe", "q8_0", "--threads", "two"],
        ["convert", "m", "-o", "x.gguf", "--recipe", "q8_0", "--set", "general.name"],
        ["convert", "m", "-o", "x.gguf", "--recipe", "q8_0", "--effort", "most"],
        ["plan", "m", "--recipe", "q8_0", "--set", "=1"],
        ["plan", "m"],
        ["inspect"],
        ["manifest"],
        ["manifest", "x.gguf", "--schema"],
        ["convert", "m", "-o", "x.gguf", "--recipe", "q8_0", "--source-hashes", "some"],
        ["types", "--yaml"],
    ],
)
def test_wrong_usage_exits_2_and_prints_no_data(args: list[str]) -> None:
    done = run(*args)
    assert done.code == 2
    assert done.out == ""
    assert "Error:" in done.err


@pytest.mark.slow
def test_types_lists_one_type_per_line() -> None:
    done = run("types")
    assert [line.split()[0] for line in done.out.splitlines()[1:]] == list(ALL)
    assert (done.code, done.err) == (0, "")


def test_types_as_json_has_names_and_sizes() -> None:
    (q8_0,) = [t for t in json.loads(run("types", "--json").out) if t["name"] == "Q8_0"]
    assert (q8_0["bits_per_weight"], q8_0["block_size"], q8_0["type_size"]) == (8.5, 32, 34)
    assert q8_0["needs_importance"] is False


@pytest.mark.slow
def test_types_shows_which_readers_do_not_read_each() -> None:
    (line,) = [t for t in run("types").out.splitlines() if t.startswith("IQ4_NL")]
    assert re.split(r"\s{2,}", line)[4] == "mistral.rs, candle"
    found = {t["name"]: t["readers"] for t in json.loads(run("types", "--json").out)}
    assert found["IQ4_NL"]["candle"]["reads"] is False
    mistral = found["MXFP4"]["mistral.rs"]
    assert (mistral["reads"], mistral["except"]) == (False, ["gpt-oss"])
    assert [name for name, of in found["Q4_K"].items() if not of["reads"]] == []


@pytest.mark.slow
def test_named_types_are_followed_by_their_readers_in_words() -> None:
    *_, first, second = run("types", "mxfp4").out.splitlines()
    assert first == "MXFP4: mistral.rs reads it in gpt-oss models"
    assert second == "MXFP4: transformers does not read it in qwen35, qwen35moe, lfm2 models"
    last = run("types", "IQ4_NL").out.splitlines()[-1]
    assert last.startswith("IQ4_NL: read by llama.cpp (since b2221), Ollama, LM Studio, ")
    assert last.endswith("; not by mistral.rs, candle")


@pytest.mark.slow
def test_recipes_lists_all_shipped_recipes() -> None:
    done = run("recipes")
    listed = [line.split()[0] for line in done.out.splitlines()[1:]]
    own, mixes = ROOT / "recipes", ROOT / "recipes" / "llama.cpp"
    assert listed == [p.stem for folder in (own, mixes) for p in sorted(folder.glob("*.yaml"))]


def test_recipes_prints_a_recipe_unchanged() -> None:
    assert run("recipes", "q8_0").out == (ROOT / "recipes" / "q8_0.yaml").read_text()


def test_an_unknown_recipe_is_one_error_line() -> None:
    done = run("recipes", "q8")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: 'q8' is neither")
    assert done.err.count("\n") == 1


@pytest.mark.slow
def test_plan_shows_roles_with_their_layers_types_and_totals(llama: Path, recipe: Path) -> None:
    done = run("plan", llama, "--recipe", recipe)
    rows = [re.split(r"\s+", line) for line in done.out.splitlines()]
    assert ["ffn_down", "1", "1", "Q4_0", "131,072", "73,728", "4.500"] in [r[:7] for r in rows]
    assert ["attn_norm", "0-1", "2", "F32", "512", "2,048", "32.000"] in [r[:7] for r in rows]
    assert "bits per weight" in done.out
    assert "GiB" in done.out or "MiB" in done.out
    assert done.code == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", ["plan", "convert"])
def test_errors_in_recipe_imatrix_and_model_are_reported_together(
    tmp_path: Path, command: str
) -> None:
    (tmp_path / "i").write_bytes(b"no imatrix at all")
    more = ["-o", tmp_path / "x.gguf"] if command == "convert" else []
    done = run(command, tmp_path / "m", "-r", "nope", "--imatrix", tmp_path / "i", *more)
    assert done.code == 1
    recipe, imatrix, model = done.err.splitlines()
    assert "'nope' is neither a shipped recipe nor a file" in recipe
    assert str(tmp_path / "i") in imatrix
    assert f"{tmp_path / 'm'}: not a folder" in model


def test_model_on_the_hub_is_not_fetched_for_a_missing_recipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dynquant.arch.load.load_model", lambda *_, **__: pytest.fail("fetched"))
    done = run("plan", "hf://org/model", "-r", "nope")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "'nope'" in done.err


@pytest.mark.slow
def test_warnings_go_to_stderr(llama: Path, recipe: Path) -> None:
    done = run("plan", llama, "--recipe", recipe, "--json")
    assert "blk.1.ffn_down.weight) applies to no tensor" in done.err
    assert json.loads(done.out)["warnings"]


@pytest.mark.slow
def test_plan_and_inspect_print_the_same_tensors_as_json(
    llama: Path, recipe: Path, tmp_path: Path
) -> None:
    planned = json.loads(run("plan", llama, "--recipe", recipe, "--json").out)
    assert run("convert", llama, "-o", tmp_path / "x.gguf", "--recipe", recipe).code == 0
    found = json.loads(run("inspect", tmp_path / "x.gguf", "--json").out)
    same = (
        "architecture",
        "recipe",
        "tensor_bytes",
        "bits_per_weight",
        "type_counts",
        "file_bytes",
    )
    assert {k: found[k] for k in same} == {k: planned[k] for k in same}
    fields = ("name", "shape", "type", "bytes", "offset")
    for there, wanted in zip(found["tensors"], planned["tensors"], strict=True):
        assert {f: there[f] for f in fields} == {f: wanted[f] for f in fields}
        assert there["rule"] is None
    assert (tmp_path / "x.gguf").stat().st_size == planned["file_bytes"]


@pytest.mark.slow
def test_inspect_prints_whole_arrays_as_json_and_shortens_them_in_text(
    llama: Path, recipe: Path, tmp_path: Path
) -> None:
    run("convert", llama, "-o", tmp_path / "x.gguf", "--recipe", recipe)
    keys = json.loads(run("inspect", tmp_path / "x.gguf", "--json").out)["keys"]
    assert len(keys["tokenizer.ggml.tokens"]) == 512
    assert keys["general.quantization_version"] == 2
    shown = run("inspect", tmp_path / "x.gguf").out
    (line,) = [li for li in shown.splitlines() if li.startswith("tokenizer.ggml.tokens ")]
    assert "STRING[512]" in line
    assert "…" in line
    assert len(line) < 160


@pytest.mark.slow
def test_inspect_prints_floats_with_the_fewest_digits(
    llama: Path, recipe: Path, tmp_path: Path
) -> None:
    run("convert", llama, "-o", tmp_path / "x.gguf", "--recipe", recipe, "--set", "x.eps=1e-5")
    assert json.loads(run("inspect", tmp_path / "x.gguf", "--json").out)["keys"]["x.eps"] == 1e-5


def test_inspect_of_a_model_on_the_hub_is_refused_with_a_remedy() -> None:
    done = run("inspect", "hf://org/model")
    assert done.code == 1
    assert done.err.startswith(
        "error: hf://org/model: is a model; name a GGUF of it (hf://ORG/MODEL/FILE.gguf)"
    )


def test_inspect_of_a_file_that_is_not_a_gguf_is_an_error(recipe: Path) -> None:
    done = run("inspect", recipe)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {recipe}")


@pytest.mark.slow
def test_convert_prints_path_size_and_speed_to_stderr(
    llama: Path, recipe: Path, tmp_path: Path
) -> None:
    done = run("convert", llama, "-o", tmp_path / "x.gguf", "--recipe", recipe, "--threads", 2)
    assert (done.code, done.out) == (0, "")
    readers, last = done.err.splitlines()[-2:]
    assert readers.startswith("readers: llama.cpp, Ollama, LM Studio, vLLM")
    assert last.startswith(f"{tmp_path / 'x.gguf'}: 1.")
    assert "MB" in last
    assert "bits per weight" in last
    assert "weights/s" in last


@pytest.mark.slow
def test_quiet_conversion_prints_nothing(llama: Path, recipe: Path, tmp_path: Path) -> None:
    done = run("convert", llama, "-o", tmp_path / "x.gguf", "--recipe", recipe, "--quiet")
    assert done == (0, "", "")
    assert (tmp_path / "x.gguf").exists()


@pytest.mark.slow
def test_a_dry_run_prints_the_plan_and_writes_nothing(
    llama: Path, recipe: Path, tmp_path: Path
) -> None:
    dry = run("convert", llama, "-o", tmp_path / "x.gguf", "--recipe", recipe, "--dry-run")
    assert dry.code == 0
    assert dry.out == run("plan", llama, "--recipe", recipe).out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.yaml"]


@pytest.mark.slow
def test_dry_run_refuses_a_missing_output_folder(llama: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "none" / "x.gguf"
    dry = run("convert", llama, "-o", out, "--recipe", recipe, "--dry-run")
    assert dry.code == 1
    assert dry.err.splitlines()[-1].startswith(f"error: {tmp_path / 'none'}")


@pytest.mark.slow
def test_existing_output_is_replaced_only_with_force(
    llama: Path, recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.gguf").write_text("mine")
    kept = run("convert", llama, "-o", tmp_path / "x.gguf", "--recipe", recipe)
    assert (kept.code, kept.out) == (1, "")
    assert kept.err.splitlines()[-1].startswith("error: ")
    assert (tmp_path / "x.gguf").read_text() == "mine"
    assert run("convert", llama, "-o", tmp_path / "x.gguf", "--recipe", recipe, "--force").code == 0
    assert (tmp_path / "x.gguf").read_bytes()[:4] == b"GGUF"


@pytest.mark.slow
def test_set_keys_are_written(llama: Path, recipe: Path, tmp_path: Path) -> None:
    settings = ("--set", "general.name=My = model", "--set", "llama.context_length=77")
    run("convert", llama, "-o", tmp_path / "x.gguf", "--recipe", recipe, *settings)
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    assert fields["general.name"].contents() == "My = model"
    assert fields["llama.context_length"].contents() == 77


@pytest.mark.slow
@pytest.mark.parametrize("effort", slow_except(["fast"], EFFORTS))
def test_every_effort_is_planned_and_written(
    llama: Path, recipe: Path, tmp_path: Path, effort: str
) -> None:
    options = ("--recipe", recipe, "--effort", effort)
    assert json.loads(run("plan", llama, *options, "--json").out)["effort"] == effort
    assert f"effort {effort}" in run("plan", llama, *options).out.splitlines()[0]
    assert run("convert", llama, "-o", tmp_path / "x.gguf", *options).code == 0
    keys = json.loads(run("inspect", tmp_path / "x.gguf", "--json").out)["keys"]
    assert keys["dynquant.effort"] == effort


def test_unknown_effort_is_reported_with_the_valid_ones() -> None:
    done = run("plan", "m", "--recipe", "q8_0", "--effort", "most")
    assert (done.code, done.out) == (2, "")
    assert "'most' is not one of 'fast', 'normal', 'best'" in done.err


@pytest.mark.slow
def test_type_without_needed_importance_is_refused_before_writing(
    llama: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text("default: IQ2_XS\n")
    done = run("convert", llama, "-o", tmp_path / "x.gguf", "--recipe", recipe)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {recipe}:1 default: IQ2_XS needs importance")
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [recipe]


@pytest.fixture
def imatrix(tmp_path: Path) -> Path:
    """An imatrix of the synthetic Llama's first layer."""
    means = {f"blk.0.{r}.weight": np.ones(256, np.float32) for r in ("ffn_up", "attn_q", "attn_k")}
    return write_legacy(tmp_path / "i.dat", means)


@pytest.mark.slow
def test_imatrix_is_used_and_missing_tensors_are_reported(
    llama: Path, recipe: Path, imatrix: Path, tmp_path: Path
) -> None:
    shown = run("plan", llama, "--recipe", recipe, "--imatrix", imatrix)
    assert shown.code == 0
    assert "imatrix i.dat: importance for 5 tensors, none for blk.{0-1}." in shown.out
    assert "blk.0.attn_v.weight from attn_q; blk.0.ffn_gate.weight from ffn_up\n" in shown.out
    assert f"warning: {imatrix}: no importance for blk.{{0-1}}." in shown.err
    assert "blk.1.attn_k.weight, blk.1.attn_v.weight, blk.1.ffn_gate.weight, " in shown.err
    planned = json.loads(run("plan", llama, "--recipe", recipe, "--imatrix", imatrix, "--json").out)
    assert {t["name"]: t["importance"] for t in planned["tensors"] if t["importance"]} == {
        "blk.0.attn_q.weight": "yes",
        "blk.0.attn_k.weight": "yes",
        "blk.0.attn_v.weight": "yes, of attn_q",
        "blk.0.ffn_gate.weight": "yes, of ffn_up",
        "blk.0.ffn_up.weight": "yes",
    }
    out = tmp_path / "x.gguf"
    assert run("convert", llama, "-o", out, "--recipe", recipe, "--imatrix", imatrix).code == 0
    assert gguf.GGUFReader(out).fields["quantize.imatrix.file"].contents() == "i.dat"


@pytest.mark.slow
def test_plan_without_an_imatrix_does_not_mention_importance(llama: Path, recipe: Path) -> None:
    done = run("plan", llama, "--recipe", recipe)
    assert "importance" not in done.out + done.err


@pytest.mark.slow
def test_damaged_imatrix_is_one_error_line(llama: Path, recipe: Path) -> None:
    done = run("plan", llama, "--recipe", recipe, "--imatrix", recipe)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {recipe}: byte 0: ")
    assert done.err.count("\n") == 1


@pytest.mark.slow
def test_each_invalid_setting_is_one_error_line(llama: Path, recipe: Path) -> None:
    bad = ("--set", "llama.block_count=x", "--set", "general.architecture=x")
    done = run("plan", llama, "--recipe", recipe, *bad)
    assert done.code == 1
    assert [line[:6] for line in done.err.splitlines()] == ["error:", "error:"]


@pytest.mark.slow
def test_a_missing_model_is_an_error_without_a_traceback(tmp_path: Path) -> None:
    done = run("plan", tmp_path / "none", "--recipe", "q8_0")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err


def test_the_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [c for c in COMMANDS if f"dynquant {c}" not in readme] == []


@pytest.mark.slow
def test_closed_stdout_ends_the_command_without_messages() -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "dynquant.cli", "types"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.close()
    assert child.stderr is not None
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait() == 141


@pytest.mark.slow
def test_letter_outside_the_encoding_of_the_terminal_is_a_question_mark(
    llama: Path, recipe: Path, tmp_path: Path
) -> None:
    shell = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "dynquant.cli"]
    out = str(tmp_path / "é.gguf")
    made = subprocess.run(
        [*command, "convert", llama, "-o", out, "--recipe", recipe],
        capture_output=True,
        check=True,
        env=shell,
    )
    assert made.stderr.splitlines()[-1].startswith(str(tmp_path).encode() + b"/?.gguf: ")


SLOW = """
import os, signal, time
from dynquant.cli import main
from dynquant.quants.encoder import CoreEncoder
# If a shell runs the tests in the background, their child processes ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
encode = CoreEncoder.encode
begun = os.open(os.environ["BEGUN"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def slowly(*args, **kwargs):
    os.write(begun, b"*")
    time.sleep(0.3)
    return encode(*args, **kwargs)
CoreEncoder.encode = slowly
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_conversion_is_resumed_by_the_next_run(
    llama: Path, recipe: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    out, begun = folder / "x.gguf", tmp_path / "begun"
    arguments = ["convert", str(llama), "-o", str(out), "--recipe", str(recipe), "--threads", "2"]
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"BEGUN": str(begun)},
    )
    while not begun.exists() or begun.stat().st_size < 2:
        assert child.poll() is None, child.communicate()
        time.sleep(0.01)
    n_before = begun.stat().st_size
    os.kill(child.pid, sent)
    _, messages = child.communicate(timeout=60)
    assert child.returncode == code, messages
    # Each thread finishes its job, and may take one more before the signal's handler runs.
    assert begun.stat().st_size <= n_before + 2
    assert "Traceback" not in messages
    assert messages.splitlines()[-1].startswith("interrupted; ")
    assert names(folder) == ["x.gguf.journal", "x.gguf.part"]
    code, _, err = run(*arguments)
    assert code == 0
    assert "x.gguf: resuming an interrupted run\n" in err
    assert re.search(r"bits per weight, error 0\.\d+, in ", err.splitlines()[-1])
    assert names(folder) == ["x.gguf", "x.gguf.manifest.json"]


@pytest.mark.slow
def test_types_shows_the_named_ones_only() -> None:
    code, out, _ = run("types", "q4_k", "IQ1_S")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == [
        "Q4_K",
        "IQ1_S",
        "Q4_K:",
        "IQ1_S:",
    ]
    code, _, err = run("types", "q4k")
    assert (code, "did you mean Q4_K?" in err) == (1, True)


def test_names_of_recipes_are_completed() -> None:
    assert recipe_names("dynamic-4") == ["dynamic-4bit"]
    assert recipe_names("nothing") == []


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ("org/Model-7B", "write hf://org/Model-7B"),
        ("https://huggingface.co/org/Model-7B/tree/main", "write hf://org/Model-7B"),
        ("https://example.org/model", "write hf://ORG/MODEL"),
        (str(TINY_BOOKS / "model.safetensors"), f"give the folder {TINY_BOOKS}"),
    ],
)
def test_a_model_in_another_form_is_answered_with_the_form_to_type(
    given: str, instead: str
) -> None:
    code, _, err = run("plan", given, "-r", "q8_0")
    assert (code, len(err.splitlines())) == (1, 1)
    assert instead in err


def test_output_to_stdout_is_wrong_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("convert", TINY_BOOKS, "-r", "q8_0", "-o", "-")
    assert (code, "name a file" in err) == (2, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_general_key_that_gguf_does_not_define_is_a_warning() -> None:
    given = ("general.nam=x", "general.author=y", "general.base_model.0.name=z", "mine.key=1")
    settings = [word for key in given for word in ("--set", key)]
    code, _, err = run("plan", TINY_BOOKS, "-r", "q8_0", *settings)
    assert code == 0
    assert err.count("is not a general key of GGUF") == 1
    assert "--set general.nam: " in err
    assert "did you mean general.name?" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "cause"),
    [
        ("dynamic-moe-2bit", "the model has no experts; take dynamic-2bit"),
        ("dynamic-moe-3bit", "the model has no experts; take dynamic-3bit"),
        ("deepseek-r1-iq1_s", "is for deepseek2, but the model is qwen3"),
    ],
)
def test_a_recipe_for_other_models_is_one_error(recipe: str, cause: str) -> None:
    code, _, err = run("plan", TINY_BOOKS, "-r", recipe)
    assert (code, len(err.splitlines())) == (1, 1)
    assert cause in err


@pytest.mark.slow
def test_a_summary_that_cannot_be_written_is_an_error_before_the_conversion(
    tmp_path: Path,
) -> None:
    out = tmp_path / "x.gguf"
    for summary in (tmp_path / "none" / "s.md", tmp_path):
        code, _, err = run("convert", TINY_BOOKS, "-o", out, "-r", "q8_0", "--summary", summary)
        assert (code, len(err.splitlines())) == (1, 1)
        assert f"{summary}: cannot be written" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_name_that_is_too_long_is_one_error(tmp_path: Path) -> None:
    for command in (("plan", "-r", "q8_0"), ("verify",), ("manifest",)):
        code, _, err = run(command[0], tmp_path / ("x" * 300), *command[1:])
        assert (code, "File name too long" in err) == (1, True), err
        assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize(("redirection", "code"), [("> /dev/full", 1), (">&-", 0), (">&- 2>&-", 0)])
def test_stdout_that_is_full_or_closed_is_no_traceback(redirection: str, code: int) -> None:
    done = subprocess.run(
        f"{sys.executable} -m dynquant types {redirection}",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert ("stdout: cannot be written" in done.stderr) is (code == 1)


@pytest.mark.slow
def test_inspect_prints_a_line_for_each_tensor_or_one_value(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    assert run("convert", TINY_BOOKS, "-o", out, "-r", "q8_0", "-q").code == 0
    lines = run("inspect", out, "--tensors").out.splitlines()
    assert len(lines) == 1 + len(gguf.GGUFReader(out).tensors)
    assert lines[1].split()[:2] == ["token_embd.weight", "Q8_0"]
    assert run("inspect", out, "--key", "general.architecture").out == "qwen3\n"
    tokens = run("inspect", out, "--key", "tokenizer.ggml.tokens").out
    assert tokens.count("\n") >= 2048
    code, _, err = run("inspect", out, "--key", "general.nam")
    assert (code, "did you mean general.name?" in err) == (1, True)
    assert run("inspect", out, "--tensors", "--json").code == 2
