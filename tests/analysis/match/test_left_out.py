"""Operations that cannot be done are left out alone; biases and stacks next to which others stay possible."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.match.operations.assemble import TRIES, Answer, assembled
from ckptsurgeon.analysis.match.operations.steps import JOIN, TURN, Change, Step
from ckptsurgeon.analysis.match.propose import propose
from ckptsurgeon.analysis.match.values import find
from ckptsurgeon.tensors.info import TensorInfo

from .test_values import Tensors, rows
from .test_values import check as written


def test_an_operation_that_cannot_be_done_leaves_the_others() -> None:
    source = {"f": TensorInfo("float32", (8, 4)), "q": TensorInfo("float32", (3,)), "t": TensorInfo("float32", (5, 6))}
    destination = {
        "q": TensorInfo("float32", (4, 4)),
        "k": TensorInfo("float32", (4, 4)),
        "u": TensorInfo("float32", (6, 5)),
    }
    bad = Change((Step("split", ("f",), ("q", "k"), JOIN),), {"q": "q", "k": "k"}, ("f",), "value")
    good = Change((Step("transpose", ("t",), ("t",), TURN),), {"t": "u"}, ("t",), "value")
    bare = propose("a", source, "b", destination)
    found = assembled(bare, Answer({}, {}, [bad, good]), source, destination)
    assert [dict(one.row) for one in found.operations] == [{"transpose": "t"}]
    assert found.rules == ("t=u",)
    assert [note for note in found.notes if note.startswith("an operation is left out: ")]


def test_operations_that_are_not_tried_are_said() -> None:
    bad = {f"f{number}": TensorInfo("float32", (8, 4)) for number in range(TRIES)}
    source = {**bad, "t": TensorInfo("float32", (5, 6))}
    destination = {
        **{f"{name}{number}": TensorInfo("float32", (4, 4)) for number in range(TRIES) for name in "qk"},
        "u": TensorInfo("float32", (6, 5)),
    }
    changes = [
        Change((Step("split", (key,), ("t", f"k{key[1:]}"), JOIN),), {"t": f"q{key[1:]}"}, (key,), "value")
        for key in bad
    ]
    good = Change((Step("transpose", ("t",), ("t",), TURN),), {"t": "u"}, ("t",), "value")
    found = assembled(propose("a", source, "b", destination), Answer({}, {}, [*changes, good]), source, destination)
    assert found.operations == ()
    said = f"no operations are proposed: {TRIES} cannot be carried out, so the others are not tried."
    assert found.notes.count(said) == 1


def test_an_order_of_columns_is_not_that_of_the_bias() -> None:
    weight, fused, order = torch.randn(16, 32), torch.randn(48, 32), torch.randperm(32)
    here = {"lin.weight": weight, "lin.bias": torch.zeros(16), "f.weight": fused}
    there = {
        "lin.weight": weight[:, order],
        "lin.bias": torch.zeros(16),
        "q.weight": fused[:16],
        "k.weight": fused[16:],
    }
    assert {next(iter(row)) for row in rows(written(here, there))} == {"split", "take"}


def stacks(*, named_like_a_part: bool) -> tuple[Tensors, Tensors]:
    gate, up = torch.randn(4, 8, 16), torch.randn(4, 8, 16)
    other = {"gate" if named_like_a_part else "other": torch.randn(4, 8, 16)}
    return {**other, "gate_up": torch.cat([gate, up], 1)}, {"gate": gate, "up": up}


def test_a_part_of_a_stack_has_the_name_of_a_stack_that_is_not_used() -> None:
    here, there = stacks(named_like_a_part=True)
    save_file(here, "here.safetensors")
    save_file(there, "there.safetensors")
    found = cs.match("here.safetensors", "there.safetensors", values=True)
    assert found.complete
    assert rows(found) == [{"split": "gate_up", "into": ["new.gate", "up"], "dim": 1}]


def test_networks_are_not_called_different_if_an_operation_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = torch.randn(48, 32)
    save_file({"f.weight": fused}, "here.safetensors")
    save_file({"q.weight": fused[:16].clone(), "k.weight": fused[16:].clone()}, "there.safetensors")
    original = find.relations

    def clashing(*given: object) -> list[Change]:
        step = Step("split", ("f.weight",), ("x", "x"), JOIN)
        return [Change((step,), one.results, one.sources, one.why) for one in original(*given)]  # type: ignore[arg-type]

    monkeypatch.setattr(find, "relations", clashing)
    found = cs.match("here.safetensors", "there.safetensors", values=True)
    assert found.notes[0] == "nothing agrees by value: nothing is proposed"
    assert any("left out" in note for note in found.notes)
