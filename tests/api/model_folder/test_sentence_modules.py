"""A folder of sentence-transformers keeps its modules: modules.json and the small files in their folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

from .test_model_folders import model

MODULES = ("modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors")
KIND = "sentence_transformers.models"
DIFFER = "the models embed or compare sentences differently"


def sentences(path: str, *, seed: int = 0, modules: Any = None) -> str:
    model(path, seed=seed)
    named = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
    rows = [{"idx": i, "name": str(i), "path": one, "type": f"{KIND}.{kind}"} for i, (one, kind) in enumerate(named)]
    Path(path, "modules.json").write_text(json.dumps(rows if modules is None else modules))
    Path(path, "1_Pooling").mkdir()
    Path(path, "2_Dense").mkdir()
    Path(path, "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 4, "seed": seed}))
    Path(path, "1_Pooling/code.py").write_text("raise SystemExit")
    Path(path, "2_Dense/config.json").write_text(json.dumps({"in_features": 4, "out_features": 2}))
    generator = torch.Generator().manual_seed(seed)
    save_file({"linear.weight": torch.randn(2, 4, generator=generator)}, f"{path}/2_Dense/model.safetensors")
    return path


def plan_of(verb: str) -> cs.Plan:
    if verb == "rename":
        return cs.rename("m", map=["model=decoder"])
    if verb == "transplant":
        return cs.transplant(model("source", seed=2), "m")
    if verb == "average":
        return cs.average(["m", sentences("other", seed=1)])
    return cs.convert("m", dtype="bf16")


@pytest.mark.costly
@pytest.mark.parametrize("verb", ["convert", "rename", "transplant", "average"])
def test_modules_go_along_and_their_weights_are_named(verb: str) -> None:
    sentences("m")
    plan = plan_of(verb)
    cs.apply(plan, "out")
    for name in MODULES:
        assert Path("out", name).read_bytes() == Path("m", name).read_bytes()
    assert not Path("out/1_Pooling/code.py").exists()
    said = "\n".join(note for note in plan.notes if not note.startswith(DIFFER))
    assert "1_Pooling/code.py" in said
    assert "copied unchanged: 2_Dense/model.safetensors" in said
    assert "1_Pooling/config.json" not in said
    assert cs.verify("out").ok
    assert not [note for note in cs.verify("out").notes if "1_Pooling" in str(note)]


def test_a_merged_adapter_keeps_the_modules() -> None:
    sentences("m")
    Path("a").mkdir()
    factors = {"lora_A": torch.ones(1, 4), "lora_B": torch.ones(4, 1)}
    key = "base_model.model.model.layers.0.mlp"
    save_file({f"{key}.{one}.weight": value for one, value in factors.items()}, "a/adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["mlp"]}
    Path("a/adapter_config.json").write_text(json.dumps(settings))
    cs.apply(cs.lora_merge("m", ["a"]), "out")
    assert all(Path("out", name).is_file() for name in MODULES)


def test_a_changed_module_is_a_fault_of_verify() -> None:
    cs.apply(cs.convert(sentences("m")), "out")
    Path("out/1_Pooling/config.json").write_text("{}")
    assert [fault.why.split()[0] for fault in cs.verify("out").failed] == ["1_Pooling/config.json"]
    Path("out/2_Dense").rename("elsewhere")
    Path("out/2_Dense").symlink_to(Path("elsewhere").resolve())
    assert any("2_Dense/config.json next to the weights is a link" in fault.why for fault in cs.verify("out").failed)


def test_the_modules_of_an_earlier_output_are_removed() -> None:
    cs.apply(cs.convert(sentences("m")), "out")
    Path("out/1_Pooling/own.txt").write_text("mine")
    Path("out/2_Dense/config.json").write_text("changed")
    cs.apply(cs.convert(model("plain")), "out", force=True)
    assert not Path("out/modules.json").exists()
    assert not Path("out/1_Pooling/config.json").exists()
    assert not Path("out/2_Dense/model.safetensors").exists()
    assert Path("out/1_Pooling/own.txt").read_text() == "mine"
    assert Path("out/2_Dense/config.json").read_text() == "changed"


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_folder_that_is_a_link_or_a_file_in_the_output_is_not_replaced(kind: str) -> None:
    sentences("m")
    Path("out").mkdir()
    Path("elsewhere").mkdir()
    place = Path("out/1_Pooling")
    if kind == "link":
        place.symlink_to(Path("elsewhere").resolve())
    else:
        place.write_text("mine")
    with pytest.raises(cs.OutputError, match=f"1_Pooling is a {kind}, not a folder of the output"):
        cs.apply(cs.convert("m"), "out")
    assert [one.name for one in Path("out").iterdir()] == ["1_Pooling"]
    assert not [*Path("elsewhere").iterdir()]


@pytest.mark.parametrize(
    "modules",
    [
        {}, "x", [1], [{"path": "../other"}], [{"path": "/etc"}], [{"path": ".."}], [{"path": "2_Dense/deep"}],
        [{"path": None}, {}], [{"path": ".hidden"}],
    ],
)  # fmt: skip
def test_modules_elsewhere_are_not_followed(modules: Any) -> None:
    sentences("m", modules=modules)
    Path("other").mkdir()
    Path("other/config.json").write_text("{}")
    for name in ("2_Dense/deep", ".hidden"):
        Path("m", name).mkdir()
        Path("m", name, "config.json").write_text("{}")
    plan = cs.convert("m")
    assert not [one.name for one in plan.target.companions if "/" in one.name]
    assert "1_Pooling/" in "\n".join(plan.notes)


def test_links_out_of_the_folder_are_not_followed() -> None:
    sentences("m")
    Path("secret").mkdir()
    Path("secret/config.json").write_text('{"secret": 1}')
    Path("m/1_Pooling/config.json").unlink()
    Path("m/1_Pooling/config.json").symlink_to(Path("secret/config.json").resolve())
    Path("m/2_Dense").rename("moved")
    Path("m/2_Dense").symlink_to(Path("moved").resolve())
    plan = cs.convert("m")
    assert not [one.name for one in plan.target.companions if "/" in one.name]
    said = "\n".join(plan.notes)
    assert "2_Dense/" in said
    assert "1_Pooling/" in said


@pytest.mark.parametrize("name", ["a/b/c", "../a", "a/../b", "/a", "a/.b", ".a/b", "a/", "a//b", "config.json/x"])
def test_a_plan_with_a_companion_in_another_place_is_refused(name: str) -> None:
    data = cs.convert(sentences("m")).to_json()
    next(one for one in data["target"]["companions"] if one["name"] == "modules.json")["name"] = name
    with pytest.raises(cs.ConfigError, match=r"plain file name|name of another one's folder"):
        cs.Plan.from_json(data)


def test_a_link_made_after_the_plan_is_not_followed() -> None:
    plan = cs.convert(sentences("m"))
    Path("m/1_Pooling").rename("moved")
    Path("m/1_Pooling").symlink_to(Path("moved").resolve())
    with pytest.raises(cs.PlanError, match="such links are not followed"):
        cs.apply(plan, "out")
    assert not Path("out").exists()


def test_an_output_at_an_address_has_the_modules() -> None:
    fsspec = pytest.importorskip("fsspec")
    cs.apply(cs.convert(sentences("m")), "memory://sentences/out/")
    system = fsspec.filesystem("memory")
    for name in (*MODULES, "config.json"):
        assert system.cat_file(f"/sentences/out/{name}") == Path("m", name).read_bytes(), name
    with pytest.raises(cs.OutputError, match="holds a checkpoint"):
        cs.apply(cs.convert("m"), "memory://sentences/out/")
    cs.apply(cs.convert(model("plain")), "memory://sentences/out/", force=True)
    assert not system.exists("/sentences/out/1_Pooling/config.json")


def test_the_files_of_the_modules_are_signed_and_shown(ckpt: Callable[..., Any]) -> None:
    sentences("m")
    done = ckpt("convert", "m", "-o", "out/")
    assert done.code == 0
    assert "1_Pooling/config.json" in done.out + done.err


def test_a_pooling_of_another_width_is_a_warning() -> None:
    sentences("m")
    for width, said in ((4, []), (8, ["1_Pooling/config.json has word_embedding_dimension 4, but"])):
        config = json.loads(Path("m/config.json").read_text())
        Path("m/config.json").write_text(json.dumps({**config, "hidden_size": width}))
        found = [note for note in cs.convert("m").notes if "word_embedding_dimension" in note]
        assert [note[: len(said[0])] for note in found] == said
        checked = [one.what for row in cs.check("m").rows for one in row.found if "word_embedding" in one.what]
        assert len(checked) == len(said)


def two(**files: Any) -> None:
    """Write the folders m and other with equal weights; ``files`` has the changed files of other, by name."""
    for path in ("m", "other"):
        sentences(path)
        Path(path, "1_Pooling/config.json").write_text(
            json.dumps({"word_embedding_dimension": 4, "pooling_mode_mean_tokens": True})
        )
        Path(path, "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 128}))
    for name, value in files.items():
        Path("other", name).write_text(json.dumps(value))


MEAN, CLS = (
    {f"pooling_mode_{one}": one == used for one in ("mean_tokens", "cls_token")}
    for used in ("mean_tokens", "cls_token")
)


@pytest.mark.costly
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("1_Pooling/config.json", CLS, "according to 1_Pooling/config.json: pooling_mode is mean in m, cls in other"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "max"]}, "pooling_mode is mean in m, cls+max in other"),
        ("2_Dense/config.json", {"in_features": 4, "out_features": 2, "bias": False}, "bias is not set in m, false in"),
        ("modules.json", [{"path": "", "type": f"{KIND}.Transformer"}], "Dense, Normalize in m, Transformer in other"),
        ("sentence_bert_config.json", {"max_seq_length": 512, "do_lower_case": True}, "128 in m, 512 in other; do_lo"),
        ("config_sentence_transformers.json", {"prompts": {"query": "q: "}}, "prompts is not set in m, {'query': 'q: '}"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "dot"}, "similarity_fn_name is not set in m, dot"),
    ],
)  # fmt: skip
def test_settings_of_modules_that_differ_are_said(name: str, value: Any, said: str) -> None:
    two(**{name: value})
    assert [note for note in cs.diff("m", "other").notes if note.startswith(DIFFER) and said in note]
    for notes in (cs.average(["m", "other"]).notes, cs.fits("m", "other").notes):
        assert sum(note.startswith(DIFFER) for note in notes) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("1_Pooling/config.json", {"embedding_dimension": 4, "pooling_mode": "mean", "include_prompt": True}),
        ("2_Dense/config.json", {"in_features": 4, "out_features": 2, "bias": True, "activation_function": "torch.Tanh"}),
        ("modules.json", [
            {"path": place, "type": f"sentence_transformers.sentence_transformer.modules.{place[2:] or 'Transformer'}"}
            for place in ("", "1_Pooling", "2_Dense", "3_Normalize")
        ]),
        ("sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": False}),
        ("config_sentence_transformers.json", {
            "__version__": {"pytorch": "2"}, "prompts": {"query": ""}, "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        }),
    ],
)  # fmt: skip
def test_files_of_another_version_with_the_same_settings_are_not_said(name: str, value: Any) -> None:
    two(**{name: value})
    assert not [note for note in cs.diff("m", "other").notes if note.startswith(DIFFER)]


def test_other_weights_of_a_module_are_said() -> None:
    two()
    file = "2_Dense/model.safetensors"
    value = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    save_file({"linear.weight": value}, f"other/{file}", metadata={"other": "bytes"})
    assert not [note for note in cs.diff("m", "other").notes if note.startswith(DIFFER)]
    save_file({"linear.weight": value + 1}, f"other/{file}")
    assert f"{DIFFER}: {file} has other weights in m than in other" in cs.diff("m", "other").notes
    Path("other", file).unlink()
    assert f"{DIFFER}: only m has {file}" in cs.diff("m", "other").notes


def found(path: str) -> list[tuple[str, str]]:
    notes = cs.inspect(path).notes
    rows = [(row.id, one.what) for row in cs.check(path).rows for one in row.found if one.what in notes]
    return [(check, said) for check, said in rows if "_Dense" in said or "_Pooling" in said]


def test_modules_without_their_files_fail() -> None:
    sentences("m")
    assert not found("m")
    Path("m/2_Dense/model.safetensors").rename("moved")
    Path("m/2_Dense/README.md").write_text("# Dense")
    said = "modules.json lists 2_Dense (Dense), but its folder has no weights"
    assert found("m") == [("missing-tensors", said)]
    assert said in cs.convert("m").notes
    Path("m/2_Dense/model.safetensors").symlink_to(Path("moved").resolve())
    assert not found("m")
    Path("m/1_Pooling").rename("elsewhere")
    pooling = [("missing-tensors", "modules.json lists 1_Pooling (Pooling), but its folder has no config.json")]
    assert found("m") == pooling
    Path("m/1_Pooling").mkdir()
    assert found("m") == pooling
    Path("m/1_Pooling").rmdir()
    Path("m/1_Pooling").symlink_to(Path("elsewhere").resolve())
    assert not found("m")
    Path("m/1_Pooling").unlink()
    Path("m/modules.json").write_text(Path("m/modules.json").read_text().replace('"path": ""', '"path": "0_Dense_Net"'))
    assert [said.partition(", but ")[2] for _, said in found("m")] == [
        "its folder has no config.json", "its folder has no weights", "its folder has no config.json",
    ]  # fmt: skip


def test_a_dense_layer_without_its_weight_fails() -> None:
    sentences("m")
    save_file({"other": torch.ones(2, 4)}, "m/2_Dense/model.safetensors")
    said = "2_Dense/model.safetensors has no linear.weight, the weight of the module"
    assert found("m") == [("missing-tensors", said)]


def test_dense_layers_of_other_widths_fail() -> None:
    sentences("m")
    said = (
        "2_Dense/config.json has in_features 4 and out_features 2, but linear.weight in 2_Dense/model.safetensors has"
    )
    save_file({"linear.weight": torch.randn(2, 8)}, "m/2_Dense/model.safetensors")
    assert found("m") == [("configuration", f"{said} shape (2, 8)")]
    Path("m/2_Dense/config.json").write_text(json.dumps({"in_features": 8, "out_features": 2}))
    assert found("m") == []  # the test model has no hidden_size
    config = json.loads(Path("m/config.json").read_text())
    Path("m/config.json").write_text(json.dumps({**config, "hidden_size": 4}))
    width = "2_Dense/config.json has in_features 8, but the modules before it are 4 wide"
    assert ("configuration", width) in found("m")
    Path("m/1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))  # the mean is the default
    assert not found("m")
    Path("m/2_Dense/model.safetensors").write_bytes(b"not weights")
    assert any("2_Dense/model.safetensors is not a checkpoint" in note for note in cs.inspect("m").notes)
    assert [row.id for row in cs.check("m").rows if row.status.value == "FAIL"] == ["unreadable-files"]
