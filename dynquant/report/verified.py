"""Text and JSON of a verification (`dynquant verify`)."""

from __future__ import annotations

from typing import Any

from dynquant.figures import counted, size_text
from dynquant.verification.findings import Verification


def verified_json(found: Verification) -> dict[str, Any]:
    """Return a verification as `dynquant verify --json` prints it; scripts depend on this form."""
    return {
        "sound": found.is_sound,
        "files": [{"name": path.name, "bytes": size} for path, size in found.files],
        "tensors": found.n_tensors,
        "faults": [
            {
                "file": fault.file.name if fault.file else None,
                "tensor": fault.tensor,
                "offset": fault.offset,
                "what": fault.what,
            }
            for fault in found.faults
        ],
        "warnings": list(found.warnings),
        "checked": list(found.checked),
        "unchecked": list(found.unchecked),
    }


def verified_text(found: Verification, name: str, seconds: str) -> str:
    """Return a line for each thing that was checked or could not be, and the verdict."""
    lines = [f"checked      {what}" for what in found.checked]
    lines += [f"not checked  {what}" for what in found.unchecked]
    verdict = counted(len(found.faults), "fault") if found.faults else "sound"
    size = size_text(sum(size for _, size in found.files))
    tensors, files = counted(found.n_tensors, "tensor"), counted(len(found.files), "file")
    read = f"; {size}, {tensors}, {files}" if found.files else ""  # no size if nothing was read
    lines.append(f"{name}: {verdict}{read}, in {seconds}")
    return "\n".join(lines) + "\n"
