"""Assigns each note of ``ckpt inspect`` to the check that reports it, as a failure or as a warning.

A note is a failure if the model cannot be loaded, or if the loaded model would compute with other weights than the
stored ones. Any other contradiction is a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .report import Found, Status

if TYPE_CHECKING:
    from .subject import Subject  # this module imports numpy, which most commands do not need for their notes

__all__ = ["AVERAGE", "CODES", "KINDS", "NoteKind", "is_serious", "noted"]


@dataclass(frozen=True)
class NoteKind:
    """The notes that match a pattern. ``id`` is the check that reports them; ``todo`` is the advice."""

    id: str
    pattern: re.Pattern[str]
    status: Status
    todo: str


def _kind(id: str, pattern: str, status: Status, todo: str) -> NoteKind:
    return NoteKind(id, re.compile(pattern), status, todo)


FAIL, WARN = Status.FAIL, Status.WARN
CODES = "Copy these tensors from the quantised model again, or quantise the model again."
"""The advice for faulty parts of quantised tensors."""

AVERAGE = "Average the models with ckpt average, which decodes their codes."
"""The advice for packed words that were averaged."""

KINDS = (
    _kind("other-notes", r"^transformers also applies the adapter", WARN,
          "Merge the adapter into the model (ckpt lora merge), or move its files to a folder of their own."),
    _kind("other-notes", r"^the folder has an adapter_config\.json, but no", FAIL,
          "Remove adapter_config.json, or add the adapter's weights."),
    _kind("other-notes", r": llama\.cpp cannot load the file|^llama\.cpp will not load the output", FAIL,
          "Correct the metadata (ckpt convert --set-metadata), or convert the model again."),
    _kind("other-notes", r"^with [\w.-]+\.\w+ \d+[ ,].* must have"
          r"|^\w+\.\S+ is \S+, which is not above 0|^general\.file_type is ", WARN,
          "Correct the metadata (ckpt convert --set-metadata), or convert the model again."),
    _kind("other-notes", r"\(ss_network_alpha ", WARN,
          "Merge the adapter with this weight, unless its factors contain the scale already."),
    _kind("weight-size", r"the dtype in the header is perhaps wrong", FAIL,
          "Correct the dtype in the header of the file, or save the model again: the bytes may be right."),
    _kind("weight-size", r"perhaps their scales were lost|8-bit floats without scales, although"
          r"|that were cast without their scales", WARN, CODES),
    _kind("weight-size", r"perhaps they were decoded with wrong zero points", WARN,
          "Decode the quantised model again, or compare with the original (ckpt diff --values)."),
    _kind("weight-size", r"perhaps the 1 was not added to them", WARN,
          "Convert the model again with the converter for its class, or add 1 to these weights."),
    _kind("shard", r"perhaps they are layers of different networks", WARN,
          "Fetch all files again from one place, unless the model was merged from these networks."),
    _kind("impossible-values", r"of running variances ha(s|ve) negative values", FAIL,
          "Copy these statistics from the source."),
    _kind("dtype-family", r"may be from another copy|are of one kind", WARN, "Cast the whole model to one dtype."),
    _kind("configuration", r"\((?:torch_)?dtype\), but (?:nearly )?all weights are ", WARN,
          "Set this field to the dtype of the weights, or cast the weights (ckpt convert --dtype)."),
    _kind("ties", r"is stored too: if the two differ", WARN, ""),
    _kind("index-total", r"gives a total_size of", WARN, ""),
    _kind("orphaned-shards", r"^\S+ does not list ", WARN, ""),
    _kind("checksums", r"not from the same output as", FAIL, "Fetch or write this shard again."),
    _kind("shard", r"is one of \d+ shards|^only the headers? of ", WARN, "Check the whole folder."),
    _kind("shard", r"is not the shard that|the shards in its folder have", FAIL,
          "Fetch or save the whole folder again."),
    _kind("shard", r"in the parts of tensors that are split between them", FAIL,
          "Fetch or save the file of this rank again."),
    _kind("other-notes", r"^\S+ has other weights than ", WARN,
          "Remove the copy that is out of date: it depends on the program which copy is loaded."),
    _kind("shard", r"has the weights of one rank of", FAIL, "Fetch the files of all ranks into one folder."),
    _kind("shard", r"zeros begin or end in the middle of a row|^\d+ matrices are all zeros, one after", WARN,
          "Fetch the file again."),
    _kind("shard", r"of zeros, perhaps because a part of the file is missing", WARN,
          "Fetch the file again, unless these rows were set to zero on purpose."),
    _kind("shard", r"bytes were never written to the file", WARN,
          "Fetch or save the file again, unless a program that leaves out zeros copied it."),
    _kind("adapter-config", r"^adapter_config\.json does not fit|^adapter_config\.json: .*without factors", FAIL,
          "Save the adapter and its configuration again, together."),
    _kind("adapter-config", r"lora merge cannot use it$", FAIL, "Correct adapter_config.json."),
    _kind("adapter-config", r"base_model_name_or_path|\(auto_mapping\)|are not the norms of the base's weights", WARN,
          "Give the base that this adapter was trained on."),
    _kind("adapter-config", r"times as large as the weights of the base: perhaps the adapter's alpha", WARN,
          "Compare lora_alpha and r in adapter_config.json with the adapter's training."),
    _kind("adapter-config", r"(?:^|: )(?:target_modules selects \d+ modules? without"
          r"|modules_to_save lists .* the base's are|bias is \w+, but the adapter has no)", WARN,
          "Give the base that this adapter was trained on, or check whether factors were lost during saving."),
    _kind("adapter-config", r"so ckpt cannot use the adapter|, which changed the base model: ", WARN,
          "Load the adapter with PEFT, with the base that it was trained on; ckpt lora merge cannot use it."),
    _kind("adapter-config", r"^adapter_config\.json: (?!it )", WARN, "Correct adapter_config.json."),
    _kind(
        "unreadable-files",
        r"cannot be (used|parsed)|is not (valid JSON|UTF-8|a JSON object)|nested too deeply|is not the name of a model"
        r"|is a Git LFS pointer|^[\w.-]+\.(json|model|txt): ",
        FAIL,
        "Fetch or write this file again.",
    ),
    _kind("layer-sequence", r"has layers up to \d+ but lacks|no tensor of layer \d+", FAIL,
          "Copy the missing layers from the source, or renumber the others."),
    _kind("token-ids", r"^ids (?:of special tokens that are|in fields that are meant)|_token_id of .* is \d+ \('", WARN,
          "Correct the ids in the files that this line names."),
    _kind("quantisation", r"which .{1,80} needs: |no scales, and|ha(s|ve) numbers in place of codes"
          r"|\blacks? (?:[^:\s]+ ){0,40}?(?!and |\S*(?:input|output|act|[kv])_scale)[^:\s]+,? (?:[^:\s]+ ){0,40}?"
          r"which [\d,]+ similar"
          r"|does not fit the codes|quant_state of .* gives the shape|^the weight_shape of |too few or too many values"
          r"|from which no weights can be decoded|loaders take these numbers for exponents"
          r"|were the packed words cast to"
          r"|group index outside its groups|\bha(s|ve) weight_shape in |do(?:es)? not fit the bias \(", FAIL, CODES),
    _kind("quantisation", r"so that loaders use the codes as if they were weights", FAIL,
          "Add the quantization_config of the model to config.json."),
    _kind("quantisation", r"although other layers are, and its quantization_config does not exclude"
          r"|says (?:num_)?bits \d+, but the shapes of .* say|loaders look for \S+: "
          r"|says quant_method (?!bitsandbytes)\S+, but no tensor is quantised", FAIL,
          "Correct the settings of quantisation in config.json, or the tensors."),
    _kind("other-notes", r"ckpt cannot read \d+ modules? that defines? how", WARN,
          "Save the network's state_dict() instead."),
    _kind("quantisation", r"were averaged as plain numbers", WARN, AVERAGE),
    _kind("quantisation", r"were read as int8, and cast", WARN, CODES),
    _kind("quantisation", r"packed weights that ckpt does not read", WARN,
          "Check the network from before it was quantised."),
    _kind("quantisation", r"quantis|quantiz|codes|quant_method|quant_algo|bitmask|plain weight|weights? (is|are) plain",
          WARN, "Correct the settings of quantisation in config.json, or the tensors."),
    _kind("vocabulary", r"the last tokens have no row|has more tokens|has no rows? for", FAIL,
          "Resize the embedding, or use the tokeniser that this model was trained with."),
    _kind("configuration", r"cannot load this model|transformers refuses|cannot be run", FAIL,
          "Correct config.json, or use the weights that belong to it."),
    _kind("missing-tensors", r"^every key begins with ", FAIL, "Remove the prefix: ckpt rename --unwrap."),
    _kind("missing-tensors", r"initialises|transformers ignores|but there is no output layer", FAIL,
          "Copy what is missing from the source, or correct config.json."),
    _kind("vocabulary", r": the tokeniser cannot be loaded$", WARN,
          "Fetch or save the missing files of the tokeniser again."),
    _kind("configuration", r"^(?:\w+ of )?\w*processor_config\.json (?:says|has no) ", WARN,
          "Check whether both files are of this model."),
    _kind("vocabulary", r"^tokenizer\.ggml\.\w+ has ", WARN,
          "Convert the model again from the files of its tokeniser."),
    _kind("vocabulary", r"begins with a byte-order mark", WARN, "Save this file as UTF-8 without a byte-order mark."),
    _kind("vocabulary", r": transformers uses only the last id of such a token$|: they share one embedding row$", WARN,
          "Give each token one row of its own, or use the token list of the model's source."),
    _kind("vocabulary", r"^the ids in \S+ of (?:the tokens that|its \d+ (?:pieces|tokens)) ", WARN,
          "Use the token list of the model's source."),
    _kind("vocabulary", r"pads texts with |cuts texts to ", WARN,
          "Correct this section of tokenizer.json, or use the file of the original model."),
    _kind("token-ids", r"\bpad_token_id of config\.json is .*: there is no row for these ids", FAIL,
          "Correct the ids in the files that this line names: torch cannot make an embedding with such a padding row."),
    _kind("token-ids", r"\bids?\b|^forced_decoder_ids of ", WARN, "Correct the ids in the files that this line names."),
    _kind("vocabulary", r"\b(tokens?|rows?|vocab\w*)\b", WARN, "Check whether tokeniser and weights belong together."),
    _kind("configuration", r"config\.json|generation_config|\(\w+\)", WARN,
          "Check whether both files are of this model."),
    _kind("other-notes", r"", WARN, "Check whether these files belong together."),
)  # fmt: skip
"""The kinds of notes; a note belongs to the first kind whose pattern is found in it."""


def noted(subject: Subject, id: str) -> Iterator[Found]:
    """Yield the findings for those notes of the checkpoint that the check ``id`` reports."""
    for note in subject.notes:
        kind = _kind_of(note)
        if kind.id == id:
            yield Found(kind.status, note, kind.todo)


def is_serious(note: str) -> bool:
    """Return whether ``ckpt check`` reports a note as a failure; the note may begin with the path of a checkpoint."""
    return FAIL in (_kind_of(note).status, _kind_of(note.partition(": ")[2]).status)


def _kind_of(note: str) -> NoteKind:
    return next(one for one in KINDS if one.pattern.search(note))
