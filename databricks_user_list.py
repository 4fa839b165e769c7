#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["requests>=2.28.0", "tqdm"]
# ///
"""Lists a Databricks workspace's users, through SCIM, into a CSV that databricks_user_files_simple.py reads.

Step 1 of two. What both steps need stands here, too, since step 1 needs all of it:

  Errors              InventoryError ends the run; DatabricksError is a request that failed
  Tokens              DatabricksConfig: a workspace and a token for it, which Login renews
  Login               load_databricks_config() finds the workspace and a login
  REST client         DatabricksClient: attempt() once, get() with retries
  Safe output         outputs that are whole or not there, cells that no spreadsheet runs, messages
  Frame of a command  options, signals, exit codes; run_as_script() ends both files
  Users               list_users(): the pages of SCIM as rows
  Command             user_list()
"""

from __future__ import annotations

import argparse
import binascii
import builtins
import configparser
import difflib
import errno
import gzip
import io
import itertools
import json
import logging
import math
import os
import re
import signal
import ssl
import stat
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from dataclasses import replace as changed_copy
from functools import lru_cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from random import random as random_fraction
from types import BuiltinFunctionType, ModuleType, SimpleNamespace
from typing import IO, Any, Literal, TextIO, TypeVar, cast
from urllib.parse import parse_qs, unquote_plus, urlsplit

if sys.version_info < (3, 10):  # noqa: UP036  # many systems' python3 is older
    print("Python 3.10 or newer is needed (`uv run` brings one), and this is", sys.version.split()[0], file=sys.stderr)
    raise SystemExit(2)
try:
    import requests
    import urllib3
except ImportError as error:
    print(f"{error}: `python -m pip install requests`, or `uv run`, which brings it", file=sys.stderr)
    raise SystemExit(2) from None

logger = logging.getLogger("databricks_user_files")
Returned = TypeVar("Returned")

# --- Constants ------------------------------------------------------------------------------------------------------

VERSION = "1.0.0"
USER_AGENT = f"databricks-user-files/{VERSION}"
ON_WINDOWS = os.name == "nt"  # where files, signals and the shell have other rules
LOGIN_KEYS = {  # of a profile, and the kind of login (auth_type of databricks-sdk) that each stands for
    "token": "token", "client_secret": "oauth-m2m", "azure_client_secret": "azure-client-secret",
    "google_credentials": "google-credentials", "google_service_account": "google-id",
    "metadata_service_url": "metadata-service",
}  # fmt: skip
LOGIN_VARIABLES = (  # any of them says that the environment has a login for databricks-sdk
    "DATABRICKS_AUTH_TYPE", "DATABRICKS_CLIENT_ID", "DATABRICKS_OIDC_TOKEN", "DATABRICKS_METADATA_SERVICE_URL",
    "DATABRICKS_GOOGLE_SERVICE_ACCOUNT", "GOOGLE_CREDENTIALS", "ARM_CLIENT_ID", "ARM_USE_MSI",
)  # fmt: skip
MACHINE_SETTINGS = ("config_file", "databricks_cli_path", "azure_environment", "azure_tenant_id")  # not a login's own
TWICE = {"host": "twice"}  # in the place of a profile that is there twice
# What OAuth servers (RFC 6749) and the command lines of Databricks and Azure say of a login that will not come back
REFUSED_LOGIN = r"invalid_(client|grant|scope|request)|unauthorized_client|access_denied|auth login|az login"
LOGIN_SECONDS = 60.0  # for one answer of databricks-sdk, whose requests have no time-out
LOCK_SECONDS = 0.2  # for which the main thread waits at a time
HELD_SECONDS, FAILED_SECONDS = 5.0, 1.0  # until databricks-sdk is asked again, for a token and after a failure
CONNECT_SECONDS, READ_SECONDS = 10, 90  # DBFS itself gives up on a large directory after about 60 s
BODY_SECONDS = 180  # for a whole body: a socket's own time-out begins anew with every byte
LONGEST_BODY = 32 * 1024**2  # bytes
BODY_PIECE = 16 * 1024  # bytes
GZIP_MAGIC = b"\x1f\x8b"
MOST_MEMBERS = 1000  # of a gzipped body, each of which costs a copy of the rest
GZIP_LEVEL = 6  # of 9
NO_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # pipes, consoles, some disks
RENAME_WAITS = (0.1,) * 10  # seconds
LONGEST_RETRY_AFTER = 120.0  # seconds
RETRIES = {  # kind of error: attempts in all, seconds before the second (doubled from there on)
    "rate limit": (5, 4.0), "server": (5, 2.0), "connection": (5, 2.0), "too slow": (2, 2.0),
    "malformed": (5, 2.0), "unexpected": (5, 2.0),  # no JSON; JSON, but not what was asked for
}  # fmt: skip
FORMULA_STARTS = "=+@\uff1d\uff0b\uff0d\uff20-"  # of a cell; the middle ones are the full-width forms
NOT_IN_NAMES = '/"<>,;'  # what no user name has: it would be a path, an address with a name, or several columns
DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"  # that documents make of a -
NOT_USED = ("open", "print", "id", "input", "dir", "hash", "format")  # built-ins that may be replaced beside this
LONGEST_LINE = 200  # characters of a message
INTERRUPT_SECONDS, TELL_SECONDS = 2.0, 0.5  # in which an interrupted run ends, and of these for what it says
PAGE_SIZE = 1000  # users asked for at a time; the service may send fewer
USERS_PATH = "/api/2.0/preview/scim/v2/Users"
USER_COLUMNS = {  # of the CSV: SCIM's attribute, its types; groups would make the listing time out
    "username": ("userName", (str,)), "display_name": ("displayName", (str,)), "active": ("active", (bool,)),
    "user_id": ("id", (str, int)),
}  # fmt: skip

# --- Errors ---------------------------------------------------------------------------------------------------------

ErrorKind = Literal[
    "rate limit", "server", "connection", "malformed", "unexpected", "too slow",  # those of RETRIES
    "login", "not found", "dbfs disabled", "refused",
]  # fmt: skip


class InventoryError(Exception):
    """The run cannot go on (usage, configuration, login, outage): the message is for people, the exit code is 2."""


@dataclass(eq=False)
class DatabricksError(Exception):
    """A request that failed. `kind` decides about retries; `status` is None where no HTTP answer came."""

    kind: ErrorKind
    message: str
    path: str
    status: int | None = None
    error_code: str = ""
    retry_after: float = 0.0  # seconds
    unreachable: bool = False  # no connection came about

    def __str__(self) -> str:
        head = " ".join(str(part) for part in (self.status, self.error_code) if part)
        return f"{head}: {self.message}" if head else self.message


def one_line(text: str, longest: int) -> str:
    """The text for a line of a message, at most so many characters long."""
    text = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def masked(text: str, secrets: Iterable[str]) -> str:
    """The text without the secrets in it, as they are, percent-encoded, or in base64 as in a Basic header."""
    known = [secret for secret in secrets if len(secret) > 7]

    def mask(word: re.Match[str]) -> str:
        letters = re.sub("[^A-Za-z0-9+/]", "", word[0].replace("-", "+").replace("_", "/"))
        shifted = ["A" * at + letters for at in range(4)]  # other letters may come before it
        decoded = [binascii.a2b_base64(text + "A" * (-len(text) % 4)).decode("latin-1") for text in shifted]
        plain = unquote_plus(word[0])
        return "***" if any(secret in text for secret in known for text in (plain, *decoded)) else word[0]

    for secret in known:
        text = text.replace(secret, "***")
    return re.sub(r"[\w.~%+/*!()-]{8,}", mask, text, flags=re.A) if known else text


# --- Tokens ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DatabricksConfig:
    """A workspace (`host`, e.g. https://adb-1.azuredatabricks.net), a login for it, and where that login comes from.

    With `renew`, `token` was the first one only: renew(refused) gives that of the moment, another than `refused`.
    `workspace_id` is the workspace's number, in digits, where its host serves many.
    """

    host: str
    token: str = field(repr=False)
    source: str = "given by the caller"
    renew: Callable[[str], str] | None = field(default=None, repr=False, compare=False)
    workspace_id: str = ""

    @property
    def workspace(self) -> str:
        """The workspace's name, as a URL that leads to it; without its number where that is in the host's name."""
        is_named = not self.workspace_id or f"//adb-{self.workspace_id}." in self.host
        return self.host if is_named else f"{self.host}/?o={self.workspace_id}"

    def current_token(self, refused: str = "") -> str:
        """Raises DatabricksError where there is none to be had."""
        return self.renew(refused) if self.renew else self.token


