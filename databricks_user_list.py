#!/usr/bin/env python3
"""Lists a Databricks workspace's users, through SCIM, into a CSV that databricks_user_files_simple.py reads."""

import argparse
import csv
import os
import sys
from collections.abc import Iterable
from functools import partial
from typing import Any

# As a job's script task, or with PYTHONSAFEPATH, this file's folder is not on the path; only the code knows it always.
sys.path.append(os.path.dirname(os.path.abspath(sys._getframe().f_code.co_filename)))

from databricks_user_files_simple import (
    VERSION,
    DatabricksClient,
    DatabricksError,
    InventoryError,
    MalformedAnswer,
    Parser,
    add_login_options,
    check_output,
    check_username,
    counted,
    kind_of_login,
    load_databricks_config,
    log,
    open_output,
    parse_record,
    profile_file,
    read_profiles,
    read_workspace_url,
    run_as_script,
    run_command,
    run_error,
    safe_cell,
    tell_login,
    whole_number,
)

PAGE_SIZE = 1000  # users asked for at a time; the service may send fewer
USERS_PATH = "/api/2.0/preview/scim/v2/Users"
ATTRIBUTES = "id,userName,displayName,active"  # groups would make the listing time out in large workspaces
USER_LIST_COLUMNS = ("username", "display_name", "active", "user_id")
FIELD_TYPES = {"id": (str, int), "userName": str, "displayName": str, "active": bool}
TOLD_SECONDS = 30  # between two lines that tell how far the listing is


def list_users(
    client: DatabricksClient, most: int | None = None, active_only: bool = False
) -> tuple[list[dict[str, str]], int]:
    """Rows of the workspace's users in its order, at most `most`, and how many more it says it has.

    Where some are missing, all pages are asked for once more. Raises DatabricksError, and InventoryError for users
    without a name.
    """
    users, total = list_pages(client, most, active_only)
    if len(users) < total:
        log.info("%s missing: listing all once more", counted(total - len(users), "user"))
        again, total = list_pages(client, most, active_only)
        users |= again
    missing = max(total - len(users), 0)
    if missing:
        log.warning("%s missing: the workspace says that it has more than it lists", counted(missing, "user"))
    rows = [row for row in users.values() if is_wanted(row, active_only)]
    return rows[:most], missing


def list_pages(client: DatabricksClient, most: int | None, active_only: bool) -> tuple[dict[str, dict[str, str]], int]:
    """Users by id, and how many the workspace says there are; 0 where `most` are enough.

    Pages are asked for by startIndex, advanced by what came, until one is empty (iam.py of databricks-sdk). There are
    services that ignore startIndex, sort each page anew or repeat users: two pages that bring nobody new are the end.
    """
    users: dict[str, dict[str, str]] = {}
    start = 1
    total = 0
    wanted = 0
    idle = 0  # pages in a row that brought nobody new
    told_at = client.clock()
    while most is None or wanted < most:
        count = PAGE_SIZE if most is None else min(PAGE_SIZE, most - wanted)
        page = client.get(USERS_PATH, {"attributes": ATTRIBUTES, "startIndex": start, "count": count}, parse_page)
        total = max(total, page["totalResults"])
        found = page["Resources"]
        known = len(users)
        for user in found:
            row = user_row(user)
            users.setdefault(row["user_id"] or row["username"], row)
        wanted = sum(is_wanted(row, active_only) for row in users.values())
        start += len(found)
        idle = idle + 1 if len(users) == known else 0
        if not found or idle == 2:
            return users, total
        if client.clock() - told_at >= TOLD_SECONDS:
            told_at = client.clock()
            log.info("%d users so far", len(users))
    return users, 0


def is_wanted(row: dict[str, str], active_only: bool) -> bool:
    return not active_only or row["active"] != "false"


def user_row(user: dict[str, Any]) -> dict[str, str]:
    """The CSV's row of a SCIM user. Raises InventoryError where it has no name."""
    if not user.get("userName"):
        raise InventoryError("users are shown without their names: the login has to be that of a workspace admin")
    active = "" if user.get("active") is None else str(user["active"]).lower()
    return {
        "username": user["userName"],
        "display_name": safe_cell(user.get("displayName") or ""),
        "active": active,
        "user_id": str(user.get("id") or ""),
    }


def leave_out_odd(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of names that the scanner takes; the others are warned about."""
    taken = []
    for row in rows:
        try:
            check_username(row["username"])
            taken.append(row)
        except ValueError as error:
            log.warning("left out, because the scanner would refuse it: %s", error)
    return taken


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


def write_users(rows: Iterable[dict[str, str]], output: str) -> None:
    with open_output(output) as file:
        writer = csv.DictWriter(file, USER_LIST_COLUMNS, lineterminator="\n")
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
    with open_output("-") as file:
        for name, host, kind in rows:
            file.write(f"{name:<{widths[0]}}  {host:<{widths[1]}}  {kind}\n")
    return 0


def shown_host(values: dict[str, str]) -> str:
    try:
        return read_workspace_url(values["host"], "host")[0]
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
    try:
        rows, missing = list_users(DatabricksClient(config), args.max_users, args.active_only)
    except DatabricksError as error:
        if error.kind == "login" or error.unreachable:
            raise run_error(error, config) from error
        raise InventoryError(f"nothing was written, because the users could not be listed: {error}") from error
    taken = leave_out_odd(rows)
    write_users(taken, args.output)
    log.info("%s", counted(len(taken), "user"))
    return 1 if missing or len(taken) < len(rows) else 0


def user_list(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 1 (users are missing), 2 (it could not run), 130 (interrupted)."""
    return run_command(build_user_list_parser(), argv, run_user_list)


main = user_list

if __name__ == "__main__":
    run_as_script(main)
