"""Pages as they look, at three widths, light and dark: written to look at, and held to fit."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import ckptsurgeon as cs

from ...trainer import toy
from ...trainer.conftest import reopen_here
from .made import changed, look_like, merge_page, network, output, run_with_clips, show

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser

PICTURES = Path(__file__).parents[3] / "screenshots"
SIZES = {"phone": (360, 740), "laptop": (1280, 800), "wide": (1920, 1080)}
LOOKS = (("phone", "light"), ("phone", "dark"), ("laptop", "dark"), ("wide", "light"))
"""A theme changes colours alone, and a width the layout alone."""


def checkpoint() -> cs.Page:
    torch.save(network(), "network.pth")
    return cs.view("network.pth", stats=True)


def difference() -> cs.Page:
    torch.save(network(), "before.pth")
    save_file(changed(network()), "after.safetensors")
    return cs.view("before.pth", "after.safetensors")


def receipt() -> cs.Page:
    return cs.view(output())


def run() -> cs.Page:
    with pytest.MonkeyPatch.context() as patched:
        reopen_here(patched)
        cs.train(toy.write(steps=60, evaluate_every=10), run="run")
    return cs.view("run")


PAGES: dict[str, tuple[Callable[[], cs.Page], str]] = {
    "checkpoint": (checkpoint, "encoder.layers.7.attn.weight"),
    "difference": (difference, "encoder.layers.3.attn.weight"),
    "receipt": (receipt, "body.norm.weight"),
    "merge": (merge_page, "encoder.layers.2.attn.weight"),
    "run": (run, ""),
    "clips": (run_with_clips, ""),
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_fit_at_every_width_and_are_readable_in_both_themes(browser: Chrome, name: str) -> None:
    make, key = PAGES[name]
    show(browser, make())
    PICTURES.mkdir(exist_ok=True)
    tabs = [
        tab.get_attribute("id").removeprefix("tab-") for tab in browser.find_elements("css selector", "#tabs button")
    ]
    for size, theme in LOOKS:
        width, height = SIZES[size]
        look_like(browser, width, height, theme)
        for tab in tabs:
            browser.get(f"{browser.current_url.partition('#')[0]}#{key}")
            browser.refresh()
            browser.execute_script("document.getElementById(arguments[0]).click()", f"tab-{tab}")
            settle(browser)
            picture = browser.get_screenshot_as_png()
            (PICTURES / f"{name}-{tab}-{size}-{theme}.png").write_bytes(picture)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width, (size, tab)
            assert contrast(browser) >= 4.5, (size, theme, tab)
            assert is_dark(picture) == (theme == "dark")


def settle(browser: Chrome) -> None:
    """Wait until what was asked for is drawn: two frames later it is."""
    browser.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
    )


CONTRAST = """
const light = (text) => {
  const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((one) => one / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const back = light(getComputedStyle(document.body).backgroundColor);
const texts = [...document.querySelectorAll('h1, h2, p, dt, dd, td, th, button, .name, .note, .size')].filter((one) => one.offsetParent && getComputedStyle(one).backgroundColor === 'rgba(0, 0, 0, 0)' && one.getAttribute('aria-pressed') !== 'true');
return Math.min(...texts.map((one) => light(getComputedStyle(one).color)).map((ink) => (Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05)));
"""


def contrast(browser: Chrome) -> float:
    """The least contrast of a text with the page (WCAG 2.2, 1.4.3 asks for 4.5)."""
    return float(browser.execute_script(CONTRAST))


def is_dark(picture: bytes) -> bool:
    pixels = Image.open(io.BytesIO(picture)).convert("L").resize((40, 40))
    return sum(pixels.tobytes()) / 1600 < 128
