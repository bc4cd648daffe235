"""Names and metadata that would write on a terminal what is not there: escaped for people, exact in JSON."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ckptsurgeon.cli import main

from ..helpers.depth import FULL, covering
from ..promises.clauses import SHOWN, clause

NAMES = {
    "colour": "a\x1b[31mred",
    "clearing": "\x1b[2J\x1b[Hclean",
    "a title": "\x1b]0;title\x07",
    "a link": "\x1b]8;;http://evil\x1b\\text\x1b]8;;\x1b\\",
    "an eight-bit control": "\x9b31mred",
    "backspace and return": "safe\x08\x08\x08\x08evil\rgone",
    "delete": "a\x7fb",
    "right to left override": "safe\u202egpj.exe",
    "an isolate": "\u2066a\u2069",
    "zero width": "a\u200bb\u200dc\u2060d",
    "a byte order mark": "\ufeffa",
    "a soft hyphen": "a\xadb",
    "a newline": "a\nerror: forged",
    "a tab": "a\tb",
    "a zero": "a\0b",
    "markup": "[red]a[/red]",
    "closing markup": "a[/]b",
    "a link in markup": "[link=http://evil]a[/link]",
    "an emoji's name": ":smile:",
    "quotes": "a'b\"c`d$e",
    "a script": "</script><img src=x onerror=alert(1)>",
    "a line separator": "a\u2028b\u2029c",
    "half a character": "a\ud800b",
    "a tag character": "a\U000e0041b",
    "private use": "a\ue000b",
    "a flood of accents": "a" + "\u0301" * 200,
    "invisible letters": "\u115f\u3164\u2800",
    "right to left": "שלום",
    "a family": "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "wide": "模型" * 30,
    "long": "x" * 5000,
    "formats": "%s%n{0}{key}",
}

PLAIN = [name for name in NAMES.values() if "\ud800" not in name]
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
BLANK = set("\u115f\u3164\u2800")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
WIDTH = 80


class Terminal(io.StringIO):
    """A stream that says it is a terminal, or that it is none."""

    def __init__(self, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def isatty(self) -> bool:
        return self._colour


def printed(arguments: Sequence[str], *, colour: bool = False) -> tuple[int, str, str]:
    out, err = Terminal(colour), Terminal(colour)
    with redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


def raw(text: str) -> set[str]:
    """The characters of an output that do to a terminal what no letter does."""
    text = COLOUR.sub("", text)
    floods = set(re.findall(r"[\u0300-\u036f]{8}", text))
    return (
        {char for char in text if char != "\n" and unicodedata.category(char) in HIDDEN} | floods | (BLANK & set(text))
    )


def safe(arguments: Sequence[str], code: int = 0) -> None:
    """Run a command on terminals of both kinds."""
    for colour in (True, False):
        ended, out, err = printed(arguments, colour=colour)
        assert ended == code, err
        assert raw(out) | raw(err) == set(), (out + err)[:3000]
        assert "Traceback" not in err


def strings(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from (key, *strings(value))
    elif isinstance(data, list):
        for value in data:
            yield from strings(value)


def exact(arguments: Sequence[str], names: Sequence[str] = (), code: int = 0) -> None:
    """Run a command for programs: whatever is printed is ASCII, one document, and holds the names as they are."""
    ended, out, err = printed([*arguments, "--json"])
    assert ended == code, err
    text = out if code in (0, 1) else err
    assert text.isascii()
    found = set(strings(json.loads(text)))
    assert not [name for name in names if name not in found]


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def keys(names: Sequence[str]) -> dict[str, torch.Tensor]:
    return {f"{name}.{i}.weight": torch.full((2, 3), float(i)) for i, name in enumerate(names)}


@pytest.fixture
def files() -> None:
    """Checkpoints whose keys, extras and metadata have every name; some that differ from them in one way each."""
    whole = list(NAMES.values())
    torch.save({"state_dict": keys(whole), "epoch": 3, **{name: name for name in whole}}, "x.pth")
    torch.save(keys(PLAIN), "p.pth")
    torch.save({f"new.{key}": value for key, value in keys(whole).items()}, "moved.pth")
    torch.save({key: value + 1 for key, value in keys(whole).items()}, "changed.pth")
    torch.save({key: value.new_ones(3, 3) for key, value in keys(whole).items()}, "reshaped.pth")
    torch.save({"only": torch.ones(1)}, "other.pth")
    save_file(keys(PLAIN), "x.safetensors", {name: name for name in PLAIN})


ALL = [*keys(list(NAMES.values()))]
SOME = [*keys(PLAIN)]
VERBS: dict[str, tuple[list[str], list[str], int]] = {
    "inspect": (["inspect", "x.pth"], ALL, 0),
    "inspect, its keys": (["inspect", "x.pth", "--keys"], [], 0),
    "inspect, its statistics": (["inspect", "x.pth", "--stats"], ALL, 0),
    "inspect, all of it": (["inspect", "x.pth", "-v"], ALL, 0),
    "inspect, with metadata": (["inspect", "x.safetensors", "-v"], [*SOME, *PLAIN], 0),
    "inspect, another root": (["inspect", "x.pth", "--root", "nope\x1b[31m"], [], 2),
    "diff, added and removed": (["diff", "x.pth", "moved.pth"], ALL, 1),
    "diff, changed": (["diff", "x.pth", "changed.pth", "--values"], ALL, 1),
    "diff, reshaped": (["diff", "x.pth", "reshaped.pth"], ALL, 1),
    "diff, renamed": (["diff", "x.pth", "moved.pth", "--renames"], ALL, 1),
    "match": (["match", "x.pth", "moved.pth"], [], 0),
    "match of nothing": (["match", "x.pth", "other.pth"], [], 0),
    "rename": (["rename", "x.pth", "--map", "=model", "-o", "out.pth"], [], 0),
    "rename, planned": (["rename", "x.pth", "--map", "=model", "-n", "-v"], ALL, 0),
    "filter": (["filter", "x.pth", "--include", "**.weight", "-o", "out.pth"], [], 0),
    "filter, planned": (["filter", "x.pth", "--exclude", "**.3.weight", "-n", "-v"], [key for key in ALL if ".3." not in key], 0),
    "convert": (["convert", "x.pth", "-o", "out.pth", "-v"], [], 0),
    "convert, impossible": (["convert", "x.pth", "-o", "out.safetensors"], [], 5),
    "merge": (["merge", "p.pth", "p.pth", "--method", "linear", "--weights", "1,1", "-o", "out.pth", "-v"], [], 0),
    "merge of others": (["merge", "x.pth", "reshaped.pth", "--method", "linear", "--weights", "1,1", "-o", "out.pth"], [], 4),
    "average": (["average", "x.pth", "changed.pth", "-o", "out.pth", "-v"], [], 0),
    "transplant": (["transplant", "x.pth", "p.pth", "-o", "out.pth", "-v"], [], 0),
    "transplant of nothing": (["transplant", "other.pth", "x.pth", "-o", "out.pth"], [], 4),
    "transplant of other shapes": (["transplant", "x.pth", "reshaped.pth", "-o", "out.pth"], [], 4),
    "transplant, strict": (["transplant", "x.pth", "moved.pth", "--strict", "-o", "out.pth"], [], 4),
    "transplant, explained": (["transplant", "x.pth", "p.pth", "-n", "--explain", "**"], [], 0),
    "transplant, explained in vain": (["transplant", "x.pth", "p.pth", "-n", "--explain", "nope\x1b[31m\u202e"], [], 2),
    "scan": (["scan", "x.pth"], [], 0),
    "scan, all of it": (["scan", ".", "-v"], [], 0),
    "scan of nothing": (["scan", "nope\x1b[31m"], [], 3),
    "fetch of nothing": (["fetch", "nope\x1b[31m\u202e.pth"], [], 3),
    "fetch of an address nobody reads": (["fetch", "no\x1b[31m://x"], [], 3),
    "merge by an unknown method": (["merge", "p.pth", "p.pth", "--method", "nope\x1b[31m", "-o", "out.pth"], [], 2),
    "merge with an unknown parameter": (["merge", "p.pth", "p.pth", "--method", "linear", "--param", "no\x1b[31m=1", "-o", "out.pth"], [], 2),
    "merge with a pattern of nothing": (["merge", "p.pth", "p.pth", "--method", "linear", "--weights", "1,1", "--param", "weight:no\x1b[31m=1", "-o", "out.pth"], [], 2),
    "lora merge of what is no adapter": (["lora", "merge", "p.pth", "x.pth", "-o", "out.pth"], [], 3),
    "lora extract of names that PEFT has not": (["lora", "extract", "changed.pth", "x.pth", "--rank", "1", "-n"], [], 4),
    "lora extract of other shapes": (["lora", "extract", "reshaped.pth", "x.pth", "--rank", "1", "-o", "ad"], [], 4),
    "init": (["init", "p.pth", "-o", "dst.yaml"], [], 0),
    "a pattern that matches nothing": (["filter", "x.pth", "--include", "nope\x1b[31m\u202e", "-o", "out.pth"], [], 2),
    "an option that is none": (["inspect", "x.pth", "--nope\x1b[31m"], [], 2),
    "a rule that is none": (["rename", "x.pth", "--map", "\x1b[31m", "-o", "out.pth"], [], 2),
}  # fmt: skip


@clause(SHOWN)
@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_shows_names_escaped(verb: str) -> None:
    arguments, _, code = VERBS[verb]
    safe([*arguments, "--force"] if "-o" in arguments else arguments, code)


@clause(SHOWN)
@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("verb", [verb for verb in VERBS if "--keys" not in VERBS[verb][0]])
def test_a_verb_s_json_is_ascii_and_exact(verb: str) -> None:
    arguments, names, code = VERBS[verb]
    exact(arguments, names, code)


@clause(SHOWN)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_by_one_line_no_wider_than_the_terminal(name: str) -> None:
    torch.save({NAMES[name]: torch.ones(2, 3), "plain.weight": torch.ones(4)}, "x.pth")
    _, out, err = printed(["inspect", "x.pth"], colour=False)
    from rich.cells import cell_len

    assert raw(out) | raw(err) == set()
    assert max(map(cell_len, out.splitlines())) <= WIDTH, out
    exact(["inspect", "x.pth"], [NAMES[name]])


def on_disk(name: str) -> str:
    """A name as a file may have it."""
    return name.replace("\0", "").replace("/", "").replace("\ud800", "\udcff")[:60]


def kinds(name: str) -> set[tuple[str, str, bool]]:
    """The kinds of what is escaped in a name: the category of the character, how its escape begins, and markup."""
    text = NAMES[name]
    hidden = [char for char in text if char in BLANK or unicodedata.category(char) in HIDDEN]
    escapes = [char.encode("unicode_escape", "backslashreplace").decode() for char in hidden]
    found = {
        (unicodedata.category(char), escape[:2], char.isascii()) for char, escape in zip(hidden, escapes, strict=True)
    }
    also = {"flood": re.search(r"[\u0300-\u036f]{8}", text), "markup": re.search(r"\[[/a-z]", text)}
    return found | {(kind, "", True) for kind, one in also.items() if one}


OF_EACH_KIND = [*NAMES] if FULL else covering([*NAMES], kinds)
"""The names of what costs more to try: in ``make test`` the first with each kind of escape."""


def file_in_a_folder(name: str) -> tuple[str, str]:
    """Write a checkpoint whose name and folder have an odd name; return the paths of the folder and of the file."""
    folder = on_disk(NAMES[name])
    os.mkdir(folder)
    torch.save({"a": torch.ones(2)}, "x.pth")
    path = f"{folder}/{folder}.pth"
    os.rename("x.pth", path)
    return folder, path


@clause(SHOWN)
@pytest.mark.parametrize("name", NAMES)
def test_a_file_s_name_is_shown_escaped(name: str) -> None:
    folder, path = file_in_a_folder(name)
    safe(["inspect", path])
    safe(["scan", path])
    safe(["scan", folder, "-v"])
    safe(["convert", path, "-o", f"{folder}/out.safetensors", "--force"])
    safe(["verify", f"{folder}/out.safetensors"])


@clause(SHOWN)
@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_other_verbs_show_a_file_s_name_escaped(name: str) -> None:
    folder, path = file_in_a_folder(name)
    save_file({"a": torch.ones(2)}, f"{folder}/out.safetensors")
    assert raw(printed(["fetch", path], colour=True)[1]) == set()
    assert printed(["fetch", path])[1] == f"{os.path.abspath(path)}\n"  # exact, for a program
    safe(["average", path, path, "-o", f"{folder}/average.pth", "--force"])
    safe(["merge", path, path, "--method", "linear", "--weights", "1,1", "-o", f"{folder}/merged.pth", "--force"])
    safe(["diff", path, f"{folder}/out.safetensors"], 0)
    safe(["inspect", f"{folder}/nothing"], 3)
    safe(["inspect", folder], 3)
    safe(["transplant", path, f"{folder}/nothing.yaml", "-o", "out.pth"], 2)
    safe(["train", f"{folder}/nothing.yaml"], 2)
    Path(path).write_bytes(b"hello")
    safe(["inspect", path], 3)


@clause(SHOWN)
@pytest.mark.parametrize("name", [name for name in OF_EACH_KIND if name not in ("half a character", "a newline")])
def test_a_module_of_an_adapter_is_shown_escaped(name: str) -> None:
    module = NAMES[name].replace(".", "")[:300]
    save_file({f"{module}.weight": torch.ones(4, 4), "b.weight": torch.ones(4, 4)}, "base.safetensors")
    os.mkdir("ad")
    for known, code in ((module, 0), (f"{module}x", 4)):
        factors = {"lora_A": torch.ones(2, 4), "lora_B": torch.ones(4, 2)}
        stored = {f"base_model.model.{known}.{key}.weight": value for key, value in factors.items()}
        save_file(stored, "ad/adapter_model.safetensors")
        Path("ad/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
        safe(["lora", "merge", "base.safetensors", "ad", "-o", "out.safetensors", "--force", "-v"], code)
        exact(["lora", "merge", "base.safetensors", "ad", "-n"], [f"{module}.weight"] if code == 0 else [], code)


@clause(SHOWN)
@pytest.mark.parametrize("name", [name for name in NAMES if len(NAMES[name].encode("utf-8", "replace")) < 256])
def test_what_a_pickle_names_is_shown_escaped(name: str) -> None:
    raw = NAMES[name].encode("utf-8", "surrogatepass")
    spelled = b"\x8c" + bytes([len(raw)]) + raw
    os.mkdir("found")
    Path("found/x.pkl").write_bytes(b"\x80\x04" + spelled + spelled + b"\x93.")
    safe(["scan", "found", "-v"], 1)
    exact(["scan", "found"], [], 1)


@clause(SHOWN)
@pytest.mark.parametrize("name", NAMES)
def test_the_next_command_names_the_file_to_a_shell(name: str) -> None:
    path = f"{on_disk(NAMES[name])}'.safetensors"
    torch.save({"a": torch.ones(2)}, "x.pth")
    _, out, err = printed(["convert", "x.pth", "-o", f"./{path}"])
    command = re.search(r"next: ckpt verify (.*)", out + err)
    assert command
    said = subprocess.run(["bash", "-c", f"printf %s {command[1]}"], capture_output=True, check=True).stdout
    assert said == os.fsencode(f"./{path}")
    assert raw(out) | raw(err) == set()
