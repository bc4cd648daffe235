"""docs/train.md, held against the program."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from ckptsurgeon.trainer.checking import checks_after, checks_before, checks_during
from ckptsurgeon.trainer.settings import Settings, settings_of

from ..test_documentation import quoted, table
from . import toy

PAGE = (Path(__file__).parents[2] / "docs" / "train.md").read_text()


def test_every_setting_is_explained() -> None:
    named = [name for row in table(PAGE, "## The configuration") for name in quoted(row[0])]
    assert sorted(named) == sorted(field.name for field in fields(Settings))


def test_the_example_is_understood() -> None:
    found = re.search(r"```yaml\n(.*?)```", PAGE, re.S)
    assert found
    made = settings_of(yaml.safe_load(found[1])["train"], "docs/train.md")
    assert (made.freeze, made.lr_scale) == ({"encoder": 500}, {"encoder": 0.1})


def test_every_check_is_explained(monkeypatch: Any) -> None:
    from ckptsurgeon.trainer import checking
    from ckptsurgeon.trainer.checks import Check, reopened

    monkeypatch.setattr(checking, "reopened", lambda *args, **options: Check(reopened.NAME, "NOT RUN", ""))
    loop = toy.loop(folder="run", save_every=2)
    before = list(checks_before(loop.job, loop.model, None))
    loop.run(until=2)
    after = checks_after(loop, (), None, overfitting=False)
    names = [check.name for check in (*before, *checks_during(loop), *after)]
    rows = [name for row in table(PAGE, "## The checks") for name in row[0].split(", ")]
    told = " ".join(rows)
    assert len(before) == 9  # "the first nine"
    assert len(names) == 20  # as the changelog says
    assert all(name in told or name.replace(", ", " ") in told.replace(", ", " ") for name in names)


def test_every_option_is_in_the_page_or_the_help(ckpt: Callable[..., Any]) -> None:
    shown = set(re.findall(r"--[a-z][a-z-]+", ckpt("train", "-h").out))
    named = set(re.findall(r"--[a-z][a-z-]+", PAGE))
    assert named <= shown | {"--exclude"}
    assert shown - named <= {"--device", "--json", "--quiet", "--verbose", "--help", "--run", "--preprocess-only"}
