"""The weights of a diffusers pipeline are written into the folder of each component, beside its other files."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"
COMPONENTS = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}
FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def config_of(component: str) -> str:
    return "tokenizer_config.json" if component == "tokenizer" else "config.json"


def pipeline(folder: str = "sd", **more: Any) -> Path:
    """Make the folder of a pipeline without weights."""
    path = Path(folder)
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", **COMPONENTS, **more}
    for component in (*COMPONENTS, *more):
        (path / component).mkdir(parents=True)
        (path / component / config_of(component)).write_text(f'{{"of": "{component}"}}')
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def original(network: str = "") -> Path:
    return RECORDED / f"stable-diffusion{network}" / "ldm.safetensors"


def parts_of(network: str = "") -> dict[str, dict[str, torch.Tensor]]:
    whole = load_file(RECORDED / f"stable-diffusion{network}" / "diffusers.safetensors")
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in whole.items():
        component, _, name = key.partition(".")
        found.setdefault(component, {})[name] = value
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.long
def test_one_command_fills_a_pipeline_and_another_makes_one_file_of_it_again(ckpt: Any) -> None:
    path = pipeline()
    done = ckpt("convert", original(), "--layout", "diffusers", "--to", "diffusers", "-o", "sd")
    assert done.code == 0, done
    for component, wanted in parts_of().items():
        assert same(load_file(path / component / FILES[component]), wanted)
        assert json.loads((path / component / config_of(component)).read_text()) == {"of": component}
    assert sorted(os.listdir(path)) == sorted([*COMPONENTS, "model_index.json", "ckptsurgeon.json"])
    assert sorted(os.listdir(path / "tokenizer")) == ["tokenizer_config.json"]
    assert "still has" not in done.err + done.out
    done = ckpt("verify", "sd")
    assert done.code == 0, done
    assert "unet/" not in done.out + done.err
    assert ckpt("convert", "sd", "--layout", "ldm", "-o", "again.safetensors").code == 0
    assert same(load_file("again.safetensors"), load_file(original()))


@pytest.mark.long
def test_xl_has_a_second_text_encoder() -> None:
    path = pipeline(text_encoder_2=["transformers", "CLIPTextModelWithProjection"])
    cs.apply(cs.convert(original(".xl"), layout="diffusers"), path, to="diffusers")
    assert same(load_file(path / "text_encoder_2" / "model.safetensors"), parts_of(".xl")["text_encoder_2"])
    assert cs.verify(path).ok


@pytest.mark.long
def test_shards_have_an_index_in_their_component() -> None:
    path = pipeline()
    cs.apply(cs.convert(original(), layout="diffusers"), path, to="diffusers", max_shard_size="20000B")
    index = json.loads((path / "unet" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    wanted = parts_of()["unet"]
    assert set(index["weight_map"]) == set(wanted)
    shards = set(index["weight_map"].values())
    assert len(shards) > 1
    found = {key: value for shard in shards for key, value in load_file(path / "unet" / shard).items()}
    assert same(found, wanted)
    assert cs.verify(path).ok


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("change", ["byte", "recipe", "other"])
def test_a_changed_component_fails_the_verification(change: str, ckpt: Any) -> None:
    path = pipeline()
    cs.apply(cs.convert(original(), layout="diffusers"), path, to="diffusers")
    file = path / "vae" / FILES["vae"]
    if change == "byte":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif change == "recipe":
        recipe = path / "ckptsurgeon.json"
        recipe.write_text(recipe.read_text().replace('"verb":"convert"', '"verb":"rename"', 1))
    else:
        state = load_file(file)
        state.pop(sorted(state)[0])
        save_file(state, file)
    done = ckpt("verify", "sd")
    assert done.code == 1, done
    assert {"byte": "vae", "recipe": "recipe", "other": "vae"}[change] in done.out + done.err


def test_weights_that_are_there_are_kept_or_replaced_as_a_whole(ckpt: Any) -> None:
    path = pipeline()
    for name in ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"):
        (path / "unet" / name).write_bytes(b"old")
    (path / "unet" / "notes.txt").write_text("mine")
    command = ("convert", original(), "--layout", "diffusers", "--to", "diffusers", "-o", "sd")
    done = ckpt(*command)
    assert done.code == 5, done
    assert "unet/diffusion_pytorch_model.bin" in "".join(done.err.split("\n"))
    assert not (path / "vae" / FILES["vae"]).exists()
    assert ckpt(*command, "--force").code == 0
    assert sorted(os.listdir(path / "unet")) == ["config.json", FILES["unet"], "notes.txt"]
    assert ckpt("verify", "sd").code == 0
    done = ckpt(*command, "--dtype", "float16", "--force")
    assert done.code == 0, done
    assert load_file(path / "unet" / FILES["unet"])["conv_in.weight"].dtype == torch.float16


@pytest.mark.long
def test_pipelines_are_merged_into_a_third(ckpt: Any) -> None:
    for name in ("a", "b", "c"):
        pipeline(name)
    cs.apply(cs.convert(original(), layout="diffusers"), "a", to="diffusers")
    cs.apply(cs.convert(original(), layout="diffusers"), "b", to="diffusers")
    done = ckpt("merge", "a", "b", "--method", "linear", "--weights", "0.5,0.5", "--to", "diffusers", "-o", "c")
    assert done.code == 0, done
    assert same(load_file(Path("c/vae") / FILES["vae"]), parts_of()["vae"])


@pytest.mark.long
def test_an_input_is_never_replaced(ckpt: Any) -> None:
    path = pipeline()
    cs.apply(cs.convert(original(), layout="diffusers"), path, to="diffusers")
    before = (path / "vae" / FILES["vae"]).read_bytes()
    done = ckpt("convert", "sd", "--dtype", "bfloat16", "--to", "diffusers", "-o", "sd", "--force")
    assert done.code == 5, done
    assert "is an input" in done.err
    assert (path / "vae" / FILES["vae"]).read_bytes() == before


def test_weights_beside_the_components_are_an_error() -> None:
    path = pipeline()
    (path / "v1-5-pruned.safetensors").write_bytes(Path(original()).read_bytes())
    with pytest.raises(
        cs.ConfigError, match=r"has weights next to the folders of its components \(v1-5-pruned.safetensors\)"
    ):
        cs.apply(cs.convert(original(), layout="diffusers"), path, to="diffusers")


@pytest.mark.long
def test_a_component_without_a_configuration_is_said() -> None:
    path = pipeline()
    (path / "vae" / "config.json").unlink()
    receipt = cs.apply(cs.convert(original(), layout="diffusers"), path, to="diffusers")
    assert "vae has no config.json, which loaders need: copy it from another pipeline" in receipt.notes


@pytest.mark.costly
@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_component_that_is_no_folder_is_an_error(kind: str) -> None:
    path = pipeline()
    (path / "unet").rename("elsewhere")
    if kind == "link":
        (path / "unet").symlink_to(Path("elsewhere").resolve())
    else:
        (path / "unet").write_text("no folder")
    with pytest.raises(cs.OutputError, match=f"unet is a {kind}, not a folder"):
        cs.apply(cs.convert(original(), layout="diffusers"), path, to="diffusers", force=True)
    assert (path / "unet").is_symlink() == (kind == "link")
    assert not (path / "vae" / FILES["vae"]).exists()


def test_components_without_tensors_are_said() -> None:
    path = pipeline(vocoder=["transformers", "SpeechT5HifiGan"], checker=[None, None])
    save_file({"x": torch.ones(1)}, path / "vae" / FILES["vae"])
    save_file({"unet.w": torch.ones(2), "vocoder.w": torch.ones(2)}, "a.safetensors")
    receipt = cs.apply(cs.convert("a.safetensors"), path, to="diffusers")
    assert f"vae still has weights from before this run: {FILES['vae']}" in receipt.notes
    assert "text_encoder has no weights: no tensor belongs to this component of the pipeline" in receipt.notes
    assert not any("tokenizer" in note or "checker" in note for note in receipt.notes)
    assert (path / "vocoder" / "model.safetensors").exists()  # transformers saves it


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("new", "new has no model_index.json"),
        ("empty", "empty has no model_index.json"),
        ("list", "list has no model_index.json, or one that lists no components"),
        ("s3://bucket/sd", "cannot write to the address"),
    ],
)
def test_a_folder_without_a_pipeline_is_an_error(target: str, message: str) -> None:
    Path("empty").mkdir()
    Path("list").mkdir()
    Path("list/model_index.json").write_text("[]")
    with pytest.raises(cs.CheckpointError, match=message) as error:
        cs.apply(cs.convert(original(), layout="diffusers"), target, to="diffusers")
    assert error.value.exit_code in (2, 5)
    assert not Path("new").exists()
    assert os.listdir("empty") == []


@pytest.mark.parametrize("key", ["weight", "controlnet.weight", "_class_name.x", "../unet.weight", "a/b.c"])
def test_a_tensor_of_no_component_is_an_error(key: str) -> None:
    path = pipeline(**{"../unet": ["x", "y"]}) if key.startswith("..") else pipeline()
    save_file({key: torch.ones(2), "unet.w": torch.ones(2)}, "a.safetensors")
    before = sorted(str(one) for one in Path().rglob("*"))
    with pytest.raises(cs.OutputError, match="belongs to no component of the pipeline"):
        cs.apply(cs.convert("a.safetensors"), path, to="diffusers")
    assert sorted(str(one) for one in Path().rglob("*")) == before


def test_tensors_that_are_tied_across_components_have_their_own_bytes() -> None:
    path = pipeline()
    torch.save({"unet.w": (one := torch.arange(6.0)), "vae.w": one, "vae.v": one}, "a.pth")
    cs.apply(cs.convert("a.pth"), path, to="diffusers")
    assert torch.equal(load_file(path / "unet" / FILES["unet"])["w"], one)
    assert load_file(path / "vae" / FILES["vae"]).keys() == {"w", "v"}
    assert cs.verify(path).ok


@pytest.mark.long
def test_an_interrupted_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.engine import staged_output

    path = pipeline()
    finished = staged_output.StagedOutput.finished
    lock, seen = threading.Lock(), []

    def stop(self: Any, run: Any) -> None:
        with lock:
            seen.append(run.part.name)
        finished(self, run)
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(staged_output.StagedOutput, "finished", stop)
    with pytest.raises(KeyboardInterrupt):
        cs.apply(cs.convert(original(), layout="diffusers"), path, to="diffusers")
    monkeypatch.setattr(staged_output.StagedOutput, "finished", finished)
    assert not (path / "unet" / FILES["unet"]).exists()
    receipt = cs.apply(cs.convert(original(), layout="diffusers"), path, to="diffusers")
    assert any("kept" in note or "interrupted" in note for note in receipt.notes), receipt.notes
    assert cs.verify(path).ok
    assert all(same(load_file(path / one / FILES[one]), wanted) for one, wanted in parts_of().items())
    assert [one for one in os.listdir() if one.startswith(".sd")] == []


def small(folder: str, **changed: dict[str, Any]) -> None:
    """Write a pipeline of three small networks; ``changed`` has fields of their configurations, and of the scheduler."""
    configs: dict[str, dict[str, Any]] = {
        "unet": {"_class_name": "UNet2DConditionModel", "in_channels": 4, "sample_size": 8},
        "vae": {"_class_name": "AutoencoderKL", "scaling_factor": 0.25},
        "text_encoder": {"model_type": "clip_text_model", "dtype": "float32", "hidden_act": "gelu"},
        "scheduler": {"_class_name": "DDIMScheduler", "prediction_type": "epsilon"},
    }
    index = {name: ["diffusers", fields.get("_class_name", "CLIPTextModel")] for name, fields in configs.items()}
    index["text_encoder"][0] = "transformers"
    for name, fields in configs.items():
        Path(folder, name).mkdir(parents=True)
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        Path(folder, name, file).write_text(json.dumps({**fields, **changed.get(name, {})}))
        if name in FILES:
            weight = torch.ones(2, 4, 3, 3) if name == "unet" else torch.ones(2, 4)
            save_file({"conv_in.weight": weight}, f"{folder}/{name}/{FILES[name]}")
    Path(folder, "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **index}))


def test_a_network_of_diffusers_gets_the_file_name_that_diffusers_looks_for() -> None:
    small("sd")
    name = FILES["unet"]
    for plan in (
        cs.convert("sd/unet", dtype="float16"), cs.convert("sd", root="unet"), cs.average(["sd", "sd"], root="unet"),
    ):  # fmt: skip
        cs.apply(plan, "out", force=True)
        assert sorted(os.listdir("out")) == ["ckptsurgeon.json", "config.json", name]
    with pytest.raises(cs.OutputError, match=f"holds a checkpoint.*{name}"):
        cs.apply(cs.convert("sd/unet"), "out")
    cs.apply(cs.convert("sd/text_encoder"), "out", force=True)
    assert sorted(os.listdir("out")) == ["ckptsurgeon.json", "config.json", "model.safetensors"]
    cs.apply(cs.convert("sd/unet"), "shards", max_shard_size="100B")
    assert cs.verify("shards").ok
    cs.apply(cs.rename("sd/unet", map=["conv_in=conv"]), "renamed")  # without config.json
    assert "model.safetensors" in os.listdir("renamed")


def test_a_dtype_in_the_pipeline_that_is_not_that_of_the_new_weights_is_said() -> None:
    small("sd")
    small("out")
    said = cs.apply(cs.convert("sd", dtype="float16"), "out", to="diffusers", force=True).notes
    assert [note for note in said if note.startswith("text_encoder/config.json says float32 (dtype), but its new weig")]
    said = cs.apply(cs.convert("sd"), "out", to="diffusers", force=True).notes
    assert not [note for note in said if "config.json says" in note]


def test_a_plain_output_of_a_pipeline_names_the_option_for_a_pipeline() -> None:
    small("sd")
    assert any("model_index.json" in note and "--to diffusers" in note for note in cs.convert("sd").notes)


def test_components_that_compute_otherwise_are_said() -> None:
    small("sd")
    small("other", scheduler={"prediction_type": "v_prediction"}, vae={"scaling_factor": 0.5})
    small("third", text_encoder={"hidden_act": "relu"})
    wanted = {"vae/config.json files differ: scaling_factor is", "scheduler/scheduler_config.json files differ: predic"}
    plans = (cs.average(["sd", "other"]), cs.merge(["sd", "other"], method="linear", weights=[1, 1]))
    for notes in (cs.diff("sd", "other").notes, cs.fits("sd", "other").notes, *(plan.notes for plan in plans)):
        assert {one for one in wanted if any(one in note for note in notes)} == wanted
    assert any("text_encoder/config.json files differ: hidden_act" in note for note in cs.diff("sd", "third").notes)
    assert not [note for note in cs.diff("sd", "other", root="unet").notes if "files differ" in note]
    assert any("scaling_factor" in note for note in cs.diff("sd", "other", root="vae").notes)


def test_inspect_reports_a_size_that_contradicts_the_weights() -> None:
    small("sd", unet={"in_channels": 9})
    for path, place in (("sd", "unet/"), ("sd/unet", "")):
        said = f"{place}config.json has in_channels 9, but conv_in.weight has shape (2, 4, 3, 3)"
        assert said in cs.inspect(path).notes
