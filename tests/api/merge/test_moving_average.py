"""Moving averages: each window is the mean that ``average`` gives of its checkpoints, whatever their format."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.api.merge import moving_average

Run = Callable[..., Any]
PATHS = [f"epoch-{number}.pth" for number in range(5)]


@pytest.fixture(autouse=True)
def checkpoints() -> None:
    for number, path in enumerate(PATHS):
        torch.manual_seed(number)
        torch.save({"w": torch.randn(5, 3), "half": torch.randn(4).half(), "steps": torch.tensor(number)}, path)


@pytest.mark.costly
@pytest.mark.parametrize("window", [2, 3, 5])
def test_each_window_is_the_average_of_its_checkpoints(window: int) -> None:
    receipts = cs.average_windows(PATHS, "means", window=window)
    names = PATHS[window - 1 :]
    assert [one.output for one in receipts] == [f"means/{name}" for name in names]
    assert sorted(os.listdir("means")) == names
    for place, name in enumerate(names):
        cs.apply(cs.average(PATHS[place : place + window]), "mean.pth", force=True)
        made, mean = (torch.load(path, weights_only=True) for path in (f"means/{name}", "mean.pth"))
        assert all(torch.equal(made[key], mean[key]) for key in mean)
        assert cs.verify(f"means/{name}").ok


def test_folders_and_equal_names_are_named_after_their_folders() -> None:
    for number, path in enumerate(PATHS[:3]):
        Path(f"step-{number}").mkdir()
        os.rename(path, f"step-{number}/model.pth")
    inside = [f"step-{number}/model.pth" for number in range(3)]
    cs.average_windows(inside, "means", window=2)
    assert sorted(os.listdir("means")) == ["step-1.safetensors", "step-2.safetensors"]
    with pytest.raises(cs.ConfigError, match="cannot be named after the checkpoints"):
        cs.average_windows([inside[0], inside[0], inside[1]], "more", window=2)
    with pytest.raises(cs.ConfigError, match="nor after their folders: several .* same name, and several are in"):
        cs.average_windows([inside[0], inside[1], "step-1/other.pth"], "more", window=2)
    assert not Path("more").exists()


def test_checkpoints_of_torch_distributed_are_averaged() -> None:
    for number, path in enumerate(PATHS[:3]):
        cs.apply(cs.convert(path), f"dcp-{number}", to="dcp")
    cs.average_windows([f"dcp-{number}" for number in range(3)], "means", window=2)
    cs.apply(cs.average(PATHS[:2]), "mean.safetensors")
    assert sorted(os.listdir("means")) == ["dcp-1.safetensors", "dcp-2.safetensors"]
    assert not cs.diff("means/dcp-1.safetensors", "mean.safetensors", values=True).differs


def test_wrong_windows_and_outputs_that_exist_are_errors() -> None:
    for window in (0, 1, 6):
        with pytest.raises(cs.ConfigError) as error:
            cs.average_windows(PATHS, "means", window=window)
        assert error.value.message == f"--window {window} is not possible with 5 checkpoints."
    assert not Path("means").exists()
    cs.average_windows(PATHS, "means", window=4)
    with pytest.raises(cs.OutputError, match=r"means/epoch-3\.pth exists"):
        cs.average_windows(PATHS, "means", window=4)
    cs.average_windows(PATHS, "means", window=4, force=True)
    with pytest.raises(cs.OutputError, match="cannot write epoch-0.pth"):
        cs.average_windows(PATHS, "epoch-0.pth", window=4)


@pytest.mark.long
def test_a_folder_for_means_is_not_named_like_a_file() -> None:
    with pytest.raises(
        cs.OutputError, match=r"mean\.pth is the name of a file, but a moving average writes a folder \(here of 4 files"
    ):
        cs.average_windows(PATHS, "mean.pth", window=2)
    assert not Path("mean.pth").exists()
    cs.average_windows(PATHS, "means.pth/", window=2)  # the slash says that a folder is meant
    assert len(os.listdir("means.pth")) == 4
    cs.average_windows(PATHS, "means.pth", window=2, force=True)  # the folder is there


def test_a_checkpoint_of_another_model_is_an_error_before_anything_is_written() -> None:
    torch.save({"w": torch.ones(2), "half": torch.ones(4).half(), "steps": torch.tensor(9)}, PATHS[-1])
    with pytest.raises(cs.PlanError, match="shapes differ"):
        cs.average_windows(PATHS, "means", window=2)
    assert not Path("means").exists()


def test_the_sources_are_never_replaced() -> None:
    with pytest.raises(cs.OutputError):
        cs.average_windows(PATHS, ".", window=2, force=True)


def test_the_command_writes_windows(ckpt: Run) -> None:
    done = ckpt("average", *PATHS, "--window", "4", "-o", "means/")
    assert done.code == 0, done
    assert done.out.count("wrote means/epoch-") == 2
    found = json.loads(ckpt("average", *PATHS, "--window", "4", "-o", "means/", "--force", "--json").out)
    assert (found["kind"], len(found["outputs"])) == ("ckpt.windows", 2)
    for option in (["--running", "steps"], ["--to", "dcp"], ["-n"], ["--max-shard-size", "1MB"]):
        wrong = ckpt("average", *PATHS, "--window", "4", "-o", "more/", *option)
        assert wrong.code == 2
        assert f"{option[0]} cannot be used with --window." in wrong.err
    assert not Path("more").exists()


def test_means_are_written_in_groups_and_one_that_fails_leaves_nothing_unfinished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(moving_average, "TOGETHER", 2)
    receipts = cs.average_windows(PATHS, "means", window=2)
    assert [one.output for one in receipts] == [f"means/{name}" for name in PATHS[1:]]
    apply = moving_average.apply

    def failing(plan: cs.Plan, output: str, **options: Any) -> cs.Receipt:
        if output.endswith(PATHS[3]):
            raise cs.OutputError("the disk is full.")
        return apply(plan, output, **options)

    monkeypatch.setattr(moving_average, "apply", failing)
    with pytest.raises(cs.OutputError, match="the disk is full"):
        cs.average_windows(PATHS, "others", window=2)
    assert {PATHS[1], PATHS[2]} <= {*os.listdir("others")} <= {*PATHS}
    assert PATHS[3] not in os.listdir("others")


@pytest.mark.costly
@pytest.mark.parametrize("weights", [{"decay": "1-sqrt"}, {"ema": 0.9}])
def test_each_window_may_be_a_weighted_mean(weights: dict[str, Any]) -> None:
    cs.average_windows(PATHS, "means", window=3, **weights)
    for place, name in enumerate(PATHS[2:]):
        cs.apply(cs.average(PATHS[place : place + 3], **weights), "mean.pth", force=True)
        assert not cs.diff(f"means/{name}", "mean.pth", values=True).differs
        assert cs.verify(f"means/{name}").ok
    with pytest.raises(cs.ConfigError, match="decay"):
        cs.average_windows(PATHS, "others", window=3, decay="steep")
    assert not Path("others").exists()


def test_windows_of_a_decay_on_the_command_line(ckpt: Run) -> None:
    line = ("average", *PATHS, "--window", "4", "-o", "means/")
    assert ckpt(*line, "--decay", "linear").code == 0
    cs.apply(cs.average(PATHS[:4], decay="linear"), "mean.pth")
    assert not cs.diff(f"means/{PATHS[3]}", "mean.pth", values=True).differs


def test_the_command_says_what_each_mean_has_and_what_is_left(ckpt: Run) -> None:
    lines = ckpt("average", *PATHS, "--window", "4", "-o", "means/").out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["mean", "of", "copied", "merged"],
        [PATHS[3], PATHS[0], "to", PATHS[3], "1", "2"],
        [PATHS[4], PATHS[1], "to", PATHS[4], "1", "2"],
    ]
    assert lines[-1] == f"  next: ckpt verify means/{PATHS[4]}"
    for number, path in enumerate(PATHS[:2]):
        Path(f"run-{number}").mkdir()
        os.rename(path, f"run-{number}/model.pth")
        Path(f"run-{number}/config.json").write_text("{}")
    done = ckpt("average", "run-0", "run-1", "--window", "2", "-o", "more/")
    assert "config.json and the other files of run-1 are not copied" in " ".join(done.err.split())
