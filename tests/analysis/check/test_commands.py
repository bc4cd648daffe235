"""The command: exit codes, what it prints at 80 and 120 columns, JSON, SARIF, and its use by git and pre-commit."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.check.running import all_checks

from ...helpers.gguf_files import gguf, tensor_info
from ...helpers.shell import installed, shows
from .faults import FAULTS, cut_short, edited, put, wrong_total
from .models import FIRST, SECOND, edit_json, header_of, healthy, with_header
from .models import INDEX as INDEX_FILE

Run = Callable[..., Any]
ROOT = Path(__file__).parents[3]
UP = "model.layers.3.mlp.up_proj.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    healthy(tmp_path / "model")
    return Path("model")


def test_exit_codes(ckpt: Run, model: Path) -> None:
    assert ckpt("check", "model").code == 0
    wrong_total(model)
    assert ckpt("check", "model").code == 0  # a warning
    edited(UP, put(np.nan))(model)
    assert ckpt("check", "model").code == 1
    assert ckpt("check", "model", "--skip", "not-finite").code == 0
    assert ckpt("check", "model", "--skip", "not-finit").code == 2
    assert ckpt("check", "nowhere").code == 3
    Path("words.txt").write_text("no checkpoint\n")
    assert ckpt("check", "words.txt").code == 3


@pytest.mark.long
def test_shards_of_an_index_beside_a_whole_file_are_not_strays(model: Path) -> None:
    whole = {key: value for name in (FIRST, SECOND) for key, value in load_file(model / name).items()}
    save_file(whole, model / "model.safetensors", {"format": "pt"})
    assert not cs.check(model / "model.safetensors").row("orphaned-shards").found
    (model / INDEX_FILE).unlink()
    assert cs.check(model / "model.safetensors").row("orphaned-shards").found[0].what.startswith("2 files")


def test_no_skip_turns_a_refused_file_into_a_pass(ckpt: Run) -> None:
    save_file({"a": np.ones(2, np.float32)}, "x.safetensors")
    header, body = header_of(Path("x.safetensors"))
    with_header(Path("x.safetensors"), {"__metadata__": {"x": 3}, **header}, body)
    for id in ("index-keys", "offsets", "shards", "file-size"):
        assert ckpt("check", "x.safetensors", "--skip", id).code == 3


def test_a_fault_of_files_can_be_skipped(ckpt: Run) -> None:
    save_file({"a": np.ones(100, np.float32), "b": np.ones(100, np.float32)}, "x.safetensors")
    Path("x.safetensors").write_bytes(Path("x.safetensors").read_bytes()[:-100])
    assert ckpt("check", "x.safetensors").code == 1
    assert ckpt("check", "x.safetensors", "--skip", "file-size").code == 0


def test_a_single_damaged_file_fails_and_is_named(ckpt: Run) -> None:
    save_file({"a": np.ones(100, np.float32), "b": np.ones(100, np.float32)}, "x.safetensors")
    whole = Path("x.safetensors").read_bytes()
    Path("x.safetensors").write_bytes(whole[:-600])
    done = ckpt("check", "x.safetensors")
    assert done.code == 1
    assert "x.safetensors is 600 bytes short" in done.out
    assert "2 tensors of it cannot be read: a, b" in " ".join(done.out.split())
    assert cs.check("x.safetensors").row("all-zeros").why == "no value can be read"
    Path("x.safetensors").write_bytes(whole[:20])
    assert ckpt("check", "x.safetensors").code == 3


def test_the_values_of_shards_that_are_whole_are_checked_beside_a_damaged_one(ckpt: Run, model: Path) -> None:
    edited("model.embed_tokens.weight", put(np.nan))(model)
    cut_short(model)
    report = cs.check(model)
    assert {row.id for row in report.rows if row.found} == {"file-size", "not-finite"}
    assert report.row("configuration").why == "files are damaged, so not all tensors are known"
    assert report.row("model-card").why == report.row("configuration").why
    stopped = sum(row.why == report.row("configuration").why for row in report.rows)
    idle = sum(bool(row.why) for row in report.rows) - stopped
    said = f"{stopped} could not run on damaged files, {idle} do not apply"
    assert said in " ".join(ckpt("check", str(model)).out.split())


def test_a_single_shard_and_an_index_can_be_named(model: Path) -> None:
    report = cs.check(model / FIRST)
    assert [row.id for row in report.rows if row.found] == ["shard"]
    assert report.ok
    assert cs.check(model / INDEX_FILE).verdict.value == "PASS"


def test_shards_without_an_index_are_named(model: Path) -> None:
    (model / INDEX_FILE).unlink()
    (model / SECOND).unlink()
    report = cs.check(model)
    assert report.row("shards").found[0].file == SECOND


def test_a_missing_shard_of_one_tensor_is_in_the_singular() -> None:
    save_file({"a": np.ones(2, np.float32)}, FIRST)
    Path(INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": {"a": FIRST, "b": SECOND}}))
    assert cs.check(INDEX_FILE).row("shards").found[0].what == f"{SECOND} is missing, with 1 tensor"


@pytest.mark.parametrize("width", [80, 120])
def test_the_answer_is_first_and_calm(ckpt: Run, model: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    edited(UP, put(np.nan))(model)
    lines = ckpt("check", "model").out.splitlines()
    assert lines[0].startswith("FAIL model  sharded safetensors, 57 tensors, ")
    assert lines[1].startswith("  FAIL  not-finite  1 tensor has 1 NaN value: ")
    assert "checks passed" in lines[-1]
    assert len(lines) <= 6
    assert max(map(len, lines)) <= width


def test_the_page_shows_what_is_printed(ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/howto/check.md").read_text()
    exec(page.split("```python\n")[1].split("```")[0], {})  # noqa: S102 - our own page
    monkeypatch.setenv("COLUMNS", "120")
    assert shows(ckpt("check", "model.safetensors").out, page.split("```text\n")[1].split("```")[0], loose=True)


def test_a_warning_changes_the_exit_status_only_if_it_is_strict(ckpt: Run, model: Path) -> None:
    """The output names the option, as a script would take the 0 for sound values."""
    assert ckpt("check", "model", "--strict").code == 0
    edited(UP, put(100.0))(model)
    lenient, strict = ckpt("check", "model"), ckpt("check", "model", "--strict")
    assert (lenient.code, strict.code) == (0, 1)
    assert lenient.out.startswith("WARN model")
    said = "  Warnings alone leave the exit status at 0; with --strict it is 1.\n"
    assert said in lenient.out
    assert lenient.out.replace(said, "") == strict.out
    assert ckpt("check", "model", "--strict", "--json").code == ckpt("check", "model", "--strict", "--sarif").code == 1
    edited(UP, put(np.nan))(model)
    failed = ckpt("check", "model")
    assert failed.code == 1
    assert "--strict" not in failed.out


def test_verbose_lists_every_check(ckpt: Run, model: Path) -> None:
    out = ckpt("check", "model", "-v").out
    assert all(f"  {one.id} " in out for one in all_checks())


def test_the_json_of_several_checkpoints(ckpt: Run, model: Path) -> None:
    save_file({"a": np.ones((2, 2), np.float32)}, "x.safetensors")
    data = json.loads(ckpt("check", "model", "x.safetensors", "--json").out)
    assert data["kind"] == "ckpt.check"
    assert [one["path"] for one in data["reports"]] == ["model", "x.safetensors"]
    assert [row["id"] for row in data["reports"][0]["rows"]] == [one.id for one in all_checks()]


@pytest.mark.long
def test_the_report_is_the_same_every_time(model: Path) -> None:
    for fault in FAULTS[19:26]:
        fault.plant(model)
    assert cs.check(model).to_json() == cs.check(model).to_json()


# SARIF 2.1.0: what the standard requires of what is written, and of GitHub's reader.


def test_sarif_is_what_the_standard_requires(ckpt: Run, model: Path) -> None:
    edited(UP, put(np.nan))(model)
    wrong_total(model)
    done = ckpt("check", "model", "--sarif")
    assert done.code == 1
    data = json.loads(done.out)
    assert data["version"] == "2.1.0"
    assert data["$schema"].endswith("sarif-2.1.0.json")
    (one,) = data["runs"]
    rules = one["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [check.id for check in all_checks()]
    assert all(rule["shortDescription"]["text"] for rule in rules)
    for result in one["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["message"]["text"]
        assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].startswith("model")
    assert [(result["ruleId"], result["level"]) for result in one["results"]] == [
        ("index-total", "warning"),
        ("not-finite", "error"),
    ]
    assert one["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == f"model/{INDEX_FILE}"
    assert one["results"][1]["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == UP
    index = json.loads((model / INDEX_FILE).read_text())["weight_map"]
    assert one["results"][1]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == f"model/{index[UP]}"


def test_sarif_has_a_place_for_each_file_of_a_finding(ckpt: Run) -> None:
    os.mkdir("net")
    for name in "ab":
        save_file({name: np.full((2, 2), np.nan, np.float32)}, f"net/{name}.safetensors")
    index = {"metadata": {"total_size": 32}, "weight_map": {name: f"{name}.safetensors" for name in "ab"}}
    Path("net/model.safetensors.index.json").write_text(json.dumps(index))
    results = json.loads(ckpt("check", "net", "--sarif").out)["runs"][0]["results"]
    found = next(one for one in results if one["ruleId"] == "not-finite")
    places = {
        one["physicalLocation"]["artifactLocation"]["uri"]: [
            key["fullyQualifiedName"] for key in one["logicalLocations"]
        ]
        for one in found["locations"]
    }
    assert places == {"net/a.safetensors": ["a"], "net/b.safetensors": ["b"]}


def test_a_missing_model_card_hides_no_health_of_the_weights(ckpt: Run, model: Path) -> None:
    (model / "README.md").unlink(missing_ok=True)
    out = ckpt("check", "model").out.splitlines()
    assert out[1] == "  files PASS, values PASS, model WARN"
    wrong_total(model)
    out = ckpt("check", "model").out
    assert out.splitlines()[1] == "  files WARN, values PASS, model WARN"
    assert out.index("WARN  model-card") > out.index("WARN  index-total")


def test_groups_that_all_pass_have_no_line(ckpt: Run, model: Path) -> None:
    assert "values PASS" not in ckpt("check", "model").out


def test_sarif_of_a_sound_model_has_no_results(ckpt: Run, model: Path) -> None:
    data = json.loads(ckpt("check", "model", "--sarif").out)
    assert data["runs"][0]["results"] == []
    assert data["runs"][0]["invocations"] == [{"executionSuccessful": True}]


@pytest.mark.parametrize("paths", [("x.safetensors", "nope.pth"), ("nope.pth",)])
def test_a_file_that_cannot_be_opened_is_in_the_json_and_in_the_sarif(ckpt: Run, paths: tuple[str, ...]) -> None:
    save_file({"a": np.arange(4, dtype=np.float32)}, "x.safetensors")
    done = ckpt("check", *paths, "--json")
    assert done.code == 3
    if len(paths) > 1:
        data = json.loads(done.out)
        (error,) = data["errors"]
        assert (data["ok"], error["path"], len(data["reports"])) == (False, "nope.pth", 1)
    done = ckpt("check", *paths, "--sarif")
    assert done.code == 3
    (invocation,) = json.loads(done.out)["runs"][0]["invocations"]
    (notification,) = invocation["toolExecutionNotifications"]
    assert (invocation["executionSuccessful"], notification["level"]) == (False, "error")
    assert notification["message"]["text"].startswith("nope.pth does not exist")
    assert notification["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "nope.pth"


def test_sarif_and_json_contradict_each_other(ckpt: Run, model: Path) -> None:
    done = ckpt("check", "model", "--sarif", "--json")
    assert (done.code, "--sarif and --json contradict each other" in done.err) == (2, True)


# Other formats.


def test_a_record_that_its_checksum_contradicts_is_named(ckpt: Run) -> None:
    torch.save({"a": torch.arange(64.0), "b": torch.ones(64, 2)}, "x.pth")
    data = bytearray(Path("x.pth").read_bytes())
    with zipfile.ZipFile("x.pth") as archive:
        record = next(one for one in archive.infolist() if one.filename.endswith("data/0"))
    at = data.index(torch.arange(64.0).numpy().tobytes(), record.header_offset)
    data[at + 4] ^= 1
    Path("x.pth").write_bytes(data)
    report = cs.check("x.pth")
    assert report.row("checksums").status.value == "FAIL"
    assert "data/0" in report.row("checksums").found[0].what
    assert report.row("checksums").found[0].what.startswith("1 record of ")
    assert " does not match the checksum" in report.row("checksums").found[0].what
    assert report.row("checksums").found[0].what.endswith("; 1 tensor in it: a")
    assert report.row("checksums").found[0].keys == ("a",)
    data[data.index(torch.ones(128).numpy().tobytes(), record.header_offset + 256)] ^= 1
    Path("x.pth").write_bytes(data)
    found = cs.check("x.pth").row("checksums").found[0]
    assert found.what.startswith("2 records of ")
    assert found.what.endswith("; 2 tensors in them: a, b")


def test_a_file_of_torch_passes_with_its_checksums(ckpt: Run) -> None:
    torch.save({"a": torch.randn(64, 8), "b": torch.ones(64)}, "x.pth")
    report = cs.check("x.pth")
    assert report.ok
    assert report.row("checksums").status.value == "PASS"


@pytest.mark.long
def test_a_plain_safetensors_file_is_checked_without_torch(tmp_path: Path) -> None:
    save_file({"a": np.ones((8, 8), np.float32)}, "x.safetensors")
    code = "import sys, ckptsurgeon as cs; cs.check('x.safetensors'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_checkpoint_that_cannot_be_read_does_not_hide_the_others(ckpt: Run, model: Path) -> None:
    Path("words.txt").write_text("no checkpoint\n")
    edited(UP, put(np.nan))(model)
    done = ckpt("check", "words.txt", "model")
    assert done.code == 3
    assert "FAIL model" in done.out
    assert "words.txt" in done.err


def test_each_file_that_cannot_be_read_is_said(ckpt: Run) -> None:
    Path("x1.safetensors").write_bytes(b"abc")
    Path("x2.pt").write_bytes(b"zzz")
    done = ckpt("check", "x1.safetensors", "x2.pt")
    assert done.code == 3
    assert [line.partition(" ")[0] for line in done.err.splitlines()] == ["error:", "error:"]
    assert "x1.safetensors" in done.err
    assert "x2.pt" in done.err
    lines = ckpt("check", "x1.safetensors", "x2.pt", "--json").err.splitlines()
    assert [json.loads(line)["exit_code"] for line in lines] == [3, 3]


def test_the_root_of_a_file_with_several_state_dicts_can_be_named(ckpt: Run) -> None:
    torch.save({"model": {"a": torch.ones(2)}, "ema": {"a": torch.tensor([float("nan")])}}, "x.pth")
    assert cs.check("x.pth", root="model").ok
    assert not cs.check("x.pth", root="ema").ok
    assert ckpt("check", "x.pth", "--root", "ema").code == 1


def test_codes_of_8_bit_floats_that_are_nan_are_named() -> None:
    codes = torch.ones(4, 4).to(torch.float8_e4m3fn)
    codes.view(torch.uint8)[1, 2] = 0x7F
    torch.save({"x.weight": codes, "x.weight_scale": torch.ones(1)}, "x.pth")
    report = cs.check("x.pth")
    assert report.row("not-finite").found[0].keys == ("x.weight",)
    assert report.row("scales").status.value == "PASS"


@pytest.mark.parametrize(("scale", "status"), [(0.5, "PASS"), (float("nan"), "FAIL")])
def test_scales_in_blocks_of_codes_are_checked(scale: float, status: str) -> None:
    block = np.float16(scale).tobytes() + bytes(range(32))
    data = np.float16(0.25).tobytes() + bytes(32) + block
    Path("x.gguf").write_bytes(gguf([tensor_info("blk.0.ffn_up.weight", [64], 8, 0)], data=data))
    assert cs.check("x.gguf").row("scales").status.value == status


# git and pre-commit.


def git(*args: str, env: dict[str, str]) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *args], env=env, capture_output=True, text=True, check=False)
    return f"{done.returncode}\n{done.stdout}{done.stderr}"


@pytest.mark.long
def test_git_shows_the_figures_that_change() -> None:
    page = (ROOT / "docs/howto/check.md").read_text()
    env = installed(ROOT)
    (block,) = [one.split("```")[0] for one in page.split("```bash\n")[1:]]
    subprocess.run(["bash", "-ec", block], env=env, check=True)
    os.chdir("models")
    save_file({"a.weight": np.zeros((2, 2), np.float32)}, "x.safetensors")
    git("add", "-A", env=env)
    assert git("commit", "-qm", "first", env=env).startswith("0")
    save_file({"a.weight": np.ones((2, 2), np.float32), "b.weight": np.ones(3, np.float32)}, "x.safetensors")
    shown = git("diff", env=env)
    assert shown.startswith("0\n")
    assert "+  b.weight" in shown
    assert "Binary files" not in shown


def test_the_entry_of_the_pre_commit_hook_runs() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["id"] == "ckpt-check"
    save_file({"a": np.ones(3, np.float32)}, "x.safetensors")
    save_file({"a": np.full(3, np.nan, np.float32)}, "y.safetensors")
    for names, code in ((["x.safetensors"], 0), (["x.safetensors", "y.safetensors"], 1)):
        done = subprocess.run([*hook["entry"].split(), *names], env=installed(ROOT), capture_output=True, check=False)
        assert done.returncode == code


@pytest.mark.long
def test_the_hook_of_the_page_refuses_a_commit() -> None:
    page = (ROOT / "docs/howto/check.md").read_text()
    script = next(one for one in page.split("```text\n") if one.startswith("#!/bin/sh")).split("```")[0]
    env = installed(ROOT)
    git("init", "-q", ".", env=env)
    Path(".git/hooks").mkdir(exist_ok=True)
    Path(".git/hooks/pre-commit").write_text(script)
    Path(".git/hooks/pre-commit").chmod(0o755)
    save_file({"a": np.full(3, np.nan, np.float32)}, "y.safetensors")
    git("add", "y.safetensors", env=env)
    assert not git("commit", "-m", "bad", env=env).startswith("0")
    save_file({"a": np.ones(3, np.float32)}, "y.safetensors")
    git("add", "y.safetensors", env=env)
    assert git("commit", "-m", "good", env=env).startswith("0")


@pytest.mark.costly
@pytest.mark.parametrize("number", [-1, -60, 1 << 70])
def test_an_added_token_with_an_id_that_is_no_row_is_no_crash(model: Path, number: int) -> None:
    def give(document: dict[str, Any]) -> None:
        document["added_tokens"][2]["id"] = number

    edit_json(model / "tokenizer.json", give)
    assert cs.check(model).row("not-finite").status.value == "PASS"
    assert cs.inspect(model).notes is not None


def test_a_shard_that_cannot_be_opened_is_not_called_missing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refusing(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith(SECOND):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)
    (said,) = (one.what for one in cs.check("model").row("shards").found)
    assert said.startswith(f"{SECOND} cannot be read: ")
    assert "Permission denied" in said