def variable(name: str) -> str:
    """That of the environment, "" where there is none."""
    return unquoted(os.environ.get(name, ""))


def unquoted(text: str) -> str:
    """A value without the blanks and the pair of quotes that people, and files of variables, have around it."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text


def read_workspace_url(text: str, where: str) -> tuple[str, str]:
    """Host and workspace's number of what people paste: of 'adb-1.net/browse?o=12' 'https://adb-1.net' and '12'.

    The host has scheme and port, the number is "" where there is none. Raises InventoryError, which says `where` the
    text stands and never shows it: people paste secrets, too.
    """
    url = unquoted(text)
    if not re.match(r"\w+://", url):
        url = f"https://{url}"
    address = None
    with suppress(ValueError):  # a port that is none, half a pair of brackets
        parts = urlsplit(url)
        is_default = parts.port is None or (parts.scheme, parts.port) == ("https", 443)
        port = "" if is_default else f":{parts.port}"
        host = r"localhost|[\w-]{1,63}(\.[\w-]{1,63})+|\[[\da-f:]+\]"  # a token in its place has no dot
        address = re.fullmatch(rf"(.*@)?({host})(:\d+)?", parts.netloc, re.A | re.I)
    # urlsplit drops some blanks, and takes a backslash for a part of the host
    if not address or parts.scheme not in ("http", "https") or re.search(r"[\s\\]", url):
        raise InventoryError(f"{where} is not a workspace URL, which looks like https://adb-123.4.azuredatabricks.net")
    name = address[2].lower()
    if parts.scheme == "http" and not re.fullmatch(r"localhost|127(\.\d{1,3}){3}|\[::1\]", name):
        raise InventoryError(f"{where} begins with http://, which would send the token unencrypted: use https://")
    values = parse_qs(f"{parts.query}&{parts.fragment.rpartition('?')[2]}")  # some pages have it behind the #
    number = (values.get("o") or values.get("workspace_id") or [""])[0]
    return f"{parts.scheme}://{name}{port}", check_number(number, f"?o= of {where}")


def check_number(text: str, where: str) -> str:
    """A workspace's number, "" for none: 0 in old URLs, `none` in profiles of the Databricks CLI."""
    number = "" if text == "none" else text.lstrip("0")
    if not re.fullmatch("[0-9]{0,20}", number):
        raise InventoryError(f"{where} is not the number of a workspace")
    return number


def check_token(token: str, where: str) -> str:
    """The token. Raises InventoryError if it is none."""
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise InventoryError(f"{where} is empty, or has characters that no token has (spaces, line breaks)")
    return token


class Login:
    """A login by databricks-sdk, which renews its tokens before they expire. Any thread may call it.

    The SDK is asked every HELD_SECONDS, because for some kinds of login that means a request each time. While it
    fails, the old token serves until the workspace refuses it.
    """

    def __init__(self, source: str, host: str, values: dict[str, str] | None = None):
        """With the values of a profile and nothing else; without any, with those of the environment."""
        self.source, self.host, self.values = source, host, values
        self.lock = threading.Lock()
        self.sdk: Any = None  # its Config, once it has given a token
        self.token = ""  # "" as well when the workspace has refused it
        self.failure: tuple[ErrorKind, str] = "login", ""  # kind and message of the last one
        self.ask_at = -math.inf  # when the SDK is asked again

    def config(self) -> DatabricksConfig:
        """Logs in. Raises DatabricksError and InventoryError."""
        token = self()
        return DatabricksConfig(self.host, token, f"{self.source} (OAuth, {self.sdk.auth_type})", renew=self)

    def __call__(self, refused: str = "") -> str:
        """The token of the moment, another than `refused`. Raises DatabricksError, kind "login" if none will come."""
        with self.lock:
            if refused and refused == self.token:
                self.token, self.ask_at = "", -math.inf
            if time.monotonic() >= self.ask_at:
                self.get_new_token()
            if not self.token:
                raise DatabricksError(*self.failure, path="")
            return self.token

    def get_new_token(self) -> None:
        """Sets the token, or notes why there is none for now. Raises InventoryError where there never will be one."""
        try:
            # The first one in a notebook is that of the notebook's own thread.
            self.sdk, self.token = in_thread(self.authenticate, LOGIN_SECONDS) if self.host else self.authenticate()
            self.ask_at = time.monotonic() + HELD_SECONDS
        except InventoryError:
            raise
        except Exception as error:
            self.sdk = None  # a late one may keep its lock for ever
            self.failure = self.explain(error)
            self.ask_at = time.monotonic() + FAILED_SECONDS
            logger.debug("%s", self.failure[1])

    def authenticate(self) -> tuple[Any, str]:
        """The SDK's Config, a new one where the old one's token was refused, and its token."""
        sdk = self.sdk if self.sdk and self.token else self.connect()
        scheme, _, token = sdk.authenticate().get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise InventoryError(f"{self.source} has a login ({sdk.auth_type}) that gives no token")
        return sdk, check_token(token, f"the token of {self.source}")

    def connect(self) -> Any:
        """A Config of databricks-sdk."""
        try:
            from databricks.sdk.core import Config
        except ImportError:
            remedy = "give it one, or `pip install databricks-sdk`, which logs in without"
            raise InventoryError(f"{self.source} has no token: {remedy}") from None
        known = {attribute.name: attribute for attribute in Config.attributes()}
        settings: dict[str, Any] = {
            name: variable(attribute.env)
            for name, attribute in known.items()
            if os.environ.get(attribute.env or "") and attribute.transform is str
        }
        settings["profile"] = ""
        if self.values is not None:  # nothing of another login that the environment may have
            settings = {name: value if name in MACHINE_SETTINGS else "" for name, value in settings.items()}
            settings |= {name: value for name, value in self.values.items() if value and name in known}
        if self.host:
            settings["host"] = self.host
        sdk = Config(**settings | {"disable_async_token_refresh": True, "retry_timeout_seconds": 3})
        found, _ = read_workspace_url(sdk.host, f"host of {self.source}")
        self.host = self.host or found
        if found != self.host:
            raise InventoryError(f"{self.source} is for {self.host}, and logs in to another host")
        return sdk

    def explain(self, error: Exception) -> tuple[ErrorKind, str]:
        """Kind and message of a failure: the SDK's words, without the secrets that it, or who answered it, repeats."""
        text = str(error).partition(". Config: ")[0]
        text = re.sub("Invalid URL 'None'.*", "the host does not say where its tokens are made", text, flags=re.S)
        named = (*os.environ.items(), *(self.values or {}).items())
        hidden = r"(?i)secret|token|password|credentials|metadata"
        text = masked(text, [unquoted(value) for name, value in named if re.search(hidden, name)])
        kind: ErrorKind = "login" if re.search(REFUSED_LOGIN, text) else "connection"
        identity = variable("ARM_USE_MSI") if self.values is None else self.values.get("azure_use_msi", "")
        remedy = "is this login still good (its secret, `databricks auth login`, `az login`)?"
        if identity.lower() in ("true", "1"):
            remedy = "databricks-sdk for Python has no azure_use_msi: `az login --identity`, and auth_type = azure-cli"
        reached = f"can {self.host or 'the workspace'} be reached"
        return kind, f"no token from {self.source}: {one_line(text, 160)}; {reached}, and {remedy}"


def in_thread(function: Callable[[], Returned], seconds: float = math.inf) -> Returned:
    """function(), given up after so many seconds with TimeoutError, whatever its thread then still does.

    The wait lets an interrupt through: looking up a host's address does not, nor, on Windows, a long wait for a lock.
    """
    answer: futures.Future[Returned] = futures.Future()

    def call() -> None:
        try:
            answer.set_result(function())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=call, daemon=True).start()  # a thread of an executor would be waited for at the end
    until = time.monotonic() + seconds
    while not answer.done():
        if time.monotonic() >= until:
            raise TimeoutError(f"no answer within {seconds:.0f} s")
        futures.wait([answer], min(LOCK_SECONDS, seconds))
    return answer.result()


