"""Checks that the model card (README.md) has front matter with a license, which the hub asks for.

https://huggingface.co/docs/hub/model-cards#model-card-metadata
"""

from __future__ import annotations

from collections.abc import Iterator

from ....util.text import escape
from ..check import Check
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]

CARD = "README.md"


def _run(subject: Subject) -> Iterator[Found]:
    card = subject.card
    if card is None or not card.is_there:
        todo = f"Write {CARD} with license: in its front matter before you ship the model, or use --skip model-card."
        yield Found(Status.WARN, f"the folder has no model card ({CARD})", todo, file=CARD)
        return
    if card.fault:
        said = f"the front matter of {CARD} cannot be read: {escape(card.fault, 200)}"
        yield Found(Status.FAIL, said, "Correct it: the hub refuses such a file.", file=CARD)
        return
    fields = card.fields or {}
    license = fields.get("license")
    if not license:
        said = f"{CARD} has no license in its front matter"
        yield Found(Status.WARN, said, "Add license: with an identifier of the hub, such as apache-2.0.", file=CARD)
    elif license == "other" and not fields.get("license_name"):
        said = f"{CARD} says license: other, but no license_name"
        yield Found(Status.WARN, said, "Add license_name and license_link.", file=CARD)
    if subject.adapter is not None and not fields.get("base_model"):
        said = f"the front matter of {CARD} has no base_model, although the model is an adapter"
        yield Found(Status.WARN, said, "Add base_model: with the base's name on the hub.", file=CARD)


def _against(subject: Subject) -> str:
    return "" if subject.card is not None else subject.fault or "it is not a model folder"


CHECK = Check("model-card", "the model card has a license", _run, _against)
