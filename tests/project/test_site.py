"""The site that ``make docs`` builds: whole, without warnings, and asking no other host for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ckptsurgeon as cs

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md"))
LOADED = re.compile(
    r"<(?:script|img|source|iframe|video|audio|embed|object|input)\b[^>]*?(?:src|srcset|data)=[\"']?(\S+?)[\"' >]"
)
LINKED = re.compile(
    r"<link\b(?=[^>]*rel=[\"']?(?:stylesheet|icon|preconnect|preload|dns-prefetch|manifest))[^>]*href=[\"']?(\S+?)[\"' >]"
)


def built(folder: Path, *, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Build as ``make docs`` does: not quietly, for then no warning is counted, and none is an error."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=root, capture_output=True, text=True, timeout=240, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = built(folder)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert not re.search("WARNING|ERROR", done.stderr), done.stderr
    return folder


def test_make_builds_as_this_does() -> None:
    (line,) = re.findall(r"mkdocs build.*", (ROOT / "Makefile").read_text())
    assert line == "mkdocs build --strict"


@pytest.mark.long
def test_a_dead_link_is_an_error(tmp_path: Path) -> None:
    """With the settings of the site, and one page: most of the time goes into the reference."""
    settings, nav, _ = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")
    assert nav
    root = tmp_path / "root"
    (root / "docs").mkdir(parents=True)
    (root / "mkdocs.yml").write_text(f"{settings}\nnav: [index.md]\n")
    (root / "docs/index.md").write_text("# One page\n\n[itself](index.md)\n")
    assert built(tmp_path / "site", root=root).returncode == 0
    (root / "docs/index.md").write_text("# One page\n\n[nowhere](howto/nowhere.md)\n")
    done = built(tmp_path / "site", root=root)
    assert done.returncode == 1
    assert "'index.md' contains a link 'howto/nowhere.md'" in done.stderr
    assert done.stderr.count("WARNING") == 1, done.stderr


@pytest.mark.long
def test_every_page_is_built(site: Path) -> None:
    assert all((site / page.with_suffix(".html")).exists() for page in PAGES)


@pytest.mark.long
def test_no_page_asks_another_host(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text()
        asked = [*LOADED.findall(text), *LINKED.findall(text)]
        assert asked, path
        assert not [one for one in asked if re.match(r"(?:[a-z]+:)?//", one)], path
    for path in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", path.read_text()), path


@pytest.mark.long
def test_the_python_reference_has_signatures_and_docstrings(site: Path) -> None:
    text = (site / "reference/python.html").read_text()
    assert all(f'id="ckptsurgeon.{name}"' in text for name in cs.__all__)
    entry = text[text.index('id="ckptsurgeon.transplant"') : text.index('id="ckptsurgeon.rename"')]
    plain = re.sub(r"<[^>]+>", "", entry)
    assert "on_mismatch: Mismatch" in plain
    assert "-&gt; Plan" in plain
    assert "Plan the transplant of one or more sources" in plain


@pytest.mark.long
def test_both_colours_follow_the_system(site: Path) -> None:
    text = (site / "index.html").read_text()
    assert all(
        f'data-md-color-media="(prefers-color-scheme: {name})"' in text.replace("=(", '="(')
        for name in ("light", "dark")
    )
