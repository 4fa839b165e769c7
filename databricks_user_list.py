#!/usr/bin/env python3
"""Lists a Databricks workspace's users, through SCIM, into a CSV that databricks_user_files_simple.py reads."""

import argparse
import csv
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

from databricks_user_files_simple import (
    FILE_SYSTEMS,
    VERSION,
    DatabricksClient,
    DatabricksError,
    InventoryError,
    MalformedAnswer,
    Parser,
    add_login_options,
    caller_is_admin,
    check_output,
    check_username,
    counted,
    kind_of_login,
    load_databricks_config,
    log,
    normalize_host,
    open_output,
    parse_listing,
    parse_record,
    profile_file,
    read_profiles,
    run_command,
    run_error,
    safe_cell,
    tell_login,
    whole_number,
)

PAGE_SIZE = 1000  # users asked for at a time; the service may send fewer
SCIM_PATHS = {
    "user": "/api/2.0/preview/scim/v2/Users",
    "service_principal": "/api/2.0/preview/scim/v2/ServicePrincipals",
}
NAMES = {"user": "userName", "service_principal": "applicationId"}  # the attribute that is the name of the home
USER_LIST_COLUMNS = ("username", "display_name", "active", "user_id")
KINDS = {"user": "user", "service_principal": "service principal", "unlisted": "unlisted home"}  # in words
FIELD_TYPES = {"id": (str, int), "userName": str, "applicationId": str, "displayName": str, "active": bool}
TOLD_SECONDS = 30  # between two lines that tell how far the listing is


def list_users(
    client: DatabricksClient, most: int | None = None, active_only: bool = False, kind: str = "user"
) -> tuple[list[dict[str, str]], int]:
    """Rows of the workspace's users (or service principals), each once, and how many it says it has beyond them.

    In the service's order, at most `most`. Pages are asked for by startIndex, advanced by what came, until one is empty
    (iam.py of databricks-sdk). Raises DatabricksError, and InventoryError for users without a name.
    """
    users: dict[str, dict[str, str]] = {}
    wanted: list[dict[str, str]] = []
    attributes = f"id,{NAMES[kind]},displayName,active"  # groups would make the listing time out in large workspaces
    start, total, before, told_at = 1, 0, None, client.clock()
    while most is None or len(wanted) < most:
        count = PAGE_SIZE if most is None else min(PAGE_SIZE, most - len(wanted))
        params = {"attributes": attributes, "startIndex": start, "count": count}
        page = client.get("scim", SCIM_PATHS[kind], params, parse_page)
        total = max(total, page.get("totalResults", 0))
        found = page.get("Resources", [])
        if not found or found == before:  # the latter from a service that does not know startIndex
            return wanted, max(total - len(users), 0)
        rows = [user_row(user, kind) for user in found]
        new = {key: row for row in rows if (key := row["user_id"] or row["username"]) not in users}
        users |= new
        wanted += [row for row in new.values() if not active_only or row["active"] != "false"]
        start, before = start + len(found), found
        if client.clock() - told_at >= TOLD_SECONDS:
            told_at = client.clock()
            log.info("%d users so far", len(users))
    return wanted[:most], 0


def user_row(user: dict[str, Any], kind: str) -> dict[str, str]:
    """The CSV's row of a SCIM user or service principal."""
    if not user.get(NAMES[kind]):
        raise InventoryError(
            f"the workspace shows {KINDS[kind]}s without their names: the login has to be that of an admin"
        )
    active = "" if user.get("active") is None else str(bool(user["active"])).lower()
    return {
        "username": str(user[NAMES[kind]]),
        "display_name": safe_cell(str(user.get("displayName") or "")),
        "active": active,
        "user_id": str(user.get("id") or ""),
        "kind": kind,
    }


