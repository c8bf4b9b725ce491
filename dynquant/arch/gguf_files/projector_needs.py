"""Find what is missing in a projector file: keys and tensors that every encoder has.

Source: load_hparams and load_tensors of tools/mtmd/clip.cpp in llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from dynquant.keys import Keys
from dynquant.name_lists import grouped
from dynquant.untrusted import shown

KIND = "mmproj"
"""general.type of projector files."""

_OF_ALL = (
    *("embedding_length", "feed_forward_length", "block_count", "projection_dim"),
    *("attention.head_count", "attention.layer_norm_epsilon"),
)
_OF_ONE = {
    "vision": ("v", ("image_size", "patch_size", "image_mean", "image_std")),
    "audio": ("a", ("num_mel_bins",)),
}
"""The encoders: what names of their tensors begin with, and the keys that only they have."""

_EACH_LAYER = ("attn_out.weight", "ffn_up.weight", "ffn_down.weight")
_OTHER_LAYERS = ("gemma3nv", "qwen3tts_spkenc", "pockettts_spkenc", "pockettts_gen")
"""Projectors whose encoder has layers of another kind."""

_EXPERTS = "ffn_gate_exps.weight"
_MAX_LAYERS = 512


_COUNTS = {
    "vision": "image_size image_min_pixels image_max_pixels preproc_image_size",
    "audio": "num_mel_bins",
}
_COUNTS_OF_ALL = (
    "projection_dim embedding_length feed_forward_length block_count attention.head_count"
    " projector.scale_factor spatial_merge_size"
)
"""Whole numbers from zero on; llama.cpp ends the program if a key has another type."""


def value_problems(keys: Keys) -> Iterator[str]:
    """Yield values of keys with which llama.cpp ends the program."""
    for encoder, own in _COUNTS.items():
        counts: dict[str, int] = {}
        for name in f"{_COUNTS_OF_ALL} patch_size {own}".split():
            key = keys.get(f"clip.{encoder}.{name}")
            value = None if key is None else key.value
            if type(value) is int and value >= 0:
                counts[name] = value
            elif value is not None:
                yield f"clip.{encoder}.{name} is {shown(value)}, and must be a whole number"
        width, heads = counts.get("embedding_length", 1), counts.get("attention.head_count", 0)
        if not width:
            yield f"clip.{encoder}.embedding_length is 0"
        if counts.get("patch_size") == 0:
            yield f"clip.{encoder}.patch_size is 0"
        if heads and width % heads:
            yield (
                f"clip.{encoder}.embedding_length {width} is not a multiple of"
                f" attention.head_count {heads}"
            )
        least, most = counts.get("image_min_pixels", 0), counts.get("image_max_pixels")
        if most is not None and least > most:
            yield f"clip.{encoder}.image_min_pixels is {least}, more than image_max_pixels {most}"


def problems(keys: Keys, names: Collection[str]) -> Iterator[str]:
    """Yield the keys and tensors that llama.cpp needs and does not find."""
    encoders = [e for e in _OF_ONE if (key := keys.get(f"clip.has_{e}_encoder")) and key.value]
    if not encoders:
        listed = " and ".join(f"clip.has_{e}_encoder" for e in _OF_ONE)
        yield f"{listed} are missing or false; llama.cpp needs one that is true"
    yield from value_problems(keys)
    for encoder in encoders:
        kinds = ("clip.projector_type", f"clip.{encoder}.projector_type")
        if not any(kind in keys for kind in kinds):
            yield f"{' and '.join(kinds)} are missing; llama.cpp needs one"
        for name in (*_OF_ALL, *_OF_ONE[encoder][1]):
            if (key := f"clip.{encoder}.{name}") not in keys:
                yield f"{key} is missing; llama.cpp needs it"
        kind = next((str(keys[k].value) for k in kinds if k in keys), "")
        if kind not in _OTHER_LAYERS:
            yield from _layers(encoder, keys, names)


def _layers(encoder: str, keys: Keys, names: Collection[str]) -> Iterator[str]:
    """Yield tensors that every layer of an encoder needs, and layers beyond the count."""
    count = keys.get(f"clip.{encoder}.block_count")
    if count is None or not isinstance(count.value, int) or not 0 <= count.value <= _MAX_LAYERS:
        return
    prefix = f"{_OF_ONE[encoder][0]}.blk."
    absent = [
        name
        for layer in range(count.value)
        for role in _EACH_LAYER
        if (name := f"{prefix}{layer}.{role}") not in names
        and not (role.startswith("ffn_") and f"{prefix}{layer}.{_EXPERTS}" in names)
    ]
    if absent:
        yield f"{', '.join(grouped(absent))} is missing; llama.cpp needs it"
    layer = re.compile(re.escape(prefix) + r"(\d{1,9})\..+")
    here = {int(found[1]) for name in names if (found := layer.fullmatch(name))}
    if beyond := sorted(n for n in here if n >= count.value):
        yield (
            f"{', '.join(grouped(f'{prefix}{n}.*' for n in beyond))} is beyond the"
            f" {count.value} layers of clip.{encoder}.block_count, and llama.cpp does not use it"
        )
