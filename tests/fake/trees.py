"""Entries of listings as the APIs show them, and regular trees, which are computed from the path."""

import json
from typing import Any, NamedTuple
from zlib import crc32

Listed = dict[str, Any]  # an entry as the API shows it


def dbfs_file(path: str, size: Any, modification_time: Any = 1_700_000_000_000) -> Listed:
    return {"path": path, "is_dir": False, "file_size": size, "modification_time": modification_time}


def dbfs_directory(path: str) -> Listed:
    return {"path": path, "is_dir": True, "file_size": 0, "modification_time": 1_700_000_000_000}


def workspace_object(path: str, object_type: Any = "NOTEBOOK", **more: Any) -> Listed:
    """object_type None leaves the type out. No size, a language for notebooks only, times for files only."""
    number = crc32(path.encode(errors="surrogatepass"))
    result: Listed = {"path": path, "object_id": number, "resource_id": str(number)}
    if object_type:
        result["object_type"] = object_type
    if object_type == "NOTEBOOK":
        result["language"] = ("PYTHON", "SQL", "SCALA", "R")[number % 4]
    if object_type == "FILE":
        result["created_at"] = result["modified_at"] = 1_700_000_000_000 + number % 1_000_000
    return {**result, **more}


def encode(value: Any) -> bytes:
    """JSON as the service sends it: UTF-8, nothing escaped that need not be."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


FILES_PER_DIRECTORY = (3, 0, 0, 1, 2, 5, 8, 30)
OBJECT_TYPES = ("NOTEBOOK",) * 6 + ("FILE",) * 5 + ("LIBRARY", "DASHBOARD")


class RegularTree(NamedTuple):
    """Directory k has the children 10 * k + 1 to 10 * k + 10, as far as they exist.

    files: of each directory; None for now this many, now that many, and objects without a type among them.
    """

    file_system: str
    directories: int
    files: int | None
    salt: int

    def number(self, below: str) -> int | None:
        """Which directory a path below the home is, or None when there is no such one."""
        number = 0
        for name in below.split("/")[1:]:
            if len(name) != 2 or name[0] != "d" or name[1] not in "0123456789":
                return None
            number = 10 * number + int(name[1]) + 1
        return number if number < self.directories else None

    def folder(self, path: str, number: int) -> Listed:
        if self.file_system == "dbfs":
            return dbfs_directory(path)
        return workspace_object(path, "DIRECTORY" if self.files is not None or number % 15 else "REPO")

    def file(self, path: str, number: int) -> Listed:
        """Sizes in DBFS are of any magnitude below 5 GB; one of twenty has no time."""
        if self.file_system == "workspace":
            object_types = OBJECT_TYPES if self.files is not None else (*OBJECT_TYPES, None)
            return workspace_object(path, object_types[number % len(object_types)])
        size = (self.salt + number * 2_654_435_761) % 5_000_000_000 >> 4 * (number % 8)
        entry = dbfs_file(path, size, 1_600_000_000_000 + number)
        if number % 20 == 0:
            del entry["modification_time"]
        return entry

    def listing(self, path: str, below: str) -> list[Listed] | None:
        """The entries of a directory of the tree, or None."""
        number = self.number(below)
        if number is None:
            return None
        first = 10 * number + 1
        children = range(first, min(first + 10, self.directories))
        files = FILES_PER_DIRECTORY[number and (number + self.salt) % 8] if self.files is None else self.files
        return [self.folder(f"{path}/d{child - first}", child) for child in children] + [
            self.file(f"{path}/f{at}", 1 + number * (self.files or 30) + at) for at in range(files)]  # fmt: skip
