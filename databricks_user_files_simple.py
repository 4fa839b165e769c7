#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["requests>=2.28.0", "tqdm"]
# ///
"""Inventory of what every user of a Databricks workspace stores in DBFS and in the Workspace.

Step 2 of two: walks dbfs:/Users/<user> and /Users/<user> of each user, adds both up and writes one CSV row per user.
Every finished user is saved to a checkpoint, and --resume goes on from there. As a command: see --help; in a notebook
the same is user_files(["--users-file", "users.csv"], spark=spark). From Python, as from a notebook:
scan_users(usernames, load_databricks_config()) yields a UserResult for each user;
process_user_batch_parallel(spark, ...) does the same with the workers of a Spark session beside this process.

File systems, Records and Listings tell what an answer says, and Homes whose it is. Pace, Frontier and tally find what
is asked next; the Crawler alone judges what comes back, and a Cluster is further hands of it. Journal and Checkpoint
save what is done; From Python, Results, Report and Command hand it out.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import gzip
import heapq
import io
import itertools
import json
import math
import os
import queue
import re
import socket
import sys
import tempfile
import threading
import time
import warnings
import zlib
from base64 import b64decode, b64encode
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import partial
from html import escape
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import IO, Any, Literal, NamedTuple, TextIO
from urllib.parse import urlsplit

if "DatabricksClient" not in globals():  # else step 1 was pasted into the notebook before
    # As a job's script task, or with PYTHONSAFEPATH, this file's folder is not on the path; only the code knows it.
    sys.path.append(os.path.dirname(os.path.realpath(sys._getframe().f_code.co_filename)))
    if find_spec("databricks_user_list") is None:
        print("databricks_user_list.py has to lie beside this file, or be pasted first", file=sys.stderr)
        raise SystemExit(2)
    from databricks_user_list import (  # isort: skip
        CONNECT_SECONDS, FORMULA_STARTS, GZIP_MAGIC, ON_WINDOWS, RETRIES, VERSION, DatabricksClient, DatabricksConfig,
        DatabricksError, InventoryError, MalformedAnswer, Parser, Returned, add_login_options, check_names,
        check_output, check_username, counted, csv_cell, csv_row, decode_body, in_thread, lasting, list_users, log_in,
        logger, one_line, parse_record, place_of, rename, retry_after_seconds, retry_wait, run_as_script, run_command,
        run_error, safe_cell, shown, tell, whole_number, write_all, write_output,
    )  # fmt: skip

import requests

# --- Constants ------------------------------------------------------------------------------------------------------

LISTED_TYPES = ("DIRECTORY", "REPO", "UNKNOWN")  # are listed in turn; what has no type may be a folder
YEAR_3000 = 32_503_680_000_000  # ms; later times are none that every system knows
WORKSPACE_OBJECT_SIZE = 10_000  # bytes; an estimate for what workspace/list gives no size of, which is the rule
MOST_WAITING = 1_000_000  # directories to be listed, of one file system: about 300 MB
FIRST_RATE, LOWEST_RATE = 20.0, 1.0  # requests/s; the former after the first 429, unless more was just being achieved
GROWTH, MOST_GROWTH = 0.0005, 0.1  # of the rate, and requests/s, with each success: of about 50 answers one is a 429
QUIET_GROWTH = 0.15  # requests/s, where there was no 429 for QUIET_SECONDS and for as long as QUIET_REQUESTS take
QUIET_SECONDS, QUIET_REQUESTS, RECENT_SECONDS = 3.0, 50, 3.0
LATE_SECONDS = 0.05  # by which a thread may wake up late, and make up for it
FIRST_REST, LONGEST_REST = 0.1, 3.0  # seconds after the second 429 in a row, two requests at least; doubled with each
UNPACED_RATE = 1000.0  # requests/s, from which on there is no delay
LONGEST_ROW = 10  # of failures, or of refusals, of one API
LONGEST_OUTAGE = 15 * 60.0  # seconds
FIRST_QUESTION, LAST_QUESTION = 2.0, 60.0  # seconds until an API that pauses is asked whether it is there; they double
LONGEST_WAIT = 0.2  # seconds that the gathering thread waits for an answer: no signal comes through then (Windows)
DEFAULT_THREADS, MOST_THREADS, MOST_RATE = 16, 64, 1000  # of --threads and --rate
SPARE_DESCRIPTORS = 32  # for outputs, checkpoint, lookups and a cluster
MOST_LOOKS = 5  # second listings of a directory that each find what is gone when it is asked for
OPEN_USERS = 500  # scanned at the same time at most: bounds the memory
CHECKPOINT_FILE = ".checkpoint_progress.json"
SYNC_SECONDS = 1.0
LONGEST_PROGRESS = 7 * 86_400.0  # seconds from a user's first listing, until the whole is too old to go on with
# Batches for a cluster. A Spark query costs about 0.1 s beyond its requests.
CLUSTER_DELAY = 2.0  # seconds from the start; most runs on a few users end before, and pyspark takes a second to import
SMALLEST_BATCH, LARGEST_BATCH = 8, 128  # directories; narrow trees have no more ready
BATCH_SECONDS, FIRST_BATCH_SECONDS = 2.0, 0.5  # of asking; the latter until a pace is known, or every slot tried
GRACE_SECONDS, OVERDUE_SECONDS = 5.0, 10.0  # after its time: a worker waits no longer, a batch is listed here
LOWEST_BATCH_RATE = 5.0  # requests/s of an API: less is better kept here
FIRST_BATCHES = 4  # at the same time
MOST_IN_FLIGHT = 256  # requests, over all hands
LARGEST_BODIES, LARGEST_REPORT = 8 * 1024**2, 64 * 1024**2  # bytes: bodies in a report, and the whole report unzipped
WORKER_FAILURES = 3  # in a row, after which a worker asks an API nothing more
LOST_BATCHES = 3  # that fail in a row, at least, until the cluster is left alone
PROBES, PROBE_SECONDS = 3, 2.0
MOST_SLOTS = 1000  # rows of the probe's table, which has a partition for each slot
CANCEL_SECONDS, CLOSE_SECONDS = 1.0, 0.3  # for ending what is under way, of the 2 s in which an interrupted run ends
SPARK_START_SECONDS, SPARK_RETRIES = 300.0, 5  # for session and first workers; 17 s in all, by pyspark's own waits
PROGRESS_SECONDS, BAR_SECONDS = 30.0, 1.0  # between two lines on progress, and two changes of the bar's text
BIGGEST_USERS, SHOWN_FAILURES = 10, 5  # in the closing summary
LARGEST = 20  # rows of a group that are known by name
EVERYBODY, UNTOUCHED = "The largest", "Homes in DBFS without a file younger than a year"
KINDS = ("nobody", "service principals", "deactivated users")  # whose a home is, where it is no active user's
MOST_COMPARED, COMPARE_SECONDS = 20, 1.0  # names that nobody has, for which the most similar home is looked for
STATUSES = ("success", "empty", "partial", "error")
USERS_FOLDER = "/Users"  # of both file systems, with everybody's home
APPLICATION_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.I)  # names a service principal, no user
NOT_READABLE = "not found, or not readable with this token"
NOT_LISTED = "not found in this spelling, and /Users cannot be listed"
NOT_TOLD = "its name has a / in it: the API cannot be asked for it, or it may lie in another directory"
NO_USER = "no user of this workspace has this name"
NOT_CLEAR = "different entries of one listing have this path: which counts is not clear"
CSV_COLUMNS = ("username", "file_count", "total_size", "total_size_gb", "status", "file_source", "error")
FILE_COLUMNS = ("username", "file_system", "path", "object_type", "language", "object_id", "size", "modified")
NAME_COLUMNS = ("username", "user_name", "userPrincipalName", "email")  # of a users file, in any letter case


# --- File systems ---------------------------------------------------------------------------------------------------


class FileEntry(NamedTuple):
    """An entry of a listing; None, or no language, where the API does not tell. `modified` is in ms since 1970."""

    path: str
    object_type: str
    language: str
    object_id: int | None
    size: int | None
    modified: int | None


def parse_dbfs_entry(path: str, fields: dict[str, Any]) -> FileEntry:
    """Fields: DbfsService.list of databricks-sdk. Raises MalformedAnswer."""
    is_directory, modified = fields.get("is_dir", False), whole_or_none(fields.get("modification_time"))
    if is_directory is True:
        return FileEntry(path, "DIRECTORY", "", None, None, modified)
    size = whole_or_none(fields.get("file_size"))
    if is_directory is not False or size is None:
        raise MalformedAnswer("the listing has a file without a size")
    return FileEntry(path, "FILE", "", None, size, modified)


def parse_workspace_entry(path: str, fields: dict[str, Any]) -> FileEntry:
    """Fields: WorkspaceService.list of databricks-sdk. Raises MalformedAnswer."""
    object_type = fields.get("object_type") or "UNKNOWN"
    if not isinstance(object_type, str):
        raise MalformedAnswer("the listing has an object_type that is no text")
    language = fields.get("language")
    numbers = [whole_or_none(fields.get(key)) for key in ("object_id", "size", "modified_at")]
    return FileEntry(path, object_type, language if isinstance(language, str) else "", *numbers)


def whole_or_none(value: Any) -> int | None:
    """A number of bytes or milliseconds as it should be, None for anything else."""
    return value if type(value) is int and 0 <= value < 2**63 else None


class FileSystem(NamedTuple):
    """What is told of a file system beside its name."""

    label: str
    in_words: str
    list_path: str
    key: str  # of the entries in an answer
    parse_entry: Callable[[str, dict[str, Any]], FileEntry]
    # /Users has everybody's home, and is not there (404) where nobody has one; else it has what the caller may see.
    shows_all: bool = False


FILE_SYSTEMS = {
    "dbfs": FileSystem("DBFS", "DBFS", "/api/2.0/dbfs/list", "files", parse_dbfs_entry, True),
    "workspace": FileSystem("Workspace", "the Workspace", "/api/2.0/workspace/list", "objects", parse_workspace_entry),
}


# --- Records --------------------------------------------------------------------------------------------------------


@dataclass
class FileSystemTotals:
    """What one user has in one file system."""

    files: int = 0
    bytes: int = 0  # WORKSPACE_OBJECT_SIZE for each of the `estimated` files
    directories: int = 0  # that were listed
    types: dict[str, int] = field(default_factory=Counter)  # of entries, by object_type; notebooks as `NOTEBOOK SQL`
    failures: list[dict[str, str]] = field(default_factory=list)  # path and error of what is missing, with all below it
    last_modified: str = ""  # of the newest file of which the API tells it: UTC, ISO 8601
    estimated: int = 0  # files of which the API gives no size

    def merge(self, other: FileSystemTotals) -> None:
        self.add(other)
        self.directories += other.directories
        self.last_modified = max(self.last_modified, other.last_modified)
        self.failures += other.failures

    def add(self, other: FileSystemTotals) -> None:
        """The counts alone."""
        self.files += other.files
        self.bytes += other.bytes
        self.estimated += other.estimated
        for object_type, count in other.types.items():
            self.types[object_type] = self.types.get(object_type, 0) + count

    @property
    def estimated_bytes(self) -> int:
        return self.estimated * WORKSPACE_OBJECT_SIZE

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> FileSystemTotals:
        """Of its fields. Raises ValueError, TypeError, KeyError or AttributeError for anything else."""
        totals = cls(**record)
        counts = [totals.files, totals.bytes, totals.estimated, totals.directories, *totals.types.values()]
        if record.keys() != vars(totals).keys() or not all(type(count) is int for count in counts):
            raise ValueError("not the fields of totals")
        return totals


def iso_time(moment: int) -> str:
    """Of milliseconds since 1970, in UTC; empty for 0, and from the year 3000 on."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment // 1000)) if 0 < moment < YEAR_3000 else ""


@dataclass(frozen=True)
class UserResult:
    """One user's inventory; file_count and total_size (bytes) are of what could be listed: see `status`."""

    username: str
    scanned_at: str  # UTC, ISO 8601
    dbfs: FileSystemTotals | None = None  # None where it was not scanned
    workspace: FileSystemTotals | None = None
    homes: dict[str, str | None] = field(default_factory=dict)  # paths by file system; None where none was found
    scan: str = ""  # an id that no other scan has, of this or another user
    admin: bool = True  # whether the login was an admin's; others may not see all
    certain: bool = True  # or there is no home, and nobody could tell whether anybody has this name

    @property
    def scanned(self) -> dict[str, FileSystemTotals]:
        return {name: getattr(self, name) for name in FILE_SYSTEMS if getattr(self, name) is not None}

    @property
    def file_count(self) -> int:
        return sum(totals.files for totals in self.scanned.values())

    @property
    def total_size(self) -> int:
        return sum(totals.bytes for totals in self.scanned.values())

    @property
    def status(self) -> str:
        failed = any(totals.failures for totals in self.scanned.values())
        listed = any(totals.directories + totals.files for totals in self.scanned.values())
        if failed:
            return "partial" if listed else "error"
        return "success" if self.file_count else "empty"

    @property
    def file_source(self) -> str:
        found = [name for name, totals in self.scanned.items() if totals.files] or ["none"]
        return "both" if len(found) == 2 else found[0]

    @property
    def unknown(self) -> bool:
        """Whether nobody has this name: another scan would not find more."""
        return any(at["error"].startswith(NO_USER) for totals in self.scanned.values() for at in totals.failures)

    @property
    def error(self) -> str:
        """The first failure by file system and path, and how many more there are."""
        failures = [(name, at) for name, totals in self.scanned.items() for at in totals.failures]
        if not failures:
            return ""
        name, first = min(failures, key=lambda failure: (failure[0], failure[1]["path"], failure[1]["error"]))
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        return one_line(f"{name}:{first['path']}: {first['error']}", 2000) + more

    @property
    def total_size_gb(self) -> str:
        return f"{self.total_size / 1024**3:.4f}"

    def row(self) -> dict[str, Any]:
        """The columns of the inventory CSV, in their order."""
        return {name: getattr(self, name) for name in CSV_COLUMNS}

    def as_dict(self) -> dict[str, Any]:
        head: dict[str, Any] = {key: getattr(self, key) for key in ("username", "scanned_at", "status", "scan")}
        head |= {key: False for key in ("admin", "certain") if not getattr(self, key)}
        return head | {name: dict(vars(totals)) for name, totals in self.scanned.items()} | {"homes": self.homes}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> UserResult:
        """The reverse of as_dict(). Raises ValueError, TypeError, KeyError or AttributeError, also for further keys."""
        fields = {key: record[key] for key in record if key != "status"} | {"homes": dict(record["homes"])}
        fields |= {name: FileSystemTotals.from_dict(record[name]) for name in FILE_SYSTEMS if name in record}
        result = cls(**fields)
        if result.row()["status"] != record["status"]:  # row() reads the failures, too
            raise ValueError("the status is not that of the counts and failures")
        return result


# --- Listings -------------------------------------------------------------------------------------------------------


@dataclass
class Listing:
    """What lies directly in one directory: files, directories to be listed in turn, and what it adds to the totals."""

    files: list[FileEntry] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)
    totals: FileSystemTotals = field(default_factory=lambda: FileSystemTotals(directories=1))

    @property
    def paths(self) -> set[str]:
        return {*self.directories, *(entry.path for entry in self.files)}

    def add_file(self, entry: FileEntry) -> None:
        self.files.append(entry)
        self.totals.files += 1
        self.totals.bytes += WORKSPACE_OBJECT_SIZE if entry.size is None else entry.size
        self.totals.estimated += entry.size is None
        self.totals.types[f"{entry.object_type} {entry.language}" if entry.language else entry.object_type] += 1


def parse_listing(file_system: str, path: str, body: Any) -> Listing:
    """The decoded answer as the listing of `path`. Raises MalformedAnswer if it is not that."""
    entries = parse_entries(FILE_SYSTEMS[file_system], body)
    listing = Listing()
    if len(entries) == 1 and entries[0].path == path and entries[0].object_type not in ("DIRECTORY", "REPO"):
        listing.totals.directories = 0  # a file that was listed returns itself
        listing.add_file(entries[0])
    else:
        add_entries(listing, path, [entry for entry in entries if not is_itself(entry, path)])
    times = [entry.modified for entry in listing.files if entry.modified and entry.modified < YEAR_3000]
    listing.totals.last_modified = iso_time(max(times, default=0))
    return listing