# --- Login ----------------------------------------------------------------------------------------------------------


def load_databricks_config(
    profile: str | None = None, workspace_url: str | None = None, token: str | None = None
) -> DatabricksConfig:
    """The workspace and a login: what is given here, else the CLI profile, the environment, the notebook's own.

    A token goes only to the host it was configured with, or that is given beside it. A login without a token is made
    by databricks-sdk, whose config.py tells where profiles and variables are. Raises InventoryError.
    """
    host, number = read_workspace_url(workspace_url, "--workspace-url") if workspace_url is not None else (None, "")
    if token is not None:
        if host is None:
            raise InventoryError("--token goes to no host but the one that is given with it: add --workspace-url")
        if not number and variable("DATABRICKS_WORKSPACE_ID"):
            other, number = read_environment()
            number = number if other in ("", host) else ""  # else it is a workspace of that other host
        return DatabricksConfig(host, check_token(unquoted(token), "--token"), "command line", workspace_id=number)
    try:
        config = config_from_profile(profile, host) or config_from_environment(host) or config_from_notebook(host)
    except DatabricksError as error:
        raise InventoryError(error.message) from None
    if config is None:
        raise InventoryError(no_login(host))
    return changed_copy(config, workspace_id=number) if number else config


def no_login(host: str | None) -> str:
    """Why there is none, and what to do."""
    if not host and variable("DATABRICKS_TOKEN"):
        return "DATABRICKS_TOKEN is set, and no workspace that it is for: set DATABRICKS_HOST, or give --workspace-url"
    path, sought = profile_file(), f" for {host}" if host else ""
    profiles = read_profiles()[0] if os.path.exists(path) else {}
    if any(profiles.values()):
        return f"no login found{sought}: name a profile of {path} with --profile; it has: {names_of(profiles)}"
    advice = "run `databricks configure`, or set DATABRICKS_HOST and DATABRICKS_TOKEN"
    return f"no login found{sought} in {path} or the environment: {advice}"


def config_from_profile(option: str | None, host: str | None) -> DatabricksConfig | None:
    """The login of the named or default profile; None if there is no default, or it is of another host than `host`."""
    chosen = choose_profile(option)
    if chosen is None:
        return None
    profile, values, is_named = chosen
    source = f"profile {profile} in {profile_file()}"
    if not values.get("host"):
        raise InventoryError(f"{source} has no host")
    configured, number = read_workspace_url(values["host"], f"host of {source}")
    if host not in (None, configured):
        if not is_named:
            return None
        raise InventoryError(f"{source} is for {configured}, and its token is not sent to {host}")
    if not is_named and host is None:
        with suppress(InventoryError):  # where the environment names no host
            if (other := read_environment()[0]) not in ("", configured):  # every other Databricks tool would take it
                logger.warning("%s serves, for %s, not %s of the environment: see --profile", source, configured, other)
    number = number or check_number(values.get("workspace_id", ""), f"workspace_id of {source}")
    return changed_copy(log_in_with(profile, values, source, configured), workspace_id=number)


def choose_profile(option: str | None) -> tuple[str, dict[str, str], bool] | None:
    """The profile to be used, its values, and whether somebody named it. Raises InventoryError if it is not there."""
    variable_name = "DATABRICKS_CONFIG_PROFILE"
    where, named = ("--profile", option) if option is not None else (variable_name, variable(variable_name) or None)
    path = profile_file()
    if not os.path.exists(path):
        if named is not None:
            logger.warning("%s is not used, because there is no %s: the environment serves", where, path)
        return None
    profiles, default = read_profiles()
    if named is None and not default and not profiles.get("DEFAULT"):  # a new file of the CLI begins with an empty one
        return None
    profile = unquoted(named) if named is not None else default or "DEFAULT"
    if profile not in profiles:
        where = where if named is not None else "default_profile"
        raise InventoryError(f"{where} names no profile of {path}; it has: {names_of(profiles)}")
    if profiles[profile] is TWICE:
        raise InventoryError(f"profile {profile} is there twice in {path}: take one of the two out")
    return profile, profiles[profile], named is not None


def log_in_with(profile: str, values: dict[str, str], source: str, host: str) -> DatabricksConfig:
    """The login of a profile with these values, which is for `host`: its token, or one by databricks-sdk."""
    on_azure = re.search(r"azuredatabricks\.|databricks\.azure\.", host)
    without_key = "azure-cli" if on_azure else "databricks-cli"  # `databricks auth login` leaves no secret in the file
    kind = values.get("auth_type") or next((LOGIN_KEYS[key] for key in LOGIN_KEYS if values.get(key)), without_key)
    if kind not in ("token", "pat"):
        cli_profile = profile if kind == "databricks-cli" else ""  # which databricks-sdk would read the file for
        return Login(source, host, {**values, "auth_type": kind, "profile": cli_profile}).config()
    if not values.get("token"):
        raise InventoryError(f"{source} has no token; `databricks configure --profile {profile}` asks for one")
    return DatabricksConfig(host, check_token(values["token"], f"token of {source}"), source)


def config_from_environment(host: str | None) -> DatabricksConfig | None:
    """The login of the environment; None if it has none, or one of another host than `host`."""
    configured, number = read_environment()
    target = configured or host
    if target is None or host not in (None, target):
        return None
    token = variable("DATABRICKS_TOKEN")
    if token and variable("DATABRICKS_AUTH_TYPE") in ("", "pat"):
        return DatabricksConfig(target, check_token(token, "DATABRICKS_TOKEN"), "environment", workspace_id=number)
    if any(map(variable, LOGIN_VARIABLES)):
        return changed_copy(Login("environment", target).config(), workspace_id=number)
    return None


def config_from_notebook(host: str | None) -> DatabricksConfig | None:
    """The notebook's own login; None outside of one, or if it is of another host than `host`."""
    if "DATABRICKS_RUNTIME_VERSION" not in os.environ:
        return None
    try:
        config = Login("notebook", "", {"auth_type": "runtime"}).config()
    except DatabricksError:  # it is that of a process beside the notebook, which has none
        version = import_module("databricks.sdk.version").__version__
        if version.startswith("0.") and int(version.split(".")[1]) < 20:  # 0.1.6 on DBR 14.3
            old = f"databricks-sdk {version} is too old for the notebook's own login"
            remedy = "run `%pip install --upgrade databricks-sdk`, then `dbutils.library.restartPython()`"
            raise InventoryError(f"{old}: {remedy}") from None
        return None
    return config if host in (None, config.host) else None


def profile_file() -> Path:
    """Where the profiles are, whether or not there is such a file: a container's user may have no home."""
    return Path(os.path.expanduser(variable("DATABRICKS_CONFIG_FILE") or "~/.databrickscfg"))


def read_profiles() -> tuple[dict[str, dict[str, str]], str | None]:
    """The profiles in the profile file by name, and the one it names as default. Raises InventoryError."""
    path = profile_file()
    numbers = itertools.count()
    parser = configparser.ConfigParser(
        interpolation=None,
        default_section="\0",  # [DEFAULT] is not inherited
        inline_comment_prefixes=("#", ";"),  # after a blank
    )
    try:
        data = path.read_bytes()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", "replace")
        # Numbered: the parser would merge a profile that is there twice.
        parser.read_string(re.sub(r"^\[ *(.+?) *\]", lambda at: f"[{at[1]}\0{next(numbers)}]", text, flags=re.M))
    except configparser.Error as error:  # whose message would show the line, and so the token
        line = getattr(error, "lineno", None) or next((number for number, _ in getattr(error, "errors", [])), "?")
        raise InventoryError(f"{path}, line {line}: not a profile file (INI)") from None
    except OSError as error:
        raise InventoryError(f"{path} cannot be read: {error.strerror}") from error
    profiles: dict[str, dict[str, str]] = {}
    for section in parser.sections():
        name = section.partition("\0")[0]
        profiles[name] = TWICE if name in profiles else dict(parser.items(section))
        for key, value in profiles[name].items():
            if "\n" in value:
                raise InventoryError(f"{key} of profile {name} in {path} goes over two lines, one begins with a blank")
            profiles[name][key] = unquoted(value)
    return profiles, profiles.pop("__settings__", {}).get("default_profile")


