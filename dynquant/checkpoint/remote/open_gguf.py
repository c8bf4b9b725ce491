"""The header of a GGUF elsewhere, without the file."""

from __future__ import annotations

from dynquant.checkpoint.hub import is_hub_name, parse_hub_name, refuse_address
from dynquant.checkpoint.remote.fsspec_models import is_url, url_model
from dynquant.checkpoint.remote.hub_models import hub_gguf
from dynquant.errors import CheckpointError
from dynquant.stored_files import StoredFile, stored_file


def gguf_elsewhere(text: str) -> StoredFile | None:
    """Return the GGUF of a name of the Hub or a URL; None if the text is a path.

    Raises CheckpointError if it cannot be reached, or if it is not the name of a GGUF.
    """
    refuse_address(text)
    if is_hub_name(text):
        name = parse_hub_name(text)
        if not name.file:
            raise CheckpointError(
                f"{text}: is a model; name a GGUF of it (hf://ORG/MODEL/FILE.gguf), or use"
                " `dynquant plan`"
            )
        path, _, elsewhere = hub_gguf(name, is_copied=False)
        return stored_file(path, elsewhere)
    if is_url(text):
        if not text.endswith(".gguf"):
            raise CheckpointError(
                f"{text}: is not the URL of a GGUF; to see a model, use `dynquant plan`"
            )
        path, elsewhere = url_model(text, is_copied=False)
        return stored_file(path, elsewhere)
    return None