def add_entries(listing: Listing, path: str, entries: list[FileEntry]) -> None:
    """Puts entries into the listing of `path`; of different ones with one path neither counts."""
    prefix = path.rstrip("/") + "/"
    times = Counter(entry.path for entry in entries)
    unclear = {entry.path for entry in entries if times[entry.path] > 1 or entry.path == path}
    directories = {entry.path for entry in entries if entry.object_type in LISTED_TYPES}
    odd = 0
    for entry in entries:
        name = entry.path.removeprefix(prefix)
        if name == entry.path != path:
            raise MalformedAnswer(f"the listing has an entry that does not lie in it: {one_line(entry.path, 200)}")
        if entry.path in unclear:
            continue
        # An old fault of the web page made names with a / in them: such a file counts, unless it may lie in a directory
        # of this listing; such a folder cannot be asked for.
        first, slash, _ = name.partition("/")
        is_odd = bool(slash) or name in ("", ".", "..")
        odd += is_odd
        in_another = not slash or first in (".", "..") or prefix + first in directories
        if is_odd and (in_another or entry.path in directories):
            listing.totals.failures.append({"path": entry.path, "error": NOT_TOLD})
        elif entry.path in directories:
            listing.directories.append(entry.path)
            if entry.object_type != "UNKNOWN":  # else it counts when it has been listed
                listing.totals.types[entry.object_type] += 1
        else:
            listing.add_file(entry)
    if len(entries) > 1 and odd == len(entries):
        raise MalformedAnswer("the listing has no entry that lies directly in it")
    listing.totals.failures += [{"path": at, "error": NOT_CLEAR} for at in sorted(unclear)]


def parse_entries(file_system: FileSystem, body: Any) -> list[FileEntry]:
    """Those of an answer, equal ones once. Raises MalformedAnswer if it is no listing."""
    if not isinstance(body, dict) or body.get("next_page_token"):
        raise MalformedAnswer("the answer is not a whole listing")
    found = body.get(file_system.key, [] if not body else "")
    if not isinstance(found, list) and found is not None:  # null is how Go writes an empty list
        raise MalformedAnswer("the answer is not a listing")
    entries: dict[FileEntry, None] = {}
    for fields in found or ():
        path = fields.get("path") if isinstance(fields, dict) else None
        if not isinstance(path, str):
            raise MalformedAnswer("the listing has an entry without a path")
        entries[file_system.parse_entry(path, fields)] = None
    return list(entries)


def is_itself(entry: FileEntry, path: str) -> bool:
    """Whether the entry is the listed directory, which object stores list among its own, as an empty file, too."""
    return entry.path.rstrip("/") == path.rstrip("/") and (entry.object_type in LISTED_TYPES or entry.size == 0)


# --- Homes ----------------------------------------------------------------------------------------------------------


class Home(NamedTuple):
    """Where a user's files lie in one file system, as far as /Users tells; nowhere, unless more is said."""

    path: str | None = None
    is_listed: bool = False  # in /Users
    if_404: str = ""  # what a 404 of the path means; "" that there is no home
    problem: str = ""  # why nobody can tell which home it is, where there is no path

    @classmethod
    def listed(cls, name: str) -> Home:
        return cls(f"{USERS_FOLDER}/{name}", True, NOT_READABLE)


class UsersFolder(NamedTuple):
    """The names in /Users of a file system, and whether these are all: else some may be missing, or nobody knows."""

    names: frozenset[str]
    state: Literal["whole", "doubtful", "not listed"]


Homes = dict[str, dict[str, Home]]  # by name and file system
Folders = dict[str, UsersFolder]  # by file system


def look_around(client: DatabricksClient, file_systems: tuple[str, ...]) -> tuple[Folders, bool]:
    """What is asked before the first user: /Users of each file system, twice, and whether the caller is an admin."""
    me = ask(client, "/api/2.0/preview/scim/v2/Me", {}, parse_record)
    logger.info("listing /Users for everybody's home, which may take minutes where there are very many")
    answers: dict[str, list[Listing | DatabricksError]] = {}
    for name in file_systems:
        parse = partial(parse_listing, name, USERS_FOLDER)
        answers[name] = [ask(client, FILE_SYSTEMS[name].list_path, {"path": USERS_FOLDER}, parse) for _ in range(2)]
    kinds = {name: [getattr(answer, "kind", "") for answer in pair] for name, pair in answers.items()}
    no_homes = kinds == {"dbfs": ["not found", "not found"]}
    if isinstance(me, DatabricksError) and all(map(all, kinds.values())) and not no_homes:
        raise run_error(me, client.config) from me
    if kinds.get("dbfs") == ["dbfs disabled", "dbfs disabled"]:
        error = answers.pop("dbfs")[0]
        if not answers:
            raise InventoryError(f"there is no DBFS to scan in this workspace: {error}")
        logger.warning("DBFS is left out for all users: %s", error)
    groups = me.get("groups") if isinstance(me, dict) else None  # SCIM leaves out empty lists
    admin = isinstance(groups, list) and any(isinstance(at, dict) and at.get("display") == "admins" for at in groups)
    if not admin:
        warning = "this login is not in the group admins"
        if isinstance(me, DatabricksError):
            warning = f"whether this login is in the group admins could not be found out ({one_line(str(me), 70)})"
        logger.warning("%s: the inventory may miss other users' homes", warning)
    return {name: read_users_folder(name, pair) for name, pair in answers.items()}, admin


def ask(client: DatabricksClient, api_path: str, params: dict[str, Any], parse: Callable[[Any], Returned]) -> Any:
    """What is answered, or the DatabricksError. Raises InventoryError where nothing is, or the login is refused."""
    try:
        return client.get(api_path, params, parse)
    except DatabricksError as error:
        if error.kind == "login" or not client.reached:
            raise run_error(error, client.config) from error
        return error


def read_users_folder(file_system: str, answers: list[Listing | DatabricksError]) -> UsersFolder:
    """What two listings of /Users tell together. One that is short twice in the same way is believed."""
    listings = [answer for answer in answers if isinstance(answer, Listing)]
    errors = [answer for answer in answers if isinstance(answer, DatabricksError)]
    if FILE_SYSTEMS[file_system].shows_all and [error.kind for error in errors] == ["not found", "not found"]:
        return UsersFolder(frozenset(), "whole")
    if not listings:
        told = "%s:/Users cannot be listed, homes in other letter case are not found: %s"
        logger.warning(told, file_system, errors[0])
        return UsersFolder(frozenset(), "not listed")
    found = [{path.removeprefix(f"{USERS_FOLDER}/") for path in each.paths} for each in listings]  # files, too
    names = frozenset().union(*found)
    odd = any(listing.totals.failures for listing in listings) or any("/" in name for name in names)
    nothing = FILE_SYSTEMS[file_system].shows_all and not names  # `{}`: where nobody has a home, DBFS answers 404
    whole = len(found) == 2 and found[0] == found[1] and not odd and not nothing
    return UsersFolder(frozenset(name for name in names if "/" not in name), "whole" if whole else "doubtful")


def assign_homes(usernames: Iterable[str], folders: Folders, admin: bool) -> tuple[Homes, dict[str, set[str]]]:
    """The home of each user in each file system, and the names of the homes that are nobody's."""
    names = dict.fromkeys(usernames)
    homes: Homes = {name: {} for name in names}
    nobodys = {}
    for file_system, folder in folders.items():
        # In other letter case only where one home and one name are alike; in the Workspace for admins alone: others may
        # not be shown the very one.
        use_case = admin or FILE_SYSTEMS[file_system].shows_all
        same_names = group_alike(names.keys() - folder.names)
        same_homes = group_alike(folder.names - names.keys())
        for name in names:
            alike = same_homes.get(name.lower(), [])
            if name in folder.names or not alike or not use_case:
                home = home_of_exactly(name, file_system, folder, admin)
            elif len(alike) == len(same_names[name.lower()]) == 1:
                home = Home.listed(alike[0])
            else:
                texts = ", ".join(same_names[name.lower()]), ", ".join(alike)
                home = Home(problem="the names {} and the homes {} differ in letter case alone".format(*texts))
            homes[name][file_system] = home
        taken = {home[file_system].path for home in homes.values()}
        nobodys[file_system] = {name for name in folder.names if f"{USERS_FOLDER}/{name}" not in taken}
    return homes, nobodys


def group_alike(names: Iterable[str]) -> dict[str, list[str]]:
    """The names by their form in lower case, each group sorted."""
    in_order = sorted(sorted(names), key=str.lower)
    return {lower: list(alike) for lower, alike in itertools.groupby(in_order, str.lower)}


def home_of_exactly(name: str, file_system: str, folder: UsersFolder, admin: bool) -> Home:
    """The home of that very name: whether it is asked for, and what it means if it is not there."""
    path = f"{USERS_FOLDER}/{name}"
    if name in folder.names:
        return Home.listed(name)
    if folder.state == "not listed":
        return Home(path, if_404=NOT_LISTED)
    if FILE_SYSTEMS[file_system].shows_all:
        return Home() if folder.state == "whole" else Home(path)
    return Home(path, if_404="" if admin else NOT_READABLE)


def nobodys_homes(folders: Folders, nobodys: dict[str, set[str]]) -> Homes:
    """The homes of nobody by their names, sorted. Raises InventoryError where there may be further ones."""
    for file_system, folder in folders.items():
        if folder.state != "whole":
            others = [f"--{name}-only" for name in FILE_SYSTEMS if name != file_system]
            reason = f"{file_system}:/Users could not be listed twice alike, or is empty, which is not believed of DBFS"
            raise InventoryError(f"{reason}: --all-homes may miss some; run it again, or with {' or '.join(others)}")
    every = sorted(set().union(*nobodys.values()))
    return {name: {at: Home.listed(name) if name in has else Home() for at, has in nobodys.items()} for name in every}


def find_unknown(client: DatabricksClient, homes: Homes, folders: Folders) -> dict[str, str]:
    """The names that neither a user of the workspace nor a home has, and what their rows say if no home is found.

    Where nobody can tell, these are all names without a home in /Users, and the rows say nothing.
    """
    there = {name.lower(): name for folder in folders.values() for name in folder.names}
    names = [name for name in homes if name.lower() not in there and not APPLICATION_ID.fullmatch(name)]
    if not names:
        return {}
    logger.info("looking among the workspace's users for %s without a home", counted(len(names), "name"))
    users = known_users(client)
    if users is None:
        return dict.fromkeys(names, "")
    unknown = [name for name in names if name.lower() not in users]
    if all(folder.state == "whole" for folder in folders.values()):
        for name in unknown:
            homes[name] = dict.fromkeys(folders, Home())  # nothing is asked for
    error = f"{NO_USER}, and no home in {' or '.join(FILE_SYSTEMS[name].in_words for name in folders)}"
    spoilt = "; did PowerShell's > write the users file? Save it as UTF-8"
    errors = {name: error + (spoilt if re.search("[?\ufffd\u2500-\u257f]", name) else "") for name in unknown}
    compared = {home.partition("@")[0]: home for home in there.values()}
    until = client.clock() + COMPARE_SECONDS
    for name in unknown[:MOST_COMPARED]:
        candidates = itertools.takewhile(lambda _: client.clock() < until, compared)
        for similar in difflib.get_close_matches(name.partition("@")[0], candidates, 1):
            errors[name] += f"; the most similar one that has a home is {compared[similar]}"
    return errors


def known_users(client: DatabricksClient) -> frozenset[str] | None:
    """Names of the workspace's users in lower case, asked for once; None, with a warning, where not all can be had."""
    if "users" not in client.noted:
        client.noted["users"] = None
        try:
            rows, missing = list_users(client)
            names = frozenset(row["username"].lower() for row in rows)
            reason = "some are missing" if missing else "not all are shown" if "" in names else ""
        except (DatabricksError, InventoryError) as error:
            if isinstance(error, DatabricksError) and error.kind == "login":
                raise run_error(error, client.config) from error
            reason = str(error)
        if reason:
            told = "it cannot be told which names are no user's (%s): such a row may be empty, and look right"
            logger.warning(told, one_line(reason, 90))
        else:
            client.noted["users"] = names
    return client.noted["users"]


def whose(client: DatabricksClient, homes: Homes) -> dict[str, str]:
    """The names of those homes, which nobody asked for, that are no user's, and which of KINDS they are."""
    users = known_users(client)
    nobodys = {name: "nobody" for name in homes if users is not None and name.lower() not in users}
    return nobodys | {name: "service principals" for name in homes if APPLICATION_ID.fullmatch(name)}


def tell_unknown(result: UserResult, unknown: dict[str, str]) -> UserResult:
    """Without a home, the row of a name that nobody has is a failure; where nobody can tell, it is not certain."""
    if result.username not in unknown or result.status != "empty" or any(result.homes.values()):
        return result
    if not unknown[result.username]:
        return UserResult(**vars(result) | {"certain": False})
    failure = {"path": f"{USERS_FOLDER}/{result.username}", "error": unknown[result.username]}
    next(iter(result.scanned.values())).failures.append(failure)
    return result


def has_homes(kept: dict[str, str | None], homes: dict[str, Home]) -> bool:
    """Whether a user who was scanned with the homes `kept`, None where none was found, would get the same ones now."""
    return kept.keys() == homes.keys() and all(
        not home.problem  # and none that is gone: what was in it may be in another user's home by now
        and (not home.is_listed if path is None else path == home.path and (home.is_listed or home.if_404))
        for path, home in ((kept[name], homes[name]) for name in homes)
    )


# --- Pace -----------------------------------------------------------------------------------------------------------


def next_rate(rate: float, limited: bool, achieved: float, row: int, quiet: float) -> float:
    """The pacer's rule, in requests/s (inf: no delay); `row` successes and `quiet` seconds since the last 429.

    A 429 after so many successes says that about one request in so many was too much: the rate falls by that share;
    by less in a row of 429s, which may be the end of a window of time. Each success raises it a little, more where
    there was no 429 for long: the limit is far away then. It grows only while it is what limits: beyond twice of what
    is achieved it would run away.
    """
    reached = max(achieved, FIRST_RATE)
    if limited and rate > 2 * reached:
        return reached
    if limited:
        return max(rate * (1 - 1 / (row + 10 if row else 15)), LOWEST_RATE)
    if rate < 2 * reached:
        is_quiet = quiet > QUIET_SECONDS + QUIET_REQUESTS / rate
        rate += max(min(GROWTH * rate, MOST_GROWTH), QUIET_GROWTH if is_quiet else 0.0)
    return rate if rate < UNPACED_RATE else math.inf


def row_of(error: DatabricksError) -> str:
    """What it may be one more of: `failures` of the API, `refusals` of the login, or "", if it is the directory's."""
    if error.kind in ("too slow", "unexpected", "not found"):
        return ""
    return "failures" if error.kind in RETRIES else "refusals"


class Pacer:
    """When requests to one API may go: spaced while it limits them. In a pause nothing but one question is asked.

    For a long row of failures may be an outage, one of refusals the login's, or the fault of those directories. So that
    which was listed last is asked for once more: if it is listed, it was the others. Only the gathering thread asks
    this. Times are the clock's, in seconds. What workers bring comes late and in lumps, so it counts for the pace
    alone, as of when their batch left.
    """

    def __init__(self, file_system: str, ceiling: float) -> None:
        self.file_system = file_system
        self.ceiling = ceiling  # requests/s
        self.rate = ceiling
        self.lent = 0.0  # of the rate, to batches
        self.listed_last = ""  # the directory of that API which this process listed last
        self.next_at = 0.0
        self.changed_at = -math.inf
        self.succeeded_at = -math.inf
        self.recent: deque[float] = deque()  # successes of the last RECENT_SECONDS
        self.row = 0  # successes since the last 429 that counted
        self.limited_here_at = -math.inf  # the last 429 that this process was answered
        self.rest = 0.0  # seconds, longer with each 429 in a row: a window of time may be used up
        self.rows: Counter[str] = Counter()  # of failures, of refusals: without a listing in between
        self.longest_row = LONGEST_ROW
        self.doubt = ""  # the row for which it pauses
        self.paused_at = 0.0
        self.is_outage = False  # the question was not answered

    def sent(self, now: float) -> None:
        rate = max(self.rate - self.lent, LOWEST_RATE)
        self.next_at = max(self.next_at, now - LATE_SECONDS) + 1 / rate

    def succeeded(self, sent_at: float, now: float) -> None:
        self.succeeded_at = now
        self.rest = 0.0
        self.recent.append(now)
        while self.recent[0] < now - RECENT_SECONDS:
            self.recent.popleft()
        if sent_at > self.changed_at:  # else it says nothing about the rate of now
            self.row += 1
            achieved = len(self.recent) / RECENT_SECONDS
            self.rate = min(next_rate(self.rate, False, achieved, self.row, now - self.changed_at), self.ceiling)

    def limited(self, sent_at: float, now: float) -> bool:
        """Less, after a 429. Returns whether it counts: the last change was for all that had left by then."""
        if self.doubt or sent_at <= self.changed_at:
            return False
        self.rate = next_rate(self.rate, True, self.achieved(), self.row, 0.0)
        self.row = 0
        self.changed_at = now
        self.next_at = now + max(1 / self.rate, self.rest)
        self.rest = min(max(2 * self.rest, FIRST_REST, 2 / self.rate), LONGEST_REST)
        return True

    def achieved(self) -> float:
        """Successes/s of late; of two measures the larger, since a pace that starts too low takes long to find."""
        if not self.recent:
            return 0.0
        last_second = sum(at > self.recent[-1] - 1 for at in self.recent)
        seconds = min(max(self.recent[-1] - self.recent[0], 0.5), 1.0)  # when all has only begun
        return max(len(self.recent) / RECENT_SECONDS, last_second / seconds)

    def listed(self, path: str, now: float) -> None:
        """This process has listed a directory of the frontier: that ends every row."""
        self.listed_last = path
        if self.doubt:
            self.go_on(now)
        self.rows.clear()
        self.longest_row = LONGEST_ROW

    def answered(self, now: float) -> None:
        """Any other answer of the API itself ends a row of failures."""
        self.rows["failures"] = 0
        if self.doubt == "failures":
            self.go_on(now)

    def lengthen(self, row: str, now: float, retry_after: float = 0.0) -> None:
        """One more; a row that is long enough makes it pause for the question."""
        self.rows[row] += 1
        if self.rows[row] >= self.longest_row and not self.doubt:
            self.doubt = row
            self.paused_at = now
            self.next_at = now + max(FIRST_QUESTION, retry_after)

    def unanswered(self, error: DatabricksError, now: float) -> None:
        """The question failed, too: an outage. Raises InventoryError after LONGEST_OUTAGE."""
        if not self.is_outage:
            told = FILE_SYSTEMS[self.file_system].label, self.rows[self.doubt], error
            logger.warning("%s: %d failures in a row, the last: %s. Waiting until the service is back", *told)
            self.is_outage = True
        if now - self.paused_at > LONGEST_OUTAGE:
            raise InventoryError(f"no success for {LONGEST_OUTAGE / 60:.0f} minutes; the last failure: {error}")
        wait = min(now - self.paused_at + FIRST_QUESTION, LAST_QUESTION)  # twice the last one
        self.next_at = now + max(wait, error.retry_after)

    def go_on(self, now: float) -> None:
        """It is there. Until a listing succeeds, the next row has to be twice as long."""
        self.rows[self.doubt] = 0
        self.longest_row *= 2
        self.doubt = ""
        self.is_outage = False
        self.next_at = now


