"""The common steps of verbs that make adapters: check the dtype, open the adapters, add inputs to the plan."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint, path_of
from ...engine.inputs import PlanInputs
from ...errors import ConfigError
from ...methods.lora.expert_stack import is_stack
from ...methods.lora.reading import Excluded
from ...planning.lora_merge.fitting import AdapterView
from ...planning.plan.files import SourceView
from ...planning.plan.plan import Plan
from ...planning.transplant.options import Options
from ..inputs.argument_types import CheckpointLike
from ..inputs.inputs import names_of, plan_source, view_of
from ..inputs.operations import operate
from ..inputs.reopening import with_model_files_pinned
from ..model_folder.licences import with_left_files_said, with_licences
from ..model_folder.quantised import folder_of
from .opening import KeptStacks, open_adapter

if TYPE_CHECKING:
    import torch

__all__ = ["OpenAdapters", "factor_dtype", "open_adapters"]

_OF_EXPERT = re.compile(r"\.experts\.\d+\.")
"""Matches names of modules of single experts."""

ALLOWED = ("float32", "bfloat16", "float16", "float64")


def factor_dtype(dtype: str | torch.dtype | None) -> str:
    """Return the name of a dtype for LoRA factors, '' for None; raises ConfigError for any other dtype."""
    found = Options.of(dtype=str(dtype) if dtype is not None else None).dtype
    if found not in ("", *ALLOWED):
        raise ConfigError(f"--dtype {found} is not a valid dtype for factors.", hint=f"Use {', '.join(ALLOWED)}.")
    return found


@dataclass(frozen=True)
class OpenAdapters:
    """Open adapters, the paths of their configurations, and the base (``model``), if it was given.

    In kohya's files, the names of modules are derived from the keys of the base, so these files can only be read with a
    base.
    """

    adapters: Sequence[AdapterView]
    paths: tuple[str, ...]
    model: SourceView | None

    def finished(self, plan: Plan, opened: list[Checkpoint], memory: int = 0) -> Plan:
        """Return the plan of an adapter with its open inputs, which ``apply`` needs.

        Some plans use constant tensors, which no file has: these are added to the first checkpoint in ``opened``.
        ``memory`` is the memory limit of the computation in bytes, 0 for the default.
        """
        folders = list(map(folder_of, opened[: len(self.adapters)]))
        constants = [row for row in plan.sources[0].operations if "constant" in row]
        opened[0] = operate(opened[:1], constants)[0].checkpoint
        plan = with_left_files_said(with_licences(plan, folders), folders[0])
        plan = with_model_files_pinned(plan, folders)
        return replace(plan, inputs=PlanInputs(tuple(opened), None, self.paths, memory=memory))


def open_adapters(
    given: Sequence[CheckpointLike],
    weights: Sequence[float],
    opened: list[Checkpoint],
    base: CheckpointLike | None = None,
    *,
    methods: tuple[str, ...] = (),
    excluded: Excluded | None = None,
    kept_stacks: KeptStacks | None = None,
    of_others: Sequence[str] = (),
) -> OpenAdapters:
    """Open the adapters ``given``, whose weights are ``weights``, and ``base``; append their checkpoints to ``opened``.

    If ``methods`` is ``COMPOSED``, they may be LoHa or LoKr. Modules that are ``excluded`` are not checked. Stacks of
    experts that ``kept_stacks`` selects stay stacks, unless another adapter is of single experts, whose modules are
    ``of_others``; the names of these modules and of the base are names of the model.
    Raises the errors of ``open_adapter`` and ``open_checkpoint``.
    """
    names = names_of([*map(path_of, given), *([path_of(base)] if base is not None else [])])
    model = None
    if base is not None:
        opened.append(open_checkpoint(base, unwrap=False, called="base"))
        model = view_of(plan_source(names[-1], opened[-1]), opened[-1])
    known = [*(model.tensors if model is not None else ()), *of_others]
    found = [
        open_adapter(*one, opened, methods=methods, excluded=excluded, kept_stacks=kept_stacks, names=known)
        for one in zip(given, names, weights, strict=False)
    ]
    modules = [module for view, _ in found for module in view.adapter.modules]
    single = [one.name for one in modules if _OF_EXPERT.search(one.name)]
    if single and any(is_stack(one.kind) for one in modules):
        while opened:
            opened.pop().close()
        return open_adapters(given, weights, opened, base, methods=methods, excluded=excluded, of_others=single)
    if base is not None:
        opened.append(opened.pop(0))
    return OpenAdapters([view for view, _ in found], tuple(path for _, path in found if path), model)