def list_all_homes(client: DatabricksClient, active_only: bool) -> tuple[list[dict[str, str]], int]:
    """Rows of everybody who may have a home, and of the homes of nobody listed; returns as list_users() does.

    Raises DatabricksError, also where /Users cannot be listed, and InventoryError.
    """
    if caller_is_admin(client) is False:  # who is none is shown no home but the own
        raise InventoryError("this login is not in the group admins: --all-homes needs that of a workspace admin")
    homes = list_homes(client)  # first, because a user who is made meanwhile is not to seem unlisted
    (users, missing), (principals, missing_principals) = [list_again(client, kind=kind) for kind in SCIM_PATHS]
    if missing + missing_principals:  # their homes would seem to be nobody's
        return [], missing + missing_principals
    listed = {row["username"]: row for row in users + principals}
    unlisted = [
        dict.fromkeys(USER_LIST_COLUMNS, "") | {"username": name, "kind": "unlisted"}
        for name in unlisted_homes(listed, homes)
    ]
    rows = [*listed.values(), *unlisted]
    if active_only:  # but where names differ in letter case alone, it takes all to tell whose home is whose
        alike = Counter(row["username"].lower() for row in rows)
        rows = [row for row in rows if row["active"] != "false" or alike[row["username"].lower()] > 1]
    return rows, 0


def list_again(client: DatabricksClient, kind: str = "user", **options: Any) -> tuple[list[dict[str, str]], int]:
    """list_users(), a second time where users are missing; the better of both, warned about if it lacks some."""
    users, missing = list_users(client, kind=kind, **options)
    if missing:
        log.info("%s fewer than the workspace says it has: listing them once more", counted(missing, KINDS[kind]))
        users, missing = min((users, missing), list_users(client, kind=kind, **options), key=lambda listed: listed[1])
    if missing:
        log.warning("%s missing: the workspace says that it has more than it lists", counted(missing, KINDS[kind]))
    return users, missing


def list_homes(client: DatabricksClient) -> list[list[str]]:
    """Names of the directories in /Users, for each file system that there is. Raises DatabricksError."""
    homes = []
    for file_system in FILE_SYSTEMS:
        parse = partial(parse_listing, file_system, "/Users")
        try:
            listing = client.get(file_system, f"/api/2.0/{file_system}/list", {"path": "/Users"}, parse)
        except DatabricksError as error:
            if file_system != "dbfs" or error.kind not in ("not found", "dbfs disabled"):
                error.path = f"{file_system}:/Users"
                raise
            if error.kind == "dbfs disabled":
                log.warning("DBFS is left out: %s", error)
            continue
        if listing.files:
            log.warning(
                "%s:/Users itself has %s, in nobody's home: the scanner does not count them",
                file_system,
                counted(len(listing.files), "file"),
            )
        homes.append([path.removeprefix("/Users/") for path in listing.directories])
    return homes


def unlisted_homes(listed: Iterable[str], homes: list[list[str]]) -> list[str]:
    """The homes that need a row of their own beside those of the listed names, sorted.

    The scanner finds a home in other letter case than its user's, where there is one such home and one such user. Where
    there are more, every home has its own row: the scanner takes each as it is, none is missed or counted twice.
    """
    alike = [Counter(name.lower() for name in names) for names in (listed, *homes)]
    crowded = {folded for counts in alike for folded, count in counts.items() if count > 1}
    names, seen, unlisted = set(listed), set(alike[0]), []
    for name in sorted({name for names in homes for name in names} - names):
        folded = name.lower()
        if folded in crowded and folded in seen:
            log.warning("/Users/%s is not the only home or name in this spelling; it has a row of its own", name)
        if folded in crowded or folded not in seen:
            unlisted.append(name)
        seen.add(folded)
    return unlisted


def leave_out_refused(rows: list[dict[str, str]]) -> tuple[list[dict[str, str]], int]:
    """The rows whose names the scanner takes from the CSV as they are, and how many others there were."""
    taken = []
    for row in rows:
        try:
            if check_username(row["username"]) != row["username"].strip():
                raise ValueError
            taken.append(row)
        except ValueError:
            log.warning(
                "%r is left out: the scanner takes no such name (spaces around it, control characters, \\)",
                row["username"],
            )
    return taken, len(rows) - len(taken)


