"""The texts that are part of dynquant: prose, conversations, worked problems, code, 36 languages.

They were written for this project and are under its licence (corpus/README.md). No evaluation
should use them.
"""

from __future__ import annotations

from importlib import resources

from dynquant.texts import Text

_KINDS = {"english": ("en-",), "code": ("code-", "data")}


def shipped_texts() -> tuple[Text, ...]:
    """Return three texts: English, code and data, and other languages; files by name in each."""
    folder = resources.files("dynquant.calibrate").joinpath("corpus")
    files = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".txt")),
        key=lambda file: file.name,
    )
    joined: dict[str, list[bytes]] = {}
    for file in files:
        kind = next((k for k, begin in _KINDS.items() if file.name.startswith(begin)), "languages")
        joined.setdefault(kind, []).append(file.read_bytes())
    return tuple(
        Text(f"dynquant-{kind}.txt", b"\n\n".join(parts)) for kind, parts in sorted(joined.items())
    )
