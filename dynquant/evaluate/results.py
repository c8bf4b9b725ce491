"""The result of an evaluation, as it is published: `dynquant eval --json`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dynquant.evaluate.reference import FilePart, Header
from dynquant.evaluate.tasks import Cost, SamplerPart
from dynquant.json_documents import Count, Part, Sha256, document_schema

Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class Estimate(Part):
    """A figure and its 95 % interval."""

    value: Number
    """The figure."""
    low: Number
    """Lower end of the interval."""
    high: Number
    """Upper end of the interval."""


class Figures(Part):
    """What llama-perplexity --kl-divergence prints, over the scored tokens of some windows.

    Divergences are in nats, Δp and the shares are fractions of 1.
    """

    windows: Count
    """Windows of tokens."""
    tokens: Count
    """Scored tokens."""
    ppl: Estimate
    """Mean PPL(Q): perplexity of the file."""
    ppl_base: Estimate
    """Mean PPL(base): perplexity of the reference."""
    ppl_ratio: Estimate
    """Mean PPL(Q)/PPL(base)."""
    mean_kld: Estimate
    """Mean KLD: KL divergence of the file from the reference."""
    median_kld: Estimate
    """Median KLD."""
    kld_90: Estimate
    """90 % of the tokens have a smaller divergence."""
    kld_95: Estimate
    """95 % of the tokens have a smaller divergence."""
    kld_99: Estimate
    """99 % of the tokens have a smaller divergence."""
    kld_999: Estimate
    """99.9 % of the tokens have a smaller divergence."""
    maximum_kld: Number
    """Largest divergence; it has no interval, and grows with the number of tokens."""
    same_top: Estimate
    """Same top p: share of tokens after which both choose the same token."""
    mean_dp: Estimate
    """Mean Δp: change of the probability of the text's token."""
    rms_dp: Estimate
    """RMS Δp: root of the mean square of that change."""
    sampling_error: Number
    """Standard error of mean_kld that comes from keeping a sample of each tail only."""


class Domain(Part):
    """The figures of one text."""

    text: str
    """Name of the text."""
    figures: Figures
    """Over the windows of this text."""


class Answers(Part):
    """How a model continues prompts freely, each token after its own earlier ones."""

    prompts: Count
    """Number of prompts."""
    prompts_sha256: Sha256
    """Hash of the prompts' token ids, each prompt preceded by its length, little-endian int32."""
    chat: bool
    """Whether the prompts were rendered by the model's chat template."""
    sampler: SamplerPart
    """Settings of llama.cpp's sampler."""
    n_predict: Count
    """Tokens of an answer, at most."""
    identical: Estimate
    """Share of the answers that are the reference's."""
    first_divergence: Estimate
    """Mean number of tokens before the first difference; of an identical answer, all its tokens."""
    loops: Estimate
    """Share of the answers that end in a repetition."""
    reference_loops: Estimate
    """The same of the reference."""
    dead_ends: Count
    """Answers without a visible character."""
    reference_dead_ends: Count
    """The same of the reference."""
    replacement_characters: Count
    """Answers with bytes that are not UTF-8."""
    reference_replacement_characters: Count
    """The same of the reference."""
    not_finite: Count
    """Answers that stopped because a logit was infinite or not a number."""
    examples: list[Example]
    """Some answers, beside the reference's."""


class Example(Part):
    """An answer of the file and that of the reference."""

    prompt: str
    """The prompt, before any chat template."""
    reference: str
    """The reference's answer."""
    answer: str
    """The file's answer."""
    loops: bool
    """Whether the file's answer ends in a repetition."""


class FileResult(Part):
    """One file."""

    name: str
    """What reports call it."""
    files: list[FilePart]
    """The file, or all shards in order."""
    bytes: Count
    """Size of all files."""
    bits_per_weight: Number
    """Bits of the tensors for each weight."""
    figures: Figures
    """Over all windows."""
    domains: list[Domain]
    """The figures of each text, if there are several."""
    answers: list[Answers]
    """Free-running generation: greedy, then sampled."""
    cost: Cost | None
    """What it cost to run on this machine when its windows were computed, in this call or an
    earlier one; null if it is not known."""


class Pair(Part):
    """The difference between two files on the same tokens, window by window."""

    a: str
    """Name of a file."""
    b: str
    """Name of another file."""
    mean_kld: Estimate
    """Mean KLD of a minus that of b: negative if a is closer to the reference."""
    ln_ppl: Estimate
    """ln PPL of a minus that of b."""
    same_top: Estimate
    """Same top p of a minus that of b."""


class Evaluation(Part):
    """Files compared with a reference."""

    evaluation: Literal[1]
    """Version of this form."""
    dynquant: str
    """Version of dynquant."""
    command: list[str]
    """The command that repeats it."""
    reference: Header
    """What the files are compared with."""
    distributions_sha256: Sha256
    """Hash of the reference's distributions, window after window."""
    system: str
    """CPU features that llama.cpp used."""
    level: Share
    """Level of the intervals."""
    resamples: Count
    """Resamples of the windows for the intervals."""
    files: list[FileResult]
    """The files, in the order of the command."""
    pairs: list[Pair]
    """Differences between each two files."""
    warnings: list[str]
    """What limits the figures."""


Answers.model_rebuild()


def evaluation_schema() -> dict[str, Any]:
    """Return the form of an evaluation as a JSON Schema, draft 2020-12."""
    return document_schema(Evaluation, "dynquant evaluation")