def names_of(profiles: dict[str, dict[str, str]]) -> str:
    """For a message."""
    return one_line(", ".join(name for name in profiles if profiles[name]), 80) or "none"


def read_environment() -> tuple[str, str]:
    """Host and workspace's number that the environment names, "" for none. Raises InventoryError."""
    name = "DATABRICKS_WORKSPACE_URL" if variable("DATABRICKS_WORKSPACE_URL") else "DATABRICKS_HOST"
    host, number = read_workspace_url(variable(name), name) if variable(name) else ("", "")
    return host, number or check_number(variable("DATABRICKS_WORKSPACE_ID"), "DATABRICKS_WORKSPACE_ID")


# --- REST client ----------------------------------------------------------------------------------------------------

Bytes = bytes | bytearray


class MalformedAnswer(ValueError):
    """A 200 whose body is not what was asked for; `kind` is "malformed" where it is not even JSON."""

    def __init__(self, message: str, kind: ErrorKind = "unexpected"):
        super().__init__(message)
        self.kind = kind


def retry_wait(error: DatabricksError, attempts: int, jitter: float) -> float | None:
    """Seconds to wait after `attempts` that failed, None if there is no further one; jitter is from 0 to 1."""
    most, first = RETRIES.get(error.kind, (1, 0.0))
    if attempts >= most:
        return None
    longest = first * 2.0 ** max(attempts - 1, 0)
    return max(longest * (1 + jitter) / 2, error.retry_after)


class DatabricksClient:
    """The one place that makes requests. attempt() tries once, get() tries again and waits in between."""

    def __init__(
        self,
        config: DatabricksConfig,
        threads: int = 1,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random_fraction,
    ):
        self.config, self.clock, self.sleep, self.jitter = config, clock, sleep, jitter
        self.tokens: set[str] = set()  # which no message may show
        self.statistics: Counter[str] = Counter()  # requests, retries, rate_limited (429), files
        self.reached = False
        self.noted: dict[str, frozenset[str] | None] = {}  # what is asked for once
        self.decoding = threading.Lock()  # one body at a time: it may take thirty times its length in memory
        self.headers = {"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": USER_AGENT}
        if config.workspace_id:
            self.headers["X-Databricks-Workspace-Id"] = config.workspace_id
        # Proxies and CA bundle: read from the environment once. A session would do it, and more, at every request.
        with requests.Session() as session:
            self.settings: dict[str, Any] = {**session.merge_environment_settings(config.host, {}, True, None, None)}
        self.adapter = requests.adapters.HTTPAdapter(pool_connections=1, pool_maxsize=threads)
        if self.settings["verify"] is True and find_spec("truststore"):  # else a file of certificates is named
            tls = {"ssl_context": import_module("truststore").SSLContext(ssl.PROTOCOL_TLS_CLIENT)}
            self.adapter.init_poolmanager(1, threads, **tls)
            self.adapter.proxy_manager_for = partial(self.adapter.proxy_manager_for, **tls)  # type: ignore[method-assign]
        if config.host.startswith("http:"):  # a loopback address: through a proxy the token would travel unencrypted
            self.settings["proxies"] = {}

    def close(self) -> None:
        """Closes idle connections, which HTTPAdapter.close() leaves to the garbage collector with urllib3 2."""
        for manager in (self.adapter.poolmanager, *self.adapter.proxy_manager.values()):
            for pool in map(manager.pools.get, manager.pools.keys()):
                pool.close()

    def get(self, api_path: str, params: dict[str, Any], parse: Callable[[Any], Returned]) -> Returned:
        """attempt(), as often as RETRIES says. A host that was never reached is not asked again."""
        attempts = 0
        while True:
            attempts += 1
            self.statistics["requests"] += 1
            try:
                return in_thread(partial(self.attempt, api_path, params, parse))  # so that an interrupt ends it
            except DatabricksError as error:
                wait = retry_wait(error, attempts, self.jitter())
                if wait is None or (error.unreachable and not self.reached):
                    raise
                self.statistics.update(retries=1, rate_limited=error.kind == "rate limit")
                logger.debug("%s: %s; again in %.1f s", api_path, error, wait)
            self.sleep(wait)

    def attempt(self, api_path: str, params: dict[str, Any], parse: Callable[[Any], Returned]) -> Returned:
        """parse(the decoded body) of one GET, or of a second one where a token is refused and there is another by now.

        Raises DatabricksError, also where parse raises MalformedAnswer.
        """
        token = self.config.current_token()
        try:
            return self.request(token, api_path, params, parse)
        except DatabricksError as error:
            another = self.config.current_token(token) if error.kind == "login" else token
            if another == token:
                raise
        return self.request(another, api_path, params, parse)

    def request(self, token: str, api_path: str, params: dict[str, Any], parse: Callable[[Any], Returned]) -> Returned:
        """As attempt(), with this token."""
        path = str(params.get("path", api_path))
        self.tokens.add(token)
        try:
            with self.send(token, api_path, params) as response:
                self.reached = True
                # After a 1xx the answer is still to come: unread, this connection is not used again.
                body = read_body(response) if response.status_code >= 200 else bytearray()
            if response.status_code == 200:
                with self.decoding:
                    return parse(decode_body(body))
            error = self.answer_error(response, body, path)
        except MalformedAnswer as malformed:
            error = DatabricksError(malformed.kind, self.mask(str(malformed)), path)
        except UnicodeError:  # half a surrogate pair: there is no way to ask for this name
            error = DatabricksError("refused", "the name is not valid Unicode", path)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as broken:
            message, unreachable = explain_connection(broken, self.settings["verify"])
            error = DatabricksError("connection", one_line(self.mask(message), 600), path, unreachable=unreachable)
        raise error  # here, so that no traceback has what the service said: it may repeat the token

    def send(self, token: str, api_path: str, params: dict[str, Any]) -> requests.Response:
        """The answer, its body still unread."""
        headers = self.headers | {"Authorization": f"Bearer {token}"}
        request = requests.Request("GET", self.config.host + api_path, headers, params=params).prepare()
        try:
            return self.adapter.send(request, timeout=(CONNECT_SECONDS, READ_SECONDS), **self.settings)
        except (TypeError, UnicodeError, urllib3.exceptions.LocationParseError):  # of a proxy whose URL is none
            raise requests.exceptions.InvalidProxyURL from None

    def answer_error(self, response: requests.Response, body: Bytes, path: str) -> DatabricksError:
        """For an answer that is no 200."""
        status = response.status_code
        error_code, message, cut_short = read_error(body)
        error_code = one_line(self.mask(error_code), 60)
        kind = classify_error(status, error_code, one_line(message.replace(path, ""), 300))
        message = one_line(self.mask(message or response.reason or ""), 300) or "no message"
        if kind == "refused" and cut_short:  # it may be the 404 of a home that is not there
            kind, message = "malformed", "the answer was cut short"
        if kind == "too slow":
            message = f"{path} is too large to be listed over REST; dbutils.fs on a cluster can list it"
        if 300 <= status < 400:
            where = one_line(self.mask(response.headers.get("Location", "?")), 100)
            message = f"redirected to {where}: is this the workspace's URL?"
        asked = response.headers.get("Retry-After", "") if status in (429, 503) else ""
        return DatabricksError(kind, message, path, status, error_code, retry_after_seconds(asked))

    def mask(self, text: str) -> str:
        """The text without the tokens that were sent."""
        return masked(text, tuple(self.tokens))


def read_body(response: requests.Response) -> bytearray:
    """The body as it comes over the wire, not unzipped.

    Raises MalformedAnswer where it is over LONGEST_BODY, TimeoutError after BODY_SECONDS, and an error of urllib3
    where it is shorter than announced.
    """
    raw = response.raw
    raw.enforce_content_length = True  # not the default in urllib3 1.26
    read = getattr(raw, "read1", raw.read)  # what has come; urllib3 1.26 waits until the piece is whole
    until = time.monotonic() + BODY_SECONDS
    body = bytearray()
    while piece := read(BODY_PIECE, decode_content=False):
        body += piece
        check_length(body)
        if time.monotonic() > until:
            raise TimeoutError(0, f"the answer took longer than {BODY_SECONDS} s")
    return body  # no copy: it may be large, and there is one for each thread


