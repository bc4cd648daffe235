"""Drawn tensors that are written piece by piece are those that are drawn as a whole, beside the values of a source."""

from __future__ import annotations

import sys
import threading
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.destinations.torch_module import missing_draws, simple_draws
from ckptsurgeon.engine import output_parts
from ckptsurgeon.engine.compute import drawing
from ckptsurgeon.planning.target import Draw
from ckptsurgeon.tensors.info import TensorInfo

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


@pytest.mark.long
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

    monkeypatch.setattr(output_parts, "_import_torch", imported)
    monkeypatch.setattr(output_parts, "sys", _WithoutTorch())
    cs.apply(plan, "out.safetensors")
    assert seen == [("import", True)] * draws
    assert sys.getswitchinterval() == usual


class _WithoutTorch:
    """The module ``sys``, as if torch was not imported."""

    modules: ClassVar[dict[str, Any]] = {}
    getswitchinterval, setswitchinterval = staticmethod(sys.getswitchinterval), staticmethod(sys.setswitchinterval)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "had"), [((9, 40), (9, 24)), ((40, 24), (32, 24)), ((9, 40, 4), (5, 24, 4)), ((48,), (31,))]
)
def test_only_missing_values_are_drawn(
    shape: tuple[int, ...], had: tuple[int, ...], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the first values of the tensor's stream, whatever the size of the pieces; all others are 0."""
    info, draw = TensorInfo(dtype, shape), Draw("normal_", (0.0, 1.0))
    made = []
    for piece in (64, 1 << 20):
        monkeypatch.setattr(simple_draws, "PIECE", piece)
        monkeypatch.setattr(missing_draws, "PIECE", piece)
        pieces = list(missing_draws.drawn_pieces(draw, info, "a", 1, had))
        assert len(pieces) > 1 or piece > 64 or len(shape) == 1
        made.append(b"".join(pieces))
    assert made[0] == made[1]
    values = torch.frombuffer(bytearray(made[0]), dtype=getattr(torch, dtype)).reshape(shape)
    is_missing = torch.ones(shape, dtype=torch.bool)
    is_missing[tuple(map(slice, had))] = False
    assert torch.equal(values != 0, is_missing)
    first = tuple(map(slice, had[:1]))
    number = int(is_missing[first].sum())
    fill = simple_draws.filler(draw, "a", 1)
    for part, size in ((values[first][is_missing[first]], number), (values[had[0] :], int(is_missing.sum()) - number)):
        expected = torch.empty(size, dtype=values.dtype)
        fill(expected)
        assert torch.equal(part.flatten(), expected)


def test_resize_draws_only_what_the_source_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No random numbers are drawn in place of values of the source."""
    saved("src", GPT2, "GPT2LMHeadModel")
    drawn = list[int]()
    original = simple_draws.filler

    def filler(*args: Any) -> Any:
        fill = original(*args)

        def counted(values: torch.Tensor) -> None:
            drawn.append(values.numel())
            fill(values)

        return counted

    monkeypatch.setattr(missing_draws, "filler", filler)
    cs.apply(cs.resize("src", set={"n_inner": 160}), "out")
    before, after = (cs.open_checkpoint(one) for one in ("src", "out"))
    assert sum(drawn) > 0
    assert sum(drawn) == sum(after[key].numel - before[key].numel for key in before if ".c_fc." in key)
