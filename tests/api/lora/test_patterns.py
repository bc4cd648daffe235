"""``rank_pattern`` and ``alpha_pattern``: read as PEFT reads them, and however long they are."""

from __future__ import annotations

import random
import re

import pytest

import ckptsurgeon as cs
from ckptsurgeon.methods.lora import targets as patterns
from ckptsurgeon.methods.lora.config import parse_config
from ckptsurgeon.methods.lora.targets import ENDS, PatternTable

PIECES = ["q", "k", "a", ".", r"\.", "1", "^", "[qk]", ".*", "\n", "\\\n", r"\d", "_"]


def first(table: dict[str, int], module: str) -> int | None:
    """As PEFT looks."""
    return next((value for text, value in table.items() if re.match(ENDS.format(text), module)), None)


@pytest.mark.long
def test_the_first_pattern_counts_as_in_peft() -> None:
    draw = random.Random(0)
    found = set()
    for _ in range(3000):
        texts = ["".join(draw.choices(PIECES, k=draw.randint(1, 4))) for _ in range(6)]
        table = {text: i for i, text in enumerate(texts) if len(re.findall(r"\*", text)) < 3}
        module = "".join(draw.choices(["q", "k", "a", ".", "1", "_", "\n"], k=draw.randint(1, 6)))
        said = PatternTable(table).of(module, None)
        assert said == first(table, module), (table, module)
        found.add(said)
    assert len(found) > 4


@pytest.mark.long
def test_plain_names_are_looked_up_and_never_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {f"^{re.escape(f'model.layers.{i}.q')}": 3 for i in range(100_000)} | {"v_proj": 5}
    monkeypatch.setattr(patterns, "EXPRESSIONS", 0)
    config = parse_config({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": rows}, "a")
    assert [config.rank_of(f"model.layers.{i}.q") for i in (0, 99_999, 100_000)] == [3, 3, 2]
    assert config.rank_of("model.layers.0.v_proj") == 5


@pytest.mark.long
def test_too_many_expressions_are_an_error() -> None:
    rows = {f"layers.{i}.q": 3 for i in range(patterns.EXPRESSIONS + 1)}
    with pytest.raises(cs.ConfigError, match="alpha_pattern has more than 10000 patterns that are not plain names"):
        parse_config({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": rows}, "a")


def test_tries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "TRIES", 100)
    table = PatternTable({f"layers.{i}.q": 3 for i in range(10)})
    assert [table.of("x", 2) for _ in range(10)] == [2] * 10
    with pytest.raises(cs.ConfigError, match="too many patterns"):
        table.of("x", 2)
