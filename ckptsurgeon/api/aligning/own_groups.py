"""Groups of axes that the user lists, for networks that are not known from a config.json."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import ConfigError
from ...planning.aligning.groups import OWN, Group, Part
from ...storage.small_files import read_text
from ...tensors.info import TensorInfo
from ...util.did_you_mean import did_you_mean
from ...util.text import brief_repr, escape

__all__ = ["group_fields", "own_groups"]

AXES, UNITS = "axes", "units"
EXAMPLE = "For example, hidden: {fc1.weight: 0, fc1.bias: 0, fc2.weight: 1}."


def group_fields(given: str | os.PathLike[str] | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the user's own groups of axes that are permuted together, as plain data; None if there are none.

    ``given`` is a map from the name of a group to its axes, or the path of a YAML file with this map. Raises
    ConfigError for a file that cannot be read, and for any other structure.
    """
    if given is None:
        return None
    found: Any = given if isinstance(given, Mapping) else _read(os.fspath(given))
    found = found.get("groups", found) if isinstance(found, Mapping) else found
    if not isinstance(found, Mapping) or not found:
        raise ConfigError(
            f"--align-groups: {brief_repr(found, 60)} is not a map from names of groups to axes.", hint=EXAMPLE
        )
    return {str(name): _checked(str(name), value) for name, value in found.items()}


def _read(path: str) -> Any:
    from ...storage.yaml_text import read_yaml

    try:
        return read_yaml(read_text(path), os.path.basename(path))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"--align-groups {escape(path)} cannot be read: {why}.", hint=did_you_mean(path)) from error


def _checked(name: str, value: Any) -> dict[str, Any]:
    """Return the group ``name`` as a map with the fields ``axes`` and, if it was given, ``units``.

    ``value`` is the group as the user wrote it. Raises ConfigError if it does not map keys to dimensions, or if
    ``units`` is not a number above 0.
    """
    if isinstance(value, Mapping) and isinstance(value.get(AXES), Mapping):
        group, others = dict(value), [one for one in value if one not in (AXES, UNITS)]
    else:
        group, others = {AXES: value}, []
    axes, units = group[AXES], group.get(UNITS, 1)
    if others or not (isinstance(axes, Mapping) and axes and all(map(_are_dims, axes.values()))):
        raise ConfigError(
            f"--align-groups: the group {escape(name)} is {brief_repr(value, 60)}, not a map from keys to dimensions.",
            hint=EXAMPLE,
        )
    if type(units) is not int or units < 1:
        raise ConfigError(
            f"--align-groups: the field units of {escape(name)} is {brief_repr(units)}, not a whole number above 0."
        )
    return {**group, AXES: {str(key): dims for key, dims in axes.items()}}


def _are_dims(value: Any) -> bool:
    dims = value if isinstance(value, list) else [value]
    return bool(dims) and all(type(one) is int for one in dims)


def own_groups(fields: Mapping[str, Any], tensors: Mapping[str, TensorInfo], path: str) -> list[Group]:
    """Return the groups of axes that the user lists.

    ``fields`` are the groups as ``group_fields`` returns them. ``tensors`` are the tensors of the model at ``path``. An
    alignment moves whole units, such as channels or heads. If the user gave no number of units, each element of the
    group's shortest axis is a unit; along longer axes, a unit has several elements. Raises ConfigError for an axis that
    the model does not have, that is listed twice, or whose size is not a multiple of the number of units.
    """
    found = []
    seen: dict[tuple[str, int], str] = {}
    for name, group in fields.items():
        axes = list(_axes(name, group[AXES], tensors, path))
        sizes = [tensors[key].shape[dim] for key, dim in axes]
        units = group.get(UNITS, min(sizes))
        for (key, dim), size in zip(axes, sizes, strict=True):
            if size % units:
                raise ConfigError(
                    f"--align-groups: the group {escape(name)} is divided into {units} units, but dimension {dim} of "
                    f"{escape(key)} has size {size}, which is not a multiple of {units}.",
                    hint="List only axes that are permuted together; if an axis has several elements for each unit, "
                    "set units.",
                )
            if (key, dim) in seen:
                raise ConfigError(
                    f"--align-groups: dimension {dim} of {escape(key)} is in the groups {escape(seen[key, dim])} and "
                    f"{escape(name)}.",
                    hint="List each axis in one group only.",
                )
            seen[key, dim] = name
        parts = [Part((key,), dim, 0, size // units) for (key, dim), size in zip(axes, sizes, strict=True)]
        found.append(Group(name, OWN, units, tuple(parts)))
    return found


def _axes(
    name: str, axes: Mapping[str, Any], tensors: Mapping[str, TensorInfo], path: str
) -> Iterator[tuple[str, int]]:
    for key, dims in axes.items():
        if key not in tensors:
            raise ConfigError(
                f"--align-groups: the group {escape(name)} lists {escape(key)}, which {escape(path)} does not have.",
                hint="ckpt inspect lists the keys.",
            )
        for dim in dims if isinstance(dims, list) else [dims]:
            number = len(tensors[key].shape)
            if not -number <= dim < number:
                raise ConfigError(f"--align-groups: {escape(key)} has no dimension {dim}.")
            yield key, dim % number
