"""What holds for every test of this folder."""

from __future__ import annotations

import pytest

from ..helpers.plain_models import held_plain

__all__ = ["held_plain"]


@pytest.fixture(autouse=True)
def _each_plain_model_is_searched(held_plain: None) -> None:
    """No model that is taken for plain has quantised tensors."""
