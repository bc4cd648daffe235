"""The documentation, held against the program: what the README and docs/ say is so."""

from __future__ import annotations

import ast
import inspect
import json
import re
import runpy
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import ckptsurgeon as cs
from ckptsurgeon.cli import application
from ckptsurgeon.planning.keys.pattern import KeyPattern
from ckptsurgeon.planning.mismatch.policy_text import MISMATCH_POLICIES

from ..cli.conftest import speech_files
from ..helpers.shell import installed, left_out
from ..helpers.tuned_models import tuned_models

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
HOWTO = ROOT / "docs" / "howto"

Run = Callable[..., Any]


def table(text: str, heading: str) -> list[list[str]]:
    """The rows of the first table under a line that begins with ``heading``."""
    after = text[text.index(heading) :]
    rows = re.search(r"(?:^\|.*\n)+", after, re.M)
    assert rows, heading
    cells = [re.split(r"(?<!\\)\|", line.strip("|")) for line in rows[0].splitlines()[2:]]
    return [[cell.strip() for cell in row] for row in cells]


def quoted(cell: str) -> list[str]:
    return [text.replace("\\|", "|") for text in re.findall(r"`([^`]+)`", cell)]


def verbs() -> list[str]:
    return sorted(module.NAME for module in application.verbs())


def test_the_readme_opens_with_installing_two_examples_and_two_commands() -> None:
    first = README[: README.index("## The commands")]
    found = re.findall(r"^(?:    (?:\$ )?|\$ )((?:ckpt|make|pip) \w+)", first, re.M)
    assert found == ["pip install", "ckpt merge", "ckpt transplant", "make demo", "make test"]


