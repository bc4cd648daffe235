"""Pipelines of diffusers, read as one model: which folders are, what is said of the others, and to one file and back."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import CheckpointError

from ...conftest import Result

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"
Tensors = dict[str, torch.Tensor]
Run = Callable[..., Result]
WEIGHTS = {"text_encoder": "model.safetensors", "text_encoder_2": "model.safetensors"}
OTHER = "diffusion_pytorch_model.safetensors"


def pipeline(tensors: Tensors, folder: str = "sd") -> None:
    """Write a pipeline as diffusers does, with the tensors of each component in its folder."""
    components = {key.partition(".")[0] for key in tensors}
    for name in components:
        os.makedirs(f"{folder}/{name}")
        Path(folder, name, "config.json").write_text("{}")
        own = {key.removeprefix(f"{name}."): one for key, one in tensors.items() if key.startswith(f"{name}.")}
        save_file(own, f"{folder}/{name}/{WEIGHTS.get(name, OTHER)}")
    os.makedirs(f"{folder}/scheduler")
    Path(folder, "scheduler", "scheduler_config.json").write_text("{}")
    index: dict[str, Any] = {"_class_name": "X", **{name: ["diffusers", "X"] for name in (*components, "scheduler")}}
    Path(folder, "model_index.json").write_text(json.dumps(index))


def recorded(network: str, layout: str) -> Tensors:
    """The tensors of a recorded network of Stable Diffusion."""
    return load_file(RECORDED / f"stable-diffusion{network}" / f"{layout}.safetensors")


def assert_same(found: Tensors, wanted: Tensors) -> None:
    """Two state dicts have the same keys and bits."""
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("network", ["", ".xl", ".refiner"])
def test_a_pipeline_becomes_one_original_file_and_back(network: str) -> None:
    diffusers, ldm = recorded(network, "diffusers"), recorded(network, "ldm")
    pipeline(diffusers)
    plan = cs.convert("sd", layout="ldm")
    assert any(note.startswith("read as one model: the components ") for note in plan.notes)
    cs.apply(plan, "one.safetensors")
    assert cs.verify("one.safetensors").ok
    made = load_file("one.safetensors")
    assert_same(made, {key: ldm[key] for key in made})
    assert all("logit_scale" in key for key in ldm.keys() - made.keys())
    for component in {key.partition(".")[0] for key in diffusers}:
        weights = WEIGHTS.get(component, OTHER)
        layout = f"diffusers-{component.replace('_', '-')}"
        os.makedirs(f"back/{component}")
        cs.apply(cs.convert("one.safetensors", layout=layout), f"back/{component}/{weights}")
        assert_same(load_file(f"back/{component}/{weights}"), load_file(f"sd/{component}/{weights}"))


def test_the_keys_of_a_component_begin_with_its_name(ckpt: Run) -> None:
    pipeline({"unet.a": torch.ones(2), "vae.a": torch.zeros(3)})
    with cs.open_checkpoint("sd") as found:
        assert [*found] == ["unet.a", "vae.a"]
        assert torch.equal(found.tensor("vae.a"), torch.zeros(3))
    done = ckpt("convert", "sd", "-o", "out/")
    said = " ".join(done.err.split())
    assert "the components unet, vae of a pipeline; pass the folder of one to read it alone, or --root" in said
    assert "not copied: model_index.json, scheduler/" in said
    assert ckpt("verify", "out/").code == 0
    assert_same(load_file("out/model.safetensors"), {"unet.a": torch.ones(2), "vae.a": torch.zeros(3)})


def test_root_is_a_component_with_its_configuration(ckpt: Run) -> None:
    pipeline({"unet.a": torch.ones(2), "vae.a": torch.zeros(3)})
    Path("sd/vae/config.json").write_text('{"latent_channels": 4}')
    assert ckpt("convert", "sd", "--root", "vae", "-o", "out/").code == 0
    assert ckpt("verify", "out/").code == 0
    assert_same(load_file("out/model.safetensors"), {"a": torch.zeros(3)})
    assert json.loads(Path("out/config.json").read_text()) == {"latent_channels": 4}
    assert [*cs.open_checkpoint("sd", ".")] == ["unet.a", "vae.a"]
    plan = cs.convert("sd", root="unet")
    assert not any("read as one model" in note for note in plan.notes)
    Path("sd/unet", OTHER).write_bytes(b"damaged")
    with cs.open_checkpoint("sd", "vae") as found:
        assert ([*found], len(found.open_files())) == (["a"], 1)
    done = ckpt("inspect", "sd", "--root", "unett")
    assert done.code == 2
    assert (
        "--root unett is not a component of the pipeline that has weights. Use the name of such a component: unet, vae."
        in " ".join(done.err.split())
    )


def test_shards_pickles_and_tied_tensors_of_components() -> None:
    pipeline({"unet.a": torch.ones(2), "vae.a": torch.zeros(3), "text_encoder.a": torch.ones(1)})
    os.remove(f"sd/unet/{OTHER}")
    parts = {
        f"diffusion_pytorch_model-0000{n}-of-00002.safetensors": {f"b{n}": torch.full((2,), float(n))} for n in (1, 2)
    }
    for name, tensors in parts.items():
        save_file(tensors, f"sd/unet/{name}")
    index = {"metadata": {}, "weight_map": {key: name for name, one in parts.items() for key in one}}
    Path(f"sd/unet/{OTHER}.index.json").write_text(json.dumps(index))
    os.remove("sd/text_encoder/model.safetensors")
    tied = torch.arange(4.0)
    torch.save({"one": tied, "two": tied}, "sd/text_encoder/pytorch_model.bin")
    cs.apply(cs.convert("sd"), "out.pth")
    made = torch.load("out.pth", weights_only=True)
    wanted = {"unet.b1": torch.ones(2), "unet.b2": torch.full((2,), 2.0), "vae.a": torch.zeros(3)}
    assert_same(made, {**wanted, "text_encoder.one": tied, "text_encoder.two": tied})
    assert made["text_encoder.one"].data_ptr() == made["text_encoder.two"].data_ptr()


def test_which_file_of_a_component_was_read_and_which_folders_were_not() -> None:
    pipeline({"unet.a": torch.ones(2), "vae.a": torch.zeros(3)})
    save_file({"a": torch.ones(2)}, "sd/unet/diffusion_pytorch_model.non_ema.safetensors")
    os.makedirs("sd/vae_1_0")
    save_file({"a": torch.ones(2)}, f"sd/vae_1_0/{OTHER}")
    with cs.open_checkpoint("sd") as found:
        assert [*found] == ["unet.a", "vae.a"]
        assert any(note.startswith(f"unet: read {OTHER}; also in the folder: ") for note in found.notes)
        assert "model_index.json does not list vae_1_0, so it was not read" in found.notes


def lost(found: cs.CheckReport) -> list[str]:
    return [one.what for one in found.row("missing-tensors").found if one.status.value == "FAIL"]


def test_a_component_that_lost_its_weights_or_its_folder_fails_the_check() -> None:
    pipeline({"unet.a": torch.ones(2), "vae.a": torch.zeros(3), "text_encoder.a": torch.ones(4)})
    index = json.loads(Path("sd/model_index.json").read_text())
    others = {"safety_checker": [None, None], "requires_safety_checker": False, "_diffusers_version": "0.35.0"}
    Path("sd/model_index.json").write_text(json.dumps({**index, **others, "scheduler": ["diffusers", "DDIMScheduler"]}))
    Path("sd/scheduler/config.json").write_text("{}")
    assert lost(cs.check("sd")) == []
    os.remove(f"sd/unet/{OTHER}")
    assert lost(cs.check("sd")) == ["model_index.json lists the component unet, but its folder has no weights"]
    os.remove("sd/unet/config.json")
    shutil.rmtree("sd/scheduler")
    Path("sd/scheduler").mkdir()
    empty = [f"model_index.json lists the component {name}, but its folder is empty" for name in ("unet", "scheduler")]
    assert lost(cs.check("sd")) == empty
    assert set(empty) <= set(cs.inspect("sd").notes)
    Path("sd/scheduler/config.json").write_text("{}")
    shutil.rmtree("sd/unet")
    assert lost(cs.check("sd")) == ["model_index.json lists the component unet, but there is no such folder"]


@pytest.mark.parametrize("settings", [["prompt", "prompt_2"], ["A", "B", "C"], [0.5, 0.5], []])
def test_a_list_of_settings_is_no_component(settings: list[Any]) -> None:
    pipeline({"unet.a": torch.ones(2), "vae.a": torch.zeros(3)})
    index = json.loads(Path("sd/model_index.json").read_text())
    Path("sd/model_index.json").write_text(json.dumps({**index, "names": settings}))
    assert lost(cs.check("sd")) == []


@pytest.mark.parametrize("name", ["model.onnx", "diffusion_flax_model.msgpack"])
def test_weights_for_another_library_are_not_missing(name: str) -> None:
    pipeline({"unet.a": torch.ones(2), "vae.a": torch.zeros(3), "text_encoder.a": torch.ones(4)})
    os.rename(f"sd/unet/{OTHER}", f"sd/unet/{name}")
    assert lost(cs.check("sd")) == []


def test_a_component_that_changed_after_the_plan_is_an_error() -> None:
    pipeline({"unet.a": torch.ones(2), "vae.a": torch.zeros(3)})
    plan = cs.convert("sd")
    with open(f"sd/vae/{OTHER}", "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"abcd")
    with pytest.raises(CheckpointError, match=re.escape(f"vae/{OTHER}")):
        cs.apply(plan, "out.safetensors")


def test_a_pipeline_that_is_not_one_model() -> None:
    pipeline({"unet.a": torch.ones(2), "vae.a": torch.zeros(3)})
    torch.save({"state_dict": {"a": torch.ones(2)}, "step": 3}, "sd/vae/weights.bin")
    os.remove(f"sd/vae/{OTHER}")
    with pytest.raises(CheckpointError, match="its component vae is not a state dict of plain tensors"):
        cs.open_checkpoint("sd")
    Path("sd/vae/weights.bin").write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(CheckpointError, match="vae"):
        cs.open_checkpoint("sd")
    for number in range(16):
        os.makedirs(f"sd/extra{number}")
    with pytest.raises(CheckpointError, match="it is a diffusers pipeline"):
        cs.open_checkpoint("sd")


def test_metadata_of_components() -> None:
    pipeline({"unet.a": torch.ones(2), "vae.a": torch.zeros(3)})
    for name, author in (("unet", "A"), ("vae", "B")):
        save_file({"a": torch.ones(2)}, f"sd/{name}/{OTHER}", {"format": "pt", "author": author, name: "1"})
    with cs.open_checkpoint("sd") as found:
        assert found.metadata == {"format": "pt", "unet": "1", "vae": "1"}
        assert "left out: metadata that differ between components: author" in found.notes


def test_components_whose_tensors_would_get_one_key_are_an_error() -> None:
    for name, key in (("a", "b.w"), ("a.b", "w")):
        os.makedirs(f"sd/{name}")
        save_file({key: torch.ones(2)}, f"sd/{name}/{OTHER}")
    index = {"_class_name": "X", "a": ["diffusers", "X"], "a.b": ["diffusers", "X"]}
    Path("sd/model_index.json").write_text(json.dumps(index))
    with pytest.raises(cs.FormatError, match=r"two values have the same dotted key, a\.b\.w"):
        cs.open_checkpoint("sd")


def test_components_with_much_metadata_are_read_quickly() -> None:
    """Each pair of entries was compared: forty thousand entries took minutes."""
    for name in ("a", "b"):
        os.makedirs(f"sd/{name}")
        entries = {str(number): name if number == 7 else "" for number in range(20_000)}
        save_file({"w": torch.ones(2)}, f"sd/{name}/{OTHER}", metadata=entries)
    Path("sd/model_index.json").write_text(json.dumps({name: ["diffusers", "X"] for name in ("a", "b")}))
    with cs.open_checkpoint("sd") as checkpoint:
        assert len(checkpoint.metadata) == 19_999
        assert checkpoint.notes[-1] == "left out: metadata that differ between components: 7"
