"""Finds which tensors of a module are read from files: if the values in the files change, these tensors change.

The module is constructed a second time, with loading functions that return changed values. If a tensor has the same
values as the first time, the constructor computes it, even if a file contains the same values (such as ones).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy
import safetensors
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from .child import in_child
from .opened import exchanged, stand_in

__all__ = ["ChangedReaders", "changed_values", "digest_of"]

Digest = tuple[str, bool]
"""The digest of a tensor's bytes, and whether the tensor has a floating-point dtype."""


class ChangedReaders:
    """Makes versions of the loading functions of torch, safetensors, TorchScript and numpy that return changed values.

    ``paths`` are the files that were read with these functions. If ``integers`` is true, integers are changed, too.
    """

    def __init__(self, *, integers: bool) -> None:
        self.paths: set[str] = set()
        self.integers = integers

    def knows(self, path: str) -> bool:
        """Return whether changed values were read from the file ``path``, or from a file in the folder ``path``."""
        place = os.path.abspath(path)
        return any(one == place or one.startswith(place + os.sep) for one in self.paths)

    def seen(self, file: Any) -> None:
        """Add the path of ``file``, from which changed values were read, to ``paths``."""
        path = file if isinstance(file, (str, bytes, os.PathLike)) else getattr(file, "name", None)
        if isinstance(path, (str, bytes, os.PathLike)):
            self.paths.add(os.path.abspath(os.fsdecode(path)))

    def changed(self, tensor: Tensor) -> Tensor:
        """Return a tensor with every value changed, except booleans; integers only change if ``integers`` is true."""
        kept = tensor.dtype == torch.bool or (not self.integers and not tensor.is_floating_point())
        if kept or tensor.is_quantized or tensor.is_meta:
            return tensor
        with torch.no_grad():
            if not tensor.is_floating_point():
                return tensor + 1
            wide = tensor.to(torch.float64)
            return torch.where(wide == 0, torch.ones_like(wide), -wide).to(tensor.dtype)

    def in_place(self, module: nn.Module) -> None:
        """Change the values of all parameters and buffers of a module that was loaded as a whole."""
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.copy_(self.changed(tensor))

    def of_torch(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a version of ``original``, which is torch.load, that returns changed values."""

        def load(file: Any, *args: Any, **kwargs: Any) -> Any:
            leaves, spec = _pytree.tree_flatten(original(file, *args, **kwargs))
            for place, leaf in enumerate(leaves):
                if isinstance(leaf, Tensor):
                    leaves[place] = self.changed(leaf)
                    self.seen(file)
                elif isinstance(leaf, nn.Module):
                    self.in_place(leaf)
                    self.seen(file)
            return _pytree.tree_unflatten(leaves, spec)

        return load

    def of_script(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a version of ``original``, which is torch.jit.load, that returns changed values."""

        def load(file: Any, *args: Any, **kwargs: Any) -> Any:
            module = original(file, *args, **kwargs)
            self.in_place(module)
            self.seen(file)
            return module

        return load

    def of_numpy(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a version of ``original``, which is numpy.load, that returns arrays with changed values."""

        def load(file: Any, *args: Any, **kwargs: Any) -> Any:
            found = original(file, *args, **kwargs)
            if isinstance(found, numpy.lib.npyio.NpzFile):
                self.seen(file)
                return _Arrays({name: self.changed_array(found[name]) for name in found.files})
            self.seen(file)
            return self.changed_array(found)

        return load

    def changed_array(self, array: Any) -> Any:
        """Return an array of numpy with every value changed."""
        kind = getattr(array, "dtype", numpy.dtype("O")).kind
        if kind == "f":
            return numpy.where(array == 0, array.dtype.type(1), -array).astype(array.dtype)
        return array + array.dtype.type(1) if kind in ("ciu" if self.integers else "c") else array

    def of_safetensors(self, original: Any) -> Any:
        """Return a version of ``original``, which is safetensors' safe_open, that returns changed values."""
        return stand_in(original, partial(_SafeOpen, self, original))


class _Arrays(dict[str, Any]):
    """The arrays of an archive, with the interface of the object that numpy.load returns."""

    @property
    def files(self) -> list[str]:
        """The names of the arrays."""
        return list(self)

    def __enter__(self) -> _Arrays:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        """Do nothing: the arrays are in memory."""


class _SafeOpen:
    """An open safetensors file whose methods return changed values."""

    def __init__(self, readers: ChangedReaders, original: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        self._readers = readers
        self._path = file
        self._file = original(file, *args, **kwargs)

    def __enter__(self) -> _SafeOpen:
        self._file.__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        self._file.__exit__(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def get_tensor(self, name: str) -> Any:
        """Return a tensor with changed values."""
        return self.changed(self._file.get_tensor(name))

    def get_tensors(self, *args: Any) -> Any:
        """Return all tensors with changed values."""
        return {name: self.changed(found) for name, found in self._file.get_tensors(*args).items()}

    def get_slice(self, name: str) -> Any:
        """Return a tensor of the file that can be read in parts; the parts have changed values."""
        return _Slice(self, self._file.get_slice(name))

    def changed(self, found: Any) -> Any:
        """Return a tensor or an array with changed values."""
        self._readers.seen(self._path)
        return self._readers.changed(found) if isinstance(found, Tensor) else self._readers.changed_array(found)


class _Slice:
    """A tensor of a safetensors file that can be read in parts (``get_slice``); all parts have changed values."""

    def __init__(self, file: _SafeOpen, inner: Any) -> None:
        self._of = file
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __getitem__(self, place: Any) -> Any:
        return self._of.changed(self._inner[place])


@contextmanager
def _reading(readers: ChangedReaders) -> Iterator[None]:
    changed = (
        (torch, "load", readers.of_torch), (torch.jit, "load", readers.of_script),
        (numpy, "load", readers.of_numpy), (safetensors, "safe_open", readers.of_safetensors),
    )  # fmt: skip
    with exchanged(*((getattr(module, name), name, make) for module, name, make in changed)):
        yield


def changed_values(build: Callable[[], Mapping[str, Tensor]]) -> tuple[Mapping[str, Digest], ChangedReaders] | None:
    """Run ``build`` with changed values in all files; return a digest of each tensor of its result, and the readers.

    ``build`` runs in a child process, because everything that the constructor caches or saves would have wrong values.
    The child process may not write, remove or rename files, start programs or use the network. If ``build`` fails, it
    runs again with unchanged integers. If it fails again, None is returned.
    """
    for integers in (True, False):
        readers = ChangedReaders(integers=integers)
        found = in_child(partial(_digests, build, readers))
        if found is not None:
            digests, readers.paths = found
            return digests, readers
    return None


def _digests(build: Callable[[], Mapping[str, Tensor]], readers: ChangedReaders) -> tuple[dict[str, Digest], set[str]]:
    with _reading(readers):
        made = build()
    return {key: (digest_of(tensor), tensor.is_floating_point()) for key, tensor in made.items()}, readers.paths


def digest_of(tensor: Tensor) -> str:
    """Return a digest of a tensor's bytes."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return hashlib.blake2b(data, digest_size=16).hexdigest()
