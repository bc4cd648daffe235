"""Terms of use go with the weights, byte for byte; other terms of further models are named, and so is a model card."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.destinations.hf.files import is_licence

from ...helpers.hub.server import Hub
from ..gguf.test_layouts import model as llama
from .test_model_folders import adapter, model

TERMS = {"LICENSE": b"terms\r\nof  the base\n", "NOTICE.txt": b"\xff notice", "USE_POLICY.md": b"# Policy\n"}
TERMS_DIFFER = "different terms of use"


def with_terms(path: str, terms: dict[str, bytes] = TERMS) -> str:
    for name, data in terms.items():
        Path(path, name).write_bytes(data)
    return path


def recipe(text: str) -> str:
    Path("recipe.yaml").write_text(text)
    return "recipe.yaml"


MERGEKIT = """
merge_method: linear
models: [{model: m, parameters: {weight: 0.5}}, {model: other, parameters: {weight: 0.5}}]
"""
TENSORS = "model: {tensors: {model.norm.weight: {shape: [4], init: zeros}}}\n"
VERBS: dict[str, Callable[[], cs.Plan]] = {
    "convert": lambda: cs.convert("m"),
    "convert to bf16": lambda: cs.convert("m", dtype="bf16"),
    "convert of the file": lambda: cs.convert("m/model.safetensors"),
    "filter": lambda: cs.filter("m", exclude=["model.layers.2"]),
    "filter without config.json": lambda: cs.filter("m", exclude=["lm_head"]),
    "rename": lambda: cs.rename("m", map=["model.layers=model.blocks"]),
    "average": lambda: cs.average(["m", "other"]),
    "merge": lambda: cs.merge(["m", "other"], method="linear", weights=[0.5, 0.5]),
    "merge onto a base": lambda: cs.merge(["other"], base="m", method="task_arithmetic", weights=[0.5]),
    "merge by mergekit": lambda: cs.merge(recipe(MERGEKIT)),
    "lora merge": lambda: cs.lora_merge("m", "lora"),
    "lora extract": lambda: cs.lora_extract("m", "other", rank=2),
    "transplant into a checkpoint": lambda: cs.transplant("other", "m"),
    "transplant out of it": lambda: cs.transplant("m", "other"),
    "transplant into tensors": lambda: cs.transplant("m", recipe(TENSORS), include=["model.norm"]),
}


@pytest.mark.parametrize("verb", VERBS)
def test_terms_of_use_go_with_the_weights_and_are_verified(verb: str) -> None:
    with_terms(model("m"))
    model("other", seed=1)
    adapter("lora", target="base_model.model.model.layers.0.mlp")
    plan = VERBS[verb]()
    assert not [note for note in plan.notes if TERMS_DIFFER in note]
    cs.apply(plan, "out")
    assert {name: Path("out", name).read_bytes() for name in TERMS} == TERMS
    assert cs.verify("out").ok
    Path("out/NOTICE.txt").write_bytes(b"\xff notics")
    assert [one.why for one in cs.verify("out").failed] == [
        "NOTICE.txt next to the weights has changed since it was written"
    ]


@pytest.mark.costly
@pytest.mark.parametrize("verb", ["average", "merge", "merge onto a base", "merge by mergekit", "lora merge"])
def test_other_terms_of_a_further_model_are_named(verb: str) -> None:
    with_terms(model("m"))
    model("other", seed=1)
    adapter("lora", target="base_model.model.model.layers.0.mlp")
    for one in ("other", "lora"):
        with_terms(one, {"LICENSE.md": b"terms of\n\nthe base", "Notice": b"another"})
    (note,) = [note for note in VERBS[verb]().target.notes if TERMS_DIFFER in note]
    other = "lora/adapter_model.safetensors" if verb == "lora merge" else "other"
    assert note == (
        f"{other} has different terms of use (Notice) than m, whose LICENSE, NOTICE.txt, USE_POLICY.md the output gets: read the terms of both"
    )
    cs.apply(VERBS[verb](), "out")
    assert not os.path.lexists("out/Notice")


def test_a_transplant_names_the_terms_of_both() -> None:
    with_terms(model("m"))
    with_terms(model("other", seed=1), {"LICENSE": b"other"})
    (note,) = [note for note in cs.transplant("m", "other").notes if TERMS_DIFFER in note]
    assert note.startswith(
        "m has different terms of use (LICENSE, NOTICE.txt, USE_POLICY.md) than other, whose LICENSE"
    )


def test_a_single_file_gets_no_terms_and_no_note_on_them(ckpt: Callable[..., Any]) -> None:
    with_terms(model("m"))
    with_terms(model("other", seed=1), {"LICENSE": b"other"})
    done = ckpt("average", "m", "other", "-o", "out.safetensors")
    assert (done.code, TERMS_DIFFER in done.err) == (0, False)
    assert set(os.listdir()) == {"m", "other", "out.safetensors"}


def test_a_model_card_is_named_only_where_there_is_one() -> None:
    model("m")
    os.remove("m/modeling_x.py")
    assert cs.convert("m").target.notes == ("files in the folder that are not copied: README.md",)
    os.remove("m/README.md")
    assert cs.convert("m").target.notes == ()


LEFT = "files in the folder that are not copied: "


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("resized", [{"set": {"intermediate_size": 32}}, {"set": {"vocab_size": 32}, "dtype": "bf16"}])
def test_a_resize_names_the_files_that_it_does_not_copy(resized: dict[str, Any]) -> None:
    llama("llama", "net")
    assert not any(LEFT in note for note in cs.resize("net", **resized).notes)
    for name in ("README.md", "LICENSE", "training_args.bin"):
        Path("net", name).write_text("x")
    plan = cs.resize("net", **resized)
    assert f"{LEFT}README.md, training_args.bin" in plan.notes
    cs.apply(plan, "out")
    assert {"config.json", "LICENSE"} <= set(os.listdir("out"))
    assert not any(LEFT in note for note in cs.apply(plan, "out.safetensors").notes)


@pytest.mark.long
def test_a_transplant_into_a_configuration_names_the_files_beside_it_that_it_does_not_copy() -> None:
    for one in ("net", "dst"):
        llama("llama", one)
    with_terms("net", {"LICENSE": b"x"})
    Path("dst.yaml").write_text("model: {transformers: dst/config.json}")
    for target in ("dst/config.json", "dst.yaml", "net/config.json"):  # the weights there are not meant
        assert not any(LEFT in note for note in cs.transplant("net", target).notes)
    for one in ("net", "dst"):
        Path(one, "README.md").write_text("x")
        Path(one, "NOTICE").write_text(one)
    Path("dst/USE_POLICY.md").write_text("x")
    for target in ("dst/config.json", "dst.yaml"):
        plan = cs.transplant("net", target)
        assert plan.target.notes == (f"{LEFT}README.md, USE_POLICY.md",)
        assert {one.name for one in plan.target.companions} >= {"LICENSE", "NOTICE"}
    assert cs.transplant("net", "net/config.json").target.notes == (f"{LEFT}README.md",)


ADAPTERS: dict[str, Callable[[], cs.Plan]] = {
    "resize": lambda: cs.lora_resize("lora", rank=1),
    "concat": lambda: cs.lora_concat(["lora", "lora2"]),
    "convert": lambda: cs.lora_convert("lora", to="mlx"),
    "extract": lambda: cs.lora_extract("m", "other", rank=2),
}


@pytest.mark.costly
@pytest.mark.parametrize("verb", ADAPTERS)
def test_a_new_adapter_names_the_files_that_it_does_not_get(verb: str) -> None:
    for seed, one in enumerate(("m", "other")):
        model(one, seed=seed)
    for one in ("lora", "lora2"):
        adapter(one, target="base_model.model.model.layers.0.mlp")
        os.remove(f"{one}/tokenizer_config.json")
    for name in os.listdir("m"):
        if name not in ("config.json", "model.safetensors"):
            os.remove(f"m/{name}")
    with_terms("lora")
    with_terms("m")
    assert not any(LEFT in note for note in ADAPTERS[verb]().notes)
    for one in ("lora", "m"):
        Path(one, "README.md").write_text("x")
        Path(one, "tokenizer_config.json").write_text("{}")
    plan = ADAPTERS[verb]()
    assert f"{LEFT}README.md, tokenizer_config.json" in plan.target.notes
    cs.apply(plan, "out")
    assert set(TERMS) <= set(os.listdir("out"))


def test_terms_of_an_earlier_output_do_not_stay() -> None:
    with_terms(model("m"))
    model("other", seed=1)
    cs.apply(cs.convert("m"), "out")
    cs.apply(cs.convert("other"), "out", force=True)
    assert not set(os.listdir("out")) & set(TERMS)
    Path("out/LICENSE").write_text("mine")
    cs.apply(cs.convert("other"), "out", force=True)
    assert Path("out/LICENSE").read_text() == "mine"
    Path("new").mkdir()
    Path("new/LICENSE").write_text("mine")
    with pytest.raises(cs.OutputError, match="new has files that the output would replace: LICENSE"):
        cs.apply(cs.convert("m"), "new")


def test_terms_that_lie_elsewhere_are_not_copied() -> None:
    model("m")
    Path("secret").write_text("secret")
    Path("m/LICENSE").symlink_to("../secret")
    plan = cs.convert("m")
    assert "symbolic links to files outside the folder are not copied: LICENSE" in plan.notes
    cs.apply(plan, "out")
    assert not os.path.lexists("out/LICENSE")


@pytest.mark.long
def test_terms_at_an_address_go_with_the_weights(hub: Hub) -> None:
    with_terms(model("m"))
    hub.repository("org/net", {name: Path("m", name).read_bytes() for name in os.listdir("m")})
    cs.apply(cs.convert("hf://org/net", dtype="bf16"), "out")
    assert {name: Path("out", name).read_bytes() for name in TERMS} == TERMS


def test_terms_beside_a_gguf_file_go_into_the_folder_of_transformers() -> None:
    llama("llama", "net")
    Path("gguf").mkdir()
    cs.apply(cs.convert("net", layout="gguf"), "gguf/model.gguf")
    with_terms("gguf")
    cs.apply(cs.convert("gguf", layout="transformers"), "out")
    assert {name: Path("out", name).read_bytes() for name in TERMS} == TERMS


@pytest.mark.parametrize(
    "name",
    [
        "LICENSE", "license.txt", "LICENCE.md", "LICENSE-MODEL", "MODEL_LICENSE", "LICENSE-2.0", "LICENSE.Apache-2.0",
        "llama3_license.pdf", "NOTICE", "Notice.txt", "THIRD-PARTY-NOTICES.txt", "USE_POLICY.md", "use-policy", "COPYING",
    ],
)  # fmt: skip
def test_these_are_terms_of_use(name: str) -> None:
    assert is_licence(name)


@pytest.mark.parametrize(
    "name",
    [
        "README.md", "license.json", "check_license.py", "license.safetensors", "notice.bin", ".license", "unlicensed.txt",
        "policy.md", "config.json", "tokenizer.model", "noticeable.md",
    ],
)  # fmt: skip
def test_these_are_no_terms_of_use(name: str) -> None:
    assert not is_licence(name)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("LICENSE-MODEL", True), ("third_party_notices.txt", True), ("LICENSE.apache-2.0.txt", True), ("license_plate_classes.txt", False),
        ("plate_license.txt", False), ("my_license_free_words.txt", False),
    ],
)  # fmt: skip
def test_a_name_with_the_word_in_it_is_not_always_that_of_terms(name: str, is_one: bool) -> None:
    assert is_licence(name) == is_one
