"""Default models of transformers get no notes: some types here, all of them by ``make architectures``."""

from __future__ import annotations

import pytest

from .architectures import built, classes, notes


@pytest.mark.long
@pytest.mark.parametrize(
    "kind", ["llama", "mixtral", "gpt_oss", "deepseek_v3", "jamba", "qwen3_next", "gemma3_text", "t5", "longcat_flash"]
)
def test_a_default_model_gets_no_note(kind: str) -> None:
    found = list(built(classes()[kind][:1]))
    assert found
    assert not any("fault" in one for one in found)
    assert not [note for one in found for note in notes(one)]
