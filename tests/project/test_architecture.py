"""The rooms of the house and the doors between them: any import that is not drawn here fails."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

import ckptsurgeon

ROOT = Path(ckptsurgeon.__file__).parent

FOLDERS = 15
"""Folders of the package; beside them lie errors.py, __init__.py and __main__.py. A feature is a file in one of them."""
FILES = 25
"""Modules that a folder holds at most."""

# room: the rooms it may import, at the top of a module, inside a function or for type checkers. A room is a folder.
DOORS: dict[str, set[str]] = {
    "__init__": {"analysis", "api", "checkpoint", "destinations", "errors", "methods", "planning", "render", "storage", "tensors", "trainer", "util"},
    "__main__": {"cli"},
    "cli": {"analysis", "api", "checkpoint", "errors", "planning", "render", "storage", "tensors", "trainer", "util"},
    "render": {"analysis", "checkpoint", "methods", "planning", "tensors", "trainer", "util"},
    "trainer": {"api", "checkpoint", "destinations", "errors", "planning", "storage", "util", "vocabulary"},
    "api": {
        "analysis", "checkpoint", "destinations", "engine", "errors", "formats", "methods", "planning", "storage", "tensors",
        "util", "vocabulary",
    },
    "analysis": {"checkpoint", "engine", "errors", "formats", "planning", "storage", "tensors", "util", "vocabulary"},
    "destinations": {"checkpoint", "errors", "planning", "storage", "tensors", "util", "vocabulary"},
    "vocabulary": {"errors", "planning", "storage", "util"},
    "engine": {"checkpoint", "errors", "formats", "methods", "planning", "storage", "tensors", "util"},
    "planning": {"errors", "formats", "methods", "storage", "tensors", "util"},
    "methods": {"errors", "storage", "tensors", "util"},
    "checkpoint": {"errors", "formats", "storage", "tensors", "util"},
    "formats": {"errors", "storage", "tensors", "util"},
    "storage": {"errors", "util"},
    "tensors": {"errors", "util"},
    "errors": {"util"},
    "util": set(),
}  # fmt: skip


CALLED = ("__import__", "import_module", "open", "print")
"""The functions whose calls a rule below is about."""


@cache
def modules() -> list[Path]:
    return [*sorted(ROOT.rglob("*.py")), ROOT / "__init__.pyi"]


@cache
def parsed(path: Path) -> tuple[tuple[ast.AST, ...], list[str]]:
    """Return what the rules below look at, and the names that a module assigns.

    No tree is kept: to look for garbage in 1,500 of them takes four times as long as to parse them.
    """
    tree = ast.parse(path.read_text())
    return tuple(filter(_is_looked_at, ast.walk(tree))), names_assigned(tree)


def _is_looked_at(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return called(node) in CALLED
    return isinstance(node, ast.Import | ast.ImportFrom)


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Return all imports of a module, and its calls of ``CALLED``."""
    return parsed(path)[0]


def room_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.partition(".")[0]


def imports(path: Path) -> set[str]:
    """The rooms that a module imports, at its top or inside a function."""
    package = ("ckptsurgeon", *path.relative_to(ROOT).with_suffix("").parts)
    found: set[str] = set()
    for node in nodes_of(path):
        names: list[tuple[str, ...]] = []
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            head = package[: len(package) - node.level] if node.level else ()
            if path.stem == "__init__" and node.level:
                head = package[:-1][: len(package) - node.level]
            base = (*head, *(node.module or "").split(".")) if node.module else head
            names = [base if len(base) > 1 else (*base, alias.name) for alias in node.names]
        for name in names:
            if name[0] == "ckptsurgeon":
                room = name[1] if len(name) > 1 else "__init__"
                found.add(room if (ROOT / room).exists() or (ROOT / f"{room}.py").exists() else "__init__")
    return found


