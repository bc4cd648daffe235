"""Keys of the checkpoint that a line names are completed, whatever they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from ckptsurgeon.cli.completion.installing import SHELLS
from ckptsurgeon.cli.completion.values import MAX_CANDIDATES, segments, shorten_to_beginnings

from .asked import Run, told


@pytest.mark.usefixtures("nets")
def test_keys_come_module_by_module() -> None:
    assert told("inspect src.pth --include ") == ("words", ["ctc", "encoder", "scale"])
    assert told("inspect src.pth --include enc") == ("partial", ["encoder"])
    assert told("inspect src.pth --include encoder") == ("words", ["encoder", "encoder.layers"])
    assert told("inspect src.pth --include encoder.layers.")[1] == [f"encoder.layers.{i}" for i in (0, 1, 2, 10)]
    assert told("inspect src.pth --include encoder.layers.1.w") == ("words", ["encoder.layers.1.weight"])
    assert told("inspect src.pth --include=sc") == ("words", ["--include=scale"])
    assert told("inspect src.pth --include sc") == ("words", ["scale"])
    assert told("inspect src.pth --include x") == ("words", [])


@pytest.mark.usefixtures("nets")
def test_keys_are_those_of_the_side_that_an_option_speaks_of() -> None:
    for option in ("--include", "--exclude"):
        assert told(f"transplant src.pth dst.pth {option} ")[1] == ["ctc", "encoder", "scale"]
    for option in ("--reinit", "--require", "--explain", "--vocab-keys"):
        assert told(f"transplant src.pth dst.pth {option} ")[1] == ["body", "head"]
    assert told("transplant src.pth dst.pth --on-mismatch h") == ("partial", ["head"])
    assert told("transplant dst.pth --source src.pth --include c") == ("partial", ["ctc"])
    assert told("transplant dst.pth --source src.pth:encoder:body --reinit h") == ("partial", ["head"])


@pytest.mark.usefixtures("nets")
def test_a_rule_goes_on_behind_its_source() -> None:
    assert told("rename src.pth --map sca") == ("partial", ["scale="])
    assert told("rename src.pth --map enc") == ("partial", ["encoder"])
    assert told("rename src.pth --map scale=") == ("words", [])


@pytest.mark.usefixtures("nets")
def test_roots_and_wrappers() -> None:
    assert told("inspect two.pth --root ") == ("words", ["model", "model_ema"])
    assert told("inspect two.pth --include ")[1] == ["a"]
    assert told("inspect two.pth --root model_ema --include ")[1] == ["b"]
    assert told("filter two.pth --include ")[1] == ["module"]
    assert told("filter two.pth --unwrap --include ")[1] == ["a"]


def test_a_configuration_is_never_loaded() -> None:
    Path("dst.yaml").write_text("model: {_target_: evil.Net}")
    Path("evil.py").write_text("open('ran', 'w')")
    torch.save({"a": torch.ones(1)}, "src.pth")
    assert told("transplant src.pth dst.yaml --reinit ") == ("words", [])
    assert told("inspect dst.yaml --include ") == ("words", [])
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "name",
    [
        "$(touch ran)", "`touch ran`", "a b", "a'b", 'a"b', "a;b", "a|b", "a&b", "a>b", "a\nb", "a\tb", "\x1b[31m", "*",
        "a*", "?", "[a]", "{a,b}", "a\\b", "~", "!x", "#x", "a=b", "re:a", "\u202ea", "\u200b", "", "-o", "--force", "(a)",
        "\ud800", "%1", "^a", "$HOME", "\x00",
    ],
    ids=ascii,
)  # fmt: skip
def test_a_key_that_means_more_than_itself_is_left_out(name: str) -> None:
    torch.save(
        {name: torch.ones(1), f"{name}.b": torch.ones(1), f"a.{name}": torch.ones(1), "a.w": torch.ones(1)}, "x.pth"
    )
    for shell in SHELLS:
        assert told("filter x.pth --include ", shell) == ("partial", ["a", "a."] if shell == "fish" else ["a"])
        assert told("filter x.pth --include a.", shell) == ("words", ["a.w"])


def test_keys_of_every_script_and_of_tensorflow_are_offered() -> None:
    torch.save({"wärme.größe": torch.ones(1), "h1/Adam_1": torch.ones(1), "x-y": torch.ones(1)}, "x.pth")
    assert told("inspect x.pth --include ")[1] == ["h1/Adam_1", "wärme", "x-y"]


@pytest.mark.long
def test_ninety_thousand_keys_do_not_spill() -> None:
    flat = segments([f"k{i}" for i in range(92_000)], "k1")
    found = shorten_to_beginnings(list(flat))
    assert 10 < len(found) <= MAX_CANDIDATES
    assert {key for key in flat if not key.startswith(tuple(found))} == set()
    assert len(segments([f"m{i % 7}.k{i}" for i in range(92_000)], "")) == 7


@pytest.fixture
def unreadable() -> list[str]:
    """What holds no keys, would block or never end, or lies elsewhere."""
    Path("broken.pth").write_bytes(b"PK\x03\x04 and no more")
    Path("empty.pth").touch()
    Path("folder").mkdir()
    os.mkfifo("pipe.pth")
    addresses = ["https://127.0.0.1:9/x.pth", "hf://org/x", "memory://x.pth"]
    return ["broken.pth", "empty.pth", "folder", "pipe.pth", "gone.pth", "/dev/zero", *addresses]


def test_what_cannot_be_read_is_passed_over(unreadable: list[str], ckpt_asked: Run) -> None:
    for name in unreadable:
        assert told(f"inspect {name} --include a") == ("words", []), name
        assert told(f"transplant {name} {name} --on-mismatch pa") == ("words", ["pad", "patch"]), name
    done = ckpt_asked("zsh", "ckpt inspect broken.pth --root a")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
