"""Verbs that copy codes decode a sample of them: inverse scales make weights of an impossible size."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors.torch import load_file, save, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.inputs import sampled_scales
from ckptsurgeon.storage.read.local import LocalFile
from ckptsurgeon.tensors.quantised.encoding import QuantisedTensor

from ...helpers.coded_matrices import SETTINGS, Encode, auto_round, awq, gptq, llm_int8, mlx, nf4, old_mlx, save_model

LAYERS, WIDTH = 10, 256
ROLES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")
SCHEMES = ("fp8-block", "fp8-channel", "int8", "int4-group128", "mxfp4", "nvfp4")
SAID = ("inverse", "times as large as", "quantised tensor")


def write(scheme: str) -> Path:
    """A folder of quantised layers whose sizes differ, as those of trained layers do."""
    lay("plain", plain_files())
    lay("coded", coded_files(scheme))
    return Path("coded")


def lay(folder: str, files: dict[str, bytes]) -> None:
    Path(folder).mkdir()
    for name, content in files.items():
        Path(folder, name).write_bytes(content)


@cache
def plain_files() -> dict[str, bytes]:
    draw = torch.Generator().manual_seed(0)
    tensors = {
        f"model.layers.{layer}.{role}.weight": torch.randn(WIDTH, WIDTH, generator=draw) * 0.02 * (1 + layer % 3)
        for layer in range(LAYERS)
        for role in ROLES
    }
    weights: bytes = save(tensors, {"format": "pt"})
    return {"config.json": json.dumps({"model_type": "llama"}).encode(), "model.safetensors": weights}


@cache
def coded_files(scheme: str) -> dict[str, bytes]:
    with TemporaryDirectory() as folder, contextlib.chdir(folder):
        lay("plain", plain_files())
        cs.apply(cs.convert("plain", quantize=scheme), "coded")
        return {path.name: path.read_bytes() for path in Path("coded").iterdir() if path.name != "ckptsurgeon.json"}


def invert(folder: Path, is_meant: Callable[[str], bool] = lambda key: True) -> None:
    """Replace scales by their inverse."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for key, one in tensors.items():
        if "scale" in key and is_meant(key) and one.dtype != torch.float8_e4m3fn:
            tensors[key] = 254 - one if one.dtype == torch.uint8 else 1 / one
    save_file(tensors, path, {"format": "pt"})


VERBS: dict[str, Callable[[Path], list[str]]] = {
    "convert": lambda folder: [*cs.convert(folder).notes],
    "filter": lambda folder: [*cs.filter(folder, exclude="model.layers.9.**").notes],
    "rename": lambda folder: [*cs.rename(folder, map="model.layers=layers").notes],
    "transplant": lambda folder: [*cs.transplant(folder, folder).notes],
    "inspect": lambda folder: [*cs.inspect(folder).notes],
    "fits": lambda folder: [*cs.fits(folder, folder).notes],
    "match": lambda folder: [*cs.match(folder, folder).notes],
    "diff": lambda folder: [*cs.diff(folder, "plain").notes],
    "diff the other way": lambda folder: [*cs.diff("plain", folder).notes],
    "diff --values": lambda folder: [*cs.diff(folder, "plain", values=True).notes],
    "diff of large files": lambda folder: [*cs.diff("plain/model.safetensors", folder / "model.safetensors").notes],
    "view": lambda folder: [*cs.view(folder).notes],
    "view --stats": lambda folder: [*cs.view(folder, stats=True).notes],
    "view of two": lambda folder: [*cs.view("plain", folder).notes],
    "view of two without values": lambda folder: [*cs.view("plain", folder, values=False).notes],
    "view of three": lambda folder: [*cs.view("plain", folder, "plain").notes],
}


def found(notes: list[str]) -> list[str]:
    return [note for note in notes if any(one in note for one in SAID)]


@pytest.mark.costly
@pytest.mark.each_value
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_inverse_scales_are_noted_by_copies(scheme: str, verb: str) -> None:
    folder = write(scheme)
    assert found(VERBS[verb](folder)) == []
    invert(folder)
    notes = found(VERBS[verb](folder))
    assert len(notes) == 1
    assert "inverse" in notes[0]


def test_a_verb_that_decodes_notes_them_once(ckpt: Callable[..., object]) -> None:
    folder = write("int8")
    invert(folder)
    plan = cs.convert(folder, dequantize=True)
    assert len(found([*plan.notes, *cs.apply(plan, "out").notes])) == 1
    assert len(found([*cs.inspect(folder, stats=True).notes])) == 1


