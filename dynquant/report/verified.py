"""What a verification says, for people and for scripts."""

from __future__ import annotations

from typing import Any

from dynquant.verification.findings import Verified


def verified_json(found: Verified) -> dict[str, Any]:
    """Return a verification as `dynquant verify --json` prints it; scripts rely on this form."""
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


def verified_text(found: Verified, name: str, seconds: str) -> str:
    """Return what was looked at, what could not be, and the verdict, a line each."""
    n_bytes = sum(size for _, size in found.files)
    lines = [f"checked      {what}" for what in found.checked]
    lines += [f"not checked  {what}" for what in found.unchecked]
    n = len(found.faults)
    verdict = "sound" if not n else f"{n} fault{'s' if n > 1 else ''}"
    lines.append(
        f"{name}: {verdict}; {n_bytes / 1e9:.2f} GB, {found.n_tensors} tensors,"
        f" {len(found.files)} file{'s' if len(found.files) != 1 else ''}, in {seconds}"
    )
    return "\n".join(lines) + "\n"