# --- Frontier and tally ---------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Known:
    """What a directory's listing had, kept while anything below it is to be listed: a second one is compared to it."""

    path: str
    parent: Known | None  # None: it is a home
    files: int = 0
    directories: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Directory:
    """A frontier entry: a directory still to be listed for the user of that number. Times are the clock's.

    With `missing` it was listed before: those in it answered 404, and this second listing decides about them.
    """

    user: int
    file_system: str
    path: str
    parent: Known | None = None  # None: it is a home
    attempts: int = 0
    not_before: float = 0.0
    failed_at: float | None = None
    last_round: bool = False
    not_for_workers: bool = False  # only this process lists it
    looks: int = 0  # second listings that led to it, one after the other: nobody's first listing had it
    known: Known | None = None  # what the first listing had
    missing: Sequence[Directory] = ()
    gone: bool = False  # a home that answered 404 itself then: it is asked once more

    def never_listed(self) -> Iterator[str]:
        """Its own path; where it decides about others, those that were missing at first."""
        yield from itertools.chain(*(one.never_listed() for one in self.missing)) if self.missing else [self.path]


class Frontier:
    """What is still to be listed: earlier users first, of one user the newest first; failed ones await their time."""

    def __init__(self) -> None:
        self.ready: dict[str, list[tuple[int, int, Directory]]] = {name: [] for name in FILE_SYSTEMS}
        self.not_for_workers: dict[str, list[tuple[int, int, Directory]]] = {name: [] for name in FILE_SYSTEMS}
        self.waiting: list[tuple[float, int, Directory]] = []
        self.pushed = 0

    def push(self, directory: Directory) -> None:
        """Raises InventoryError where too many wait to be kept in memory."""
        self.pushed += 1
        if directory.not_before:
            heapq.heappush(self.waiting, (directory.not_before, self.pushed, directory))
            return
        heap = (self.not_for_workers if directory.not_for_workers else self.ready)[directory.file_system]
        heapq.heappush(heap, (directory.user, -self.pushed, directory))
        if len(heap) > MOST_WAITING:
            place = one_line(directory.path.rpartition("/")[0], 200)
            what = f"more than {MOST_WAITING:,} directories wait to be listed, lately those in {place}"
            raise InventoryError(f"{what}: scan without that user")

    def wake(self, now: float) -> None:
        """Makes ready what has waited long enough."""
        while self.waiting and self.waiting[0][0] <= now:
            directory = heapq.heappop(self.waiting)[2]
            directory.not_before = 0.0
            self.push(directory)

    def has(self, file_system: str) -> bool:
        return bool(self.ready[file_system] or self.not_for_workers[file_system])

    def is_empty(self) -> bool:
        return not (self.waiting or any(map(self.has, FILE_SYSTEMS)))

    def pop(self, file_systems: list[str]) -> Directory | None:
        """What this process lists next: first what no worker may, else a narrow tree below it would wait for long."""
        own = [self.not_for_workers[name] for name in file_systems if self.not_for_workers[name]]
        heaps = own or [self.ready[name] for name in file_systems if self.ready[name]]
        return heapq.heappop(min(heaps, key=lambda heap: heap[0][:2]))[2] if heaps else None

    def pop_for_workers(self, file_system: str, most: int) -> list[Directory]:
        ready = self.ready[file_system]
        return [heapq.heappop(ready)[2] for _ in range(min(most, len(ready)))]


@dataclass
class OpenUser:
    username: str
    homes: dict[str, Home]
    totals: dict[str, FileSystemTotals]
    scan: str
    pending: int = 0  # directories in the frontier, in flight or in a batch
    failed_once: list[Directory] = field(default_factory=list)
    answered_404: dict[Known, list[Directory]] = field(default_factory=dict)  # by parent, which decides about them


class Tally:
    """Opens users, adds up what is listed for each, and finishes those of whom nothing is left to list.

    A directory's life: it is ready (in the frontier), then in flight or in a batch. Listed, it is added to its user's
    totals, and its directories become ready; the files go to the journal, too. Failed, it waits and becomes ready again
    (Crawler.retry()), until it has no attempts left: then it goes once more in its user's last round, when nothing
    else of that user is left. Failed there, or refused at any time, it is one of the user's failures.
    Answered 404, it is kept (take_404()) until that round, in which its parent is listed a second time (settle()), and
    decides (compare(), decide()): what the parent still has is a failure, the rest was deleted or renamed meanwhile,
    and what it has now for the first time is listed. A parent that answers 404 itself leaves it to its own parent.
    """

    def __init__(self, homes: Homes, statistics: Counter[str], admin: bool, journal: Journal):
        self.users = list(homes.items())
        self.frontier = Frontier()
        self.statistics = statistics
        self.admin = admin
        self.journal = journal
        self.opened = 0
        self.open: dict[int, OpenUser] = {}
        self.finished: deque[UserResult] = deque()

    def can_open(self) -> bool:
        return self.opened < len(self.users) and len(self.open) + len(self.finished) < OPEN_USERS

    def open_user(self) -> bool:
        if not self.can_open():
            return False
        number = self.opened
        username, homes = self.users[number]
        paths = {name: home.path for name, home in homes.items()}
        begun = self.journal.begin(username, paths, self.admin)
        user = OpenUser(username, dict(homes), begun.totals, begun.scan, pending=1)  # until all of them are pushed
        self.opened = number + 1
        self.open[number] = user
        for file_system, home in homes.items():
            if home.problem:
                self.give_up(Directory(number, file_system, f"{USERS_FOLDER}/{username}"), home.problem)
            left = begun.left.pop(file_system)
            user.pending += len(left)
            # A home that hardly is there is asked for here: a worker's 404 would be asked for here once more.
            is_likely = home.is_listed or home.if_404 == NOT_LISTED
            for path, parent in left.items():
                not_for_workers = parent is None and not is_likely
                self.frontier.push(Directory(number, file_system, path, parent, not_for_workers=not_for_workers))
        self.settle(number)
        return True

    def listed(self, directory: Directory, listing: Listing) -> None:
        user, known = self.open[directory.user], directory.known
        found, new = self.compare(directory, known, listing) if known else (listing.totals, listing.directories)
        self.journal.add(user, directory, found, listing, new)  # first: what is in the totals is in the journal, too
        user.totals[directory.file_system].merge(found)
        looks = directory.looks + 1 if known else 0
        known = known or Known(directory.path, directory.parent, directories=listing.directories)
        known.files = len(listing.files)
        user.pending += len(new)
        for path in new:
            self.frontier.push(Directory(directory.user, directory.file_system, path, known, looks=looks))
        self.settle(directory.user)

    def compare(self, directory: Directory, known: Known, listing: Listing) -> tuple[FileSystemTotals, list[str]]:
        """A second listing: decides about what answered 404; returns what it adds, and what it is the first to name.

        What cannot be counted right is a failure: what is unclear or odd for the first time, further files, and new
        directories that may be those of one that was listed already, under another name.
        """
        there = listing.paths
        self.decide(directory, there, "404, though listed")
        never_listed = {missing.path for missing in directory.missing if not missing.known}
        gone = [path for path in known.directories if path not in there and path not in never_listed]
        before = set(known.directories)
        new = [path for path in listing.directories if path not in before]
        failures = self.open[directory.user].totals[directory.file_system].failures
        change, found = "", FileSystemTotals(failures=[at for at in listing.totals.failures if at not in failures])
        if len(listing.files) > known.files:
            change = f"has {len(listing.files):,} instead of {counted(known.files, 'file')}"
        elif gone and new:
            names = [one_line(path.rpartition("/")[2], 50) for path in (gone[0], new[0])]
            change = f"{names[0]}, which was counted, is gone, and {names[1]} is new"
        if change:
            found.failures.append({"path": directory.path, "error": f"changed while it was scanned: {change}"})
        known.directories = [path for path in known.directories if path not in never_listed] + new
        return found, new

    def failed(self, directory: Directory, error: DatabricksError) -> None:
        """What a failure means that is not to be tried again at once."""
        if error.kind in RETRIES and not directory.last_round:  # one more round, when the user's others are done
            directory.last_round = True
            directory.attempts = 0
            directory.failed_at = None
            self.open[directory.user].failed_once.append(directory)
        elif error.kind == "not found":
            self.take_404(directory)
        elif directory.missing:  # nobody can tell about what answered 404
            paths = {missing.path for missing in directory.missing}
            self.decide(directory, paths, f"404, and of its directory: {error}")
        else:
            self.give_up(directory, str(error))
        self.settle(directory.user)

    def take_404(self, directory: Directory) -> None:
        """A 404. About any directory but a home its parent decides, listed once more; homes may not be there at all."""
        user = self.open[directory.user]
        home = user.homes[directory.file_system]
        if directory.looks == MOST_LOOKS:  # else it might come to no end
            self.give_up(directory, "changed while it was scanned: 404, as what its folder had at earlier looks")
        elif directory.parent:
            user.answered_404.setdefault(directory.parent, []).append(directory)
        elif directory.missing and not directory.gone:
            directory.gone = True
            user.failed_once.append(directory)
        elif directory.missing:  # all that was in the home is gone with it
            self.decide(directory, set(), "")
        elif home.if_404:
            self.give_up(directory, home.if_404)
        else:
            user.homes[directory.file_system] = Home()

    def decide(self, directory: Directory, failed: set[str], error: str) -> None:
        """About what answered 404: what its directory still has is a failure, the rest was deleted meanwhile."""
        for missing in directory.missing:
            if missing.path in failed:
                self.give_up(missing, error)
            else:
                logger.debug("%s:%s vanished during the scan", directory.file_system, missing.path)
                self.statistics["vanished"] += 1

    def give_up(self, directory: Directory, error: str) -> None:
        logger.debug("%s:%s given up: %s", directory.file_system, directory.path, error)
        user = self.open[directory.user]
        user.totals[directory.file_system].failures.append({"path": directory.path, "error": error})
        home = user.homes[directory.file_system]
        if directory.path == home.path and not home.is_listed:  # so nobody has seen it
            user.homes[directory.file_system] = Home()

    def settle(self, number: int) -> None:
        """One less to wait for. After the last, what failed and what decides about 404s goes once more, if any does."""
        user = self.open[number]
        user.pending -= 1
        if user.pending:
            return
        again = user.failed_once
        for known, missing in user.answered_404.items():
            decides = Directory(number, missing[0].file_system, known.path, known.parent, known=known)
            decides.missing, decides.not_for_workers = missing, True
            decides.looks = max(directory.looks for directory in missing)
            again.append(decides)
        user.failed_once, user.answered_404 = [], {}
        user.pending = len(again)
        for directory in again:
            self.frontier.push(directory)
        if not again:
            scanned_at = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            homes = {name: home.path for name, home in user.homes.items()}
            totals: dict[str, Any] = user.totals
            self.finished.append(
                UserResult(user.username, scanned_at, **totals, homes=homes, scan=user.scan, admin=self.admin)
            )
            del self.open[number]


# --- Crawler --------------------------------------------------------------------------------------------------------


Take = Callable[[Listing | DatabricksError], None]  # what is done with an answer


def threads_possible(threads: int) -> int:
    """As many as this machine's limit of file descriptors allows; each thread has a connection."""
    with suppress(ImportError, OSError):  # Windows has neither limit nor folder
        limit, _ = import_module("resource").getrlimit(import_module("resource").RLIMIT_NOFILE)
        possible: int = max(limit - len(os.listdir("/dev/fd")) - SPARE_DESCRIPTORS, 1)
        if limit >= 0 and possible < threads:  # else there is none
            logger.warning("the limit of %d open files (ulimit -n) allows %s", limit, counted(possible, "thread"))
            return possible
    return threads


