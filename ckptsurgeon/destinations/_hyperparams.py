"""Reads some entries of a ``hyperparams.yaml``, and the entries that they refer to, with hyperpyyaml.

https://github.com/speechbrain/HyperPyYAML. The file of a SpeechBrain recipe also makes folders, loggers and data
pipelines. A destination does not need these entries: they are not run, and their placeholders need no value.
"""

from __future__ import annotations

import difflib
import importlib
import io
import pydoc
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..storage.yaml_text import check_yaml
from ..util.text import brief_repr, count, escape, listing
from ._document import Document
from .torch_module.user_code import imported

__all__ = [
    "Hyperparams",
    "calls_kept",
    "code_in",
    "entry_names",
    "error_text",
    "has_hyperparams_tags",
    "needed_by",
    "nodes",
    "read_hyperparams",
    "restored",
    "tag_of",
    "tagged",
    "toolkit",
]

# The tree of a ``hyperparams.yaml`` as ruamel.yaml reads it: nodes, tags and references.

_REFERENCE = re.compile(r"<([^>]*)>")


def tag_of(node: Any) -> str:
    """Return the tag of a YAML node as it is written, such as ``!ref``; "" if the node has none."""
    return str(getattr(getattr(node, "tag", None), "value", "") or "")


def needed_by(tree: Any, *entries: str) -> set[str]:
    """Return the names of ``entries`` and of all entries that they refer to, directly or indirectly."""
    needed, waiting = set[str](), [*entries]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            references = (ref for text in _texts(tree[name]) for ref in _REFERENCE.findall(text))
            waiting += [top for top in (re.split(r"[\[.]", ref)[0].strip() for ref in references) if top in tree]
    return needed


def _texts(node: Any) -> Iterator[str]:
    for _, inner in nodes(node):
        value = getattr(inner, "value", inner)
        if isinstance(value, str):
            yield value


