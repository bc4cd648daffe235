"""Finds the state dict in a file or in a pickled ``nn.Module``, and the entries of the state dict that are tensors."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..errors import ConfigError, FormatError, UnsafeError
from ..formats.base import limits
from ..formats.base.untrusted import most_segments
from ..formats.pickle.values import OpaqueResult, key_text
from ..tensors.info import TensorInfo
from ..util.note_kind import NoteKind
from ..util.notes import Note
from ..util.text import count, escape, listing, shape_text
from .optimizer_states import is_optimizer, optimizer_entries
from .packed_parameters import Packing, unpacked
from .pickled_modules import SearchLimit, is_module, module_entries

__all__ = [
    "NAMED_ROOTS",
    "Root",
    "check_keys",
    "find_root",
    "is_flat_average",
    "optimizers_in",
    "other_roots_note",
    "parts_of",
    "tensors_of",
]

NAMED_ROOTS = ("state_dict", "model_state_dict", "model", "module", "net")
"""The keys that training frameworks save the model under, most specific first."""

_OPTIMIZER = re.compile(r"(?i:optim(?:izer)?s?|opt_state)(?![a-z])")
"""Matches ``optimizer``, ``optim_states``, ``optimizerG`` and Flax's ``opt_state``, but not ``optimus``."""

_OPTIMIZER_DEPTH = 3
"""The most dots in the path of an optimizer's state that is searched for."""
_CONTAINERS = (dict, list, tuple, OpaqueResult)
_NAMES_LISTED = 100


@dataclass(frozen=True)
class Root:
    """A state dict in a file: its dotted path ('' is the top level), its entries, and the number of its tensors.

    ``keys`` is the same path as a tuple of keys, indices and attributes, since a name may contain dots. ``packing``
    describes packed weights, whose tensors are among the entries; it is None if there are none.
    """

    path: str
    entries: Mapping[Any, Any]
    tensors: int
    keys: tuple[Any, ...] = ()
    packing: Packing | None = None


def find_root(tree: Any, wanted: str | None, uri: str) -> tuple[Root, list[Root]]:
    """Return the state dict of a file, and the file's other state dicts, which were not chosen.

    ``tree`` is the content of the file ``uri``. ``wanted`` is the dotted path of the state dict to return, or "." for
    the top level. If ``wanted`` is None, the first of these that exists is returned: the top level, if it has tensors
    and no entry of ``NAMED_ROOTS`` has more; the first entry of ``NAMED_ROOTS`` that is a state dict; the only state
    dict. The top level is not chosen if it has only scalars outside modules (such as a step), but another state dict
    has larger tensors.

    Raises ConfigError if ``wanted`` has no tensors or the choice is unclear, FormatError if there is no state dict.
    """
    if wanted in (None, ".") and tree and _is_plain_state_dict(tree) and set(map(type, tree)) == {str}:
        return Root("", tree, len(tree)), []  # the usual case
    candidates = list(_candidates(tree, uri))
    if wanted is not None:
        return _wanted(tree, wanted, candidates, uri), []
    if not candidates:
        hint = "Pass the folder with the files of all ranks." if _is_zero_states(tree) else ""
        raise FormatError(f"{escape(uri)} has no state dict: {_contents(tree)}.", hint=hint, rule="no state dict")
    chosen = _preferred(candidates)
    if chosen is None:
        candidates = [root for root in candidates if root.path]
        paths = [f"{root.path} ({count(root.tensors, 'tensor')})" for root in candidates]
        raise ConfigError(
            f"{escape(uri)} has several state dicts: {listing(paths)}.",
            hint=f"Choose one with --root {escape(candidates[0].path)}.",
            details=[root.path for root in candidates],
        )
    return chosen, [root for root in candidates if root is not chosen]


def other_roots_note(root: str, passed: Sequence[str]) -> Note:
    """Return the note on the state dicts ``passed`` of a file from which ``root`` is used; all are dotted paths."""
    where = f"the state dict {root}" if root else "the top level"
    others = [path or "the top level" for path in passed]
    return Note(NoteKind.REMARK, f"{where} is used; the file also has {listing(others)} (choose with --root)")


def _preferred(candidates: Sequence[Root]) -> Root | None:
    by_path = {root.path: root for root in candidates}
    named = [by_path[name] for name in NAMED_ROOTS if name in by_path]
    top = by_path.get("")
    if top is not None and _counts(top) and not all(map(_only_scalars, candidates)):
        top, candidates = None, candidates[1:]  # the number of the step, next to the parameters
    if top is not None and all(root.tensors <= top.tensors for root in named):
        return top
    return named[0] if named else candidates[0] if len(candidates) == 1 else None


def _counts(root: Root) -> bool:
    """Return whether a state dict has only scalars outside modules, such as a training's ``step`` and ``epoch``."""
    return _only_scalars(root) and not any("." in key for key in root.entries)


