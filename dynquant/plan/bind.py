"""Joins a saved plan with its model, and refuses by name what does not fit any more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gguf import GGUFValueType

from dynquant.arch.adapters.merge import MERGED_KEY, merged_names
from dynquant.arch.base import Model, ModelTensor
from dynquant.distribution import our_version
from dynquant.errors import EncodeError, ImportanceError, PlanError
from dynquant.importance.audit import Importance, audit
from dynquant.importance.experts import ALONE, DEFAULT, Policy
from dynquant.importance.imatrix import Imatrix
from dynquant.importance.moments import Moments
from dynquant.importance.moments_fit import fitted
from dynquant.json_documents import (
    plain,
)
from dynquant.keys import Keys, KeyValue
from dynquant.name_lists import grouped
from dynquant.plan.checks import changing, importance_problems, requantized
from dynquant.plan.feedback import FEEDBACK_KEY, may_have_feedback, read_feedback
from dynquant.plan.make import place_tensors
from dynquant.plan.plan import Plan, RecipeText, TensorPlan
from dynquant.plan.saved import PlanKey, PlanTensor, SavedPlan, key_sha256, plan_sources
from dynquant.plan.set_keys import key_problems
from dynquant.plan.settle_prediction import settle_prediction
from dynquant.quants.encoder import ENCODER_REVISION
from dynquant.quants.table import ALL, KEPT
from dynquant.recipe.assignment import Assigned, Assignment
from dynquant.recipe.feedback import FeedbackSetting
from dynquant.vocab.loading import loading_problems


def bind_plan(
    saved: SavedPlan,
    model: Model,
    imatrix: Imatrix | None,
    where: str,
    moments: Moments | None = None,
) -> Plan:
    """Join a saved plan with its model, imatrix and moments, so that it can be carried out.

    where: what messages call the plan

    Raises PlanError with everything that does not fit: another dynquant, architecture, imatrix,
    file of moments, source file, tensor, shape, size or key; each is named.
    """
    problems = [
        *_other_maker(saved),
        *_other_imatrix(saved, imatrix),
        *_other_policy(saved),
        *_other_moments(saved, moments),
        *_other_adapters(saved, model),
    ]
    if model.architecture != saved.architecture:
        problems.append(f"is for {saved.architecture}, and the model is {model.architecture}")
        PlanError.raise_any(f"{where}: {p}" for p in problems)
    if saved.recipe.sha256 != (recipe := _recipe(saved)).sha256:
        problems.append("the recipe's text does not have the sha256 that the plan records")
    model = settle_prediction(model, keep=bool(saved.prediction_layers))
    planned = {t.name: t for t in saved.tensors}
    tensors = {t.name: t for t in _settled(model, planned)}
    problems += _other_tensors(saved, planned, tensors)
    if not problems:
        problems += _other_sources(saved, [tensors[n] for n in planned])
    keys, faults = _bound_keys(saved, model.keys)
    problems += [*faults, *loading_problems(keys)]
    PlanError.raise_any(f"{where}: {p}" for p in problems)
    ordered = [tensors[name] for name in planned]
    assignments = {t.name: _assignment(t) for t in saved.tensors}
    importance, faults = _bound_importance(saved, model, ordered, assignments, imatrix)
    cut = [0, *(i for i in range(1, len(saved.tensors)) if _begins_file(saved, i))]
    try:
        placed, shards = place_tensors(ordered, assignments, importance, cut)
    except EncodeError as e:
        raise PlanError(*(f"{where}: {m}" for m in e.messages)) from e
    moments, feedback, misfits = _bound_feedback(saved, ordered, importance, imatrix, moments)
    problems = [*faults, *misfits, *_other_places(saved, placed)]
    PlanError.raise_any(f"{where}: {p}" for p in problems)
    return Plan(
        architecture=model.architecture,
        recipe=recipe,
        keys=keys,
        tensors=placed,
        shards=shards,
        sources=tensors,
        warnings=tuple(saved.warnings),
        ignored=saved.ignored,
        files=model.files,
        imatrix=imatrix,
        importance=importance,
        experts=_policy(saved),
        moments=moments,
        feedback=feedback,
        effort=saved.effort,
        prediction=model.prediction.layers if model.prediction else range(0),
        set_keys=frozenset(n for n, key in saved.keys.items() if key.set),
        allow_requantize=saved.allow_requantize,
        missing=model.missing,
        leave_out=model.leave_out,
    )


def _recipe(saved: SavedPlan) -> RecipeText:
    its = saved.recipe
    return RecipeText(its.name, its.description, its.name, its.text, tuple(its.extends))


def _other_maker(saved: SavedPlan) -> Iterator[str]:
    if saved.dynquant.encoder_revision != ENCODER_REVISION:
        yield (
            f"was made for encoder revision {saved.dynquant.encoder_revision}, and this dynquant"
            f" has {ENCODER_REVISION}; make the plan again"
        )
    elif saved.dynquant.version != (ours := our_version()):
        yield f"was made by dynquant {saved.dynquant.version}, and this is {ours}; make it again"


def _other_imatrix(saved: SavedPlan, imatrix: Imatrix | None) -> Iterator[str]:
    wanted = saved.importance
    if wanted and imatrix is None:
        yield f"needs the imatrix {wanted.file}, sha256 {wanted.sha256}; give it (--imatrix FILE)"
    elif wanted and imatrix and imatrix.sha256 != wanted.sha256:
        yield (
            f"needs the imatrix {wanted.file}, sha256 {wanted.sha256}; {imatrix.path} has"
            f" {imatrix.sha256}"
        )
    elif imatrix and not wanted:
        yield f"was made without an imatrix; leave out {imatrix.path}"


def _other_adapters(saved: SavedPlan, model: Model) -> Iterator[str]:
    """Say where the merged adapters are not those of the plan; their key records them."""
    key = saved.keys.get(MERGED_KEY)
    given = model.keys.get(MERGED_KEY)
    if key and given is None:
        names = ", ".join(merged_names(str(key.value)))
        yield f"was made with the merged adapters {names}; give them (--merge-adapter FOLDER)"
    elif given and not key:
        yield "was made without merged adapters; leave out --merge-adapter"


def _other_policy(saved: SavedPlan) -> Iterator[str]:
    """Say where the policy for experts is not the one that the file's keys would record."""
    policy = _policy(saved)
    for name, ours, default in (
        ("shrink", policy.shrink, ALONE.shrink),
        ("unseen", policy.unseen, ALONE.unseen),
    ):
        key = saved.keys.get(f"dynquant.imatrix_{name}")
        recorded = key.value if key else default
        if saved.importance and recorded != ours:
            yield (
                f"importance.{name} is {ours!r}, and the key dynquant.imatrix_{name} {recorded!r};"
                " to change it, change the recipe and make the plan again"
            )


