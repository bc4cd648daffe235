"""Checks that the network of an output can run, with tensors that have shapes but no values."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError, PlanError
from ...planning.target import TargetSpec
from ...storage.cached_documents import cached_document, document_key, keep_document
from ...util.text import escape, listing

if TYPE_CHECKING:
    from torch import nn

__all__ = ["SHAPING", "check_together"]

SHAPING = ("width", "heads", "kv_heads")
"""The roles of the fields after whose change layers may no longer fit together."""
_HINT = (
    "In some networks, the number of heads times the size of a head must be the width: change the width and the "
    "numbers of heads in the same command and by the same factor, or change neither."
)
_FITS = {"fits": True}


def check_together(first: TargetSpec, last: TargetSpec, fields: Sequence[str]) -> None:
    """Raise PlanError if the layers of ``last`` do not fit together, so that the network cannot run.

    This is found out by running the network without values. If ``first``, the network of the source, does not run
    without values either, nothing is raised. ``fields`` are the fields that change. A result without an error is
    recorded in the user's cache, so that the next call need not run the network. It is not recorded if one of the
    networks has no cache key (``cache_key``).
    """
    if first.build is None or last.build is None:
        return
    keys = {"first": first.cache_key, "last": last.cache_key}
    key = document_key({"of": "fits", **keys}) if all(keys.values()) else ""
    if cached_document(key) == _FITS:
        return
    said = _failure(last)
    if said and not _failure(first):
        raise PlanError(
            f"{listing(fields, where='')}: the layers of the network would not fit together: {said}.", hint=_HINT
        )
    if key:
        keep_document(key, _FITS)


def _failure(target: TargetSpec) -> str:
    """Return the module that raises an exception in a run without values, and the exception's text; "" if none."""
    import torch

    from ..prove.inputs import drawn_inputs
    from ..prove.opening import built_module

    assert target.build is not None
    running = [""]
    try:
        module = built_module(target.build)
        _name_modules(module, running)
        arguments = drawn_inputs(module, 0).arguments_for(module)
        with _without_values(), torch.no_grad():
            module.to("meta", torch.bfloat16)(**_on_meta(arguments))  # some kernels on meta refuse float32
    except CheckpointError:  # ckpt cannot make inputs for this network
        return ""
    except Exception as error:  # a network is foreign code, which may raise anything
        said = next(iter(str(error).splitlines()), "") or type(error).__name__
        where = f"{escape(running[-1])}: " if running[-1] else ""
        return where + escape(said, 300).rstrip(".")
    return ""


def _name_modules(model: nn.Module, running: list[str]) -> None:
    """Make each module add its name to ``running`` while it runs."""
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: running.append(name))
        module.register_forward_hook(lambda *_: running.pop() and None)


@contextmanager
def _without_values() -> Iterator[None]:
    """During the block, torch computes shapes only; neither torch nor transformers logs or downloads anything."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from ...destinations.hf.model import offline

    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        with offline(), FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        logger.disabled = before


def _on_meta(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of ``forward`` whose tensors have no values; floating-point tensors become bfloat16."""
    import torch

    return {
        name: torch.empty(
            value.shape, dtype=torch.bfloat16 if value.is_floating_point() else value.dtype, device="meta"
        )
        if isinstance(value, torch.Tensor)
        else value
        for name, value in arguments.items()
    }
