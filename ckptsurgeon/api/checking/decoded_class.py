"""Compares the decoded weights of a quantised folder with the transformers class that its config.json describes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace

from ...analysis.compare.results import Pair
from ...analysis.fits.fit import Fit
from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint
from ...destinations._load import target_with
from ...destinations.hf.files import CONFIG
from ...destinations.hf.ignored_keys import ignored_keys
from ...errors import CheckpointError, PlanError
from ...planning.quantised_error import UndecodableWeightError
from ...planning.target import TargetSpec
from ...planning.transplant.options import Options
from ...planning.transplant.plan_errors import NOTHING_LOADED
from ...tensors.info import TensorInfo
from ...util.text import escape, shape_text
from ..class_check import class_findings, not_compared
from ..inputs.encoding import ENCODINGS
from ..inputs.inputs import close_plan, specs_of
from ..layouts.mlx_form import is_of_mlx, is_transposed_by_mlx
from ..model_folder.folder import model_folder
from ..model_folder.weights.class_types import loaded_class
from ..transplant.transplant import TransplantRequest, plan_into

__all__ = ["with_decoded_class"]

DIFFERENT = ("missing", "mismatch")
"""The reasons of steps of a plan for tensors that the weights lack, or that have another shape in the class."""


def with_decoded_class(fit: Fit, path: str) -> Fit:
    """Return ``fit`` with the tensors that the quantised model in the folder ``path`` lacks or has in another shape.

    ``fit`` is of a checkpoint with the keys and shapes of this model's weights, which are decoded and compared with
    the class of config.json. If this is not possible, the result has a note with the reason.
    """
    with open_checkpoint(path) as weights:
        folder = model_folder(weights)
        why = not_compared(weights, folder)
        if not why:
            try:
                target = target_with(os.path.join(path, CONFIG), None, dequantized=True)
                return _compared(fit, weights, target, path, loaded_class(folder.config))
            except CheckpointError as error:
                lost = error.details if isinstance(error, UndecodableWeightError) else ()
                if lost and len(lost) < len(weights.codes.tensors):  # the others can be decoded, so these are damaged
                    return replace(fit, uncopied={**fit.uncopied, **dict.fromkeys(lost, "cannot be decoded")})
                why = error.message.rstrip(".")
    said = f"{escape(path)}: keys and shapes are not compared with a transformers class: {why}"
    return replace(fit, notes=(*fit.notes, said))


def _compared(fit: Fit, weights: Checkpoint, target: TargetSpec, path: str, name: str) -> Fit:
    """Return ``fit`` with the differences between the decoded ``weights`` and ``target``, of the class ``name``."""
    found = dict(_differences(weights, target, path))
    is_mlx = is_of_mlx(weights.metadata)  # such models have other forms of some modules, which class_findings knows
    if is_mlx and not any(one.kind == "missing" for one in class_findings(weights)):
        found = {key: reason for key, reason in found.items() if reason != "missing"}
    ignored = ignored_keys(name, target.cache_key, is_missing=True) if found else ()
    decoded = {one.name: one.shape for one in weights.codes.tensors}
    missing, uncopied, pairs = dict(fit.missing), dict(fit.uncopied), list(fit.mismatched)
    for key, reason in found.items():
        info = target.tensors[key]
        own = decoded.get(key) or (weights[key].shape if key in weights else ())
        if reason == "missing":
            if not any(re.search(pattern, key) for pattern in ignored):
                missing[key] = info
        elif own and own != info.shape:
            if not is_mlx or not is_transposed_by_mlx(own, info.shape):
                pairs.append(Pair(key, TensorInfo(info.dtype, own), info))
        elif not is_mlx:  # such as joined experts, which are single tensors in the weights
            uncopied[key] = f"{escape(name)} has another shape: {shape_text(info.shape)}"
    return replace(fit, missing=missing, mismatched=tuple(pairs), uncopied=uncopied)


def _differences(weights: Checkpoint, target: TargetSpec, path: str) -> Iterator[tuple[str, str]]:
    """Yield (key, one of ``DIFFERENT``) for the tensors of ``target`` that the weights in ``path`` do not fill."""
    options, request = Options.of(on_mismatch="init"), TransplantRequest(encoding=ENCODINGS[1])
    try:
        plan = plan_into(specs_of(path), target, options, request)
    except PlanError as error:
        if error.rule != NOTHING_LOADED:
            raise
        yield from ((key, "mismatch" if key in weights else "missing") for key in target.tensors)
        return
    try:
        yield from ((one.key, one.reason) for one in plan.steps if one.reason in DIFFERENT and not one.tied_to)
    finally:
        close_plan(plan)
