"""What the worker process is asked to do, and what it answers: lines of JSON."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from dynquant.json_documents import Part


class SamplerPart(Part):
    """Settings of a sampler; a temperature of 0 takes the most likely token."""

    temperature: float = 0.0
    """Temperature; 0 takes the most likely token."""
    top_k: int = 0
    """How many of the most likely tokens may be chosen; 0 is all."""
    top_p: float = 1.0
    """The most likely tokens with this probability together may be chosen; 1 is all."""
    min_p: float = 0.0
    """Smallest probability, relative to the most likely token's, that may be chosen."""
    seed: int = 1
    """Seed of the random numbers."""


class Describe(Part):
    """Read the vocabulary of a file, and tokenize with it.

    texts:   files
    chats:   files of conversations in JSON: "where" for messages, and "conversations", a list with
             "line", "messages" and "tools" of each
    tokens:  how many of each text are used, at most
    prompts: texts to continue
    chat:    whether to render prompts by the file's chat template, if it has one
    out:     npz file for the tokens: text0, text1 ..., chat0 ..., prompt0 ...; with prompts also
             the bytes of all tokens, as pieces and piece_lengths
    """

    kind: Literal["describe"] = "describe"
    path: str
    texts: list[str]
    tokens: int
    prompts: list[str]
    chat: bool
    out: str
    chats: list[str] = Field(default_factory=list[str])


class Described(Part):
    """What a file is to llama.cpp.

    refusal: why its predictions cannot be evaluated
    has_gpu: whether the library can compute on a GPU
    """

    architecture: str
    n_tokens: int
    vocabulary_sha256: str
    bos: int | None
    has_chat_template: bool
    refusal: str | None
    has_gpu: bool
    engine: dict[str, str]


class Generation(Part):
    """One run of free generation.

    series: of the store, for the answers
    """

    series: str
    sampler: SamplerPart
    n_predict: int


class Run(Part):
    """Compute what is missing of a reference, or of a file that is compared with it.

    reference: store of the reference
    results:   store of the file's results; None: the file is the reference
    windows:   series of the results
    answers:   store for the generated answers
    """

    kind: Literal["run"] = "run"
    path: str
    threads: int
    gpu_layers: int
    reference: str
    results: str | None
    windows: str
    answers: str
    prompts: list[list[int]]
    generations: list[Generation]


class Cost(Part):
    """What running a file costs on this machine."""

    load_seconds: float
    """Seconds until the model can compute, with the file in the page cache or not."""
    prompt_tokens_per_second: float
    """Tokens of the windows per second."""
    generated_tokens_per_second: float
    """Tokens of one answer per second."""
    resident_bytes: int
    """Memory that the model occupies after the first window, mapped pages included."""
    threads: int
    """Threads that computed."""


Task = Annotated[Describe | Run, Field(discriminator="kind")]


def parse_task(line: bytes) -> Describe | Run:
    """Return the task of a line of JSON."""
    adapter: TypeAdapter[Describe | Run] = TypeAdapter(Task)
    return adapter.validate_json(line)