def check_length(body: Bytes) -> None:
    """Raises MalformedAnswer for what is over LONGEST_BODY."""
    if len(body) > LONGEST_BODY:
        raise MalformedAnswer(f"the answer is longer than {LONGEST_BODY // 1024**2} MB", "malformed")


def decode_body(raw: Bytes) -> Any:
    """The JSON of a body as it came over the wire: it decides itself what it is, whatever its headers claim.

    Gzipped or not; UTF-8 or UTF-16, with or without BOM. Raises MalformedAnswer, with a text for people.
    """
    body = unzip(raw)
    try:
        return json.loads(body.decode(json.detect_encoding(body)))
    except (ValueError, RecursionError) as error:
        what = "an HTML page" if b"<html" in body[:4000].replace(b"\0", b"").lower() else "not JSON"  # UTF-16, too
        message = f"the answer is {what}: is this the workspace's URL, is there a proxy?"
        raise MalformedAnswer(message, "malformed") from error


def unzip(raw: Bytes) -> Bytes:
    """The body, unzipped if it is gzipped: maybe in several members, with padding behind. Raises MalformedAnswer."""
    check_length(raw)
    if not raw.startswith(GZIP_MAGIC):
        return raw
    body, rest = bytearray(), raw
    for _ in range(MOST_MEMBERS):
        stream = zlib.decompressobj(wbits=31)  # 31: with the head and the check sum of gzip
        with suppress(zlib.error):
            body += stream.decompress(rest, LONGEST_BODY + 1 - len(body))
        check_length(body)
        rest = stream.unused_data
        if not stream.eof or not rest.startswith(GZIP_MAGIC):
            break
    if stream.eof and not rest.strip(b"\0\r\n"):
        return body
    raise MalformedAnswer("the answer is gzipped, and cut short or damaged", "malformed")


def read_error(raw: Bytes) -> tuple[str, str, bool]:
    """error_code and message of a JSON, SCIM, API 1.2, HTML or text body (errors of databricks-sdk); if it is cut."""
    try:
        body = unzip(raw)
    except MalformedAnswer:
        return "", "", True
    text = body[:100_000].decode(json.detect_encoding(body), "replace")
    with suppress(ValueError, RecursionError):
        record = json.loads(text)
        if isinstance(record, dict):
            said = record.get("message") or record.get("detail") or record.get("error") or ""
            return str(record.get("error_code") or record.get("scimType") or ""), str(said), False
    title = re.search(r"<(title|pre)[^>]*>(.*?)</\1>", text[:5000], re.I | re.S)  # its time grows with the square
    return "", title[2] if title else text, text.lstrip()[:1] == "{" and text.rstrip()[-1:] != "}"


def classify_error(status: int, error_code: str, message: str) -> ErrorKind:
    """The kind of an answer that is no 200."""
    text = f"{error_code} {message}"
    if status == 429 or (status == 500 and "REQUEST_LIMIT_EXCEEDED" in text):
        return "rate limit"
    if status == 503 and "taking too long to process your request" in text:
        return "too slow"
    if status < 200 or status in (408, 425) or 500 <= status < 600:
        return "server"
    # "Invalid access token.", "JWT has expired", of Azure "Token is expiring within 30 seconds. (token expired)"
    said = r"\b(invalid|expired|revoked) (\w+ ){0,4}(token|JWT)\b|\binvalid_token|ExpiredJwt"
    refused_token = said + r"|\b(token|JWT) (\w+ ){0,4}(invalid|not valid|no longer valid|expir|revoked)"
    is_of_path = error_code in ("PERMISSION_DENIED", "IO_ERROR")  # the latter in the words of the cloud's store
    if status == 401 or (status in (400, 403) and not is_of_path and re.search(refused_token, text, re.I)):
        return "login"
    if status == 404 and error_code == "RESOURCE_DOES_NOT_EXIST":
        return "not found"
    if status != 404 and re.search("DBFS root is disabled|DBFS_DISABLED|DBFS root and DBFS mounts is disallowed", text):
        return "dbfs disabled"
    return "refused"


def retry_after_seconds(text: str) -> float:
    """What a Retry-After asks for, in seconds or as a date; LONGEST_RETRY_AFTER at most, 0 if it says nothing."""
    try:
        asked = urllib3.Retry().parse_retry_after(text)
    except (urllib3.exceptions.InvalidHeader, TypeError, ValueError, OverflowError):
        return 0.0
    return min(asked, LONGEST_RETRY_AFTER)


def explain_connection(error: Exception, bundle: Any) -> tuple[str, bool]:
    """Why there was no answer, in a few words (requests takes a page), and whether not even a connection came about.

    `bundle` is the file of certificates, if one is named. No proxy's URL is shown: it may have a password.
    """
    no_proxy = "no connection through the proxy; HTTPS_PROXY or ALL_PROXY"
    check = "check the URL, the network and the proxy"
    if isinstance(error, requests.exceptions.InvalidSchema):
        return f'{no_proxy} names a SOCKS proxy: pip install "requests[socks]"', True
    if isinstance(error, requests.exceptions.InvalidURL):
        return f"{no_proxy} is no URL of a proxy, which looks like http://proxy.example.com:3128", True
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_SECONDS} s; {check}", True
    chain: list[BaseException] = [error]  # and what it came from
    while before := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(before)
    if isinstance(error, (requests.ReadTimeout, urllib3.exceptions.TimeoutError)):
        if "handshake" in str(chain[-1]):
            return f"no TLS within {CONNECT_SECONDS} s; check the URL, its port and the proxy", True
        return f"no answer within {READ_SECONDS} s", False
    said = [link for link in chain if isinstance(link, OSError) and (link.strerror or type(link) is OSError)]
    cause = str(said[-1].strerror or said[-1]) if said else "the connection broke off"
    no_bundle = type(error) is OSError and not error.errno  # requests, where REQUESTS_CA_BUNDLE names no file
    if no_bundle or isinstance(error, requests.exceptions.SSLError):
        said_by_tls = re.sub(r"^\[[^]]*\] | *\(_ssl\.c.*", "", cause)
        return f"{said_by_tls}; {tls_remedy(cause, bundle)}", True
    if any(isinstance(link, (requests.exceptions.ProxyError, urllib3.exceptions.NewConnectionError)) for link in chain):
        return f"{cause}; {check}", True
    return cause, False


def tls_remedy(cause: str, bundle: Any) -> str:
    """What to do about a certificate, or an answer that is no TLS, by what OpenSSL says of it."""
    if re.search("expired|not yet valid", cause):
        return f"is this machine's clock right (now {time.strftime('%Y-%m-%d %H:%M')}), has the certificate run out?"
    if "mismatch" in cause:
        return "it is another host's certificate: check the URL, the network and the proxy"
    is_certificate = isinstance(bundle, str) or "certificate" in cause.lower()
    if re.search("WRONG_VERSION|RECORD_LAYER|EOF", cause) or not is_certificate:
        return "what answers there does not speak TLS: check the URL, its port and the proxy"
    if "Authority Key Identifier" in cause:
        return "Python 3.13 checks more strictly: the authority's certificate has to be made anew, or Python 3.12 used"
    named = bundle if isinstance(bundle, str) else "none"
    remedy = f"REQUESTS_CA_BUNDLE (now: {named}) has to name a PEM file with the certificate's authority"
    return remedy if find_spec("truststore") else f"{remedy}, or `pip install truststore`, which takes the system's"


def run_error(error: DatabricksError, config: DatabricksConfig) -> InventoryError:
    """What to tell people about an error that ends the run."""
    if error.kind == "login" and error.status is None:  # of Login, with its remedy
        return InventoryError(error.message)
    said, place = one_line(str(error), 140), config.workspace
    if error.kind == "login":
        return InventoryError(f"{place} does not accept the token of {config.source} ({said}): renew it")
    return InventoryError(f"{place} {'cannot be reached' if error.unreachable else 'gave no proper answer'}: {error}")


def parse_record(body: Any) -> dict[str, Any]:
    """The body, if it is a JSON object. Raises MalformedAnswer."""
    if not isinstance(body, dict):
        raise MalformedAnswer("the answer is not a JSON object")
    return body


# --- Safe output ----------------------------------------------------------------------------------------------------