def _only_scalars(root: Root) -> bool:
    return not any(info.shape for info in root.entries.values() if isinstance(info, TensorInfo))


def _wanted(tree: Any, wanted: str, candidates: Sequence[Root], uri: str) -> Root:
    path = "" if wanted == "." else wanted
    if found := next((root for root in candidates if root.path == path), None):
        return found
    node, keys = _descend(tree, path)
    entries, packing = _state_dict(node, SearchLimit())
    if is_optimizer(node):
        entries, packing = optimizer_entries(node, uri), None
    tensors = _tensors(entries)
    if not tensors:
        paths = [root.path or "the top level (--root .)" for root in candidates]
        raise ConfigError(
            f"--root {escape(wanted)} has no tensors in {escape(uri)}.",
            hint=_prefixed(wanted, candidates)
            or (f"Choose one of its state dicts: {listing(paths)}." if paths else ""),
            details=[root.path or "." for root in candidates],
        )
    return Root(path, entries, tensors, keys, packing)


def _prefixed(wanted: str, candidates: Sequence[Root]) -> str:
    """Return a hint if ``wanted`` is not a state dict, but the beginning of keys in one; '' for other names."""
    for root in candidates:
        keys = [key for key in map(key_text, root.entries) if key.startswith(f"{wanted}.")]
        if keys:
            where = root.path or "the top level"
            how = f"ckpt filter --include {escape(wanted)} selects them"
            if is_flat_average(keys[0]):
                how = (
                    "ckpt convert --layout diffusers-ema gives them the names of the weights that they are averages of"
                )
            begin = "begins" if len(keys) == 1 else "begin"
            return f"{count(len(keys), 'key')} in {where} {begin} with {escape(wanted)}.: {how}."
    return ""


def is_flat_average(key: str) -> bool:
    """Return whether a tensor is an average of a U-Net's weights in an original file of Stable Diffusion.

    https://github.com/CompVis/latent-diffusion/blob/main/ldm/modules/ema.py
    """
    return key.startswith("model_ema.diffusion_model") and key.count(".") == 1


def _descend(node: Any, path: str) -> tuple[Any, tuple[Any, ...]]:
    """Return the value at a dotted path, and the path as a tuple of keys; (None, ()) if there is no such value.

    Keys may contain dots: at each level, the longest matching key is chosen.
    """
    keys: list[Any] = []
    while path:
        children = {key_text(key): (key, child) for key, child in _children(node)}
        parts = path.split(".")
        for end in range(len(parts), 0, -1):
            name = ".".join(parts[:end])
            if name in children:
                key, node = children[name]
                keys.append(key)
                path = ".".join(parts[end:])
                break
        else:
            return None, ()
    return node, tuple(keys)


def _candidates(tree: Any, uri: str) -> Iterator[Root]:
    """Yield every state dict except optimizer states, outermost first.

    Raises UnsafeError if there are too many containers.
    """
    queue: deque[tuple[str, tuple[Any, ...], Any]] = deque([("", (), tree)])
    seen: set[int] = set()
    allowed = SearchLimit()
    found = 1
    while queue:
        path, keys, node = queue.popleft()
        if id(node) in seen or len(keys) > limits.TREE_DEPTH:
            continue
        seen.add(id(node))
        entries, packing = _state_dict(node, allowed)
        tensors = _tensors(entries)
        if tensors and set(map(type, entries)) <= {str}:
            yield Root(path, entries, tensors, keys, packing)
        if is_module(node) or is_optimizer(node) or (tensors and tensors == len(entries)):
            continue  # no state dict can be nested in it
        for key, child in _children(node):
            name = key_text(key)
            if _OPTIMIZER.match(name):
                continue
            found += 1
            if found > limits.TREE_NODES or len(path) + len(name) > limits.KEY_CHARACTERS:
                raise UnsafeError(
                    f"{escape(uri)} has too many nested dicts and lists to search for a state dict, "
                    f"or too long a key (limits: {limits.TREE_NODES:,} and {limits.KEY_CHARACTERS:,} characters).",
                    rule="tree size",
                )
            queue.append((f"{path}.{name}" if keys else name, (*keys, key), child))


def optimizers_in(tree: Any) -> dict[str, Any]:
    """Return each optimizer's state in a file by its dotted path, outermost first; "." is the whole file."""
    found, queue, left = dict[str, Any](), deque([("", tree)]), limits.TREE_NODES
    while queue and left > 0:
        path, node = queue.popleft()
        left -= 1
        if is_optimizer(node):
            found[path or "."] = node
        elif path.count(".") < _OPTIMIZER_DEPTH and not is_module(node) and not _is_plain_state_dict(node):
            queue.extend(
                (f"{path}.{key_text(key)}" if path else key_text(key), child) for key, child in _children(node)
            )
    return found


