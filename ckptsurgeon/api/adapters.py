"""Opening adapters: PEFT's folders, and single files of kohya's and diffusers'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checkpoint import Checkpoint, checkpoint_of
from ..engine import fetch_keys
from ..errors import CheckpointError, ConfigError, FormatError, SourceError
from ..jsontext import read_json
from ..lora import AdapterConfig, parse_config, read_adapter
from ..plan import PlanSource
from ..planners import AdapterView, SourceView
from ..sources import File, Source, open_source, scheme_of
from ..text import brief_repr, escape
from .inputs import plan_source

__all__ = ["CONFIG", "open_adapter"]

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
BYTES = 16 << 20

ALPHA = ".alpha"
"""What the keys of the scales end with in kohya's and diffusers' files."""

METADATA = "lora_adapter_metadata"
"""Where diffusers writes the configuration, of each model of a pipeline, into its file."""


def open_adapter(path: str, name: str, weight: float, opened: list[Checkpoint]) -> tuple[AdapterView, str]:
    """Open an adapter, and put its file with those that are open.

    Returns it and the path of its configuration, '' where it has none or is not on this machine.
    Raises SourceError or FormatError for what is no adapter, ConfigError for one of another kind.
    """
    weights, config = _files(open_source(path), path)
    checkpoint = checkpoint_of(weights, weights.uri, unwrap=False)
    opened.append(checkpoint)
    fetch_keys(checkpoint, [key for key in checkpoint if key.endswith(ALPHA)])
    said = _config(config) if config is not None else None
    adapter = read_adapter(checkpoint, said, name, lambda key: _number(checkpoint, key), _within(checkpoint))
    source: PlanSource = plan_source(name, checkpoint)
    here = config.uri if config is not None and "://" not in config.uri else ""
    return AdapterView(SourceView(source, checkpoint), adapter, weight), here


def _files(source: Source, path: str) -> tuple[File, File | None]:
    """Return the weights and the configuration, None where it is no adapter of PEFT's."""
    if isinstance(source, File):
        is_peft = source.name in WEIGHTS and _has_config(source)
        return source, source.folder().file(CONFIG) if is_peft else None
    names = source.names()
    weights = [one for one in WEIGHTS if one in names]
    if CONFIG not in names:
        raise SourceError(
            f"{escape(path)} has no {CONFIG}.", hint="Name a folder that PEFT wrote, or an adapter's file."
        )
    if not weights:
        raise SourceError(f"{escape(path)} has no {' or '.join(WEIGHTS)}.", hint="Save the adapter again.")
    return source.file(weights[0]), source.file(CONFIG)


def _has_config(file: File) -> bool:
    """Whether a configuration lies beside a file; a web server does not say, and what PEFT called so has one."""
    return scheme_of(file.uri) in ("http", "https") or CONFIG in file.folder().names()


def _config(file: File) -> AdapterConfig:
    try:
        data = read_json(file.read(0, min(BYTES, file.size)))
    except ValueError as error:
        raise ConfigError(f"{escape(file.uri)} is no JSON: {escape(str(error))}.") from error
    finally:
        file.close()
    return parse_config(data, file.uri)


def _number(checkpoint: Checkpoint, key: str) -> float:
    """Read the one number that a tensor holds: the one value that a plan needs."""
    from ..engine import read_number

    number = read_number(checkpoint, key)
    if number is None:
        raise FormatError(f"{escape(key)} of {escape(checkpoint.path)} is not finite.", rule="alpha")
    return number


def _within(checkpoint: Checkpoint) -> Mapping[str, AdapterConfig]:
    """Return the configurations that diffusers wrote into a file, by the model that they are for."""
    text = checkpoint.metadata.get(METADATA)
    if text is None:
        return {}
    name = f"{METADATA} of {checkpoint.path}"
    try:
        data = dict(read_json(text))
        parts: dict[str, dict[str, Any]] = {}
        for key, value in data.items():
            component, _, setting = str(key).partition(".")
            parts.setdefault(component, {})[setting] = value
        return {part: parse_config({"peft_type": "LORA", **said}, name) for part, said in parts.items()}
    except (ValueError, TypeError, CheckpointError) as error:
        raise ConfigError(f"{escape(name)} is damaged: {brief_repr(str(error), 200)}.") from error