class Crawler:
    """Lists the frontier with up to `threads` requests in flight, and decides what each answer means.

    One thread gathers the answers and has all state. It alone asks the pacers, also where it offers work to the cluster
    and takes its reports. Other threads tell it what they have by a call in `answers`.
    """

    def __init__(
        self, client: DatabricksClient, tally: Tally, threads: int, cluster: Cluster | None, rate: float | None
    ):
        self.client = client
        self.tally = tally
        self.frontier = tally.frontier
        self.threads = threads_possible(threads)
        self.pacers = {name: Pacer(name, rate or math.inf) for name in FILE_SYSTEMS}
        self.work: queue.SimpleQueue[tuple[str, str, Take] | None] = queue.SimpleQueue()
        self.answers: queue.Queue[Callable[[], None]] = queue.Queue()  # a SimpleQueue's time-out may hang (Python 3.10)
        self.in_flight = 0
        self.started = 0
        self.cluster = cluster

    def run(self, on_tick: Callable[[], None]) -> Generator[UserResult, None, None]:
        """Yields each user's result when it is complete; `on_tick` is called after every answer, and without one."""
        try:
            while True:
                self.hand_out()
                while self.tally.finished:
                    yield self.tally.finished.popleft()
                if not (self.anything_left() or self.is_busy()):
                    break
                self.take_next(min(max(self.wake_at() - self.client.clock(), 0.0), LONGEST_WAIT))
                on_tick()
            if self.tally.open or self.tally.opened < len(self.tally.users):
                raise RuntimeError("the scan ended before its last user")
        finally:
            for _ in range(self.started):
                self.work.put(None)
            if self.cluster:
                self.cluster.stop()

    def anything_left(self) -> bool:
        is_paused = any(pacer.doubt for pacer in self.pacers.values())
        return is_paused or not self.frontier.is_empty() or self.tally.can_open()

    def is_busy(self) -> bool:
        return self.in_flight > 0 or self.cluster is not None and bool(self.cluster.out)

    def take_next(self, seconds: float) -> None:
        """Does what the next answer asks for, if one comes within so many seconds."""
        if not self.is_busy():
            self.client.sleep(seconds)
            seconds = 0.0
        with suppress(queue.Empty):
            self.answers.get(timeout=seconds)()

    def hand_out(self) -> None:
        """Starts all that may start."""
        now = self.client.clock()
        self.frontier.wake(now)
        while self.in_flight < self.threads and self.start_next(now):
            now = self.client.clock()
            self.frontier.wake(now)
        if self.cluster:
            self.cluster.offer(self, now)

    def starts_at(self, file_system: str) -> float:
        """When the next request to that API may start; inf where there is nothing to ask it for."""
        pacer = self.pacers[file_system]
        may_start = pacer.doubt or self.frontier.has(file_system) or self.tally.can_open()
        return pacer.next_at if may_start else math.inf

    def wake_at(self) -> float:
        """When something may start that may not now, if no answer comes before."""
        if self.in_flight >= self.threads:
            return math.inf
        waking = [directory.not_before for _, _, directory in self.frontier.waiting[:1]]
        return min(waking + [self.starts_at(name) for name in self.pacers])

    def start_next(self, now: float) -> bool:
        """Starts the listing that is next by its pacer, if any is."""
        due = [name for name in self.pacers if self.starts_at(name) <= now]
        for name in due:
            if self.pacers[name].doubt:
                self.pacers[name].next_at = math.inf  # until the question is answered
                self.start(name, self.pacers[name].listed_last or USERS_FOLDER, partial(self.take_answer, name))
                return True
        while due:
            directory = self.frontier.pop(due)
            if directory is not None:
                self.pacers[directory.file_system].sent(now)
                self.start(directory.file_system, directory.path, partial(self.take_own, directory, now))
                return True
            if not self.tally.open_user():
                break
        return False

    def start(self, file_system: str, path: str, take: Take) -> None:
        """Lets a thread list it; `take` gets the Listing, or the exception."""
        self.client.statistics["requests"] += 1
        self.work.put((file_system, path, take))
        self.in_flight += 1
        if self.in_flight <= self.started:
            return
        try:  # daemons: an interrupted run waits for none of them
            threading.Thread(target=self.list_directories, daemon=True).start()
            self.started += 1
        except RuntimeError as error:  # a limit of this machine
            if not self.started:
                raise
            self.threads = self.started
            logger.warning("%s: going on with %s", error, counted(self.threads, "thread"))

    def list_directories(self) -> None:
        """What each thread does."""
        while task := self.work.get():
            file_system, path, take = task
            parse = partial(parse_listing, file_system, path)
            answer: Listing | Exception
            try:
                answer = self.client.attempt(FILE_SYSTEMS[file_system].list_path, {"path": path}, parse)
            except Exception as error:  # raised again by the gathering thread, if it is a bug
                answer = error
            self.answers.put(partial(self.landed, take, answer))
            del answer, task, take  # an error's traceback has the body, while this thread waits

    def landed(self, take: Take, answer: Listing | Exception) -> None:
        self.in_flight -= 1
        if not isinstance(answer, (Listing, DatabricksError)):
            raise answer
        if isinstance(answer, DatabricksError) and answer.kind == "login":
            raise run_error(answer, self.client.config) from answer
        take(answer)

    def take_own(self, directory: Directory, sent_at: float, answer: Listing | DatabricksError) -> None:
        """An answer that this process's own threads got: it tells whether the API is there, too."""
        now = self.client.clock()
        pacer = self.pacers[directory.file_system]
        if isinstance(answer, Listing):
            pacer.listed(directory.path, now)
            self.take(directory, sent_at, answer)
        elif answer.kind in RETRIES:
            self.retry(directory, answer, sent_at, now)
        else:
            pacer.answered(now)
            home = self.tally.open[directory.user].homes[directory.file_system]
            something_was_listed = pacer.listed_last or home.if_404 != NOT_LISTED  # in this run, or /Users before
            if row_of(answer) and something_was_listed:
                pacer.lengthen("refusals", now)
            self.tally.failed(directory, answer)

    def take(self, directory: Directory, sent_at: float, listing: Listing) -> None:
        """A listing, whoever asked for it."""
        self.pacers[directory.file_system].succeeded(sent_at, self.client.clock())
        logger.debug("%s:%s: %s", directory.file_system, directory.path, dict(listing.totals.types))
        if not directory.missing:
            self.client.statistics["files"] += len(listing.files)
            self.client.statistics["directories"] += listing.totals.directories
        self.tally.listed(directory, listing)

    def retry(self, directory: Directory, error: DatabricksError, sent_at: float, now: float) -> None:
        """Puts the listing back to wait, or gives it up. Decides what counts as an attempt.

        What a worker was answered never comes here: see Cluster.take_report().
        """
        pacer = self.pacers[directory.file_system]
        statistics = self.client.statistics
        waiting_since = directory.failed_at or sent_at
        counts = bool(row_of(error))
        if error.kind == "rate limit":
            statistics["rate_limited"] += 1
            pacer.limited_here_at = now
            counts = pacer.limited(sent_at, now)
        if counts:
            pacer.lengthen("failures", now, error.retry_after)
        elif error.kind == "too slow":
            pacer.answered(now)
        directory.failed_at = now
        # A failure counts as an attempt unless it may be an outage's, or is a 429 and other requests succeed meanwhile.
        others_succeed = error.kind == "rate limit" and pacer.succeeded_at > waiting_since
        if not pacer.doubt and not others_succeed:
            directory.attempts += 1
        wait = retry_wait(error, directory.attempts, self.client.jitter())
        if wait is None:
            directory.not_before = now + error.retry_after  # for its last round
            self.tally.failed(directory, error)
        else:
            statistics["retries"] += 1
            logger.debug("%s:%s: %s; again in %.1f s", directory.file_system, directory.path, error, wait)
            directory.not_before = now + wait
            self.frontier.push(directory)

    def take_answer(self, file_system: str, answer: Listing | DatabricksError) -> None:
        """What a paused API has answered to the question. Raises InventoryError where it refuses even that."""
        now = self.client.clock()
        pacer = self.pacers[file_system]
        if not pacer.doubt:  # a late answer to another request has told that it is there
            return
        row = row_of(answer) if isinstance(answer, DatabricksError) else ""
        if isinstance(answer, DatabricksError) and row == "failures":
            pacer.unanswered(answer, now)
        elif row == pacer.doubt == "refusals":
            place = one_line(f"{file_system}:{pacer.listed_last or USERS_FOLDER}", 50)
            told = one_line(str(answer), 70)
            raise InventoryError(
                f"{place} was listed before and is refused now ({told}): look at VPN and IP access lists"
            )
        else:
            pacer.go_on(now)


# --- Cluster --------------------------------------------------------------------------------------------------------


def fetch(
    host: str, headers: dict[str, str], places: list[tuple[float, str, str]], threads: int, limits: dict[str, float]
) -> bytes:
    """On a worker: asks once for each place, and judges nothing. It uses nothing of this module but what it imports.

    A place has its time (seconds from now), the API's path, and the directory. Of an API that answers 429, or fails
    several times in a row, nothing more is asked. Returns zipped JSON: who it is, and an answer for each place, in
    their order: null where it was not asked, else a status (0: none came) and a text, which is the body of a 200 as it
    came, in base64, else the Retry-After, or what went wrong. Changes nothing: Spark may run it twice.
    """
    began = time.monotonic()
    until = began + limits["seconds"]
    answers: list[tuple[int, str] | None] = [None] * len(places)
    failures = {api: 0 for _, api, _ in places}  # in a row
    stopped: set[str] = set()
    todo = iter(enumerate(places))  # of all threads: each place goes to one of them

    def authorize(request: Any) -> Any:  # a header set on the session would be replaced from ~/.netrc
        request.headers.update(headers)
        return request

    session = requests.Session()
    session.auth = authorize
    session.trust_env = not host.startswith("http:")  # a loopback address goes through no proxy
    session.mount(host, requests.adapters.HTTPAdapter(pool_maxsize=threads))

    def read(response: Any) -> str:
        response.raw.enforce_content_length = True
        space = limits["bytes"] - sum(len(answer[1]) * 3 / 4 for answer in answers if answer)
        body = bytearray()
        while piece := response.raw.read(65536, decode_content=False):
            body += piece
            if len(body) > space:
                raise ValueError("the answer is too large for a report")
        return b64encode(body).decode()

    def ask(api: str, path: str) -> tuple[int, str]:
        url, timeout = host + api, (limits["connect"], limits["read"])
        try:
            with session.get(url, params={"path": path}, timeout=timeout, stream=True, allow_redirects=False) as got:
                return got.status_code, read(got) if got.status_code == 200 else got.headers.get("Retry-After", "")
        except Exception as error:
            return 0, f"{type(error).__name__}: ...{str(error)[-150:]}"

    def work() -> None:
        for index, (offset, api, path) in todo:
            if began + offset < until and api not in stopped:
                time.sleep(max(began + offset - time.monotonic(), 0.0))
            if time.monotonic() >= until or api in stopped:
                continue
            answers[index] = 0, "no answer"
            status, _ = answers[index] = ask(api, path)
            failures[api] = 0 if status in (200, 404, 429) else failures[api] + 1
            if status == 429 or failures[api] >= limits["failures"]:
                stopped.add(api)

    hands = [threading.Thread(target=work, daemon=True) for _ in range(min(threads, len(places)))]
    for hand in hands:
        hand.start()
    for hand in hands:  # one that hangs is not waited for: what it has is not in the report
        hand.join(max(until + limits["grace"] - time.monotonic(), 0.0))
    who = f"{socket.gethostname()}:{os.getpid()}, Python {sys.version.split()[0]}"
    return zlib.compress(json.dumps([who, answers]).encode(), 1)


# Of a directory in a batch: its listing; another answer as fetch() has it; None where it was not asked for.
Outcome = Listing | tuple[int, str] | None
Timed = list[tuple[float, Directory]]  # the directories of a batch, and when each is asked for, in seconds


def read_report(packed: Any, timed: Timed) -> tuple[str, list[Outcome]]:
    """What fetch() returns: the worker, and what came of each directory. Raises for anything else, whatever comes."""
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(packed, LARGEST_REPORT)
    if not unpacker.eof:
        raise ValueError("cut short, or too large")
    who, answers = json.loads(text)
    return str(who), [outcome_of(one, answer) for (_, one), answer in zip(timed, answers, strict=True)]


def outcome_of(directory: Directory, answer: Any) -> Outcome:
    """A body is decoded and parsed like one that a thread of ours got; what is no listing stays an answer."""
    if answer is None:
        return None
    status, text = int(answer[0]), str(answer[1])
    try:
        if status == 200:
            return parse_listing(directory.file_system, directory.path, decode_body(b64decode(text, validate=True)))
        return status, text
    except ValueError as error:
        return 0, str(error)


def share_of_pace(rate: float, lent: float, batches: int, idle: int) -> float:
    """Requests/s of an API for a batch: what idle slots and this process share, while so many batches may be out.

    No more than half as much again as each would have, since a worker may not reach that. 0: better kept here.
    """
    free = rate - lent
    share = min(free / (idle + 1), 1.5 * rate / (batches + 1))
    return max(share, LOWEST_BATCH_RATE) if free >= 2 * LOWEST_BATCH_RATE else 0.0