def parse_page(body: Any) -> dict[str, Any]:
    """A SCIM page with what we ask for; where it has no users, `Resources` may be missing."""
    users, total = parse_record(body).get("Resources", []), body.get("totalResults", 0)
    is_page = "Resources" in body or type(body.get("totalResults")) is int
    if not is_page or not isinstance(users, list) or not all(isinstance(user, dict) for user in users):
        raise MalformedAnswer("the answer is not a page of users")
    if type(total) is not int or not 0 <= total < 2**63:
        raise MalformedAnswer("the answer has a totalResults that is no number")
    shown = [{name: user[name] for name in FIELD_TYPES if user.get(name) is not None} for user in users]
    if not all(isinstance(value, FIELD_TYPES[name]) for user in shown for name, value in user.items()):
        raise MalformedAnswer("the answer has a user whose id, name or state is no such thing")
    return {"totalResults": total, "Resources": shown}


def write_users(rows: Iterable[dict[str, str]], columns: Iterable[str], output: str) -> None:
    with open_output(output) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def list_profiles() -> int:
    """Prints name, host and kind of login of every profile."""
    if not profile_file().exists():
        raise InventoryError(f"there is no profile file {profile_file()}; `databricks configure` makes one")
    profiles, default = read_profiles()
    names = {name: name + " (default)" * (name == (default or "DEFAULT")) for name in profiles}
    rows = [(names[name], shown_host(values), kind_of_login(values)) for name, values in profiles.items() if values]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    for name, host, kind in rows:
        print(f"{name:<{widths[0]}}  {host:<{widths[1]}}  {kind}")
    return 0


def shown_host(values: dict[str, str]) -> str:
    try:
        return normalize_host(values["host"], "host")
    except (KeyError, InventoryError):
        return "no host"


def build_user_list_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="databricks_user_list.py",
        allow_abbrev=False,
        description="Lists the users of a Databricks workspace into a CSV.",
    )
    add_login_options(parser)
    parser.add_argument("-o", "--output", metavar="FILE", default="-", help="the CSV (default: stdout)")
    parser.add_argument(
        "--max-users", type=partial(whole_number, most=10**9 - 1), metavar="N", help="no more than the first N"
    )
    parser.add_argument("--active-only", action="store_true", help="leave deactivated users out")
    parser.add_argument(
        "--all-homes",
        action="store_true",
        help="add service principals, and homes under /Users that belong to nobody listed (deleted "
        "users), with a column that tells which",
    )
    parser.add_argument("--list-profiles", action="store_true", help="show the profiles of ~/.databrickscfg, and end")
    parser.add_argument("--debug", action="store_true", help="each retry and wait; tracebacks")
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    return parser


def run_user_list(args: argparse.Namespace) -> int:
    if args.list_profiles:
        return list_profiles()
    config = load_databricks_config(args.profile, args.workspace_url, args.token)
    tell_login(config)
    check_output(args.output)
    client, refused = DatabricksClient(config), 0
    try:
        if args.all_homes:
            rows, missing = list_all_homes(client, args.active_only)
            rows, refused = leave_out_refused(rows)
        else:
            rows, missing = list_again(client, most=args.max_users, active_only=args.active_only)
    except DatabricksError as error:
        if error.kind == "login" or error.unreachable:
            raise run_error(error, config) from error
        log.error("%s could not be listed: %s. Nothing was written", error.path, error)
        return 1
    if args.all_homes and missing:
        log.error("without them --all-homes cannot tell which homes belong to nobody. Nothing was written")
        return 1
    rows = rows[: args.max_users]
    write_users(rows, USER_LIST_COLUMNS + ("kind",) * args.all_homes, args.output)
    kinds = Counter({"user": 0} | Counter(row["kind"] for row in rows))
    log.info("%s", ", ".join(counted(kinds[kind], noun) for kind, noun in KINDS.items() if kind in kinds))
    return 1 if missing or refused else 0


def user_list(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 1 (users are missing), 2 (it could not run), 130 (interrupted)."""
    return run_command(build_user_list_parser(), argv, run_user_list)


main = user_list

if __name__ == "__main__" and "get_ipython" not in globals():  # not when pasted into a notebook
    raise SystemExit(main())
