"""The public verbs and types. Each verb opens what it needs, calls the rooms in order and returns plain results.

Names are imported when they are used: looking at a header needs none of what writing does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint, open_checkpoint
    from ..comparison import Difference
    from ..configs import load_target
    from ..explanation import Explained, Explanation
    from ..fetching import FetchConfig, Fetched
    from ..inspection import Inspection
    from ..keys import RULESETS, Rule
    from ..matching import Proposal
    from ..merges import Between, MergeMethods, PerModel, Slice, Tensors, merge_method
    from ..pages import Page
    from ..plan import Plan, Receipt, Step, Verification
    from ..policies import MISMATCH_POLICIES
    from ..scanning import Fault, Finding, Scan, Use, Verdict
    from ..target import TargetSpec
    from ..tensors import TensorInfo
    from .applying import apply, check_output, notes_of, output_formats
    from .averaging import average
    from .comparing import diff
    from .editing import convert, filter, rename
    from .explaining import explain
    from .extracting import lora_extract
    from .fetching import fetch
    from .live import load_into
    from .looking import init_config, inspect
    from .lora import lora_merge
    from .matching import match
    from .merge_recipe import read_recipe
    from .merging import list_methods, merge
    from .planning import transplant
    from .pretrained import Pretrained
    from .pretraining import Pretrainer
    from .recipes import load_order, load_plan
    from .scanning import scan
    from .verifying import verify
    from .viewing import view

__all__ = [
    "MISMATCH_POLICIES",
    "RULESETS",
    "Between",
    "Checkpoint",
    "Difference",
    "Explained",
    "Explanation",
    "Fault",
    "FetchConfig",
    "Fetched",
    "Finding",
    "Inspection",
    "MergeMethods",
    "Page",
    "PerModel",
    "Plan",
    "Pretrained",
    "Pretrainer",
    "Proposal",
    "Receipt",
    "Rule",
    "Scan",
    "Slice",
    "Step",
    "TargetSpec",
    "TensorInfo",
    "Tensors",
    "Use",
    "Verdict",
    "Verification",
    "apply",
    "average",
    "check_output",
    "convert",
    "diff",
    "explain",
    "fetch",
    "filter",
    "init_config",
    "inspect",
    "list_methods",
    "load_into",
    "load_order",
    "load_plan",
    "load_target",
    "lora_extract",
    "lora_merge",
    "match",
    "merge",
    "merge_method",
    "notes_of",
    "open_checkpoint",
    "output_formats",
    "read_recipe",
    "rename",
    "scan",
    "transplant",
    "verify",
    "view",
]

__getattr__ = lazy_names(
    __name__,
    {
        "..checkpoint": ("Checkpoint", "open_checkpoint"),
        "..comparison": ("Difference",),
        "..configs": ("load_target",),
        "..explanation": ("Explained", "Explanation"),
        "..fetching": ("FetchConfig", "Fetched"),
        "..inspection": ("Inspection",),
        "..keys": ("RULESETS", "Rule"),
        "..matching": ("Proposal",),
        "..pages": ("Page",),
        "..plan": ("Plan", "Receipt", "Step", "Verification"),
        "..policies": ("MISMATCH_POLICIES",),
        "..scanning": ("Fault", "Finding", "Scan", "Use", "Verdict"),
        "..target": ("TargetSpec",),
        "..tensors": ("TensorInfo",),
        ".applying": ("apply", "check_output", "notes_of", "output_formats"),
        ".averaging": ("average",),
        ".merge_recipe": ("read_recipe",),
        ".merging": ("list_methods", "merge"),
        "..merges": ("Between", "MergeMethods", "PerModel", "Slice", "Tensors", "merge_method"),
        ".comparing": ("diff",),
        ".editing": ("convert", "filter", "rename"),
        ".explaining": ("explain",),
        ".extracting": ("lora_extract",),
        ".fetching": ("fetch",),
        ".live": ("load_into",),
        ".looking": ("init_config", "inspect"),
        ".lora": ("lora_merge",),
        ".matching": ("match",),
        ".planning": ("transplant",),
        ".pretrained": ("Pretrained",),
        ".pretraining": ("Pretrainer",),
        ".recipes": ("load_order", "load_plan"),
        ".scanning": ("scan",),
        ".verifying": ("verify",),
        ".viewing": ("view",),
    },
)
