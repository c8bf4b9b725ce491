"""Every setting of a config.json that a family knows: read, harmless, or with few supported values.

A setting can change the answer: a window, another norm, a multiplier. So none is ignored silently.
It is read (and the family's page refuses values that llama.cpp's graph cannot compute), or it is
known to be harmless, or it has a supported value, or it is reported. A setting that is null, false
or empty says nothing unless the family knows it.

Sources: the configuration classes of transformers, the code that published models bring with them,
and what training programs write into config.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

from dynquant.arch.base import Architecture
from dynquant.arch.decoder import Config
from dynquant.arch.families import Family
from dynquant.arch.mixtures.experts import routing_problems
from dynquant.arch.positions.rope import Rope
from dynquant.errors import ArchitectureError, Problems
from dynquant.untrusted import shown


@dataclass(frozen=True)
class Only:
    """A setting that the family does not read, with the values that llama.cpp's graph computes.

    values:  the supported values; null always is
    reason:  what llama.cpp does
    refused: whether other values are an error; a warning if not
    """

    values: tuple[object, ...]
    reason: str
    refused: bool = True


@dataclass(frozen=True)
class Settings:
    """The settings of one family.

    read:     names that the family's page reads
    harmless: names that do not change the answer, with the reason
    only:     names with few supported values
    of_rope:  names that the family reads in rope_parameters and rope_scaling, besides those of Rope
    layer_types: kinds of layers, where `layer_types` is among the names
    """

    read: frozenset[str] = frozenset()
    harmless: Mapping[str, str] = field(default_factory=dict[str, str])
    only: Mapping[str, Only] = field(default_factory=dict[str, Only])
    of_rope: frozenset[str] = frozenset()
    layer_types: tuple[str, ...] = ("full_attention", "sliding_attention")

    @property
    def known(self) -> frozenset[str]:
        """All names."""
        return self.read | {*self.harmless, *self.only, *COMMON, *_SETS}

    def problems(self, config: Mapping[str, Any], where: str) -> Iterator[str]:
        """Yield a message for each setting whose value is refused."""
        return self._unsupported(config, where, refused=True)

    def layer_problems(self, config: Mapping[str, Any], where: str) -> Iterator[str]:
        """Yield a message if `layer_types` is not a known kind of layer for each layer."""
        types, n_layers = config.get("layer_types"), config.get("num_hidden_layers")
        if types is None or "layer_types" not in self.known:
            return
        if not isinstance(types, list | tuple):
            yield f"{where}: layer_types is {shown(types)}; it must be a list"
            return
        found = cast("Sequence[object]", types)
        unknown = [kind for kind in found if kind not in self.layer_types]
        if isinstance(n_layers, int) and len(found) != n_layers:
            yield (
                f"{where}: layer_types has {len(found)} entries for num_hidden_layers {n_layers};"
                " take both from one model"
            )
        elif unknown:
            yield (
                f"{where}: layer_types has {shown(unknown[0])}; llama.cpp computes this family with"
                f" {' and '.join(self.layer_types)}"
            )

    def warnings(self, config: Mapping[str, Any], where: str) -> Iterator[str]:
        """Yield a warning for each setting whose value is reported, and one for those unknown."""
        yield from self._unsupported(config, where, refused=False)
        names = sorted(self._unknown(config))
        if names:
            rest = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
            yield (
                f"{where}: not known as a setting of this family:"
                f" {', '.join(map(shown, names[:_MAX_NAMED]))}{rest}; if the model's own code uses"
                " it, the file's results differ; remove it if not"
            )

    def _unsupported(
        self, config: Mapping[str, Any], where: str, *, refused: bool
    ) -> Iterator[str]:
        for name, only in self.only.items():
            value = config.get(name)
            if value is not None and value not in only.values and only.refused == refused:
                yield f"{where}: {name} is {_text(value)}; {only.reason}"

    def _unknown(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Yield the names of settings that are neither empty nor known."""
        known, of_rope = self.known, _OF_ROPE | self.of_rope
        yield from (n for n, value in config.items() if n not in known and not _is_empty(value))
        for path, values in _ropes(config):
            yield from (
                f"{path}.{n}"
                for n, value in values.items()
                if n not in of_rope and not isinstance(value, dict) and not _is_empty(value)
            )


_FALSE_IF_NULL = ("norm_topk_prob", "rope_interleave")
"""Settings that are true by default and whose null transformers' classes accept as false."""

_SETS = ("rope_parameters", "rope_scaling")
_OF_ROPE = frozenset(f.name for f in fields(Rope)) | {"type", "finetuned"}
_MAX_NAMED = 8
"""Limit on the unknown settings that a warning names."""


