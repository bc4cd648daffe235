"""A note on a tokenizer.json for a model like BERT that adds no special tokens at the ends of a text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ....util.text import escape
from ..documents import TOKENIZER
from ..folder import ModelFolder
from .spelling import Spelling, steps_in
from .tokenizer_files import WHOLE, brief_token, named_tokens, object_in

__all__ = ["OF_ENCODERS", "around_notes"]

OF_ENCODERS = frozenset((
    "albert", "bert", "big_bird", "camembert", "convbert", "deberta", "deberta-v2", "distilbert", "electra", "ernie",
    "funnel", "layoutlm", "longformer", "megatron-bert", "mobilebert", "modernbert", "mpnet", "nystromformer",
    "rembert", "roberta", "roformer", "splinter", "squeezebert", "xlm-roberta", "xlm-roberta-xl",
))  # fmt: skip
"""Model types that were trained with a token before each text and one after it."""
ROLES = (("cls_token", "[CLS]"), ("sep_token", "[SEP]"))


def around_notes(folder: ModelFolder, spelling: Spelling) -> Iterator[str]:
    """Yield a note if a tokeniser for a model like BERT has tokens for both ends of a text but does not add them."""
    head, said = folder.tokenizer_head, object_in(folder, TOKENIZER)
    kind = folder.config.get("model_type")
    if kind not in OF_ENCODERS or said.get("auto_map") or "post_processor" not in head:
        return
    names = named_tokens(folder)
    ends = [token for role, usual in ROLES if (token := names.get(role, usual)) in spelling.tokens]
    if len(ends) == len(ROLES) and _is_bare(head["post_processor"]):
        both = " and ".join(map(brief_token, ends))
        yield f"{WHOLE} adds no {both} to a text (post_processor), but {escape(str(kind))} models expect them"


def _is_bare(processor: Any) -> bool:
    """Return whether a post-processor adds no tokens: it is null, or a template that is only the text.

    transformers writes such a template if there is no post-processor.
    """
    steps = list(steps_in(processor))
    return all(one.get("type") == "TemplateProcessing" and not one.get("special_tokens") for one in steps)
