"""Every tensor that was loaded equals its source, and what is tied still is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...api.verify import verify
from ...checkpoint.opening import open_checkpoint
from ...destinations.torch_module.parts import own_part
from ...planning.plan.plan import Plan
from ...util.text import count, escape, listing
from ..job.init import InitCheckpoint
from ..job.job import state_tensors
from ..optim.digests import bits
from ._check import FAIL, NOT_RUN, PASS, Check

__all__ = ["loaded_tensors", "ties_kept"]

LOADED = "loaded tensors equal their source"


def loaded_tensors(model: nn.Module, init: InitCheckpoint | None, plan: Plan | None) -> Check:
    """Hold the model against its init, bit for bit, and the init against its own sources by its recipe."""
    if init is None or plan is None:
        return Check(LOADED, NOT_RUN, "no init: every tensor is drawn")
    tensors = state_tensors(model)
    wrong = _differing(tensors, init, plan)
    if wrong:
        return Check(
            LOADED, FAIL, f"{count(len(wrong), 'tensor')} of {len(tensors)} differ: {listing(wrong, where='')}"
        )
    if init.recipe is None:
        return Check(LOADED, PASS, f"{len(plan.steps)} of {len(tensors)}, bit for bit; its own sources are not known")
    found = verify(init.path)
    if not found.ok:
        first = found.failed[0]
        return Check(
            LOADED, FAIL, f"the init is not what its recipe says: {escape(first.key or init.path)} {first.why}"
        )
    from_source = found.checked - found.drawn
    gone = len(found.not_compared or {})
    rest = f"; {gone} of them by checksum, their source is gone" if gone else ""
    return Check(LOADED, PASS, f"{from_source} of {from_source}, bit for bit{rest}")


def _differing(tensors: Mapping[str, Tensor], init: InitCheckpoint, plan: Plan) -> list[str]:
    wrong = []
    planned = {step.key: step for step in plan.steps}
    with open_checkpoint(init.path) as opened:
        checkpoint = opened.unwrapped(destination=list(tensors))
        for key, tensor in tensors.items():
            step = planned.get(key)
            if step is None or step.source_key not in checkpoint:
                wrong.append(key)
                continue
            wanted = checkpoint.tensor(step.source_key).to(tensor.dtype).reshape(tensor.shape)
            if not torch.equal(bits(tensor), bits(wanted)):
                wrong.append(key)
    return wrong


def ties_kept(model: nn.Module, ties: Mapping[str, str]) -> Check:
    """Tied tensors are one tensor, as the configuration has them."""
    name = "ties are still ties"
    if not ties:
        return Check(name, NOT_RUN, "the model ties nothing")
    tensors = state_tensors(model)
    loose = [key for key, owner in ties.items() if _place(tensors[key]) != _place(tensors[owner])]
    if loose:
        return Check(name, FAIL, f"{listing(loose, where='')} went their own way")
    return Check(name, PASS, f"{len(ties)} of {len(ties)}")


def _place(tensor: Tensor) -> int:
    return own_part(tensor).data_ptr()
