"""Drawn tensors that are written piece by piece are those that are drawn as a whole, beside the values of a source."""

from __future__ import annotations

import sys
import threading
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import pytest

import ckptsurgeon as cs
from ckptsurgeon.destinations.torch_module import simple_draws
from ckptsurgeon.engine import parts
from ckptsurgeon.engine.compute import drawing

from ..helpers.transformers_models import GPT2, saved, write_config

WIDER = {**GPT2, "n_embd": 48, "n_head": 3, "vocab_size": 72}


def pieces_of_each(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Make pieces small, and return how many each tensor gets from now on."""
    original, seen = drawing._written, dict[str, int]()

    def written(drawn: Any) -> Any:
        sums, lost = original(drawn)
        seen[drawn.step.key] = len(sums)
        return sums, lost

    monkeypatch.setattr(simple_draws, "PIECE", 64)
    monkeypatch.setattr(drawing, "_written", written)
    return seen


@pytest.mark.costly
@pytest.mark.parametrize("dtype", ["keep", "bfloat16", "float8_e5m2", "float64"])
def test_pieces_make_the_whole(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved("src", GPT2, "GPT2LMHeadModel")
    config = str(write_config("dst/config.json", WIDER, "GPT2LMHeadModel"))
    options: dict[str, Any] = {"on_mismatch": "pad", "dtype": dtype, "seed": 3, "reinit": ["**.1.mlp.**"]}
    number = pieces_of_each(monkeypatch)
    cs.apply(cs.transplant("src", config, **options), "pieces.safetensors")
    assert (number["transformer.wte.weight"], number["transformer.h.1.mlp.c_fc.weight"]) == (72, 48)
    monkeypatch.setattr(drawing, "_is_in_pieces", lambda drawn: False)
    cs.apply(cs.transplant("src", config, **options), "whole.safetensors")
    assert Path("pieces.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()


def test_rows_of_another_vocabulary_are_drawn_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    saved("src", GPT2, "GPT2LMHeadModel")
    config = str(write_config("dst/config.json", {**GPT2, "vocab_size": 64}, "GPT2LMHeadModel"))
    for name, words in (("old.txt", range(50)), ("new.txt", range(63, -1, -1))):
        Path(name).write_text("".join(f"word{number}\n" for number in words))
    number = pieces_of_each(monkeypatch)
    options: dict[str, Any] = {"vocab": "old.txt:new.txt", "new_tokens": "init"}
    cs.apply(cs.transplant("src", config, **options), "pieces.safetensors")
    assert number == {"transformer.wte.weight": 16}
    monkeypatch.setattr(drawing, "_is_in_pieces", lambda drawn: False)
    cs.apply(cs.transplant("src", config, **options), "whole.safetensors")
    assert Path("pieces.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()


def test_the_largest_tensor_is_drawn_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, one thread may draw an output layer while all others have nothing left to do."""
    saved("src", GPT2, "GPT2LMHeadModel")
    config = str(write_config("dst/config.json", WIDER, "GPT2LMHeadModel"))
    original, sizes = drawing._written, list[int]()

    def written(drawn: Any) -> Any:
        sizes.append(prod(drawn.step.shape))
        return original(drawn)

    monkeypatch.setattr(drawing, "THREADS", 1)
    monkeypatch.setattr(drawing, "_written", written)
    cs.apply(cs.transplant("src", config, on_mismatch="pad"), "out.safetensors")
    assert len(set(sizes)) > 2
    assert sizes == sorted(sizes, reverse=True)


def test_an_error_in_a_piece_leaves_no_output(monkeypatch: pytest.MonkeyPatch) -> None:
    saved("src", GPT2, "GPT2LMHeadModel")
    config = str(write_config("dst/config.json", WIDER, "GPT2LMHeadModel"))
    plan = cs.transplant("src", config, on_mismatch="pad")

    def fails(*args: object) -> Any:
        raise MemoryError("no memory for a piece")

    monkeypatch.setattr(drawing, "laid_over", fails)
    with pytest.raises(MemoryError, match="no memory"):
        cs.apply(plan, "out.safetensors")
    assert not Path("out.safetensors").exists()


@pytest.mark.costly
@pytest.mark.parametrize("draws", [True, False])
def test_torch_is_imported_beside_computing_if_it_draws(draws: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads get turns meanwhile, as they have to."""
    saved("src", GPT2, "GPT2LMHeadModel")
    config = str(write_config("dst/config.json", WIDER if draws else GPT2, "GPT2LMHeadModel"))
    plan = cs.transplant("src", config, on_mismatch="pad", dtype="bfloat16")
    usual, seen = sys.getswitchinterval(), list[tuple[str, bool]]()

    def imported() -> None:
        seen.append((threading.current_thread().name, sys.getswitchinterval() < usual))

    monkeypatch.setattr(parts, "_import_torch", imported)
    monkeypatch.setattr(parts, "sys", _WithoutTorch())
    cs.apply(plan, "out.safetensors")
    assert seen == [("import", True)] * draws
    assert sys.getswitchinterval() == usual


class _WithoutTorch:
    """The module ``sys``, as if torch was not imported."""

    modules: ClassVar[dict[str, Any]] = {}
    getswitchinterval, setswitchinterval = staticmethod(sys.getswitchinterval), staticmethod(sys.setswitchinterval)
