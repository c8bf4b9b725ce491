"""Special tokens: their ids, ends of turn, and the tokens that are added around a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gguf.constants import Keys as Gguf

from dynquant.errors import VocabError
from dynquant.keys import Keys, boolean, u32
from dynquant.vocab.files import Json, TokenizerFiles, as_list, as_object, some
from dynquant.vocab.loading import KNOWN_ENDS
from dynquant.vocab.tokens import Token

# The special tokens of llama.cpp's converter, in its order.
_ID_KEYS = {
    "bos": Gguf.Tokenizer.BOS_ID,
    "eos": Gguf.Tokenizer.EOS_ID,
    "unk": Gguf.Tokenizer.UNK_ID,
    "sep": Gguf.Tokenizer.SEP_ID,
    "pad": Gguf.Tokenizer.PAD_ID,
    "mask": Gguf.Tokenizer.MASK_ID,
    "eot": Gguf.Tokenizer.EOT_ID,
    "eom": Gguf.Tokenizer.EOM_ID,
}
_ADD_KEYS = {
    "bos": Gguf.Tokenizer.ADD_BOS,
    "eos": Gguf.Tokenizer.ADD_EOS,
    "sep": Gguf.Tokenizer.ADD_SEP,
}

# BERT begins a text with its classification token and ends it with its separator.
_STAND_INS = {"bos": "cls", "eos": "sep"}

IdOf = Callable[[str], int | None]


@dataclass
class Special:
    """Special token ids by name (bos, eos …), and which of them are added around a text."""

    ids: dict[str, int] = field(default_factory=dict[str, int])
    add: dict[str, bool] = field(default_factory=dict[str, bool])

    def keys(self) -> Keys:
        """Return the ids and flags as GGUF keys."""
        ids = {key: u32(self.ids[name]) for name, key in _ID_KEYS.items() if name in self.ids}
        return ids | {key: boolean(self.add[n]) for n, key in _ADD_KEYS.items() if n in self.add}


def read_special(
    files: TokenizerFiles, tokens: Sequence[Token], model_ids: Mapping[str, int] | None = None
) -> Special:
    """Find the special tokens.

    tokens:    the vocabulary, by id
    model_ids: ids stated in the tokenizer's model, which have the lowest precedence

    A special token is the one named in tokenizer_config.json, else the id in config.json (the first
    of several ends of turn), else that in `model_ids`. Tokens are added as tokenizer_config.json
    states, else as in the template of tokenizer.json. Raises VocabError if the bos or eos id is
    beyond the vocabulary, or if there are more ends of turn than a GGUF can name.
    """
    id_of = {token.text: i for i, token in enumerate(tokens)}.get
    special = Special()
    wrong: list[str] = []
    for name in _ID_KEYS:
        token_id = _named(files, name, id_of)
        if token_id is None and name in _STAND_INS:
            token_id = _named(files, _STAND_INS[name], id_of)
        if token_id is None:
            token_id = _configured(files, name)
        if token_id is None and model_ids is not None:
            token_id = model_ids.get(name)
        if token_id is None or token_id < 0:
            continue
        if token_id < len(tokens):
            special.ids[name] = token_id
        elif name in ("bos", "eos"):
            wrong.append(
                f"{files.folder / 'config.json'}: {name}_token_id is {token_id}, but there are"
                f" {len(tokens)} tokens; take tokenizer and config.json from one model"
            )
    VocabError.raise_any(wrong)
    _read_template(files, special, id_of)
    for name in _ADD_KEYS:
        stated = files.tokenizer_config.get(f"add_{name}_token")
        if isinstance(stated, bool):
            special.add[name] = stated
    for name, added in special.add.items():
        # If the flag is set and the token is missing, llama.cpp adds its default id.
        special.add[name] = added and name in special.ids
    _add_ends(files, special, tokens)
    return special


def _named(files: TokenizerFiles, name: str, id_of: IdOf) -> int | None:
    """Return the id of the token named in tokenizer_config.json."""
    entry: Any = files.tokenizer_config.get(f"{name}_token")
    if isinstance(entry, dict):
        entry = as_object(entry, "tokenizer_config.json").get("content")
    return id_of(entry) if isinstance(entry, str) else None


def _configured(files: TokenizerFiles, name: str) -> int | None:
    """Return the id in config.json; the first of a list."""
    return next((i for config in files.configs for i in _ids(config.get(f"{name}_token_id"))), None)


def _ids(value: Any) -> list[int]:
    """Return the ids that a configuration gives as one number or as a list."""
    listed = as_list(value, "config.json") if isinstance(value, list) else [value]
    return [i for i in listed if type(i) is int and abs(i) < 2**31]


def _add_ends(files: TokenizerFiles, special: Special, tokens: Sequence[Token]) -> None:
    """Name as eot and eom the tokens at which transformers stops and llama.cpp would not.

    transformers stops at the eos_token_id of generation_config.json, or else of config.json;
    llama.cpp stops at the ids named eos, eot and eom, and at tokens with texts that it knows.
    """
    name = "generation_config.json"
    stops = _ids(files.read(name).get("eos_token_id"))
    if not stops:
        name = "config.json"
        stops = [i for config in files.configs for i in _ids(config.get("eos_token_id"))]
    named = {special.ids.get(end) for end in ("eos", "eot", "eom")}
    ends = [
        i
        for i in dict.fromkeys(stops)
        if 0 <= i < len(tokens) and i not in named and tokens[i].text not in KNOWN_ENDS
    ]
    for end in ("eot", "eom"):
        if ends and end not in special.ids:
            special.ids[end] = ends.pop(0)
    if ends:
        raise VocabError(
            f"{files.folder / name}: eos_token_id lists more ends of turn than a GGUF can name:"
            f" {some(tokens[i].text for i in ends)} would be left out; remove tokens that do not"
            " end a turn from the list"
        )


def _read_template(files: TokenizerFiles, special: Special, id_of: IdOf) -> None:
    """Read which tokens tokenizer.json's post-processor adds before and after a text."""
    if not files.tokenizer:
        return
    special.add["bos"] = False
    post = files.part(files.tokenizer, "post_processor")
    for step in as_list(post.get("processors", [post]), "tokenizer.json: 'processors'"):
        processor = as_object(step, "tokenizer.json: 'post_processor'")
        if processor.get("type") == "RobertaProcessing":
            special.add |= {"bos": True, "eos": True, "sep": True}
        if processor.get("type") == "BertProcessing":
            special.add |= {"bos": True, "eos": True, "sep": False}
        if processor.get("type") != "TemplateProcessing":
            continue
        before, _, after = around(processor, "single")
        if before and "bos" not in special.ids:
            _set(special, "bos", id_of(before[0]))
        special.add["bos"] = bool(before) and id_of(before[0]) == special.ids.get("bos")
        if after:
            last = id_of(after[-1])
            if last is not None and "eos" in special.ids and last != special.ids["eos"]:
                # The text ends with another token than a turn, whose end the configuration names.
                special.ids.setdefault("eot", special.ids["eos"])
                special.ids["eos"] = last
            _set(special, "eos", last)
            special.add["eos"] = last is not None
            # Of a pair of texts: after the end of the first comes the separator.
            _, between, _ = around(processor, "pair")
            separators = [i for text in between[len(after) :] if (i := id_of(text)) is not None]
            if separators:
                special.ids.setdefault("sep", separators[0])
            if between:
                special.add["sep"] = special.ids.get("sep") in separators


def around(processor: Json, template: str) -> tuple[list[str], list[str], list[str]]:
    """Return a template's special tokens before the first text, between two texts and after."""
    where = f"tokenizer.json: {template!r}"
    sides: list[list[str]] = [[]]
    for item in as_list(processor.get(template, []), where):
        piece = as_object(item, where)
        if "Sequence" in piece:
            sides.append([])
        elif "SpecialToken" in piece:
            sides[-1].append(str(as_object(piece["SpecialToken"], where).get("id")))
    return sides[0], sides[1] if len(sides) > 2 else [], sides[-1] if len(sides) > 1 else []


def _set(special: Special, name: str, token_id: int | None) -> None:
    if token_id is not None:
        special.ids[name] = token_id
