"""Which configuration and which initial weights a run starts from, where nobody says."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...destinations._document import read_document
from ...destinations._load import code_named
from ...errors import ConfigError
from ...storage.small_files import read_file
from ...util.text import escape, listing
from ..config.users_file import user_code_in
from ..job.assembly import train_section
from ..job.init import InitCheckpoint, read_init

__all__ = ["RunStart", "find_start"]

PATTERN = "*.init.safetensors"
MAKES_ONE = "ckpt transplant SRC dst.yaml makes one; or name a configuration: ckpt train dst.yaml."


@dataclass(frozen=True)
class RunStart:
    """A configuration, the init to load, and what was decided on the way.

    ``from_`` is the path of the init that the run starts from, or that a run to be resumed once started from;
    ``known`` is the lineage of such a run.
    """

    config: str
    init: InitCheckpoint | None = None
    notes: tuple[str, ...] = ()
    from_: str | None = None
    known: Mapping[str, Any] | None = None


def find_start(config: str | None, init: str | None) -> RunStart:
    """Return what to start from: what is named, else the one init of the working directory and its configuration.

    Raises ConfigError where there is none or several, or the configuration is not where the recipe says, outside
    the folder, or another now.
    """
    if config is not None:
        if init is not None:
            return RunStart(config, read_init(init), from_=init)
        return RunStart(config, notes=("no --init: the weights are drawn by the declared initialiser",))
    path = init or _the_one_init()
    found = read_init(path)
    return RunStart(_config_of(found), found, () if init else (f"took {escape(path)}",), path)


def _the_one_init() -> str:
    found = sorted(glob.glob(PATTERN))
    if not found:
        raise ConfigError(f"no configuration is named, and there is no {PATTERN} here.", hint=MAKES_ONE)
    if len(found) > 1:
        raise ConfigError(
            f"there are {len(found)} of {PATTERN} here: {listing(found, where='')}.",
            hint="Say which with --init.", details=found,
        )  # fmt: skip
    return found[0]


def _config_of(init: InitCheckpoint) -> str:
    """Return the configuration that an init's recipe names, if it is a file near it, what it was, and names no code.

    A recipe is data that somebody else may have written: it leads to no file outside the init's own folder, and whoever
    names a checkpoint has not said that the code beside it is to run.
    """
    name = escape(init.path)
    hint = "Name the configuration: ckpt train dst.yaml --init " + name
    made = init.recipe
    if made is None or not made.target.config or not made.target.files:
        raise ConfigError(f"{name} does not say which configuration it was made for.", hint=hint)
    folder = os.path.dirname(os.path.abspath(init.path))
    path = os.path.normpath(os.path.join(folder, made.target.config))
    real, here = os.path.realpath(path), os.path.realpath(folder)
    if os.path.commonpath([real, here]) != here:
        raise ConfigError(f"the configuration of {name} lies outside its folder ({escape(path)}).", hint=hint)
    wanted = made.target.files[0]
    try:
        data = read_file(path)
    except OSError as error:
        raise ConfigError(f"the configuration of {name} cannot be read: {escape(path)}.", hint=hint) from error
    if (len(data), hashlib.sha256(data).hexdigest()) != (wanted.size, wanted.sha256):
        raise ConfigError(
            f"{escape(os.path.relpath(path))} is not what it was when {name} was made.",
            hint=f"Transplant again, or say that it is meant: ckpt train {escape(os.path.relpath(path))} --init …",
        )
    near = os.path.relpath(path)
    code = code_named(near) or tuple(user_code_in(train_section(read_document(near))))
    if code:
        raise ConfigError(
            f"{escape(near)} runs code ({listing(code, where='')}), and nobody but {name} has named it.",
            hint=f"Read it; if it may run: ckpt train {escape(near)} --init {name}.", details=code,
        )  # fmt: skip
    return near