def _is_plain_state_dict(node: Any) -> bool:
    """Return whether a value is a dict of tensors alone, which cannot contain an optimizer's state."""
    return isinstance(node, dict) and _tensors(node) == len(node)


def parts_of(node: Any) -> Iterable[tuple[Any, Any]]:
    """Return the (key, value) pairs of a dict, list, tuple or pickled object; no pairs for any other value."""
    if isinstance(node, dict):
        return node.items()
    if isinstance(node, (list, tuple)):
        return enumerate(node)
    return node.attributes().items() if isinstance(node, OpaqueResult) else ()


def _children(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the non-empty containers in a container, each with its key."""
    return ((key, value) for key, value in parts_of(node) if isinstance(value, _CONTAINERS) and value)


def _tensors(entries: Mapping[Any, Any]) -> int:
    return list(map(type, entries.values())).count(TensorInfo)


def _state_dict(node: Any, allowed: SearchLimit) -> tuple[Mapping[Any, Any], Packing | None]:
    """Return the state dict of a pickled module, or a dict, with packed weights as tensors; {} for other values."""
    of_module = is_module(node)
    entries = dict(module_entries(node, allowed)) if of_module else node if isinstance(node, dict) else {}
    if _tensors(entries) == len(entries):
        return entries, None
    return unpacked(entries, allowed.take_key, is_module=of_module)


def _contents(tree: Any) -> str:
    """Describe the content of a file that has no state dict, for an error message."""
    if isinstance(tree, TensorInfo):
        return f"it is one tensor, {tree.dtype} {shape_text(tree.shape)}"
    if is_optimizer(tree):
        return "it is an optimizer's state"
    if isinstance(tree, dict):
        return _contents_of(tree)
    if isinstance(tree, OpaqueResult):
        return f"it is a {tree!r}, which ckpt neither imports nor runs"
    return f"it is {'empty' if tree in ([], ()) else f'a {type(tree).__name__}'}"


def _is_zero_states(tree: Any) -> bool:
    """Return whether a file has the optimizer states of one rank of DeepSpeed ZeRO."""
    states = tree.get("optimizer_state_dict") if isinstance(tree, dict) else None
    return isinstance(states, dict) and "zero_stage" in states and "partition_count" in states


def _contents_of(tree: dict[Any, Any]) -> str:
    if not tree:
        return "it is an empty dict"
    if _is_zero_states(tree):
        return "it has the optimizer states of one rank of DeepSpeed ZeRO"
    if _tensors(tree):
        odd = next(key for key in tree if not isinstance(key, str))
        its = "some of its" if any(isinstance(key, str) for key in tree) else "its"
        return f"{its} keys are not strings but of the type {type(odd).__name__}"
    return f"it is a dict with the keys {listing([key_text(key) for key in islice(tree, _NAMES_LISTED)])}"


# The keys of a state dict: the entries that are tensors, and the limits of their number and length.


def tensors_of(root: Root) -> Mapping[str, TensorInfo]:
    """Return the entries of a state dict that are tensors and whose key is a string, in the same order."""
    if root.tensors == len(root.entries) and set(map(type, root.entries)) <= {str}:
        return root.entries  # the usual case
    return {key: info for key, info in root.entries.items() if isinstance(key, str) and isinstance(info, TensorInfo)}


def check_keys(path: str, keys: Collection[str]) -> None:
    """Check the number and the length of keys; any real model passes.

    Raises UnsafeError if there are too many keys, or too many segments in all. Raises FormatError if one key is too
    long. Code that displays or compares keys relies on these limits.
    """
    if len(keys) > limits.TENSORS:
        raise UnsafeError(
            f"{escape(path)} has {len(keys)} tensors, more than the limit of {limits.TENSORS}.", rule="tensors"
        )
    usual = max(map(len, keys), default=0) < limits.KEY_SEGMENTS  # a shorter key has fewer dots, too
    if usual and "".join(keys).count(".") + len(keys) <= most_segments(len(keys)):
        return
    segments, most = 0, most_segments(len(keys))
    for key in keys:
        dots = key.count(".")
        segments += dots + 1
        if segments > most:
            raise UnsafeError(
                f"the keys of {escape(path)} have over {most} segments (parts between dots) in all.", rule="segments"
            )
        if len(key) > limits.KEY_CHARACTERS or dots >= limits.KEY_SEGMENTS:
            raise FormatError(
                f"{escape(path)} has a key of {count(len(key), 'character')} and "
                f"{count(dots + 1, 'segment')}, {escape(key, 40)}; the limits are {limits.KEY_CHARACTERS} characters "
                f"and {limits.KEY_SEGMENTS} segments (parts between dots).",
                rule="key length",
            )