def write_output(path: str, write: Callable[[TextIO], object], saved: bool = False) -> None:
    """Has write(file) write a text in UTF-8, gzipped where the name ends in .gz; '-' is stdout.

    Where a file was, it gets the text when a new one has all. Raises InventoryError where the text does not get
    through: unless a checkpoint has it (`saved`), the message names a file that has all.
    """
    whole = ""  # the name of a new file that has all
    try:
        if path == "-" and (sys.stdout is not sys.__stdout__ or (ON_WINDOWS and os.isatty(1))):
            # A cell's output is not what the descriptor gets, and a console has an encoding of its own.
            write(cast(TextIO, SimpleNamespace(write=partial(write_fitting, sys.stdout))))
        elif stream := stream_of(path):
            if stream == 1:
                print(end="", flush=True)  # what a Python caller has said there comes first
            write_text(io.BufferedWriter(PatientFile(stream, "w", closefd=stream == path)), path, write)
        else:
            target = os.path.realpath(path)
            whole = write_text(create_draft(target), path, write, os.unlink)
            if not take_place(whole, target):
                there = open(target, "r+b" if os.path.lexists(target) else "xb")
                there.truncate()
                write_text(there, path, write, partial(os.truncate, length=0))  # a short one would look whole
                os.unlink(whole)
    except BrokenPipeError:
        return  # the reader has gone, and needs no more
    except OSError as error:
        if not whole and not saved:
            with suppress(OSError):
                kept = tempfile.NamedTemporaryFile(delete=False, suffix=f"-{os.path.basename(shown(path))}")
                whole = write_text(kept, path, write, os.unlink)
        again = "the same command with --resume and another name writes all again"
        where = again if saved else "nor does the temporary folder take the text"
        where = f"the whole text is in {whole}" if whole else where
        raise InventoryError(f"{why_not(path, error)}; {where}") from error
    except KeyboardInterrupt:
        if whole:
            logger.warning("%s is not whole; the whole text is in %s", shown(path), whole)
        raise


def why_not(path: str, error: OSError) -> str:
    hint = " (is it open in another program?)" if ON_WINDOWS and isinstance(error, PermissionError) else ""
    return f"{shown(path)} cannot be written: {error.strerror or error}{hint}"


def write_text(
    file: IO[bytes], path: str, write: Callable[[TextIO], object], undo: Callable[[str], object] = lambda _: None
) -> str:
    """Has the text written, closes the file, and returns its name; undo(name) where that fails. Raises OSError."""
    try:
        with file:
            zips = path.lower().endswith(".gz")
            with gzip.GzipFile("", "wb", GZIP_LEVEL, file) if zips else nullcontext(file) as binary:
                text = io.TextIOWrapper(binary, encoding="utf-8", errors="backslashreplace", newline="")
                write(text)
                text.detach()  # which flushes, and closes nothing
            file.flush()
            try:
                os.fsync(file.fileno())  # what the disk refuses late is raised here
            except OSError as error:
                if error.errno not in NO_SYNC:
                    raise
    except BaseException:
        with suppress(OSError):
            undo(file.name)
        raise
    return file.name


def create_draft(target: str) -> IO[bytes]:
    """A new file for the text of the target, beside it, or where its folder takes none in the temporary folder."""
    folder, name = os.path.split(target)
    path = os.path.join(folder, f".{name[:40]}.{os.urandom(8).hex()}.tmp")  # which nobody else can have
    if not os.path.lexists(target):
        return open(path, "xb")
    try:
        return open(path, "xb", opener=partial(os.open, mode=0o600))
    except OSError:
        return tempfile.NamedTemporaryFile(delete=False)


def take_place(draft: str, target: str) -> bool:
    """Whether the draft could take over the target's rights, which only Linux can tell, and then its name."""
    with suppress(OSError, AttributeError):  # there is no os.listxattr elsewhere
        if os.path.lexists(target):
            _, owner, group, mode, acl = rights = rights_of(target)
            os.chown(draft, owner, group)
            for name, value in acl.items():
                os.setxattr(draft, name, value)
            if rights_of(draft)[-1] == acl:  # else the mode would say more than it does with the ACL
                os.chmod(draft, stat.S_IMODE(mode))
            if rights_of(draft) != rights:
                return False
        rename(draft, target)  # not in a sticky folder, nor over what is mounted
        return True
    return False


def rights_of(path: str) -> tuple[int, int, int, int, dict[str, bytes]]:
    """How many names a file has, its owner, group and mode, and its ACLs."""
    found = os.stat(path)
    acl = {name: os.getxattr(path, name) for name in os.listxattr(path) if name.startswith("system.")}
    return found.st_nlink, found.st_uid, found.st_gid, found.st_mode, acl


def rename(source: str | Path, target: str | Path) -> None:
    """os.replace(), for a second again where Windows refuses it: virus scanners hold new files for a moment."""
    for seconds in RENAME_WAITS if ON_WINDOWS else ():
        with suppress(PermissionError):
            return os.replace(source, target)
        time.sleep(seconds)
    return os.replace(source, target)


def write_all(file: IO[bytes], data: bytes) -> None:
    while data:
        data = data[file.write(data) :]


class PatientFile(io.FileIO):
    """A stream that waits where it is full, also where somebody has made it non-blocking."""

    def write(self, data: Any) -> int:
        while (count := super().write(data)) is None:
            time.sleep(0.01)
        return count


def write_fitting(stream: TextIO, text: str) -> None:
    """Writes to a stream of any encoding; a sign that it has not is escaped."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def stream_of(path: str) -> int | str | None:
    """What gets a text in place: 1 or 2, our stdout or stderr under any name; the path of what is no file; or None."""
    for number, stream in ((1, sys.__stdout__), (2, sys.__stderr__)):
        with suppress(OSError):
            # An inode of 0 says nothing. Where the stream was closed, the number may be another file's by now.
            if path == "-" or (stream and os.stat(path).st_ino and os.path.samefile(path, number)):
                return number
    return path if os.path.exists(path) and not os.path.isfile(path) else None


def place_of(path: str) -> object:
    """What two paths have in common that are one file or stream."""
    name = path
    with suppress(OSError):  # it is not there yet, or not even the current folder is
        name = os.path.realpath(path)
        found = os.stat(1 if path == "-" else path)
        if found.st_ino and not ON_WINDOWS:  # where it may differ at each look
            return found.st_dev, found.st_ino
    return unicodedata.normalize("NFC", name).casefold()  # as Windows and macOS compare


def lasting(path: str) -> str:
    """The name of what the path means now, whatever becomes of the current folder."""
    with suppress(OSError):  # it has gone
        return os.path.join(os.getcwd(), path) if path != "-" else path
    return path


def shown(path: str) -> str:
    """As people call it: as it is from the current folder, where that is shorter."""
    with suppress(OSError, ValueError):  # another drive
        return "stdout" if path == "-" else min(path, os.path.relpath(path), key=len)
    return path


def check_output(path: str) -> None:
    """Raises InventoryError where it can be known that write_output() would."""
    try:
        if path == "-" and getattr(sys.stdout, "closed", sys.stdout is None):
            raise OSError(0, "it is closed; name a file with --output")
        if os.path.isdir(path):
            raise OSError(0, "it is a folder")
        if stream_of(path):  # opening a pipe would wait
            return
        if ON_WINDOWS and ":" in os.path.splitdrive(path)[1]:
            raise OSError(0, "a colon has its place behind the letter of a drive alone")
        with suppress(FileNotFoundError):
            os.close(os.open(path, os.O_WRONLY))
        draft = create_draft(os.path.realpath(path))
        draft.close()
        os.unlink(draft.name)
    except OSError as error:
        raise InventoryError(why_not(path, error)) from error


def csv_row(cells: Iterable[str]) -> str:
    return ",".join(csv_cell(safe_cell(cell)) for cell in cells) + "\n"


def csv_cell(text: str) -> str:
    """As csv.writer has it, which before Python 3.13 does not quote a lone \r, where readers see a row's end."""
    if "," in text or '"' in text or "\n" in text or "\r" in text:
        return '"' + text.replace('"', '""') + '"'
    return text


