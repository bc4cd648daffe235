"""Methods of the user's own: what they can do, and how their mistakes are said: as theirs, with file, line, key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs

from ...api.merge.test_merge import MODELS, write

Run = Callable[..., Any]

PLUGIN = '''
from ckptsurgeon import Slice, Tensors, merge_method

@merge_method("clipped", paper="ours", models=(2, None))
def clipped(tensors: Tensors, *, most: float = 1.0):
    """Return the sum of the models, clipped."""
    largest = max(tensors.map(lambda at: abs(at.models[0]).max())) * most
    return lambda at: sum(at.models).clip(-largest, largest)

@merge_method("whole", paper="ours", models=(2, 2))
def whole(tensors: Tensors):
    """Return the first model in the order of the second's magnitudes."""
    at = tensors.whole()
    return at.models[0].reshape(-1)[abs(at.models[1]).reshape(-1).argsort()]
'''


@pytest.mark.long
def test_a_method_of_the_user_s_own(ckpt: Run) -> None:
    first, second = write()
    Path("mine.py").write_text(PLUGIN)
    done = ckpt("merge", *MODELS, "-m", "clipped", "--plugin", "mine.py", "--param", "most=0.5", "-o", "out.pth")
    assert done.code == 0, done
    found = torch.load("out.pth")
    for key, value in found.items():
        most = first[key].abs().max() * 0.5
        assert torch.allclose(value, (first[key] + second[key]).clip(-most, most)), key
    assert ckpt("verify", "out.pth", "--plugin", "mine.py").code == 0
    assert "--plugin" in " ".join(ckpt("verify", "out.pth").out.split())
    assert "clipped" in ckpt("merge", "--list", "--plugin", "mine.py").out


def test_memory_and_a_plugin_without_effect_are_noted() -> None:
    write()
    Path("mine.py").write_text(PLUGIN)

    def notes(plan: cs.Plan) -> list[str]:
        found = cs.apply(plan, "out.pth", memory="512MB", plugin="mine.py", force=True).notes
        return [note for note in found if "has no effect" in note]

    plugin = "plugin has no effect: this plan uses none of its methods (clipped, whole)"
    memory = "memory has no effect: this plan computes no tensor that it limits"
    assert notes(cs.filter(MODELS[0])) == [memory, plugin]
    assert notes(cs.merge(MODELS, method="linear", weights=[1, 1])) == [plugin]
    assert notes(cs.merge(MODELS, method="whole", plugin="mine.py")) == []
    found = cs.apply(cs.merge(MODELS, method="linear", weights=[1, 1], plugin="mine.py"), "out.pth", force=True).notes
    assert plugin in found


def test_whole_tensors_beyond_the_memory_are_an_error(ckpt: Run) -> None:
    first, second = write()
    Path("mine.py").write_text(PLUGIN)
    cs.apply(cs.merge(MODELS, method="whole", plugin="mine.py"), "out.pth")
    found = torch.load("out.pth")["head.weight"]
    assert torch.equal(
        found.reshape(-1), first["head.weight"].reshape(-1)[second["head.weight"].abs().reshape(-1).argsort()]
    )
    write(large=torch.zeros(1000, 1000))
    done = ckpt("merge", *MODELS, "-m", "whole", "--plugin", "mine.py", "--memory", "17MB", "-o", "no.pth")
    assert done.code == 4
    assert "--memory" in done.err
    assert not Path("no.pth").exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no merge method"),
        ("raise OSError('no')", "fails"),
        (
            "from ckptsurgeon import merge_method\n@merge_method('x', paper='')\ndef x(t, *, y: list): ...",
            "of unknown type",
        ),
        (
            "from ckptsurgeon import merge_method\n@merge_method('linear', paper='')\ndef x(t): ...",
            "two merge methods named linear",
        ),
        (
            "from ckptsurgeon import PerModel, merge_method\n@merge_method('x', paper='')\n"
            "def x(t, *, weight: PerModel = 1.0): ...",
            "fails: the default of the parameter weight is 1.0, not a sequence of one value (line 2).",
        ),
        (
            "from ckptsurgeon import merge_method\n@merge_method('x', paper='')\ndef x(t, *, y: float = 'a'): ...",
            "fails: the parameter y is 'a', not a number (line 2).",
        ),
        ("def x(:", "fails"),
        ("\nraise ValueError('no')", "fails: ValueError: no (line 2)."),
        ("open('gone')", "fails: FileNotFoundError"),
        ("import sys\nsys.exit(0)", "fails: SystemExit: 0 (line 2)."),
        (
            "from ckptsurgeon import merge_method\n@merge_method('x', paper='')\ndef x(t, y: float): ...",
            "has a positional parameter",
        ),
        (
            "from ckptsurgeon import merge_method\n@merge_method('x', paper='')\ndef x(): ...",
            "has no argument for the tensors",
        ),
    ],
)
def test_a_plugin_that_is_none_says_why(text: str, why: str, ckpt: Run) -> None:
    write()
    Path("mine.py").write_text(text)
    done = ckpt("merge", *MODELS, "-m", "linear", "--plugin", "mine.py", "-n")
    assert done.code == 2
    assert why in " ".join(done.err.split())


HEAD = "from ckptsurgeon import merge_method\n\n@merge_method('x', paper='')\n"
RUN = {
    "raises": ("def x(t):\n    raise ValueError('no.')", "ValueError: no (line 5, method x, key embed.weight)."),
    "divides by zero": ("def x(t): return lambda at: at.models[0] * (1 / 0)", "ZeroDivisionError: division by zero (line 4, method x, key embed.weight)."),
    "has no such name": ("def x(t):\n    return lambda at: at.nothing", "no attribute 'nothing' (line 5, method x, key embed.weight)."),
    "looks and fails": ("def x(t):\n    return t.map(lambda at: {}['k'])", "KeyError: 'k' (line 5, method x,"),
    "opens what is not there": ("def x(t):\n    return lambda at: open('gone')", "FileNotFoundError: [Errno 2] No such file or directory: 'gone' (line 5,"),
    "gives nothing": ("def x(t): ...", "it returns None, not an array"),
    "gives nothing for a slice": ("def x(t): return lambda at: None", "it returns None, not an array of the slice's library (numpy or torch) (method x, key"),
    "gives another shape": ("def x(t): return lambda at: at.models[0][:1]", "it returns the shape (1, 4), not (6, 4) (method x, key embed.weight). Return a floating array"),
    "gives too little": ("def x(t): return t.whole().models[0][:1]", "it returns the shape (1, 4), not (6, 4) (method x, key embed.weight). Return a function"),
    "gives integers": ("def x(t): return lambda at: at.models[0].astype('int64')", "it returns int64, not float32 or float64 (method x,"),
    "gives complex numbers": ("def x(t): return lambda at: at.models[0] * 1j", "it returns complex64, not float32 or float64 (method x,"),
    "gives a tensor": ("def x(t):\n    import torch\n    return lambda at: torch.tensor(at.models[0])", "not an array of the slice's library"),
    "exits": ("def x(t):\n    import sys\n    sys.exit(0)", "SystemExit: 0 (line 6, method x,"),
    "exits with a slice": ("def x(t): return lambda at: exit(0)", "SystemExit: 0 (line 4, method x,"),
    "exits without a word": ("def x(t): raise SystemExit", "SystemExit (line 4, method x,"),
}  # fmt: skip


@pytest.mark.parametrize("case", RUN)
def test_what_fails_in_a_plugin_is_said_with_file_line_method_and_key(case: str, ckpt: Run) -> None:
    write()
    text, why = RUN[case]
    Path("mine.py").write_text(HEAD + text)
    done = ckpt("merge", *MODELS, "-m", "x", "--plugin", "mine.py", "-o", "out.pth")
    assert done.code == 2, done
    assert f"error: the plugin mine.py fails: {why}" in " ".join(done.err.split()) or why in done.err, done
    assert done.err.startswith("error: the plugin mine.py fails: ")
    assert not Path("out.pth").exists()


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_floating_numbers_of_other_sizes_are_cast(dtype: str) -> None:
    first, _ = write()
    Path("mine.py").write_text(HEAD + f"def x(t): return lambda at: at.models[0].astype('{dtype}')")
    cs.apply(cs.merge(MODELS, method="x", plugin="mine.py"), "out.pth")
    found = torch.load("out.pth")
    assert all(torch.equal(found[key], value.to(getattr(torch, dtype)).float()) for key, value in first.items())


def test_a_number_without_dimensions_is_an_array() -> None:
    """numpy gives scalars for arithmetic with arrays of none."""
    first, second = write(scale=torch.tensor(2.0))
    Path("mine.py").write_text(HEAD + "def x(t): return lambda at: at.models[0] + at.models[1]")
    cs.apply(cs.merge(MODELS, method="x", plugin="mine.py"), "out.pth")
    assert torch.load("out.pth")["scale"] == first["scale"] + second["scale"]


def test_what_is_wrong_with_a_model_is_not_a_plugins_fault(ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    Path("mine.py").write_text(HEAD + "def x(t):\n    t.map(lambda at: 0)\n    return lambda at: at.models[0]")

    def broken(*given: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("ckptsurgeon.engine.compute.merging.read_as", broken)
    done = ckpt("merge", *MODELS, "-m", "x", "--plugin", "mine.py", "-o", "out.pth")
    assert (done.code, "plugin" in done.err) == (3, False), done


def test_a_mistake_in_a_method_of_ours_is_a_bug(ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write()

    def broken(*given: Any) -> None:
        raise ValueError("no")

    monkeypatch.setattr("ckptsurgeon.methods.merge.linear.in_pieces", broken)
    done = ckpt("merge", *MODELS, "-m", "linear", "--weights", "1,1", "-o", "out.pth")
    assert done.code == 70, done
