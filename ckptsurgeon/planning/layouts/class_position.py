"""The change of position embeddings between DINOv2's networks with register tokens and timm's.

https://github.com/huggingface/pytorch-image-models/blob/main/timm/models/vision_transformer.py (``_convert_dinov2``)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt

from ...errors import PlanError
from ...tensors.info import TensorInfo
from .layout import Numbers, Row, Tensors

__all__ = ["ClassPosition"]


@dataclass(frozen=True)
class ClassPosition:
    """A change of the position embedding of the class token, for timm's networks with register tokens.

    In the family's own layout, this embedding is the first row of ``positions``. timm does not store it, but adds it to
    the class token ``token``. ``registers`` is the key of the register tokens; if it is '', the network has no register
    tokens, and nothing is changed.
    """

    token: str
    positions: str
    registers: str = ""
    made: str = ""

    def there(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operations that add the first position embedding to the class token."""
        token, positions = at(self.token), at(self.positions)
        if not self.registers or positions not in tensors:
            return []
        shape = tensors[positions].shape
        rest = shape[1] - 1 if len(shape) == 3 else 0  # the operation refuses 0
        first = f"{positions}_of_class"
        return [
            {"split": positions, "into": [first, positions], "dim": 1, "sizes": [1, rest]},
            {"add": [token, first], "into": token},
        ]

    def back(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operations that put zeros before the position embeddings of the patches.

        Raises PlanError if timm's position embeddings are for other tokens than in its networks for DINOv2.
        """
        token, positions = at(self.token), at(self.positions)
        self._check(positions, tensors, at(self.registers))
        if not self.registers:
            return []
        first = f"{positions}_of_class"
        return [
            {"copy": token, "into": [token, first]},
            {"zero": first},
            {"concat": [first, positions], "into": positions, "dim": 1},
        ]

    def _check(self, positions: str, tensors: Tensors, registers: str) -> None:
        """Raise PlanError unless the number of position embeddings is the number in timm's layout.

        Without register tokens, the class token and each patch have one; with them, only the patches. The patches are
        assumed to form a square, as in all published networks: otherwise the number would not show which tokens have an
        embedding.
        """
        number = _number(tensors[positions])
        if not self.registers:
            fits, wanted = number > 0 and not _is_square(number), "the class token and the patches"
        else:
            embedded = number - 1 - _number(tensors[registers])
            fits, wanted = _is_square(number) and not _is_square(embedded), "the patches of a square image alone"
            if _is_square(number) and _is_square(embedded):
                raise PlanError(
                    f"{positions} has {number} position embeddings, and their number does not show whether the class "
                    "token and the register tokens have some, too.",
                    hint="Convert the network with rules and --operations instead.",
                )
        if not fits:
            raise PlanError(
                f"{positions} has {number} position embeddings. In the layout of timm, DINOv2 "
                f"{'with' if self.registers else 'without'} register tokens has them for {wanted}.",
                hint="If the network has position embeddings for other tokens, convert it with rules and --operations.",
            )


def _number(info: TensorInfo) -> int:
    return info.shape[1] if len(info.shape) == 3 else 0


def _is_square(number: int) -> bool:
    return number > 0 and isqrt(number) ** 2 == number
