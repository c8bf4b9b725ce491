"""The reference of an evaluation: opened or made, and the files that fit it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dynquant.conversion.disk import free_bytes
from dynquant.conversion.engine import Progress as Written
from dynquant.errors import EvalError, Problems
from dynquant.evaluate.answers import PromptSet, series_of
from dynquant.evaluate.files import hashed
from dynquant.evaluate.given import Given
from dynquant.evaluate.lossless import EXACT, reference_gguf
from dynquant.evaluate.process import run
from dynquant.evaluate.reference import (
    TOKENS,
    WINDOWS,
    Header,
    ModelPart,
    TextPart,
    read_header,
    windows_of,
)
from dynquant.evaluate.settings import Progress, Settings
from dynquant.evaluate.store import Store, identity
from dynquant.evaluate.tasks import Generation, Run
from dynquant.evaluate.texts import Windows, cut
from dynquant.evaluate.vocabulary import Vocabulary, read_vocabulary
from dynquant.figures import counted, size_text


@dataclass(frozen=True)
class Base:
    """A reference.

    path:     its store
    gguf:     the model; None if only the store is given
    header:   of the store
    windows:  the tokens
    prompts:  what is continued
    pieces:   the bytes of each token
    system:   CPU features that llama.cpp uses
    sha256:   of the distributions; empty until `complete`
    warnings: what limits the figures
    """

    path: Path
    gguf: Path | None
    header: Header
    windows: Windows
    prompts: PromptSet
    pieces: tuple[bytes, ...]
    system: str
    sha256: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return what reports call the reference."""
        return self.header.model.name


def open_base(
    given: Given, settings: Settings, progress: Progress, say: Callable[[str], None]
) -> Base:
    """Open a stored reference or begin a new one, and check that all files fit it.

    Raises EvalError with all files that do not.
    """
    gguf = given.gguf
    if gguf is None and given.store is None:
        gguf = _converted(given.reference, settings, progress, say)
    problems = Problems()
    own = [] if gguf is None else [gguf]
    vocabularies = [
        found
        for path in (*own, *(path for path, _ in given.files))
        if (found := problems.attempt(lambda path=path: _vocabulary(path, given, settings)))
    ]
    problems.raise_any(EvalError)
    first = vocabularies[0]
    if given.store is not None:
        base = _stored(given.store, first, given)
    else:
        assert gguf is not None
        base = _begun(gguf, first, given, settings, progress)
    for other in vocabularies:
        problems.add(*_differences(other, base, given, settings))
    problems.raise_any(EvalError)
    return base


def _vocabulary(path: Path, given: Given, settings: Settings) -> Vocabulary:
    return read_vocabulary(path, given.text_paths, settings.prompts, chat=settings.chat)


def _converted(
    source: str, settings: Settings, progress: Progress, say: Callable[[str], None]
) -> Path:
    """Return the GGUF of a checkpoint in the cache."""

    def report(written: Written) -> None:
        progress(f"{source}: converting", written.bytes_done, written.bytes_total)

    say(f"{source}: the reference's numbers are written as a GGUF to {settings.cache}")
    return reference_gguf(source, settings.cache, threads=settings.threads, progress=report)


def _stored(path: Path, vocabulary: Vocabulary, given: Given) -> Base:
    """Open the store of a reference, and compare it with the texts and with this engine."""
    with Store.open(path) as store:
        header = read_header(store)
        windows = windows_of(store, header)
        missing = len(windows) - len(store.numbers(WINDOWS))
    problems: list[str] = []
    if missing:
        problems.append(
            f"{path}: {counted(missing, 'window')} of {len(windows)} missing; give its model as"
            " --reference to complete it"
        )
    if header.engine != vocabulary.engine:
        problems.append(
            f"{path}: was computed by {_engine(header)}, and files are run by"
            f" {vocabulary.engine.wheel}; make the reference again"
        )
    known = {text.sha256 for text in header.texts}
    problems += [
        f"{text.name}: is not a text of the reference {path}, which has"
        f" {', '.join(t.name for t in header.texts)}"
        for text in given.texts
        if text.sha256 not in known
    ]
    EvalError.raise_any(problems)
    return Base(
        path,
        None,
        header,
        windows,
        vocabulary.prompts,
        vocabulary.pieces,
        vocabulary.facts.engine["system"],
    )


def _engine(header: Header) -> str:
    return f"{header.engine.wheel} ({header.engine.version}, {header.engine.commit})"


