"""Checks whether any matrix in the layers of a GGUF file has a type that its ``general.file_type`` implies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ...util.note_kind import NoteKind
from ...util.notes import notes_of

__all__ = ["file_type_notes"]

FILE_TYPE = "general.file_type"
GUESSED = 1024
"""llama.cpp adds this number if it guessed the type from the tensors (``LLAMA_FTYPE_GUESSED``)."""
BLOCK = 256
"""Most types need a multiple of this number of columns; llama.cpp stores other matrices in another type."""
OTHERS = frozenset({"gpt-oss"})
"""Architectures whose experts always have the type mxfp4, whatever the type of the file."""


class _FileType(NamedTuple):
    """A file type of llama.cpp, and the types of the matrices in such a file.

    At least one matrix in a layer has a type in ``types``. If the number of columns of a matrix is not a multiple of
    ``BLOCK``, llama.cpp uses a type in ``instead`` for it.
    """

    name: str
    types: tuple[str, ...]
    instead: tuple[str, ...] = ()


NEAR = ("iq4_nl",)
TYPES = {
    0: _FileType("F32", ("float32",)), 1: _FileType("F16", ("float16",)), 32: _FileType("BF16", ("bfloat16",)),
    2: _FileType("Q4_0", ("q4_0",)), 3: _FileType("Q4_1", ("q4_1",)), 7: _FileType("Q8_0", ("q8_0",)),
    8: _FileType("Q5_0", ("q5_0",)), 9: _FileType("Q5_1", ("q5_1",)),
    10: _FileType("Q2_K", ("q2_k",), NEAR), 21: _FileType("Q2_K_S", ("q2_k",), NEAR),
    11: _FileType("Q3_K_S", ("q3_k",), NEAR), 12: _FileType("Q3_K_M", ("q3_k",), NEAR),
    13: _FileType("Q3_K_L", ("q3_k",), NEAR),
    14: _FileType("Q4_K_S", ("q4_k",), ("q5_0",)), 15: _FileType("Q4_K_M", ("q4_k",), ("q5_0",)),
    16: _FileType("Q5_K_S", ("q5_k",), ("q5_1",)), 17: _FileType("Q5_K_M", ("q5_k",), ("q5_1",)),
    18: _FileType("Q6_K", ("q6_k",), ("q8_0",)),
    19: _FileType("IQ2_XXS", ("iq2_xxs",), NEAR), 20: _FileType("IQ2_XS", ("iq2_xs",), NEAR),
    22: _FileType("IQ3_XS", ("iq3_s", "iq3_xxs"), NEAR), 23: _FileType("IQ3_XXS", ("iq3_xxs",), NEAR),
    24: _FileType("IQ1_S", ("iq1_s",), NEAR), 25: _FileType("IQ4_NL", NEAR),
    26: _FileType("IQ3_S", ("iq3_s",), NEAR), 27: _FileType("IQ3_M", ("iq3_s",), NEAR),
    28: _FileType("IQ2_S", ("iq2_xs", "iq2_s"), NEAR), 29: _FileType("IQ2_M", ("iq2_s",), NEAR),
    30: _FileType("IQ4_XS", ("iq4_xs",), NEAR), 31: _FileType("IQ1_M", ("iq1_m",), NEAR),
    36: _FileType("TQ1_0", ("tq1_0",), ("q4_0",)), 37: _FileType("TQ2_0", ("tq2_0",), ("q4_0",)),
    38: _FileType("MXFP4_MOE", ("mxfp4",)),
}  # fmt: skip
"""{number (``enum llama_ftype`` in llama.h): file type}. https://github.com/ggml-org/llama.cpp (src/llama-quant.cpp)"""


@notes_of(NoteKind.METADATA)
def file_type_notes(
    shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, str], metadata: Mapping[str, str]
) -> Iterator[str]:
    """Yield a note if no matrix of any layer has a type that ``general.file_type`` implies.

    One such matrix is enough, because most files also have tensors of other types. ``shapes`` maps keys to shapes,
    counted in values, and ``dtypes`` maps keys to types.
    """
    said = metadata.get(FILE_TYPE, "")
    stated = TYPES.get(int(said) % GUESSED) if said.isascii() and said.isdigit() and len(said) < 6 else None
    matrices = [key for key, shape in shapes.items() if key.startswith("blk.") and len(shape) > 1]
    if stated is None or not matrices or metadata.get("general.architecture") in OTHERS:
        return
    is_uneven = any(shapes[key][-1] % BLOCK for key in matrices)
    found = Counter(dtypes[key] for key in matrices)
    if not found.keys() & {*stated.types, *(stated.instead if is_uneven else ())}:
        usual, number = found.most_common(1)[0]
        most = "all" if number == len(matrices) else "most"
        yield (
            f"{FILE_TYPE} is {said} ({stated.name}), but no matrix of any block has the type "
            f"{' or '.join(stated.types)}: {most} have {usual}"
        )
