"""Finds the missing and unexpected keys that a class of transformers ignores when it loads a checkpoint."""

from __future__ import annotations

from typing import Any

from .cached_answers import cached_answer
from .stock_code import versions

__all__ = ["ignored_keys"]

FORMAT = 1
"""The version of the format of the cache's entries: increase it if the format changes."""


def ignored_keys(name: str, built: str = "", *, is_missing: bool = False) -> list[str]:
    """Return patterns of the missing and unexpected keys that the class ``name`` of transformers ignores when loading.

    If ``is_missing`` is true, the patterns of unexpected keys are left out. The last pattern always matches
    ``rotary_emb.inv_freq``, a buffer that old models have. The patterns are cached, since importing the class takes
    seconds. ``built`` is the ``cache_key`` of a destination whose model has this class, or ''. If it is '', the
    patterns are not cached once this process has imported transformers, because its classes may have been changed.
    """
    known: Any = built or versions()
    asked = {"of": "ignored keys", "format": FORMAT, "class": name, "known": known} if known else {}
    missing, unexpected = cached_answer(asked, lambda: _patterns(name), list, _read_patterns)
    return [*missing, *(() if is_missing else unexpected), r"rotary_emb\.inv_freq$"]


def _patterns(name: str) -> list[list[str]]:
    """Return two lists of patterns: for keys that a checkpoint may lack, and for additional keys that it may have."""
    import transformers

    made = getattr(transformers, name, None)
    fields = ("_keys_to_ignore_on_load_missing", "_keys_to_ignore_on_load_unexpected")
    return [list(getattr(made, field, None) or ()) for field in fields]


def _read_patterns(kept: Any) -> list[list[str]]:
    missing, unexpected = kept
    return [list(map(str, missing)), list(map(str, unexpected))]
