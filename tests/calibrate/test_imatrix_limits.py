"""What a run may use: memory, and the devices that torch finds.

Needs torch: `pytest -m torch` where the extra `calibrate` is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agreement import load_reference

from dynquant.errors import CalibrationError
from dynquant.texts import Text

torch: Any = pytest.importorskip("torch", reason="needs the extra calibrate")

from dynquant.calibrate import devices  # noqa: E402
from dynquant.calibrate.imatrix import Settings, make_imatrix  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]

MODEL = load_reference("qwen3").folder
WORDS = Text("words", b"a man walks along the sea and sings. " * 1200)


def made(out: Path, **options: Any) -> tuple[bytes, str]:
    """Make an imatrix; return the file and what was said."""
    said: list[str] = []
    settings = Settings((WORDS,), context=512, threads=1, **options)
    make_imatrix(MODEL, out, settings, force=True, progress=lambda _, __: None, say=said.append)
    (line,) = said
    return out.read_bytes(), line


def test_less_memory_needs_several_passes_and_gives_the_same_file(tmp_path: Path) -> None:
    whole, plain = made(tmp_path / "m.gguf", memory=10**10)
    split, line = made(tmp_path / "m.gguf", memory=needed_by(plain) - 1)
    assert " passes; needs at most " in line
    assert "passes" not in plain
    assert whole == split


def needed_by(line: str) -> int:
    """Return the bytes that a run said it needs, rounded up to its three digits."""
    size, unit = line.partition("needs at most ")[2].split()[:2]
    return int((float(size) - 0.5) * {"MB": 10**6, "GB": 10**9}[unit])


def test_too_little_memory_is_refused_before_the_model_runs(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError) as e:
        made(tmp_path / "m.gguf", memory=10**8)
    (message,) = e.value.messages
    assert "100 MB (95.4 MiB) are allowed" in message
    assert "use fewer --threads, a smaller --context or a larger --memory" in message
    assert not list(tmp_path.iterdir())


def test_a_machine_with_too_little_memory_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "available_bytes", lambda: 10**8)
    with pytest.raises(CalibrationError, match=r"100 MB .* are available"):
        made(tmp_path / "m.gguf")


def test_a_device_that_torch_does_not_find_is_named_with_those_it_finds(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError) as e:
        made(tmp_path / "m.gguf", device="npu:3")
    (message,) = e.value.messages
    assert message.startswith(f"--device npu:3: torch {torch.__version__} finds cpu")
    assert message.endswith("use one of these, or auto")


Find = Callable[[str], Any]


@pytest.fixture
def with_accelerator(monkeypatch: pytest.MonkeyPatch) -> Find:
    """Return find_device on a machine with two accelerators, which the test only names."""
    found = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: found)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    return devices.find_device


def test_auto_is_the_accelerator_and_the_cpu_where_there_is_none(with_accelerator: Find) -> None:
    assert with_accelerator("auto").type == "cuda"
    assert with_accelerator("cuda:1").index == 1
    assert with_accelerator("cpu").type == "cpu"
    with pytest.raises(CalibrationError, match="finds cpu, cuda, cuda:0, cuda:1 on this machine"):
        with_accelerator("cuda:2")


def test_the_file_records_its_device(tmp_path: Path) -> None:
    content, _ = made(tmp_path / "m.gguf")
    key = b"dynquant.imatrix.device"
    value = content[content.index(key) + len(key) :]
    # Type 8 is a string: its length as u64, then its bytes.
    assert value.startswith(bytes([8, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]) + b"cpu")
