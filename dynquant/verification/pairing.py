"""Pair the tensors of a GGUF with the source rows that they should be made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from dynquant.arch.base import Model, ModelTensor
from dynquant.checkpoint.gguf import GGUFFile, GGUFTensor
from dynquant.checkpoint.gguf_shards import Shards
from dynquant.feedback.decided import Fed
from dynquant.importance.audit import Importance, audit
from dynquant.importance.imatrix import Imatrix
from dynquant.importance.moments import Moments
from dynquant.importance.moments_fit import fitted
from dynquant.name_lists import grouped
from dynquant.quants.search import Search
from dynquant.quants.table import ALL, KEPT, QuantType
from dynquant.recipe.feedback import FeedbackSetting
from dynquant.tensors import n_rows
from dynquant.verification.findings import Fault
from dynquant.verification.maker import Maker


@dataclass(frozen=True)
class Pair:
    """A tensor of the file, its source rows, and how to encode them.

    feedback: None without error feedback
    """

    file: GGUFFile
    tensor: GGUFTensor
    source: ModelTensor
    qtype: QuantType
    importance: Importance | None
    feedback: FeedbackSetting | None = None

    @property
    def together(self) -> int:
        """Rows with the same importance: those of one matrix if matrices differ, else all."""
        rows = n_rows(self.tensor.shape)
        return rows // self.importance.n_matrices if self.importance else rows

    def fed(self, search: Search) -> Fed | None:
        """Return the tensor as error feedback sees it; None without it."""
        if self.feedback is None or self.importance is None:
            return None
        return Fed(
            self.tensor.name,
            self.source.source,
            self.qtype,
            self.importance,
            search,
            self.feedback,
            self.together,
        )

    @property
    def row_size(self) -> int:
        """Bytes of a row in the file."""
        return self.qtype.row_size(self.source.n_per_row)


class Pairing:
    """Finds the source of each tensor and records tensors that have none.

    moments: with the input of each tensor that has error feedback; None if there is none
    """

    def __init__(
        self,
        shards: Shards,
        model: Model,
        maker: Maker,
        imatrix: Imatrix | None,
        moments: Moments | None = None,
    ) -> None:
        self.faults: list[Fault] = []
        self.unchecked: list[str] = []
        self._maker = maker
        self._model = model
        self._path = shards.path
        self._files = {t.name: (file, t) for file, t in shards.tensors()}
        self._sources = dict(_sources(model, self._files))
        here = [t for n, t in self._sources.items() if n in self._files]
        self._importance = audit(imatrix, here, maker.experts)[0] if imatrix and here else {}
        self.moments = None
        if moments and imatrix and here:
            self.moments = fitted(moments, here, imatrix)[0]

    def pair(self, name: str) -> Pair | None:
        """Return a tensor with its source, or None after recording why it cannot be compared."""
        file, tensor = self._files[name]
        at = file.data_offset + tensor.offset
        source = self._sources.get(name)
        qtype = (ALL | KEPT).get(tensor.type_name)
        if source is None:
            if self._maker.version:
                self.faults.append(Fault("is not in the source", file.path, name, at))
            else:
                self.unchecked.append(f"{name}: is not in the source")
            return None
        if source.shape != (tensor.shape or (1,)):
            self.faults.append(
                Fault(
                    f"has shape {list(tensor.shape)}, but {list(source.shape)} in the source",
                    file.path,
                    name,
                    at,
                )
            )
            return None
        stored = source.source.stored
        if (
            qtype is None
            or (qtype.name in KEPT) != (stored.name in KEPT)
            or (qtype.name in KEPT and qtype != stored)
        ):
            self.faults.append(
                Fault(
                    f"is {tensor.type_name}, but {stored.name} in the source", file.path, name, at
                )
            )
            return None
        is_exact = qtype.is_float or qtype == stored
        if not (is_exact or self._maker.has_our_encoders):
            return None
        importance = None if is_exact else self._importance.get(name)
        feedback = self._maker.feedback.get(name)
        if feedback and not (importance and self.moments and name in self.moments.inputs):
            self.faults.append(
                Fault("has error feedback, but no second moments", file.path, name, at)
            )
            return None
        return Pair(file, tensor, source, qtype, importance, feedback)

    def left_out(self) -> Iterator[str]:
        """Yield tensors of the source that are not in the file; prediction layers are optional."""
        ahead = self._model.prediction.layers if self._model.prediction else range(0)
        left = [
            t.name
            for t in self._model.tensors
            if t.name not in self._files and t.parts.layer not in ahead
        ]
        if left:
            yield f"{self._path}: {', '.join(grouped(left))} is in the source, but not in the file"


def _sources(
    model: Model, names: Mapping[str, tuple[GGUFFile, GGUFTensor]]
) -> Iterator[tuple[str, ModelTensor]]:
    """Yield tensors that a file may have, by name; stored blocks if it has their factor, too."""
    for tensor in model.tensors:
        factor = tensor.name.removesuffix("weight") + "scale"
        there = names.get(tensor.name)
        if tensor.kept is not None and there and factor in names:
            blocks = tensor.kept.of_type(there[1].type_name) or tensor.kept.blocks
            yield tensor.name, ModelTensor(tensor.name, blocks)
            yield factor, ModelTensor(factor, tensor.kept.factor)
        else:
            yield tensor.name, replace(tensor, kept=None)
