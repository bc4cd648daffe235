"""TorchScript archives that hold no module, or one without end."""

from __future__ import annotations

from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.formats.base import limits

from ..promises.clauses import NEVER_RUN, SCRIPT
from .bombs import long_script_names, named, script, scripted, tensor, text, zipped
from .case import Case, Refusal, broken, each, unsafe, written
from .holding import held

FILES: dict[str, tuple[Refusal, bytes]] = {
    "no module": (broken("torchscript"), script(b"N")),
    "a mapping": (broken("torchscript"), script(b"}" + text("w") + tensor() + b"s")),
    "an object of another class": (broken("torchscript"), script(named("torch.nn", "Linear") + b")\x81}" + text("w") + tensor() + b"sb")),
    "a module without tensors": (broken("no state dict"), script(scripted(text("a") + b"N"))),
    "a module that holds itself": (unsafe("module tree"), script(named("__torch__", "Net") + b")\x81q\x00}" + text("a") + b"h\x00sb")),
    "a key of ten thousand characters": (broken("key length"), script(scripted(text("k" * 10_000) + tensor()))),
    "keys that are too long together": (broken("key length"), long_script_names(9000, 1)),
    "a malformed pickle": (broken("pickle"), script(b"(N")),
    "a tensor beyond its storage": (broken("tensor beyond storage"), script(scripted(text("w") + tensor(b"K\x07\x85")))),
    "a tensor over no record": (broken("missing record"), zipped(scripted(text("w") + tensor()) + b".", **{"constants.pkl": b"N."})),
}  # fmt: skip

PAYLOADS: dict[str, bytes] = {
    "a call in the module": script(b"cos\nsystem\n(S'touch canary'\ntR"),
    "an instruction from Python 2 in the module": script(b"(S'touch canary'\nios\nsystem\n"),
    "an evaluation in the module": script(b'c__builtin__\neval\n(S\'open("canary", "w")\'\ntR'),
}


@each([Case(name, SCRIPT, refusal, written("x.pt", data)) for name, (refusal, data) in FILES.items()])
def test_an_archive_without_a_sound_module_is_refused(case: Case, ckpt: Any) -> None:
    held(case, ckpt)


@each([Case(name, NEVER_RUN, broken("torchscript"), written("x.pt", data)) for name, data in PAYLOADS.items()])
def test_a_payload_is_no_module(case: Case, ckpt: Any) -> None:
    held(case, ckpt)


PACKED = named("__torch__.torch.classes.quantized", "LinearPackedParamsBase") + b")\x81"
"""An object of torch's C++ class for packed weights; its state follows."""


def test_a_packed_object_that_is_its_own_state_has_no_tensors() -> None:
    path = written("x.pt", script(scripted(text("w") + tensor() + text("p") + PACKED + b"q\x05h\x05b")))()
    with cs.open_checkpoint(path) as found:
        assert list(found) == ["w"]


def test_packed_objects_that_share_tensors_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = b"]q\x06(" + tensor() * 50 + b"e0"
    entries = b"".join(text(f"p{i}") + PACKED + b"h\x06\x85b" for i in range(50))
    path = written("x.pt", script(shared + scripted(entries)))()
    with cs.open_checkpoint(path) as found:
        assert len(found) == 50  # each refers to the same six numbers
    monkeypatch.setattr(limits, "TREE_TENSORS", 1000)
    with pytest.raises(cs.UnsafeError) as caught:
        cs.open_checkpoint(path)
    assert caught.value.rule == "module tree"
