"""docs/train.md, held against the program."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import yaml

from ckptsurgeon.trainer.checks.suite import checks_after, checks_before, checks_during
from ckptsurgeon.trainer.config.section import parse_settings
from ckptsurgeon.trainer.config.settings import Augment, Data, Features, Lora, Pretrain, Settings

from ..project.test_documentation import quoted, table
from . import toy

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "train.md").read_text()
STEP = (ROOT / "docs" / "explanation" / "training-step.md").read_text()


@pytest.mark.parametrize(
    ("kind", "heading"),
    [
        (Settings, "| field |"), (Data, "| field of `data` |"), (Features, "| field of `features` |"),
        (Augment, "| field of `augment` |"), (Lora, "| field of `lora` |"), (Pretrain, "| field of `pretrain` |"),
    ],
)  # fmt: skip
def test_every_setting_is_explained_with_its_default(kind: Any, heading: str) -> None:
    rows = table(PAGE[PAGE.index(heading) :], heading)
    told = {
        name: yaml.safe_load(default.replace("inf", ".inf"))
        for row in rows
        for name, default in zip_longest(quoted(row[0]), quoted(row[1]), fillvalue=quoted(row[1] or "`x`")[0])
    }
    made = {field.name: getattr(kind(), field.name) for field in fields(kind)}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in made.items()}
    assert told.keys() == made.keys()
    assert {name: value for name, value in told.items() if value != plain[name]} == (
        {"data": "x", "features": "x", "augment": "x", "lora": "x", "pretrain": "x"} if kind is Settings else {}
    )


PROGRAMS = [
    (name, found)
    for name in ("finetune", "data")
    for found in re.findall(r"```python\n(.*?)```", (ROOT / f"docs/howto/{name}.md").read_text(), re.S)
    if "csv.DictReader" in found
]
assert PROGRAMS, "no program of these pages reads a CSV, so none would be tested"


@pytest.mark.parametrize(("name", "program"), PROGRAMS, ids=[f"{name}-{n}" for n, (name, _) in enumerate(PROGRAMS)])
def test_programs_read_a_csv_as_a_spreadsheet_saves_it(name: str, program: str) -> None:
    """With a byte order mark, which ``ckpt train`` reads too, in front of the name of the first column."""
    Path("demo/en").mkdir(parents=True)
    for split in ("train", "dev"):
        Path(f"demo/en/{split}.csv").write_text("transcript,wav_filename\nÜber,a.wav\n", encoding="utf-8-sig")
    exec(compile(program, name, "exec"), {})  # noqa: S102 - our own pages
    texts = [path for path in Path().rglob("*") if path.is_file() and path.suffix != ".model"]
    written = {path.name: path.read_text(encoding="utf-8") for path in texts}
    made = [text for file, text in written.items() if file not in ("train.csv", "dev.csv")]
    assert made
    assert all("\ufeff" not in text for text in made)
    assert any("ber" in text or "Ü" in text for text in made)  # JSON escapes the one, and pieces divide the other


def test_the_exit_codes_are_those_of_the_errors() -> None:
    codes = [code for row in table(PAGE, "| exit status |") for code in row[0].split(", ")]
    assert codes == ["0", "1", "2", "3", "4", "5", "129", "130", "143"]


@pytest.mark.long
def test_the_task_of_ones_own_trains(ckpt: Callable[..., Any]) -> None:
    found = re.search(r'```python title="my_task.py"\n(.*?)```', PAGE, re.S)
    assert found
    Path("my_task.py").write_text(found[1])
    train = {"task": "my_task.py:Doubling", "steps": 60, "lr": 0.1, "evaluate_every": 60, "batch_size": 8}
    model = {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 4}
    Path("x.yaml").write_text(yaml.safe_dump({"model": model, "train": train}))
    done = ckpt("train", "x.yaml", "--device", "cpu", "--json")
    assert done.code == 0, done.out + done.err
    told = json.loads(done.out)
    assert told["best"] < 0.05 < 1 < told["first_loss"]


def test_the_example_is_understood() -> None:
    found = re.search(r'```yaml title="mine.yaml"\n(.*?)```', PAGE, re.S)
    assert found
    made = parse_settings(yaml.safe_load(found[1])["train"], "docs/train.md")
    assert (made.freeze, made.lr_scale) == ({"encoder": 500}, {"encoder": 0.1})


@pytest.mark.long
def test_every_check_is_explained(monkeypatch: Any) -> None:
    from ckptsurgeon.trainer.checks import suite as checking
    from ckptsurgeon.trainer.checks.check import Check

    monkeypatch.setattr(
        checking,
        "reload_in_new_process",
        lambda job, saved, **options: [Check(one.name, "NOT RUN", "") for one in saved],
    )
    loop = toy.loop(folder="run", save_every=2)
    before = list(checks_before(loop.job, loop.model, None))
    loop.run(until=2)
    after = checks_after(loop, (), None, overfitting=False)
    names = [check.name for check in (*before, *checks_during(loop), *after)]
    rows = [name for row in table(PAGE, "## The checks") for name in row[0].split(", ")]
    told = " ".join(rows)
    assert len(before) == 9  # "the first nine"
    assert len(set(names)) == 24
    assert all(name in told or name.replace(", ", " ") in told.replace(", ", " ") for name in names)


def test_every_option_is_in_the_page_or_the_help(ckpt: Callable[..., Any]) -> None:
    shown = set(re.findall(r"--[a-z][a-z-]+", ckpt("train", "-h").out))
    named = set(re.findall(r"--[a-z][a-z-]+", PAGE))
    assert named <= shown | {"--exclude"}
    assert shown - named <= {"--device", "--json", "--quiet", "--verbose", "--help", "--run", "--preprocess-only"}


def definitions() -> dict[str, set[str]]:
    """The classes of the trainer with the methods of each, and, under '', the functions of its modules."""
    found: dict[str, set[str]] = {"": set()}
    for path in (ROOT / "ckptsurgeon" / "trainer").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                found[""].add(node.name)
            if isinstance(node, ast.ClassDef):
                found[node.name] = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
    return found


@pytest.mark.long
def test_the_page_on_a_step_names_what_is_there() -> None:
    """Each class, method, function, setting, folder and file of the page exists under this name."""
    known, settings = definitions(), {field.name for field in fields(Settings)}
    functions = known[""].union(*known.values())
    wrong = []
    for name in dict.fromkeys(re.findall(r"`([^`\n]+)`", STEP)):
        owner, _, member = name.rpartition(".")
        if name.startswith("--") or name in ("ckpt train", "ckpt demo-data", "torch.compile", "train:", "dev", "last"):
            continue
        if name.endswith(("/", ".py")):
            folder = "" if name.startswith("ckptsurgeon/") else "ckptsurgeon/trainer/"
            right = (ROOT / folder / name).exists() or (ROOT / "ckptsurgeon/trainer/checks" / name).exists()
        elif name.endswith((".jsonl", ".safetensors", "<n>")):
            right = name in PAGE
        elif owner == "train":
            right = member in settings
        else:
            right = member in known.get(owner, set()) if owner else member in known or member in functions
        if not right:
            wrong.append(name)
    assert not wrong


def test_a_step_can_be_read_in_one_file() -> None:
    """The order of the page is that of loop.py, which is under 300 lines."""
    text = (ROOT / "ckptsurgeon" / "trainer" / "loop.py").read_text()
    assert text.count("\n") < 300
    step = [
        "state.apply_freezing()", "self._step(stop)", "self._write_rows(since)", "self._evaluate()", "self.save()",
        "lr_factor(", "next(state.stream)", "gradient_step(", "state.ema.update()", "def gradient_step", "StepCounts.of_all(",
        "total.backward()", "ranks.all_reduce(", "scale_gradients(", "optimizer.step(",
    ]  # fmt: skip
    places = [text.index(one, text.index("while progress.step < until")) for one in step]
    assert places == sorted(places)
