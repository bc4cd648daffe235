"""Holds each state dict that a test opens against the search for codes: what is plain at first sight has none."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ckptsurgeon.checkpoint import checkpoint
from ckptsurgeon.tensors import find_codes
from ckptsurgeon.tensors.info import TensorInfo
from ckptsurgeon.tensors.quantised.search import search_codes

__all__ = ["held_plain"]


@pytest.fixture
def held_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test with a state dict that is taken for plain, although the search finds quantised tensors."""
    first_sight = find_codes.is_plain

    def held(tensors: Mapping[str, TensorInfo]) -> bool:
        plain = first_sight(tensors)
        assert not plain or not search_codes(tensors, dict, tuple)
        return plain

    for module in (checkpoint, find_codes):
        monkeypatch.setattr(module, "is_plain", held)
