"""Verify: what is no failure and is said all the same, since a forger could hide behind it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.verify import verify as relabelled
from ckptsurgeon.api.verify import _without_dots

from ...helpers.coded_matrices import SETTINGS, gptq
from ...helpers.coded_models import coded_tensors, write_model
from ...helpers.declare import declare
from ...helpers.four_bits import FOUR_BITS
from ...helpers.hub.server import Hub
from .test_verification import reseal

Run = Callable[..., Any]

SHAPES = {"kept": (6, 6), "new": (64, 40), "bias": (40,), "scale": ()}


@pytest.fixture(autouse=True)
def inputs() -> None:
    torch.manual_seed(0)
    torch.save(
        {
            "kept": torch.randn(6, 6),
            "secret": torch.randn(64, 40),
            "other": torch.randn(64, 40),
            "zeros": torch.zeros(40),
            "one": torch.tensor(1.0),
        },
        "src.pth",
    )
    declare("dst.yaml", SHAPES)
    cs.apply(cs.transplant("src.pth", "dst.yaml"), "out.safetensors")


def source_value(key: str) -> torch.Tensor:
    return cs.open_checkpoint("src.pth").tensor(key)


def test_a_tensor_of_a_source_that_is_called_drawn_is_said() -> None:
    reseal("out.safetensors", "new", source_value("secret"))
    found = cs.verify("out.safetensors")
    assert found.ok
    why = f"was drawn at random according to the recipe, but equals secret of {Path('src.pth').absolute()}"
    assert [(note.name, note.why) for note in found.notes] == [("new", why)]
    assert found.to_json()["notes"] == [{"name": "new", "why": why}]


def test_tensors_of_one_value_are_nobodys() -> None:
    """The drawn bias is zero as the source's is; a number alone has one value."""
    reseal("out.safetensors", "scale", torch.tensor(1.0))
    assert cs.verify("out.safetensors").notes == ()


def test_a_tensor_that_only_begins_like_one_of_a_source_is_another() -> None:
    almost = source_value("secret")
    almost[-1, -1] += 1
    reseal("out.safetensors", "new", almost)
    assert cs.verify("out.safetensors").notes == ()


def test_a_source_that_is_gone_gives_no_note() -> None:
    reseal("out.safetensors", "new", source_value("secret"))
    Path("src.pth").rename("gone.pth")
    assert cs.verify("out.safetensors").notes == ()
    assert [note.name for note in cs.verify("out.safetensors", sources={"src.pth": "gone.pth"}).notes] == ["new"]


def test_it_is_shown_and_is_no_failure(ckpt: Run) -> None:
    reseal("out.safetensors", "new", source_value("secret"))
    found = ckpt("verify", "out.safetensors")
    assert found.code == 0
    assert "  NOTE  new  was drawn at random according to the recipe, but equals secret of" in found.out


