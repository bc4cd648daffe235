"""What a training run of ESPnet leaves: epochs, links to the best of them, averages, a file to resume from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from fixtures.espnet_models import VARIANTS, recorded, state_of, toy

RUN = Path("exp/asr_train")
LINKS = {
    "valid.acc.best.pth": "40epoch.pth",
    "valid.acc.ave.pth": "valid.acc.ave_10best.pth",
    "latest.pth": "40epoch.pth",
}


@pytest.fixture(autouse=True)
def _run(_in_tmp_path: None) -> None:
    RUN.mkdir(parents=True)
    for name in ("39epoch", "40epoch", "valid.acc.ave_10best"):
        torch.save(state_of(toy()), RUN / f"{name}.pth")
    torch.save(VARIANTS["checkpoint"](state_of(toy())), RUN / "checkpoint.pth")
    for name, target in LINKS.items():
        (RUN / name).symlink_to(target)
    (RUN / "config.yaml").write_text("encoder: conformer\n")
    cs.init_config(RUN / "40epoch.pth", output="dst.yaml")


def test_a_run_s_average_is_taken_as_espnet_does_and_the_others_are_said() -> None:
    found = cs.open_checkpoint(RUN)
    assert [file.name for file in found.files] == ["valid.acc.ave.pth"]
    assert any("the average that ESPnet decodes with; also in the folder: 39epoch.pth" in note for note in found.notes)
    links = recorded("average")["4"]["links"]  # ESPnet itself makes this link
    assert links == {"valid.acc.ave.pth": "valid.acc.ave_4best.pth"}


@pytest.mark.parametrize("other", ["valid.loss.ave.pth", "train.loss.ave.pth", "valid.loss.ave_5best.pth"])
def test_the_average_by_accuracy_goes_before_those_of_other_criteria(other: str) -> None:
    shutil.copy(RUN / "39epoch.pth", RUN / other)
    found = cs.open_checkpoint(RUN)
    assert [file.name for file in found.files] == ["valid.acc.ave.pth"]
    assert any("read valid.acc.ave.pth, the average" in note for note in found.notes)


@pytest.mark.parametrize(
    ("gone", "taken"),
    [
        (["valid.acc.ave.pth"], "valid.acc.ave_10best.pth"),
        (["valid.acc.ave.pth", "valid.acc.ave_10best.pth"], "valid.acc.best.pth"),
    ],
)
def test_without_it_the_one_average_or_the_one_best_epoch_is_taken(gone: list[str], taken: str) -> None:
    for name in gone:
        (RUN / name).unlink()
    assert [file.name for file in cs.open_checkpoint(RUN).files] == [taken]


@pytest.mark.parametrize(
    ("more", "gone", "example"),
    [
        (["valid.loss.ave.pth", "train.loss.ave.pth"], ["valid.acc.ave.pth"], "train.loss.ave.pth"),
        (["valid.cer_ctc.best.pth"], ["valid.acc.ave.pth", "valid.acc.ave_10best.pth"], "valid.acc.best.pth"),
        ([], ["valid.acc.ave.pth", "valid.acc.ave_10best.pth", "valid.acc.best.pth"], "39epoch.pth"),
    ],
)
def test_where_criteria_contend_the_candidates_are_listed(
    more: list[str], gone: list[str], example: str, ckpt: Any
) -> None:
    for name in gone:
        (RUN / name).unlink()
    for name in more:
        (RUN / name).symlink_to("39epoch.pth")
    done = ckpt("transplant", RUN, "dst.yaml", "-o", "out.pth")
    assert done.code == 3
    said = " ".join(done.err.split())
    assert "exp/asr_train has several checkpoints: 39epoch.pth, 40epoch.pth, checkpoint.pth" in said
    assert f"Pass one of them, for example exp/asr_train/{example}." in said
    assert not Path("out.pth").exists()


def test_a_folder_without_a_checkpoint_says_so(ckpt: Any) -> None:
    shutil.rmtree(RUN)
    RUN.mkdir()
    (RUN / "config.yaml").write_text("encoder: conformer\n")
    done = ckpt("transplant", RUN, "dst.yaml", "-o", "out.pth")
    assert done.code == 3
    assert "exp/asr_train contains no checkpoint" in done.err
    assert not Path("out.pth").exists()


def test_where_a_link_leads_is_said(ckpt: Any) -> None:
    done = ckpt("inspect", RUN / "valid.acc.best.pth")
    assert done.code == 0
    assert "valid.acc.best.pth is a link to 40epoch.pth" in " ".join((done.out + done.err).split())
    assert any(
        "is a link to 40epoch.pth" in note for note in cs.transplant(RUN / "valid.acc.best.pth", "dst.yaml").notes
    )
    assert cs.open_checkpoint(RUN / "40epoch.pth").notes == ()


def test_a_link_into_a_cache_of_blobs_is_not_worth_a_word() -> None:
    Path("blobs").mkdir()
    shutil.copy(RUN / "40epoch.pth", "blobs/0a1b2c")
    os.symlink("blobs/0a1b2c", "model.pth")
    assert cs.open_checkpoint("model.pth").notes == ()


def test_a_link_to_nothing_names_what_it_points_to(ckpt: Any) -> None:
    (RUN / "valid.loss.best.pth").symlink_to("41epoch.pth")
    for arguments in (
        ["inspect", RUN / "valid.loss.best.pth"],
        ["transplant", RUN / "valid.loss.best.pth", "dst.yaml"],
    ):
        done = ckpt(*arguments)
        assert done.code == 3
        said = " ".join(done.err.split())
        assert "exp/asr_train/valid.loss.best.pth is a link to 41epoch.pth, which does not exist." in said
    assert not Path("dst.init.safetensors").exists()


@pytest.mark.parametrize(
    ("link", "gone"),
    [
        ("valid.acc.ave.pth", ["valid.acc.ave_10best.pth"]),
        ("valid.acc.ave.pth", [*LINKS, "39epoch.pth", "checkpoint.pth", "valid.acc.ave_10best.pth"]),
        ("valid.acc.best.pth", ["valid.acc.ave.pth", "valid.acc.ave_10best.pth"]),
        ("latest.pth", [*LINKS, "39epoch.pth", "40epoch.pth", "checkpoint.pth", "valid.acc.ave_10best.pth"]),
    ],
)
def test_a_run_whose_checkpoint_is_a_link_to_nothing_takes_no_other(link: str, gone: list[str], ckpt: Any) -> None:
    for name in {*gone, link}:
        (RUN / name).unlink()
    (RUN / link).symlink_to("lost.pth")
    done = ckpt("transplant", RUN, "dst.yaml", "-o", "out.pth")
    assert done.code == 3
    assert f"exp/asr_train/{link} is a link to lost.pth, which does not exist." in " ".join(done.err.split())
    assert not Path("out.pth").exists()


def test_a_link_to_nothing_that_would_not_be_taken_is_no_error() -> None:
    (RUN / "40epoch.pth").unlink()  # valid.acc.best.pth leads there, and valid.acc.ave.pth is taken
    assert [file.name for file in cs.open_checkpoint(RUN).files] == ["valid.acc.ave.pth"]


@pytest.mark.parametrize("target", ["40epoch.pth", "41epoch.pth"])
def test_an_output_that_is_a_link_replaces_the_link_and_only_when_forced(target: str, ckpt: Any) -> None:
    link, before = RUN / "best.pth", (RUN / "40epoch.pth").read_bytes()
    link.symlink_to(target)
    done = ckpt("transplant", RUN / "39epoch.pth", "dst.yaml", "-o", link)
    assert done.code == 5
    said = " ".join(done.err.split())
    assert f"best.pth exists: it is a link to {target}" in said
    assert "Use --force to replace the link; what it points to stays." in said
    assert os.readlink(link) == target
    assert ckpt("transplant", RUN / "39epoch.pth", "dst.yaml", "-o", link, "--force").code == 0
    assert not link.is_symlink()
    assert (RUN / "40epoch.pth").read_bytes() == before
    assert not (RUN / "41epoch.pth").exists()


def test_a_link_to_the_source_is_no_output_even_when_forced(ckpt: Any) -> None:
    done = ckpt("transplant", RUN / "40epoch.pth", "dst.yaml", "-o", RUN / "valid.acc.best.pth", "--force")
    assert done.code == 5
    assert (RUN / "valid.acc.best.pth").is_symlink()


def test_what_the_trainer_s_file_holds_beside_the_model_is_shown() -> None:
    found = cs.inspect(RUN / "checkpoint.pth")
    assert (found.root, len(found.tensors)) == ("model", 12)
    assert [extra.key for extra in found.extras] == ["reporter", "optimizers", "schedulers", "scaler"]


# A model that ESPnet packed, as its repositories on the hub are: meta.yaml names the files.

META = 'espnet: "202511"\nfiles:\n  lm_file: exp/lm/9epoch.pth\n  asr_model_file: exp/asr/valid.acc.ave.pth\n'


def _packed(meta: str = META) -> None:
    for name in ("exp/asr/valid.acc.ave.pth", "exp/lm/9epoch.pth"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({f"{Path(name).parent.name}.weight": torch.ones(2)}, name)
    Path("meta.yaml").write_text(meta)


def test_a_packed_model_is_read_where_its_meta_yaml_points() -> None:
    _packed()
    found = cs.inspect(".")
    assert list(found.tensors) == ["asr.weight"]
    assert found.notes == (
        "read exp/asr/valid.acc.ave.pth, the asr_model_file of meta.yaml; also in the folder: exp/lm/9epoch.pth",
    )
    _packed(META.replace("  asr_model_file: exp/asr/valid.acc.ave.pth\n", ""))
    assert list(cs.inspect(".").tensors) == ["lm.weight"]


@pytest.mark.parametrize(
    ("meta", "why"),
    [
        (META.replace("exp/asr", "../asr"), "refers to a file outside of it"),
        (META.replace("exp/asr", "exp/gone"), "exp/gone/valid.acc.ave.pth does not exist"),
        (META.replace("files", "files_too"), "contains no checkpoint"),
        (META.replace("espnet", "other"), "contains no checkpoint"),
        ("files: [", "contains no checkpoint"),
        ("files: {asr_model_file: [1]}\nespnet: 1\n", "contains no checkpoint"),
    ],
)
def test_a_meta_yaml_that_points_elsewhere_or_nowhere_is_an_error(meta: str, why: str) -> None:
    _packed(meta)
    with pytest.raises(cs.CheckpointError, match=why):
        cs.inspect(".")
