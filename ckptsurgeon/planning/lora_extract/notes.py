"""What is said of an adapter beside its plan: how weights lie, ranks that are cut, convolutions, what is left. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...tensors.info import TensorInfo
from ...util.text import count, listing
from .layout_notes import lying_notes
from .options import Extraction
from .sorting import Sorted, is_convolution, is_embedding, module_of
from .steps import rank_of

__all__ = ["extract_notes"]


def extract_notes(found: Sorted, tuned: Mapping[str, TensorInfo], asked: Extraction) -> Iterator[str]:
    """Yield what a user should know of an adapter."""
    yield from lying_notes(found, tuned, asked)
    if asked.embeddings and not any(map(is_embedding, found.factored)):
        yield "--embeddings changes nothing: nothing that differs has the name of an embedding"
    yield from _cut(found, tuned, asked)
    convolutions = [module_of(key) for key in found.factored if is_convolution(tuned[key].shape)]
    if convolutions:
        yield (
            f"{count(len(convolutions), 'convolution')}, taken as neither grouped nor transposed, which no tensor tells"
            f" and PEFT does not merge (leave those out with --exclude): {listing(convolutions, where='')}"
        )
    if found.left:
        hint = "; --save-modules saves what is no weight of a layer" if found.savable else ""
        left = listing(found.left, where="")
        many = "that differ are" if len(found.left) > 1 else "that differs is"
        yield f"{count(len(found.left), 'tensor')} {many} not in the adapter: {left}{hint}"


def _cut(found: Sorted, tuned: Mapping[str, TensorInfo], asked: Extraction) -> Iterator[str]:
    """Yield which modules have a smaller rank than was asked for, by their rank."""
    smaller: dict[int, list[str]] = {}
    for key in found.factored:
        rank = rank_of(tuned[key].shape, asked)
        if rank < asked.rank:
            smaller.setdefault(rank, []).append(module_of(key))
    for rank, modules in sorted(smaller.items()):
        yield (
            f"rank {asked.rank} is cut to {rank}, the smaller side, for {count(len(modules), 'module')}: "
            f"{listing(modules, where='')}"
        )
