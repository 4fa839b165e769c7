#!/usr/bin/env python3
"""Lists a Databricks workspace's users, through SCIM, into a CSV that databricks_user_files_simple.py reads."""
from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable
from functools import partial
from typing import Any

from databricks_user_files_simple import (
    DatabricksClient,
    DatabricksError,
    InventoryError,
    MalformedAnswer,
    Parser,
    add_login_options,
    check_output,
    kind_of_login,
    load_databricks_config,
    log,
    normalize_host,
    open_output,
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
USERS_PATH = "/api/2.0/preview/scim/v2/Users"
KINDS = {"id": (str, int), "userName": str, "displayName": str, "active": bool}
ATTRIBUTES = ",".join(KINDS)  # groups would make the listing time out in large workspaces
MOST_USERS = 500_000  # ten times the largest workspaces: a listing has to end
TOLD_SECONDS = 30  # between two lines that tell how far the listing is
CSV_COLUMNS = ("username", "display_name", "active", "user_id")


def list_users(client: DatabricksClient, most: int | None = None,
               active_only: bool = False) -> tuple[list[dict[str, Any]], int]:
    """The workspace's users in the service's order, each once, and how many are missing of those it says it has.

    At most `most` of them. Pages are asked for by startIndex, advanced by what came, until one is empty (iam.py of
    databricks-sdk). Raises DatabricksError, and InventoryError for users without a name.
    """
    users: dict[str, dict[str, Any]] = {}
    wanted: list[dict[str, Any]] = []
    start, total, before, told_at = 1, 0, None, client.clock()
    while most is None or len(wanted) < most:
        count = PAGE_SIZE if most is None else min(PAGE_SIZE, most - len(wanted))
        params = {"attributes": ATTRIBUTES, "startIndex": start, "count": count}
        page = client.get("scim", USERS_PATH, params, parse_page)
        total = max(total, page.get("totalResults", 0))
        found = page.get("Resources", [])
        if not found or found == before:  # the latter from a service that does not know startIndex
            return wanted, max(total - len(users), 0)
        new = {user_key(user): user for user in found if user_key(user) not in users}
        users |= new
        wanted += [user for user in new.values() if not active_only or user.get("active") is not False]
        start, before = start + len(found), found
        if len(users) > MOST_USERS:
            raise InventoryError(f"the workspace lists more than {MOST_USERS:,} users: is this the workspace's URL?")
        if client.clock() - told_at >= TOLD_SECONDS:
            told_at = client.clock()
            log.info("%d users so far", len(users))
    return wanted[:most], 0


def user_key(user: dict[str, Any]) -> str:
    if not user.get("userName"):
        raise InventoryError("the workspace shows users without their names: the login has to be that of an admin")
    return str(user.get("id") or user["userName"])


def parse_page(body: Any) -> dict[str, Any]:
    """A SCIM page with what we ask for; where it has no users, `Resources` may be missing."""
    users, total = parse_record(body).get("Resources", []), body.get("totalResults", 0)
    is_page = "Resources" in body or type(body.get("totalResults")) is int
    if not is_page or not isinstance(users, list) or not all(isinstance(user, dict) for user in users):
        raise MalformedAnswer("the answer is not a page of users")
    if type(total) is not int or not 0 <= total < 2**63:
        raise MalformedAnswer("the answer has a totalResults that is no number")
    shown = [{name: user[name] for name in KINDS if user.get(name) is not None} for user in users]
    if not all(isinstance(value, KINDS[name]) and len(str(value)) <= 1000
               for user in shown for name, value in user.items()):
        raise MalformedAnswer("the answer has a user whose id, name or state is no such thing")
    return {"totalResults": total, "Resources": shown}


def write_users(users: Iterable[dict[str, Any]], output: str) -> None:
    with open_output(output) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for user in users:
            active = "" if user.get("active") is None else str(bool(user["active"])).lower()
            display_name = safe_cell(str(user.get("displayName") or ""))
            writer.writerow([user["userName"], display_name, active, user.get("id", "")])


def list_profiles() -> int:
    """Prints name, host and kind of login of every profile."""
    if not profile_file().exists():
        raise InventoryError(f"there is no profile file {profile_file()}; `databricks configure` makes one")
    profiles, default = read_profiles()
    names = {name: name + " (default)" * (name == (default or "DEFAULT")) for name in profiles}
    rows = [(names[name], shown_host(values), kind_of_login(values))
            for name, values in profiles.items() if values]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    for name, host, kind in rows:
        print(f"{name:<{widths[0]}}  {host:<{widths[1]}}  {kind}")
    return 0


def shown_host(values: dict[str, str]) -> str:
    try:
        return normalize_host(values["host"])
    except (KeyError, InventoryError):
        return "no host"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description="Lists the users of a Databricks workspace into a CSV.", allow_abbrev=False)
    add_login_options(parser)
    parser.add_argument("-o", "--output", metavar="FILE", default="-", help="the CSV (default: stdout)")
    parser.add_argument("--max-users", type=partial(whole_number, most=10**9 - 1), metavar="N",
                        help="no more than the first N")
    parser.add_argument("--active-only", action="store_true", help="leave deactivated users out")
    parser.add_argument("--list-profiles", action="store_true", help="show the profiles of ~/.databrickscfg, and end")
    parser.add_argument("--debug", action="store_true", help="each retry and wait; tracebacks")
    return parser


def run(args: argparse.Namespace) -> int:
    if args.list_profiles:
        return list_profiles()
    config = load_databricks_config(args.profile, args.workspace_url, args.token)
    tell_login(config)
    check_output(args.output)
    client = DatabricksClient(config)
    try:
        users, missing = list_users(client, args.max_users, args.active_only)
        if missing:
            log.info("%d users fewer than the workspace says it has: listing them once more", missing)
            users, missing = min((users, missing), list_users(client, args.max_users, args.active_only),
                                 key=lambda listed: listed[1])
    except DatabricksError as error:
        if error.kind == "login" or error.unreachable:
            raise run_error(error, config) from error
        log.error("the users could not be listed: %s. Nothing was written", error)
        return 1
    write_users(users, args.output)
    log.info("%d users", len(users))
    if missing:
        log.warning("%d users are missing: the workspace says that it has more than it lists", missing)
    return 1 if missing else 0


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 1 (users are missing), 2 (it could not run), 130 (interrupted)."""
    return run_command(build_parser(), argv, run)


if __name__ == "__main__" and "get_ipython" not in globals():  # not when pasted into a notebook
    raise SystemExit(main())