def _other_moments(saved: SavedPlan, moments: Moments | None) -> Iterator[str]:
    """Say where the moments, and the settings of tensors, are not those that the keys record."""
    wanted = saved.moments
    if wanted is None:
        if moments:
            yield f"was made without second moments; leave out {moments.path}"
        if named := [t.name for t in saved.tensors if t.feedback]:
            yield f"has error feedback for {', '.join(grouped(named))}, and names no moments"
        return
    its = f"the second moments {wanted.file}, header sha256 {wanted.header_sha256}"
    if moments is None:
        yield f"needs {its}; give them (--moments FILE)"
        return
    if moments.header_sha256 != wanted.header_sha256:
        yield f"needs {its}; {moments.path} has {moments.header_sha256}"
    key = saved.keys.get(FEEDBACK_KEY)
    recorded = _recorded(key.value) if key and isinstance(key.value, str) else None
    if recorded != _settings(saved):
        yield (
            f"the feedback of its tensors is not that of the key {FEEDBACK_KEY}; to change it,"
            " change the recipe and make the plan again"
        )


def _recorded(text: str) -> dict[str, FeedbackSetting] | None:
    try:
        return read_feedback(text)
    except ValueError:
        return None


def _settings(saved: SavedPlan) -> dict[str, FeedbackSetting]:
    named = {t.name: t.feedback for t in saved.tensors if t.feedback}
    return {name: FeedbackSetting(f.damping, f.sweeps) for name, f in named.items()}


def _bound_feedback(
    saved: SavedPlan,
    tensors: list[ModelTensor],
    importance: Mapping[str, Importance],
    imatrix: Imatrix | None,
    moments: Moments | None,
) -> tuple[Moments | None, dict[str, FeedbackSetting], list[str]]:
    """Return the moments and the feedback of tensors, and the tensors that cannot have it."""
    if moments is None or imatrix is None:
        return None, {}, []
    try:
        found = fitted(moments, tensors, imatrix)[0]
    except ImportanceError as e:
        return None, {}, list(e.messages)
    settings = _settings(saved)
    wrong = [
        t.name
        for t in saved.tensors
        if t.feedback
        and not (
            t.name in found.inputs
            and t.name in importance
            and not t.on_grid
            and t.type in ALL
            and may_have_feedback(t.name, ALL[t.type])
        )
    ]
    without = f"has error feedback for {', '.join(grouped(wrong))}, which cannot have it"
    return found, settings, [without] if wrong else []


def _settled(model: Model, planned: Mapping[str, PlanTensor]) -> Iterator[ModelTensor]:
    """Yield the model's tensors; stored blocks and their factors where the plan keeps them."""
    for tensor in model.tensors:
        chosen, kept = planned.get(tensor.name), tensor.kept
        factor = tensor.name.removesuffix("weight") + "scale"
        blocks = kept.of_type(chosen.type) if kept and chosen else None
        if kept and blocks and factor in planned:
            yield ModelTensor(tensor.name, blocks)
            yield ModelTensor(factor, kept.factor)
        else:
            yield tensor


