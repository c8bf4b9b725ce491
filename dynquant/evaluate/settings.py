"""What an evaluation computes, and where it stores it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from dynquant.conversion.write import default_threads
from dynquant.evaluate.distributions import TAIL
from dynquant.evaluate.tasks import SamplerPart

GREEDY = SamplerPart()

Progress = Callable[[str, int, int], None]
"""Called with what is done (a file and a step), and how much of how much of it."""


def default_cache() -> Path:
    """Return the folder for evaluations in the user's cache folder."""
    return Path(platformdirs.user_cache_dir("dynquant"), "eval")


@dataclass(frozen=True)
class Settings:
    """What is computed, and where it is stored.

    cache:      folder for references and results, which a later call resumes from
    texts:      files whose tokens are predicted; each is a domain of the figures
    context:    tokens of a window
    tokens:     tokens of all windows, at most
    tail:       limit on the probability of the tokens that the reference keeps as a random sample
    prompts:    texts to continue; none skips free-running generation
    n_predict:  tokens of an answer, at most
    samplers:   settings of the sampler, one set of answers for each
    chat:       whether prompts are rendered by the reference's chat template, if it has one
    threads:    None uses one for each CPU
    gpu_layers: layers that llama.cpp computes on a GPU, if the wheel supports one
    """

    cache: Path
    texts: tuple[Path, ...] = ()
    context: int = 512
    tokens: int = 250_000
    tail: float = TAIL
    prompts: tuple[str, ...] = ()
    n_predict: int = 256
    samplers: tuple[SamplerPart, ...] = (GREEDY,)
    chat: bool = True
    threads: int | None = None
    gpu_layers: int = 0

    @property
    def n_threads(self) -> int:
        """Return the number of threads."""
        return self.threads or default_threads()
