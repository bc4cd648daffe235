"""Pages in a real browser: what is shown is what is so, whatever keys are called, and nothing leaves the page."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.page.html import script_text
from ckptsurgeon.planning.keys.pattern import KeyPattern
from ckptsurgeon.util.notes import is_serious
from ckptsurgeon.util.text import count, escape, human_bytes, human_count, percent

from ...helpers.zoo import BY_NAME, LAYERS
from .made import (
    HOSTILE,
    changed,
    facts,
    keys_of,
    look_for,
    look_like,
    merge_page,
    network,
    opposing_page,
    output,
    rows,
    run_with_clips,
    show,
    text,
    write_empty,
)  # fmt: skip

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser

Press = Callable[..., None]


@pytest.fixture
def first(browser: Chrome) -> Chrome:
    """The page of a network, with figures."""
    torch.save(network(), "a.pth")
    show(browser, cs.view("a.pth", stats=True))
    return browser


@pytest.fixture
def press(browser: Chrome) -> Press:
    """Press keys where the focus is, or in an element."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def pressed(*names: str, within: str = "") -> None:
        if within:
            browser.execute_script("document.querySelector(arguments[0]).focus()", within)
        chain = ActionChains(browser, duration=0)
        for name in names:
            chain.send_keys(getattr(Keys, name, name))
        chain.perform()

    return pressed


def selected(browser: Chrome) -> str:
    return text(browser, "#panel h2")


def click(browser: Chrome, css: str, *, times: int = 1) -> None:
    for _ in range(times):
        browser.execute_script("document.querySelector(arguments[0]).click()", css)


def options(browser: Chrome, name: str) -> list[str]:
    """The texts of a menu."""
    found = browser.execute_script(
        "return [...document.getElementById(arguments[0]).options].map((one) => one.text)", name
    )
    return [str(one) for one in found]


def chosen(browser: Chrome, name: str) -> str:
    """What a menu shows."""
    script = "const menu = document.getElementById(arguments[0]); return menu.options[menu.selectedIndex].text"
    return str(browser.execute_script(script, name))


def choose(browser: Chrome, name: str, said: str) -> None:
    """Choose from a menu, as a reader does."""
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("id", name)).select_by_visible_text(said)


def visible_numbers(found: str) -> str:
    return found.replace("\u202f", " ")


def test_the_head_says_what_the_file_is(first: Chrome) -> None:
    found = cs.inspect("a.pth")
    assert text(first, "h1") == "a.pth"
    said = text(first, "#facts")
    for words in (
        found.format,
        human_bytes(found.nbytes_files),
        count(len(found.tensors), "tensor"),
        human_count(found.parameters),
    ):
        assert words in said


def test_the_tree_opens_by_clicks_and_keys(first: Chrome, press: Press) -> None:
    assert rows(first) == ["decoder", "embed", "encoder", "layers", *map(str, range(12)), "steps"]  # as it is opened
    for place in (3, 2):
        first.execute_script(f"[...document.querySelectorAll('.row')].at({place}).querySelector('.twist').click()")
    assert rows(first) == ["decoder", "embed", "encoder", "steps"]
    first.execute_script("[...document.querySelectorAll('.row')].at(2).querySelector('.twist').click()")
    assert rows(first)[2:4] == ["encoder", "layers"]
    press("ARROW_DOWN", "ARROW_DOWN", "ARROW_DOWN", "ARROW_DOWN", within="#tree")
    assert selected(first) == "encoder.layers"
    press("ARROW_RIGHT")
    assert rows(first)[4:8] == ["0", "1", "2", "3"]
    press("ARROW_DOWN", "ARROW_RIGHT", "ARROW_DOWN", "ARROW_RIGHT", "ARROW_DOWN", "ARROW_DOWN")
    assert selected(first) == "encoder.layers.0.attn.weight"
    press("ARROW_LEFT", "ARROW_LEFT", "ARROW_LEFT")
    assert selected(first) == "encoder.layers.0"
    assert rows(first).count("attn") == 1
    press("*")
    assert rows(first).count("attn") > 8  # of twelve, those in sight
    press("END")
    assert selected(first) == "steps"
    press("HOME")
    assert selected(first) == "decoder"
    assert first.switch_to.active_element.get_attribute("aria-activedescendant") == "row-0"


def test_the_panel_has_what_is_known_of_a_tensor(first: Chrome) -> None:
    first.get(f"{first.current_url}#decoder.out.weight")
    first.refresh()
    found = facts(first)
    assert found["shape"] == "(40, 16)"
    assert found["dtype"] == "float32"
    assert visible_numbers(found["bytes"]) == "2.6 kB (2 560)"
    assert found["tied to"] == "embed.weight"
    stats = cs.inspect("a.pth", stats=True).stats
    assert stats is not None
    assert stats["decoder.out.weight"] is not None
    assert found["min"] == repr(float(f"{stats['decoder.out.weight'].min:.9g}"))
    assert float(found["mean"]) == pytest.approx(stats["decoder.out.weight"].mean, rel=1e-3)
    assert float(found["deviation"]) == pytest.approx(stats["decoder.out.weight"].std, rel=1e-3)
    assert first.execute_script("return document.querySelectorAll('#panel .bin').length") == 32


def test_search_finds_words_anywhere(first: Chrome, press: Press) -> None:
    keys = list(network())
    wanted = [key for key in keys if "norm" in key and "11" in key]
    assert look_for(first, "NORM 11").startswith(f"{len(wanted)} of {len(keys)} tensors")
    assert rows(first) == ["encoder", "layers", "11", "norm", "weight"]
    press("ENTER", within="#text")
    assert selected(first) == wanted[0]
    press("ESCAPE", "ESCAPE", within="#text")
    assert len(rows(first)) > 5
    assert text(first, "#found") == ""


@pytest.mark.parametrize(
    "pattern", ["encoder", "**.bias", "encoder.layers.{0..3}.*.weight", "re:.*[05]\\.attn.*", "nothing"]
)
def test_the_filter_means_what_include_means(first: Chrome, pattern: str) -> None:
    hits = [key for key in network() if KeyPattern(pattern).matches(key)]
    assert look_for(first, pattern, pattern=True).startswith(f"{len(hits)} of {len(network())} tensors")


def test_a_wrong_pattern_is_said_to_be_wrong(first: Chrome) -> None:
    with pytest.raises(cs.PatternError) as caught:
        KeyPattern("layers.[a")
    assert caught.value.hint in str(caught.value)
    assert look_for(first, "layers.[a", pattern=True) == str(caught.value)


