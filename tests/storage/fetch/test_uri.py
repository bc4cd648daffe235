"""What a URI is understood as, before anything is opened or asked."""

from __future__ import annotations

from pathlib import Path

import pytest

import ckptsurgeon as cs
from ckptsurgeon.storage.fetch.origin import FetchOrigin, file_name, origin_of_uri


@pytest.mark.parametrize(
    ("uri", "origin"),
    [
        ("hf://org/repo", FetchOrigin("hub", "org/repo", "")),
        ("hf://org/repo/", FetchOrigin("hub", "org/repo", "")),
        ("hf://org/repo@v1", FetchOrigin("hub", "org/repo", "", "v1")),
        ("hf://org/repo@v1/a/b.pth", FetchOrigin("hub", "org/repo", "a/b.pth", "v1")),
        ("hf://org/repo/a@b.pth", FetchOrigin("hub", "org/repo", "a@b.pth")),
        ("hf://org/repo@refs/pr/3/b.pth", FetchOrigin("hub", "org/repo", "b.pth", "refs/pr/3")),
        ("hf://org/repo@feature%2Fx/b.pth", FetchOrigin("hub", "org/repo", "b.pth", "feature/x")),
        ("hf://models/org/repo/b.pth", FetchOrigin("hub", "org/repo", "b.pth")),
        ("hf://gpt2@main/b.pth", FetchOrigin("hub", "gpt2", "b.pth", "main")),
        ("HTTPS://h/a/b.pth", FetchOrigin("url", "HTTPS://h/a", "b.pth")),
        ("s3://bucket/a/b.pth", FetchOrigin("store", "s3://bucket/a", "b.pth")),
    ],
)
def test_a_uri_is_one_of_four_kinds(uri: str, origin: FetchOrigin) -> None:
    assert origin_of_uri(uri) == origin


def test_a_path_is_absolute_and_a_folder_is_all_of_it() -> None:
    Path("folder").mkdir()
    here = str(Path.cwd())
    assert origin_of_uri("folder") == FetchOrigin("local", f"{here}/folder", "")
    assert origin_of_uri("x.pth") == origin_of_uri(f"file://{here}/x.pth") == FetchOrigin("local", here, "x.pth")


@pytest.mark.parametrize(
    ("uri", "revision", "why"),
    [
        ("hf://", None, "is not the address of a hub repository"),
        ("hf://a b/c", None, "is not the address of a hub repository"),
        ("hf://org/repo@/x", None, "is not the address of a hub repository"),
        ("hf://datasets/org/repo", None, "not a model repository"),
        ("hf://org/repo/../../x", None, "is not a path inside the repository"),
        ("hf://org/repo/a//x", None, "is not a path inside the repository"),
        ("hf://org/repo/a\\x", None, "is not a path inside the repository"),
        ("hf://org/repo", "../../x", "not a valid revision"),
        ("hf://org/repo", "/etc", "not a valid revision"),
        ("hf://org/repo@v1", "v2", "contradict each other"),
        ("https://h/x.pth", "v1", "has no revisions"),
        ("x.pth", "v1", "has no revisions"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(uri: str, revision: str | None, why: str) -> None:
    with pytest.raises(cs.ConfigError, match=why) as error:
        origin_of_uri(uri, revision)
    assert error.value.exit_code == 2


def test_the_name_of_a_file_is_without_the_query_of_its_address() -> None:
    assert file_name(origin_of_uri("https://h/a/b%20c.pth?sig=x/y&z=1#f")) == "b c.pth"
    for uri in ("https://h/", "https://h/a/", "https://h/a/%2e%2e", "https://h/a%5cb", "https://h/a%00b"):
        with pytest.raises(cs.ConfigError, match="has no file name"):
            file_name(origin_of_uri(uri))
