"""Where a model runs: the CPU, or the accelerator that torch finds."""

from __future__ import annotations

from typing import Any

import torch

from dynquant.calibrate.memory import available_bytes
from dynquant.errors import CalibrationError

CPU, AUTO = "cpu", "auto"


def find_device(name: str) -> Any:
    """Return a device of torch.

    name: cpu; torch's name of an accelerator, such as cuda, cuda:1 or mps; or auto for an
          accelerator if there is one, else the CPU

    Raises CalibrationError if torch does not find it here.
    """
    names = [CPU]
    if (found := torch.accelerator.current_accelerator(check_available=True)) is not None:
        n = torch.accelerator.device_count()
        names += [found.type, *(f"{found.type}:{i}" for i in range(n))]
    if name != AUTO and name not in names:
        raise CalibrationError(
            f"--device {name}: torch {torch.__version__} finds {', '.join(names)} on this machine;"
            " use one of these, or auto"
        )
    return torch.device(names[:2][-1] if name == AUTO else name)


def free_bytes(device: Any) -> int:
    """Return the memory that is free where a model would run."""
    if device.type in (CPU, "mps"):  # which share their memory
        return available_bytes()
    return torch.accelerator.get_memory_info(device)[0]