def test_an_expression_that_a_page_cannot_read_is_refused_and_leaves_what_was_found(first: Chrome) -> None:
    look_for(first, "**.11.norm", pattern=True)
    assert rows(first) == ["encoder", "layers", "11", "norm", "weight"]
    assert look_for(first, "re:(?>a|ab)c", pattern=True) == (
        "this page cannot read (?> in re:(?>a|ab)c: an atomic group. "
        "On the command line ckpt reads all that Python does."
    )
    assert rows(first) == ["encoder", "layers", "11", "norm", "weight"]


def test_a_pattern_that_finds_nothing_offers_the_one_that_does(first: Chrome) -> None:
    assert "**.bias finds 13" in look_for(first, "bias", pattern=True)
    click(first, "#found button")
    assert text(first, "#found").startswith("13 of ")


def test_kinds_of_tensors_are_chosen_in_the_legend(first: Chrome, press: Press) -> None:
    assert options(first, "colouring") == ["role", "module", "dtype", "values"]
    press("c", "c", within="#tree")
    assert chosen(first, "colouring") == "dtype"
    chips = {
        chip.split("\n")[0]: chip
        for chip in first.execute_script("return [...document.querySelectorAll('.chip')].map((one) => one.innerText)")
    }
    assert chips.keys() == {"float32", "float16", "int64"}
    first.execute_script(
        "[...document.querySelectorAll('.chip')].find((one) => one.innerText.includes('int64')).click()"
    )
    assert text(first, "#found").startswith("1 of ")
    assert rows(first) == ["steps"]


