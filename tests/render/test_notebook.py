"""What a notebook shows: the terminal's view, as HTML that nothing breaks out of, whatever names a file has."""

from __future__ import annotations

import gc
import json
import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.text import Text
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.inspection import inspection_of
from ckptsurgeon.render.html import COLOURS, LINES, VIEWS, as_html, as_text
from ckptsurgeon.util.notebook import InNotebooks

Run = Callable[..., Any]

HOSTILE = [
    "</pre><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' style='position:fixed' x='",
    "&lt;b&gt;",
    "<!--",
    "\x1b[31mred\x1b[0m",
    "\x1b]8;;http://x\x07link\x1b]8;;\x07",
    "\u202egnp.exe",
    "\u2066a\u2069",
    "אבג.weight",
    "line\nbreak\rback\x00nul",
    "\u2028para\u2029",
    "[bold red]rich[/]",
    ":boom:",
    "javascript:alert(1)",
    "%s{0}",
    "\ud800",
]
STYLE = re.compile(r"(color:#[0-9a-f]{6}|font-weight:bold|opacity:\.7)(;(font-weight:bold|opacity:\.7))*")


class Reader(HTMLParser):
    """What a page consists of: its tags, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert [name for name, _ in attrs] == ["style"], attrs
        if tag == "span":
            assert STYLE.fullmatch(attrs[0][1] or ""), attrs
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(f"a declaration: {decl}")


def shown(result: object) -> str:
    """The text of a result's HTML, after it was found to hold nothing but spans in one block."""
    html = result._repr_html_()  # type: ignore[attr-defined]
    page = Reader(html)
    assert page.tags[0] == "pre"
    assert set(page.tags[1:]) <= {"span"}
    assert html.count("<") == 2 * len(page.tags)
    lines = [line.rstrip() for line in page.text.removeprefix("\n").split("\n")]
    assert all(line.isprintable() for line in lines), [line for line in lines if not line.isprintable()]
    assert lines == pretty(result).split("\n")
    return "\n".join(lines)


def pretty(result: object) -> str:
    class Printer:
        said = ""

        def text(self, text: str) -> None:
            self.said += text

    printer = Printer()
    result._repr_pretty_(printer, False)  # type: ignore[attr-defined]
    return printer.said


