"""Destinations that list their tensors: ``model: {tensors: {key: {shape, dtype, init}}, tied: [[key, key]]}``.

Tensors with ``init: like`` start with the values of a checkpoint. The field ``values`` is the path of that checkpoint,
and the field ``root`` chooses one of its state dicts.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.opening import open_checkpoint
from ..errors import CheckpointError, ConfigError
from ..planning.target import InitialFile, TargetSpec
from ..storage.yaml_text import InlineMapping
from ..tensors.dtypes import dtype_named
from ..tensors.info import TensorInfo
from ..util.text import brief_repr, escape, shape_text
from ._document import Document, check_fields
from ._inits import DEVIATION, LIKE, NO_INIT, ZERO_DEVIATION, Init, drawn, read_init, suggested_init

__all__ = ["CONFIG", "declare"]


class _Declared:
    field = "tensors"

    def code(self, document: Document) -> Sequence[str]:
        """Return (): a destination that lists its tensors runs no code of the user."""
        return ()

    def load(self, document: Document) -> TargetSpec:
        """Return the destination that the section ``model:`` lists.

        Raises ConfigError for unknown or malformed fields, or initialisers that do not fit their tensor.
        """
        check_fields(document, "model", document.model, ("tensors", "tied", "values", "root"))
        rows = document.model["tensors"]
        if not isinstance(rows, dict) or not rows:
            raise document.fail("the field 'tensors' must map at least one key to {shape, dtype, init}.")
        tensors: dict[str, TensorInfo] = {}
        inits: dict[str, Init] = {}
        kept: dict[str, TensorInfo] = {}
        for key, row in rows.items():
            tensors[str(key)] = _info(document, key, row)
            if row.get("init") == LIKE:
                kept[str(key)] = tensors[str(key)]
            elif row.get("init") is not None:
                inits[str(key)] = read_init(document, str(key), tensors[str(key)], row["init"])
        ties = _ties(document, tensors, inits)
        given = _given(document, kept, ties)
        return TargetSpec(
            kind="tensors",
            name=document.name,
            tensors=tensors,
            ties=ties,
            initial=lambda keys, seed: _initial(tensors, inits, given, keys, seed),
            given=given,
            undrawable={
                **{key: NO_INIT for key in tensors if key not in inits and key not in kept and key not in ties},
                **{key: ZERO_DEVIATION for key, init in inits.items() if init.is_zero and DEVIATION.fullmatch(key)},
            },
            config=document.path,
        )


def _info(document: Document, key: Any, row: Any) -> TensorInfo:
    if not isinstance(key, str):
        raise document.fail(f"the tensor key {brief_repr(key, 80)} is not a string.", f'Write it in quotes: "{key}".')
    if not isinstance(row, dict) or "shape" not in row:
        raise document.fail(f"the tensor {escape(key)} has no shape.", "Write the size of each axis: shape: [256, 80].")
    check_fields(document, f"tensor {key}", row, ("shape", "dtype", "init"))
    shape = row["shape"]
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**63 for n in shape) or len(shape) > 64:
        raise document.fail(f"the shape of the tensor {escape(key)} is {brief_repr(shape, 80)}, not a list of sizes.")
    try:
        return TensorInfo(dtype_named(str(row.get("dtype", "float32"))), tuple(shape))
    except ConfigError as error:
        raise document.fail(f"tensor {escape(key)}: {error.said}") from None


def _ties(document: Document, tensors: Mapping[str, TensorInfo], inits: dict[str, Init]) -> dict[str, str]:
    """Return a map from each tied key to the first key of its group; raises ConfigError if a group is not valid.

    If the first key of a group has no initialiser but a later key has one, ``inits`` gets that initialiser for the
    first key.
    """
    ties: dict[str, str] = {}
    order = {key: i for i, key in enumerate(tensors)}
    groups = document.model.get("tied") or []
    if not isinstance(groups, list):
        raise document.fail(f"the field 'tied' is {brief_repr(groups, 80)}, not a list of lists of keys.")
    seen: set[str] = set()
    for group in groups:
        if not isinstance(group, list) or len(group) < 2:
            raise document.fail(f"in the field 'tied', {brief_repr(group, 80)} is not a list of two or more keys.")
        unknown = [key for key in group if not isinstance(key, str) or key not in tensors]
        if unknown:
            raise document.fail(
                f"in the field 'tied', {brief_repr(unknown[0], 80)} is not a key of the field 'tensors'."
            )
        twice = [key for key in group if key in seen or group.count(key) > 1]
        if twice:
            raise document.fail(
                f"the field 'tied' has the key {escape(twice[0])} twice.", "Write all keys of one tensor in one list."
            )
        seen.update(group)
        first, *rest = sorted(group, key=order.__getitem__)
        for key in rest:
            if tensors[key] != tensors[first]:
                raise document.fail(
                    f"the tensor {escape(key)}, {_type_text(tensors[key])}, is tied to {escape(first)}, "
                    f"{_type_text(tensors[first])}: tied tensors must have the same shape and dtype."
                )
            if key in inits and inits.setdefault(first, inits[key]) != inits[key]:
                raise document.fail(
                    f"the tensor {escape(key)} is tied to {escape(first)}, but has a different initialiser."
                )
            ties[key] = first
    return ties


def _type_text(info: TensorInfo) -> str:
    return f"{info.dtype} {shape_text(info.shape)}"


def _given(document: Document, kept: Mapping[str, TensorInfo], ties: Mapping[str, str]) -> tuple[InitialFile, ...]:
    """Return a tuple with the checkpoint that has the initial values of the tensors ``kept``; () if ``kept`` is empty.

    The field ``values`` has the path of the checkpoint, and the field ``root`` the path of its state dict. Raises
    ConfigError if these fields are missing, malformed or not needed; if a tensor cannot be read from the checkpoint or
    has another shape in it; or if tied tensors have different initialisers, or different values in the checkpoint.
    Raises the errors of ``open_checkpoint``.
    """
    values, root = document.model.get("values"), document.model.get("root")
    if not kept:
        if values is not None or root is not None:
            raise document.fail(
                "the fields values and root are only used for tensors with init: like, and no tensor has init: like."
            )
        return ()
    for key in kept:
        if ties.get(key, key) not in kept:
            raise document.fail(
                f"the tensor {escape(key)} is tied to {escape(ties[key])}, but has a different initialiser."
            )
    first = next(iter(kept))
    if not isinstance(values, str):
        is_value = "is missing" if values is None else f"is {brief_repr(values, 80)}, not a path"
        raise document.fail(
            f"the tensor {escape(first)} has 'init: like', but the field 'values' {is_value}.",
            "Add values: FILE, a checkpoint with the values of this tensor.",
        )
    if not isinstance(root, (str, type(None))):
        raise document.fail(f"the field 'root' is {brief_repr(root, 80)}, not the path of a state dict.")
    path = values if "://" in values else document.resolve(values)
    try:
        raw = open_checkpoint(path, root or ".", unwrap=False)
    except CheckpointError as error:
        error.message = f"{escape(document.name)}: values: {error.message}"
        raise
    with raw:
        checkpoint = raw.unwrapped(destination=list(kept))
        for key, info in kept.items():
            owner = ties.get(key, key)
            if owner != key and key not in checkpoint:
                continue
            _check_there(document, key, info, checkpoint)
            if owner in checkpoint and not checkpoint.tensor(key).equal(checkpoint.tensor(owner)):
                raise document.fail(
                    f"the tensor {escape(key)} is tied to {escape(owner)}, "
                    f"but has other values in {escape(checkpoint.path)}."
                )
    keys = {key: key for key in kept if key not in ties}
    return (InitialFile(path, root or ".", keys, "keep", "init: like", checkpoint.stripped),)


def _check_there(document: Document, key: str, info: TensorInfo, checkpoint: Checkpoint) -> None:
    there = checkpoint.get(key)
    name = escape(checkpoint.path)
    if there is None:
        raise document.fail(
            f"the tensor {escape(key)} should get its values from another file (init: like), but {name} has no "
            "tensor of that name."
        )
    if there.opaque:
        raise document.fail(
            f"the tensor {escape(key)} should get its values from another file (init: like), but the tensor in "
            f"{name} cannot be read: {there.opaque}."
        )
    if there.shape != info.shape:
        raise document.fail(
            f"the tensor {escape(key)} (init: like) has the shape {shape_text(info.shape)}, "
            f"but the shape {shape_text(there.shape)} in {name}."
        )


def _initial(
    tensors: Mapping[str, TensorInfo],
    inits: Mapping[str, Init],
    given: Sequence[InitialFile],
    keys: Iterable[str],
    seed: int,
) -> Iterator[tuple[str, memoryview]]:
    """Yield each key with the bytes of its initial values, from a checkpoint in ``given`` or from an initialiser."""
    for key in keys:
        file = next((one for one in given if key in one.keys), None)
        if file is None:
            yield from _draw(tensors, inits, [key], seed)
            continue
        import torch

        with open_checkpoint(file.path, file.root, unwrap=False) as raw:
            checkpoint = raw.unwrapped(stripped=file.stripped)
            values = checkpoint.tensor(file.keys[key]).to(getattr(torch, tensors[key].dtype), copy=True)
        yield key, values.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _draw(
    tensors: Mapping[str, TensorInfo], inits: Mapping[str, Init], keys: Iterable[str], seed: int
) -> Iterator[tuple[str, memoryview]]:
    import torch

    from .torch_module.construction import drawing
    from .torch_module.recording.graph import derived_seed

    for key in keys:
        if key not in inits:
            raise ConfigError(f"the destination does not say how to initialise the tensor {escape(key)}.")
        with drawing():
            torch.default_generator.manual_seed(derived_seed(seed, key, 0))
            data = drawn(tensors[key], inits[key])
        yield key, data


def declare(
    tensors: Mapping[str, TensorInfo], ties: Mapping[str, str], coded: Container[str], like: Mapping[str, str]
) -> dict[str, Any]:
    """Return the ``model:`` section that lists ``tensors``, each with the initialiser that its name and shape suggest.

    Weights of two or more dimensions get torch's default for linear and convolution layers. One-dimensional weights,
    scales and variances get ones; biases get zeros. All other tensors, such as buffers, get ``init: like``: they start
    with the values of a checkpoint. Tensors with keys in ``coded``, which are parts of quantised tensors, also get
    ``init: like``.

    ``like`` has the fields of the section that name this checkpoint: ``values`` (its path) and, if the checkpoint has
    several state dicts, ``root``. If ``like`` is empty, tensors that would get ``init: like`` get no initialiser.
    """
    rows = {}
    for key, info in tensors.items():
        init = LIKE if key in coded else suggested_init(key, info)
        fields = {} if init == LIKE and not like else {"init": init}
        rows[key] = InlineMapping(shape=list(info.shape), dtype=info.dtype, **fields)
    groups: dict[str, list[str]] = {}
    for alias, owner in ties.items():
        groups.setdefault(owner, [owner]).append(alias)
        rows[alias].update({name: init for name, init in rows[owner].items() if name == "init"})
    kept = any(row.get("init") == LIKE for row in rows.values())
    model: dict[str, Any] = {**(like if kept else {}), "tensors": rows}
    if groups:
        model["tied"] = list(groups.values())
    return model


CONFIG = _Declared()