def test_sizes_are_parameters_or_bytes(first: Chrome, press: Press) -> None:
    nbytes = 4 * (16 * 16 + 16 + 16)
    layers = "return [...document.querySelectorAll('.row')].find((one) => one.innerText.includes('encoder')).querySelector('.size').textContent"
    assert first.execute_script(layers) == human_count(12 * nbytes // 4)
    choose(first, "metric", "bytes")
    assert first.execute_script(layers) == human_bytes(12 * nbytes)
    press("m", within="#tree")
    assert chosen(first, "metric") == "parameters"
    assert first.execute_script(layers) == human_count(12 * nbytes // 4)


def test_the_map_has_every_part_where_it_is_shown(first: Chrome, press: Press) -> None:
    """A tensor under the cursor is the one in the panel; a module fills the map by Enter, and gives it back."""
    from selenium.webdriver.common.action_chains import ActionChains

    canvas = first.find_element("id", "canvas")
    seen = set()
    width, height = canvas.size["width"], canvas.size["height"]
    for x in range(-width // 2 + 12, width // 2 - 12, width // 9):
        for y in range(-height // 2 + 24, height // 2 - 8, height // 7):
            ActionChains(first, duration=0).move_to_element_with_offset(canvas, x, y).perform()
            seen.add(selected(first))
    assert {"embed.weight"} < seen
    assert len([key for key in seen if key.startswith("encoder.layers")]) > 5
    press("HOME", "ARROW_DOWN", "ARROW_DOWN", "ENTER", within="#tree")
    assert text(first, "#path") == "all / encoder"
    press("BACKSPACE", within="#tree")
    assert text(first, "#path") == "all"


def test_light_and_dark_are_a_key_apart(first: Chrome, press: Press) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor"
    before = first.execute_script(colour)
    press("t", within="#tree")
    assert first.execute_script(colour) != before
    press("t", within="#tree")
    assert first.execute_script(colour) == before


def test_two_sources_show_what_differs(browser: Chrome) -> None:
    torch.save(network(), "a.pth")
    save_file(changed(network()), "b.safetensors")
    show(browser, cs.view("a.pth", "b.safetensors"))
    chips = browser.execute_script(
        "return [...document.querySelectorAll('.chip')].map((one) => one.innerText.split('\\n').filter(Boolean))"
    )
    assert text(browser, "h1") == "a.pth \N{RIGHTWARDS ARROW} b.safetensors"
    assert [line.split()[0] for line in text(browser, "#facts").splitlines()] == ["from", "to"]
    assert text(browser, "#found") == f"6 of {len(network()) + 1} tensors differ"
    ones = dict.fromkeys(("0.1 to 1 %", "retyped", "reshaped", "renamed", "added", "removed"), 1)
    assert {name: int(number) for name, number in chips} == {"same": len(network()) - 5, **ones}
    look_for(browser, "encoder.layers.3.attn.weight", pattern=True)
    browser.execute_script("document.querySelector('#find').requestSubmit()")
    found = facts(browser)
    assert found["state"] == "changed"
    assert float(found["max abs"]) == pytest.approx(0.01, rel=1e-3)
    for key, name, said in (
        ("body.norm.weight", "was called", "encoder.layers.10.attn.weight"),
        ("encoder.layers.4.attn.bias", "was", "(16) float32"),
        ("decoder.out.bias", "was", "(40) float16"),
    ):
        look_for(browser, key, pattern=True)
        browser.execute_script("document.querySelector('#find').requestSubmit()")
        assert facts(browser)[name] == said


def test_a_weight_in_codes_says_how_both_store_it(browser: Chrome, tmp_path: Path) -> None:
    coded = str(BY_NAME["gptq"].folder(tmp_path / "a"))
    cs.apply(cs.convert(coded, dequantize=True, dtype="bfloat16"), "plain")
    show(browser, cs.view(coded, "plain"))
    look_for(browser, f"{LAYERS[0]}.weight", pattern=True)
    browser.execute_script("document.querySelector('#find').requestSubmit()")
    found = facts(browser)
    assert (found["state"], found["stored as"]) == ("decoded", "GPTQ, 4 bits, then bfloat16")
    assert float(found["cosine"]) == pytest.approx(1, abs=1e-4)


def test_modules_show_what_is_out_of_the_ordinary_in_them(browser: Chrome) -> None:
    """So that one sees where two differ before anything is opened; and sizes are those of what was found."""
    torch.save(network(), "a.pth")
    save_file(changed(network()), "b.safetensors")
    show(browser, cs.view("a.pth", "b.safetensors"))
    tones = browser.execute_script(
        "return [...document.querySelectorAll('.row')].map((row) => [row.querySelector('.name').textContent,"
        " row.style.getPropertyValue('--tone')])"
    )
    found: dict[str, str] = {}
    for name, tone in tones:
        found.setdefault(name, tone)  # modules at the top, which come before what is opened in them
    assert found["encoder"] in ("var(--d2)", "var(--c-red)", "var(--c-purple)", "var(--c-teal)")
    tops = {"body": "--c-blue", "decoder": "--c-teal", "embed": "--quiet", "new": "--c-green", "steps": "--quiet"}
    assert {name: found[name] for name in tops} == {name: f"var({colour})" for name, colour in tops.items()}
    look_for(browser, "encoder.layers.3.attn.weight", pattern=True)
    assert browser.execute_script("return document.querySelector('.row .size').textContent") == "256"


def test_an_output_of_ours_says_from_where_and_by_which_rule(browser: Chrome) -> None:
    show(browser, cs.view(output()))
    look_for(browser, "body.norm.weight", pattern=True)
    browser.execute_script("document.querySelector('#find').requestSubmit()")
    found = facts(browser)
    assert found["class"] == "copied"
    assert found["from"] == "encoder.layers.10.attn.weight of source.pth"
    assert found["rule"] == "--map encoder.layers.10.attn=body.norm"
    look_for(browser, "encoder.layers.0.attn.weight", pattern=True)
    browser.execute_script("document.querySelector('#find').requestSubmit()")
    assert facts(browser)["because"] == "reinit"
    click(browser, "#tab-receipt")
    counts = cs.transplant(
        "source.pth", "dst.yaml", map=["encoder.layers.10.attn=body.norm"], on_mismatch={"encoder": "pad"},
        reinit=["encoder.layers.0"],
    ).counts  # fmt: skip
    table = browser.execute_script(
        "return [...document.querySelectorAll('#receipt tr')].map((row) => [...row.children].map((one) => one.innerText))"
    )
    assert dict(zip(table[0][1:-2], map(int, table[-1][1:-2]), strict=True)) == counts
    click(browser, "#receipt tbody button")
    assert browser.execute_script("return document.querySelector('#network').hidden") is False


def test_a_share_that_is_not_all_is_not_said_to_be(browser: Chrome) -> None:
    """The rule is that of the terminal; of small shares the page says one digit more."""
    shares = [
        (0, 7),
        (7, 7),
        (9_999, 10_000),
        (996, 1000),
        (994, 1000),
        (1, 10**9),
        (2, 1000),
        (7, 10_000),
        (0.5, 1),
        (9.97, 100),
    ]
    browser.get("about:blank")
    said = browser.execute_script(
        f"{script_text(['words.js'])}; return arguments[0].map(([part, whole]) => percent(part, whole))", shares
    )
    assert said == [
        percent(part / whole, 1 if 0 < 100 * part / whole < 9.95 else 0) for part, whole in shares
    ]  # fmt: skip


def test_the_receipt_says_how_much_comes_from_sources_as_the_terminal_does(browser: Chrome) -> None:
    """A new row of a vocabulary of thousands is not nothing."""
    for name, size in (("old", 1999), ("new", 2000)):
        Path(f"{name}.txt").write_text("".join(f"t{number}\n" for number in range(size)))
        save_file({"out.weight": torch.zeros(size, 2), "body.weight": torch.zeros(5)}, f"{name}.safetensors")
    cs.apply(cs.transplant("old.safetensors", "new.safetensors", vocab="old.txt:new.txt"), "made.safetensors")
    show(browser, cs.view("made.safetensors"))
    click(browser, "#tab-receipt")
    table = browser.execute_script(
        "return [...document.querySelectorAll('#receipt tr')].map((row) => [...row.children].map((one) => one.innerText))"
    )
    place = table[0].index("from sources")
    assert {row[0]: row[place] for row in table[1:]} == {"body": "100 %", "out": ">99 %", "total": ">99 %"}


@pytest.mark.parametrize("place", ["page", "difference", "receipt", "merge", "run"])
def test_no_name_is_more_than_a_name(browser: Chrome, place: str) -> None:
    """Whatever keys, files and figures are called, no element and no script comes of it."""
    show(browser, hostile(place))
    for tab in browser.find_elements("css selector", "#tabs button"):
        tab.click()
    click(browser, "#tab-network")
    for key in filter(None, HOSTILE):
        assert " of " in look_for(browser, key)
        browser.execute_script("document.querySelector('#find').requestSubmit()")
        look_for(browser, key, pattern=True)
    for name in options(browser, "colouring"):
        choose(browser, "colouring", name)
    assert browser.execute_script("return window.broken") is None
    for tab in browser.find_elements("css selector", "#tabs button"):
        tab.click()
        shown = text(browser, "body")
        assert not set(shown) & {"\u202e", "\u200f", "\x1b", "\u2028"}, shown
    assert browser.execute_script("return ({}).polluted") is None
    made = browser.execute_script(
        "return [...document.querySelectorAll('img, script, iframe, b, object, a, style')].map((one) => one.tagName)"
    )
    assert sorted(made) == ["SCRIPT", "SCRIPT", "STYLE"]


def hostile(place: str) -> cs.Page:
    write_empty("</title><script>window.broken=9< script>.safetensors".replace("/", "\u2215"), HOSTILE)
    path = next(str(one) for one in Path.cwd().iterdir() if one.suffix == ".safetensors")
    if place == "page":
        return cs.view(path, stats=True)
    if place == "difference":
        write_empty("other.safetensors", [key for key in HOSTILE[::2] if key] + ["<i>new</i>"])
        return cs.view(path, "other.safetensors")
    if place == "receipt":
        cs.apply(cs.rename(path, map=["a=<u>renamed<\\/u>"]), "out.safetensors")
        return cs.view("out.safetensors")
    if place == "merge":
        models = ["'><img src=x onerror=window.broken=7>", "<b>down<b>"]
        for name, value in (("base", 1.0), *zip(models, (2.0, 0.0), strict=True)):
            save_file({key: torch.full((40,), value) for key in HOSTILE}, name)
        page = cs.view(cs.merge(models, method="ties", base="base"))
        assert page.merge is not None
        assert page.merge.conflicts
        return page
    words = HOSTILE[2] + "\u202e\x1b\u200f\u2028"
    Path("run/last").mkdir(parents=True)
    cs.apply(cs.filter(path, include=["**"]), "run/best.safetensors")
    for name, data in (
        ("lineage.json", {"init": {"path": words}, "seed": 1, "device": words, "processes": 2}),
        ("result.json", {"ok": False, "ended": words, "step": words, "steps": 1, "task": words, "metric": words, "best": 1.0, "best_step": words, "test": {words: 1.0}, "notes": [words], "controls": {"verdict": words, "decided_on": words, "metric": words, "steps": words, "seeds": 1, "arms": [{"name": words, "frozen": True, "values": [1.0]}]}}),
        ("checks.json", {"checks": [{"name": words, "status": words, "says": words, "when": "before"}, {"name": words, "status": "FAIL", "says": words, "when": "after"}]}),
    ):  # fmt: skip
        Path("run", name).write_text(json.dumps(data))
    sound = 'run/"><img src=x onerror=window.broken=7>#?%41.wav'
    soundfile.write(sound, [0.0] * 800, 8000)
    heard = {
        "errors": 2,
        "cer": 0.5,
        "clip": words,
        "reference": words,
        "hypothesis": HOSTILE[0],
        "sound": Path(sound).name,
    }
    Path("run/dev.hypotheses.jsonl").write_text(json.dumps(heard) + "\n")
    Path("run/log.jsonl").write_text(
        '{"step": 1, "loss": 1.0, "grad_norm": 1.0, "lr": {"<img src=x onerror=window.broken=8>": 1.0}}\n{"step": 2, "dev": {"<b>cer</b>": 0.5}}\n'
    )
    return cs.view("run", output="out.html")


def test_names_are_spelled_as_in_the_terminal(browser: Chrome) -> None:
    keys = [key.replace(".", "_") for key in HOSTILE if len(key) < 300]
    write_empty("h.safetensors", list(dict.fromkeys(keys)))
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 1200, "height": 3000, "deviceScaleFactor": 1, "mobile": False}
    )
    show(browser, page := cs.view("h.safetensors"))
    assert rows(browser) == [escape(key) if key.strip() else f'"{escape(key)}"' for key in keys_of(page)]


def test_a_tree_of_ninety_two_thousand_tensors_is_drawn_in_parts(browser: Chrome, press: Press) -> None:
    keys = [f"model.layers.{i}.mlp.experts.{j}.{name}.weight" for i in range(60) for j in range(512) for name in "gud"]
    write_empty("big.safetensors", keys)
    show(browser, cs.view("big.safetensors"))
    assert visible_numbers(look_for(browser, "**", pattern=True)).startswith("92 160 of 92 160 tensors")
    press("END", "*", "END", within="#tree")
    assert browser.execute_script("return document.querySelectorAll('*').length") < 3000
    hits = sum(KeyPattern("**.experts.{7..9}.u").matches(key) for key in keys)
    assert look_for(browser, "**.experts.{7..9}.u", pattern=True).startswith(f"{hits} of ")
    assert len(rows(browser)) < 100
    press("END", within="#tree")
    assert selected(browser).startswith("model.layers.")


def test_a_module_of_as_many_tensors_as_are_read_has_a_page(browser: Chrome, press: Press) -> None:
    write_empty("flat.safetensors", [f"p.{i}" for i in range(300_000)])
    show(browser, cs.view("flat.safetensors"))
    assert visible_numbers(text(browser, "#facts")).count("300 000 tensors") == 1
    press("END", within="#tree")
    assert selected(browser) == "p.299999"


def test_a_page_in_a_notebook_is_used_as_any_other(browser: Chrome) -> None:
    """In a frame that may not change its address, nor reach the page around it."""
    torch.save(network(), "a.pth")
    Path("notebook.html").write_text(f"<!doctype html><meta charset=utf-8>{cs.view('a.pth')._repr_html_()}", "utf-8")
    browser.get(Path("notebook.html").absolute().as_uri())
    browser.switch_to.frame(0)
    browser.execute_script("document.querySelector('.row').click()")
    assert selected(browser) == "decoder"
    assert browser.execute_script("return document.activeElement.id") == "tree"


def test_a_view_that_cannot_be_shown_says_so_and_takes_no_other_with_it(browser: Chrome) -> None:
    Path("run").mkdir()
    Path("run/lineage.json").write_text("{}")
    save_file(network() | {"decoder.out.weight": torch.ones(2)}, "run/best.safetensors")
    page = cs.view("run")
    show(browser, replace(page, html=page.html.replace('"checks":[]', '"checks":5')))
    assert text(browser, "#run").startswith("Run could not be shown")
    click(browser, "#tab-network")
    assert rows(browser)[0] == "decoder"
    assert len(browser.get_log("browser")) == 1  # what the console is told of it


def test_an_address_leads_to_its_tensor(first: Chrome) -> None:
    first.get(f"{first.current_url}#encoder.layers.7.norm.weight")
    first.refresh()
    assert selected(first) == "encoder.layers.7.norm.weight"
    assert "norm" in rows(first)
    for odd in ("#%E0%A4%A", "#nothing.here", "#"):
        first.get(f"{first.current_url.partition('#')[0]}{odd}")
        first.refresh()
        assert rows(first)


def test_a_run_begins_with_state_verdict_best_figure_and_checks(browser: Chrome) -> None:
    show(browser, run_with_clips())
    cards = browser.execute_script(
        "return [...document.querySelectorAll('#run .card')].map((one) => one.innerText.split('\\n').filter(Boolean))"
    )
    state, verdict, best, checks = cards
    assert state == ["State", "done", "30 of 30 steps, 1:15", "a check failed"]
    assert verdict[1:] == ["KNOWLEDGE", "decided with the body frozen, cer after 20 steps, 2 seeds"]
    assert best[1:] == ["cer 0.25", "dev, at step 20; test 0.375"]
    assert checks[1:] == ["1 PASS 1 WARN 1 FAIL", "FAIL loss fell", "WARN norm"]
    table = browser.execute_script(
        "return [...document.querySelectorAll('.figures tr')].map((one) => [...one.children].map((cell) => cell.textContent))"
    )
    assert table == [
        ["figure", "dev, step 20", "dev, step 30", "test"],
        ["cer", "0.25", "0.5", "0.375"],
        ["loss", "1", "1", ""],
    ]
    bottom = "return Math.max(...[...document.querySelectorAll('.card, .curves .chart, .figures table')].map((one) => one.getBoundingClientRect().bottom))"
    assert browser.execute_script(bottom) < browser.execute_script(
        "return innerHeight"
    )  # the first screen has all of it


def test_the_worst_clips_show_in_which_letters_they_differ(browser: Chrome) -> None:
    show(browser, run_with_clips())
    script = """
    const said = (clip, css) => [...clip.querySelectorAll(css)].map((one) => one.textContent);
    return [...document.querySelectorAll('.clip')].map((clip) => [said(clip, '.said'), said(clip, 'del'), said(clip, 'ins')])"""
    assert browser.execute_script(script) == [
        [["kitchen yellow", "pchen  yelow"], ["kit", "l"], ["p", " "]],
        [["ja"], ["ja"], []],
        [["nein"], [], ["nein"]],
    ]
    assert "3 of 4 clips have errors." in text(browser, "#run")


def test_a_clip_is_played_where_its_sound_lies_beside_the_page(browser: Chrome, nearby: str) -> None:
    show(browser, run_with_clips())
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0  # until it is played
    players = "return [...document.querySelectorAll('audio')].map((one) => one.getAttribute('src'))"
    assert browser.execute_script(players) == ["./data/one.wav", "./data/two%20words.flac#t=1.000,1.500"]
    assert "its sound is not beside the page" in text(browser, ".clip:nth-child(3)")
    script = """
    const [css, address, done] = arguments;
    const player = document.querySelectorAll('audio')[css];
    player.addEventListener('loadedmetadata', () => done(player.duration));
    player.addEventListener('error', () => done('refused'));
    if (address) player.src = address;
    player.load();
    player.preload = 'metadata';"""
    assert browser.execute_async_script(script, 0, "") == pytest.approx(0.5)
    assert browser.execute_async_script(script, 1, "") == pytest.approx(2.0)
    assert browser.execute_async_script(script, 0, f"{nearby}sound.wav") == "refused"
    assert Heard.asked == []
    assert len(browser.get_log("browser")) >= 1  # what the policy says of it


class Heard(BaseHTTPRequestHandler):
    """A server that nobody should ask."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def nearby() -> Iterator[str]:
    """The address of a server on this machine."""
    Heard.asked.clear()
    server = HTTPServer(("127.0.0.1", 0), Heard)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_nothing_leaves_the_page(first: Chrome, nearby: str) -> None:
    """It loads nothing, and its policy would not let it."""
    assert first.execute_script("return performance.getEntriesByType('resource').length") == 0
    script = """
    const done = arguments[1];
    const image = new Image();
    image.src = arguments[0] + 'image';
    document.body.append(image);
    fetch(arguments[0] + 'fetch').then(() => done('fetched'), () => setTimeout(() => done('refused'), 300))"""
    assert first.execute_async_script(script, nearby) == "refused"
    assert Heard.asked == []
    assert len(first.get_log("browser")) >= 1  # what the policy says of these


def cells(browser: Chrome, title: str) -> dict[str, dict[str, str]]:
    """The table of a list of layers: by layer, the text of each role's cell."""
    return dict(
        browser.execute_script(
            """
            const part = [...document.querySelectorAll('#layers section')].find((one) => one.querySelector('h3').innerText === arguments[0]);
            const roles = [...part.querySelectorAll('.role')].map((one) => one.title);
            const said = (row) => roles.map((role, at) => [role, row.querySelectorAll('td')[at].innerText]);
            return Object.fromEntries([...part.querySelectorAll('tbody tr')].map((row) => [row.querySelector('th').innerText, Object.fromEntries(said(row))]));
            """,
            title,
        )
    )


def test_layers_by_roles_show_how_much_each_has_changed(browser: Chrome) -> None:
    before = network()
    torch.save(before, "a.pth")
    after = changed(before)
    after["encoder.layers.5.norm.weight"] = torch.full((16,), 1.25)
    after["encoder.layers.6.norm.weight"] = torch.full((16,), float("nan"))
    save_file(after, "b.safetensors")
    show(browser, cs.view("a.pth", "b.safetensors"))
    click(browser, "#tab-layers")
    found = cells(browser, "encoder.layers")
    assert found.keys() == {str(number) for number in range(12)}
    assert found["5"] == {"attn.bias": "·", "attn.weight": "·", "norm.weight": "25"}
    assert found["6"]["norm.weight"] == "?"
    assert found["4"]["attn.bias"] == "?"  # of another shape
    assert found["11"]["norm.weight"] == ""  # only the first has it
    counts = browser.execute_script(
        "return [...document.querySelectorAll('#layers section:first-of-type .counts')].map((one) => one.innerText)"
    )
    assert counts == [
        {3: "1 of 3", 4: "1 of 3", 5: "1 of 3", 6: "1 of 3", 10: "0 of 2", 11: "0 of 2"}.get(layer, "0 of 3")
        for layer in range(12)
    ]
    weight = before["encoder.layers.3.attn.weight"]
    share = float((after["encoder.layers.3.attn.weight"] - weight).norm() / weight.norm())
    assert float(found["3"]["attn.weight"]) == pytest.approx(100 * share, rel=0.05)
    browser.execute_script("[...document.querySelectorAll('#layers td')].find((one) => one.innerText === '25').click()")
    assert selected(browser) == "encoder.layers.5.norm.weight"


def test_layers_by_roles_show_what_their_values_are(browser: Chrome) -> None:
    tensors = network()
    tensors["encoder.layers.7.attn.weight"] *= 8
    torch.save(tensors, "a.pth")
    show(browser, cs.view("a.pth", stats=True))
    click(browser, "#tab-layers")
    assert options(browser, "measure") == ["deviation", "largest magnitude", "zeros"]
    found = cells(browser, "encoder.layers")
    assert float(found["7"]["attn.weight"]) == pytest.approx(
        float(tensors["encoder.layers.7.attn.weight"].std()), rel=0.1
    )
    shades = browser.execute_script(
        "return [...document.querySelectorAll('#layers tbody tr')].slice(0, 12).map((row) => row.querySelectorAll('td')[1].style.getPropertyValue('--shade'))"
    )
    assert shades[7] == "70%"
    assert all(int(one.rstrip("%")) < 15 for number, one in enumerate(shades) if number != 7)
    choose(browser, "measure", "zeros")
    assert {row["attn.bias"] for row in cells(browser, "encoder.layers").values()} == {"100"}


def test_a_page_of_headers_has_no_layers(browser: Chrome) -> None:
    torch.save(network(), "a.pth")
    save_file(changed(network()), "b.safetensors")
    for page in (cs.view("a.pth"), cs.view("a.pth", "b.safetensors", values=False)):
        show(browser, page)
        tabs = [one.text for one in browser.find_elements("css selector", "#tabs button")]
        assert tabs == ["Network", "About"]


def test_the_first_screen_says_that_there_are_warnings(browser: Chrome) -> None:
    """They are in the view About, which somebody who sees the page for the first time does not open."""
    folder = Path("model")
    folder.mkdir()
    save_file({"model.embed_tokens.weight": torch.ones(4, 8)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 4, "hidden_size": 8}))
    (folder / "vocab.json").write_text(json.dumps({f"w{number}": number for number in range(6)}))
    found = cs.inspect("model").notes
    number = sum(map(is_serious, found))
    assert number > 0
    show(browser, cs.view("model"))
    tab = browser.find_element("id", "tab-about")
    assert tab.text == f"About {number} warning{'s' if number > 1 else ''}"
    tab.click()
    said = browser.find_element("id", "about").text
    assert "warning" in said
    assert "vocab.json has 6 tokens, but model.embed_tokens.weight has 4 rows" in said


def test_the_tree_is_open_where_two_differ(browser: Chrome) -> None:
    torch.save(network(), "a.pth")
    after = network()
    after["encoder.layers.3.attn.weight"] += 0.01
    torch.save(after, "b.pth")
    show(browser, cs.view("a.pth", "b.pth"))
    names = rows(browser)
    place = names.index("3")
    assert names[place : place + 5] == ["3", "attn", "bias", "weight", "norm"]
    assert names.count("attn") == 1
    notes = browser.execute_script(
        "return [...document.querySelectorAll('.row')].map((row) => row.querySelector('.note').textContent)"
    )
    assert notes[names.index("encoder")] == "1 of 36 differ"
    assert notes[place + 1] == "1 of 2 differ"


def test_the_tree_opens_the_worst_first_and_counts_on_a_phone_too(browser: Chrome) -> None:
    torch.save(network(), "a.pth")
    after = network()
    for layer in range(12):
        after[f"encoder.layers.{layer}.attn.weight"] *= 1.1 if layer == 10 else 1.001
    torch.save(after, "b.pth")
    look_like(browser, 360, 740, "light")
    show(browser, cs.view("a.pth", "b.pth"))
    names = rows(browser)
    opened = [one for one, after in pairwise(names) if one.isdecimal() and after == "attn"]
    assert "10" in opened
    assert len(opened) < 12
    shown = browser.execute_script(
        "return [...document.querySelectorAll('.row .note')].filter((one) => one.offsetParent).map((one) => one.innerText)"
    )
    assert "12 of 36 differ" in shown
    assert not any("tensors" in one for one in shown)
    assert text(browser, "#facts").split()[0] == "both"  # the same facts once


def test_what_check_finds_is_on_the_page(browser: Chrome) -> None:
    tensors = {key: value for key, value in network().items() if key != "decoder.out.weight"}
    tensors["encoder.layers.2.attn.weight"][3, 4] = float("nan")
    save_file(tensors, "a.safetensors")
    show(browser, cs.view("a.safetensors", check=True))
    click(browser, "#tab-check")
    report = cs.check("a.safetensors")
    assert text(browser, "#check .verdict").startswith("1 FAIL")
    said = text(browser, "#check table")
    for row in report.rows:
        for found in row.found:
            assert row.id in said
            assert found.todo in said
    click(browser, "#check button.link")
    assert selected(browser) == "encoder.layers.2.attn.weight"


def test_the_head_says_what_a_model_is(browser: Chrome, tmp_path: Path) -> None:
    coded = str(BY_NAME["gptq"].folder(tmp_path / "a"))
    show(browser, cs.view(coded))
    said = text(browser, "#facts")
    methods = [f"{count(number, 'tensor')} {name}" for name, number in cs.inspect(coded).codes.methods().items()]
    assert methods
    assert all(one in said for one in methods)
    model = cs.inspect(coded).model
    assert model is not None
    assert str(replace(model, parameters=None)) in said  # the head has the parameters once


def test_a_tensor_with_nan_in_one_of_two_is_the_first_of_the_largest_changes(browser: Chrome) -> None:
    before = network()
    torch.save(before, "before.pth")
    key, other = [key for key in before if key.endswith("attn.weight")][:2]
    broken = before[key].clone()
    broken[0, 0] = torch.nan
    torch.save({**before, key: broken, other: before[other] * 1.5}, "after.pth")
    show(browser, cs.view("before.pth", "after.pth"))
    said = text(browser, ".panel-body")
    assert said.index(f"{key} NaN or infinite values in one") < said.index(other)
    look_for(browser, key, pattern=True)
    browser.execute_script("document.querySelector('#find').requestSubmit()")
    assert facts(browser)["NaN in the second only"] == "1"


def test_of_several_models_only_the_one_with_nan_cannot_be_measured(browser: Chrome) -> None:
    base = network()
    key = "encoder.layers.0.attn.weight"
    broken = base[key].clone()
    broken[0, 0] = torch.nan
    for name, one in (("base", base[key]), ("a", base[key]), ("b", broken)):
        torch.save({**base, key: one}, f"{name}.pth")
    show(browser, cs.view("base.pth", "a.pth", "b.pth"))
    click(browser, "#tab-layers")
    table = browser.execute_script("return document.querySelector('#layers section').innerText").splitlines()
    assert [row.split()[2] for row in table if row.split()[1:2] in (["a.pth"], ["b.pth"])] == ["none", "?"]
    shown = {}
    for letter in "AB":
        choose(browser, "measure", f"change of {letter}")
        shown[letter] = cells(browser, "encoder.layers")["0"]["attn.weight"]
    assert (shown["A"] == cells(browser, "encoder.layers")["1"]["attn.weight"], shown["B"]) == (True, "?")


def test_changes_of_several_models_show_where_they_agree(browser: Chrome) -> None:
    base = network()
    torch.save(base, "base.pth")
    torch.manual_seed(5)
    step = {key: 0.1 * torch.randn_like(value) for key, value in base.items() if key.endswith("attn.weight")}
    for name, sign in (("a", 1), ("b", -1)):
        moved = {key: base[key] + (sign if ".2." in key else 1) * one for key, one in step.items()}
        torch.save({**base, **moved}, f"{name}.pth")
    show(browser, cs.view("base.pth", "a.pth", "b.pth"))
    assert text(browser, "h1") == "base.pth \N{RIGHTWARDS ARROW} a.pth, b.pth"
    assert text(browser, "#found") == f"12 of {len(base)} tensors differ (change of A)"
    assert options(browser, "colouring")[:2] == ["change of A", "change of B"]
    click(browser, "#tab-layers")
    found = cs.compare_changes("base.pth", ["a.pth", "b.pth"])
    rows_of = "return [...document.querySelectorAll('#layers section')].slice(0, 2).map((part) => part.innerText)"
    models, pairs = browser.execute_script(rows_of)
    assert "a.pth" in models
    assert f"{found.total.pairs[0, 1].cosine:.2f}" in pairs
    assert options(browser, "measure") == ["change of A", "change of B", "cosine of A and B", "same sign of A and B"]
    size = float(cells(browser, "encoder.layers")["0"]["attn.weight"])
    (own,) = [one.sums for one in found.tensors if one.key == "encoder.layers.0.attn.weight"]
    assert own.models[0].relative is not None
    assert size == pytest.approx(100 * own.models[0].relative, rel=0.05)
    choose(browser, "measure", "cosine of A and B")
    cosines = {layer: row["attn.weight"] for layer, row in cells(browser, "encoder.layers").items()}
    assert cosines == {str(layer): "-1.00" if layer == 2 else "1.00" for layer in range(12)}
    browser.execute_script(
        "[...document.querySelectorAll('#layers td')].find((one) => one.innerText === '-1.00').click()"
    )
    assert selected(browser) == "encoder.layers.2.attn.weight"
    assert facts(browser)["A and B"] == "cosine -1.000"


def test_a_page_before_a_merge_shows_fights_and_what_methods_keep(browser: Chrome, press: Press) -> None:
    page = merge_page()
    show(browser, page)
    survey = page.merge
    assert survey is not None
    assert text(browser, "#tabs [aria-selected=true]") == "Merge"
    parts = "return [...document.querySelectorAll('#merge section')].map((one) => one.innerText)"
    models, pairs, fights, methods = browser.execute_script(parts)
    assert "german.safetensors" in models
    assert f"{survey.changes.total.pairs[0, 1].cosine:.2f}" in pairs
    first = fights.splitlines()[fights.splitlines().index("encoder.layers.2") :]
    assert first[1].split()[0] == "attn.weight"
    assert "From all" in methods
    rows = "return [...document.querySelectorAll('.methods tbody tr')].map((row) => [...row.cells].map((one) => one.innerText))"
    table = {cells[0]: cells[1:] for cells in browser.execute_script(rows)}
    ties = survey.methods[0]
    assert table["ties (planned)"][0] == "density=0.3"
    kept = [f"{100 * share:.0f}" for one in ties.models if (share := one.trimmed) is not None]
    assert table["ties (planned)"][1:4] == kept
    assert float(table["ties (planned)"][-1]) == pytest.approx(ties.norm, abs=0.006)
    assert table["linear"][1:7] == ["-"] * 6
    assert "factorises whole matrices" in browser.execute_script(
        "return document.querySelector('#merge details').textContent"
    )
    browser.execute_script(
        "[...document.querySelectorAll('#merge .link')].find((one) => one.innerText === 'same sign of A and B').click()"
    )
    assert (text(browser, "#tabs [aria-selected=true]"), chosen(browser, "measure")) == (
        "Layers",
        "same sign of A and B",
    )
    choose(browser, "measure", "cosine of A and B")
    assert float(cells(browser, "encoder.layers")["2"]["attn.weight"]) < -0.5
    press("ARROW_LEFT", "ARROW_LEFT", within="#tab-layers")
    assert text(browser, "#tabs [aria-selected=true]") == "Merge"
    browser.execute_script("document.querySelector('#merge .members .link').click()")
    assert selected(browser) == "encoder.layers.2.attn.weight"


def test_a_page_before_a_merge_does_not_deny_weak_opposition(browser: Chrome) -> None:
    """The page shows the cosine, so that it cannot say that no changes oppose each other."""
    show(browser, opposing_page(1, cosine=-0.04))
    assert "-0.04" in text(browser, "#merge")
    assert "None: no changes of two models oppose each other by more than 5 %" in text(browser, "#merge")
    show(browser, opposing_page(1, cosine=-0.06))
    assert "None:" not in text(browser, "#merge")


def test_a_page_before_a_merge_counts_the_layers_that_it_does_not_list(browser: Chrome) -> None:
    show(browser, opposing_page(60))
    shares = "return [...document.querySelectorAll('#merge td.couple')].map((one) => one.nextElementSibling.innerText)"
    assert browser.execute_script(shares) == ["1.7 %"] * 50
    assert "and 10 more" in text(browser, "#merge").splitlines()


def test_a_page_before_a_merge_of_many_models_shows_ranges(browser: Chrome) -> None:
    merge_page()
    models = [f"{name}.safetensors" for name in ("french", "german", "czech", "french", "german")]
    show(
        browser,
        cs.view(cs.merge(models, method="task_arithmetic", base="base.safetensors", weights=[0.1, 0.2, 0.3, 0.4, 0.5])),
    )
    row = browser.execute_script(
        "return [...document.querySelector('.methods tbody tr').cells].map((one) => one.innerText)"
    )
    assert row[:4] == ["task_arithmetic (planned)", "weight=0.1,0.2,0.3,0.4,0.5", "100", "-"]
    low, high = row[4].split(" to ")
    assert float(low) < float(high)


def test_a_pointer_that_rests_does_not_choose_what_the_panel_shows(first: Chrome) -> None:
    """A click on a cell of Layers puts the tree under the pointer, which did not move there."""
    from selenium.webdriver.common.action_chains import ActionChains

    click(first, "#tab-layers")
    cell = first.find_elements("css selector", ".heat tbody tr")[9].find_elements("css selector", "td")[1]
    key = cell.get_attribute("title").partition(":")[0]
    ActionChains(first, duration=0).move_to_element(cell).click().pause(0.2).perform()
    assert key == "9.attn.weight"
    assert selected(first) == f"encoder.layers.{key}"
    ActionChains(first, duration=0).move_to_element(first.find_element("css selector", ".row")).perform()
    assert selected(first) != f"encoder.layers.{key}"


def chips_of(browser: Chrome) -> dict[str, int]:
    """The labels and counts of the legend."""
    found = browser.execute_script(
        "return [...document.querySelectorAll('.chip')].map((one) => one.innerText.split('\\n').filter(Boolean))"
    )
    return {name: int(number) for name, number in found}


def test_changes_of_similar_size_have_different_shades(browser: Chrome) -> None:
    before = network()
    torch.save(before, "a.pth")
    for layer in range(12):
        before[f"encoder.layers.{layer}.attn.weight"] *= 1.02 + 0.003 * layer
    torch.save(before, "b.pth")
    show(browser, cs.view("a.pth", "b.pth"))
    found = chips_of(browser)
    assert found.pop("same") == len(before) - 12
    assert list(found) == ["2 to 2.4 %", "2.4 to 3 %", "3 to 3.6 %", "3.6 to 4.4 %", "4.4 to 5.3 %"]
    assert sum(found.values()) == 12
    assert next(iter(facts_of_overview(browser).values())) == "5.3 % of the norm"
    click(browser, "#tab-layers")
    assert len(browser.find_elements("css selector", "#layers .legend .badge")) == len(found)


def facts_of_overview(browser: Chrome) -> dict[str, str]:
    """The lists of links that the panel shows while nothing is selected: each link, and what is said of it."""
    return dict(
        browser.execute_script(
            "return [...document.querySelectorAll('.overview li')].map((one) => [one.querySelector('button').textContent, one.querySelector('.quiet').textContent])"
        )
    )


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ([0.02], "decades"),
        ([0.02, 0.021], "decades"),
        ([1e-4, 0.5], "decades"),
        ([], "decades"),
        ([0.01, 0.02, 0.04], ["1 to 1.3 %", "1.3 to 1.7 %", "1.7 to 2.3 %", "2.3 to 3 %", "3 to 4 %"]),
        ([0.01, 0.0136, 0], ["1 to 1.2 %", "1.2 to 1.4 %"]),
        ([0.01, 0.0136, "new"], ["1 to 1.2 %", "1.2 % and more"]),
    ],
)
def test_shades_are_steps_of_ten_or_divide_the_range(browser: Chrome, changes: list[Any], labels: list[str]) -> None:
    script = script_text(("words.js", "shades.js"))
    given = json.dumps(changes).replace('"new"', "Infinity")
    found = browser.execute_script(f"{script}\nreturn shadesOf({given}).map(([, label]) => label)")
    assert (found == labels) if isinstance(labels, list) else (found[0] == "changed by <0.1 %")