def _other_tensors(
    saved: SavedPlan, planned: Mapping[str, PlanTensor], tensors: Mapping[str, ModelTensor]
) -> Iterator[str]:
    missing = [name for name in planned if name not in tensors]
    if missing:
        yield f"the model does not have {', '.join(grouped(missing))}"
    extra = [n for n in tensors if n not in planned and n not in saved.ignored]
    if extra:
        yield f"does not know {', '.join(grouped(extra))} of the model"
    for name, t in planned.items():
        if name in tensors and tuple(t.shape) != tensors[name].shape:
            yield f"tensor {name!r} has shape {t.shape}, but {[*tensors[name].shape]} in the model"
        if t.type not in ALL | KEPT:
            yield f"tensor {name!r} has the type {t.type!r}, which is not known"


def _other_sources(saved: SavedPlan, tensors: list[ModelTensor]) -> Iterator[str]:
    there = {s.name: s for s in plan_sources(tensors)}
    wanted = {s.name: s for s in saved.sources}
    for name, source in wanted.items():
        its = there.get(name)
        if its is None:
            yield f"the model does not read {name}"
        elif its.bytes != source.bytes:
            yield f"{name} had {source.bytes:,} bytes, and has {its.bytes:,}"
        elif its.header_sha256 != source.header_sha256:
            yield f"{name} has another header than when the plan was made"
    for name in there.keys() - wanted.keys():
        yield f"does not know {name}, which the model reads"


def _bound_keys(saved: SavedPlan, own: Keys) -> tuple[Keys, list[str]]:
    """Return the keys in the plan's order, and those that the model does not have any more."""
    keys: Keys = {}
    problems: list[str] = []
    for name, key in saved.keys.items():
        found = _set_key(key) if key.set else own.get(name)
        if found is None:
            what = "has a value that its type cannot hold" if key.set else "is not the model's"
            problems.append(f"key {name} {what}")
        elif key_sha256(found) != key.sha256:
            was = "another value" if key.value is None else repr(key.value)
            problems.append(
                f"key {name} does not have the value that its hash says"
                if key.set
                else f"key {name} was {was}, and is {_shown(found)} in the model"
            )
        else:
            keys[name] = found
    problems += [
        f"does not know the key {n} of the model" for n in own if plain(n) not in saved.keys
    ]
    return keys, problems


def _set_key(key: PlanKey) -> KeyValue | None:
    """Return a key that the plan sets; None if its type is not that of a single value."""
    if key.value is None or key.type not in GGUFValueType.__members__:
        return None
    value, type_ = key.value, GGUFValueType[key.type]
    is_float = type_ in (GGUFValueType.FLOAT32, GGUFValueType.FLOAT64)
    found = KeyValue(float(value) if is_float and isinstance(value, int) else value, type_)
    return None if key_problems({"": found}) else found


def _shown(key: KeyValue) -> str:
    return "another value" if isinstance(key.value, tuple) else repr(key.value)


def _assignment(tensor: PlanTensor) -> Assignment:
    types = ALL | KEPT
    instead_of = types.get(tensor.instead_of) if tensor.instead_of else None
    return Assignment(types[tensor.type], tensor.rule, instead_of, tensor.note, tensor.on_grid)


def _bound_importance(
    saved: SavedPlan,
    model: Model,
    tensors: list[ModelTensor],
    assignments: dict[str, Assignment],
    imatrix: Imatrix | None,
) -> tuple[dict[str, Importance], list[str]]:
    """Return the importance of the tensors that change their type, and what is missing for them."""
    changed = changing(tuple(tensors), Assigned(assignments, ()))
    problems: list[str] = []
    known: Mapping[str, Importance] = {}
    if imatrix:
        try:
            known = audit(imatrix, tensors, _policy(saved))[0]
        except ImportanceError as e:
            problems += e.messages
    if not saved.allow_requantize:
        problems += requantized(model, changed)
    problems += importance_problems(changed, imatrix, known, model.architecture)
    quantized = (n for n, chosen in changed.items() if not chosen.type.is_float)
    return {name: known[name] for name in quantized if name in known}, problems


def _policy(saved: SavedPlan) -> Policy:
    its = saved.importance
    return Policy(its.shrink, its.unseen) if its else DEFAULT


def _begins_file(saved: SavedPlan, number: int) -> bool:
    return saved.tensors[number].file != saved.tensors[number - 1].file


def _other_places(saved: SavedPlan, placed: tuple[TensorPlan, ...]) -> Iterator[str]:
    """Say where sizes, offsets and importance are not what types and shapes give."""
    for wanted, found in zip(saved.tensors, placed, strict=True):
        for what, theirs, ours in (
            ("bytes", wanted.bytes, found.n_bytes),
            ("offset", wanted.offset, found.offset),
            ("importance", wanted.importance, found.importance),
        ):
            if theirs != ours:
                yield (
                    f"tensor {wanted.name!r} has {what} {theirs}, and {wanted.type} gives {ours};"
                    " to change a type, change the recipe and make the plan again"
                )
                break
