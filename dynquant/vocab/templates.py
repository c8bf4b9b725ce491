"""Chat templates, from all files that may hold them."""

from __future__ import annotations

import re
from typing import Any

from gguf.constants import Keys as Gguf

from dynquant.errors import VocabError
from dynquant.keys import Keys, string, strings
from dynquant.vocab.files import TokenizerFiles, as_list, as_object, json_value, read_text


def chat_template_keys(files: TokenizerFiles) -> Keys:
    """Return the templates of chat_template.jinja, tokenizer_config.json or chat_template.json.

    The first of these files that has a template applies. As in transformers, a separate file has
    precedence over tokenizer_config.json, which may hold an older text.
    """
    templates = _templates(files)
    default = templates.pop("default", None)
    keys = {
        Gguf.Tokenizer.CHAT_TEMPLATE_N.format(name=name): string(text)
        for name, text in sorted(templates.items())
    }
    if templates:
        keys[Gguf.Tokenizer.CHAT_TEMPLATES] = strings(sorted(templates))
    if default is not None:
        keys[Gguf.Tokenizer.CHAT_TEMPLATE] = string(default)
    return keys


def _templates(files: TokenizerFiles) -> dict[str, str]:
    """Return the chat templates by name; names consist of letters, digits and `_`."""
    if files.has("chat_template.jinja"):
        found = {"default": read_text(files.folder / "chat_template.jinja")}
    else:
        found = _configured(files)
    for path in sorted((files.folder / "additional_chat_templates").glob("*.jinja")):
        found[_plain(path.stem)] = read_text(path, files.folder)
    return found


def _configured(files: TokenizerFiles) -> dict[str, str]:
    """Return the chat templates of tokenizer_config.json, else of chat_template.json."""
    value: Any = files.tokenizer_config.get("chat_template")
    where = str(files.folder / "tokenizer_config.json")
    if value is None and files.has("chat_template.json"):
        where = str(files.folder / "chat_template.json")
        value = as_object(json_value(files.folder / "chat_template.json"), where)
        value = value.get("chat_template")
    if isinstance(value, str):
        return {"default": value}
    named: dict[str, str] = {}
    for item in as_list(value or [], f"{where}: 'chat_template'"):
        entry = as_object(item, f"{where}: 'chat_template'")
        name, text = entry.get("name"), entry.get("template")
        if not isinstance(name, str) or not isinstance(text, str):
            raise VocabError(f"{where}: a chat template without a name or a text; fix the file")
        named[_plain(name)] = text
    return named


def _plain(name: str) -> str:
    return re.sub("[^A-Za-z0-9]", "_", name)
