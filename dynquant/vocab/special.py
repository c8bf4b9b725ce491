"""Keys beside the list of tokens: special ids, what is added to a text, chat templates."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gguf.constants import Keys as Gguf

from dynquant.errors import VocabError
from dynquant.keys import Keys, boolean, string, strings, u32
from dynquant.vocab.files import Json, TokenizerFiles, as_list, as_object, json_value, read_text

# The special tokens of llama.cpp's converter, in its order. Further ends of turn llama.cpp finds by
# their texts.
_ID_KEYS = {
    "bos": Gguf.Tokenizer.BOS_ID,
    "eos": Gguf.Tokenizer.EOS_ID,
    "unk": Gguf.Tokenizer.UNK_ID,
    "sep": Gguf.Tokenizer.SEP_ID,
    "pad": Gguf.Tokenizer.PAD_ID,
    "mask": Gguf.Tokenizer.MASK_ID,
    "eot": Gguf.Tokenizer.EOT_ID,
}
_ADD_KEYS = {
    "bos": Gguf.Tokenizer.ADD_BOS,
    "eos": Gguf.Tokenizer.ADD_EOS,
    "sep": Gguf.Tokenizer.ADD_SEP,
}


@dataclass
class Special:
    """Special token ids by name (bos, eos …), and which of them are put around a text."""

    ids: dict[str, int] = field(default_factory=dict[str, int])
    add: dict[str, bool] = field(default_factory=dict[str, bool])

    def keys(self) -> Keys:
        """Return the ids and flags as GGUF keys."""
        ids = {key: u32(self.ids[name]) for name, key in _ID_KEYS.items() if name in self.ids}
        return ids | {key: boolean(self.add[n]) for n, key in _ADD_KEYS.items() if n in self.add}


def read_special(
    files: TokenizerFiles,
    id_of: Callable[[str], int | None],
    n_tokens: int,
    model_ids: Mapping[str, int] | None = None,
) -> Special:
    """Find the special tokens.

    id_of:     the id of a token's text, None if there is none
    model_ids: ids that the tokenizer's model states itself; they count least

    A token is what tokenizer_config.json names, else the id in config.json (of several ends of
    turn the first), else in `model_ids`. What is added is what tokenizer_config.json says, else
    the template of tokenizer.json. Raises VocabError for a bos or eos id beyond the vocabulary.
    """
    special = Special()
    wrong: list[str] = []
    for name in _ID_KEYS:
        token_id = _named(files, name, id_of)
        if token_id is None:
            token_id = _configured(files, name)
        if token_id is None and model_ids is not None:
            token_id = model_ids.get(name)
        if token_id is None or token_id < 0:
            continue
        if token_id < n_tokens:
            special.ids[name] = token_id
        elif name in ("bos", "eos"):
            wrong.append(
                f"{files.folder / 'config.json'}: {name}_token_id is {token_id}, but there are"
                f" {n_tokens} tokens; tokenizer and config.json are not of one model"
            )
    VocabError.raise_any(wrong)
    _read_template(files, special, id_of)
    for name in _ADD_KEYS:
        stated = files.tokenizer_config.get(f"add_{name}_token")
        if isinstance(stated, bool):
            special.add[name] = stated
    for name, added in special.add.items():
        # llama.cpp would put some token of its own choice where it is told to add one it lacks.
        special.add[name] = added and name in special.ids
    return special


def _named(files: TokenizerFiles, name: str, id_of: Callable[[str], int | None]) -> int | None:
    """Return the id of the token that tokenizer_config.json names."""
    entry: Any = files.tokenizer_config.get(f"{name}_token")
    if isinstance(entry, dict):
        entry = as_object(entry, "tokenizer_config.json").get("content")
    return id_of(entry) if isinstance(entry, str) else None


def _configured(files: TokenizerFiles, name: str) -> int | None:
    """Return the id in config.json; the first of a list."""
    for config in files.configs:
        value: Any = config.get(f"{name}_token_id")
        if isinstance(value, list) and value:
            value = as_list(value, "config.json")[0]
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _read_template(
    files: TokenizerFiles, special: Special, id_of: Callable[[str], int | None]
) -> None:
    """Take from tokenizer.json's post-processor what is put before and after a text."""
    if not files.tokenizer:
        return
    special.add["bos"] = False
    post = files.part(files.tokenizer, "post_processor")
    for step in as_list(post.get("processors", [post]), "tokenizer.json: 'processors'"):
        processor = as_object(step, "tokenizer.json: 'post_processor'")
        if processor.get("type") == "RobertaProcessing":
            special.add |= {"bos": True, "eos": True, "sep": True}
        if processor.get("type") != "TemplateProcessing":
            continue
        before, after = _around(processor)
        if before and "bos" not in special.ids:
            _set(special, "bos", id_of(before[0]))
        special.add["bos"] = bool(before) and id_of(before[0]) == special.ids.get("bos")
        if after:
            last = id_of(after[-1])
            if last is not None and "eos" in special.ids and last != special.ids["eos"]:
                # The text's end is not the end that the configuration names, which is a turn's.
                special.ids.setdefault("eot", special.ids["eos"])
                special.ids["eos"] = last
            _set(special, "eos", last)
            special.add["eos"] = last is not None


def _around(processor: Json) -> tuple[list[str], list[str]]:
    """Return the special tokens before and after the sequence in a template for one text."""
    before: list[str] = []
    after: list[str] = []
    side = before
    where = "tokenizer.json: 'single'"
    for item in as_list(processor.get("single"), where):
        piece = as_object(item, where)
        if "Sequence" in piece:
            side = after
        elif "SpecialToken" in piece:
            side.append(str(as_object(piece["SpecialToken"], where).get("id")))
    return before, after


def _set(special: Special, name: str, token_id: int | None) -> None:
    if token_id is not None:
        special.ids[name] = token_id


def chat_template_keys(files: TokenizerFiles) -> Keys:
    """Return the chat templates: chat_template.jinja, else tokenizer_config's, else …json's.

    A template in a file of its own counts more than one in tokenizer_config.json, as it does for
    transformers, which writes the one and leaves older texts in the other.
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
    """Return the chat templates by name, with letters, digits and `_` for a name."""
    if files.has("chat_template.jinja"):
        found = {"default": read_text(files.folder / "chat_template.jinja")}
        for path in sorted((files.folder / "additional_chat_templates").glob("*.jinja")):
            found[_plain(path.stem)] = read_text(path)
        return found
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
            raise VocabError(f"{where}: a chat template without a name or a text; mend the file")
        named[_plain(name)] = text
    return named


def _plain(name: str) -> str:
    return re.sub("[^A-Za-z0-9]", "_", name)
