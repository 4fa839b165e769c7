"""The fake workspace answers what it says is the truth; all through real HTTP."""

import requests

from tests.fake import FakeDatabricks, dbfs_directory, dbfs_file, take_token, workspace_object

URLS = {"dbfs": ("/api/2.0/dbfs/list", "files"), "workspace": ("/api/2.0/workspace/list", "objects")}


def is_folder(entry):
    return entry.get("is_dir") or entry.get("object_type") in ("DIRECTORY", "REPO")


def walk(server, file_system, home):
    """The number of directories from a home on, and what else lies there; what is not there counts as nothing."""
    url, key = URLS[file_system]
    found, directories, waiting, session = [], 0, [home], requests.Session()
    session.headers["Authorization"] = f"Bearer {server.settings.token}"
    while waiting:
        path = waiting.pop()
        answer = session.get(server.url + url, params={"path": path}, timeout=5)
        if answer.status_code == 404:
            continue
        entries = answer.json().get(key, [])
        assert all(entry["path"].startswith(path + "/") for entry in entries)
        found += [entry for entry in entries if not is_folder(entry)]
        waiting += [entry["path"] for entry in entries if is_folder(entry)]
        directories += 1
    session.close()
    return directories, found


def test_the_truth_is_what_a_walk_finds():
    with FakeDatabricks(users=8, shape="small", shapes={1: "dbfs", 2: "workspace", 3: "bench", 4: "empty"}) as server:
        gone = {"/Users/a": [dbfs_directory("/Users/a/gone"), dbfs_file("/Users/a/f", 2**33)]}
        server.add_user("a", shape="none")
        server.add_tree("dbfs", gone)
        server.add_tree("workspace", {"/Users/a": [workspace_object("/Users/a/x", None)]})
        for name in server.user_names:
            truth = server.truth(name)
            directories, files = walk(server, "dbfs", f"/Users/{name}")
            assert truth.dbfs.bytes == sum(entry["file_size"] for entry in files)
            assert (truth.dbfs.directories, truth.dbfs.files) == (directories, len(files))
            directories, objects = walk(server, "workspace", f"/Users/{name}")
            assert (truth.workspace.directories, truth.workspace.files) == (directories, len(objects))
            assert truth.total_size == truth.dbfs.bytes + 10_000 * len(objects)
    assert max(server.requests.values()) == 1


def test_a_token_bucket_holds_one_second():
    bucket = [10, 0.0]
    assert [take_token(bucket, 10, 0.0) for _ in range(11)] == [True] * 10 + [False]
    assert [take_token(bucket, 10, now) for now in (0.05, 0.11)] == [False, True]
    assert [take_token([0.0, 0.5], 10, now, windows=True) for now in (0.99, 1.01)] == [False, True]
    assert [take_token(bucket, 10, 60.0) for _ in range(11)].count(True) == 10