def test_layers_are_in_reading_order_on_the_map(browser: Chrome) -> None:
    script = script_text(("treemap.js",))
    for number in (3, 7, 12, 32, 61):
        items = json.dumps([{"item": at, "value": 5} for at in range(number)])
        found = browser.execute_script(f"{script}\nreturn inRows({items}, {5 * number}, 10, 20, 640, 360)")
        assert [item for item, *_ in sorted(found, key=lambda one: (round(one[2], 3), one[1]))] == list(range(number))
        assert sum(wide * tall for *_, wide, tall in found) == pytest.approx(640 * 360)
        assert all(wide * tall == pytest.approx(640 * 360 / number) for *_, wide, tall in found)


def test_the_first_screen_says_what_check_found(browser: Chrome) -> None:
    tensors = {key: value for key, value in network().items() if key != "decoder.out.weight"}
    tensors["encoder.layers.2.attn.weight"][3, 4] = float("nan")
    tensors["encoder.layers.9.attn.weight"] *= 0
    save_file(tensors, "a.safetensors")
    show(browser, cs.view("a.safetensors", check=True))
    assert text(browser, "#tab-check") == "Check 1 FAIL"
    assert options(browser, "colouring")[0] == "check"
    assert chips_of(browser) == {"nothing found": len(tensors) - 2, "WARN": 1, "FAIL": 1}
    names = rows(browser)
    notes = browser.execute_script(
        "return [...document.querySelectorAll('.row')].map((row) => row.querySelector('.note').textContent)"
    )
    assert notes[names.index("encoder")] == "2 of 36 to look at"
    assert "FAIL not-finite" in notes
    assert "WARN all-zeros" in notes
    said = text(browser, ".overview")
    assert "FAIL not-finite: 1 tensor has 1 NaN value" in said
    click(browser, ".overview button")
    assert selected(browser) == "encoder.layers.2.attn.weight"
    assert "FAIL not-finite" in text(browser, "#panel")


