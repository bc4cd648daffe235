"""Links beside the weights: what leads out of a folder is another's file, and goes into no output."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

SECRET = "do not copy me"
PREFIX = "base_model.model.layers.0"


def model(path: str, seed: int = 0) -> str:
    Path(path).mkdir(parents=True)
    torch.manual_seed(seed)
    save_file({f"layers.{number}.weight": torch.randn(4, 4) for number in range(3)}, f"{path}/model.safetensors")
    Path(path, "config.json").write_text(json.dumps({"model_type": "x", "num_hidden_layers": 3}))
    return path


def adapter(path: str) -> str:
    Path(path).mkdir()
    factors = {f"{PREFIX}.lora_A.weight": torch.ones(2, 4), f"{PREFIX}.lora_B.weight": torch.ones(4, 2)}
    save_file(factors, f"{path}/adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["0"]}
    Path(path, "adapter_config.json").write_text(json.dumps(settings))
    return path


def secret(name: str = "tokenizer.json", text: str = json.dumps({SECRET: 1})) -> str:
    Path("elsewhere").mkdir(exist_ok=True)
    Path("elsewhere", name).write_text(text)
    return os.path.abspath(f"elsewhere/{name}")


WAYS: dict[str, Callable[[], None]] = {
    "absolute": lambda: Path("m/tokenizer.json").symlink_to(secret()),
    "relative": lambda: Path("m/tokenizer.json").symlink_to(os.path.relpath(secret(), "m")),
    "of a link": lambda: (
        Path("m/x").symlink_to(secret()),
        Path("m/tokenizer.json").symlink_to("x"),
    )[0],
    "by a folder": lambda: (
        Path("m/sub").symlink_to(os.path.dirname(secret())),
        Path("m/tokenizer.json").symlink_to("sub/tokenizer.json"),
    )[0],
    "a folder that begins alike": lambda: (
        Path("m2").mkdir(),
        Path("m2/tokenizer.json").write_text(json.dumps({SECRET: 1})),
        Path("m/tokenizer.json").symlink_to("../m2/tokenizer.json"),
    )[0],
}
VERBS: dict[str, Callable[[], cs.Plan]] = {
    "convert": lambda: cs.convert("m"),
    "convert to bf16": lambda: cs.convert("m", dtype="bf16"),
    "convert of the file": lambda: cs.convert("m/model.safetensors"),
    "convert of local://": lambda: cs.convert(f"local://{os.path.abspath('m')}"),
    "filter": lambda: cs.filter("m", exclude=["layers.2"]),
    "rename": lambda: cs.rename("m", map=["layers=blocks"]),
    "average": lambda: cs.average(["m", "other"]),
    "merge": lambda: cs.merge(["m", "other"], method="linear", weights=[0.5, 0.5]),
    "lora merge": lambda: cs.lora_merge("m", "lora"),
    "transplant": lambda: cs.transplant("other", "m"),
}


def leaks(folder: str) -> bool:
    return any(SECRET.encode() in path.read_bytes() for path in Path(folder).iterdir())


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("way", WAYS)
def test_no_verb_copies_what_a_link_leads_to(way: str, verb: str) -> None:
    model("m")
    model("other", 1)
    adapter("lora")
    WAYS[way]()
    plan = VERBS[verb]()
    cs.apply(plan, "out")
    assert "tokenizer.json" not in os.listdir("out")
    assert not leaks("out")
    said = any(
        "symbolic links to files outside the folder are not copied: tokenizer.json" in note for note in plan.notes
    )
    assert said or "://" in verb  # fsspec lists no links


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "vocab.txt", "chat_template.jinja"])
def test_every_file_of_the_folder_is_held_to_it(name: str) -> None:
    model("m")
    Path("m", name).unlink(missing_ok=True)
    Path("m", name).symlink_to(secret(name))
    for number, dtype in enumerate(("float32", "bf16")):
        plan = cs.convert("m", dtype=dtype)
        cs.apply(plan, f"out{number}")
        assert not leaks(f"out{number}")
        assert name not in os.listdir(f"out{number}")
        assert any(f"folder are not copied: {name}" in note for note in plan.notes)


def test_texts_of_an_index_elsewhere_are_not_carried() -> None:
    cs.apply(cs.convert(model("m")), "s", max_shard_size="130B")
    index = json.loads(Path("s/model.safetensors.index.json").read_text())
    index["metadata"]["note"] = SECRET
    Path("s/model.safetensors.index.json").write_text(json.dumps(index))
    cs.apply(cs.convert("s"), "own.safetensors")
    assert SECRET.encode() in Path("own.safetensors").read_bytes()
    Path("s/model.safetensors.index.json").rename(secret("index.json"))
    Path("s/model.safetensors.index.json").symlink_to("../elsewhere/index.json")
    plan = cs.convert("s")
    cs.apply(plan, "out.safetensors")
    assert (
        "model.safetensors.index.json is a link to a file outside its folder: its metadata is not copied" in plan.notes
    )
    assert SECRET.encode() not in Path("out.safetensors").read_bytes()


def test_links_within_the_folder_and_of_the_folder_are_followed() -> None:
    model("real")
    Path("real/tok").mkdir()
    Path("real/tok/t.json").write_text("{}")
    Path("real/tokenizer.json").symlink_to("tok/t.json")
    Path("m").symlink_to("real")
    cs.apply(cs.convert("m"), "out")
    assert Path("out/tokenizer.json").read_text() == "{}"


def cached(blob: str, of: str = "models--org--net") -> str:
    folder = f"hub/{of}/snapshots/{'c' * 40}"
    model(folder)
    blobs = Path("hub/models--org--net/blobs")
    blobs.mkdir(parents=True, exist_ok=True)
    Path(blobs, blob).write_text(json.dumps({SECRET: 1}))
    Path(folder, "tokenizer.json").symlink_to(f"../../../models--org--net/blobs/{blob}")
    return folder


@pytest.mark.parametrize("length", [40, 64])
def test_blobs_of_the_hub_s_cache_are_its_own(length: int) -> None:
    cs.apply(cs.convert(cached("a" * length)), "out")
    assert leaks("out")


@pytest.mark.parametrize(("blob", "of"), [("id_rsa", "models--org--net"), ("a" * 40, "models--org--other")])
def test_no_other_file_is_one_of_its_blobs(blob: str, of: str) -> None:
    cs.apply(cs.convert(cached(blob, of)), "out")
    assert not leaks("out")


def test_a_blob_that_is_a_link_itself_is_not_followed() -> None:
    folder = cached("a" * 40)
    blob = Path("hub/models--org--net/blobs", "a" * 40)
    blob.unlink()
    blob.symlink_to(secret())
    cs.apply(cs.convert(folder), "out")
    assert not leaks("out")


def test_verify_opens_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model("m")
    Path("m/tokenizer.json").write_text("{}")
    cs.apply(cs.convert("m"), "out")
    assert cs.verify("out").ok
    Path("out/tokenizer.json").unlink()
    Path("out/tokenizer.json").symlink_to(secret(text="{}"))
    opened: list[str] = []
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **more: (opened.append(str(path)), real(path, *rest, **more))[1]
    )
    verified = cs.verify("out")
    assert [one.why for one in verified.failed] == [
        "tokenizer.json next to the weights is a link to a file outside the folder; such links are not followed"
    ]
    assert opened
    assert not any("tokenizer" in path for path in opened)


def test_a_file_that_becomes_a_link_after_the_plan_is_not_followed() -> None:
    model("m")
    Path("m/tokenizer.json").write_text(json.dumps({SECRET: 1}))
    plan = cs.convert("m")
    Path("m/tokenizer.json").unlink()
    Path("m/tokenizer.json").symlink_to(secret())
    with pytest.raises(
        cs.PlanError, match=r"tokenizer\.json is a link to a file outside its folder; such links are not followed"
    ):
        cs.apply(plan, "out")
    assert not Path("out").exists()


def test_a_configuration_of_an_adapter_that_leads_out_is_refused() -> None:
    model("m")
    adapter("lora")
    Path("elsewhere").mkdir()
    Path("lora/adapter_config.json").rename("elsewhere/adapter_config.json")
    Path("lora/adapter_config.json").symlink_to("../elsewhere/adapter_config.json")
    for given in ("lora", "lora/adapter_model.safetensors"):
        with pytest.raises(cs.SourceError, match=r"adapter_config\.json is a link to a file outside its folder"):
            cs.lora_merge("m", given)


def test_a_token_list_that_leads_out_is_not_found_beside_a_model() -> None:
    model("m")
    model("other", 1)
    Path("other/vocab.txt").write_text("a\nb\nc\nd\n")
    Path("m/vocab.txt").symlink_to(secret("vocab.txt", f"{SECRET}\nb\nc\nd\n"))
    with pytest.raises(cs.ConfigError, match=r"next to m \(the link vocab\.txt leads out of the folder\)\."):
        cs.merge(["m", "other"], method="linear", weights=[0.5, 0.5], vocab="union")


def test_the_list_s_own_tokeniser_is_taken_from_its_folder_alone() -> None:
    model("m")
    tokens: dict[str, Any] = {token: number for number, token in enumerate("abcd")}
    Path("m/vocab.json").write_text(json.dumps(tokens))
    Path("new").mkdir()
    Path("new/vocab.json").write_text(json.dumps({token: number for number, token in enumerate("dcba")}))
    Path("new/tokenizer_config.json").symlink_to(secret("tokenizer_config.json"))
    keys = ["layers.0.weight=0"]
    cs.apply(cs.transplant("m", "m/../m", vocab=("m/vocab.json", "new/vocab.json"), vocab_keys=keys), "out")
    assert "vocab.json" in os.listdir("out")
    assert not leaks("out")
