"""Dynamic quantized GGUF files of any model, in one pass, from a recipe a person can read.

    import dynquant

    result = dynquant.convert("path/to/model", "model.gguf", recipe="dynamic-4bit", progress="tqdm")

or in steps: `load_model`, `load_recipe`, `load_imatrix`, `make_plan`, a look at the plan, and
`plan.write`. `encode` and `decode` convert rows of floats to blocks and back.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynquant.api import (
        Plan,
        audit_imatrix,
        convert,
        evaluate_files,
        inspect,
        ladder,
        load_imatrix,
        load_moments,
        load_plan,
        make_plan,
        publish,
        read_manifest,
        solve_recipe,
        types,
    )
    from dynquant.arch.base import Model
    from dynquant.arch.load import load_model
    from dynquant.arch.load_projector import load_projector
    from dynquant.budget.solve import Solved
    from dynquant.checkpoint.gguf import GGUFFile
    from dynquant.conversion.engine import Progress
    from dynquant.conversion.losses import Loss
    from dynquant.conversion.manifest import Manifest
    from dynquant.conversion.parts.run import PartResult
    from dynquant.conversion.result import Result
    from dynquant.errors import (
        AdapterError,
        ArchitectureError,
        BusyError,
        CalibrationError,
        CheckpointError,
        ClusterError,
        ConvertError,
        DynquantError,
        EncodeError,
        EvalError,
        GateError,
        ImportanceError,
        ManifestError,
        NoVocabError,
        PlanError,
        PublishError,
        RecipeError,
        ReleaseError,
        ReportError,
        VerificationError,
        VocabError,
    )
    from dynquant.evaluate.results import Evaluation
    from dynquant.importance.imatrix import Imatrix
    from dynquant.importance.moments import Moments
    from dynquant.importance.report import ImatrixAudit
    from dynquant.keys import KeyValue
    from dynquant.plan.plan import TensorPlan
    from dynquant.plan.shards import Split
    from dynquant.publishing.publish import Published
    from dynquant.quants.codec import NotFiniteError, decode
    from dynquant.quants.encoder import ENCODER_REVISION, encode
    from dynquant.quants.error import TensorError
    from dynquant.quants.table import QuantType
    from dynquant.recipe.feedback import FeedbackSetting
    from dynquant.recipe.loader import load_recipe
    from dynquant.recipe.rules import Recipe
    from dynquant.recipe.target import Target
    from dynquant.report.notebook import tqdm_progress
    from dynquant.verification.findings import Verification
    from dynquant.verification.verify import verify

    __version__: str

__all__ = [
    "ENCODER_REVISION",
    "AdapterError",
    "ArchitectureError",
    "BusyError",
    "CalibrationError",
    "CheckpointError",
    "ClusterError",
    "ConvertError",
    "DynquantError",
    "EncodeError",
    "EvalError",
    "Evaluation",
    "FeedbackSetting",
    "GGUFFile",
    "GateError",
    "Imatrix",
    "ImatrixAudit",
    "ImportanceError",
    "KeyValue",
    "Loss",
    "Manifest",
    "ManifestError",
    "Model",
    "Moments",
    "NoVocabError",
    "NotFiniteError",
    "PartResult",
    "Plan",
    "PlanError",
    "Progress",
    "PublishError",
    "Published",
    "QuantType",
    "Recipe",
    "RecipeError",
    "ReleaseError",
    "ReportError",
    "Result",
    "Solved",
    "Split",
    "Target",
    "TensorError",
    "TensorPlan",
    "Verification",
    "VerificationError",
    "VocabError",
    "__version__",
    "audit_imatrix",
    "convert",
    "decode",
    "encode",
    "evaluate_files",
    "inspect",
    "ladder",
    "load_imatrix",
    "load_model",
    "load_moments",
    "load_plan",
    "load_projector",
    "load_recipe",
    "make_plan",
    "publish",
    "read_manifest",
    "solve_recipe",
    "tqdm_progress",
    "types",
    "verify",
]

# numpy and gguf take a quarter of a second to import; a name imports its module when it is used.
_HOMES = {
    "dynquant.api": (
        "Plan",
        "audit_imatrix",
        "convert",
        "evaluate_files",
        "inspect",
        "ladder",
        "load_imatrix",
        "load_moments",
        "load_plan",
        "make_plan",
        "publish",
        "read_manifest",
        "solve_recipe",
        "types",
    ),
    "dynquant.arch.base": ("Model",),
    "dynquant.arch.load": ("load_model",),
    "dynquant.arch.load_projector": ("load_projector",),
    "dynquant.budget.solve": ("Solved",),
    "dynquant.checkpoint.gguf": ("GGUFFile",),
    "dynquant.conversion.engine": ("Progress",),
    "dynquant.conversion.losses": ("Loss",),
    "dynquant.conversion.manifest": ("Manifest",),
    "dynquant.conversion.parts.run": ("PartResult",),
    "dynquant.conversion.result": ("Result",),
    "dynquant.evaluate.results": ("Evaluation",),
    "dynquant.importance.imatrix": ("Imatrix",),
    "dynquant.importance.moments": ("Moments",),
    "dynquant.importance.report": ("ImatrixAudit",),
    "dynquant.keys": ("KeyValue",),
    "dynquant.plan.plan": ("TensorPlan",),
    "dynquant.plan.shards": ("Split",),
    "dynquant.publishing.publish": ("Published",),
    "dynquant.quants.codec": ("NotFiniteError", "decode"),
    "dynquant.quants.encoder": ("ENCODER_REVISION", "encode"),
    "dynquant.quants.error": ("TensorError",),
    "dynquant.quants.table": ("QuantType",),
    "dynquant.recipe.feedback": ("FeedbackSetting",),
    "dynquant.recipe.loader": ("load_recipe",),
    "dynquant.recipe.rules": ("Recipe",),
    "dynquant.recipe.target": ("Target",),
    "dynquant.report.notebook": ("tqdm_progress",),
    "dynquant.verification.findings": ("Verification",),
    "dynquant.verification.verify": ("verify",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from dynquant.distribution import our_version

        return our_version()
    if name in __all__:
        return getattr(importlib.import_module(_HOME_OF.get(name, "dynquant.errors")), name)
    raise AttributeError(f"module 'dynquant' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
