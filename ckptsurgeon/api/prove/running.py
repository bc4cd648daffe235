"""Runs networks, and records the outputs of their blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import CheckpointError, ConfigError
from ...util.text import escape

if TYPE_CHECKING:
    from .blocks import Recording
    from .inputs import Inputs
    from .network import Network
    from .streaming import ReadWeights

__all__ = ["recorded_run", "run_network"]


def recorded_run(network: Network, inputs: Inputs, read: ReadWeights, limit: int) -> Recording:
    """Run a network, and return the outputs of its blocks; the arguments are those of ``run_network``."""
    from .blocks import block_names, recorded

    with recorded(network.module, block_names(network.module)) as recording:
        run_network(network, inputs, limit, read)
    return recording


def run_network(network: Network, inputs: Inputs, limit: int, read: ReadWeights | None = None) -> None:
    """Run a network once; raises ConfigError if the network raises an exception.

    ``limit`` is the memory for parameters in bytes. ``read`` returns the values of parameters, by default those of the
    network's checkpoint.
    """
    from ...destinations.hf.model import offline
    from .streaming import streamed

    module = network.module
    with streamed(module, read or network.read, limit):
        try:
            with offline():
                module(**inputs.arguments_for(module))
        except CheckpointError:
            raise
        except Exception as error:  # a network is foreign code, which may raise anything
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            hint = "Allow all weights in memory at once: set --memory to the size of the model in float32."
            if isinstance(error, ImportError):  # libraries import some packages only when a network runs
                package = f"the package {escape(error.name.partition('.')[0])}" if error.name else "the missing package"
                hint = f"Install {package} beside the library that builds the network."
            is_other = "meta" in said or isinstance(error, ImportError)
            raise ConfigError(
                f"the network of {escape(network.path)} does not run: {escape(said, 300).rstrip('.')}.",
                hint=hint if is_other else inputs.hint,
            ) from error
