"""Places for outputs: the same questions to a file system in memory or on disk, to S3 and to the hub."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from .hub.repository import Repository
from .hub.server import Hub
from .s3 import BUCKET, S3Server, serving_s3

__all__ = ["HubPlace", "Place", "S3Place", "disk_place", "hub_place", "memory_place", "s3_place"]


class Place(ABC):
    """A folder at an address: ``uri`` names it, ``above`` the folder around it, if it has one."""

    uri: str

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """The bytes of every file by its name, hidden ones and those of subfolders too."""

    @abstractmethod
    def fill(self, files: dict[str, bytes]) -> None:
        """Put files there."""

    def pending(self) -> list[str]:
        """What an upload has left that nobody sees."""
        return []

    def asked(self) -> int:
        """How many requests there were."""
        return 0


class FsspecPlace(Place):
    """A folder of a file system of fsspec."""

    def __init__(self, uri: str) -> None:
        from fsspec.core import url_to_fs

        self.uri = uri
        self.fs, self.path = url_to_fs(uri)

    def files(self) -> dict[str, bytes]:
        self.fs.invalidate_cache()
        found = self.fs.find(self.path)
        return {path.removeprefix(self.path).strip("/"): self.fs.cat_file(path) for path in found}

    def fill(self, files: dict[str, bytes]) -> None:
        self.fs.makedirs(self.path, exist_ok=True)
        for name, data in files.items():
            self.fs.makedirs(f"{self.path}/{name}".rpartition("/")[0], exist_ok=True)
            self.fs.pipe_file(f"{self.path}/{name}", data)
        self.fs.invalidate_cache()


class S3Place(FsspecPlace):
    """A folder of a bucket; ``server`` counts and refuses."""

    def __init__(self, uri: str, server: S3Server) -> None:
        super().__init__(uri)
        self.server = server

    def pending(self) -> list[str]:
        return self.server.unfinished()

    def asked(self) -> int:
        return len(self.server.requests)


class HubPlace(Place):
    """The main branch of a repository."""

    def __init__(self, hub: Hub, repository: Repository) -> None:
        self.uri, self.hub, self.repository = f"hf://{repository.name}", hub, repository

    def files(self) -> dict[str, bytes]:
        stored = self.repository.commits[self.repository.main]
        return {name: file.read(0, file.size) for name, file in sorted(stored.items())}

    def fill(self, files: dict[str, bytes]) -> None:
        self.repository.commit({**self.files(), **files})

    def asked(self) -> int:
        return len(self.hub.requests)


def memory_place() -> FsspecPlace:
    """An empty folder in memory."""
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    return FsspecPlace("memory://bucket/model")


def disk_place(folder: Path) -> FsspecPlace:
    """A folder of this machine, written to as a file system that is far away."""
    return FsspecPlace(f"file://{folder}/model")


def hub_place(hub: Hub) -> HubPlace:
    """An empty repository."""
    return HubPlace(hub, hub.repository("org/model-1.5", {".gitattributes": b"*.safetensors filter=lfs\n"}))


@cache
def _loader(search_path: str | None = None) -> Any:
    """What reads the descriptions of S3's requests, megabytes of JSON: once, not for each client."""
    from botocore.loaders import create_loader

    return create_loader(search_path)


@contextmanager
def s3_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Place]:
    """An empty folder of a bucket, for this process and those that it starts; skipped without s3fs and moto."""
    boto3: Any = pytest.importorskip("boto3", reason="the extra dev has it")
    pytest.importorskip("moto", reason="the extra dev has it")
    core: Any = pytest.importorskip("s3fs", reason="the extra dev has it")
    with serving_s3() as server:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "who", "AWS_SECRET_ACCESS_KEY": "secret-of-s3", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": server.url, "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("botocore.session.create_loader", _loader)
        client = boto3.client("s3", endpoint_url=server.url)
        client.create_bucket(Bucket=BUCKET)
        core.S3FileSystem.clear_instance_cache()
        try:
            yield S3Place(f"s3://{BUCKET}/model", server)
        finally:
            core.S3FileSystem.clear_instance_cache()
            for one in client.list_objects_v2(Bucket=BUCKET).get("Contents", ()):  # all servers of moto share one store
                client.delete_object(Bucket=BUCKET, Key=one["Key"])
            for one in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ()):
                client.abort_multipart_upload(Bucket=BUCKET, Key=one["Key"], UploadId=one["UploadId"])
            client.close()