def _begun(
    gguf: Path, vocabulary: Vocabulary, given: Given, settings: Settings, progress: Progress
) -> Base:
    """Open or make the store of a model's reference in the cache."""
    windows = cut(
        given.texts,
        vocabulary.texts,
        context=settings.context,
        limit=settings.tokens,
        bos=vocabulary.facts.bos,
    )
    model = hashed(gguf, lambda done, total: progress(f"{gguf.name}: hashing", done, total))
    header = Header(
        reference=1,
        model=ModelPart(
            name=given.reference.rstrip("/").rpartition("/")[2] or given.reference,
            architecture=vocabulary.facts.architecture,
            files=list(model.files),
            n_tokens=vocabulary.facts.n_tokens,
            vocabulary_sha256=vocabulary.facts.vocabulary_sha256,
        ),
        texts=[
            TextPart(name=text.name, sha256=text.sha256, windows=windows.texts.count(i))
            for i, text in enumerate(given.texts)
        ],
        context=windows.context,
        tokens_sha256=windows.sha256,
        tail=settings.tail,
        engine=vocabulary.engine,
    )
    content = header.model_dump()
    path = settings.cache / f"{header.model.name}-{identity(content)[:12]}.reference"
    with Store.create(path, content) as store:
        store.put(TOKENS, 0, windows.tokens.astype("<i4").tobytes())
    return Base(
        path,
        gguf,
        header,
        windows,
        vocabulary.prompts,
        vocabulary.pieces,
        vocabulary.facts.engine["system"],
        warnings=tuple(_limits(vocabulary, windows, model.matrix_types)),
    )


def _limits(vocabulary: Vocabulary, windows: Windows, types: set[str]) -> list[str]:
    """Return what limits the figures."""
    found: list[str] = []
    if coarse := sorted(types - set(EXACT)):
        found.append(
            f"the reference {vocabulary.path.name} has tensors of {', '.join(coarse)}: the figures"
            " say how far files are from it, not from the model that it was made from"
        )
    if windows.context > vocabulary.facts.context_train > 0:
        found.append(
            f"windows of {windows.context:,} tokens are longer than the model's context of"
            f" {vocabulary.facts.context_train:,}"
        )
    if len(windows) < FEW:
        found.append(
            f"{counted(len(windows), 'window')}: with fewer than {FEW}, intervals are too narrow;"
            " use a longer text"
        )
    return found


FEW = 20
"""Windows below which percentile intervals are known to be too narrow."""


def _differences(vocabulary: Vocabulary, base: Base, given: Given, settings: Settings) -> list[str]:
    """Return why a file cannot be compared with the reference."""
    header, facts, path = base.header, vocabulary.facts, vocabulary.path
    if facts.n_tokens != header.model.n_tokens:
        return [
            f"{path}: has {facts.n_tokens:,} tokens, the reference {base.name} has"
            f" {header.model.n_tokens:,}; they are different models"
        ]
    if facts.vocabulary_sha256 != header.model.vocabulary_sha256:
        return [f"{path}: has other tokens than the reference {base.name}; compare it with its own"]
    if not given.texts or base.gguf is None:
        return []
    windows = cut(
        given.texts,
        vocabulary.texts,
        context=header.context,
        limit=settings.tokens,
        bos=facts.bos,
    )
    if windows.sha256 != header.tokens_sha256:
        return [
            f"{path}: tokenizes the texts in another way than the reference {base.name}; compare"
            " the tokenizer keys of both with `dynquant inspect`"
        ]
    return []


def complete(
    base: Base, settings: Settings, progress: Progress, say: Callable[[str], None]
) -> Base:
    """Compute the windows and answers of the reference that are missing.

    Raises EvalError if the disk has too little space for them.
    """
    if base.gguf is not None:
        with Store.open(base.path) as store:
            done = len(store.numbers(WINDOWS))
        name = base.gguf.name
        is_said = done == len(base.windows)

        def report(step: str, done: int, total: int) -> None:
            nonlocal is_said
            if done and not is_said:
                is_said = True
                say(_size(base.path, done, total))
            progress(f"{name}: {step}", done, total)

        run(
            Run(
                path=str(base.gguf),
                threads=settings.n_threads,
                gpu_layers=settings.gpu_layers,
                reference=str(base.path),
                results=None,
                windows=WINDOWS,
                answers=str(base.path),
                prompts=[list(tokens) for tokens in base.prompts.tokens],
                generations=[
                    Generation(
                        series=series_of(base.prompts, sampler, settings.n_predict),
                        sampler=sampler,
                        n_predict=settings.n_predict,
                    )
                    for sampler in settings.samplers
                ]
                if base.prompts.tokens
                else [],
            ),
            report,
        )
    with Store.open(base.path) as store:
        return replace(base, sha256=store.sha256(WINDOWS))


def _size(path: Path, done: int, total: int) -> str:
    """Return a message with the size that a reference will have.

    Raises EvalError if the disk has too little space for it.
    """
    so_far = path.stat().st_size
    needed = round(so_far * total / done)
    if needed - so_far > (free := free_bytes(path.parent)):
        raise EvalError(
            f"{path}: needs about {size_text(needed)}, but the disk has {size_text(free)} free;"
            " use fewer --tokens, a larger --tail, or another --cache"
        )
    return f"{path}: the reference will have about {size_text(needed)}"
