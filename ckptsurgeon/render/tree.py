"""The modules of a state dict as a tree in which what repeats is shown once: ``layers.{0..11}``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ..tensors.info import TensorInfo
from ..util.text import natural_key, shape_text

__all__ = ["Branch", "build_tree", "is_number", "numbers_text"]

LISTED = 6
LISTED_CHARACTERS = 240
"""Names of equal siblings that are spelled out: so many, and so long in all."""

Signature = int


@dataclass(slots=True)
class Branch:
    """A module or a tensor; ``times`` is how many equal ones it stands for, and its numbers are theirs together.

    ``make`` is the same for those that are equal. What lies under it is shown once, with the numbers of one. ``more``
    says that there are at least so many parameters.
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
        """Whether it holds tensors only."""
        return bool(self.children) and all(child.info is not None for child in self.children.values())


def build_tree(
    tensors: Mapping[str, TensorInfo],
    tied: Iterable[str] = (),
    *,
    by_size: bool = False,
    parameters: Callable[[str, TensorInfo], int] = lambda key, info: info.parameters,
    is_counted: Callable[[str], bool] = lambda key: True,
) -> Branch:
    """Return the collapsed tree of a state dict; tied keys count no parameters of their own.

    Siblings of the same make are joined: numbered ones as ranges, named ones as lists. Chains of one child become
    one name. Order is the mapping's, or by bytes. ``parameters`` says what a tensor counts at least, ``is_counted``
    whether that is all.
    """
    root = Branch("")
    aliases = set(tied)
    dtypes = {dtype: frozenset({dtype}) for dtype in {info.dtype for info in tensors.values()}}
    for key, info in tensors.items():
        number, nbytes = (parameters(key, info), info.nbytes) if key not in aliases else (0, 0)
        more = key not in aliases and not is_counted(key)
        _insert(root, key, Branch("", info, {}, 1, number, nbytes, dtypes[info.dtype], key, more=more))
    _sign(root, {})
    _collapse(root, by_size=by_size)
    return root


def _insert(root: Branch, key: str, tensor: Branch) -> None:
    node = root
    *modules, tensor.name = key.split(".")
    for name in modules:
        _add(node, tensor)
        child = node.children.get(name)
        if child is not None and child.info is not None:
            node.children[_free(node, name)] = child
            child = None
        if child is None:
            child = node.children[name] = Branch(name, first_key=key)
        node = child
    _add(node, tensor)
    node.children[_free(node, tensor.name)] = tensor


def _add(node: Branch, tensor: Branch) -> None:
    node.parameters, node.nbytes = node.parameters + tensor.parameters, node.nbytes + tensor.nbytes
    node.more = node.more or tensor.more


def _free(node: Branch, name: str) -> str:
    """Return a name that no child has: a key may be a module's name too, as ``a`` beside ``a.b``."""
    while name in node.children:
        name += " "
    return name


def _sign(node: Branch, signatures: dict[object, Signature]) -> Signature:
    """Give everything under ``node`` its make, and return the node's."""
    what: object
    if node.info is None:
        what = tuple([(child.name, _sign(child, signatures)) for child in node.children.values()])
    else:  # shapes as text: a file can make the hashes of numbers collide
        what = (node.info.dtype, shape_text(node.info.shape), node.info.opaque)
    node.make = signatures.setdefault(what, len(signatures))
    return node.make


def _collapse(node: Branch, *, by_size: bool) -> None:
    """Collapse what lies under ``node``; of siblings that are joined the first one alone, whose children are shown."""
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
    """Return one branch for siblings of the same make."""
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
    """Return a module with a single entry as that entry, under both names."""
    while len(branch.children) == 1 and branch.info is None:
        (child,) = branch.children.values()
        branch = Branch(
            f"{branch.name}.{child.name}", child.info, child.children, branch.times * child.times,
            branch.parameters, branch.nbytes, child.dtypes, branch.first_key, more=branch.more,
        )  # fmt: skip
    return branch


def is_number(text: str) -> bool:
    """Whether a segment is a number as a list's index is written: ``01`` is none, and is not ``1``."""
    return text.isascii() and text.isdigit() and (text == "0" or text[0] != "0") and len(text) < 19


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
