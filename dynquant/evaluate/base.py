"""The reference of an evaluation: a stored one, or a new one that is to be computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dynquant.conversion.engine import Progress as Written
from dynquant.errors import EvalError, Problems
from dynquant.evaluate.answers import PromptSet
from dynquant.evaluate.files import Gguf, hashed
from dynquant.evaluate.fit import Expected, check_fit, windows_for
from dynquant.evaluate.given import Given
from dynquant.evaluate.lossless import EXACT, name_of, reference_gguf, stem_of
from dynquant.evaluate.reference import (
    TOKENS,
    WINDOWS,
    EnginePart,
    Header,
    ModelPart,
    TextPart,
    read_header,
    windows_of,
)
from dynquant.evaluate.settings import Progress, Settings
from dynquant.evaluate.store import Store, identity
from dynquant.evaluate.texts import Windows
from dynquant.evaluate.vocabulary import Vocabulary, read_vocabulary
from dynquant.figures import counted

FEW = 20
"""Windows below which percentile intervals are known to be too narrow."""


@dataclass(frozen=True)
class Base:
    """A reference.

    path:     its store
    gguf:     the model; None if only the store is given
    header:   of the store
    windows:  the tokens
    prompts:  what is continued
    pieces:   the bytes of each token, if there are prompts
    system:   CPU features that llama.cpp uses
    sha256:   of the distributions; empty until all are computed
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
        for path in dict.fromkeys([*own, *(path for path, _ in given.files)])
        if (found := problems.attempt(lambda path=path: _vocabulary(path, given, settings)))
    ]
    problems.raise_any(EvalError)
    first = vocabularies[0]
    if settings.gpu_layers and not first.facts.has_gpu:
        raise EvalError(
            f"--gpu-layers {settings.gpu_layers}: the installed xllamacpp computes on the CPU only;"
            " leave the option out, or install a build for your GPU"
        )
    if gguf is None:
        assert given.store is not None, "a reference is a model or a store"
        base = _stored(given.store, first, given, settings)
        say(
            f"{given.store}: {counted(len(base.windows), 'window')} of"
            f" {base.windows.context:,} tokens, as it was made"
        )
        model = base.header.model
        expected = Expected(model.name, model.n_tokens, model.vocabulary_sha256, None)
        check_fit(vocabularies, expected, given, settings)
        return base
    windows = windows_for(first, given, settings)
    facts = first.facts
    expected = Expected(gguf.name, facts.n_tokens, facts.vocabulary_sha256, windows.sha256)
    check_fit(vocabularies[1:], expected, given, settings)
    return _begun(gguf, first, windows, given, settings, progress)


def _vocabulary(path: Path, given: Given, settings: Settings) -> Vocabulary:
    return read_vocabulary(
        path, given.text_paths, settings.prompts, tokens=settings.tokens, chat=settings.chat
    )


def _converted(
    source: str, settings: Settings, progress: Progress, say: Callable[[str], None]
) -> Path:
    """Return the GGUF of a checkpoint in the cache."""

    def report(written: Written) -> None:
        progress(f"{source}: converting", written.bytes_done, written.bytes_total)

    say(f"{source}: is kept as a GGUF without any rounding in {settings.cache}")
    return reference_gguf(source, settings.cache, threads=settings.threads, progress=report)


def _stored(path: Path, vocabulary: Vocabulary, given: Given, settings: Settings) -> Base:
    """Open the store of a reference, and compare it with the texts and with this engine."""
    with Store.open(path) as store:
        header = read_header(store)
        windows = windows_of(store, header)
        missing = len(set(range(len(windows))) - store.numbers(WINDOWS))
    problems: list[str] = []
    if missing:
        problems.append(
            f"{path}: {counted(missing, 'window')} of {len(windows)} not computed; give its model"
            " as --reference to complete it"
        )
    ours = vocabulary.engine(settings.gpu_layers)
    if header.engine != ours:
        problems.append(
            f"{path}: was computed by {_engine(header.engine)}, files are run by {_engine(ours)};"
            " make the reference again"
        )
    known = {text.sha256: text.name for text in header.texts}
    problems += [
        f"{text.name}: is not a text of the reference {path}, which has {', '.join(known.values())}"
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
        warnings=tuple(_few(windows)),
    )


def _engine(engine: EnginePart) -> str:
    on_gpu = f", {engine.gpu_layers} layers on a GPU" if engine.gpu_layers else ""
    return f"{engine.wheel} ({engine.version}, {engine.commit}){on_gpu}"


def _begun(
    gguf: Path,
    vocabulary: Vocabulary,
    windows: Windows,
    given: Given,
    settings: Settings,
    progress: Progress,
) -> Base:
    """Open or make the store of a model's reference in the cache."""
    model = hashed(gguf, lambda done, total: progress(f"{gguf.name}: hashing", done, total))
    facts = vocabulary.facts
    header = Header(
        reference=1,
        model=ModelPart(
            name=name_of(given.reference),
            architecture=facts.architecture,
            files=list(model.files),
            n_tokens=facts.n_tokens,
            vocabulary_sha256=facts.vocabulary_sha256,
        ),
        texts=[
            TextPart(name=text.name, sha256=text.sha256, windows=windows.texts.count(i))
            for i, text in enumerate(given.texts)
        ],
        context=windows.context,
        tokens_sha256=windows.sha256,
        tail=settings.tail,
        engine=vocabulary.engine(settings.gpu_layers),
    )
    content = header.model_dump()
    path = settings.cache / f"{stem_of(header.model.name)}-{identity(content)[:12]}.reference"
    tokens = windows.tokens.astype("<i4").tobytes()
    with Store.create(path, content) as store:
        if store.get(TOKENS, 0) != tokens:
            store.put(TOKENS, 0, tokens)
    return Base(
        path,
        gguf,
        header,
        windows,
        vocabulary.prompts,
        vocabulary.pieces,
        facts.engine["system"],
        warnings=tuple(_limits(vocabulary, windows, model, settings)),
    )


def _limits(
    vocabulary: Vocabulary, windows: Windows, model: Gguf, settings: Settings
) -> Iterator[str]:
    """Yield what limits the figures."""
    if coarse := sorted(model.matrix_types - set(EXACT)):
        yield (
            f"the reference {vocabulary.path.name} has tensors of {', '.join(coarse)}: the figures"
            " say how far files are from it, not from the model that it was made from"
        )
    if windows.context > model.context > 0:
        yield (
            f"windows of {windows.context:,} tokens are longer than the model's context of"
            f" {model.context:,}"
        )
    longest = max(map(len, vocabulary.prompts.tokens), default=0) + settings.n_predict
    if vocabulary.prompts.tokens and longest > model.context > 0:
        yield (
            f"a prompt and its answer may have {longest:,} tokens, more than the model's context"
            f" of {model.context:,}"
        )
    yield from _few(windows)


def _few(windows: Windows) -> Iterator[str]:
    if len(windows) < FEW:
        yield (
            f"{counted(len(windows), 'window')}: with fewer than {FEW}, intervals are too narrow;"
            " use a longer text"
        )
