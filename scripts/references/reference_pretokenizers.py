"""Byte-level BPE of any family for make_references.py, with the splits of its published file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from reference_tokenizers import PROSE, Encode, write_json
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from published_rules import FAMILIES


def make_family_bpe(
    folder: Path,
    family: str,
    n_learned: int = 384,
    special: tuple[str, ...] = ("<|begin|>", "<|end|>"),
    config: dict[str, Any] | None = None,
) -> Encode:
    """Train a tokenizer.json with the rules of a family in tests/support/published_rules.py.

    n_learned: number of tokens before `special`, whose first two are BOS (if the family has one)
               and EOS
    config:    further entries of tokenizer_config.json
    """
    rules = FAMILIES[family]
    plain = json.loads(Tokenizer(models.BPE()).to_str())
    plain |= {"pre_tokenizer": rules.pre_tokenizer, "normalizer": rules.normalizer}
    plain["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    tokenizer = Tokenizer.from_str(json.dumps(plain))
    trainer = trainers.BpeTrainer(
        vocab_size=n_learned,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(PROSE, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    names: dict[str, Any] = {"bos_token": None, "eos_token": special[1]}
    if rules.has_bos:
        names["bos_token"] = special[0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{special[0]} $A",
            pair=f"{special[0]} $A {special[0]}:1 $B:1",
            special_tokens=[(special[0], n_learned)],
        )
    trained = json.loads(tokenizer.to_str())
    trained["model"]["ignore_merges"] = rules.ignore_merges
    tokenizer = Tokenizer.from_str(json.dumps(trained))
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(
        folder / "tokenizer_config.json", {**kind, **rules.config, **names, **(config or {})}
    )
    return lambda text: tokenizer.encode(text).ids