def _ropes(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the sets of rope settings with their names: one, or one for each type of layers."""
    for name in _SETS:
        found = config.get(name)
        if isinstance(found, dict):
            values = cast("dict[str, Any]", found)
            yield name, values
            yield from ((f"{name}.{n}", v) for n, v in values.items() if isinstance(v, dict))


def _is_empty(value: object) -> bool:
    return value is None or value is False or value in ("", [], {})


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else shown(value)


def harmless(reason: str, names: str) -> dict[str, str]:
    """Return names, separated by spaces, with the reason why they are harmless."""
    return dict.fromkeys(names.split(), reason)


def constant(value: object, names: str) -> dict[str, Only]:
    """Return names, separated by spaces, for which llama.cpp's graph has one value."""
    return dict.fromkeys(
        names.split(), Only((value,), f"llama.cpp computes this family with {_text(value)}")
    )


def reads(*forms: type, more: str = "") -> frozenset[str]:
    """Return the names of the fields of dataclasses that are read from config.json, and `more`."""
    return frozenset(f.name for form in forms for f in fields(form)) | {*more.split()}


@dataclass(frozen=True, eq=False)
class Declared:
    """A family that refuses and reports what its settings say."""

    family: Family
    settings: Settings

    def __call__(self, config: Mapping[str, Any], where: str) -> Architecture:
        """Describe a config.json, as the family does."""
        problems = Problems()
        config = {**config, **{n: False for n in _FALSE_IF_NULL if config.get(n, True) is None}}
        if wrong := list(self.settings.layer_problems(config, where)):
            problems.add(*wrong)
            config = {**config, "layer_types": None}  # families read the list
        found = problems.attempt(lambda: self.family(config, where), ArchitectureError)
        problems.add(*self.settings.problems(config, where))
        if found is not None:
            problems.add(*routing_problems(found.name, found.keys, where))
        problems.raise_any(ArchitectureError)
        if found is None:
            raise ValueError("an error was collected but not raised")
        warnings = self.settings.warnings(config, where)
        deviations = (*found.deviations, *warnings)
        merged = found.merged and replace(found.merged, deviations=deviations)
        return replace(found, deviations=deviations, merged=merged)


# ---- settings that many families share -----------------------------------------------------------

COMMON: dict[str, str] = {
    **harmless(
        "how the checkpoint was saved, and how a library loads it",
        "architectures model_type dtype torch_dtype transformers_version auto_map custom_pipelines"
        " _name_or_path name_or_path _commit_hash transformers_weights transformers.js_config"
        " use_cache torchscript use_bfloat16 tf_legacy_loss return_dict"
        " return_dict_in_generate output_attentions output_hidden_states output_scores"
        " output_router_logits _attn_implementation _attn_implementation_autoset"
        " attn_implementation _attn_implementation_internal _experts_implementation"
        " _flash_attn_2_enabled use_flash_attn use_flash_attention cache_implementation"
        " _output_attentions unsloth_version unsloth_fixed unsloth_optimized model_name"
        " chunk_size_feed_forward license",
    ),
    **harmless(
        "read with the stored weights",
        "quantization_config compression_config pre_quantization_dtype",
    ),
    **harmless(
        "used while training only",
        "initializer_range initializer_factor attention_dropout hidden_dropout hidden_dropout_prob"
        " attention_probs_dropout_prob resid_pdrop embd_pdrop attn_pdrop residual_dropout"
        " embedding_dropout classifier_dropout router_aux_loss_coef router_z_loss_coef"
        " router_jitter_noise input_jitter_noise aux_loss_alpha seq_aux gradient_checkpointing"
        " use_gradient_checkpointing pretraining_tp ep_size finetuning_task"
        " task_specific_params problem_type id2label label2id num_labels",
    ),
    **harmless(
        "read with the tokenizer",
        "bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id"
        " mask_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id"
        " tokenizer_class prefix",
    ),
    **harmless(
        "chosen by the user of the file",
        "do_sample temperature top_k top_p min_p typical_p repetition_penalty num_beams"
        " num_beam_groups diversity_penalty length_penalty no_repeat_ngram_size"
        " encoder_no_repeat_ngram_size min_length max_length max_new_tokens early_stopping"
        " bad_words_ids remove_invalid_values exponential_decay_length_penalty suppress_tokens"
        " begin_suppress_tokens num_return_sequences",
    ),
}
"""Names that are harmless in every family, with the reason."""

OF_POSITIONS = "rope_theta partial_rotary_factor original_max_position_embeddings"
"""Settings of rope outside rope_parameters."""

DECODER = reads(Config, more=OF_POSITIONS)
"""What every decoder reads."""

NO_WINDOW = harmless(
    "the model's own code has no window", "sliding_window use_sliding_window max_window_layers"
)
"""For families whose class does not read these settings, which fine-tuning programs add."""

NO_ROPE = harmless("attention has no positions", OF_POSITIONS)
"""For families without rotary embeddings."""

TIED_ALWAYS: dict[str, Only] = {
    "tie_word_embeddings": Only(
        (True,),
        "llama.cpp's graph of this family always uses the embedding as output matrix",
        refused=False,
    )
}
