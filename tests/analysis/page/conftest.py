"""A real browser for the tests of pages: Debian's chromium, driven by its own chromedriver."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--window-size=1200,900",
)
SCRIPT_TIMEOUT_S = 60


def found(name: str) -> str:
    """The path of a program."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is not installed; make test-browser installs it")
    return path


@pytest.fixture(scope="session")
def _chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = found("chromium")
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Both paths are given, so that selenium's manager has nothing to look for on the network.
    driver = Chrome(options=options, service=ChromeService(executable_path=found("chromedriver")))
    try:
        driver.set_script_timeout(SCRIPT_TIMEOUT_S)
        yield driver
    finally:
        driver.quit()


def complaints(driver: Chrome) -> list[str]:
    """What the console was told at level SEVERE since it was last asked."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def browser(_chrome: Chrome) -> Iterator[Chrome]:
    """A browser at an empty page; a test fails whose page complains in the console."""
    _chrome.get("about:blank")
    _chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    _chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    complaints(_chrome)
    yield _chrome
    said = complaints(_chrome)
    _chrome.get("about:blank")
    assert not said, f"the console says {said}"
