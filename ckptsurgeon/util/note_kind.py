"""The kinds of notes, and the result of ``ckpt check`` for each kind."""

from __future__ import annotations

from enum import Enum

__all__ = ["NoteKind"]

_CODES = "Copy these tensors from the quantised model again, or quantise the model again."
_METADATA = "Correct the metadata (ckpt convert --set-metadata), or convert the model again."
_SETTINGS = "Correct the settings of quantisation in config.json, or the tensors."
_VOCABULARY = "Check whether tokeniser and weights belong together."
_FILES = "Check whether these files belong together."
_IDS = "Correct the ids in the files that this line names"


def _fail(check: str, todo: str) -> tuple[str, bool, str]:
    return check, True, todo


def _warn(check: str, todo: str) -> tuple[str, bool, str]:
    return check, False, todo


class NoteKind(Enum):
    """The kind of a note: the check of ``ckpt check`` that reports it, whether the note is a failure, and the advice.

    A note is serious, and so a failure, if the model cannot be loaded, or if the loaded model would compute with other
    weights than the file has. Any other contradiction is a warning. Some checks find such faults themselves, and report
    no notes. ``check`` is empty if no check reports such a note.
    """

    check: str
    is_serious: bool
    todo: str

    def __new__(cls, check: str, is_serious: bool, todo: str) -> NoteKind:
        """Return a member; its value is a number, because kinds with the same check and advice must differ."""
        made = object.__new__(cls)
        made._value_ = len(cls.__members__)
        made.check, made.is_serious, made.todo = check, is_serious, todo
        return made

    REMARK = _warn("", "")
    """Says how a checkpoint was opened, or a fault that checks of values find again: no check reports such a note."""

    TRANSPOSED = _warn("", "")  # noqa: PIE796 - members differ by their numbers
    """Says that a matrix may be transposed, judging by its name or by other matrices; its values may disprove this."""

    WRONG_WEIGHTS = _fail("", "")
    """Says that weights are probably wrong, as decoded or as stored: the checks of values find this again."""

    SERIOUS = _fail("", "")  # noqa: PIE796 - members differ by their numbers
    """A serious note that no check reports, or whose kind is unknown because its plan was read from JSON."""

    ADAPTER_BESIDE = _warn(
        "other-notes", "Merge the adapter into the model (ckpt lora merge), or move its files to a folder of their own."
    )
    ADAPTER_WITHOUT_WEIGHTS = _fail("other-notes", "Remove adapter_config.json, or add the adapter's weights.")
    METADATA_REFUSED = _fail("other-notes", _METADATA)
    METADATA = _warn("other-notes", _METADATA)
    NETWORK_ALPHA = _warn(
        "other-notes", "Merge the adapter with this weight, unless its factors contain the scale already."
    )
    OTHER_WEIGHTS = _warn(
        "other-notes", "Remove the copy that is out of date: programs differ in which copy they load."
    )
    PICKLED_CODE = _warn(
        "other-notes", "Load the file only if you trust its source (ckpt scan shows the calls), or convert it."
    )
    UNREADABLE_MODULES = _warn("other-notes", "Save the network's state_dict() instead.")
    OTHER = _warn("other-notes", _FILES)
    UNLISTED_SHARDS = _warn("other-notes", _FILES)  # noqa: PIE796 - members differ by their numbers
    """The index lists fewer shards than the names of the shards imply."""

    DTYPE_IN_HEADER = _fail(
        "weight-size", "Correct the dtype in the header of the file, or save the model again: the bytes may be right."
    )
    LOST_SCALES = _warn("weight-size", _CODES)
    WRONG_ZERO_POINTS = _warn(
        "weight-size", "Decode the quantised model again, or compare with the original (ckpt diff --values)."
    )
    LACKING_ONE = _warn(
        "weight-size", "Convert the model again with the converter for its class, or add 1 to these weights."
    )

    MIXED_LAYERS = _warn(
        "shard", "Fetch all files again from one place, unless the model was merged from these networks."
    )
    PART_OF_MODEL = _warn("shard", "Check the whole folder.")
    OTHER_SHARD = _fail("shard", "Fetch or save the whole folder again.")
    SPLIT_TENSORS = _fail("shard", "Fetch or save the file of this rank again.")
    SINGLE_RANK = _fail("shard", "Fetch the files of all ranks into one folder.")
    CUT_FILE = _warn("shard", "Fetch the file again.")
    ZERO_ROWS = _warn("shard", "Fetch the file again, unless these rows were set to zero on purpose.")
    UNWRITTEN = _warn(
        "shard", "Fetch or save the file again, unless it was copied by a program that does not write zeros."
    )

    NEGATIVE_VARIANCES = _fail("impossible-values", "Copy these statistics from the source.")

    MIXED_DTYPES = _warn("dtype-family", "Cast the whole model to one dtype.")

    DECLARED_DTYPE = _warn(
        "configuration", "Set this field to the dtype of the weights, or cast the weights (ckpt convert --dtype)."
    )
    CONFIGURATION_REFUSED = _fail("configuration", "Correct config.json, or use the weights that belong to it.")
    OTHER_COMPONENT = _fail("configuration", "Use the components of one pipeline.")
    CONFIGURATION = _warn("configuration", "Check whether both files belong to this model.")

    STORED_TIE = _warn("ties", "")

    INDEX_TOTAL = _warn("index-total", "")

    OTHER_OUTPUT = _fail("checksums", "Fetch or write this shard again.")

    ADAPTER_MISMATCH = _fail("adapter-config", "Save the adapter and its configuration again, together.")
    ADAPTER_SETTING_REFUSED = _fail("adapter-config", "Correct adapter_config.json.")
    OTHER_BASE = _warn("adapter-config", "Give the base that this adapter was trained on.")
    ADAPTER_SCALE = _warn(
        "adapter-config", "Compare lora_alpha and r in adapter_config.json with the values used in training."
    )
    MODULES_WITHOUT_FACTORS = _warn(
        "adapter-config",
        "Give the base that this adapter was trained on, or check whether factors were lost during saving.",
    )
    PEFT_ONLY = _warn(
        "adapter-config",
        "Load the adapter with PEFT, with the base that it was trained on; ckpt lora merge cannot use it.",
    )
    ADAPTER_SETTINGS = _warn("adapter-config", "Correct adapter_config.json.")

    UNREADABLE_FILE = _fail("unreadable-files", "Fetch or write this file again.")

    LAYERS_FROM_ONE = _warn(
        "layer-sequence", "If a program renamed the layers, count them from 0; else copy layer 0 from the source."
    )
    LAYER_GAP = _fail("layer-sequence", "Copy the missing layers from the source, or renumber the others.")

    TOKEN_IDS = _warn("token-ids", f"{_IDS}.")
    PADDING_ROW = _fail("token-ids", f"{_IDS}: torch cannot make an embedding with such a padding row.")

    BROKEN_CODES = _fail("quantisation", _CODES)
    GROUP_INDEX = _fail("quantisation", _CODES)  # noqa: PIE796 - members differ by their numbers
    """A ``g_idx`` has the index of a group that does not exist."""
    MISSING_SETTINGS = _fail("quantisation", "Add the quantization_config of the model to config.json.")
    QUANTISATION_REFUSED = _fail("quantisation", _SETTINGS)
    AVERAGED_CODES = _warn("quantisation", "Average the models with ckpt average, which decodes their codes.")
    CAST_CODES = _warn("quantisation", _CODES)
    UNKNOWN_PACKING = _warn("quantisation", "Check the network as it was before quantisation.")
    QUANTISATION = _warn("quantisation", _SETTINGS)

    TOKENS_WITHOUT_ROWS = _fail(
        "vocabulary", "Resize the embedding, or use the tokeniser that this model was trained with."
    )
    TOKENISER_FILES = _warn("vocabulary", "Fetch or save the missing files of the tokeniser again.")
    GGUF_TOKENS = _warn("vocabulary", "Convert the model again from the files of its tokeniser.")
    BYTE_ORDER_MARK = _warn("vocabulary", "Save this file as UTF-8 without a byte-order mark.")
    SHARED_ROW = _warn("vocabulary", "Give each token one row of its own, or use the token list of the model's source.")
    TOKEN_ORDER = _warn("vocabulary", "Use the token list of the model's source.")
    TOKENISER_SECTION = _warn(
        "vocabulary", "Correct this section of tokenizer.json, or use the file of the original model."
    )
    VOCABULARY = _warn("vocabulary", _VOCABULARY)
    TOKEN_PAIRS = _warn("vocabulary", _VOCABULARY)  # noqa: PIE796 - members differ by their numbers
    """Tokens that should have similar embedding rows do not: perhaps they are the tokens of another model."""

    PREFIXED_KEYS = _fail("missing-tensors", "Remove the prefix: ckpt rename --unwrap.")
    MISSING_COMPONENT = _fail("missing-tensors", "Fetch or save the folder of this component again.")
    MISSING_TENSORS = _fail("missing-tensors", "Copy the missing tensors from the source, or correct config.json.")