def strings_imported(nodes: Iterable[ast.AST]) -> set[str]:
    """Our own modules that are imported by a name in a text, as ``import_module("ckptsurgeon.x")``, which no door shows."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Call) and (node.args or node.keywords):
            name = node.args[0] if node.args else node.keywords[0].value
            if isinstance(name, ast.JoinedStr) and name.values:
                name = name.values[0]
            if called(node) in ("import_module", "__import__") and isinstance(name, ast.Constant):
                text = str(name.value)
                if text.startswith(".") or text.partition(".")[0] == "ckptsurgeon":
                    found.add(text)
    return found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('importlib.import_module("ckptsurgeon.render.html")', {"ckptsurgeon.render.html"}),
        ('import_module("..render", __package__)', {"..render"}),
        ('import_module(f"ckptsurgeon.{name}")', {"ckptsurgeon."}),
        ('import_module(name="ckptsurgeon")', {"ckptsurgeon"}),
        ('__import__("ckptsurgeon.api")', {"ckptsurgeon.api"}),
        ('import_module("transformers"); import_module(name); __import__("ckptsurgeons")', set()),
    ],
)
def test_imports_by_a_text_are_found(code: str, found: set[str]) -> None:
    assert strings_imported(ast.walk(ast.parse(code))) == found


def test_no_module_imports_ours_by_a_text() -> None:
    wrong = {path.relative_to(ROOT): strings_imported(nodes_of(path)) for path in modules()}
    assert not {
        str(path): found
        for path, found in wrong.items()
        if found and str(path) not in ("util/registry.py", "util/lazy.py")
    }


def test_every_room_is_drawn() -> None:
    assert {room_of(path) for path in modules()} <= DOORS.keys()


def test_no_module_goes_through_a_door_that_is_not_drawn() -> None:
    wrong = []
    for path in modules():
        room = room_of(path)
        for other in imports(path) - {room}:
            if other not in DOORS[room]:
                wrong.append(f"{path.relative_to(ROOT)} ({room}) imports {other}")
    assert not wrong


def test_every_door_that_is_drawn_is_used() -> None:
    used: dict[str, set[str]] = {}
    for path in modules():
        used.setdefault(room_of(path), set()).update(imports(path))
    unused = {(room, other) for room, doors in DOORS.items() for other in doors - used.get(room, set())}
    assert not unused


def test_the_package_has_few_folders_and_these_few_files() -> None:
    folders = {path.parent.relative_to(ROOT) for path in modules()}
    assert len({folder.parts[0] for folder in folders if folder.parts}) <= FOLDERS
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "errors.py"}
    sizes = {str(folder): len(list((ROOT / folder).glob("*.py"))) - 1 for folder in folders}
    assert not {folder: size for folder, size in sizes.items() if size > FILES}


def test_a_package_is_no_list_of_names() -> None:
    """Everything is imported from where it is defined; the façade lists names, once, in its stub, and so do tasks."""
    wrong = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("__init__.py")
        if path.parent not in (ROOT, ROOT / "cli", ROOT / "trainer" / "tasks")
        and len(ast.parse(path.read_text()).body) > 1
    }
    assert not wrong


def test_the_top_level_is_fixed() -> None:
    told = subprocess.run(["git", "ls-files"], cwd=ROOT.parent, capture_output=True, text=True)
    if told.returncode:
        pytest.skip("not a git checkout")
    assert {name.partition("/")[0] for name in told.stdout.splitlines()} <= {
        "pyproject.toml", "ckptsurgeon", "tests", "fixtures", "README.md", "CHANGELOG.md",
        "Makefile", "constraints.txt", "LICENSE", "docs", "mkdocs.yml", "CONTRIBUTING.md", "CITATION.cff", ".ci", ".pre-commit-config.yaml", ".pre-commit-hooks.yaml", ".gitignore",
    }  # fmt: skip


def test_every_file_of_tests_that_a_text_names_is_there() -> None:
    folder = ROOT.parent
    texts = [*folder.glob("ckptsurgeon/**/*.py"), *folder.glob("tests/**/*.py"), *folder.glob("fixtures/**/*.py")]
    named = {name: path for path in texts for name in re.findall(r"\btests/[\w/]+\.py\b", path.read_text())}
    assert not {name: str(path) for name, path in named.items() if not (folder / name).exists()}


def test_make_clean_removes_what_git_ignores() -> None:
    makefile = (ROOT.parent / "Makefile").read_text()
    removed = re.findall(r"^clean:.*\n\trm -rf (.*)", makefile, re.MULTILINE)[0].replace("$(VENV)", ".venv").split()
    ignored = {line.strip("/") for line in (ROOT.parent / ".gitignore").read_text().split() if line.endswith("/")}
    assert ignored - {"__pycache__", "*.egg-info", ".oracle"} <= set(removed)  # oracles are gigabytes, hours to make


def test_the_doors_form_no_circle() -> None:
    done: set[str] = set()

    def visit(room: str, above: tuple[str, ...]) -> None:
        assert room not in above, f"a circle: {' -> '.join((*above, room))}"
        if room not in done:
            for other in DOORS[room]:
                visit(other, (*above, room))
            done.add(room)

    for room in DOORS:
        visit(room, ())


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_imported(path: Path, known: set[str]) -> set[str]:
    """Our own modules that a module imports, at its top, inside a function or for type checkers."""
    folder = path.relative_to(ROOT).parts[:-1]
    found: set[str] = set()
    for node in nodes_of(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join((*folder[: len(folder) - node.level + 1], *(node.module or "").split("."))).strip(".")
            names = {f"{base}.{alias.name}".strip(".") for alias in node.names}
            found.update(names & known or {base})
    return (found & known) - {module_of(path)}


def circles(imported: dict[str, set[str]]) -> list[str]:
    """The first circle that is met from each module."""
    done: set[str] = set()
    found = []

    def visit(module: str, above: tuple[str, ...]) -> None:
        if module in above:
            found.append(" -> ".join((*above[above.index(module) :], module)))
        elif module not in done:
            for other in sorted(imported.get(module, ())):
                visit(other, (*above, module))
            done.add(module)

    for module in imported:
        visit(module, ())
    return found


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b -> c -> b"]
    assert not circles({"a": {"b", "c"}, "b": {"c"}})


def test_modules_form_no_circle() -> None:
    paths = {module_of(path): path for path in ROOT.rglob("*.py")}
    assert not circles({name: modules_imported(path, set(paths)) for name, path in paths.items()})


def names_assigned(tree: ast.Module) -> list[str]:
    """The names that the statements of a module assign, define or import, each as often as that happens."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.Assign):
            parts = [part for target in node.targets for part in getattr(target, "elts", [target])]
            found += [part.id for part in parts if isinstance(part, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.append(node.target.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found += [alias.asname or alias.name for alias in node.names]
    return found


def test_no_module_gives_a_name_two_meanings() -> None:
    """Functions read a constant when they run: if two halves of a module define it, both use the second."""
    assert names_assigned(ast.parse("A, B = 1, 2\nB: int = 3\n")) == ["A", "B", "B"]
    twice = {path: Counter(parsed(path)[1]) for path in modules() if path.suffix == ".py"}
    assert not {str(path): name for path, names in twice.items() for name, times in names.items() if times > 1}


def test_only_keys_uses_fnmatch2() -> None:
    users = [path for path in modules() if "fnmatch2" in path.read_text().replace("``fnmatch2", "")]
    assert {path.parent.relative_to(ROOT).as_posix() for path in users} == {"planning/keys"}


def test_pure_rooms_open_no_file_and_log_nothing() -> None:
    pure = ("planning", "methods/lora", "tensors", "engine/resample", "analysis/explain")
    for path in modules():
        if path.relative_to(ROOT).as_posix().startswith(tuple(f"{folder}/" for folder in pure)):
            calls = [node.func for node in nodes_of(path) if isinstance(node, ast.Call)]
            assert not {func.id for func in calls if isinstance(func, ast.Name)} & {"open", "print"}, path
            assert "logging" not in path.read_text(), path


def test_the_library_never_prints() -> None:
    for path in modules():
        if room_of(path) != "cli":
            for node in nodes_of(path):
                is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
                assert not is_print, path