def unspaced(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").split("\n"))


def save(path: str, *, head: int = 3, layers: int = 4) -> None:
    tensors = {f"encoder.layers.{i}.weight": torch.full((2, 2), float(i)) for i in range(layers)}
    torch.save({**tensors, "head.weight": torch.ones(head)}, path)


@pytest.fixture(autouse=True)
def _as_wide_as_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no terminal is 100 columns wide, unless it is told otherwise."""
    monkeypatch.delenv("COLUMNS", raising=False)


def test_a_checkpoint_is_shown_as_by_inspect(ckpt: Run) -> None:
    save("src.pth")
    assert unspaced(shown(cs.open_checkpoint("src.pth"))) == unspaced(ckpt("inspect", "src.pth").out)
    assert unspaced(shown(cs.inspect("src.pth"))) == unspaced(ckpt("inspect", "src.pth").out)


def test_statistics_are_shown_as_by_inspect(ckpt: Run) -> None:
    save("src.pth")
    said = unspaced(ckpt("inspect", "src.pth", "--stats").out)
    assert unspaced(shown(cs.inspect("src.pth", stats=True))) == said


def test_a_plan_is_shown_as_by_a_dry_run(ckpt: Run) -> None:
    save("src.pth")
    save("dst.pth", head=5)
    said = ckpt("transplant", "src.pth", "dst.pth", "-n", "--on-mismatch", "pad", "--exclude", "encoder.layers.0")
    plan = cs.transplant("src.pth", "dst.pth", on_mismatch="pad", exclude=["encoder.layers.0"])
    assert unspaced(shown(plan)) == unspaced(said.err + said.out)
    assert "resized" in said.out


def test_a_receipt_and_a_verification_are_shown_as_by_apply_and_verify(ckpt: Run) -> None:
    save("src.pth")
    plan = cs.filter("src.pth", exclude=["head"])
    receipt = cs.apply(plan, "out.safetensors")
    assert re.fullmatch(r"  4 copied\n  wrote out\.safetensors  [\d.]+ k?B  [\d.]+ s", shown(receipt))
    took = re.compile(r"\d+\.\d s")
    found = shown(cs.verify("out.safetensors"))
    assert took.sub("", unspaced(found)) == took.sub("", unspaced(ckpt("verify", "out.safetensors").out))


@pytest.mark.parametrize("values", [False, True])
def test_a_difference_is_shown_as_by_diff(values: bool, ckpt: Run) -> None:
    save("a.pth")
    save("b.pth", head=5, layers=6)
    said = ckpt("diff", "a.pth", "b.pth", *(["--values"] if values else []))
    assert unspaced(shown(cs.diff("a.pth", "b.pth", values=values))) == unspaced(said.out + said.err)


def test_the_rules_of_a_proposal_and_of_a_difference_are_there_to_be_copied(ckpt: Run) -> None:
    save("a.pth")
    torch.save({f"model.{key}": value for key, value in torch.load("a.pth").items()}, "b.pth")
    said = ckpt("match", "a.pth", "b.pth")
    assert unspaced(shown(cs.match("a.pth", "b.pth"))) == unspaced(said.out + said.err)
    assert "--map =model" in shown(cs.match("a.pth", "b.pth"))
    said = ckpt("diff", "a.pth", "b.pth", "--renames")
    assert unspaced(shown(cs.diff("a.pth", "b.pth", renames=True))) == unspaced(said.out + said.err)


def test_a_scan_and_an_explanation_are_shown(ckpt: Run) -> None:
    save("a.pth")
    assert unspaced(shown(cs.scan("a.pth"))) == unspaced(ckpt("scan", "a.pth").out)
    plan = cs.transplant("a.pth", "a.pth")
    said = ckpt("transplant", "a.pth", "a.pth", "--explain", "head.weight")
    assert unspaced(shown(cs.explain(plan, ["head.weight"]))) == unspaced(said.out)


def test_a_list_that_is_cut_names_what_python_has(ckpt: Run) -> None:
    save("a.pth")
    torch.save(
        {f"m{letter}{'x' * number}.w": torch.ones(number + 1) for number, letter in enumerate("abcdefghij" * 4)},
        "b.pth",
    )
    assert "more (-v or --json lists all)" in ckpt("diff", "a.pth", "b.pth").out
    said = shown(cs.diff("a.pth", "b.pth"))
    assert "more (to_json() lists all)" in said
    assert "--json" not in said


@pytest.mark.costly
@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_no_name_breaks_out(name: str) -> None:
    torch.save({name: torch.ones(2), f"a.{name}.b": torch.ones(3)}, "src.pth")
    torch.save({name: torch.ones(4), f"a.{name}.b": torch.ones(3), f"{name}.{name}": torch.ones(3)}, "dst.pth")
    plan = cs.transplant("src.pth", "dst.pth", on_mismatch="init")
    receipt = cs.apply(plan, "out.pth")
    torch.save({name: torch.ones(2), f"x.{name}.b": torch.ones(3)}, "moved.pth")
    results = [
        cs.open_checkpoint("src.pth"), cs.inspect("src.pth", stats=True), plan, receipt, cs.verify("out.pth"),
        cs.diff("src.pth", "dst.pth"), cs.diff("src.pth", "moved.pth", values=True, renames=True),
        cs.match("src.pth", "moved.pth"), cs.scan("src.pth"), cs.explain(plan, None),
    ]  # fmt: skip
    for result in results:
        shown(result)


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_what_a_view_failed_to_escape_is_escaped(name: str) -> None:
    html = as_html([Text(name, "bold"), name])
    page = Reader(html)
    assert set(page.tags) == {"pre", "span"}
    assert all(char.isprintable() or char == "\n" for char in page.text)


def test_a_file_name_is_escaped() -> None:
    name = '<b onclick="x">\u202e.pth'
    save(name)
    assert '<b onclick="x">\\u202e.pth' in shown(cs.open_checkpoint(name))


def test_nothing_is_shown_of_nothing() -> None:
    save("src.pth")
    none = cs.open_checkpoint("src.pth").holding({})
    assert "0 tensors" in shown(none)
    assert "0 tensors" in shown(inspection_of(none, stats=True))
    shown(replace(cs.filter("src.pth", exclude=["head"]), steps=(), unexpected=()))
    shown(replace(cs.diff("src.pth", "src.pth"), identical=0, same=()))


def test_a_closed_checkpoint_is_shown_from_its_header() -> None:
    save("src.pth")
    checkpoint = cs.open_checkpoint("src.pth")
    before = shown(checkpoint)
    checkpoint.close()
    assert shown(checkpoint) == before


def test_no_value_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    save("src.pth")
    checkpoint = cs.open_checkpoint("src.pth")
    checkpoint.close()
    Path("src.pth").unlink()
    assert "head.weight" in shown(checkpoint)


@pytest.mark.long
def test_thirty_thousand_tensors_are_few_lines() -> None:
    entry = {"dtype": "U8", "data_offsets": [0, 0]}
    entries = {f"m{i % 97}.l{i // 97}.w{i % 7}": {**entry, "shape": [i % 5, 0]} for i in range(30_000)}
    header = json.dumps(entries).encode()
    Path("many.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    html = cs.open_checkpoint("many.safetensors")._repr_html_()
    assert len(html) < 100_000
    assert "30000 tensors" in html


@pytest.mark.long
def test_a_notebook_that_asks_twice_is_answered_from_one_view(monkeypatch: pytest.MonkeyPatch) -> None:
    save("src.pth")
    drawn: list[object] = []
    before = VIEWS["Checkpoint"]
    monkeypatch.setitem(VIEWS, "Checkpoint", lambda found: drawn.append(found) or before(found))
    first, second = cs.open_checkpoint("src.pth"), cs.open_checkpoint("src.pth").holding({})
    assert "head.weight" in shown(first)
    assert "0 tensors" in shown(second)
    assert len(drawn) == 2
    drawn.clear()
    gone = weakref.ref(second)
    second.close()
    del second
    gc.collect()
    assert gone() is None  # it is not kept for that


@pytest.mark.long
def test_a_plan_of_hundreds_of_modules_keeps_its_total() -> None:
    torch.save({f"m{chr(97 + i % 26)}{'x' * (i // 26)}.w": torch.ones(1) for i in range(600)}, "src.pth")
    plan = cs.filter("src.pth", exclude=["mb"])
    text = shown(plan)
    assert len(text.split("\n")) <= LINES
    assert text.split("\n")[-1].strip().startswith(("total", "not used", "mb"))
    assert "total" in text


def test_of_too_many_lines_the_first_and_the_last_are_shown() -> None:
    lines = as_text([Text("\n".join(map(str, range(1000))))]).split("\n")
    assert len(lines) == LINES
    assert (lines[0], lines[-1]) == ("0", "999")
    left_out = int(re.findall(r"(\d+) more lines", "\n".join(lines))[0])
    assert left_out == 1000 - (LINES - 1)


def luminance(colour: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("colour", COLOURS.values(), ids=COLOURS)
@pytest.mark.parametrize("page", ["#ffffff", "#111111", "#1e1e1e"])
def test_every_colour_can_be_read_on_light_and_dark(colour: str, page: str) -> None:
    dark, light = sorted([luminance(colour), luminance(page)])
    assert (light + 0.05) / (dark + 0.05) >= 3.8


def test_every_result_that_has_a_view_is_shown_and_no_other() -> None:
    from ckptsurgeon.analysis.explanation import Explained
    from ckptsurgeon.trainer.run.result import Trained

    assert all(hasattr(cs, name) for name in cs.__all__)  # imports what is imported when it is used
    kinds = {kind.__name__ for kind in InNotebooks.__subclasses__()}
    assert kinds == VIEWS.keys()
    assert {Explained.__name__, Trained.__name__} <= kinds


def test_where_it_runs_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    save("src.pth")
    before = cs.open_checkpoint("src.pth")._repr_html_()
    for name, value in {
        "COLUMNS": "40",
        "NO_COLOR": "1",
        "FORCE_COLOR": "1",
        "TERM": "dumb",
        "JUPYTER_COLUMNS": "9",
    }.items():
        monkeypatch.setenv(name, value)
    assert cs.open_checkpoint("src.pth")._repr_html_() == before


def test_notes_of_receipts_and_patches_are_shown() -> None:
    save_file({"w": torch.tensor([1.0, float("nan")])}, "a.safetensors")
    save_file({"w": torch.tensor([2.0, float("nan")])}, "b.safetensors")
    patch = cs.make_patch("a.safetensors", "b.safetensors", "x.patch")
    receipt = cs.apply(cs.convert("a.safetensors", dtype="float16"), "out.safetensors")
    for result in (patch, receipt):
        assert result.notes
        assert result.notes[0][:40] in shown(result)


def test_notes_of_inspections_searches_and_runs_are_shown() -> None:
    from ckptsurgeon.planning.search.result import SearchResult
    from ckptsurgeon.trainer.run.result import Trained

    save("a.pth")
    notes: Any = ("a note", "took 1 s")
    assert "note: a note" in shown(replace(cs.inspect("a.pth"), notes=notes))
    assert "took 1 s" not in shown(replace(cs.inspect("a.pth"), notes=notes))
    assert "note: a note" in shown(SearchResult("s", "recipe.yaml", "tpe", 0, "", None, (), notes=notes))
    assert "note: a note" in shown(Trained("c.yaml", None, None, "asr", "cpu", 0, 1, "", (), notes=notes))


def test_the_operations_of_a_proposal_are_there_to_be_copied(ckpt: Run) -> None:
    save_file({"a.weight": torch.ones(3, 2)}, "a.safetensors")
    save_file({"a.weight": torch.ones(2, 3)}, "b.safetensors")
    said = ckpt("match", "a.safetensors", "b.safetensors")
    assert "{transpose: " in shown(cs.match("a.safetensors", "b.safetensors"))
    assert unspaced(shown(cs.match("a.safetensors", "b.safetensors"))) == unspaced(said.out + said.err)
