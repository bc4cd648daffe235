"""Opening adapters: PEFT's folders, and single files of kohya's and diffusers'."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..checkpoint import Checkpoint, open_checkpoint
from ..errors import CheckpointError, ConfigError, FormatError, SourceError
from ..jsontext import read_json
from ..lora import AdapterConfig, parse_config, read_adapter
from ..plan import PlanSource
from ..planners import AdapterView, SourceView
from ..text import brief_repr, escape
from .inputs import plan_source

__all__ = ["CONFIG", "open_adapter"]

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
BYTES = 16 << 20

METADATA = "lora_adapter_metadata"
"""Where diffusers writes the configuration, of each model of a pipeline, into its file."""


def open_adapter(path: str, name: str, weight: float, opened: list[Checkpoint]) -> tuple[AdapterView, str]:
    """Open an adapter, and put its file with those that are open; return it and the path of its configuration.

    Raises SourceError or FormatError for what is no adapter, ConfigError for one of another kind.
    """
    weights, config = _files(path)
    checkpoint = open_checkpoint(weights, unwrap=False)
    opened.append(checkpoint)
    said = _config(config) if config else None
    adapter = read_adapter(checkpoint, said, name, lambda key: _number(checkpoint, key), _within(checkpoint))
    source: PlanSource = plan_source(name, checkpoint)
    return AdapterView(SourceView(source, checkpoint), adapter, weight), config


def _files(path: str) -> tuple[str, str]:
    """Return the paths of the weights and of the configuration, '' where it is no adapter of PEFT's."""
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    config = os.path.join(folder, CONFIG)
    if not os.path.isdir(path):
        return path, config if os.path.basename(path) in WEIGHTS and os.path.isfile(config) else ""
    weights = [one for one in WEIGHTS if os.path.isfile(os.path.join(path, one))]
    if not os.path.isfile(config):
        raise SourceError(
            f"{escape(path)} has no {CONFIG}.", hint="Name a folder that PEFT wrote, or an adapter's file."
        )
    if not weights:
        raise SourceError(f"{escape(path)} has no {' or '.join(WEIGHTS)}.", hint="Save the adapter again.")
    return os.path.join(path, weights[0]), config


def _config(path: str) -> AdapterConfig:
    try:
        with open(path, encoding="utf-8") as file:
            data = read_json(file.read(BYTES))
    except OSError as error:
        raise SourceError(f"{escape(path)} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"{escape(path)} is no JSON: {escape(str(error))}.") from error
    return parse_config(data, path)


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