def test_a_sound_checkpoint_says_so_on_the_first_screen(browser: Chrome) -> None:
    save_file({f"layers.{at}.weight": torch.randn(8, 8) for at in range(6)}, "a.safetensors")
    show(browser, cs.view("a.safetensors", check=True))
    assert text(browser, "#tab-check") == "Check PASS"
    assert "nothing to look at" in text(browser, ".overview")


def test_an_adapter_is_coloured_by_what_it_changes(browser: Chrome) -> None:
    Path("adapter").mkdir()
    base = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    Path("adapter/adapter_config.json").write_text(json.dumps({**base, "base_model_name_or_path": "org/model"}))
    factors = {
        f"base_model.model.layers.{layer}.{name}.lora_{factor}.weight": torch.randn(*shape)
        for layer in range(4)
        for name in ("q_proj", "v_proj")
        for factor, shape in (("A", (2, 8)), ("B", (8, 2)))
    }
    save_file(factors, "adapter/adapter_model.safetensors")
    show(browser, cs.view("adapter"))
    assert "LoRA, rank 2, alpha 4, q_proj, v_proj, base org/model" in text(browser, "#facts")
    assert chosen(browser, "colouring") == "role"
    assert chips_of(browser) == dict.fromkeys(("q_proj.lora_A", "q_proj.lora_B", "v_proj.lora_A", "v_proj.lora_B"), 4)


