"""``Pretrainer``: the interface of SpeechBrain 1.1.2's class, with the loading rules of ``load_into``."""

from __future__ import annotations

import difflib
import os
import pathlib
from collections.abc import Mapping
from types import NoneType
from typing import Any

from ...errors import ConfigError
from ...storage.fetch.collect import collect, collect_file
from ...storage.fetch.origin import fetch_config_of, origin_of, split_path, strategy_of
from ...util.text import brief_repr, escape, listing
from ..inputs.argument_types import Path
from .loading import Pretrained, load_pretrained

__all__ = ["Pretrainer"]

PARAMFILE_EXT = ".ckpt"


class Pretrainer:
    """Collects pretrained files and loads them into objects, with the arguments and methods of SpeechBrain's class.

    ``collect_in`` is the folder for the collected files. All other arguments are dicts whose keys are names.
    ``loadables`` has the objects, and ``paths`` has ``source/file`` for each (the source is a folder, a hub repository
    or a URL). ``custom_hooks`` has functions of (object, path), and ``conditions`` has bools or functions that return a
    bool. Modules are loaded by the rules of ``load_into``; if one cannot be loaded, no module is changed.
    """

    def __init__(
        self,
        collect_in: Path | None = None,
        loadables: Mapping[str, object] | None = None,
        paths: Mapping[str, object] | None = None,
        custom_hooks: Mapping[str, object] | None = None,
        conditions: Mapping[str, object] | None = None,
    ) -> None:
        self.loadables: dict[str, object] = {}
        self.paths: dict[str, object] = {}
        self.custom_hooks: dict[str, object] = {}
        self.conditions: dict[str, object] = {}
        self.is_local: list[str] = []
        self._asked: dict[str, tuple[str, object]] = {}
        self.set_collect_in(collect_in)
        self.add_loadables(loadables or {})
        self.add_paths(paths or {})
        self.add_custom_hooks(custom_hooks or {})
        self.add_conditions(conditions or {})

    def set_collect_in(self, path: Path | None) -> None:
        """Set the folder in which files are collected; ``collect_files`` creates it, with its parents."""
        self.collect_in = pathlib.Path(path) if path is not None else None

    def add_loadables(self, loadables: Mapping[str, object]) -> None:
        """Add objects by name; a file is loaded into each of them."""
        self.loadables.update(_named("loadables", loadables))

    def add_paths(self, paths: Mapping[str, object]) -> None:
        """Add the paths of the files to load: {name: ``source/file``}."""
        self.paths.update(_named("paths", paths))

    def add_custom_hooks(self, custom_hooks: Mapping[str, object]) -> None:
        """Add functions of (object, path), by name; they replace the hook of the object's class."""
        self.custom_hooks.update(_named("custom_hooks", custom_hooks))

    def add_conditions(self, conditions: Mapping[str, object]) -> None:
        """Add bools, or functions that return a bool, by name: an object is loaded only if its condition is true."""
        self.conditions.update(_named("conditions", conditions))

    @staticmethod
    def split_path(path: object) -> tuple[object, str]:
        """Return the source and the file name of a path."""
        return split_path(path)

    def is_loadable(self, name: str) -> bool:
        """Return whether an object is to be loaded: it has no condition, or its condition is true.

        Raises ConfigError if the condition is neither a bool nor a function that returns one.
        """
        given = self.conditions.get(name, True)
        found = given() if callable(given) else given
        if not isinstance(found, bool):
            verb = "returns" if callable(given) else "is"
            raise ConfigError(
                f"the condition of {escape(name)} {verb} {brief_repr(found)}, which is not a bool.",
                hint="Give True or False, or a function that returns True or False.",
            )
        return found

    def collect_files(
        self,
        default_source: object = None,
        local_strategy: object = "symlink",
        fetch_config: object = None,
    ) -> dict[str, pathlib.Path]:
        """Collect the file of every object whose condition is true; return the files' paths, and update ``paths``.

        The file of an object without a path is ``<default_source>/<name>.ckpt``. If ``collect_in`` is set, the
        collected file is ``<collect_in>/<name>.ckpt``: a link, a copy (``local_strategy``) or the download. If this
        file exists already, it is kept if it was collected from the same source; otherwise it is collected again.
        ``fetch_config`` is a FetchConfig.

        Either all files are collected or none. Raises ConfigError if an object has no source, SourceError if a file
        is not available, OutputError if a file that was not collected has the same path.
        """
        self._check_names()
        config = fetch_config_of(fetch_config)
        wanted = [name for name in self.loadables if self.is_loadable(name)]
        asked = {name: self._source_of(name, default_source) for name in wanted}
        origins = {name: origin_of(*self._split(asked[name]), revision=config.revision) for name in wanted}
        folder = os.path.abspath(self.collect_in) if self.collect_in is not None else None
        with collect(folder, strategy_of(local_strategy), config) as how:
            found = {name: collect_file(origins[name], self._place(name), how) for name in wanted}
        for name, path in found.items():
            self._asked[name] = (path, asked[name])
            self.paths[name] = path
            self.is_local += [name] if name not in self.is_local else []
        return {name: pathlib.Path(path) for name, path in found.items()}

    def load_collected(
        self, options: Mapping[str, Mapping[str, Any]] | object = None, device: object = None
    ) -> Pretrained:
        """Load the collected files into all objects whose condition is true, and return a report.

        ``options`` has keyword arguments of ``load_into`` for some modules, by name: ``{"head": {"on_mismatch":
        "init"}}``. ``device``, or a device as the first argument, exists for compatibility with SpeechBrain before 1.0
        and has no effect: every module stays on its device. Raises ConfigError for other arguments, the errors of
        ``load_into``, and the exceptions of hooks; no module has changed then.
        """
        self._check_names()
        if not isinstance(options, (Mapping, NoneType)):
            options, device = None, options
        if device is not None and not hasattr(device, "type") and not isinstance(device, str):
            raise ConfigError(
                f"load_collected got {brief_repr(device)}, which is neither a map of options nor a device."
            )
        wanted = [name for name in self.loadables if self.is_loadable(name)]
        skipped = tuple(name for name in self.loadables if name not in wanted)
        paths = {name: self._collected(name) for name in wanted}
        return load_pretrained(self.loadables, paths, hooks=self.custom_hooks, skipped=skipped, options=options)

    def _place(self, name: str) -> str | None:
        if self.collect_in is None:
            return None
        if not name or "/" in name or "\0" in name:
            raise ConfigError(
                f"{brief_repr(name)} is not a valid name in loadables, because the name is also used as a file name."
            )
        return os.path.join(os.path.abspath(self.collect_in), name + PARAMFILE_EXT)

    def _source_of(self, name: str, default_source: object) -> object:
        """Return the path that the user gave for an object, before ``collect_files`` replaced it by a collected file.

        If the user gave no path, the result is the file ``<name>.ckpt`` of the default source. Raises ConfigError if
        there is no default source either.
        """
        path, asked = self._asked.get(name, ("", None))
        if name in self.paths and self.paths[name] != path:
            return self.paths[name]
        if name in self.paths and not (isinstance(asked, _Default) and default_source is not None):
            return asked
        if default_source is None:
            raise ConfigError(
                f"{escape(name)} has no path, and no default source is given.",
                hint=f"Write paths={{{name!r}: 'folder/file.ckpt'}}, or collect_files('folder').",
            )
        return _Default(default_source, name + PARAMFILE_EXT)

    def _split(self, asked: object) -> tuple[object, str]:
        return (asked.source, asked.file) if isinstance(asked, _Default) else split_path(asked)

    def _collected(self, name: str) -> str:
        """Return the path of the file for ``name`` that ``collect_files`` collected, in this or an earlier run.

        Raises ConfigError if it was not collected.
        """
        place = self._place(name)
        if name in self.is_local:
            return str(self.paths[name])
        if place is None:
            raise ConfigError(
                f"{escape(name)} was never collected.", hint="Call collect_files first, or set collect_in."
            )
        return place

    def _check_names(self) -> None:
        """Raise ConfigError for a path, hook or condition whose name is not in ``loadables``."""
        for what in ("paths", "custom_hooks", "conditions"):
            for name in getattr(self, what):
                if name not in self.loadables:
                    near = difflib.get_close_matches(str(name), self.loadables, n=1)
                    there = f"Use {listing([*self.loadables], where='')}." if self.loadables else ""
                    hint = f"Did you mean {escape(near[0])}?" if near else there
                    raise ConfigError(
                        f"{what} has an entry for {brief_repr(name)}, which is not in loadables.", hint=hint
                    )


class _Default:
    """The path of an object for which the user gave no path: its file comes from the default source."""

    def __init__(self, source: object, file: str) -> None:
        self.source = source
        self.file = file


def _named(what: str, given: object) -> Mapping[str, Any]:
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ConfigError(
            f"the argument {what} is {brief_repr(given)}, not a map.", hint="Give a map from names to values."
        )
    return given