def size_of_batch(ready: int, threads: int, idle: int) -> int:
    """How many directories a batch takes along of those that this process's threads do not take next; 0: too few."""
    spare = ready - threads
    return min(max(spare // idle, SMALLEST_BATCH), LARGEST_BATCH) if spare >= SMALLEST_BATCH else 0


def schedule(directories: list[Directory], rates: dict[str, float], jitter: float) -> Timed:
    """The directories with the times at which they are asked for, in seconds from the start, in that order."""
    turns = {name: itertools.count(jitter) for name in rates}
    timed = [(next(turns[one.file_system]) / rates[one.file_system], one) for one in directories]
    return sorted(timed, key=lambda pair: pair[0])


@dataclass(eq=False)
class Batch:
    timed: Timed
    rates: dict[str, float]  # its share of each API's pace, in requests/s
    seconds: float
    sent_at: float


class Cluster:
    """The workers of a Spark session as further hands of a crawler; whatever they bring, the crawler decides about.

    A batch is one query on one task slot. A directory is in the frontier, in flight here, or in one batch: what a batch
    does not bring goes back into the frontier. So the crawler's own threads go on, whatever becomes of the session.
    """

    def __init__(self, spark: Any = None, build_channel: Callable[[], Any] | None = None):
        """With the caller's session, or with one of its own that goes through such a channel and ends with the run."""
        self.spark = spark
        self.build_channel = build_channel
        self.state: Literal["not needed yet", "starting", "ready", "left alone", "ended"] = "not needed yet"
        self.began: float | None = None  # of the run, and then of the start
        self.slots = 0
        self.threads = 1  # of each worker
        self.most_out = 0  # batches at the same time: one more with each that comes back without a 429
        self.fewer_at = -math.inf  # when these were halved last
        self.out: list[Batch] = []
        self.failures = 0  # batches in a row
        self.listed = 0  # directories
        self.idle_because = "the run ended before it was needed"
        self.tag = f"inventory-{os.urandom(8).hex()}"
        self.reading = threading.Lock()  # one report at a time

    def summary(self) -> str:
        """A line that says how much of the work it did."""
        if self.listed:
            return f"{self.listed:,} directories were listed by the cluster, on {counted(self.slots, 'task slot')}"
        return f"no directory was listed by the cluster: {self.idle_because}"

    # --- Gathering thread: what is sent, and what becomes of it

    def offer(self, crawler: Crawler, now: float) -> None:
        """Starts the session when the run lasts, gives up what is late, sends what own threads have no hands for."""
        self.began = now if self.began is None else self.began
        if self.state == "not needed yet" and now >= self.began + CLUSTER_DELAY and crawler.anything_left():
            self.state = "starting"
            self.began = now
            self.idle_because = "the run ended before it was ready"
            self.beside(crawler, partial(self.start, crawler), partial(self.use_slots, crawler))
        if crawler.answers.empty():  # else what is late may be there, not taken yet
            if self.state == "starting" and now > self.began + SPARK_START_SECONDS:
                self.use_slots(crawler, TimeoutError(f"no answer within {SPARK_START_SECONDS:.0f} s"))
            for batch in [batch for batch in self.out if now > batch.sent_at + batch.seconds + OVERDUE_SECONDS]:
                self.fail(crawler, batch, "no report came in time")
        self.lend_pace(crawler, now)
        while crawler.in_flight >= crawler.threads and self.send_batch(crawler, now):
            self.lend_pace(crawler, now)

    def beside(
        self, crawler: Crawler, work: Callable[[], Returned], take: Callable[[Returned | Exception], None]
    ) -> None:
        """Does the work in a side thread; the gathering thread takes what it returns or raises."""

        def work_beside() -> None:
            try:
                outcome: Returned | Exception = work()
            except Exception as error:
                outcome = error
            crawler.answers.put(partial(take, outcome))

        try:
            threading.Thread(target=work_beside, name=self.tag, daemon=True).start()
        except RuntimeError as error:  # a limit of this machine
            take(error)

    def use_slots(self, crawler: Crawler, slots: int | Exception) -> None:
        if self.state != "starting":  # nobody waits for them any more
            return
        if isinstance(slots, Exception):
            self.leave_alone(spark_problem(slots))
            return
        self.state = "ready"
        own = crawler.threads
        self.slots = min(slots, MOST_IN_FLIGHT - own)
        self.most_out = min(FIRST_BATCHES, self.slots)
        self.threads = min(own, (MOST_IN_FLIGHT - own) // self.slots)
        self.idle_because = "this machine alone reaches what the service allows, or has no more to ask than it can"

    def leave_alone(self, reason: str) -> None:
        """No further batches; those that are out may still come."""
        self.state = "left alone"
        self.idle_because = reason
        logger.warning("%s; this machine goes on alone", reason)

    def lend_pace(self, crawler: Crawler, now: float) -> None:
        """Tells the pacers what the batches under way use. Those that are only on their way home use nothing.

        Below a ceiling they may: a worker that began late asks for longer.
        """
        for name, pacer in crawler.pacers.items():
            late = math.inf if pacer.ceiling < math.inf else 0.0
            shares = [batch.rates.get(name) for batch in self.out if now < batch.sent_at + batch.seconds + late]
            pacer.lent = sum(share for share in shares if share and share < math.inf)

    def send_batch(self, crawler: Crawler, now: float) -> bool:
        """Sends one, if there are a free slot, enough to do, and pace to share."""
        idle = self.most_out - len(self.out)
        if idle < 1 or self.state != "ready":
            return False
        frontier = crawler.frontier
        while sum(map(len, frontier.ready.values())) < (idle + 1) * LARGEST_BATCH and crawler.tally.open_user():
            pass  # until there is enough for all
        rates = {
            name: share_of_pace(pacer.rate, pacer.lent, self.most_out, idle)
            for name, pacer in crawler.pacers.items()
            if not pacer.doubt and frontier.ready[name]
        }
        lengths = {name: len(frontier.ready[name]) for name, rate in rates.items() if rate}
        size = size_of_batch(sum(lengths.values()), crawler.threads, idle)
        if not size:
            return False
        is_known = self.most_out >= self.slots or min(rates.values()) < math.inf
        seconds = BATCH_SECONDS if is_known else FIRST_BATCH_SECONDS
        directories = []
        for name, length in lengths.items():
            most = min(size * length / sum(lengths.values()), rates[name] * seconds)  # what it may ask for in its time
            directories += frontier.pop_for_workers(name, math.ceil(most))
        batch = Batch(schedule(directories, rates, crawler.client.jitter()), rates, seconds, now)
        self.out.append(batch)
        self.beside(crawler, partial(self.bring, crawler.client, batch), partial(self.take_report, crawler, batch))
        return True

    def take_report(self, crawler: Crawler, batch: Batch, report: tuple[str, list[Outcome]] | Exception) -> None:
        """What a batch brought goes to the crawler, what it did not bring back into the frontier."""
        if batch not in self.out:  # given up: too late
            return
        if isinstance(report, Exception):
            self.fail(crawler, batch, last_cause(report))
            return
        self.out.remove(batch)
        self.failures = 0
        most_out = self.most_out + 1
        now = crawler.client.clock()
        worker, outcomes = report
        for (_, directory), outcome in zip(batch.timed, outcomes, strict=True):
            crawler.client.statistics["requests"] += outcome is not None
            if isinstance(outcome, Listing):
                self.listed += 1
                crawler.take(directory, batch.sent_at, outcome)
                continue
            if outcome and outcome[0] == 429:  # no attempt: these are this process's own tries alone
                directory.not_before = now + retry_after_seconds(outcome[1])
                crawler.client.statistics["rate_limited"] += 1
                pacer = crawler.pacers[directory.file_system]
                most_out = min(most_out, self.most_out)
                if pacer.rate == pacer.ceiling or pacer.limited_here_at >= batch.sent_at:
                    pacer.limited(batch.sent_at, now)
                elif self.fewer_at < batch.sent_at:  # only workers are limited: fewer of them, once for all that left
                    most_out = self.most_out // 2
            elif outcome:  # any failure
                directory.not_for_workers = True
            crawler.frontier.push(directory)
        if most_out < self.most_out:
            self.fewer_at = now
        self.most_out = min(max(most_out, 1), self.slots)
        logger.debug("batch of %d directories on %s, after %.1f s", len(outcomes), worker, now - batch.sent_at)

    def fail(self, crawler: Crawler, batch: Batch, reason: str) -> None:
        """All of the batch is listed here. As many in a row as there are slots are not one broken worker of many."""
        self.out.remove(batch)
        self.failures += 1
        logger.debug("a batch with %d directories failed: %s", len(batch.timed), reason)
        for _, directory in batch.timed:
            directory.not_for_workers = True
            crawler.frontier.push(directory)
        if self.failures >= max(self.slots, LOST_BATCHES) and self.state == "ready":
            self.leave_alone(f"The cluster is left alone, {self.failures} batches in a row failed: {reason}")

    def stop(self) -> None:
        """Cancels what is on the cluster, and ends a session of our own, within CANCEL_SECONDS and CLOSE_SECONDS."""
        self.state = "ended"
        for end, seconds in ((self.cancel, CANCEL_SECONDS), (self.close, CLOSE_SECONDS)):
            with suppress(TimeoutError, RuntimeError):
                in_thread(end, seconds)

    # --- Side threads: whatever may wait for Spark

    def start(self, crawler: Crawler) -> int:
        """Connects and probes; returns the number of task slots."""
        if self.build_channel:  # a session that is nobody's default or active one, as those of pyspark's builder are
            session = import_module("pyspark.sql.connect.session").SparkSession
            self.spark = session(connection=self.build_channel())
            # Else pyspark tries for ten minutes to reach its server, and nobody learns why it cannot.
            getattr(self.spark.client, "_retry_policy", {})["max_retries"] = SPARK_RETRIES  # 3.5
            for policy in getattr(self.spark.client, "_retry_policies", []):
                policy.max_retries = SPARK_RETRIES
        if self.state == "ended":
            self.close()
        return self.probe(crawler)

    def probe(self, crawler: Crawler) -> int:
        """The number of task slots whose worker gets what was listed here last. Raises InventoryError if none does."""
        for _ in range(PROBES):
            name = max(crawler.tally.users[0][1], key=lambda name: crawler.pacers[name].succeeded_at)
            path = crawler.pacers[name].listed_last
            good = (429,) if path else (403, 404, 429)  # nothing was listed yet: any answer of the API itself
            timed = [(0.0, Directory(0, name, path or "/"))]
            packed = self.query(crawler.client, timed, PROBE_SECONDS, everywhere=True)
            reports = [read_report(report, timed) for report in packed if report is not None]
            failed = [one for _, [one] in reports if not (isinstance(one, Listing) or one and one[0] in good)]
            if slots := len(reports) - len(failed):
                logger.info("parallel: %s, the first on %s", counted(slots, "task slot"), reports[0][0])
                return slots
        status, text = next((one for one in failed if isinstance(one, tuple)), (0, "no answer"))
        why = f"workers cannot reach {crawler.client.config.host} ({status or one_line(text, 40)})"
        raise InventoryError(f"{why}: let them through its network and proxy")

    def bring(self, client: DatabricksClient, batch: Batch) -> tuple[str, list[Outcome]]:
        """The worker, and what came of each directory of the batch."""
        packed = self.query(client, batch.timed, batch.seconds)[0]
        with self.reading:
            worker, outcomes = read_report(packed, batch.timed)
        # Failures, and no answer of the API itself: this worker reaches nothing. A refusal is such an answer.
        asked = [outcome for outcome in outcomes if outcome]
        failed = [outcome for outcome in asked if isinstance(outcome, tuple) and outcome[0] not in (403, 404, 429)]
        if failed and failed == asked:
            status, text = failed[0]
            raise RuntimeError(f"nothing was listed: {status or one_line(client.mask(text), 100)}")
        return worker, outcomes

    def query(self, client: DatabricksClient, timed: Timed, seconds: float, everywhere: bool = False) -> list[Any]:
        """What fetch() returns, on one slot or on each, and None for further rows there. Only plain values travel."""
        places = [(at, FILE_SYSTEMS[one.file_system].list_path, one.path) for at, one in timed]
        rows, partitions = (MOST_SLOTS, None) if everywhere else (1, 1)
        headers = client.headers | {"Authorization": f"Bearer {client.config.current_token()}"}
        limits = {
            "seconds": seconds, "grace": GRACE_SECONDS, "connect": CONNECT_SECONDS, "read": seconds + GRACE_SECONDS,
            "bytes": LARGEST_BODIES, "failures": WORKER_FAILURES,
        }  # fmt: skip
        work = partial(fetch, client.config.host, headers, places, self.threads, limits)
        done: list[int] = []

        def once(row: int) -> bytes | None:  # is called for each row; each partition unpickles a `done` of its own
            if done:
                return None
            done.append(row)
            return work()

        if __name__ != "__main__":  # functions of __main__ go by value anyway; the workers do not have this file
            import_module("pyspark.cloudpickle").register_pickle_by_value(sys.modules[__name__])
        call_with_tag(self.spark, "addTag", "addJobTag", self.tag)
        # A type by name, or Arrow left open, would be looked up in whatever session is active.
        binary = import_module("pyspark.sql.types").BinaryType()
        of_connect = ".connect" if ".connect." in type(self.spark).__module__ else ""
        column = import_module(f"pyspark.sql{of_connect}.functions").udf(once, binary, useArrow=False)
        return [row[0] for row in self.spark.range(0, rows, 1, partitions).select(column("id")).collect()]

    def cancel(self) -> None:
        with suppress(Exception):  # there may be no session yet
            is_asking = any(thread.name == self.tag for thread in threading.enumerate())  # also of a batch given up
            for _ in range(2 if is_asking else 0):  # the second for a query that was on its way to the server
                call_with_tag(self.spark, "interruptTag", "cancelJobsWithTag", self.tag)
                time.sleep(0.1)
            if self.build_channel:
                self.spark.client.release_session()  # which pyspark 3.5 does not have

    def close(self) -> None:
        """Ends our own session, and what waits for its server; its stop() would end the caller's server, too."""
        if self.build_channel:
            with suppress(Exception):
                self.spark.client.close()


def call_with_tag(spark: Any, method: str, before: str, tag: str) -> None:
    """Marks this thread's queries, or cancels those marked. A classic session before Spark 4.0 has other methods."""
    try:
        getattr(spark, method)(tag)
    except (RuntimeError, AttributeError):
        getattr(spark.sparkContext, before)(tag)


def without_secrets(text: str) -> str:
    """Without the tokens and user information of URLs in it."""
    return re.sub(r"(?i)(token=)[^;&\s']+|(//)[^/\s]*@", r"\1\2***", text)


def last_cause(error: Exception) -> str:
    """What Spark says, on a line, without the token that a connection URL may have: its text ends with the cause."""
    of_grpc = re.search(r'details = "(.*: UNKNOWN: )?(.+)"', str(error))
    lines = [line.strip() for line in (of_grpc[2] if of_grpc else str(error)).splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"(Caused by: )?[\w.]+(Error|Exception|Timeout)\b: ", line)]
    text = causes[-1] if causes else " ".join(lines)
    return one_line(without_secrets(text or type(error).__name__), 100)


def spark_problem(error: Exception) -> str:
    """Why there is no cluster, and what to do, as a sentence."""
    # Spark 4 writes "different version: 3.12 than that in driver: 3.11", 3.5 "different version (3, 12) than ..."
    if versions := re.search(r"different version:? (.+?) than that in driver:? (\d+\.\d+)", str(error)):
        cluster = ".".join(re.findall(r"\d+", versions[1])[:2])
        return f"Python version mismatch: client {versions[2]}, cluster {cluster}. Run this with the cluster's version"
    if isinstance(error, (InventoryError, DatabricksError)):
        reason = one_line(str(error), 130)
    elif isinstance(error, ImportError):
        reason = f'{one_line(str(error), 70)}; pip install "pyspark[connect]" "pandas<3"'
    elif "CERTIFICATE_VERIFY_FAILED" in str(error):
        reason = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH has to name a PEM file with the authority of its certificate"
    else:
        reason = f"{last_cause(error)} (Spark client {getattr(sys.modules.get('pyspark'), '__version__', 'unknown')})"
    return f"Parallel processing not available: {reason}"


def build_channel(url: str) -> Any:
    """A channel builder of Spark Connect. Raises InventoryError for another machine without TLS."""
    core = import_module("pyspark.sql.connect.client.core")
    new_builder = getattr(core, "DefaultChannelBuilder", None) or core.ChannelBuilder  # 4.x, 3.5
    is_here = re.fullmatch(r"sc://(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?(/.*)?", url, re.I)
    builder = new_builder(url, [("grpc.enable_http_proxy", 0)] if is_here else [])  # else even here through http_proxy
    if "SPARK_LOCAL_REMOTE" in os.environ and "token=" not in url and hasattr(builder, "set"):  # 4.x
        builder.set("token", None)  # else it takes the one of the caller's local server from the environment
    if not is_here and not builder.secure:
        raise InventoryError("the token would go to another machine in clear; put use_ssl=true into the server's URL")
    return builder


def connect_cluster(config: DatabricksConfig, cluster_id: str) -> Any:
    """A channel builder for a Databricks cluster. Raises InventoryError where it does not run, or DatabricksError."""
    parts = urlsplit(config.host)
    builder = build_channel(f"sc://{parts.netloc}{'' if parts.port else ':443'}/;use_ssl=true")
    client = DatabricksClient(config)
    cluster = client.get("/api/2.1/clusters/get", {"cluster_id": cluster_id}, parse_record)
    state, message = (one_line(client.mask(str(cluster.get(key) or "")), 40) for key in ("state", "state_message"))
    if state not in ("RUNNING", "RESIZING"):
        raise InventoryError(f"cluster {cluster_id} is {state} {message}; start it and run this again")
    fixed = [*builder.metadata(), ("x-databricks-cluster-id", cluster_id)]
    fixed += [("x-databricks-workspace-id", config.workspace_id)] if config.workspace_id else []
    # Asked for at each call: a session outlives an OAuth token.
    builder.metadata = lambda: [*fixed, ("authorization", f"Bearer {config.current_token()}")]
    return builder


# --- Journal --------------------------------------------------------------------------------------------------------


def lines_of(file: IO[bytes]) -> IO[bytes]:
    """The file from its beginning, to be read line by line; it stays open when that is closed."""
    file.seek(0)
    return open(file.fileno(), "rb", closefd=False)


@contextmanager
def checkpoint_errors(path: Path | None) -> Iterator[None]:
    """Turns what the disk refuses into an InventoryError."""
    try:
        yield
    except OSError as error:
        what = f"{path or tempfile.gettempdir()}: nothing can be kept here ({error.strerror or error})"
        raise InventoryError(f"{what}; make room, or name a --checkpoint on a local disk") from error


def open_locked(path: Path, files: ExitStack) -> IO[bytes]:
    """The file, made if there is none, with a lock that dies with this process. Raises OSError and InventoryError."""
    for _ in range(10):  # file systems of which each look shows another file would be asked for ever
        if path.exists() and not path.is_file():
            raise InventoryError(f"{path} is not a regular file; name another --checkpoint")
        file = files.enter_context(open(path, "r+b", buffering=0, opener=open_or_make))
        try:
            lock(file)
        except (BlockingIOError, PermissionError):
            raise InventoryError(f"another run is using {path}: wait for it, or name another --checkpoint") from None
        if has_name(file, path):
            files.callback(lock, file, is_wanted=False)
            return file
        file.close()  # the run that had it has moved or removed it meanwhile
    raise InventoryError(f"{path} is another file at each look; name a --checkpoint on a local disk")


def has_name(file: IO[bytes], path: Path) -> bool:
    """Whether the file is still the one of that name. On Windows nobody can have moved it while it is open."""
    try:
        return ON_WINDOWS or os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def open_or_make(path: str, flags: int) -> int:
    """Makes files that their owner alone can read."""
    return os.open(path, flags | os.O_CREAT, 0o600)


def lock(file: IO[bytes], is_wanted: bool = True) -> None:
    """Locks it, or gives it back (a child may live on). Raises BlockingIOError or PermissionError if another has it."""
    if file.closed:  # which has given it back
        return
    if ON_WINDOWS:
        import msvcrt

        file.seek(2**40)  # behind any end: what is locked there, others cannot read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK if is_wanted else msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if is_wanted else fcntl.LOCK_UN)


@dataclass
class Begun:
    """A user who was begun, as its first line says; what was found, and what is left to be listed, with its parent."""

    scan: str
    homes: dict[str, str | None]
    admin: bool
    began: float  # seconds since 1970
    totals: dict[str, FileSystemTotals] = field(init=False)
    left: dict[str, dict[str, Known | None]] = field(init=False)  # by file system and path

    def __post_init__(self) -> None:
        self.totals = {name: FileSystemTotals() for name in self.homes}
        self.left = {name: {} if path is None else {path: None} for name, path in self.homes.items()}

    def take(self, record: dict[str, Any]) -> None:
        """A listing's line; one of a directory that nobody named (that line was lost) does not count."""
        file_system, path = record["at"]
        left = self.left[file_system]
        found = FileSystemTotals(**record["found"])
        if "below" in record:  # a second listing; what has no line below the directory leads up to it
            known = left.get(record["below"])
            while known and known.path != path:
                known = known.parent
            if known is None:
                return
            known.files = record["files_now"]
            gone = set(record.get("gone", ()))  # not there in a journal of before
            known.directories = [one for one in known.directories if one not in gone]
            for one in gone:
                left.pop(one, None)
        elif path in left:
            known = Known(path, left.pop(path), found.files)
        else:
            return
        new = [f"{path}/{name}" for name in record["directories"]]
        known.directories += new
        left.update(dict.fromkeys(new, known))
        self.totals[file_system].merge(found)


class Journal:
    """Users in progress: a JSON line for each that is begun, and for each listing what it adds, before it counts.

    It lies beside the checkpoint, and --resume goes on from it: what was named and has no line is listed. For --files a
    line has the rows, too. A line begins with its CRC-32: one that is torn or damaged is as if it was not there.
    """

    def __init__(self, path: Path | None, csv_path: str | None, saved: set[str], files: ExitStack):
        """`saved` has the scans that are in the checkpoint. Raises OSError and InventoryError.

        Without a path it is temporary; without --files, too, nobody will read it.
        """
        if path:
            self.file = open_locked(path, files)
        else:
            nowhere = tempfile.TemporaryFile(buffering=0) if csv_path is not None else open(os.devnull, "r+b", 0)
            self.file = files.enter_context(nowhere)
        self.path = path
        self.csv_path = csv_path
        self.in_progress: dict[str, Begun] = {}  # by username
        self.rows: Counter[str] = Counter()  # rows of each scan of earlier runs
        self.replay(saved)
        self.file.seek(0, os.SEEK_END)
        write_all(self.file, b"\n")  # so that a last line that a kill has torn is one of its own
        self.wanted: dict[str, tuple[str, int]] = {}  # scans for the CSV: the user, and how many files there are

    def replay(self, saved: set[str]) -> None:
        """Takes up the last scan of each user that is not in the checkpoint."""
        begun: dict[str, Begun] = {}  # by scan
        for scan, record in self.read(set() if self.csv_path is not None else saved):
            self.rows[scan] += record.get("rows", 0)
            if "username" in record:
                username = record.pop("username")
                self.in_progress.pop(username, None)
                if scan not in saved:
                    self.in_progress[username] = begun[scan] = Begun(**record)
            elif scan in begun:
                begun[scan].take(record)

    def forget_outdated(self, homes: Homes, admin: bool) -> None:
        """Of these users, who are to be scanned, forgets those who have to begin anew, and says why."""
        dropped: dict[str, list[str]] = {}
        for name in sorted(homes.keys() & self.in_progress.keys()):
            begun = self.in_progress[name]
            files = sum(totals.files for totals in begun.totals.values())
            if begun.homes != {at: home.path for at, home in homes[name].items()}:
                reason = "whose homes are others by now"
            elif begun.admin != admin:
                reason = "begun by another kind of login"
            elif time.time() - begun.began > LONGEST_PROGRESS:
                reason = "begun more than a week ago"
            elif self.csv_path is not None and self.rows[begun.scan] != files:
                reason = "with no rows for --files from before"
            else:
                continue
            del self.in_progress[name]
            dropped.setdefault(reason, []).append(name)
        for reason, names in dropped.items():
            users = counted(len(names), "user")
            logger.info("%s in progress from the beginning, %s: the first is %s", users, reason, names[0])

    def begin(self, username: str, homes: dict[str, str | None], admin: bool) -> Begun:
        """The user as an earlier run has left it; else a new scan, with its first line. Raises InventoryError."""
        if username not in self.in_progress:
            begun = Begun(os.urandom(8).hex(), homes, admin, time.time())
            self.write({"scan": begun.scan, "username": username, "homes": homes, "admin": admin, "began": begun.began})
            self.in_progress[username] = begun
        return self.in_progress[username]

    def add(
        self, user: OpenUser, directory: Directory, found: FileSystemTotals, listing: Listing, new: list[str]
    ) -> None:
        """A listing: what it adds, and the directories that it is the first to name. Raises InventoryError."""
        record: dict[str, Any] = {"scan": user.scan, "at": (directory.file_system, directory.path)}
        record["found"] = {name: value for name, value in vars(found).items() if value}
        record["directories"] = [path[len(directory.path) + 1 :] for path in new]
        if directory.known:
            there = listing.paths
            gone = [path for one in directory.missing if one.path not in there for path in one.never_listed()]
            below = next(directory.never_listed())
            record |= {"files_now": len(listing.files), "below": below, "gone": gone}
        elif self.csv_path is not None and listing.files:
            start = f"{csv_cell(safe_cell(user.username))},{directory.file_system}"
            record |= {"rows": found.files, "csv": "".join([file_row(start, entry) for entry in listing.files])}
        self.write(record)

    def write(self, record: dict[str, Any]) -> None:
        """Raises InventoryError."""
        text = json.dumps(record).encode()
        with checkpoint_errors(self.path):
            write_all(self.file, b"%08x %b\n" % (zlib.crc32(text), text))

    def read(self, unwanted: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Scan and record of each line; the listings of unwanted scans are passed over without a look."""
        with checkpoint_errors(self.path), lines_of(self.file) as lines:
            for line in lines:
                scan = line[19:35].decode("ascii", "replace")
                if scan not in unwanted or b'"username"' in line[37:48]:
                    text = line[9:].rstrip(b"\n")
                    if line[:8] == b"%08x" % zlib.crc32(text):
                        yield scan, json.loads(text)

    def progress(self, names: Iterable[str]) -> str:
        """How many of these users are in progress, with how many directories; "" where none are."""
        begun = [self.in_progress[name] for name in names if name in self.in_progress]
        counts = [sum(totals.directories for totals in user.totals.values()) for user in begun]
        counts = [count for count in counts if count]
        if not counts:
            return ""
        listed = "directory" if sum(counts) == 1 else "directories"
        return f"{counted(len(counts), 'user')} in progress, {sum(counts):,} {listed} listed"

    def want(self, result: UserResult) -> None:
        """The CSV, if there is to be one, is to have the files of this result."""
        if self.csv_path is not None:
            self.wanted[result.scan] = (result.username, result.file_count)

    def publish(self, file: TextIO) -> None:
        """Writes the CSV. Raises InventoryError where rows are missing or too many."""
        rows: Counter[str] = Counter()
        file.write(csv_row(FILE_COLUMNS))
        for scan, record in self.read(set()):
            if scan in self.wanted and "rows" in record:
                file.write(record["csv"])
                rows[scan] += record["rows"]
        for scan, (username, count) in self.wanted.items():
            if rows[scan] != count:
                found = f"{username} has {counted(count, 'file')}, the journal {rows[scan]:,}"
                raise InventoryError(f"--files: {found}; somebody has changed it, scan this user again")


def file_row(start: str, entry: FileEntry) -> str:
    texts = [csv_cell(entry.path), *(csv_cell(safe_cell(text)) for text in (entry.object_type, entry.language))]
    numbers = ["" if number is None else str(number) for number in (entry.object_id, entry.size)]
    return ",".join([start, *texts, *numbers, iso_time(entry.modified or 0)]) + "\n"


# --- Checkpoint -----------------------------------------------------------------------------------------------------

FORMAT_VERSION = 2  # of the file
TAIL = b"\n]}\n"


class SavedLine(NamedTuple):
    """Where a user's line is in the checkpoint, in bytes, and what it says."""

    offset: int
    length: int
    status: str
    scanned_at: str
    scan: str


class Checkpoint:
    """Results, a JSON line each, in one JSON document that is valid between any two saves.

    Every save is one write over the document's tail, so its cost does not grow with the document. A new one is made by
    create(), one that is there read by read(), and its journal opened. Without a path it is kept in memory. The journal
    has the rows for `csv_path`, if that is given.
    """

    def __init__(self, path: Path | None, header: dict[str, Any], csv_path: str | None, files: ExitStack):
        self.file: IO[bytes] = open_locked(path, files) if path else io.BytesIO()
        self.path = path
        self.target = Path(os.path.realpath(path)) if path else None  # whatever becomes of the current folder
        self.header = header
        self.csv_path = csv_path
        self.files = files  # closes what is opened
        self.is_stale = False  # of an earlier run, which this one does not go on with
        self.journal: Journal  # of one that is not stale
        self.lines: dict[str, SavedLine] = {}  # by username
        self.asked: list[str] = []  # the users of this run
        self.end = 0  # of the last result, or of the header
        self.synced_at = -math.inf

    def begin(self, run: str) -> None:
        """Cuts a torn tail off, finds out whether this folder lets files be written in place, and opens the journal.

        That has no name but the run's, and so is found when the checkpoint was moved.
        """
        self.file.truncate(self.end + len(TAIL))
        self.write(TAIL)
        if self.path:
            os.fsync(self.file.fileno())
        journal_path = self.target.with_name(f".journal-{run}.jsonl") if self.target else None
        scans = {line.scan for line in self.lines.values()}
        self.journal = Journal(journal_path, self.csv_path, scans, self.files)

    def create(self) -> None:
        """A new one in an empty file. Raises OSError."""
        run = os.urandom(8).hex()
        first = {"version": FORMAT_VERSION, "program": VERSION, "run": run, **self.header, "results": []}
        start = json.dumps(first)[:-2].encode()
        try:
            self.write(start + TAIL)
            self.end = len(start)
            self.begin(run)
        except (OSError, InventoryError):
            self.file.truncate(0)  # half a header would be refused by the next run
            raise

    def replace_stale(self) -> None:
        """Makes room for a new one, now that the workspace has answered. Raises InventoryError."""
        if self.is_stale and self.target:
            with checkpoint_errors(self.path):
                move_aside(self.file, self.target)
                self.file = open_locked(self.target, self.files)
                self.create()
                self.is_stale = False

    def read(self, before: dict[str, Any]) -> None:
        """The one with this header. Raises OSError, and InventoryError for another run's, and for a bad line."""
        if before["version"] != FORMAT_VERSION:
            raise InventoryError(f"{self.path} was made by an earlier version: run it without --resume")
        was, now = describe(before), describe(self.header)
        if was != now:
            hint = "give the same options, or another --checkpoint"
            raise InventoryError(f"{self.path} is of {was}, this run of {now}: {hint}")
        bad, end = 0, b""  # the last line may be bad: the document's end, or a save that was cut off
        with lines_of(self.file) as lines:
            first = next(lines)
            self.end, offset = len(first.rstrip()), len(first)
            for number, line in enumerate(lines, 2):
                if not line.strip(b"\0 \t\r\n"):  # blank, or what a loss of power leaves
                    end += line.strip()
                elif bad:
                    what = f"{self.path}, line {bad}: not a user's result"
                    raise InventoryError(f"{what}; delete that line, and the user is scanned again")
                elif not self.read_line(line, offset):
                    bad, end = number, line.strip()
                offset += len(line)
        if not b"]}".startswith(end):
            logger.warning("%s ends within a line: its user is scanned again", self.path)
        self.begin(before["run"])

    def read_line(self, line: bytes, offset: int) -> bool:
        """Notes the result that it has; whether it has one."""
        try:
            text = line.decode()
            record, stop = json.JSONDecoder().raw_decode(text)
            if text[stop:].strip() not in ("", ",", ",]}"):  # the latter: a save of which one byte got there
                return False
            self.note(UserResult.from_dict(record), offset, len(text[:stop].encode()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return False
        return True

    def save(self, result: UserResult) -> None:
        line = json.dumps(result.as_dict(), ensure_ascii=False).encode("utf-8", "backslashreplace")
        separator = b",\n" if self.lines else b"\n"
        with checkpoint_errors(self.path):
            self.write(separator + line + TAIL)
            self.note(result, self.end + len(separator), len(line))  # before the disk is waited for
            if self.path and time.monotonic() - self.synced_at >= SYNC_SECONDS:
                os.fsync(self.file.fileno())
                self.synced_at = time.monotonic()
        self.journal.in_progress.pop(result.username, None)

    def write(self, data: bytes) -> None:
        self.file.seek(self.end)
        write_all(self.file, data)

    def note(self, result: UserResult, offset: int, length: int) -> None:
        self.lines[result.username] = SavedLine(offset, length, result.status, result.scanned_at, result.scan)
        self.end = offset + length

    def load(self, username: str) -> UserResult:
        line = self.lines[username]
        with checkpoint_errors(self.path):
            self.file.seek(line.offset)
            return UserResult.from_dict(json.loads(self.file.read(line.length)))

    def done(self, username: str) -> bool:
        return username in self.lines and self.lines[username].status in ("success", "empty")

    def remove(self) -> None:
        journal = self.journal
        if not (self.target and journal.path and has_name(self.file, self.target)):
            return
        if ON_WINDOWS:  # which removes no open file
            self.file.close()
            journal.file.close()
        try:
            journal.path.unlink(missing_ok=True)
            self.target.unlink()
        except OSError as error:
            logger.warning("%s cannot be removed (%s); nobody needs it any more", self.path, error.strerror)


@contextmanager
def open_checkpoint(
    path: Path | None, header: dict[str, Any], resume: bool, csv_path: str | None = None
) -> Iterator[Checkpoint]:
    """The one to go on with: with `resume` the one that is there, else a new one. Raises InventoryError."""
    with ExitStack() as files:
        with checkpoint_errors(path):
            checkpoint = Checkpoint(path, header, csv_path, files)
            before = read_header(checkpoint.file, path) if path else None
            if before and resume:
                checkpoint.read(before)
            elif before:
                checkpoint.is_stale = True
            else:
                if resume:
                    logger.info("no checkpoint %s yet: starting from the beginning", checkpoint.target)
                checkpoint.create()
        yield checkpoint


def read_header(file: IO[bytes], path: Path) -> dict[str, Any] | None:
    """The first line, None of an empty file. Raises OSError, and InventoryError for what is no checkpoint."""
    with lines_of(file) as lines:
        line = lines.readline(100_000)
    if not line:
        return None
    if line.strip() == b"{":
        raise InventoryError(f"{path}: put in another form (by jq?); use it as it was, or name another --checkpoint")
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        header: dict[str, Any] = json.loads(line.rstrip() + b"]}")
        known = header["version"] in (1, FORMAT_VERSION) and header["results"] == [] and describe(header)
        if known and re.fullmatch("[0-9a-f]+", header["run"]):
            return header
    raise InventoryError(f"{path}, line 1: not a checkpoint of this program; name another with --checkpoint")


def describe(header: dict[str, Any]) -> str:
    return f"{header['workspace_url']} with {' and '.join(header['options']['file_systems'])}"


def move_aside(file: IO[bytes], path: Path) -> None:
    """Gives a checkpoint a name with the time of its last save, which no other file has."""
    saved_at = datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, timezone.utc)
    stem = f"{path.stem}.{saved_at:%Y-%m-%dT%H-%M-%S}"
    aside, number = path.with_name(stem + path.suffix), 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{stem}-{number}{path.suffix}")
    if ON_WINDOWS:  # which renames no open file
        file.close()
    rename(path, aside)
    file.close()
    logger.warning("the checkpoint that was there is now %s: --resume with --checkpoint goes on with it", aside)


# --- From Python ----------------------------------------------------------------------------------------------------


def scan_users(
    usernames: Iterable[str],
    config: DatabricksConfig,
    threads: int = DEFAULT_THREADS,
    file_systems: tuple[str, ...] = tuple(FILE_SYSTEMS),
    client: DatabricksClient | None = None,
    on_tick: Callable[[], None] = lambda: None,
    everyone: Iterable[str] = (),
    cluster: Cluster | None = None,
    files: str | Path | None = None,
    rate: float | None = None,
) -> Iterator[UserResult]:
    """Scans users from this process; yields each result when it is complete, nearly in order.

    `on_tick` is called at least once a second. `everyone` names further users of the same inventory, whose homes are
    not anybody else's in other letter case. `files` names a CSV (.gz: gzipped) that gets a row for each file of these
    users, FILE_COLUMNS, when the last result has been taken. `rate` is the most requests/s to each file system, 1 to
    MOST_RATE. Raises TypeError for one text or a DataFrame, ValueError for a name or an option that is none,
    InventoryError if the login is refused, the workspace stays away, or the CSV cannot be written.
    """
    check_names(globals())
    if isinstance(usernames, (str, bytes)) or hasattr(usernames, "columns"):
        raise TypeError("usernames is to be a list of names: [name] for one user; one column as a list for a DataFrame")
    for name in (names := list(usernames)):
        check_username(name)
    is_number = (rate is None or 1 <= rate <= MOST_RATE) and 1 <= threads <= MOST_THREADS
    if not (is_number and file_systems and {*file_systems} <= {*FILE_SYSTEMS}):
        numbers = f"rate is to be from 1 to {MOST_RATE}, threads from 1 to {MOST_THREADS}"
        raise ValueError(f"{numbers}, file_systems of {tuple(FILE_SYSTEMS)}")
    if files is not None:
        check_output(files := lasting(str(files)))
    client = client or DatabricksClient(config, threads)
    folders, admin = look_around(client, file_systems) if names else ({}, False)
    homes, _ = assign_homes([*names, *everyone], folders, admin)
    left = {name: homes[name] for name in names}
    unknown = find_unknown(client, left, folders)
    with open_checkpoint(None, {}, False, None if files is None else str(files)) as checkpoint:
        journal = checkpoint.journal
        tally = Tally(left, client.statistics, admin, journal)
        for listed in Crawler(client, tally, threads, cluster, rate).run(on_tick):
            result = tell_unknown(listed, unknown)
            journal.want(result)
            journal.in_progress.pop(result.username, None)
            yield result
        if files is not None:
            write_output(str(files), journal.publish)


def scan_user_directory(username: str, config: DatabricksConfig, threads: int = DEFAULT_THREADS) -> UserResult:
    """Both file systems of one user. Raises as scan_users() does."""
    return next(scan_users([username], config, threads))


def scan_dbfs(username: str, config: DatabricksConfig, threads: int = DEFAULT_THREADS) -> FileSystemTotals:
    """One user's DBFS, sizes exact. Raises as scan_users() does, and InventoryError where DBFS is disabled."""
    return next(scan_users([username], config, threads, ("dbfs",))).scanned["dbfs"]


def scan_workspace(username: str, config: DatabricksConfig, threads: int = DEFAULT_THREADS) -> FileSystemTotals:
    """One user's Workspace; see FileSystemTotals for its sizes. Raises as scan_users() does."""
    return next(scan_users([username], config, threads, ("workspace",))).scanned["workspace"]


def process_user_batch_parallel(
    spark: Any, usernames: Iterable[str], config: DatabricksConfig, threads: int = DEFAULT_THREADS, **options: Any
) -> Iterator[UserResult]:
    """scan_users() with the workers of a Spark session (Connect, or the classic one of a notebook) as further hands.

    The session is not stopped. Where its workers cannot do it, a warning says why, and this process goes on alone.
    """
    return scan_users(usernames, config, threads, cluster=Cluster(spark), **options)


# --- Results --------------------------------------------------------------------------------------------------------


def check_places(outputs: list[str], users_file: str | None, checkpoint: Path | None) -> None:
    """Raises InventoryError where one file or stream is named twice, or an output cannot be written."""
    read = "/dev/stdin" if users_file == "-" else users_file or ""
    others = [str(checkpoint or ""), read if os.path.isfile(read) else ""]
    places: dict[object, str] = {}
    for path in filter(None, outputs + others):
        place = place_of(path)
        if place in places:
            first, second = shown(places[place]), shown(path)
            both = f"{first} and {second} are one" if first != second else f"two of these go to {first}"
            raise InventoryError(f"{both}: outputs, --users-file and --checkpoint must be different files")
        places[place] = path
    for path in outputs:
        check_output(path)


def human_size(size: float) -> str:
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units = units[1:]
    return f"{size:,.0f} B" if units[0] == "B" else f"{size:,.1f} {units[0]}"


def figures(totals: FileSystemTotals) -> tuple[str, str, str]:
    """Files, size, and how much of it is estimated."""
    estimated = human_size(totals.estimated_bytes) if totals.estimated else "-"
    return f"{totals.files:,}", human_size(totals.bytes), estimated


def size_line(totals: FileSystemTotals, label: str) -> str:
    """A line of the summary's table; names come last, whose width on a terminal is hard to tell."""
    return "{:>14}{:>12}{:>12}  {}".format(*figures(totals), label)


@dataclass
class Group:
    """Some of the rows: how many, what they have together, and the largest of them."""

    rows: int = 0
    totals: FileSystemTotals = field(default_factory=FileSystemTotals)
    largest: list[tuple[str, FileSystemTotals]] = field(default_factory=list)

    def add(self, username: str, totals: FileSystemTotals) -> None:
        self.rows += 1
        self.totals.add(totals)
        if totals.files and (len(self.largest) < LARGEST or totals.bytes > self.largest[-1][1].bytes):
            self.largest = heapq.nlargest(LARGEST, [*self.largest, (username, totals)], key=lambda user: user[1].bytes)

    def __str__(self) -> str:
        return f"{counted(self.rows, 'row')}, {counted(self.totals.files, 'file')}, {human_size(self.totals.bytes)}"


Sizes = dict[str, "int | None"]  # bytes by name, as it is in a cell; None where not all could be listed


def signed_size(size: int) -> str:
    return f"{'-' if size < 0 else '+'}{human_size(abs(size))}"


def compare(before: Sizes, now: Sizes) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The change in all, and each kind of it: a title, and the names with the largest changes."""
    kinds: dict[str, list[tuple[int, str]]] = {"Grew": [], "Shrank": [], "Came": [], "Went": []}
    not_compared = 0
    for name in {**before, **now}:
        was, size = before.get(name, 0), now.get(name, 0)
        if was is None or size is None:
            not_compared += 1
        elif name not in before or name not in now:
            kinds["Came" if name in now else "Went"].append((size - was, name))
        elif was != size:
            kinds["Grew" if was < size else "Shrank"].append((size - was, name))
    change = signed_size(sum(change for rows in kinds.values() for change, _ in rows))
    yield f"In all {change}; {counted(not_compared, 'row')} not compared, since not complete in both", []
    for kind, rows in kinds.items():
        if rows:
            largest = heapq.nlargest(BIGGEST_USERS, rows, key=lambda row: abs(row[0]))
            title = f"{kind}: {counted(len(rows), 'row')}, {signed_size(sum(change for change, _ in rows))}"
            yield title, [(name, signed_size(change)) for change, name in largest]


class Summary:
    """The sums over all rows; `kinds` has the names of rows that are of one of KINDS."""

    def __init__(self, workspace: str, kinds: dict[str, str], before: tuple[str, Sizes] | None) -> None:
        self.workspace = workspace
        self.kinds = kinds
        self.before = before
        self.sizes: Sizes = {}  # only to be compared with those of before
        self.year_ago = iso_time(int(time.time() - 365 * 86_400) * 1000)
        self.statuses: Counter[str] = Counter()
        self.totals: dict[str, FileSystemTotals] = {}
        self.groups = {title: Group() for title in (EVERYBODY, *(f"Homes of {kind}" for kind in KINDS), UNTOUCHED)}
        self.dates: list[str] = []  # of the first and the last scan
        self.failed = 0
        self.incomplete: list[UserResult] = []  # the first of them
        self.homes: Counter[str] = Counter()  # users that have one, by file system
        self.homeless: list[str] = []  # users without a home anywhere
        self.last = UserResult("", "")

    def add(self, result: UserResult) -> None:
        self.last = result
        days = [*self.dates, result.scanned_at[:10]]
        self.dates = [min(days), max(days)]
        self.statuses[result.status] += 1
        both = FileSystemTotals()
        for name, totals in result.scanned.items():
            both.add(totals)
            self.totals.setdefault(name, FileSystemTotals()).add(totals)
        for name, home in result.homes.items():
            self.homes[name] += home is not None
        if not result.error and not any(result.homes.values()):
            self.homeless.append(result.username)
        self.failed += bool(result.error)
        if result.error and len(self.incomplete) < LARGEST:
            self.incomplete.append(result)
        if self.before:
            self.sizes[safe_cell(result.username)] = None if result.error else result.total_size
        self.groups[EVERYBODY].add(result.username, both)
        if kind := self.kinds.get(result.username):
            self.groups[f"Homes of {kind}"].add(result.username, both)
        if result.dbfs and not result.dbfs.failures and "" < result.dbfs.last_modified < self.year_ago:
            self.groups[UNTOUCHED].add(result.username, result.dbfs)

    def others(self) -> list[tuple[str, Group]]:
        """The homes that are no user's: what they are, and their sums."""
        groups = [(kind, self.groups[f"Homes of {kind}"]) for kind in KINDS[:2]]
        return [(f"{counted(group.rows, 'home')} of {kind}", group) for kind, group in groups if group.rows]

    @property
    def counts(self) -> str:
        """How many rows there are, whose, and of which status."""
        users = self.statuses.total() - sum(group.rows for _, group in self.others())
        whose = [counted(users, "user"), *(text for text, _ in self.others())]
        statuses = [f"{self.statuses[status]:,} {status}" for status in STATUSES if self.statuses[status]]
        return f"{', '.join(whose)}: {', '.join(statuses)}"

    def lines(self, statistics: Counter[str], seconds: float, nobodys: dict[str, set[str]]) -> list[str]:
        count, failed = self.statuses.total(), self.failed
        lines = [self.counts, f"{'files':>14}{'size':>12}{'estimated':>12}"]
        for name, totals in self.totals.items():
            each = f", {WORKSPACE_OBJECT_SIZE:,} bytes an object" if totals.estimated else ""
            lines.append(size_line(totals, FILE_SYSTEMS[name].label + each))
        lines += [size_line(group.totals, f"of it {text}") for text, group in self.others()]
        largest = [size_line(totals, name) for name, totals in self.groups[EVERYBODY].largest[:BIGGEST_USERS]]
        lines += [f"{'-' * 38:>40}", *(breakdown(self.last) if count == 1 else largest)]
        if count > 1:
            lines.append(f"homes: {in_each(self.homes)}")
        if self.homeless:
            lines.append(f"no home anywhere: {counted(len(self.homeless), 'user')}, the first is {self.homeless[0]}")
        if left := {name: len(homes) for name, homes in nobodys.items() if homes}:
            lines.append(f"other homes under {USERS_FOLDER}: {in_each(left)}; --all-homes scans them, too")
        if self.before:
            lines.append(self.before[0])
            for title, rows in compare(self.before[1], self.sizes):
                lines += [title, *(f"{change:>14}  {name}" for name, change in rows)]
        of_them = f"{statistics['retries']:,} of them repeats, {statistics['rate_limited']:,} answered 429"
        lines.append(f"{counted(statistics['requests'], 'request')}, {of_them}, in {timedelta(seconds=round(seconds))}")
        if statistics["vanished"]:
            lines.append(f"directories that vanished during the scan: {statistics['vanished']:,}")
        if failed and count > 1:
            lines.append("Not all could be listed:")
            for user in self.incomplete[:SHOWN_FAILURES]:
                lines.append("  " + one_line(f"{user.status}: {user.username}: {user.error}", 300))
            if failed > SHOWN_FAILURES:
                lines.append(f"  and {counted(failed - SHOWN_FAILURES, 'more user')}")
        if failed:
            lines.append("What could not be listed is missing from the counts; --details names every such directory.")
        return [line.replace("\n", "?") for line in lines]  # in a name


def in_each(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} in {FILE_SYSTEMS[name].label}" for name, count in counts.items())


def breakdown(user: UserResult) -> list[str]:
    """One user's object types by file system, and what could not be listed."""
    lines = []
    for name, totals in user.scanned.items():
        listed = f"{totals.directories:,} director{'y' if totals.directories == 1 else 'ies'} listed"
        types = ", ".join(f"{count:,} {object_type}" for object_type, count in sorted(totals.types.items()))
        lines.append(f"{FILE_SYSTEMS[name].label}: {listed}" + (f" with {types}" if types else ""))
        lines += [f"  not listed: {at['path']}: {at['error']}" for at in totals.failures[:SHOWN_FAILURES]]
        if len(totals.failures) > SHOWN_FAILURES:
            lines.append(f"  not listed: {len(totals.failures) - SHOWN_FAILURES:,} more")
    return lines


def write_results(checkpoint: Checkpoint, summary: Summary, args: argparse.Namespace) -> list[InventoryError]:
    """Adds all results to the summary, and writes all outputs; returns what could not be written."""
    journal, now = checkpoint.journal, datetime.now(timezone.utc)
    lines = [csv_row(CSV_COLUMNS)]
    for result in map(checkpoint.load, checkpoint.asked):
        lines.append(csv_row(map(str, result.row().values())))
        summary.add(result)
        journal.want(result)

    def write_details(file: TextIO) -> None:
        for result in map(checkpoint.load, checkpoint.asked):
            kind = {"of": summary.kinds[result.username]} if result.username in summary.kinds else {}
            file.write(json.dumps(result.as_dict() | kind, ensure_ascii=False) + "\n")

    outputs: list[tuple[str | None, Callable[[TextIO], object]]] = [
        (args.details, write_details),
        (args.files, journal.publish),
        (args.report, lambda file: file.write(report_page(summary, now))),
        (args.output, lambda file: file.write("".join(lines))),  # last, when all is known to be right
    ]
    failures = []
    for path, write in outputs:
        try:
            if path is not None:
                write_output(path, write, saved=checkpoint.path is not None)
        except InventoryError as error:
            failures.append(error)
    return failures


class Progress:
    """A bar on a terminal, else a line every 30 s. There is no forecast: the last user may be the largest."""

    def __init__(self, total: int, tally: Tally, quiet: bool):
        self.total = total
        self.tally = tally
        self.quiet = quiet
        self.told_at = time.monotonic()
        self.told_requests = 0
        self.bar: Any = None
        with self.decoration():
            if not quiet and sys.stderr.isatty():
                from tqdm import tqdm

                shape = "{bar}| {n:,}/{total:,} users [{elapsed}{postfix}]"
                bar = tqdm(total=total, initial=self.done(), bar_format=shape, dynamic_ncols=True)
                self.bar = None if bar.disable else bar

    @contextmanager
    def decoration(self) -> Iterator[None]:
        """What nobody needs: where tqdm is missing, broken, or misled by its variables, there is no bar any more."""
        try:
            yield
        except Exception as error:
            self.bar = None
            logger.debug("no progress bar: %s", error)

    def done(self) -> int:
        return self.total - len(self.tally.users) + self.tally.opened - len(self.tally.open)

    def tick(self) -> None:
        if not self.quiet and time.monotonic() - self.told_at > (BAR_SECONDS if self.bar else PROGRESS_SECONDS):
            with self.decoration():
                self.show()

    def show(self) -> None:
        now, statistics = time.monotonic(), self.tally.statistics
        rate = (statistics["requests"] - self.told_requests) / max(now - self.told_at, 0.001)
        self.told_at, self.told_requests = now, statistics["requests"]
        opened = list(self.tally.open.values())
        parts = [f"{statistics['directories']:,} directories", f"{sum(user.pending for user in opened):,} waiting"]
        parts += [f"{statistics['files']:,} files", f"{rate:,.0f} requests/s"]
        parts += [f"longest ({user.pending:,} to come): {one_line(user.username, 60)}" for user in opened[:1]]
        if not self.bar:
            users = f"{self.done():,} of {self.total:,} users"
            logger.info("%s  %s", time.strftime("%H:%M:%S"), ", ".join([users, *parts]))
            return
        # tqdm cuts what there is no room for: half a name will do, but half a number is another one.
        room = (self.bar.ncols or 80) - 2 * len(f"{self.total:,}") - len("#| / users [00:00]")
        while parts and len(", ".join([*parts[:-1], parts[-1][:22]])) > room:
            del parts[-2 if len(parts) > 2 and opened else -1]
        self.bar.n = self.done()
        self.bar.set_postfix_str(", ".join(parts))

    def close(self) -> None:
        """The bar's last state stays on the terminal."""
        with self.decoration():
            if self.bar:
                self.show()
                self.bar.close()


# --- Report ---------------------------------------------------------------------------------------------------------

# A name is text and nothing else: it is escaped, and the page may load and run nothing.
PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="robots" content="noindex"><title>$title</title>
<style>
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }
body { max-width: 90ch; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere }
h1, h2 { line-height: 1.25; margin: 2.5rem 0 .5rem }
table { border-collapse: collapse; width: 100%; margin-bottom: 1rem }
tr { border-bottom: 1px solid GrayText }
caption, th, td { text-align: left; vertical-align: top; padding: .25rem .5rem }
tbody th { font-weight: normal; width: 50% }
.number:not(:first-child) { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.bar { display: flex; height: .5rem; print-color-adjust: exact; -webkit-print-color-adjust: exact }
.bar i { background: #4d82c4 }
.bar .estimated { background: repeating-linear-gradient(45deg, #4d82c4 0 2px, transparent 2px 5px) }
@media (max-width: 40rem) { tr { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)) }
  th:first-child, .text { grid-column: 1 / -1; width: auto } }
@media print { body { max-width: none; margin: 0 } tr { break-inside: avoid } h2, caption { break-after: avoid } }
</style>
<h1>$title</h1>
$body
""")


def report_page(summary: Summary, now: datetime) -> str:
    """The page of --report; `now` is UTC. What is missing stands above the first sum."""
    all_rows = counted(summary.statuses.total(), "row")
    scanned = " to ".join(dict.fromkeys(summary.dates)) or "never"
    left_out = [f" {kind.label} was left out." for name, kind in FILE_SYSTEMS.items() if name not in summary.totals]
    when = f"Made {now:%Y-%m-%d %H:%M} UTC by version {VERSION}, of the homes in /Users alone, listed {scanned}."
    parts = [tag("p", when + "".join(left_out))]
    if summary.incomplete:
        parts.append(tag("h2", f"Missing: {summary.failed:,} of {all_rows} could not be listed completely"))
        parts.append(tag("p", "The numbers below are of what could be listed; --details names every directory."))
        rows = [(user.username, f"{user.status}: {one_line(user.error, 300)}") for user in summary.incomplete]
        parts.append(html_table(f"The first {len(rows)}", ("name", "status and first failure"), rows, "text"))
    else:
        parts.append(tag("p", f"All of {all_rows} could be listed completely."))
    parts += [tag("h2", "Sums"), tag("p", f"{summary.groups[EVERYBODY]}. {summary.counts}")]
    estimate = f"Estimated: {WORKSPACE_OBJECT_SIZE:,} bytes for each object whose size the API does not tell"
    parts.append(ranking(estimate, [(FILE_SYSTEMS[name].label, totals) for name, totals in summary.totals.items()]))
    for title, group in summary.groups.items():
        if group.rows:
            parts += [tag("h2", title), ranking(f"{group}; the largest {len(group.largest)}:", group.largest)]
    if summary.before:
        parts.append(tag("h2", summary.before[0]))
        for title, rows in compare(summary.before[1], summary.sizes):
            parts.append(html_table(title, ("name", "change"), rows) if rows else tag("p", title))
    types = Counter(summary.groups[EVERYBODY].totals.types).most_common()
    if notebooks := [(kind, f"{count:,}") for kind, count in types if kind.startswith("NOTEBOOK")]:
        parts += [tag("h2", "Notebooks"), html_table("By language", ("type", "notebooks"), notebooks)]
    return PAGE.substitute(title=escape(f"Who stores what in {summary.workspace}"), body="\n".join(parts))


def ranking(caption: str, shares: list[tuple[str, FileSystemTotals]]) -> str:
    """A table with a bar as long as each size, hatched as far as that is estimated."""
    longest = max([1, *(totals.bytes for _, totals in shares)])
    bars = []
    for _, totals in shares:
        exact, estimated = (totals.bytes - totals.estimated_bytes) / longest, totals.estimated_bytes / longest
        parts = f'<i style="width:{exact:.2%}"></i><i class="estimated" style="width:{estimated:.2%}"></i>'
        bars.append(f'<div class="bar">{parts}</div>')
    rows = [(name, *figures(totals)) for name, totals in shares]
    return html_table(caption, ("name", "files", "size", "estimated"), rows, bars=bars)


def html_table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "number", bars: Iterable[str] = ()
) -> str:
    """Cells are texts, those behind the first one of that kind; bars are HTML below the first cell's text."""
    titles = "".join(f'<th scope="col" class="{kind}">{escape(title)}</th>' for title in head)
    lines = [f"<table>\n<caption>{escape(caption)}</caption>\n<thead><tr>{titles}</tr></thead>\n<tbody>"]
    for row, bar in itertools.zip_longest(rows, bars, fillvalue=""):
        cells = "".join(f'<td class="{kind}"><bdi>{escape(cell)}</bdi></td>' for cell in row[1:])
        lines.append(f'<tr><th scope="row"><bdi>{escape(row[0])}</bdi>{bar}</th>{cells}</tr>')
    return "\n".join([*lines, "</tbody>\n</table>"])


def tag(name: str, text: str) -> str:
    return f"<{name}>{escape(text)}</{name}>"


# --- Command --------------------------------------------------------------------------------------------------------


def read_usernames(named: list[str], users_file: str | None) -> dict[str, bool]:
    """The names given and those in the file, each once, and whether all of its lines say that they are deactivated."""
    users: list[tuple[str, str, bool | None]] = [("command line", name, None) for name in named]
    if users_file is not None:
        users += read_users_file(users_file)
    for place, name, _ in users:
        try:
            check_username(name)
        except ValueError as error:
            raise InventoryError(f"{place}: {error}") from None
    gone, active = ({name for _, name, deactivated in users if deactivated is wanted} for wanted in (True, False))
    return {name: name in gone and name not in active for _, name, _ in users}


def read_users_file(path: str) -> list[tuple[str, str, bool]]:
    """Place and name of each user, and whether a column `active` says false: of a CSV, or of a name a line."""
    rows = read_rows(path)
    header = rows[0][1] if rows else []
    column = find_column(header)
    if column is not None:
        rows = rows[1:]
    elif len(header) > 1 or re.search("[;\t]", "".join(header)):
        raise InventoryError(f"{path}: several columns, and none is called {', '.join(NAME_COLUMNS)}")
    if not rows:
        raise InventoryError(f"{path} has no user names")
    active = [number for number, title in enumerate(header) if title.lower() == "active"]
    users = []
    for place, cells in rows:
        if any(cells[len(header) :]):  # of a name, maybe, that has the delimiter in it
            raise InventoryError(f"{place}: more columns than in the first line")
        padded = cells + [""] * len(header)
        name = re.sub(f"^'(?=[{FORMULA_STARTS}])", "", padded[column or 0])  # of safe_cell()
        users.append((place, name, any(padded[number].lower() == "false" for number in active)))
    return users


def find_column(header: list[str]) -> int | None:
    """Where the names are."""
    titles = [title.lower() for title in header]
    return next((titles.index(name.lower()) for name in NAME_COLUMNS if name.lower() in titles), None)


def read_rows(path: str) -> list[tuple[str, list[str]]]:
    """Place and cells of each row that is not blank. This is the one place where blanks around cells go."""
    lines = read_lines(path)
    header = next((line for line in lines if line.strip(" \t\n")), "")
    titles = {sign: [title.strip(' \t\n"') for title in header.split(sign)] for sign in ",;\t"}
    delimiter = next((sign for sign in titles if find_column(titles[sign]) is not None), ",")
    blanks = " " if delimiter == "\t" else " \t"
    around = re.compile(f"[{blanks}]*{delimiter}[{blanks}]*")  # else a quoted cell would end before them
    tidied = [around.sub(delimiter, line.strip(f"{blanks}\n")) + "\n" for line in lines]
    reader = csv.reader(tidied, delimiter=delimiter, strict=True)
    rows = []
    limit = csv.field_size_limit(2**31 - 1)  # of the process
    try:
        for row in reader:
            cells = [cell.strip(" \t") for cell in row]
            if any(cells):
                rows.append((f"{path}, line {reader.line_num}", cells))
    except csv.Error as error:
        raise InventoryError(f"{path}, line {reader.line_num}: not a row of a CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)
    return rows


def read_lines(path: str, option: str = "--users-file") -> list[str]:
    """Of a text in UTF-8, or in UTF-16 with BOM, gzipped or not; - is stdin."""
    try:
        if path != "-":
            data = Path(path).read_bytes()
        elif hasattr(sys.stdin, "buffer"):
            data = sys.stdin.buffer.read()
        else:
            raise InventoryError(f"{option} -: stdin is closed; name a file")
        if data.startswith(GZIP_MAGIC):
            data = gzip.decompress(data)
        if data.startswith(b"PK\3\4"):
            raise InventoryError(f"{path} is a workbook, or another kind of zip file: save it as CSV")
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        return list(io.StringIO(data.decode(encoding), newline=None))
    except (OSError, EOFError, zlib.error) as error:
        is_missing = isinstance(error, FileNotFoundError) and option == "--users-file"
        hint = f'; to make it: python databricks_user_list.py -o "{path}"' if is_missing else ""
        reason = getattr(error, "strerror", None) or error
        raise InventoryError(f"{option} {path} cannot be read: {reason}{hint}") from error
    except UnicodeError as error:
        raise InventoryError(f"{path} is neither UTF-8 nor UTF-16 with BOM: save it as UTF-8") from error


def read_inventory(args: argparse.Namespace) -> tuple[str, Sizes] | None:
    """What --compare names, and the sizes in it. Raises InventoryError if it is no inventory, or of something else."""
    path = args.compare
    if path is None:
        return None
    if path == "-" or place_of(path) in map(place_of, filter(None, (args.details, args.files, args.report))):
        raise InventoryError("--compare takes a file, and none that another output than --output replaces")
    if not os.path.exists(path) and place_of(path) == place_of(args.output):
        logger.info("there is no %s yet to compare with", shown(path))
        return None
    reader = csv.DictReader(read_lines(path, "--compare"), strict=True)
    before: Sizes = {}
    sources: set[str] = set()
    try:
        for row in reader:
            cell = safe_cell(row["username"])
            if cell in before or row["status"] not in STATUSES:
                raise ValueError("a name for the second time, or no status")
            before[cell] = int(row["total_size"]) if row["status"] in ("success", "empty") else None
            sources |= {*FILE_SYSTEMS} if row["file_source"] == "both" else {row["file_source"]}
        if not {*CSV_COLUMNS} <= {*(reader.fieldnames or ())}:
            raise ValueError("other columns")
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise InventoryError(f"{shown(path)}, line {reader.line_num}: not a row of an inventory") from error
    title = f"Compared with {shown(path)}"
    for name, record in FILE_SYSTEMS.items():
        if name in sources and name not in args.file_systems:
            raise InventoryError(f"{shown(path)} has files of {record.label}, which this run leaves out")
        if name not in sources and name in args.file_systems:
            title += f", which has nothing of {record.label}"
    return title, before


def build_parser() -> Parser:
    description = "Inventory of users' files in DBFS and Workspace: one CSV row per user."
    parser = Parser(prog="databricks_user_files_simple.py", allow_abbrev=False, description=description)
    option = parser.add_argument
    flag = partial(option, action="store_true")
    option("users", nargs="*", metavar="USER", help="names of users to scan")
    file = partial(option, metavar="FILE")
    file("--users-file", help="users to scan: the CSV of databricks_user_list.py, or one name a line; - is stdin")
    flag("--all-homes", help="scan all other homes, too (service principals, deleted users); without users, all homes")
    add_login_options(parser)
    output = partial(file, type=lasting)
    output("-o", "--output", default="-", help="the CSV (default: stdout)")
    output("--details", help="one JSON object per user: by file system and object type, all that could not be listed")
    output("--files", help="one CSV row per file: user, file system, path, type, size, time; any FILE.gz is gzipped")
    output("--report", help="one HTML page: what is missing, the sums, the largest, deactivated users, what is old")
    option("--compare", metavar="CSV", help="an inventory of before: who grew, shrank, came and went since")
    threads, rate = (partial(whole_number, most=most) for most in (MOST_THREADS, MOST_RATE))
    number = partial(option, metavar="N")
    number("--threads", type=threads, default=DEFAULT_THREADS, help="requests at once, 1 to 64 (default: %(default)s)")
    number("--rate", type=rate, help="requests/s to each file system, 1 to 1000 (default: what the service allows)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--cluster-id", metavar="ID", help="spread the scan over this Databricks cluster")
    remote_help = "spread it over any Spark Connect server, sc://... (default: SPARK_REMOTE)"
    where.add_argument("--spark-remote", metavar="URL", type=connect_url, help=remote_help)
    flag("--no-parallel", help="scan from this machine alone in any case")
    only = parser.add_mutually_exclusive_group()
    only.set_defaults(file_systems=tuple(FILE_SYSTEMS))
    choice = partial(only.add_argument, dest="file_systems", action="store_const")
    for name, record in FILE_SYSTEMS.items():
        choice(f"--{name}-only", const=(name,), help=f"scan {record.in_words} alone")
    flag("--resume", help="go on with the checkpoint: scan users that are not in it, or there as partial or error")
    file("--checkpoint", help=f"where users are saved (default: {CHECKPOINT_FILE}; for named users alone nowhere)")
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("-q", "--quiet", action="store_true", help="warnings, errors and the summary only")
    volume.add_argument("--debug", action="store_true", help="each directory, retry and wait; tracebacks")
    option("--version", action="version", version=f"%(prog)s {VERSION}")
    return parser


def run(args: argparse.Namespace) -> int:
    path = choose_checkpoint(args)
    config = log_in(args)
    names = read_usernames(args.users, args.users_file)
    if not names and not args.all_homes:
        raise InventoryError("name users, or give --users-file; or --all-homes, for all homes there are")
    outputs = [name for name in (args.output, args.details, args.files, args.report) if name is not None]
    check_places(outputs, args.users_file, path)
    args.before = read_inventory(args)
    header = {"workspace_url": config.workspace, "options": {"file_systems": list(args.file_systems)}}
    with open_checkpoint(path, header, args.resume, args.files) as checkpoint:
        expected = checkpoint.lines if args.all_homes else {}  # until the homes are known
        checkpoint.asked = list(dict.fromkeys([*names, *expected]))
        try:
            scan_into(checkpoint, names, DatabricksClient(config, args.threads), args)
            return finish(checkpoint, args.all_homes)
        except BaseException:
            args.saved = last_line(checkpoint)
            raise


def choose_checkpoint(args: argparse.Namespace) -> Path | None:
    """None for a run of named users alone, which keeps one only where it is named."""
    if args.checkpoint is not None:
        return Path(args.checkpoint)
    if args.users_file is not None or args.all_homes:
        return Path(CHECKPOINT_FILE)
    if args.resume:
        raise InventoryError("--resume goes with --users-file, --all-homes or --checkpoint: else nothing is saved")
    return None


def last_line(checkpoint: Checkpoint) -> str:
    """Of a run that something ends before its time: what is saved; a checkpoint of nobody goes, "" then."""
    if checkpoint.path is None or checkpoint.is_stale:
        return ""
    journal, asked = checkpoint.journal, checkpoint.asked
    if not checkpoint.lines and not journal.progress(journal.in_progress):
        checkpoint.remove()
        return ""
    saved = sum(name in checkpoint.lines for name in asked)
    parts = [f"{saved:,} of {len(asked):,} users saved in {checkpoint.path}", journal.progress(asked)]
    return f"{', '.join(filter(None, parts))}; the same command with --resume goes on"


def scan_into(
    checkpoint: Checkpoint, names: dict[str, bool], client: DatabricksClient, args: argparse.Namespace
) -> None:
    """Scans the users that the checkpoint does not have, and writes the outputs for all. Raises InventoryError."""
    started = time.monotonic()
    folders, admin = look_around(client, args.file_systems)
    checkpoint.replace_stale()
    homes, nobodys = assign_homes(names, folders, admin)
    kinds = {name: "deactivated users" for name, deactivated in names.items() if deactivated}
    if args.all_homes:
        others = nobodys_homes(folders, nobodys)
        kinds |= whose(client, others)
        homes |= others
        nobodys = {}
    checkpoint.asked = list(homes)
    left = {name: homes[name] for name in homes if not is_kept(checkpoint, name, homes[name], admin, client)}
    unknown = find_unknown(client, left, folders)
    cluster = scan_left(checkpoint, Tally(left, client.statistics, admin, checkpoint.journal), unknown, client, args)
    client.close()  # what idle connections hold, the outputs may need
    summary = Summary(client.config.workspace, kinds, args.before)
    failures = write_results(checkpoint, summary, args)
    tell(*summary.lines(client.statistics, time.monotonic() - started, nobodys))
    if args.files is not None and not failures:
        files = sum(count for _, count in checkpoint.journal.wanted.values())
        tell(f"{counted(files, 'row')} in {shown(args.files)}, one for each file")
    if cluster:
        tell(cluster.summary())
    if len(summary.homeless) == len(homes) > 0:
        logger.warning("none of these users has a home anywhere: are these the names of this workspace's users?")
    for error in failures[:-1]:
        logger.error("%s", error)
    if failures:
        raise failures[-1]


def scan_left(
    checkpoint: Checkpoint, tally: Tally, unknown: dict[str, str], client: DatabricksClient, args: argparse.Namespace
) -> Cluster | None:
    """Scans and saves the tally's users; returns the cluster that may have helped."""
    left = dict(tally.users)
    tally.journal.forget_outdated(left, tally.admin)
    tell_kept(checkpoint, list(left))
    tell_homes({name: left[name] for name in left if name not in tally.journal.in_progress})
    cluster = choose_cluster(args, client.config)
    progress = Progress(len(checkpoint.asked), tally, args.quiet)
    results = Crawler(client, tally, args.threads, cluster, args.rate).run(progress.tick)
    with closing(progress), closing(results):  # an interrupt ends the cluster before it is told
        for result in results:
            checkpoint.save(tell_unknown(result, unknown))
    return cluster


def is_kept(checkpoint: Checkpoint, name: str, homes: dict[str, Home], admin: bool, client: DatabricksClient) -> bool:
    """Whether the user is complete in the checkpoint, with the homes of now, for this login, with the rows of files."""
    if not checkpoint.done(name):
        return False
    result = checkpoint.load(name)
    has_rows = checkpoint.csv_path is None or checkpoint.journal.rows[result.scan] == result.file_count
    is_certain = result.certain or known_users(client) is None  # else it can be told by now
    return has_homes(result.homes, homes) and (result.admin or not admin) and has_rows and is_certain


def tell_kept(checkpoint: Checkpoint, left: list[str]) -> None:
    """Says of which dates the rows are that are not scanned again, what is in progress, and who is scanned again."""
    kept = set(checkpoint.asked) - set(left)
    dates = Counter(checkpoint.lines[name].scanned_at[:10] for name in kept)
    parts = [f"{counted(count, 'row')} of {date}" for date, count in sorted(dates.items())]
    if progress := checkpoint.journal.progress(left):
        parts.append(progress)
    if parts:
        logger.info("kept from the checkpoint: %s; to scan: %s", ", ".join(parts), counted(len(left), "user"))
    if again := sum(map(checkpoint.done, left)):
        why = "other homes, no admin's login or no list of users before, or no rows for --files"
        logger.info("%s to scan again: %s", counted(again, "complete user"), why)


def tell_homes(left: Homes) -> None:
    """Says before the first user how many homes are to be listed, with a request for each at least."""
    homes = [(name, home.is_listed) for found in left.values() for name, home in found.items() if home.path is not None]
    counts = Counter(f"in {FILE_SYSTEMS[name].label}" if listed else "to look for" for name, listed in homes)
    if homes:
        parts = ", ".join(f"{count:,} {where}" for where, count in sorted(counts.items()))
        logger.info("homes to list: %s; at least %s", parts, counted(len(homes), "request"))


def finish(checkpoint: Checkpoint, all_homes: bool) -> int:
    """Removes the checkpoint, unless it is needed for something else than this output; returns the exit code.

    With `all_homes` a user that was not asked for is one whose home is gone.
    """
    left = [name for name in checkpoint.asked if not checkpoint.done(name)]
    again = sum(not checkpoint.load(name).unknown for name in left)
    kept = checkpoint.lines.keys() | checkpoint.journal.in_progress.keys()
    others = 0 if all_homes else len(kept - set(checkpoint.asked))
    if not again and not others:
        checkpoint.remove()
    elif checkpoint.path:
        why = f"--resume scans {counted(again, 'user')} again"
        more = f"it has {counted(others, 'user')} whom this command did not name"
        tell(f"The checkpoint {checkpoint.path} stays: {why if again else more}")
    return 1 if left else 0


def choose_cluster(args: argparse.Namespace, config: DatabricksConfig) -> Cluster | None:
    """The cluster that may add hands, and a line that says which mode this is and why."""
    remote = args.spark_remote or os.environ.get("SPARK_REMOTE", "")
    if args.no_parallel or not (args.spark or args.cluster_id or remote.startswith("sc://")):
        if remote and not args.no_parallel:
            logger.info("SPARK_REMOTE is no sc:// URL of a Spark Connect server, which this could use")
        logger.info("sequential: up to %d requests at a time from this machine", args.threads)
        return None
    if args.spark:
        logger.info("parallel: this machine, and the Spark session of the caller")
        return Cluster(args.spark)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"pyspark\.")  # what matters comes as an exception
    if args.cluster_id:
        logger.info("parallel: this machine, and cluster %s", args.cluster_id)
        return Cluster(build_channel=partial(connect_cluster, config, args.cluster_id))
    logger.info("parallel: this machine, and Spark Connect %s", without_secrets(remote.partition(";")[0]))
    return Cluster(build_channel=partial(build_channel, remote))


def connect_url(text: str) -> str:
    """The URL of an option. Raises argparse's error, whose message is for people."""
    if not text.startswith("sc://"):
        raise argparse.ArgumentTypeError("start a server and give its sc:// URL")
    return text


def user_files(argv: list[str] | None = None, spark: Any = None) -> int:
    """The command. Returns its exit code: 0, 1 (rows partial or error), 2 (it could not run), 130 (interrupted).

    `spark` is a notebook's session over which to spread the scan; --no-parallel wins over it.
    """
    parser = build_parser()
    parser.set_defaults(spark=spark)
    with warnings.catch_warnings():  # choose_cluster() changes what is shown
        return run_command(parser, argv, run)


main = user_files

if __name__ == "__main__":
    run_as_script(main)