def test_the_button_of_the_theme_names_the_other_one(first: Chrome) -> None:
    before = text(first, "#theme")
    click(first, "#theme")
    assert {before, text(first, "#theme")} == {"light", "dark"}
    click(first, "#theme")
    assert text(first, "#theme") == before


def test_nothing_selected_shows_the_largest_tensors(browser: Chrome) -> None:
    torch.save(network(), "a.pth")
    show(browser, cs.view("a.pth"))
    found = facts_of_overview(browser)
    assert next(iter(found)) == "embed.weight"
    assert found["embed.weight"] == "(40, 16) 2.6 kB"
    click(browser, ".overview button")
    assert selected(browser) == "embed.weight"


def test_codes_say_which_weight_they_are_and_scales_which_codes_they_decode(browser: Chrome, tmp_path: Path) -> None:
    show(browser, cs.view(str(BY_NAME["gptq"].folder(tmp_path / "a"))))
    look_for(browser, f"{LAYERS[0]}.qweight", pattern=True)
    browser.execute_script("document.querySelector('#find').requestSubmit()")
    assert facts(browser)["codes of"] == "a weight (64, 128), GPTQ, 4 bits"
    look_for(browser, f"{LAYERS[0]}.scales", pattern=True)
    browser.execute_script("document.querySelector('#find').requestSubmit()")
    assert facts(browser)["decodes"] == f"{LAYERS[0]}.qweight"
    assert facts(browser)["parameters"] == "none: it is a part of a quantised weight"


def test_codes_list_their_parts_with_the_range_of_scales_and_the_share_of_outermost_codes(
    browser: Chrome, tmp_path: Path
) -> None:
    folder = BY_NAME["fp8-block"].folder(tmp_path / "a")
    show(browser, cs.view(folder, stats=True))
    look_for(browser, f"{LAYERS[0]}.weight", pattern=True)
    browser.execute_script("document.querySelector('#find').requestSubmit()")
    state = load_file(folder / "model.safetensors")
    scale, codes = state[f"{LAYERS[0]}.weight_scale_inv"], state[f"{LAYERS[0]}.weight"].float().abs()
    low, high = (float(f"{one:.4g}") for one in (scale.min(), scale.max()))
    assert facts(browser)["decoded by"] == f"{LAYERS[0]}.weight_scale_inv (2, 2) float32, {low} to {high}"
    number = int((codes == 448).sum())
    assert facts(browser)["outermost codes"].startswith(f"{number} (")
