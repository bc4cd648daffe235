"""Limits the number of parameters of a network that is built."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...errors import UnsafeError
from ...util.text import escape
from .user_code import PROCESS_STATE

__all__ = ["MOST_PARAMETERS", "bounded"]

MOST_PARAMETERS = 200_000
"""The most parameters (tensors) of a network; each takes kilobytes with its module, even without memory for its values.

A model of 61 layers of 384 experts, each of them a module, has some 70,000.
"""


@contextmanager
def bounded(name: str) -> Iterator[None]:
    """Raise UnsafeError in the block as soon as modules have over MOST_PARAMETERS parameters, registered or copied.

    No field of the configuration needs to be large for this: the numbers of layers and of experts are multiplied.
    ``name`` is the name of the network.
    """
    from torch import nn
    from torch.nn.modules.module import register_module_parameter_registration_hook

    parameters: Any = nn.Parameter
    numbers, copied = itertools.count(1), parameters.__deepcopy__

    def count_parameter(*_: object) -> None:
        if next(numbers) > MOST_PARAMETERS:
            raise UnsafeError(
                f"{escape(name)} would have over {MOST_PARAMETERS:,} parameters: it is not built.",
                hint="Correct the numbers of layers and experts; if the file is from elsewhere, do not trust it.",
                rule="modules",
            )

    def copy_parameter(parameter: nn.Parameter, memo: dict[int, Any]) -> Any:
        count_parameter()  # the parameters of a copied module are not registered
        return copied(parameter, memo)

    with PROCESS_STATE:
        hook = register_module_parameter_registration_hook(count_parameter)
        parameters.__deepcopy__ = copy_parameter
        try:
            yield
        finally:
            parameters.__deepcopy__ = copied
            hook.remove()
