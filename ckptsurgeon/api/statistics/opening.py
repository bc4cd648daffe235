"""Opens the networks from which statistics are collected."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ...checkpoint.opening import open_checkpoint
from ...errors import ConfigError
from ...util.text import escape
from ..inputs.argument_types import Path

if TYPE_CHECKING:
    from ..prove.network import Network

__all__ = ["check_stores_own", "open_model"]


def open_model(path: str, model: Path | None, root: str | None) -> Network:
    """Open a checkpoint as the network of the configuration ``model``, by default the config.json in its folder.

    Raises ConfigError if there is no configuration.
    """
    from ..prove.opening import configuration_of, no_configuration, open_network

    configuration = os.fspath(model) if model is not None else configuration_of(path, root)
    if not configuration:
        open_checkpoint(path, root).close()  # raises the error if the file does not exist
        raise no_configuration(path, "the network", "Give the configuration: --model config.json.")
    return open_network(path, configuration, task=None, root=root)


def check_stores_own(network: Network, options_are: str) -> None:
    """Raise ConfigError if the checkpoint stores the network's weights under other names or in another layout.

    ``options_are`` is the beginning of the message: the options that need the network's own tensors, and a verb, such
    as "--gram and --fisher are".
    """
    if network.is_converted:
        name = escape(network.path)
        raise ConfigError(
            f"{options_are} computed for the tensors of the network, but {name} has different tensors.",
            hint=f"Convert the checkpoint first: ckpt convert {name} --layout transformers -o converted/.",
        )
