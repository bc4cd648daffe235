"""What a hub does with uploads: it says what is a large file, takes large files by their digest, and makes commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from .repository import LFS_FROM, Repository, Stored

__all__ = ["answer_of_upload", "received"]

_WRITE = re.compile(r"/api/models/(?P<repo>.+?)/(?P<what>auth-check/write|preupload|commit)(?:/(?P<rev>[^/]+))?")
_BATCH = re.compile(r"/(?P<repo>.+)\.git/info/lfs/objects/batch")
_STORE = re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})")

Answer = tuple[int, Any]
"""A status, and what is sent as JSON; for an error the (code, message) of the hub."""


def received(headers: Any, file: Any) -> bytes:
    """Read the body of a request, of a known length or in chunks (RFC 9112, 7.1)."""
    if headers.get("Transfer-Encoding", "").lower() != "chunked":
        return bytes(file.read(int(headers.get("Content-Length", 0))))
    found = b""
    while size := int(file.readline().split(b";")[0], 16):
        found += file.read(size)
        file.readline()
    file.readline()
    return found


def answer_of_upload(
    hub: Any, method: str, path: str, body: bytes, repository_of: Callable[[str], Repository]
) -> Answer | None:
    """Return the answer to a request that is part of an upload; None for any other."""
    if method == "PUT" and (found := _STORE.fullmatch(path)):
        if hashlib.sha256(body).hexdigest() != found["oid"]:
            return 400, ("BadDigest", "The bytes are not those that were announced.")
        hub.stored[found["oid"]] = body
        return 200, {}
    if method == "POST" and (found := _BATCH.fullmatch(path)):
        repository_of(found["repo"])
        objects = [_action(hub, one) for one in json.loads(body)["objects"]]
        return 200, {"transfer": "basic", "objects": objects}
    if not (found := _WRITE.fullmatch(path)):
        return None
    repository = repository_of(found["repo"])
    if repository.read_only:
        return 403, ("Forbidden", "You don't have the right to write to this repository.")
    if found["what"] == "preupload":
        return 200, {"files": [_mode(one) for one in json.loads(body)["files"]]}
    if found["what"] == "commit":
        return _commit(hub, repository, unquote(found["rev"] or "main"), [*map(json.loads, body.splitlines())])
    return 200, {}


def _mode(row: dict[str, Any]) -> dict[str, Any]:
    mode = "lfs" if row["size"] >= LFS_FROM else "regular"
    return {"path": row["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}


def _action(hub: Any, row: dict[str, Any]) -> dict[str, Any]:
    known = {"oid": row["oid"], "size": row["size"]}
    return (
        known if row["oid"] in hub.stored else known | {"actions": {"upload": {"href": f"{hub.url}/lfs/{row['oid']}"}}}
    )


def _commit(hub: Any, repository: Repository, branch: str, rows: list[dict[str, Any]]) -> Answer:
    """Make a commit of all that is said, or of nothing."""
    if branch not in repository.branches:
        return 404, ("RevisionNotFound", f"Invalid rev id: {branch}")
    parent, (head, *changes) = repository.branches[branch], rows
    if head["value"].get("parentCommit", parent) != parent:
        return 412, ("PreconditionFailed", "A commit has happened since. Please refresh and try again.")
    files = dict(repository.commits[parent])
    for value, key in ((row["value"], row["key"]) for row in changes):
        if key == "file":
            files[value["path"]] = Stored(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in hub.stored:
                return 400, ("LfsObjectMissing", f"The LFS object of {value['path']} was not uploaded.")
            files[value["path"]] = Stored(hub.stored[value["oid"]], lfs=True)
        elif key == "deletedFile":
            del files[value["path"]]
    name = repository.add(files, branch)
    return 200, {"commitUrl": f"{hub.url}/{repository.name}/commit/{name}", "commitOid": name}