@lru_cache(1000)
def safe_cell(text: str) -> str:
    """A cell that no spreadsheet runs as a formula (OWASP, "CSV Injection")."""
    text = f"'{text}" if text.startswith((*FORMULA_STARTS, "\t", "\r", "\n")) else text
    # Where ; or a tab separates the cells, as in some countries, one begins after each, maybe with quotes that go.
    text = re.sub(f'([;\t\r\n]"*)(?=[{FORMULA_STARTS}])', r"\1'", text)
    # \r ends a row, others steer a terminal.
    return re.sub("\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", " ", text)


def counted(count: int, noun: str) -> str:
    """1 user, 2 users."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def tell(*lines: str) -> None:
    """Prints on stderr, on a terminal above tqdm's bars."""
    odd = r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"  # in names
    text = "".join(re.sub(odd, "?", line) + "\n" for line in lines)
    with suppress(Exception):  # there is no tqdm, or a broken one
        if sys.stderr.isatty():
            sys.modules["tqdm"].tqdm.write(text, file=sys.stderr, end="")
            return
    with suppress(OSError, ValueError, AttributeError):  # the terminal may be gone
        write_fitting(sys.stderr, text)
        sys.stderr.flush()


class StderrHandler(logging.Handler):
    """Prints the log's messages while a command runs."""

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tell(level + self.format(record).replace("\n", "?"))  # in a name


# --- Frame of a command ---------------------------------------------------------------------------------------------


def whole_number(text: str, most: int = 10**9 - 1) -> int:
    """The number of an option, from 1 to `most`. Raises argparse's error, whose message is for people."""
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"not a number from 1 to {most:,}")
    return int(text)


class Parser(argparse.ArgumentParser):
    def parse(self, words: list[str], args: argparse.Namespace) -> None:
        """Sets what the words say. Raises InventoryError also for what was meant as an option, except after --."""
        cut = words.index("--") if "--" in words else len(words)
        _, unknown = self.parse_known_intermixed_args(words[:cut], args)
        for word in [*unknown, *getattr(args, "users", words[cut + 1 :])]:
            problem = what_is_wrong(word, list(self._option_string_actions))
            if problem or word in unknown or not hasattr(args, "users"):
                raise InventoryError(f"{problem or 'a stray word is no option'} (see --help)")
        args.users = [*getattr(args, "users", []), *words[cut + 1 :]]

    def error(self, message: str) -> Any:
        """Without the values, which may be secrets in a wrong place."""
        what = re.sub(r""" ['"].*""", "", message, flags=re.S)
        raise InventoryError(f"{what} (see --help)")


def what_is_wrong(word: str, options: list[str]) -> str:
    """Why a word is neither a user nor an option, "" if nothing is. Shows an option as it is spelled, never a value."""
    start = re.match(f"([{DASHES}]+)([A-Za-z_-]*)", word)
    if not start and re.search("[ \t\r\n]", word):
        return "a word with a blank in it is taken for a user after -- only, or in a users file"
    if not start:
        return "a word is a file: was --users-file meant?" if "--users-file" in options and os.path.isfile(word) else ""
    spelled, (dashes, name), rest = start[0], start.groups(), word[start.end() :]
    if spelled in options and rest[:1].isspace():
        return f"{spelled} and what follows it came as one word: they have to be two"
    targets = {option.lstrip("-"): option for option in options}
    close = difflib.get_close_matches(name.replace("_", "-"), targets, 1) or [at for at in targets if at[:1] == name]
    longer = [option for option in options if spelled.startswith(option) and spelled != option]
    if longer or (dashes == "-" and len(name) > 1):  # what follows may be a value
        spelled = f"{max([*longer, word[:2]], key=len)}..."
    elif not name or not re.match(r"=|\s|$", rest):
        spelled = "a word that begins with a dash"
    return f"{spelled} is no option" + (f": was {' or '.join(targets[at] for at in close)} meant?" if close else "")


def add_login_options(parser: argparse.ArgumentParser) -> None:
    """The options of both commands."""
    parser.add_argument("-p", "--profile", metavar="NAME", help="profile in ~/.databrickscfg (default: its default)")
    parser.add_argument("--workspace-url", metavar="URL", help="the workspace, e.g. https://adb-1.azuredatabricks.net")
    parser.add_argument(
        "--token",
        help="access token for --workspace-url; other users of this machine can see it in "
        "the process list, a profile or DATABRICKS_TOKEN keeps it to yourself",
    )


def log_in(args: argparse.Namespace) -> DatabricksConfig:
    """The login that the options ask for, named in a line."""
    config = load_databricks_config(args.profile, args.workspace_url, args.token)
    tell(f"Workspace {config.workspace}, login from {config.source}")
    return config


@contextmanager
def interrupts() -> Iterator[None]:
    """SIGINT, SIGTERM, SIGHUP and SIGBREAK raise one KeyboardInterrupt; what was ignored (nohup) stays so.

    Until that is out, others count for nothing; a later one does: the first may have fallen into a finalizer, which
    swallows it. No thread is waited for.
    """
    is_main = threading.current_thread() is threading.main_thread()  # which alone may set handlers
    counts_from = [-math.inf]

    def interrupt(*_: Any) -> None:
        if time.monotonic() >= counts_from[0]:
            counts_from[0] = time.monotonic() + INTERRUPT_SECONDS
            raise KeyboardInterrupt

    with ExitStack() as at_end:
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if is_main else ():
            number = getattr(signal, name, None)
            before = number and signal.getsignal(number)
            if number and before not in (signal.SIG_IGN, None):
                at_end.callback(signal.signal, number, before)
                signal.signal(number, interrupt)
        yield


def explain(error: BaseException, args: argparse.Namespace) -> None:
    """Says what ended the run, and what is saved; not by the log, which the caller's program may have disabled."""
    if isinstance(error, KeyboardInterrupt):
        tell("interrupted")
    else:
        tell(*textwrap.wrap(f"error: {error}", LONGEST_LINE, break_long_words=False, break_on_hyphens=False))
        if args.debug:
            tell("".join(traceback.format_exception(error)))
    if args.saved:
        tell(args.saved)


@contextmanager
def log_on_stderr() -> Iterator[None]:
    """Our messages go to stderr, those of databricks-sdk nowhere: what matters of it comes as an exception."""
    handler, sdk = StderrHandler(), logging.getLogger("databricks.sdk")
    with ExitStack() as at_end:
        for log in (logger, sdk):
            at_end.callback(log.setLevel, log.level)
        at_end.callback(setattr, logger, "propagate", logger.propagate)
        at_end.callback(logger.removeHandler, handler)
        logger.addHandler(handler)
        logger.propagate = False
        sdk.setLevel(logging.CRITICAL)
        yield


def check_names(names: dict[str, Any]) -> None:
    """Raises InventoryError where a cell has replaced what code uses that was pasted beside it."""
    # `import datetime` and `from time import time` are as usual in notebooks as `import *`.
    imported = {"datetime": import_module("datetime").datetime, "time": import_module("time")}
    for name, value in (builtins.__dict__ | imported).items():
        is_used = isinstance(value, (builtins.type, BuiltinFunctionType, ModuleType)) and not name.startswith("_")
        if is_used and name not in NOT_USED and names.get(name, value) is not value:
            raise InventoryError(
                f"a cell has replaced {name}, as `import *` of pyspark or numpy does: put both files beside the "
                "notebook by %%writefile, and import them"
            )


def run_command(parser: Parser, argv: list[str] | None, run: Callable[[argparse.Namespace], int]) -> int:
    """Parses and runs; returns the exit code, and has printed one or two lines for whatever went wrong.

    Raises what is no InventoryError: it is the caller's own, or a bug. And in a notebook an interrupt, when all is
    saved: else "Run all" would go on.
    """
    args = argparse.Namespace(debug=False, quiet=False, saved="")  # a run notes in `saved` what is to be told then
    with interrupts(), log_on_stderr():
        try:
            check_names(run.__globals__)
            try:
                parser.parse(argv or [], args)
            except SystemExit:  # --help, --version
                return 0
            logger.setLevel(logging.DEBUG if args.debug else logging.WARNING if args.quiet else logging.INFO)
            return run(args)
        except InventoryError as error:
            explain(error, args)
            return 2
        except KeyboardInterrupt as error:
            with suppress(TimeoutError, RuntimeError):  # in a thread: stderr may be a pipe that nobody reads
                in_thread(partial(explain, error, args), TELL_SECONDS)
            if in_kernel():
                raise
            return 130
        except Exception:
            if args.saved:
                tell(args.saved)
            raise


