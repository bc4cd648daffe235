"""The kinds of notes, and the result of ``ckpt check`` for each kind."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

__all__ = ["NoteKind"]

_CODES = "Copy these tensors from the quantised model again, or quantise the model again."
_METADATA = "Correct the metadata (ckpt convert --set-metadata), or convert the model again."
_SETTINGS = "Correct the settings of quantisation in config.json, or the tensors."
_VOCABULARY = "Check whether tokeniser and weights belong together."
_FILES = "Check whether these files belong together."
_IDS = "Correct the ids in the files that this line names"
_WARNING, _FAILURE = False, True


@dataclass(eq=False)  # so that kinds with the same check and advice differ
class _Properties:
    """What ``ckpt check`` does with the notes of a kind."""

    check: str
    is_serious: bool
    todo: str


class NoteKind(_Properties, Enum):
    """The kind of a note: the check of ``ckpt check`` that reports it, whether the note is a failure, and the advice.

    A note is serious, and so a failure, if the model cannot be loaded, or if the loaded model would compute with other
    weights than the file has. Any other contradiction is a warning. Some checks find such faults themselves, and report
    no notes. ``check`` is empty if no check reports such a note.
    """

    REMARK = ("", _WARNING, "")
    """Says how a checkpoint was opened, or a fault that checks of values find again: no check reports such a note."""

    TRANSPOSED = ("", _WARNING, "")  # noqa: PIE796 - kinds differ by their names
    """Says that a matrix may be transposed, judging by its name or by other matrices; its values may disprove this."""

    WRONG_WEIGHTS = ("", _FAILURE, "")
    """Says that weights are probably wrong, as decoded or as stored: the checks of values find this again."""

    SERIOUS = ("", _FAILURE, "")  # noqa: PIE796 - kinds differ by their names
    """A serious note that no check reports, or whose kind is unknown because its plan was read from JSON."""

    ADAPTER_BESIDE = (
        "other-notes",
        _WARNING,
        "Merge the adapter into the model (ckpt lora merge), or move its files to a folder of their own.",
    )
    ADAPTER_WITHOUT_WEIGHTS = ("other-notes", _FAILURE, "Remove adapter_config.json, or add the adapter's weights.")
    METADATA_REFUSED = ("other-notes", _FAILURE, _METADATA)
    METADATA = ("other-notes", _WARNING, _METADATA)
    NETWORK_ALPHA = (
        "other-notes",
        _WARNING,
        "Merge the adapter with this weight, unless its factors contain the scale already.",
    )
    OTHER_WEIGHTS = (
        "other-notes",
        _WARNING,
        "Remove the copy that is damaged or out of date: programs differ in which copy they load.",
    )
    PICKLED_CODE = (
        "other-notes",
        _WARNING,
        "Load the file only if you trust its source (ckpt scan shows the calls), or convert it.",
    )
    UNREADABLE_MODULES = ("other-notes", _WARNING, "Save the network's state_dict() instead.")
    OTHER = ("other-notes", _WARNING, _FILES)
    UNLISTED_SHARDS = ("other-notes", _WARNING, _FILES)  # noqa: PIE796 - kinds differ by their names
    """The index lists fewer shards than the names of the shards imply."""

    DTYPE_IN_HEADER = (
        "weight-size",
        _FAILURE,
        "Correct the dtype in the header of the file, or save the model again: the bytes may be right.",
    )
    LOST_SCALES = ("weight-size", _WARNING, _CODES)
    WRONG_ZERO_POINTS = (
        "weight-size",
        _WARNING,
        "Decode the quantised model again, or compare with the original (ckpt diff --values).",
    )
    LACKING_ONE = (
        "weight-size",
        _WARNING,
        "Convert the model again with the converter for its class, or add 1 to these weights.",
    )

    MIXED_LAYERS = (
        "shard",
        _WARNING,
        "Fetch all files again from one place, unless the model was merged from these networks.",
    )
    PART_OF_MODEL = ("shard", _WARNING, "Check the whole folder.")
    OTHER_SHARD = ("shard", _FAILURE, "Fetch or save the whole folder again.")
    SPLIT_TENSORS = ("shard", _FAILURE, "Fetch or save the file of this rank again.")
    SINGLE_RANK = ("shard", _FAILURE, "Fetch the files of all ranks into one folder.")
    CUT_FILE = ("shard", _WARNING, "Fetch the file again.")
    INCOMPLETE_FILE = ("shard", _WARNING, "Fetch or save the file again.")
    """A file has fewer tensors than it says, or was not closed by its writer; CUT_FILE is about runs of zeros."""

    ZERO_ROWS = ("shard", _WARNING, "Fetch the file again, unless these rows were set to zero on purpose.")
    UNWRITTEN = (
        "shard",
        _WARNING,
        "Fetch or save the file again, unless it was copied by a program that does not write zeros.",
    )

    NEGATIVE_VARIANCES = ("impossible-values", _FAILURE, "Copy these statistics from the source.")

    MIXED_DTYPES = ("dtype-family", _WARNING, "Cast the whole model to one dtype.")

    DECLARED_DTYPE = (
        "configuration",
        _WARNING,
        "Set this field to the dtype of the weights, or cast the weights (ckpt convert --dtype).",
    )
    CONFIGURATION_REFUSED = ("configuration", _FAILURE, "Correct config.json, or use the weights that belong to it.")
    OTHER_COMPONENT = ("configuration", _FAILURE, "Use the components of one pipeline.")
    CONFIGURATION = ("configuration", _WARNING, "Check whether both files belong to this model.")

    STORED_TIE = ("ties", _WARNING, "")

    INDEX_TOTAL = ("index-total", _WARNING, "")

    OTHER_OUTPUT = ("checksums", _FAILURE, "Fetch or write this shard again.")

    ADAPTER_MISMATCH = ("adapter-config", _FAILURE, "Save the adapter and its configuration again, together.")
    ADAPTER_SETTING_REFUSED = ("adapter-config", _FAILURE, "Correct adapter_config.json.")
    OTHER_BASE = ("adapter-config", _WARNING, "Give the base that this adapter was trained on.")
    ADAPTER_SCALE = (
        "adapter-config",
        _WARNING,
        "Compare lora_alpha and r in adapter_config.json with the values used in training.",
    )
    MODULES_WITHOUT_FACTORS = (
        "adapter-config",
        _WARNING,
        "Give the base that this adapter was trained on, or check whether factors were lost during saving.",
    )
    PEFT_ONLY = (
        "adapter-config",
        _WARNING,
        "Load the adapter with PEFT, with the base that it was trained on; ckpt lora merge cannot use it.",
    )
    ADAPTER_SETTINGS = ("adapter-config", _WARNING, "Correct adapter_config.json.")

    UNREADABLE_FILE = ("unreadable-files", _FAILURE, "Fetch or write this file again.")

    LAYERS_FROM_ONE = (
        "layer-sequence",
        _WARNING,
        "If a program renamed the layers, count them from 0; else copy layer 0 from the source.",
    )
    LAYER_GAP = ("layer-sequence", _FAILURE, "Copy the missing layers from the source, or renumber the others.")

    TOKEN_IDS = ("token-ids", _WARNING, f"{_IDS}.")
    PADDING_ROW = ("token-ids", _FAILURE, f"{_IDS}: torch cannot make an embedding with such a padding row.")

    BROKEN_CODES = ("quantisation", _FAILURE, _CODES)
    GROUP_INDEX = ("quantisation", _FAILURE, _CODES)  # noqa: PIE796 - kinds differ by their names
    """A ``g_idx`` has the index of a group that does not exist."""
    MISSING_SETTINGS = ("quantisation", _FAILURE, "Add the quantization_config of the model to config.json.")
    QUANTISATION_REFUSED = ("quantisation", _FAILURE, _SETTINGS)
    AVERAGED_CODES = ("quantisation", _WARNING, "Average the models with ckpt average, which decodes their codes.")
    CAST_CODES = ("quantisation", _WARNING, _CODES)
    UNKNOWN_PACKING = ("quantisation", _WARNING, "Check the network as it was before quantisation.")
    QUANTISATION = ("quantisation", _WARNING, _SETTINGS)

    TOKENS_WITHOUT_ROWS = (
        "vocabulary",
        _FAILURE,
        "Resize the embedding, or use the tokeniser that this model was trained with.",
    )
    TOKENISER_FILES = ("vocabulary", _WARNING, "Fetch or save the missing files of the tokeniser again.")
    GGUF_TOKENS = ("vocabulary", _WARNING, "Convert the model again from the files of its tokeniser.")
    BYTE_ORDER_MARK = ("vocabulary", _WARNING, "Save this file as UTF-8 without a byte-order mark.")
    SHARED_ROW = (
        "vocabulary",
        _WARNING,
        "Give each token one row of its own, or use the token list of the model's source.",
    )
    TOKEN_ORDER = ("vocabulary", _WARNING, "Use the token list of the model's source.")
    TOKENISER_SECTION = (
        "vocabulary",
        _WARNING,
        "Correct this section of tokenizer.json, or use the file of the original model.",
    )
    VOCABULARY = ("vocabulary", _WARNING, _VOCABULARY)
    TOKEN_PAIRS = ("vocabulary", _WARNING, _VOCABULARY)  # noqa: PIE796 - kinds differ by their names
    """Tokens that should have similar embedding rows do not: perhaps they are the tokens of another model."""

    PREFIXED_KEYS = ("missing-tensors", _FAILURE, "Remove the prefix: ckpt rename --unwrap.")
    MISSING_COMPONENT = ("missing-tensors", _FAILURE, "Fetch or save the folder of this component again.")
    MISSING_TENSORS = ("missing-tensors", _FAILURE, "Copy the missing tensors from the source, or correct config.json.")

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        """Return how to pickle and copy this kind: by its name, since several kinds have the same properties.

        ``enum.pickle_by_enum_name`` is not in the first releases of Python 3.11.
        """
        return getattr, (NoteKind, self.name)
