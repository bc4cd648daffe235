"""Reads YAML strictly: a key that occurs twice is an error, and 1e-3 is a number."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import yaml

from ..errors import ConfigError
from ..util.text import escape

__all__ = ["InlineMapping", "check_yaml", "dump_yaml", "read_yaml"]

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


NO_KEY = "a key is a list or a map"
"""The end of the message about a key that is not a single value; often, it is a string with braces."""
_MERGE = "tag:yaml.org,2002:merge"
"""The tag of the key ``<<`` (https://yaml.org/type/merge.html)."""

MOST_BY_ALIASES = 1_000_000
"""The most values that aliases may add to a document; a string counts as one more value for every 32 characters."""


MOST_LEVELS = 100
"""The most levels of nesting in a document, including aliases, because YAML parsers recurse for each level."""


MOST_VALUES = 1_000_000
"""The most values in a document; each value takes a few microseconds, and about 300 bytes while it is read."""


_SIGNS = ("\n", ",", ":", "- ", "? ")
"""Strings that separate values: a document with few of these strings and few brackets has few values."""


_DEEP = re.compile(rf"[ \-?:]{{{MOST_LEVELS}}}")
"""Matches a line that is nested too deeply without brackets, by indentation or by entry marks (``- - -``)."""


class _PlainLoader(_Base):  # type: ignore[misc]
    def get_single_node(self) -> Any:
        """Return the root node of the document; raises ConstructorError if aliases make it too large."""
        node = super().get_single_node()
        if node is not None:
            _check_aliases(node)
        return node


def _check_size(text: str) -> None:
    """Raise ConstructorError for a document that is nested too deeply or has too many values, before it is parsed.

    Too many levels would overflow the parser's stack. Each level needs a bracket, or one more column of indentation.
    """
    is_deep = text.count("[") + text.count("{") > MOST_LEVELS or _DEEP.search(text)
    if not is_deep and sum(map(text.count, _SIGNS)) < MOST_VALUES:
        return
    level = values = 0
    for event in yaml.parse(text, Loader=_Base):
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        values += isinstance(event, yaml.NodeEvent)
        if level > MOST_LEVELS:
            raise _too_deep()
        if values > MOST_VALUES:
            raise yaml.constructor.ConstructorError(None, None, f"the document has over {MOST_VALUES:,} values")


def _too_deep() -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, f"the document is nested more than {MOST_LEVELS} levels deep")


def _check_aliases(root: Any) -> None:
    """Raise ConstructorError if aliases make a document too large; nested aliases multiply (CWE-776)."""
    known: dict[int, tuple[int, int]] = {}
    own = 0

    def measure(node: Any) -> tuple[int, int]:
        """Return the number of values in a node, with aliases expanded, and the number of nested levels.

        Raises ConstructorError for a node that contains itself.
        """
        nonlocal own
        if id(node) in known:
            if known[id(node)] == (0, 0):
                raise yaml.constructor.ConstructorError(None, None, "it contains itself", node.start_mark)
            return known[id(node)]
        known[id(node)] = (0, 0)  # being counted
        alone = 1 + len(node.value) // 32 if isinstance(node, yaml.ScalarNode) else 1
        own += alone
        size, levels = alone, 0
        for child in _children(node):
            more, below = measure(child)
            size, levels = min(size + more, sys.maxsize), max(levels, below)
        known[id(node)] = (size, levels + (not isinstance(node, yaml.ScalarNode)))
        return known[id(node)]

    size, levels = measure(root)
    if size - own > MOST_BY_ALIASES:
        why = f"its aliases (*name) expand to over {MOST_BY_ALIASES:,} more values"
        raise yaml.constructor.ConstructorError(None, None, why)
    if levels > MOST_LEVELS:
        raise _too_deep()


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, yaml.MappingNode):
        return chain.from_iterable(node.value)
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _mapping(loader: Any, node: Any) -> dict[Any, Any]:
    """Return a YAML mapping as a dict; its own keys override the keys that ``<<`` merges into the mapping.

    Raises ConstructorError if one of its own keys occurs twice.
    """
    _check_own_keys(loader, node)
    loader.flatten_mapping(node)  # merged keys come first
    return {
        loader.construct_object(key, deep=True): loader.construct_object(value, deep=True) for key, value in node.value
    }


def _check_own_keys(loader: Any, node: Any) -> None:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == _MERGE:
            continue
        key = loader.construct_object(key_node, deep=True)
        try:
            double = key in seen
        except TypeError:
            raise yaml.constructor.ConstructorError(None, None, NO_KEY, key_node.start_mark) from None
        if double:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} occurs twice", key_node.start_mark)
        seen.add(key)


class _Loader(_PlainLoader):
    pass


_PlainLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
# In YAML 1.1, 1e-3 (no dot) and 1.0e9 (no sign) are strings; but learning rates written like this must be numbers.
_EXPONENT: tuple[str, re.Pattern[str], list[str]] = (
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver(*_EXPONENT)


def read_yaml(text: str, name: str, *, exponents: bool = True, unknown: Callable[[str], object] | None = None) -> Any:
    """Return the value of a YAML document; raises ConfigError with its ``name`` and the line if it is malformed.

    If ``exponents`` is False, 1e5 is a string, as in PyYAML and in the toolkits that use it. ``unknown`` is called with
    each tag that is not plain YAML (``!!python/object/apply:…``) and returns a replacement for the value. Without
    ``unknown``, such a tag is an error.
    """
    loader: Any = _Loader if exponents else _PlainLoader
    if unknown is not None:
        loader = type("_AnyTag", (loader,), {})
        loader.add_multi_constructor("", lambda _, tag, node: unknown(tag))
    with _reading(text, name):
        _check_size(text)
        return yaml.load(text, Loader=loader)


def check_yaml(text: str, name: str) -> None:
    """Raise ConfigError for a document, with any tags, that is malformed, nested too deeply or too large."""
    with _reading(text, name):
        _check_size(text)
        yaml.compose(text, Loader=_PlainLoader)


@contextmanager
def _reading(text: str, name: str) -> Iterator[None]:
    """Turn errors of the YAML parser in the block into ConfigError, with ``name`` and the line."""
    try:
        yield
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        why = getattr(error, "problem", None) or str(error)
        is_syntax = not isinstance(error, yaml.constructor.ConstructorError)
        if is_syntax:
            place = f" at column {mark.column + 1}" if mark is not None else ""
            why = f"it is not valid YAML{place}: {why}"
        if "tag '!" in str(why):
            why = f"{why} (tags are only read in SpeechBrain's hyperparams.yaml)"
        line = text.splitlines()[mark.line] if mark is not None and mark.line < len(text.splitlines()) else ""
        has_braces = ("{" in line or "}" in line) and (is_syntax or why == NO_KEY)
        hint = "Put strings with braces in quotes, as in '{n}'." if has_braces else ""
        raise ConfigError(f"{escape(name)}{where}: {escape(str(why))}.", hint=hint) from None
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{escape(name)} cannot be read as YAML: {escape(str(error))}.") from None


class InlineMapping(dict[str, Any]):
    """A mapping that ``dump_yaml`` writes on one line."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    InlineMapping, lambda dumper, row: dumper.represent_mapping("tag:yaml.org,2002:map", row.items(), flow_style=True)
)
_Dumper.add_implicit_resolver(*_EXPONENT)  # so that a text that looks like such a number is put in quotes
_Dumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str(text)))  # such as Note


def dump_yaml(document: Any) -> str:
    """Return a document as YAML in ASCII, with keys in their order and each InlineMapping on one line."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=10_000)
    return text
