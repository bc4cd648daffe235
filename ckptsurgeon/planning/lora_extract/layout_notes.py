"""What is said of the way round that extracted weights lie, (out, in) or (in, out). Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...methods.lora.conv1d import is_named_conv1d
from ...tensors.info import TensorInfo
from ...util.text import count, listing
from .options import Extraction
from .sorting import Sorted, is_embedding, module_of
from .steps import lies_transposed

__all__ = ["lying_notes"]


def lying_notes(found: Sorted, tuned: Mapping[str, TensorInfo], asked: Extraction) -> Iterator[str]:
    """Yield which layers are (in, out) without being asked for, which are not though asked for, and which could be."""
    layers = [key for key in found.factored if len(tuned[key].shape) == 2 and not is_embedding(key)]
    lie = {key: lies_transposed(key, tuned[key].shape, asked) for key in layers}
    odd = [module_of(key) for key, lies in lie.items() if lies != asked.transposed]
    if asked.model and odd:
        kind = "Linear" if asked.transposed else "Conv1D"
        what = "--fan-in-fan-out is not for" if asked.transposed else "fan_in_fan_out is true, for"
        yield f"config.json says {asked.model.kind}, so {what} {count(len(odd), kind, kind)}: {listing(odd, where='')}"
    named = [module_of(key) for key, lies in lie.items() if is_named_conv1d(key) and not lies]
    if asked.model is None and named:
        yield (
            f"{count(len(named), 'module')} called as GPT-2's Conv1D are, taken as (out, in) without --fan-in-fan-out: "
            f"{listing(named, where='')}"
        )
