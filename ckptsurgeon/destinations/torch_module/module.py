"""Makes a destination from an ``nn.Module`` that a function constructs, if possible without memory for its tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError, SourceError, UnsafeError
from ...planning.target import InitialFile, TargetSpec
from ...storage.small_files import is_of_system
from ...util.text import count, escape, listing
from .._initial_values import DEVIATION, ZERO_DEVIATION
from .construction import (
    Build,
    BuiltModule,
    bounded,
    construct_with_storage,
    construct_without_storage,
    drawing,
    python_random,
    real_tensors,
    simple_draws,
)
from .constructor_weights import (
    confirmed,
    holds_tensors,
    left_out,
    loaded_files,
    weights_left_out,
)
from .missing_draws import drawn_pieces
from .opened import Opened, watched
from .recording.graph import Unrecordable, replay
from .user_code import said_of

__all__ = ["module_target"]

FLOATS = ("float16", "bfloat16", "float32", "float64")
_OTHERS = (
    ".py", ".pyc", ".pyi", ".so", ".json", ".yaml", ".yml", ".txt", ".toml", ".cfg", ".md", ".model", ".vocab", ".wav",
    ".flac", ".csv", ".tsv", ".lock", ".html", ".jinja",
)  # fmt: skip
"""Suffixes of files that constructors read but that contain no weights."""


class _ModuleSource:
    """Draws the initial values of a module that ``build`` constructs."""

    def __init__(self, build: Build, name: str, *, weights: bool) -> None:
        self._build = build
        self._name = name
        self.weights = weights
        self.built = self._construct(0)

    def _construct(self, seed: int) -> BuiltModule:
        with self._watched() as opened, bounded(self._name):
            try:
                built = self._constructed(seed, opened)
            except Exception as error:
                raise self._unreachable(error, opened) or error from None
        built.opened = opened
        return built

    @contextmanager
    def _watched(self) -> Iterator[Opened]:
        """Yield a record of the files that a constructor in the block opens, and of the hosts that it contacts.

        If ``self.weights`` is false, the constructor loads no weights.
        """
        with watched() as opened, nullcontext() if self.weights else weights_left_out(opened):
            yield opened

    def _constructed(self, seed: int, opened: Opened) -> BuiltModule:
        try:
            return construct_without_storage(self._build, seed)
        except (ConfigError, UnsafeError, TypeError, ImportError, SyntaxError):
            raise
        except Exception as error:  # construct with storage instead
            if opened.unreachable:
                raise
            loads = any(map(holds_tensors, _weights_opened(opened.files)))
            why = Unrecordable("reads tensors from a file") if loads else error
            return construct_with_storage(self._build, seed, why)

    def tensors_again(self) -> Mapping[str, Tensor]:
        """Construct the module once more, with storage, and return its tensors."""
        with self._watched(), python_random(self.built.seed):
            return real_tensors(self._build, self.built.seed)[0]

    def _unreachable(self, error: Exception, opened: Opened) -> SourceError | None:
        """Return the error to raise in place of ``error`` if ``build`` contacted a host that did not answer; else None.

        ``opened`` is the record of the files and the hosts that ``build`` used.
        """
        if not opened.unreachable:
            return None
        return SourceError(
            f"{escape(self._name)} cannot be built: its constructor contacts {escape(opened.unreachable)}, which "
            f"cannot be reached. {type(error).__name__}: {escape(str(error), 300)}",
            hint="Build the model once with a network connection, so that its files are cached, or use local files.",
        )

    def values(self, key: str) -> Tensor | None:
        """Return the initial values of a key; None if they depend on random numbers, or if the tensor has no values."""
        if any(node.random for node in self.built.nodes.get(key, ())):
            return None
        ((_, data),) = self.initial([key], self.built.seed)
        info = self.built.infos[key]
        return torch.frombuffer(data, dtype=getattr(torch, info.dtype)).reshape(info.shape) if len(data) else None

    def initial(self, keys: Iterable[str], seed: int) -> Iterator[tuple[str, memoryview]]:
        """Yield each key with its initial values as contiguous bytes, one at a time."""
        if seed != self.built.seed and (self.built.uses_python_random or self.built.record is None):
            self.built = self._construct(seed)
        built = self.built
        for key in keys:
            with drawing():
                if built.record is not None and key in built.refs:
                    tensor = replay(built.record, built.nodes[key], built.refs[key], seed=seed, streams=built.streams)
                else:
                    tensor = built.real[key].detach().clone()  # a copy, because the caller may write into it
                data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
            yield key, data
            del tensor, data


def module_target(
    build: Build,
    *,
    kind: str,
    name: str,
    weights: bool = True,
    listen: Callable[[Opened], None] = lambda opened: None,
    **fields: Any,
) -> TargetSpec:
    """Return the destination with the tensors of the module that ``build()`` returns.

    ``kind``, ``name`` and ``fields`` are fields of the result. ``listen`` is called with the record of the files that
    the constructor opened and of the hosts that it contacted. The result contains the files from which the constructor
    loads weights. If ``weights`` is false, the module is built from its configuration, without these weights. Raises
    ConfigError if the module cannot be built or its shapes are not known without data. Raises SourceError if the
    constructor needs a host that cannot be reached, and UnsafeError if the module has too many parameters.
    """
    try:
        source = _ModuleSource(build, name, weights=weights)
    except (ConfigError, SourceError, UnsafeError):
        raise
    except Exception as error:
        raise ConfigError(f"{escape(name)} cannot be built: {said_of(error)}") from error
    built = source.built
    listen(built.opened)
    given, more = _loaded(source, fields.get("files", ()))
    read = {key: left_out(one.path) for one in given for key in one.keys} if not weights else {}
    notes = (*fields.pop("notes", ()), *built.notes, *_copies(built), *_unset(built), *more)
    if built.skipped:
        notes = (*notes, f"not tensors, left out: {listing(built.skipped, where='')}")
    return TargetSpec(
        kind=kind,
        name=name,
        tensors=built.infos,
        ties=built.ties,
        initial=source.initial,
        draws=(draws := simple_draws(built)),
        pieces=lambda key, seed, had=None: drawn_pieces(draws[key], built.infos[key], key, seed, had),
        given=tuple(given) if weights else (),
        undrawable={**dict.fromkeys(_zero_deviations(source), ZERO_DEVIATION), **read},
        notes=notes,
        extra_state=tuple(key for key in built.skipped if key.endswith("_extra_state")),
        build=build,
        **fields,
    )


def _loaded(source: _ModuleSource, known: Collection[str]) -> tuple[list[InitialFile], list[str]]:
    """Return the files from which the constructor loads weights, and notes on other files and on contacted hosts.

    ``known`` are files to which the configuration refers; they are left out.
    """
    opened = source.built.opened
    hosts = list(opened.hosts)
    notes = [f"its constructor contacted {listing(hosts, where='')}"] if hosts else []
    held = {os.path.abspath(path) for path in known}
    paths = [path for path in _weights_opened(opened.files) if os.path.abspath(path) not in held]
    if not paths:
        return [], notes
    infos = {key: info for key, info in source.built.infos.items() if key not in source.built.ties}
    matched, others = loaded_files(paths, infos, source.values)
    found = confirmed(matched, source.values, source.tensors_again)
    others += {one.path: None for one in matched if all(one.path != kept.path for kept in found)}
    loads = [f"its constructor loads {count(len(one.keys), 'tensor')} from {escape(one.path)}" for one in found]
    idle = "but copies no tensor from this file unchanged" if source.weights else "whose weights are left out"
    reads = [f"its constructor reads {escape(path)}, {idle}" for path in others]
    return found, [*notes, *(loads if source.weights else ()), *reads]


def _weights_opened(paths: Iterable[str]) -> Iterator[str]:
    """Yield the paths in ``paths`` that may be files of weights.

    Paths inside the working directory are made relative to it.
    """
    for path in dict.fromkeys(map(os.path.abspath, paths)):
        if not path.lower().endswith(_OTHERS) and not is_of_system(path) and _is_file(path):
            near = os.path.relpath(path)
            yield path if near.startswith("..") else near


def _is_file(path: str) -> bool:
    return os.path.isfile(path) and os.path.getsize(path) > 0


def _zero_deviations(source: _ModuleSource) -> Iterator[str]:
    """Yield the keys of standard deviations and variances that the constructor fills with zeros.

    Models divide by these tensors, so zeros are not usable: a source must provide the values.
    """
    infos = source.built.infos
    keys = [key for key, info in infos.items() if DEVIATION.fullmatch(key) and info.numel and info.dtype in FLOATS]
    others = {key for key in keys if key.endswith("running_var") or key in source.built.ties}
    for key, data in source.initial([key for key in keys if key not in others], 0):
        values = torch.frombuffer(data, dtype=getattr(torch, infos[key].dtype))
        if bool((values == 0).any()):
            yield key


def _copies(built: BuiltModule) -> Iterator[str]:
    """Yield a note on tensors that start as copies of other tensors because the constructor copies a layer."""
    first: dict[int, str] = {}
    copies: list[str] = []
    for key, nodes in built.nodes.items():
        drawn = [node.index for node in nodes if node.random]
        owners = {first.setdefault(index, key) for index in drawn}
        if drawn and key not in owners and key not in built.ties and all(map(partial(_copied, built, key), owners)):
            copies.append(key)
    if copies:
        starts = "starts as a copy of a tensor" if len(copies) == 1 else "start as copies of tensors"
        yield f"{count(len(copies), 'tensor')} {starts} of another layer: {listing(copies, 3, where='')}"


def _copied(built: BuiltModule, key: str, owner: str) -> bool:
    """Return whether the tensor ``key`` is a copy of the tensor ``owner``, and both keys have the same last part."""
    made = {node.index for node in built.nodes[owner]}
    same_leaf = key.rpartition(".")[2] == owner.rpartition(".")[2]
    return same_leaf and all(node.index in made or node.copies for node in built.nodes[key])


def _unset(built: BuiltModule) -> Iterator[str]:
    """Yield a note on tensors that the constructor allocates but never fills."""
    unset = [key for key in built.refs if not built.nodes[key] and built.infos[key].numel]
    if unset:
        starts = "starts as zeros" if len(unset) == 1 else "start as zeros"
        never = count(len(unset), "tensor that the constructor never sets", "tensors that the constructor never sets")
        yield f"{never} {starts}: {listing(unset, where='')}"
