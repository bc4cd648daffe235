"""Destinations that are SpeechBrain's ``hyperparams.yaml``: what hyperpyyaml makes of it, without the rest of a recipe."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ckptsurgeon as cs

from ..helpers.pace import in_time

GOLDEN = Path(__file__).resolve().parents[2] / "fixtures" / "golden" / "speechbrain"
THEIRS = json.loads((GOLDEN / "hyperparams.json").read_text())
Run = Callable[..., Any]

RECIPE = """
output_folder: !ref results/<name>
name: !PLACEHOLDER
deep: {a: {b: !PLACEHOLDER }}
size: 4
logger: !apply:recipe.starts_logging [!ref <output_folder>]
enc: !new:recipe.Encoder
    # !new:nowhere.Other
    size: !ref <size>
modules: {enc: !ref <enc>, head: !new:torch.nn.Linear {in_features: !ref <size>, out_features: !ref <size> + 1}}
# before: !new:nowhere.Encoder
tied: !new:torch.nn.ModuleList [[!ref <enc>, !ref <enc>]]
broken: {enc: !ref <enc>, size: !ref <size>}
"""


@pytest.fixture
def _installed() -> None:
    pytest.importorskip("hyperpyyaml", reason="it is in the extra dev")
    for path in (GOLDEN / "hyperparams").glob("*.yaml"):
        shutil.copy(path, path.name)
    Path("recipe.yaml").write_text(RECIPE)
    Path("recipe.py").write_text(
        "from pathlib import Path\nfrom torch import nn\n"
        "class Encoder(nn.Linear):\n    def __init__(self, size): super().__init__(size, size)\n"
        "def starts_logging(folder): Path('logged').touch()\n"
    )


def layout(target: cs.TargetSpec) -> list[list[Any]]:
    return [[key, list(info.shape), info.dtype] for key, info in target.tensors.items()]


def chosen(text: str) -> cs.TargetSpec:
    Path("dst.yaml").write_text(f"model: {{{text}}}\n")
    return cs.load_target("dst.yaml")


def test_without_hyperpyyaml_the_package_is_named(monkeypatch: pytest.MonkeyPatch, ckpt: Run) -> None:
    monkeypatch.setitem(sys.modules, "hyperpyyaml", None)
    monkeypatch.delitem(sys.modules, "hyperpyyaml.core", raising=False)
    shutil.copy(GOLDEN / "hyperparams" / "linear.yaml", "hyperparams.yaml")
    torch.save({"w": torch.ones(2)}, "a.pth")
    done = ckpt("transplant", "a.pth", "hyperparams.yaml")
    assert done.code == 2
    assert "hyperparams.yaml: the file is a SpeechBrain configuration, which needs the package hyperpyyaml" in done.err
    assert "pip install speechbrain" in done.err


@pytest.mark.usefixtures("_installed")
def test_the_destination_is_what_speechbrain_makes_of_it() -> None:
    assert layout(cs.load_target("linear.yaml")) == THEIRS["linear.yaml"]["modules"]
    named = chosen("speechbrain: linear.yaml, entry: model")
    assert layout(named) == THEIRS["linear.yaml"]["model"]
    assert (named.kind, named.config, named.files) == ("speechbrain", "dst.yaml", ("linear.yaml",))
    assert [key for key, _, _ in layout(named)] == ["0.0.weight", "0.0.bias", "1.weight", "1.bias"]


@pytest.mark.usefixtures("_installed")
def test_modules_of_speechbrain_are_what_they_are_there() -> None:
    """Run where SpeechBrain is installed; the recordings say what came of it."""
    if not importlib.util.find_spec("speechbrain"):
        pytest.skip("SpeechBrain is not installed")
    assert layout(cs.load_target("crdnn.yaml")) == THEIRS["crdnn.yaml"]["modules"]
    assert layout(chosen("speechbrain: crdnn.yaml, entry: model")) == THEIRS["crdnn.yaml"]["model"]
    assert not Path("results").exists()


@pytest.mark.usefixtures("_installed")
def test_a_class_that_is_not_installed_is_named() -> None:
    if importlib.util.find_spec("speechbrain"):
        pytest.skip("it is installed")
    with pytest.raises(cs.ConfigError, match=r"crdnn\.yaml: .* needs the package speechbrain"):
        cs.load_target("crdnn.yaml")


@pytest.mark.usefixtures("_installed")
def test_only_what_the_modules_need_is_run_and_that_is_said(ckpt: Run) -> None:
    target = cs.load_target("recipe.yaml")
    assert target.ran == ("recipe.Encoder from recipe.py", "torch.nn.Linear from torch")
    assert target.files == ("recipe.py",)
    assert target.notes == (
        "built only the entry modules and the entries that it uses; 6 other entries were not built",
    )
    assert not Path("logged").exists()
    assert not Path("results").exists()
    torch.save(nn.ModuleDict({"enc": nn.Linear(4, 4), "head": nn.Linear(4, 7)}).state_dict(), "src.pth")
    done = ckpt("transplant", "src.pth", "recipe.yaml", "--exclude", "head")
    assert done.code == 0, done
    assert "ran recipe.Encoder from recipe.py" in done.err
    assert ckpt("verify", "recipe.init.safetensors").code == 0


@pytest.mark.usefixtures("_installed")
def test_an_entry_that_holds_one_module_twice_is_tied() -> None:
    target = chosen("speechbrain: recipe.yaml, entry: tied")
    assert target.ties == {"1.weight": "0.weight", "1.bias": "0.bias"}
    assert layout(chosen("speechbrain: recipe.yaml, entry: modules.head"))[0] == ["weight", [5, 4], "float32"]


@pytest.mark.usefixtures("_installed")
def test_overrides_change_what_is_built() -> None:
    target = chosen("speechbrain: recipe.yaml, overrides: {size: 6}")
    assert target.tensors["head.weight"].shape == (7, 6)
    assert chosen("speechbrain: recipe.yaml, entry: modules, overrides: {enc: {size: 3}}").tensors[
        "enc.weight"
    ].shape == (3, 3)


@pytest.mark.long
@pytest.mark.usefixtures("_installed")
def test_the_same_seed_draws_the_same_and_another_seed_others() -> None:
    def drawn(seed: int) -> dict[str, bytes]:
        target = cs.load_target("linear.yaml")
        return {key: bytes(data) for key, data in target.initial(list(target.tensors), seed)}

    state = torch.get_rng_state()
    assert drawn(0) == drawn(0)
    assert drawn(0)["head.weight"] != drawn(1)["head.weight"]
    assert torch.equal(torch.get_rng_state(), state)  # the file sets a seed of its own; that is undone


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "speechbrain: recipe.yaml, entry: logger",
            r"the entry logger needs a value for name: in the file it is only !PLACEHOLDER.*overrides: \{name: …",
        ),
        (
            "speechbrain: recipe.yaml, entry: deep",
            r"the entry deep needs a value for deep\.a\.b: .*overrides: \{deep: \{a: \{b: …\}\}\}",
        ),
        (
            "speechbrain: recipe.yaml, entry: encoder",
            r"no entry encoder\. Choose another entry: .*the file makes enc, tied",
        ),
        ("speechbrain: recipe.yaml, entry: modules.hed", r"no entry modules\.hed\. Use one of enc, head"),
        ("speechbrain: recipe.yaml, entry: size", "size is 4, neither a module"),
        ("speechbrain: recipe.yaml, entry: broken", "the entry broken has values that are not modules: size"),
        (
            "speechbrain: recipe.yaml, overrides: {sizes: 3}",
            "the overrides contain 'sizes', which is not an entry of the file. Did you mean size",
        ),
        ("speechbrain: recipe.yaml, overrides: [3]", r"overrides is \[3\]"),
        ("speechbrain: recipe.yaml, overrides: {size: x}", "recipe.yaml"),
        ("speechbrain: recipe.yaml, entry: 3", "entry is 3, not the name"),
        ("speechbrain: 3", "speechbrain is 3, not a file name"),
        ("speechbrain: nothing.yaml", "cannot be read"),
        ("speechbrain: recipe.yaml, entries: model", "no field 'entries'. Did you mean entry"),
        ("speechbrain: recipe.yaml, name: hybrid_asr", "has both"),
    ],
)
def test_what_is_wrong_is_said(text: str, why: str) -> None:
    with pytest.raises(cs.ConfigError, match=why):
        chosen(text)


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "modules: {a: !new:torch.nn.Linea {}}",
            r"there is no module or object torch\.nn\.Linea\. Did you mean Linear",
        ),
        ("modules: {a: !new:torchh.nn.Linear {}}", "needs the package torchh. Did you mean torch"),
        ("modules: {a: !new:speechbran.nnet.CNN.Conv1d {}}", "speechbran. Did you mean speechbrain"),
        ("modules: {a: !new:nowhere.Thing {}}", "needs the package nowhere. pip install nowhere"),
        ("modules: {a: !new:falls.Thing {}}", "importing falls.Thing failed: RuntimeError: over"),
        ("modules: {a: !new:torch.nn.Linear {in: 3}}", r"TypeError: Invalid argument to class torch\.nn\.Linear"),
        ("modules: {a: !ref <b>}", "ValueError: The reference"),
        ("modules: {a: !new:torch.nn.Linear [1, 2]", "did not find expected"),
        ("modules: !new:torch.optim.Adam", r"Invalid argument to class torch\.optim\.Adam"),
        ("a: !ref <b>\nb: 3", "no entry modules"),
        ("- !ref <b>", "not a mapping from names to hyperparameters"),
        ("modules:\n    a: !include:nothing.yaml", "FileNotFoundError"),
    ],
)
def test_a_file_that_cannot_be_built_is_said_and_nothing_stays_changed(text: str, why: str, ckpt: Run) -> None:
    import yaml

    Path("falls.py").write_text("raise RuntimeError('over')\n")
    Path("hyperparams.yaml").write_text(text + "\n")
    torch.save({"w": torch.ones(2)}, "a.pth")
    with pytest.raises(cs.ConfigError, match=why):
        cs.load_target("hyperparams.yaml")
    assert yaml.constructor.BaseConstructor.construct_object.__defaults__ == (False,)
    assert ckpt("transplant", "a.pth", "hyperparams.yaml").code == 2


@pytest.mark.usefixtures("_installed")
def test_included_files_are_read_and_watched() -> None:
    Path("sizes.yaml").write_text("hidden: 3\n")
    Path("hyperparams.yaml").write_text(
        "sizes: !include:sizes.yaml\nmodules:\n    a: !new:torch.nn.Linear\n        - !ref <sizes[hidden]>\n        - 2\n"
    )
    Path("inside").mkdir()
    target = cs.load_target("hyperparams.yaml")
    assert target.tensors["a.weight"].shape == (2, 3)
    assert target.files == ("sizes.yaml",)


@pytest.mark.usefixtures("_installed")
def test_our_own_pretrainer_stands_in_for_speechbrains_in_the_same_file() -> None:
    from hyperpyyaml import load_hyperpyyaml

    made = load_hyperpyyaml(
        "enc: !new:torch.nn.Linear [4, 3]\n"
        "pretrainer: !new:ckptsurgeon.Pretrainer\n"
        "    collect_in: collected\n"
        "    loadables: {enc: !ref <enc>}\n"
        "    paths: {enc: source/enc.ckpt}\n"
    )
    Path("source").mkdir()
    theirs = nn.Linear(4, 3)
    torch.save(theirs.state_dict(), "source/enc.ckpt")
    made["pretrainer"].collect_files()
    assert made["pretrainer"].load_collected().counts == {"copied": 2}
    assert torch.equal(made["enc"].weight, theirs.weight)


HEAD = "size: 4\nmodules: {head: !new:torch.nn.Linear [!ref <size>, 2]}\n"
WIDE = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)]
TOO_MUCH = {
    "brackets": (f"{HEAD}deep: {'[' * 2_000}{']' * 2_000}\n", "nested more than 100 levels deep"),
    "brackets that are needed": (
        f"modules: {{head: !new:torch.nn.Linear [!ref <deep>, 2]}}\ndeep: {'[' * 2_000}{']' * 2_000}\n",
        "nested more than 100 levels deep",
    ),
    "aliases": (f"a0: &a0 [1]\n{''.join(WIDE)}{HEAD}", "aliases"),
    "references": (
        "a0: [1]\n" + "".join(f"a{i}: [{', '.join([f'!ref <a{i - 1}>'] * 10)}]\n" for i in range(1, 9))
        + "modules: {head: !new:torch.nn.Linear [!ref <a8>, 2]}\n",
        "aliases",
    ),
    "references in references": (
        "a0: [1]\n" + "".join(f"a{i}: [!ref <a{i - 1}>]\n" for i in range(1, 300))
        + "modules: {head: !new:torch.nn.Linear [!ref <a299>, 2]}\n",
        "nested more than 100 levels deep",
    ),
}  # fmt: skip


@pytest.mark.costly
@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("kind", TOO_MUCH)
def test_what_nests_or_multiplies_too_much_is_refused_at_once(kind: str, ckpt: Run) -> None:
    text, why = TOO_MUCH[kind]
    Path("hyperparams.yaml").write_text(text)
    torch.save({"w": torch.ones(2)}, "a.pth")
    with in_time():
        done = ckpt("transplant", "a.pth", "hyperparams.yaml")
    assert done.code == 2, done
    assert why in " ".join(done.err.split())


@pytest.mark.usefixtures("_installed")
def test_what_stands_many_times_is_looked_at_once() -> None:
    """Aliases that are within what a document may be."""
    Path("hyperparams.yaml").write_text("a0: &a0 [1]\n" + "".join(WIDE[:4]) + HEAD)
    assert layout(cs.load_target("hyperparams.yaml")) == [
        ["head.weight", [2, 4], "float32"], ["head.bias", [2], "float32"],
    ]  # fmt: skip


def test_tags_in_comments_and_texts_make_no_speechbrain_file(ckpt: Run) -> None:
    Path("dst.yaml").write_text("# model: !new:torch.nn.Linear\na: 1\n")
    torch.save({"w": torch.ones(2)}, "a.pth")
    assert "has no `model:` section" in ckpt("transplant", "a.pth", "dst.yaml").err
