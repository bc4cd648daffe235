"""Makes the note on a transplant into a network of transformers with the experts of a layer in one tensor."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from ...planning.layouts.recognise import recognised
from ...planning.target import TargetSpec
from ...util.text import escape

__all__ = ["stacked_experts_notes"]

STACKED, PLAIN = "stacked", "transformers"
"""The layouts of networks with experts in the memory of transformers 5, and in the files that it writes."""
_OF_ONE = re.compile(r"\.experts\.[0-9]+\.")
_OF_ALL = re.compile(r"\.experts\.[a-z][a-z_]*$")


def stacked_experts_notes(target: TargetSpec, sources: Sequence[Collection[str]]) -> Iterator[str]:
    """Yield a note if a network of transformers has the experts of a layer in one tensor, and the sources do not.

    ``sources`` are the keys of each source as they are stored. Programs that read files of ``save_pretrained``, which
    have a tensor for each expert, do not find the keys of such an output.
    """
    if any(map(_OF_ONE.search, target.tensors)):
        return
    key = next(filter(_OF_ALL.search, target.tensors), "")
    if not key or any(_OF_ALL.search(one) for keys in sources for one in keys):
        return
    has_layout = any(layout.name == STACKED for _, layout in recognised(target.tensors))
    if not (has_layout or any(_OF_ONE.search(one) for keys in sources for one in keys)):
        return
    back = (
        f"ckpt convert OUT --layout {PLAIN} -o NAME/ gives each expert its own tensors"
        if has_layout
        else "save_pretrained of transformers gives each expert its own tensors"
    )
    yield (
        "the keys are those of the network that transformers 5 builds, with the experts of a layer in one tensor "
        f"({escape(key)}); {back}"
    )
