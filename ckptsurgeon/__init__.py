"""ckptsurgeon: put the weights of one network into another, and know exactly what happened.

    import ckptsurgeon as cs

    plan = cs.transplant("src.pth", "dst.yaml", exclude=["decoder"])
    cs.apply(plan, "init.safetensors")

Importing it loads neither torch nor numpy; names are looked up in ``ckptsurgeon.api`` when they are used.
"""

from __future__ import annotations

from .lazy import lazy_names
from .notebook import shown_by
from .version import __version__ as __version__

TYPE_CHECKING = False  # as type checkers read it; typing itself takes longer to import than all that is here
if TYPE_CHECKING:
    from .api import (
        Between,
        Checkpoint,
        Difference,
        Explained,
        Explanation,
        Fault,
        FetchConfig,
        Fetched,
        Finding,
        Inspection,
        Page,
        PerModel,
        Plan,
        Pretrained,
        Pretrainer,
        Proposal,
        Receipt,
        Rule,
        Scan,
        Slice,
        Step,
        TargetSpec,
        TensorInfo,
        Tensors,
        Use,
        Verdict,
        Verification,
        apply,
        average,
        convert,
        diff,
        explain,
        fetch,
        filter,
        init_config,
        inspect,
        load_into,
        load_plan,
        load_target,
        lora_extract,
        lora_merge,
        match,
        merge,
        merge_method,
        open_checkpoint,
        rename,
        scan,
        transplant,
        verify,
        view,
    )
    from .errors import (
        CheckpointError,
        ConfigError,
        FormatError,
        OutputError,
        PatternError,
        PlanError,
        SourceError,
        UnsafeError,
        VerifyError,
    )
    from .notebook import Views
    from .trainer import Trained, train

__all__ = [
    "Between",
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "Difference",
    "Explained",
    "Explanation",
    "Fault",
    "FetchConfig",
    "Fetched",
    "Finding",
    "FormatError",
    "Inspection",
    "OutputError",
    "Page",
    "PatternError",
    "PerModel",
    "Plan",
    "PlanError",
    "Pretrained",
    "Pretrainer",
    "Proposal",
    "Receipt",
    "Rule",
    "Scan",
    "Slice",
    "SourceError",
    "Step",
    "TargetSpec",
    "TensorInfo",
    "Tensors",
    "Trained",
    "UnsafeError",
    "Use",
    "Verdict",
    "Verification",
    "VerifyError",
    "apply",
    "average",
    "convert",
    "diff",
    "explain",
    "fetch",
    "filter",
    "init_config",
    "inspect",
    "load_into",
    "load_plan",
    "load_target",
    "lora_extract",
    "lora_merge",
    "match",
    "merge",
    "merge_method",
    "open_checkpoint",
    "rename",
    "scan",
    "train",
    "transplant",
    "verify",
    "view",
]

_ERRORS = tuple(name for name in __all__ if name.endswith("Error"))
_TRAINER = ("Trained", "train")

__getattr__ = lazy_names(
    __name__,
    {
        ".errors": _ERRORS,
        ".trainer": _TRAINER,
        ".api": tuple(name for name in __all__ if name not in (*_ERRORS, *_TRAINER)),
    },
)


def _views() -> Views:
    from .render import notebook

    return notebook


shown_by(_views)


def __dir__() -> list[str]:
    """Return what is public: rooms that something imported, and helpers, are not offered for completion."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__") and name.endswith("__"))})
