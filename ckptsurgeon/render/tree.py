"""Builds the tree of modules of a state dict, with repeated modules shown once, and groups keys into branches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..tensors.info import TensorInfo
from ..util.text import natural_key, number_in, shape_text

__all__ = [
    "Branch",
    "branch_names",
    "build_tree",
    "collapsed",
    "is_number",
    "modules_at",
    "numbers_of",
    "numbers_text",
    "pattern_of",
]

LISTED = 6
LISTED_CHARACTERS = 240
"""A list of equal siblings has at most ``LISTED`` names, and at most ``LISTED_CHARACTERS`` characters."""

Signature = int


@dataclass(slots=True)
class Branch:
    """A node of the tree: a module, a tensor, or several siblings with equal contents.

    ``times`` is the number of siblings. ``parameters`` and ``nbytes`` are totals over all siblings; in ``children``,
    they are totals over one sibling only. ``more`` is True if ``parameters`` is a lower bound. ``make`` is a number
    that is equal for nodes with equal contents.
    """

    name: str
    info: TensorInfo | None = None
    children: dict[str, Branch] = field(default_factory=dict)
    times: int = 1
    parameters: int = 0
    nbytes: int = 0
    dtypes: frozenset[str] = frozenset()
    first_key: str = ""
    make: Signature = -1
    more: bool = False

    @property
    def is_leaf_module(self) -> bool:
        """Whether this is a module whose children are all tensors."""
        return bool(self.children) and all(child.info is not None for child in self.children.values())


def build_tree(
    tensors: Mapping[str, TensorInfo],
    tied: Iterable[str] = (),
    *,
    by_size: bool = False,
    parameters: Callable[[str, TensorInfo], int] = lambda key, info: info.parameters,
    is_counted: Callable[[str], bool] = lambda key: True,
    nbytes: Callable[[str, TensorInfo], int] = lambda key, info: info.nbytes,
) -> Branch:
    """Return the tree of a state dict with repeated modules joined; the parameters of ``tied`` keys are not counted.

    Siblings with equal contents are joined: numbers as ranges, other names as lists. A module with a single child and
    this child become one node, such as ``a.b``. Siblings have the order of ``tensors``, or the largest comes first if
    ``by_size`` is True. ``parameters`` returns the number of parameters of a tensor, which is only a lower bound if
    ``is_counted`` returns False for its key. ``nbytes`` returns the size of a tensor in bytes.
    """
    root = Branch("")
    aliases = set(tied)
    dtypes = {dtype: frozenset({dtype}) for dtype in {info.dtype for info in tensors.values()}}
    for key, info in tensors.items():
        number, size = (parameters(key, info), nbytes(key, info)) if key not in aliases else (0, 0)
        more = key not in aliases and not is_counted(key)
        _insert(root, key, Branch("", info, {}, 1, number, size, dtypes[info.dtype], key, more=more))
    _add_up(root)
    _sign(root, {}, {})
    _collapse(root, by_size=by_size)
    return root


def _insert(root: Branch, key: str, tensor: Branch) -> None:
    node = root
    *modules, tensor.name = key.split(".")
    for name in modules:
        child = node.children.get(name)
        if child is not None and child.info is not None:
            node.children[_free(node, name)] = child
            child = None
        if child is None:
            child = node.children[name] = Branch(name, first_key=key)
        node = child
    node.children[_free(node, tensor.name)] = tensor


def _add_up(node: Branch) -> None:
    """Set ``parameters`` and ``nbytes`` of a node, and of every module under it, to the sums over their tensors."""
    for child in node.children.values():
        if child.info is None:
            _add_up(child)
        node.parameters += child.parameters
        node.nbytes += child.nbytes
        node.more = node.more or child.more


def _free(node: Branch, name: str) -> str:
    """Return ``name``, with blanks added until no child of ``node`` has this name.

    A key such as ``a`` can also be the name of a module, if there is a key ``a.b``.
    """
    while name in node.children:
        name += " "
    return name


def _sign(node: Branch, signatures: dict[object, Signature], of_infos: dict[int, Signature]) -> Signature:
    """Set the attribute ``make`` of a node and of all nodes under it; return the ``make`` of the node.

    ``make`` is a number that is the same for equal contents; ``signatures`` maps contents to the numbers given so far.
    ``of_infos`` maps the ``id`` of a ``TensorInfo``, which many tensors may share, to its number.
    """
    if node.info is None:
        what = tuple([(child.name, _sign(child, signatures, of_infos)) for child in node.children.values()])
        node.make = signatures.setdefault(what, len(signatures))
        return node.make
    found = of_infos.get(id(node.info))
    if found is None:  # shapes as text: a malicious file can make the hashes of numbers collide
        said = (node.info.dtype, shape_text(node.info.meant_shape), node.info.opaque)
        found = of_infos[id(node.info)] = signatures.setdefault(said, len(signatures))
    node.make = found
    return found


def _collapse(node: Branch, *, by_size: bool) -> None:
    """Join equal siblings everywhere under ``node``; of joined siblings, only the first keeps its children."""
    if node.info is not None:
        return
    groups: dict[object, list[Branch]] = {}
    for child in node.children.values():
        kind = "number" if is_number(child.name) else "tensor" if child.info is not None else "module"
        groups.setdefault((kind, child.make), []).append(child)
    for first, *_ in groups.values():
        _collapse(first, by_size=by_size)
    joined = [_join(group) for group in groups.values()]
    if by_size:
        joined.sort(key=lambda branch: -branch.nbytes)
    node.children = {}
    for branch in map(_chained, joined):
        node.children[_free(node, branch.name)] = branch
    node.dtypes = frozenset().union(*(child.dtypes for child in node.children.values()))


def _join(group: list[Branch]) -> Branch:
    """Return one branch for siblings with equal contents; its name lists their names: ``{0..11}`` or ``{q,k,v}``."""
    first = group[0]
    if len(group) == 1:
        return first
    names = [branch.name for branch in group]
    numbered = all(map(is_number, names))
    text = f"{{{numbers_text(map(int, names)) if numbered else _list_text(names)}}}"
    return Branch(
        name=text,
        info=first.info,
        children=first.children,
        times=len(group),
        parameters=sum(branch.parameters for branch in group),
        nbytes=sum(branch.nbytes for branch in group),
        dtypes=first.dtypes,
        first_key=first.first_key,
        more=any(branch.more for branch in group),
    )


def _list_text(names: list[str]) -> str:
    shown = len(names) if len(names) <= LISTED else LISTED - 1
    while shown > 1 and sum(map(len, names[:shown])) > LISTED_CHARACTERS:
        shown -= 1
    more = len(names) - shown
    return ",".join(names[:shown]) + (f",… {more} more" if more else "")


def _chained(branch: Branch) -> Branch:
    """Return a module with a single child as one branch with both names joined; other branches as they are."""
    while len(branch.children) == 1 and branch.info is None:
        (child,) = branch.children.values()
        branch = Branch(
            f"{branch.name}.{child.name}", child.info, child.children, branch.times * child.times,
            branch.parameters, branch.nbytes, child.dtypes, branch.first_key, more=branch.more,
        )  # fmt: skip
    return branch


def is_number(text: str) -> bool:
    """Return whether a segment is the index of a list, such as ``1`` but not ``01``."""
    return number_in(text) is not None and (text == "0" or text[0] != "0")


def numbers_text(numbers: Iterable[int]) -> str:
    """Return numbers as ranges: ``0..5,7``."""
    return ",".join(_runs(sorted(numbers)))


def _runs(numbers: list[int]) -> Iterator[str]:
    begin = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            first, last = numbers[begin], numbers[i - 1]
            if last - first >= 2:
                yield f"{first}..{last}"
            else:
                yield from (str(n) for n in range(first, last + 1))
            begin = i


def sorted_naturally(keys: Iterable[str]) -> list[str]:
    """Return keys with ``layers.2`` before ``layers.10``."""
    return sorted(keys, key=natural_key)


# The branches of a model, for tables with a row for each branch instead of each tensor.

MAX_BRANCHES = 16

_DIGITS = re.compile(r"(\d+)", re.ASCII)
_LONGEST = 18


def branch_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the branch of each key: its first segments, as many as are needed so that not all keys share a branch.

    If there are more than ``MAX_BRANCHES`` branches, branches that differ only in a number are joined. If there are
    still too many, the last branches get a common name, such as ``and 5 more``.
    """
    level = 1
    while _is_shared(keys, level) and any(key.count(".") >= level for key in keys):
        level += 1
    names = {key: _prefix(key, level) for key in keys}
    if len(set(names.values())) > MAX_BRANCHES:
        joined = _numbered(dict.fromkeys(names.values()))
        names = {key: joined[name] for key, name in names.items()}
    kept = list(dict.fromkeys(names.values()))
    if len(kept) > MAX_BRANCHES:
        rest = {name: f"and {len(kept) - MAX_BRANCHES + 1} more" for name in kept[MAX_BRANCHES - 1 :]}
        names = {key: rest.get(name, name) for key, name in names.items()}
    return names