def nodes(node: Any, path: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield (path, node) for each node of a YAML tree, in the order of the document.

    A node that aliases refer to is yielded only once.
    """
    seen = set() if seen is None else seen
    if id(node) in seen:
        return
    seen.add(id(node))
    yield path, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from nodes(child, f"{path}.{key}", seen)


def tagged(tree: Any, *kinds: str) -> Iterator[str]:
    """Yield the name after each tag of the given kinds, in the order of the document.

    For the kind ``!new`` and the tag ``!new:torch.nn.Linear``, the name is ``torch.nn.Linear``.
    """
    for _, node in nodes(tree):
        kind, colon, name = tag_of(node).partition(":")
        if colon and kind in kinds:
            yield name


_TAG = re.compile(r"(?:^|[\s\[{,])!(?:new:|name:|apply:|applyref:|module:|include:|ref\b|copy\b|tuple\b|PLACEHOLDER\b)")
_CODE = re.compile(r"!(?:new|name|apply|applyref|module|include):[^\s,\]}]*")
_RUNS = ("!new", "!name", "!apply", "!applyref", "!module")
_PLACEHOLDER = "!PLACEHOLDER"


@dataclass(frozen=True)
class Hyperparams:
    """The part of a ``hyperparams.yaml`` that the requested entries need.

    ``text`` is the YAML of this part with references resolved. ``ran`` are the names of the classes and functions that
    were imported. ``files`` are the user's own files that contain them, and included files. ``notes`` are messages for
    the user.
    """

    text: str
    ran: tuple[str, ...]
    files: tuple[str, ...]
    notes: tuple[str, ...]


def has_hyperparams_tags(text: str) -> bool:
    """Return whether a text has tags of hyperpyyaml, outside comments."""
    begin = 0
    while found := _TAG.search(text, begin):
        begin = max(begin, text.rfind("\n", begin, found.end()) + 1)
        if not text[begin : found.end()].lstrip().startswith("#"):
            return True
        if (begin := text.find("\n", found.end())) < 0:
            return False
    return False


def code_in(document: Document) -> tuple[str, ...]:
    """Return every tag that imports, calls or includes something, as written in the file.

    If there is no such tag, return ("hyperpyyaml",), since this package is imported to read any file. The file is
    searched as plain text, not parsed as YAML: a tag in a comment is returned too, but no tag that runs code is missed.
    """
    return tuple(escape(tag) for tag in _CODE.findall(document.text)) or ("hyperpyyaml",)


def read_hyperparams(document: Document, overrides: Mapping[str, Any], *entries: str) -> Hyperparams:
    """Return the part of a document that ``entries`` need, with references resolved.

    The code that this part refers to is imported. Raises ConfigError if hyperpyyaml is not installed, an entry or an
    override is unknown, an entry needs a placeholder without a value, or code cannot be imported.
    """
    hyperpyyaml = toolkit(document)
    tree = _tree(document)
    _override(document, hyperpyyaml, tree, overrides)
    for entry in entries:
        if entry not in tree:
            raise _no_entry(document, entry, tree)
        _check_placeholders(document, entry, {name: tree[name] for name in needed_by(tree, entry)})
    needed = needed_by(tree, *entries)
    others = len(tree) - len(needed)
    for name in [name for name in tree if name not in needed]:
        del tree[name]
    included = dict.fromkeys(document.resolve(name) for name in tagged(tree, "!include"))
    with _reading(document):
        text = hyperpyyaml.resolve_references(_stream(document, _dumped(tree))).getvalue()
        check_yaml(text, document.name)  # references are aliases now
        names = list(tagged(_ruamel().YAML().load(text), *_RUNS))
    ran, files = imported(document, names)
    notes = (
        (
            f"built only the entry {escape(entries[0])} and the entries that it uses; "
            f"{count(others, 'other entry was', 'other entries were')} not built",
        )
        if others
        else ()
    )
    return Hyperparams(text, ran, (*files, *included), notes)


def entry_names(document: Document) -> tuple[str, ...]:
    """Return the names of all entries of a document, in order."""
    return tuple(map(str, _tree(document)))


def toolkit(document: Document) -> Any:
    """Return the package hyperpyyaml; raises ConfigError if it is not installed."""
    try:
        return importlib.import_module("hyperpyyaml.core")
    except ModuleNotFoundError as error:
        raise document.fail(
            f"the file is a SpeechBrain configuration, which needs the package {error.name}.",
            "Run pip install speechbrain (or only hyperpyyaml, if the file uses no class of SpeechBrain).",
        ) from error


def _ruamel() -> Any:
    """Return the YAML library that hyperpyyaml depends on."""
    return importlib.import_module("ruamel.yaml")


@contextmanager
def restored() -> Iterator[None]:
    """Restore, after the block, the functions of PyYAML and ruamel.yaml that hyperpyyaml changes.

    hyperpyyaml does not restore them if it raises an exception.
    """
    import yaml

    ruamel_yaml = _ruamel()

    makers = (yaml.constructor.BaseConstructor, ruamel_yaml.constructor.BaseConstructor)
    defaults = [maker.construct_object.__defaults__ for maker in makers]
    try:
        yield
    finally:
        for maker, before in zip(makers, defaults, strict=True):
            maker.construct_object.__defaults__ = before


@contextmanager
def calls_kept(hyperpyyaml: Any, ran: list[str]) -> Iterator[None]:
    """During the block, add to ``ran`` the name of each class or function that hyperpyyaml looks up to call it."""

    class Kept:
        @staticmethod
        def locate(name: str) -> Any:
            ran.append(escape(name))
            return pydoc.locate(name)

    before, hyperpyyaml.pydoc = hyperpyyaml.pydoc, Kept
    try:
        yield
    finally:
        hyperpyyaml.pydoc = before


@contextmanager
def _reading(document: Document) -> Iterator[None]:
    """Turn exceptions that hyperpyyaml and its YAML library raise in the block into ConfigError."""
    ruamel_yaml = _ruamel()
    try:
        with restored():
            yield
    except (ruamel_yaml.error.YAMLError, ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise document.fail(error_text(error)) from error


def error_text(error: Exception) -> str:
    """Return a message for an exception: the line in the YAML, if known, its class, and all strings in its ``args``."""
    parts = [str(part) for part in error.args if isinstance(part, (str, BaseException))] or [str(error)]
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark is not None else ""
    return f"{where}{type(error).__name__}: {escape(' '.join(': '.join(parts).split()), 400)}"


def _stream(document: Document, text: str) -> io.StringIO:
    """Return ``text`` as a file object with the document's path as ``name``, so that ``!include`` finds its files."""
    stream = io.StringIO(text)
    stream.name = document.path
    return stream


def _tree(document: Document) -> Any:
    ruamel_yaml = _ruamel()
    check_yaml(document.text, document.name)
    with _reading(document):
        tree = ruamel_yaml.YAML().load(document.text)
    if not isinstance(tree, dict):
        raise document.fail("the file is not a mapping from names to hyperparameters.")
    return tree


def _dumped(tree: Any) -> str:
    ruamel_yaml = _ruamel()
    stream = io.StringIO()
    ruamel_yaml.YAML().dump(tree, stream)
    return stream.getvalue()


def _override(document: Document, hyperpyyaml: Any, tree: Any, overrides: Mapping[str, Any]) -> None:
    for name in overrides:
        if name not in tree:
            near = difflib.get_close_matches(str(name), map(str, tree), n=1)
            raise document.fail(
                f"the overrides contain {brief_repr(name)}, which is not an entry of the file.",
                f"Did you mean {near[0]}?" if near else "",
            )
    with _reading(document):
        hyperpyyaml.recursive_update(tree, dict(overrides), must_match=True)


def _no_entry(document: Document, name: str, tree: Any) -> ConfigError:
    made = [str(key) for key, value in tree.items() if str(tag_of(value)).startswith("!new:")]
    hint = f"Choose another entry: model: {{speechbrain: {document.name}, entry: NAME}}"
    return document.fail(
        f"the file has no entry {escape(name)}.", f"{hint}; the file makes {listing(made, where='')}." if made else hint
    )


def _check_placeholders(document: Document, entry: str, needed: Mapping[str, Any]) -> None:
    found = (pair for name, node in needed.items() for pair in nodes(node, name))
    open_ones = [path for path, node in found if tag_of(node) == _PLACEHOLDER]
    if open_ones:
        raise document.fail(
            f"the entry {escape(entry)} needs a value for {listing(open_ones)}: in the file it is only {_PLACEHOLDER}.",
            f"Write the value: model: {{speechbrain: {document.name}, overrides: {_nested(open_ones[0])}}}.",
        )


def _nested(path: str) -> str:
    """Return the YAML text ``{a: {b: …}}`` for the path ``a.b``, to show in a hint how to override a value."""
    parts = path.split(".")
    return f"{{{': {'.join(parts)}: …{'}' * len(parts)}"