def test_tensors_that_begin_alike_are_read_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty drawn and thirty of the source with one beginning: 60 contents are read, not 900 pairs compared."""
    number = 30
    tensors = {f"s{i}": torch.arange(2000.0) for i in range(number)}
    for i, tensor in enumerate(tensors.values()):
        tensor[-1] = -i
    torch.save({"kept": torch.randn(6, 6), **tensors}, "many.pth")
    declare("many.yaml", {"kept": (6, 6), **{f"d{i}": (2000,) for i in range(number)}})
    cs.apply(cs.transplant("many.pth", "many.yaml"), "many.safetensors")
    for i in range(number):
        values = torch.arange(2000.0)
        values[-1] = number + i if i else -7
        reseal("many.safetensors", f"d{i}", values)
    read: list[int] = []
    content = relabelled._content

    def counted(*of: Any) -> bytes | None:
        read.append(1)
        return content(*of)

    monkeypatch.setattr(relabelled, "_content", counted)
    found = cs.verify("many.safetensors")
    assert [note.name for note in found.notes] == ["d0"]
    assert "equals s7 of" in found.notes[0].why
    assert len(read) == 2 * number


def test_of_sources_far_away_nothing_is_fetched_for_it(hub: Hub) -> None:
    big = torch.randn(1000, 1000)
    save_file({"kept": torch.randn(6, 6), "secret": big}, "far.safetensors")
    declare("far.yaml", {"kept": (6, 6), "new": (1000, 1000)})
    cs.apply(cs.transplant("far.safetensors", "far.yaml"), "drawn.safetensors")
    reseal("drawn.safetensors", "new", big)
    assert [note.name for note in cs.verify("drawn.safetensors").notes] == ["new"]
    url = hub.file("far.safetensors", Path("far.safetensors").read_bytes())
    found = cs.verify("drawn.safetensors", sources={"far.safetensors": url})
    assert (found.compared, found.not_compared, found.notes) == (1, {}, ())
    assert hub.sent < 400_000


UNKNOWN = "in the folder, but not in the recipe"


def folder_output(kind: str) -> str:
    """A folder of one of the three kinds, with companions."""
    Path("model").mkdir()
    save_file({f"t{i}": torch.randn(40) for i in range(6)}, "model/model.safetensors", {"format": "pt"})
    Path("model/config.json").write_text('{"model_type": "bert", "num_hidden_layers": 2}')
    options: dict[str, Any] = {"shards": {"max_shard_size": "400B"}, "dcp": {"to": "dcp"}, "one": {}}[kind]
    cs.apply(cs.convert("model"), "out/", **options)
    return "out"


@pytest.mark.costly
@pytest.mark.parametrize("kind", ["one", "shards", "dcp"])
def test_files_that_the_recipe_does_not_know_are_listed(kind: str) -> None:
    output = Path(folder_output(kind))
    assert cs.verify(output).notes == ()
    (output / "modeling_evil.py").write_text("raise SystemExit")
    (output / "other.npz").write_bytes(b"")
    (output / "nowhere").symlink_to("/does/not/exist")
    (output / "sub").mkdir()
    (output / "sub" / "deep.py").write_text("")
    (output / ".hidden").write_text("")
    os.mkfifo(output / "waits")
    found = cs.verify(output)
    assert found.ok
    names = [".hidden", "modeling_evil.py", "nowhere", "other.npz", "sub/", "waits"]
    assert [(note.name, note.why) for note in found.notes] == [(name, UNKNOWN) for name in names]


def test_the_index_that_is_named_is_that_of_a_folder() -> None:
    output = folder_output("shards")
    Path(output, "more.py").write_text("")
    assert [note.name for note in cs.verify(f"{output}/model.safetensors.index.json").notes] == ["more.py"]


def test_a_file_that_was_written_alone_has_no_folder() -> None:
    assert cs.verify("out.safetensors").notes == ()
    assert Path("src.pth").exists()
    Path("only").mkdir()
    Path("out.safetensors").rename("only/out.safetensors")
    Path("only/notes.txt").write_text("")
    assert cs.verify("only").notes == ()


def test_a_few_names_are_shown_and_all_are_in_json(ckpt: Run) -> None:
    output = folder_output("one")
    for i in range(30):
        Path(output, f"x{i:02d}\x1b[31m.py").write_text("")
    found = ckpt("verify", output)
    assert found.code == 0
    names = ", ".join(f"x{i:02d}\\x1b[31m.py" for i in range(5))
    assert f"NOTE 30 names {UNKNOWN}: {names}, and 25 more (-v lists all)" in " ".join(found.out.split())
    assert "x29" in ckpt("verify", output, "-v").out
    assert len(json.loads(ckpt("verify", output, "--json").out)["notes"]) == 30


def test_what_is_wrong_with_codes_that_were_decoded_is_said_of_their_source(tmp_path: Path) -> None:
    """The values are those of the settings, and these are not those of the codes."""
    model = FOUR_BITS["bnb-nf4-sound"]
    for name, settings in (("sound", model.settings), ("doctored", {**model.settings, "bnb_4bit_quant_type": "fp4"})):
        path = replace(model, settings=settings).folder(tmp_path / name)
        cs.apply(cs.convert(path, dequantize=True), f"{name}.safetensors")
        found = cs.verify(f"{name}.safetensors")
        assert found.ok
        told = [note.why for note in found.notes if note.name == str(path)]
        assert [one.partition(",")[0] for one in told] == (
            ["its quantization_config says bnb_4bit_quant_type fp4"] if name == "doctored" else []
        )


def quantised(change: Callable[[dict[str, Any]], dict[str, Any]]) -> list[str]:
    """Verify a copy of a model in fp8 after a change of its tensors; return the notes on values."""
    draw = torch.Generator().manual_seed(0)
    Path("plain").mkdir()
    Path("plain/config.json").write_text("{}")
    keys = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(6)]
    save_file({key: 0.02 * torch.randn(256, 256, generator=draw) for key in keys}, "plain/model.safetensors")
    cs.apply(cs.convert("plain", quantize="fp8-channel"), "coded")
    save_file(change(load_file("coded/model.safetensors")), "coded/model.safetensors")
    cs.apply(cs.filter("coded", exclude=["model.layers.5.**"]), "out")
    return [note.why for note in cs.verify("out").notes]


def inverse(state: dict[str, Any]) -> dict[str, Any]:
    return {key: 1 / value if "scale" in key else value for key, value in state.items()}


def cast(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.bfloat16() for key, value in state.items() if "scale" not in key}


@pytest.mark.costly
@pytest.mark.parametrize(
    ("change", "said"),
    [(inverse, "perhaps they are inverse scales"), (cast, "quantised codes that were cast without their scales")],
)
def test_notes_on_values_are_those_of_inspect(change: Any, said: str) -> None:
    assert sum(said in note for note in quantised(change)) == 1
    assert sum(said in note for note in cs.inspect("out").notes) == 1


def test_sound_codes_have_no_note_on_values() -> None:
    assert not [note for note in quantised(dict) if "scales" in note or "codes" in note]


def test_decoded_weights_have_the_notes_on_the_scales_of_their_source() -> None:
    quantised(inverse)
    cs.apply(cs.convert("coded", dequantize=True, dtype="f32"), "decoded")
    notes = [note.why for note in cs.verify("decoded").notes]
    assert sum("perhaps they are inverse scales" in note for note in notes) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_named(value: float) -> None:
    """In a large tensor, which opening reads a part of; those of a mask are meant."""
    large, mask = torch.randn(512, 64), torch.zeros(512, 64)
    large[0, 0], mask[0, 0] = value, value
    save_file({"a": large, "b": torch.randn(512, 64), "attn_mask": mask}, "unsound.safetensors")
    cs.apply(cs.convert("unsound.safetensors"), "copied.safetensors")
    assert [note.why for note in cs.verify("copied.safetensors").notes] == ["NaN or infinite values: a"]


def test_those_that_another_note_names_are_not_said_again() -> None:
    save_file({"a": torch.full((8, 8), torch.nan)}, "unsound.safetensors")
    cs.apply(cs.convert("unsound.safetensors"), "copied.safetensors")
    assert [note.why for note in cs.verify("copied.safetensors").notes] == [*cs.inspect("copied.safetensors").notes]


@pytest.mark.long
def test_the_path_of_a_source_has_no_dots() -> None:
    state = coded_tensors(gptq, layers=5)
    state["model.layers.3.mlp.up_proj.qzeros"] += 0x11111111
    write_model(Path("models/m"), state, SETTINGS["gptq"])
    Path("runs/q").mkdir(parents=True)
    cs.apply(cs.convert("models/m", dequantize=True), "runs/q/out")
    (note,) = [one for one in cs.verify("runs/q/out").notes if "one step" in one.why]
    assert os.path.samefile(note.name, "models/m")
    assert ".." not in note.name


def test_a_path_through_a_link_keeps_its_dots() -> None:
    Path("a/b").mkdir(parents=True)
    os.symlink("a/b", "runs")
    assert _without_dots("runs/../models/m") == "runs/../models/m"
    assert _without_dots("a/b/../models/m") == "a/models/m"
    assert _without_dots("hf://a/../b") == "hf://a/../b"