def modules_at(keys: Iterable[str], depth: int) -> dict[str, str]:
    """Return, for each key, its first ``depth`` segments, or the whole key if it has fewer."""
    return {key: _prefix(key, depth) for key in keys}


def _is_shared(keys: Sequence[str], level: int) -> bool:
    """Return whether the first ``level`` segments of all keys are the same."""
    shared = _prefix(keys[0], level) if keys else ""
    inside = f"{shared}."
    return bool(keys) and all(key.startswith(inside) or key == shared for key in keys)


def _prefix(key: str, level: int) -> str:
    """Return the first ``level`` segments of a key; the whole key if these segments are empty, as in ``..``."""
    head = ".".join(key.split(".", level)[:level])
    return head if head.strip(".") else key


def _numbered(names: Iterable[str]) -> dict[str, str]:
    """Return {name: joined name}, such as ``layers.{0..2299}`` for ``layers.7``; other names do not change."""
    numbers: dict[str, list[int]] = {}
    heads: dict[str, str] = {}
    for name in names:
        last = name.rpartition(".")[2]
        if is_number(last):
            heads[name] = name.removesuffix(last)
            numbers.setdefault(heads[name], []).append(int(last))
        else:
            heads[name] = name
    # the text before a number ends in a dot or is empty, so that no branch has it as its name
    joined = {head: f"{head}{{{numbers_text(found)}}}" for head, found in numbers.items()}
    return {name: joined.get(head, name) if head != name else name for name, head in heads.items()}


def collapsed(texts: Sequence[str]) -> str:
    """Return one string for strings that differ only in numbers, with lists and ranges: ``layers.{0..11}.w``."""
    parts = [_DIGITS.split(text) for text in texts]
    shown = []
    for place, same in enumerate(parts[0]):
        found = {part[place] for part in parts}
        if len(found) == 1:
            shown.append(same)
        else:
            shown.append(f"{{{numbers_text({int(text[:_LONGEST]) for text in found})}}}")
    return "".join(shown)


def pattern_of(text: str) -> str:
    """Return a text without its numbers: texts that differ only in numbers have the same result."""
    return _DIGITS.sub("\0", text)


def numbers_of(text: str) -> list[str]:
    """Return the numbers in a text, in order."""
    return _DIGITS.findall(text)
