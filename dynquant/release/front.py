"""The front matter of a model card: the metadata that the Hugging Face Hub reads.

Source: modelcard.md and docs/hub/model-cards.md in huggingface/hub-docs. `quantized_by` is not a
field of the Hub; publishers of GGUFs write it by convention.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import yaml

from dynquant.errors import ReleaseError
from dynquant.keys import Keys
from dynquant.release.finished import Finished
from dynquant.release.projectors import abilities
from dynquant.report.picture import text_of

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)


def hub_id(text: str, option: str) -> str:
    """Return ORG/NAME unchanged; raise ReleaseError if the text does not have this form."""
    if not is_hub_id(text):
        raise ReleaseError(
            f"{option} {text!r}: is not the name of a Hub repository; write ORG/NAME"
        )
    return text


def is_hub_id(text: str) -> bool:
    """Whether a text has the form ORG/NAME."""
    return _HUB_ID.fullmatch(text) is not None


def front_matter(
    models: Sequence[Finished],
    projectors: Sequence[Finished] = (),
    *,
    license_: str | None,
    base_model: str | None,
    repository: str | None,
) -> str:
    """Return YAML between lines of dashes, without fields that are not known.

    license_:   of the files; None uses the source's license, which is recorded in the keys
    base_model: ORG/NAME of the source
    repository: ORG/NAME that the files will be uploaded to
    """
    keys = models[0].keys
    found: dict[str, Any] = {}
    if languages := _texts(keys, "general.languages"):
        found["language"] = languages
    if chosen := license_ or text_of(keys, "general.license"):
        found["license"] = chosen
        if license_ is None:
            for key in ("name", "link"):
                if more := text_of(keys, f"general.license.{key}"):
                    found[f"license_{key}"] = more
    if base_model:
        found |= {"base_model": base_model, "base_model_relation": "quantized"}
    if repository:
        found["quantized_by"] = repository.partition("/")[0]
    found["library_name"] = "gguf"
    found["pipeline_tag"] = task_of(abilities(projectors), embeds=embeds(models[0]))
    has_imatrix = any(imatrix_of(m) for m in models)
    found["tags"] = ["gguf", "dynquant", *(["imatrix"] if has_imatrix else [])]
    body = yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{body}---\n"


def imatrix_of(model: Finished) -> str | None:
    """Return the file name of the imatrix that a file was made with, or None."""
    if model.manifest:
        return model.manifest.importance.file if model.manifest.importance else None
    return text_of(model.keys, "quantize.imatrix.file")


def task_of(able: Collection[str], *, embeds: bool) -> str:
    """Return the Hub's name of what a model does.

    able:   what projectors add to it: "image", "audio"
    embeds: whether it computes embeddings
    """
    if {"image", "audio"} <= {*able}:
        return "any-to-any"
    if able:
        return f"{'image' if 'image' in able else 'audio'}-text-to-text"
    return "feature-extraction" if embeds else "text-generation"


def embeds(model: Finished) -> bool:
    """Whether a model computes embeddings: llama.cpp then pools its outputs."""
    return f"{model.architecture}.pooling_type" in model.keys


def _texts(keys: Keys, name: str) -> list[str]:
    key = keys.get(name)
    return [str(v) for v in key.value] if key is not None and isinstance(key.value, tuple) else []
