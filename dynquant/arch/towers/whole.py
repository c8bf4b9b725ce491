"""A larger model's settings, as its projector sees them, and the towers that a projector has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from dynquant.arch.base import Architecture
from dynquant.arch.config import Count, read_config
from dynquant.arch.settings import Settings
from dynquant.checkpoint.safetensors import read_object
from dynquant.errors import ArchitectureError, CheckpointError, Problems
from dynquant.stored_files import ALL_HERE, Elsewhere
from dynquant.text_settings import DEFAULTS, text_settings
from dynquant.untrusted import shown

CLIP = "clip"
"""llama.cpp's name for the architecture of all projector files."""

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_INNER = ("media_proc_cfg", "image_processor")


@dataclass(frozen=True)
class Whole:
    """A larger model: everything that decides its projector, except the stored tensors.

    config: config.json
    images: how pictures are prepared: the settings of the image processor
    sounds: how sounds are prepared: the settings of the feature extractor
    folder: the model's folder
    elsewhere: its weights that are not there
    """

    config: Mapping[str, Any]
    images: Mapping[str, Any]
    sounds: Mapping[str, Any]
    folder: Path
    elsewhere: Elsewhere

    @classmethod
    def of(cls, config: Mapping[str, Any], folder: Path, elsewhere: Elsewhere = ALL_HERE) -> Whole:
        """Read the settings beside a config.json.

        Raises CheckpointError for files that are not JSON objects.
        """
        problems = Problems()
        images: dict[str, Any] = {}
        sounds: dict[str, Any] = {}
        for path in (folder / name for name in _PROCESSORS):
            if not path.is_file():
                continue
            found = problems.attempt(lambda path=path: read_object(path), CheckpointError) or {}
            images |= found
            sounds |= found
            for name in _INNER:
                images |= _object(found.get(name))
            sounds |= _object(found.get("feature_extractor"))
        problems.raise_any()
        return cls(config, images, sounds, folder, elsewhere)

    @property
    def where(self) -> str:
        """The path of config.json, which begins messages."""
        return str(self.folder / "config.json")

    @property
    def processor(self) -> str:
        """The place of the image processor's settings, which begins messages."""
        return f"{self.folder}: settings of the image processor"

    @property
    def n_text(self) -> int:
        """The width of the language model, which is the width of the projector's output.

        Raises ArchitectureError if config.json does not state it.
        """
        text = text_settings(self.config) or {}
        omitted = DEFAULTS.get(str(text.get("model_type")), {}).get("hidden_size")
        stated = {"hidden_size": self.config.get("hidden_size") or omitted, **text}
        return read_config(_Width, stated, f"{self.where}: settings of the language model").width

    def part(self, place: str) -> dict[str, Any]:
        """Return the settings of a part: the object at a dotted place in config.json.

        A model that was saved without the larger model around it has them at the end of the place.

        Raises ArchitectureError if there is none.
        """
        outer, _, inner = place.partition(".")
        found: object = self.config
        for name in (inner if inner and outer not in self.config else place).split("."):
            found = _object(found).get(name)
        if not isinstance(found, dict):
            raise ArchitectureError(f"{self.where}: has no {place}; download config.json again")
        return cast("dict[str, Any]", found)


@dataclass(frozen=True)
class _Width:
    hidden_size: Count

    @property
    def width(self) -> int:
        return self.hidden_size


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


@dataclass(frozen=True, eq=False)
class Tower:
    """A part that sees or hears, with what joins it to the language model.

    describe: describes it, given its own settings and the larger model
    within:   pattern of the beginnings of its tensors' stored names, without the larger model's
              own prefix
    place:    where config.json has its settings
    shared:   pattern of the names of the language model's tensors that it uses, too
    settings: the settings that it knows
    named:    a setting that names another model, from which the tower's weights are taken
    optional: whether some models of a class do not have it: their config.json has no such settings
    """

    describe: Callable[[Mapping[str, Any], Whole], Architecture]
    within: str
    settings: Settings
    place: str = "vision_config"
    named: str = ""
    optional: bool = False
    shared: str = ""

    @property
    def kind(self) -> str:
        """What it is an encoder of: audio or vision."""
        return "audio" if "audio" in self.place else "vision"

    def is_part_of(self, config: Mapping[str, Any]) -> bool:
        """Return whether a model with this config.json has the tower."""
        return not self.optional or isinstance(config.get(self.place), dict)

    def __call__(self, whole: Whole) -> Architecture:
        """Describe the tower of a larger model.

        Raises ArchitectureError with everything that llama.cpp cannot compute.
        """
        if other := whole.config.get(self.named):
            raise ArchitectureError(
                f"{whole.where}: {self.named} is {shown(other)}, a model whose weights are not in"
                " this folder; take a version of this model that contains them"
            )
        own = whole.part(self.place)
        where = f"{whole.where}: {self.place}"
        problems = Problems()
        found = problems.attempt(lambda: self.describe(own, whole), ArchitectureError)
        problems.add(*self.settings.problems(own, where))
        problems.raise_any(ArchitectureError)
        assert found is not None, "an error was collected but not raised"
        return replace(found, deviations=(*found.deviations, *self.settings.warnings(own, where)))


Projector = tuple[Tower, ...]
"""The towers that a projector file holds: one that sees, one that hears, or both."""
