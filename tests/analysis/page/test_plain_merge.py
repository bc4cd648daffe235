"""The page about a merge without JavaScript: tables of its main figures, in which no name can be a tag."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.page import plain_merge


class Plain(HTMLParser):
    """Collects the tables inside ``noscript``, as rows of texts, and the tags there."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.text = ""
        self._inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._inside = self._inside or tag == "noscript"
        if self._inside:
            self.tags.append(tag)
            assert not attrs
        if self._inside and tag == "tr":
            self.rows.append([])
        if self._inside and tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "noscript"

    def handle_data(self, data: str) -> None:
        if self._inside and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data
        if self._inside:
            self.text += data


def page(layers: int = 2, name: str = "mlp") -> Plain:
    torch.manual_seed(0)
    base = {f"layers.{n}.{name}.{end}": torch.ones(4, 4) for n in range(layers) for end in ("weight", "bias")}
    save_file(base, "base.safetensors")
    save_file({key: value * 1.5 for key, value in base.items()}, "a.safetensors")
    save_file({key: value * 0.5 for key, value in base.items()}, "b.safetensors")
    found = cs.view(cs.merge(["a.safetensors", "b.safetensors"], method="ties", base="base.safetensors"))
    return Plain(found.html)


def test_the_figures_are_there_by_layer_and_role() -> None:
    found = page()
    assert found.rows[0][:4] == ["layer", "role", "change of model 1", "change of model 2"]
    assert found.rows[1] == ["all", "", "50 %", "50 %", "-1.00", "0 %"]
    assert found.rows[2] == ["layers.0", "mlp", "50 %", "50 %", "-1.00", "0 %"]
    assert found.rows[3][:2] == ["layers.1", "mlp"]
    planned = next(row for row in found.rows if row[0] == "ties (planned)")
    assert len(planned) == 4
    assert "a.safetensors" in found.text


@pytest.mark.parametrize("name", ["<script>x</script>", "</noscript><img src=x onerror=y>", "a\x1b[31m", "@@DATA@@"])
def test_a_name_cannot_be_a_tag(name: str) -> None:
    found = page(name=name)
    assert {*found.tags} == {"noscript", "p", "code", "ol", "li", "table", "caption", "tr", "th", "td"}
    assert "\x1b" not in found.text
    assert found.rows[2][:2] == ["layers.0", name.replace("\x1b", "\\x1b")]


@pytest.mark.long
def test_many_layers_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_merge, "ROWS", 20)
    found = page(layers=27)
    assert [row[0] for row in found.rows if row[0].startswith("layers.")][-1] == "layers.19"
    assert "And 7 more rows." in found.text


def test_models_and_methods_without_columns_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """slerp merges two models at most."""
    save_file({"layers.0.w": torch.ones(4, 4)}, "base.safetensors")
    names = [f"{number}.safetensors" for number in range(5)]
    for number, name in enumerate(names):
        save_file({"layers.0.w": torch.ones(4, 4) + number}, name)
    plan = cs.merge(names, method="ties", base="base.safetensors")
    found = Plain(cs.view(plan).html)
    assert "The table has no columns for 4 other pairs of the models in this list." in found.text
    assert "more model" not in found.text
    assert "Not tried: " in found.text
    monkeypatch.setattr(plain_merge, "COLUMNS", 4)
    assert "And 1 more model, without columns." in Plain(cs.view(plan).html).text


def test_another_page_has_no_tables() -> None:
    save_file({"w": torch.ones(2)}, "one.safetensors")
    assert "table" not in Plain(cs.view("one.safetensors").html).tags
