"""Stored tensors that a user leaves out of the output, which are no part of the model.

Training tools store heads beside a language model, such as the value head of TRL (`v_head.*`). A
pattern can leave out only tensors that are not among the model's: without the others, llama.cpp
would not load the file or compute something else.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from dynquant.name_lists import grouped

_SHOWN = 3
_LAYER = re.compile(r"(.*?\.)[0-9]{1,4}\.")
"""The part of a name before the number of the layer: `model.layers.`."""


class LeaveOut:
    """Patterns of stored names, applied to a checkpoint.

    stored: names of all stored tensors; known: those that the model has or that are left out anyway
    """

    def __init__(
        self, patterns: Sequence[str], stored: Collection[str], known: Collection[str]
    ) -> None:
        self._stored, self._known = stored, set(known)
        self._modules = {name.rpartition(".")[0] for name in known if "." in name}
        self._layers = {found[1] for name in known if (found := _LAYER.match(name))}
        self._matched = {
            pattern: [name for name in stored if fnmatchcase(name, pattern)] for pattern in patterns
        }

    def reasons(self) -> dict[str, str]:
        """Return the tensors that are left out, with the pattern as the reason."""
        found: dict[str, str] = {}
        for pattern, names in self._matched.items():
            for name in names:
                if name not in self._known and name not in found:
                    found[name] = f"as requested (--leave-out {pattern!r})"
                    if self._is_inside(name):
                        found[name] += "; it is inside the model, whose answers may change"
        return found

    def problems(self, needed: Collection[str], name: str, folder: Path) -> Iterator[str]:
        """Yield a message for each pattern that matches nothing, or tensors that the model needs.

        needed: names of the model's tensors; name: of the architecture
        """
        for pattern, names in self._matched.items():
            if not names:
                hint = "".join(f"; did you mean {near!r}?" for near in self._near(pattern))
                yield f"{folder}: --leave-out {pattern!r} matches no stored tensor{hint}"
            elif matched := [n for n in names if n in needed]:
                yield (
                    f"{folder}: {_some(matched)} would be missing, and {name} needs"
                    f" {'it' if len(matched) == 1 else 'them'}; give a narrower pattern than"
                    f" --leave-out {pattern!r}"
                )

    def unknown(
        self, names: Iterable[str], name: str, folder: Path, *, is_whole: bool
    ) -> Iterator[str]:
        """Yield messages for stored tensors that are not the model's.

        names: these tensors; name: of the architecture
        is_whole: whether the model has all its tensors, so that it can be converted without these

        Tensors outside the model's modules are one message, with the option that leaves them out.
        """
        inside, apart = list[str](), list[str]()
        for one in names:
            (apart if is_whole and not self._is_inside(one) else inside).append(one)
        for one in grouped(inside):
            yield (
                f"{folder}: {one} is not a tensor of {name} as config.json describes it; the output"
                " would not contain it, so take weights and config.json from one model"
            )
        if apart:
            globs = " ".join(f"--leave-out {_quoted(glob)}" for glob in self._globs(apart))
            is_, it = ("is not a tensor", "it") if len(apart) == 1 else ("are no tensors", "them")
            yield (
                f"{folder}: {_some(apart)} {is_} of {name} as config.json describes it; to convert"
                f" the model without {it}, add {globs}"
            )

    def _is_inside(self, name: str) -> bool:
        """Whether a tensor is in a layer of the model, or in a module of it (lm_head.bias)."""
        if (found := _LAYER.match(name)) and found[1] in self._layers:
            return True
        words = name.split(".")
        return any(".".join(words[:n]) in self._modules for n in range(1, len(words)))

    def _globs(self, names: Iterable[str]) -> list[str]:
        """Return the shortest globs of whole modules that match names and no known tensor."""
        found: dict[str, None] = {}
        for name in names:
            exact = re.sub(r"([*?[])", r"[\1]", name)
            words = exact.split(".")
            globs = (".".join((*words[:n], "*")) for n in range(1, len(words)))
            fitting = (g for g in globs if not any(fnmatchcase(k, g) for k in self._known))
            found[next(fitting, exact)] = None
        return list(found)

    def _near(self, pattern: str) -> list[str]:
        """Return the most similar glob of unknown tensors, or else the most similar name."""
        unknown = [name for name in self._stored if name not in self._known]
        return difflib.get_close_matches(pattern, self._globs(unknown), 1) or (
            difflib.get_close_matches(pattern, self._stored, 1)
        )


def _quoted(glob: str) -> str:
    """Return a glob for a shell, always in quotes."""
    quoted = shlex.quote(glob)
    return quoted if quoted != glob else f"'{glob}'"


def _some(names: Iterable[str]) -> str:
    listed = grouped(names)
    more = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
