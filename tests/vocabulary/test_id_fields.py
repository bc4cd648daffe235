"""Every field with token ids of every configuration class of transformers is recognised, and no other field is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptsurgeon.vocabulary.id_fields import is_of_ids, is_of_others, may_be_of_ids

LIKE_IDS = re.compile(r"(?:.*_)?(?:ids?|idx|index|indices|token|tokens)|.*_token_.*|.*_to_(?:.*_)?(?:id|token|text)")
REVIEWED = {
    "layers": {
        "_out_indices", "attn_layer_indices", "backbone_out_indices", "encoder_projection_indices", "head_in_index",
        "insert_layer_id", "intermediate_hidden_state_indices", "intermediate_hook_ids",
        "intermediate_layers_indices", "local_layer_ids", "merge_index", "moe_layer_end_index",
        "moe_layer_start_index", "mtp_local_layer_ids", "out_indices", "ple_layer_ids", "residual_block_indices",
        "target_layer_ids", "window_block_indices", "eval_idx", "dense_mlp_idx",
    },
    "classes, in labels": {
        "ce_ignore_index", "loss_ignore_index", "no_aggregation_label_index", "semantic_loss_ignore_index",
        "sparse_pred_ignore_index",
    },
    "channels, quantiles, languages, prompts and speakers": {
        "altup_active_idx", "decode_index", "default_prompt_id", "lang_id", "prediction_channel_indices",
        "segmentation_indices", "speaker_id", "unmasked_channel_indices",
    },
    "numbers of tokens": {
        "default_num_delay_tokens", "default_num_lookahead_tokens", "image_token_embed_dim",
        "img_max_token_num", "max_atoms_per_token", "max_new_tokens", "max_text_tokens", "max_token_length",
        "moe_token_dropout", "n_cls_tokens", "num_cls_tokens",
        "num_detection_tokens", "num_global_tokens", "num_group_tokens", "num_image_tokens",
        "num_query_tokens", "num_register_tokens", "num_visual_indicator_tokens", "pred_num_mask_tokens",
        "_num_audio_tokens", "max_batch_tokens", "min_new_tokens", "num_assistant_tokens", "prompt_lookup_num_tokens",
    },
    "flags": {"cls_token", "force_bos_token_to_be_generated"},  # cls_token of CvT is a list
    "of other programs": {"_bos_token_tensor", "_decoder_start_token_tensor", "_pad_token_tensor", "repo_id", "token"},
    # transformers uses only their differences, as rows of an embedding of composers
    "composers": {"composer_to_feature_token"},
    # Bark adds offsets to the ids of BERT's tokens, and its other vocabularies are audio codes
    "codes of Bark": {
        "coarse_infer_token", "coarse_semantic_pad_token", "semantic_infer_token", "semantic_pad_token",
        "text_pad_token",
    },
    "texts of ids": {"id_to_text"},
    "characters of a vocoder": {"char_to_id"},
}  # fmt: skip
"""Fields of transformers 5.23 whose names look like those of token ids, and what they have instead."""
OF_OTHERS = {
    "audio_stream_bos_id", "audio_stream_eos_id", "codebook_eos_token_id", "codebook_pad_token_id", "codec_bos_id",
    "codec_eos_token_id", "codec_nothink_id", "codec_pad_id", "codec_think_bos_id", "codec_think_eos_id", "subs_pad_id",
    "t2u_bos_token_id", "t2u_decoder_start_token_id", "t2u_eos_token_id", "t2u_lang_code_to_id", "t2u_max_new_tokens",
    "t2u_pad_token_id", "tag_pad_id", "tts_codec_end_token_id", "tts_codec_mask_token_id", "tts_codec_pad_token_id",
    "tts_codec_start_token_id", "vocoder_lang_code_to_id",
}  # fmt: skip
"""Fields with ids of audio codes, of units of speech, and of tags of HTML."""


@pytest.mark.long
def test_every_field_of_transformers_with_token_ids_is_recognised() -> None:
    transformers = pytest.importorskip("transformers")
    found = {name for name in fields(Path(transformers.__file__).parent) if LIKE_IDS.fullmatch(name)}
    reviewed = set().union(*REVIEWED.values())
    assert len(found) > 100
    assert {name for name in found if not is_of_ids(name) and not is_of_others(name)} - reviewed == set()
    assert {name for name in found if is_of_others(name)} - OF_OTHERS == set()
    assert {name for name in reviewed if is_of_ids(name) and not is_of_others(name)} == set()


def fields(package: Path) -> Iterator[str]:
    """Yield the names of the fields with numbers of all configurations, and of those that generation reads."""
    for path in [*package.glob("models/*/configuration_*.py"), package / "generation" / "configuration_utils.py"]:
        for one in ast.walk(ast.parse(path.read_text())):
            yield from of_class(one) if isinstance(one, ast.ClassDef) else of_call(one)
    for path in package.glob("models/*/*model*_*.py"):
        yield from re.findall(r"generation_config\.(\w+)", path.read_text())


def of_class(one: ast.ClassDef) -> Iterator[str]:
    for line in one.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            if re.search(r"\b(?:int|list|dict|tuple)\b", ast.unparse(line.annotation)):
                yield line.target.id
        elif isinstance(line, ast.FunctionDef) and line.name == "__init__":
            yield from (each.arg for each in (*line.args.args, *line.args.kwonlyargs))


def of_call(one: ast.AST) -> Iterator[str]:
    """Yield the name of a field that is taken from ``kwargs``."""
    if isinstance(one, ast.Call) and ast.unparse(one.func) in ("kwargs.pop", "kwargs.get"):
        yield from (each.value for each in one.args[:1] if isinstance(each, ast.Constant))  # type: ignore[misc]


@pytest.mark.parametrize(
    "field", ["im_start_id", "newline_id", "image_patch_id", "pad_index", "slice_end_id", "image_newline_token_id"]
)
def test_ids_by_the_role_of_their_token(field: str) -> None:
    assert is_of_ids(field)
    assert not may_be_of_ids(field)


@pytest.mark.parametrize("field", ["image_token", "style_id", "style_to_id"])
def test_names_that_leave_it_open(field: str) -> None:
    assert may_be_of_ids(field)
    assert not is_of_ids(field)


@pytest.mark.parametrize("field", sorted(set().union(*REVIEWED.values())))
def test_numbers_of_other_things_are_not_ids(field: str) -> None:
    assert not is_of_ids(field)