def test_what_the_readme_shows_is_what_its_commands_print(tmp_path: Path) -> None:
    speech_files()
    tuned_models()
    shown = re.findall(r"^```text\n\$ (.*)\n((?:.*\n)*?)```$", README, re.M)
    assert len(shown) == 2
    for command, text in shown:
        done = subprocess.run(
            ["bash", "-c", f"{command} 2>&1"], env=installed(ROOT) | {"COLUMNS": "96"}, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip
        assert re.sub(r"\d+\.\d s\b", "0.0 s", done.stdout) == text


def test_the_table_of_commands_has_every_verb() -> None:
    named = [quoted(row[0])[0].split()[1] for row in table(README, "## The commands")]
    assert sorted(named) == sorted({verb.split()[0] for verb in verbs()})


def promises() -> list[str]:
    text = README[README.index("Four promises") : README.index("## The commands")]
    return re.split(r"^\d\. ", text, flags=re.M)[1:]


@pytest.mark.parametrize("promise", promises(), ids=lambda promise: promise.split(".")[0].strip("* "))
def test_every_promise_names_tests_that_there_are(promise: str) -> None:
    named = [name for name in quoted(promise) if name.startswith(("tests/", "make "))]
    assert named
    for name in named:
        if name.startswith("make "):
            assert re.search(rf"^{name.removeprefix('make ')}:", (ROOT / "Makefile").read_text(), re.M), name
        else:
            path = ROOT / name
            assert any(has_tests(file) for file in (path.glob("test_*.py") if path.is_dir() else [path])), name


def has_tests(path: Path) -> bool:
    found = ast.walk(ast.parse(path.read_text()))
    return any(isinstance(one, ast.FunctionDef) and one.name.startswith("test_") for one in found)


def test_every_verb_has_a_howto_or_a_page() -> None:
    told = "".join(page.read_text() for page in PAGES)
    for verb in verbs():
        assert f"ckpt {verb}" in told, verb


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 175


def test_the_commands_of_the_readme_run() -> None:
    """Those that install, and make itself, are left out; they are what runs this."""
    commands = re.findall(r"^    (?:\$ )?((?:ckpt|make|pip|python3|git) .*?)(?: *#.*)?$", README, re.M)
    assert [command for command in commands if left_out(command)] == [
        "pip install -c constraints.txt .", "make demo", "make test",
    ]  # fmt: skip
    speech_files()
    for command in commands:
        if not left_out(command):
            done = subprocess.run(
                ["bash", "-c", command], env=installed(ROOT), capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, (command, done.stdout + done.stderr)


def test_the_benchmarks_of_the_readme_are_those_of_their_page() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text()
    section = README[README.index("## Benchmarks") : README.index("## Limits")]
    rows = re.findall(r"^\| .*\d x .*|^\| .* MB .*", section, re.M)
    assert len(rows) == 5
    assert all(row in page for row in rows)
    said = " ".join(section.split())
    dated = re.findall(r"(\d{4}-\d\d-\d\d, commit [0-9a-f]{7,8})", said)
    assert len(dated) == 2
    assert all(one in page for one in dated)
    for command in quoted(said[: said.index("|")]):
        assert command.startswith("make ") or command in page, command


NAV = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]


def places(node: Any) -> Iterator[str]:
    """The pages of a part of the site's contents."""
    if isinstance(node, str):
        yield node
    for one in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from places(one)


def test_every_page_is_in_the_contents_of_the_site() -> None:
    assert sorted(places(NAV)) == sorted(str(page.relative_to(ROOT / "docs")) for page in PAGES[1:])


@pytest.mark.parametrize("toolkit", ["espnet", "coqui", "speechbrain", "transformers", "mergekit"])
def test_every_toolkit_that_people_come_from_has_a_howto(toolkit: str) -> None:
    assert f"howto/{toolkit}.md" in list(places(next(part["Coming from"] for part in NAV if "Coming from" in part)))


@pytest.mark.parametrize("page", sorted(HOWTO.glob("*.md")), ids=lambda page: page.stem)
def test_a_howto_opens_with_its_task(page: Path) -> None:
    """The first paragraph is a sentence about what one wants, before any code or table."""
    first = page.read_text().split("\n\n")[1]
    assert re.match(r"[A-Z`\[(]", first), first
    assert not first.startswith(("```", "    ", "|", "#")), first
    assert re.search(r"[.:](\s|$)", first), first


def test_links_and_paths_lead_somewhere() -> None:
    for page in PAGES:
        text = page.read_text()
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (page.parent / link).exists(), (page.name, link)
        for link in re.findall(r'(?:src|srcset)="([^":]+)"', text):
            assert (page.parent / link).exists(), (page.name, link)
        for path in re.findall(r"`((?:tests|ckptsurgeon|fixtures)/[\w./]+)`", text):
            assert (ROOT / path).exists(), (page.name, path)


def test_the_python_of_the_readme_runs() -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict({"encoder": nn.Linear(4, 4), "decoder": nn.Linear(4, 4), "ctc": nn.Linear(4, 5)})
    torch.save(net.state_dict(), "model.pth")
    torch.save(net.state_dict(), "src.pth")
    cs.init_config("model.pth", output="dst.yaml")
    code = re.search(r"```python\n(.*?)```", README, re.S)
    assert code
    Path("readme.py").write_text(code[1])
    Path("source").mkdir()
    torch.save(net["encoder"].state_dict(), "source/encoder.ckpt")
    seen = runpy.run_path("readme.py", init_globals={"model": net, "encoder": nn.Linear(4, 4)})
    assert Path("collected/encoder.ckpt").is_symlink()
    assert seen["receipt"].counts == {"copied": 4, "initialised": 2}
    assert seen["report"].counts == {"copied": 4, "kept": 2}


def test_the_destinations_of_the_readme_are_understood() -> None:
    code = re.search(r"```yaml\n(.*?)```", README, re.S)
    assert code
    Path("my_package.py").write_text(
        "from torch import nn\nclass Net(nn.Linear):\n    def __init__(self, vocab): super().__init__(2, vocab)\n"
    )
    Path("tokens.txt").write_text("a\nb\n")
    torch.save({"w": torch.ones(2)}, "other.pth")
    Path("bert").mkdir()
    sizes = {
        "vocab_size": 9,
        "hidden_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 4,
    }
    Path("bert/config.json").write_text(json.dumps({"model_type": "bert", **sizes}))
    kinds = []
    for line in code[1].splitlines():
        document = yaml.safe_load(line.removeprefix("# "))
        Path("dst.yaml").write_text(yaml.safe_dump(document))
        kinds.append(cs.load_target("dst.yaml").kind)
    assert kinds == ["factory", "bundled", "transformers", "tensors", "checkpoint"]


@pytest.mark.parametrize("row", table((ROOT / "docs/patterns.md").read_text(), "| pattern |"), ids=lambda row: row[0])
def test_the_table_of_patterns_is_so(row: list[str]) -> None:
    patterns = quoted(row[0])
    for key in quoted(row[2]):
        assert not any(KeyPattern(pattern).matches(key) for pattern in patterns), key
    for key in quoted(row[1]):
        if key not in ("n",):
            assert any(KeyPattern(pattern).matches(key) for pattern in patterns), key


def test_every_policy_is_explained() -> None:
    named = [quoted(row[0])[0] for row in table((ROOT / "docs/transplant.md").read_text(), "## Mismatch policies")]
    assert sorted([*named, "error"]) == sorted(MISMATCH_POLICIES)


def test_every_option_of_transplant_is_documented(ckpt: Run) -> None:
    pages = "".join(page.read_text() for page in PAGES)
    shown = ckpt("transplant", "-h").out
    short = {long for _, long in re.findall(r"(-\w)\b,? +(--[a-z-]+)", shown)}
    assert {"--output", "--dry-run", "--quiet", "--verbose", "--help"} == short
    missing = [option for option in re.findall(r"--[a-z][a-z-]+", shown) if option not in pages]
    assert set(missing) <= short


def test_the_table_of_recipes_has_every_field_of_every_verb() -> None:
    from ckptsurgeon.api import recipes

    rows = table((HOWTO / "recipes.md").read_text(), "| verb |")
    named = {quoted(verb)[0]: set(quoted(fields)) for verb, fields in rows}
    assert named.keys() == set(recipes._VERBS)
    for verb, fields in named.items():
        taken = inspect.signature(recipes._VERBS[verb]).parameters.values()
        assert fields == {one.name for one in taken if one.kind is not one.VAR_KEYWORD}, verb