def adapter() -> Path:
    """An adapter of PEFT that changes only the queries."""
    folder = Path("adapter")
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for layer in range(LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = torch.full((2, WIDTH), 0.001)
        tensors[f"{name}.lora_B.weight"] = torch.full((WIDTH, 2), 0.001)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.costly
@pytest.mark.parametrize("scheme", ["fp8-block", "nvfp4", "int8"])
def test_codes_that_are_copied_beside_computed_ones_are_noted(scheme: str) -> None:
    """The codes of one role are copied with inverse scales, and those of another role are computed anew."""
    folder, lora = write(scheme), adapter()
    verbs = (
        lambda: cs.lora_merge(folder, lora),
        lambda: cs.transplant("plain", folder, exclude="**.up_proj.weight", encoding="keep"),
    )
    assert [found([*plan().notes]) for plan in verbs] == [[], []]
    invert(folder, lambda key: "up_proj" in key)
    for plan in verbs:
        made = plan()
        notes = found([*made.notes])
        assert any("inverse" in one and "up_proj" in one for one in notes), notes
        assert found([*cs.apply(made, "out", force=True).notes]) == notes
    invert(folder, lambda key: "up_proj" in key)  # they are right again, and those of the queries are wrong
    invert(folder, lambda key: "q_proj" in key)
    assert [found([*plan().notes]) for plan in verbs] == [[], []]
    assert found([*cs.apply(verbs[0](), "out", force=True).notes])


@pytest.mark.long
def test_comparisons_of_headers_and_pages_note_them() -> None:
    folder = write("int8")
    invert(folder)
    for verb in ("diff", "diff the other way", "diff of large files", "view"):
        assert len(found(VERBS[verb](folder))) == 1, verb


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (128, "at least 32 times as large as those of other layers"),
        (64, "of every kind in some layers, are at least 4 times as large"),
    ],
)
def test_scales_of_half_of_the_layers_are_noted(factor: float, said: str) -> None:
    """The sizes of the layers differ by 3 already: those of half of them are 43 times, or 21 times, as large."""
    folder = write("int8")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for key in tensors:
        if key.endswith("weight_scale") and int(key.split(".")[2]) >= LAYERS // 2:
            tensors[key] = tensors[key] * factor
    save_file(tensors, path, {"format": "pt"})
    (note,) = found(VERBS["convert"](folder))
    assert said in note
    assert note.endswith("(in a sample of 24 of 30 quantised tensors)")


def test_little_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a few tensors is read, whatever the number of the others, and nothing of plain weights."""
    folder = write("int8")
    plain, coded = (bytes_read(monkeypatch, lambda one=one: cs.convert(one)) for one in ("plain", folder))
    assert 0 < coded - plain <= 3 * 8 * 64 * (WIDTH + 4)  # the rows of a part are read whole


def bytes_read(monkeypatch: pytest.MonkeyPatch, plan: Callable[[], object]) -> int:
    number, read = 0, LocalFile.readinto

    def counted(self: LocalFile, offset: int, view: memoryview) -> None:
        nonlocal number
        number += len(view)
        read(self, offset, view)

    with monkeypatch.context() as patched:
        patched.setattr(LocalFile, "readinto", counted)
        plan()
    return number


ENCODE: dict[str, Encode] = {
    "gptq": gptq, "auto_round": auto_round, "awq": awq, "nf4": nf4, "llm_int8": llm_int8, "mlx": mlx, "old_mlx": old_mlx,
}  # fmt: skip


@pytest.mark.costly
@pytest.mark.parametrize("method", ENCODE)
def test_codes_of_other_programs(method: str) -> None:
    """Healthy ones have no note; inverse scales have at least one."""
    draw = torch.Generator().manual_seed(1)
    weights = {
        f"model.layers.{layer}.{role}": ENCODE[method](torch.randn(256, 512, generator=draw) * 0.02 * (1 + layer % 3))
        for layer in range(6)
        for role in ROLES
    }
    folder = save_model(Path("coded"), SETTINGS[method], weights)
    assert cs.inspect(folder).codes.tensors
    assert found(VERBS["convert"](folder)) == found(VERBS["inspect"](folder)) == []
    for parts in weights.values():
        for end in parts:
            if end.endswith((".scales", ".absmax", ".SCB")):
                parts[end] = 1 / parts[end]
    save_model(folder, SETTINGS[method], weights)
    assert found(VERBS["convert"](folder))


@pytest.mark.costly
@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_healthy_codes_of_gguf_have_no_note(kind: str) -> None:
    write("int8")
    cs.apply(cs.convert("plain", gguf_type=kind), "x.gguf")
    assert cs.inspect("x.gguf").codes.tensors
    assert found(VERBS["inspect"](Path("x.gguf"))) == found(VERBS["convert"](Path("x.gguf"))) == []


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("layers", [2, 8, 16, 24, 32])
def test_other_layers_are_decoded_in_each_role(layers: int, number: int) -> None:
    names = (f"layers.{layer}.{role}" for layer in range(layers) for role in "abcdef"[:number])
    by_role = sampled_scales._by_role(QuantisedTensor(name, "", "", {}, None) for name in names)
    chosen = [one.name for one in sampled_scales._chosen(by_role)]
    most, roles = sampled_scales.LAYERS, min(sampled_scales.ROLES, number)
    assert len(chosen) == len(set(chosen)) == min(most, layers) * roles
    assert len({name.split(".")[1] for name in chosen}) == min(layers, most * roles)