def in_kernel() -> bool:
    """Whether this is a notebook, or a job's script task."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def is_cell(code_name: str) -> bool:
    """Whether code of this name (co_filename) was typed into a notebook: <ipython-input-...>, <timed exec>.

    ipykernel has /tmp/ipykernel_123/456.py, Databricks /root/.ipykernel/123/command-456: files in debuggers only.
    """
    return not os.path.isfile(code_name) or re.search(r"[/\\]\.?ipykernel[_/\\]", code_name) is not None


def run_as_script(main: Callable[[list[str]], int]) -> None:
    """The end of both files: main() with sys.argv, and its exit code as whatever started the file wants to have it.

    In a notebook's cell nothing starts. A job's script task, and %run, do exec(compile(text, path, "exec")) in an
    IPython kernel, where only the code still knows its path: there 0 ends by returning, since SystemExit(0) would fail
    the task, and another code as a RuntimeError, since else the task would be green. A process ends at once.
    """
    if in_kernel() and is_cell(sys._getframe(1).f_code.co_filename):
        return
    try:
        exit_code = main(sys.argv[1:])
    except KeyboardInterrupt:  # also when nobody waited for one any more
        exit_code = 130
    except Exception as error:  # a bug
        exit_code = 2
        where = traceback.format_exc() if "--debug" in sys.argv else "--debug shows where"
        tell(f"error: {type(error).__name__}: {one_line(str(error), 120)}; {where}")
    if in_kernel():
        if exit_code:
            raise RuntimeError(f"exit code {exit_code}: what was written before this says why")
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, AttributeError):  # its reader is gone, or it was closed
            stream.flush()
    os._exit(exit_code)  # at once: pyspark's threads would be waited for, and a late Ctrl-C would show a traceback


# --- Users ----------------------------------------------------------------------------------------------------------


def check_username(username: str) -> None:
    """Raises ValueError, with the reason, for a text that is no name of a user.

    Whoever is nobody would have no home, and so an inventory of nothing that looks right.
    """
    if not isinstance(username, str):  # from Python: NaN of a table, None, bytes
        raise ValueError(f"{one_line(repr(username), 60)} is not a user name: it is no text")
    hidden = any(unicodedata.category(sign) in ("Cc", "Cf", "Cs") for sign in username)
    reasons = {
        "it is empty or dots": username in ("", ".", ".."),
        f"it has one of {NOT_IN_NAMES} or a character that does not show": hidden or {*username} & {*NOT_IN_NAMES},
        "it begins or ends with a blank or an apostrophe": username != username.strip().strip("'"),
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise ValueError(f"{one_line(repr(username), 60)} is not a user name: {reason}")


def list_users(
    client: DatabricksClient, most: int = sys.maxsize, active_only: bool = False
) -> tuple[list[dict[str, str]], int]:
    """Rows of the workspace's users in its order, at most `most`, and how many more it says it has.

    Where some are missing, all are listed once more, and what it says then counts: a user may have been deleted
    meanwhile. Raises DatabricksError, and InventoryError where no user has a name: the caller is one.
    """
    left_out = "false" if active_only else None
    users: dict[str, dict[str, str]] = {}
    total = 0
    for _ in ("first", "once more"):
        found, said = list_pages(client, most, left_out)
        users |= found
        total = said or total
        rows = [row for row in users.values() if row["active"] != left_out]
        missing = 0 if len(rows) >= most else max(total - len(users), 0)
        if not missing:
            break
    if not any(row["username"] for row in users.values()):
        raise InventoryError("no users are shown, or without their names: the login has to be a workspace admin's")
    if missing:
        logger.warning("%s missing: the workspace says that it has more than it lists", counted(missing, "user"))
    return rows[:most], missing


def list_pages(client: DatabricksClient, most: int, left_out: str | None) -> tuple[dict[str, dict[str, str]], int]:
    """Users by id, and how many the workspace says there are, until `most` are listed whose `active` is not `left_out`.

    Pages are asked for by startIndex, advanced by what came, until one is empty (iam.py of databricks-sdk). There are
    services that ignore startIndex, sort each page anew or repeat users: two pages that bring nobody new are the end.
    """
    attributes = ",".join(attribute for attribute, _ in USER_COLUMNS.values())
    users: dict[str, dict[str, str]] = {}
    start = 1
    most_said = 0
    idle = 0  # pages in a row that brought nobody new
    while idle < 2 and sum(row["active"] != left_out for row in users.values()) < most:
        count = PAGE_SIZE if left_out else min(PAGE_SIZE, most - len(users))
        asked = {"attributes": attributes, "startIndex": start, "count": count}
        rows, total = client.get(USERS_PATH, asked, parse_page)
        most_said = max(total, most_said)
        if not rows:
            break
        known = len(users)
        for row in rows:
            users.setdefault(row["user_id"] or row["username"], row)
        idle = idle + 1 if len(users) == known else 0
        start += len(rows)
    return users, most_said


def leave_out_odd(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of names that the scanner takes; the others are warned about."""
    taken = []
    for row in rows:
        try:
            check_username(row["username"])
            taken.append(row)
        except ValueError as error:
            logger.warning("left out, because the scanner would refuse it: %s (user_id %s)", error, row["user_id"])
    return taken


def parse_page(body: Any) -> tuple[list[dict[str, str]], int]:
    """Rows of a SCIM page, and how many users it says there are in all. Raises MalformedAnswer."""
    users, total = parse_record(body).get("Resources"), body.get("totalResults", 0)
    if users is None and body.keys() & {"Resources", "totalResults"}:  # null is how some servers write an empty list
        users = []
    if not isinstance(users, list) or not all(isinstance(user, dict) for user in users):
        raise MalformedAnswer("the answer is not a page of users")
    if type(total) is not int or not 0 <= total < 2**63:
        raise MalformedAnswer("the answer has a totalResults that is no number")
    return [user_row(user) for user in users], total


def user_row(user: dict[str, Any]) -> dict[str, str]:
    """The CSV's row of a SCIM user, with "" for what it has not. Raises MalformedAnswer."""
    row = {}
    for column, (attribute, types) in USER_COLUMNS.items():
        value = "" if user.get(attribute) is None else user[attribute]
        if value != "" and not isinstance(value, types):
            raise MalformedAnswer("the answer has a user whose id, name or state is no such thing")
        row[column] = str(value).lower() if isinstance(value, bool) else str(value)
    return row


# --- Command --------------------------------------------------------------------------------------------------------


def run_user_list(args: argparse.Namespace) -> int:
    """The exit code: 0, or 1 where users are missing or left out. Raises InventoryError."""
    config = log_in(args)
    check_output(args.output)
    client = DatabricksClient(config)
    try:
        rows, missing = list_users(client, args.max_users or sys.maxsize, args.active_only)
    except DatabricksError as error:
        if error.kind == "login" or error.unreachable:
            raise run_error(error, config) from error
        what = f"nothing was written, the users of {config.workspace} could not be listed"
        raise InventoryError(f"{what}: {one_line(str(error), 200)}") from error
    taken = leave_out_odd(rows)
    client.close()  # what idle connections hold, the output may need
    text = "".join(map(csv_row, [USER_COLUMNS, *(row.values() for row in taken)]))
    write_output(args.output, lambda file: file.write(text))
    logger.info("%s", counted(len(taken), "user"))
    return 1 if missing or len(taken) < len(rows) else 0


def user_list(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 1 (users are missing), 2 (it could not run), 130 (interrupted)."""
    description = "Lists the users of a Databricks workspace into a CSV."
    parser = Parser(prog="databricks_user_list.py", allow_abbrev=False, description=description)
    add_login_options(parser)
    parser.add_argument("-o", "--output", metavar="FILE", type=lasting, default="-", help="the CSV (default: stdout)")
    parser.add_argument("--max-users", type=whole_number, metavar="N", help="no more than the first N")
    parser.add_argument("--active-only", action="store_true", help="leave deactivated users out")
    parser.add_argument("--debug", action="store_true", help="each retry and wait; tracebacks")
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    return run_command(parser, argv, run_user_list)


main = user_list


if __name__ == "__main__":
    run_as_script(main)
