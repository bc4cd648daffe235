"""A note on a transplant that fills little of the destination and leaves most of the sources unused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ...util.text import count, escape
from ..plan.step import Step
from .options import Options
from .select import SourceView, TensorOrigin

__all__ = ["few_copied"]


def few_copied(
    views: Sequence[SourceView], steps: Sequence[Step], unexpected: Sequence[TensorOrigin], options: Options
) -> Iterator[str]:
    """Yield the note if most tensors of the destination are in no source and most tensors of the sources are not used.

    Both must be so: an encoder that is put into a model with a decoder is used as a whole, and a model whose head is
    left out fills most of the destination. Options that leave out a part are taken to say that this is wanted.
    """
    asked = options.include or options.exclude or options.reinit or options.drop_last
    if asked or any(view.src or view.dst or view.prefixes for view in views):
        return
    own = [step for step in steps if not step.tied_to]
    missing = [step for step in own if step.reason == "missing" and step.kind in ("initialised", "kept")]
    if 2 * len(missing) <= len(own) or 2 * len(unexpected) <= sum(len(view.tensors) for view in views):
        return
    name = escape(views[0].source.name) if len(views) == 1 else "the sources"
    hint = "; ckpt match proposes names" if _are_alike(missing, unexpected) else ""
    yield (
        f"only {len(own) - len(missing)} of {count(len(own), 'tensor')} of the destination come from {name}, where "
        f"{count(len(unexpected), 'tensor')} {'is' if len(unexpected) == 1 else 'are'} not used{hint}"
    )


def _are_alike(missing: Sequence[Step], unexpected: Sequence[TensorOrigin]) -> bool:
    """Return whether the shapes of most missing tensors are those of unused tensors, as they are or transposed."""
    wanted = Counter(tuple(sorted(step.shape)) for step in missing)
    there = Counter(tuple(sorted(origin.info.shape)) for origin in unexpected)
    return 2 * (wanted & there).total() >= len(missing)
