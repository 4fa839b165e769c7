"""What is renamed, committed, moved or deleted while it is scanned."""

from itertools import pairwise

import pytest

from databricks_user_files_simple import process_user_batch_parallel, scan_users
from tests.fake import FakeDatabricks, Fault
from tests.helpers import config_of, make_client, set_constants, slow_until, workers_help
from tests.strategies import folder_of

MANY = {f"part-{number}": 1 for number in range(40)}
DEEP = {"f": 1, "g": {"h": 1}}
CHANGED = "changed while it was scanned: "
# What is there, the directory before whose first listing it changes, what is there then; status, files, how many
# directories vanish, and what the row says
CASES = {
    "renamed before it was listed": ({"a": MANY, "top": 1}, "a", {"b": MANY, "top": 1}, "success", 41, 1, ""),
    "renamed with what is below": ({"a": DEEP, "top": 1}, "a", {"b": DEEP, "top": 1}, "success", 3, 1, ""),
    "renamed after it was listed": ({"a": DEEP}, "a/g", {"b": DEEP}, "partial", 3, 1,
                                    f"{CHANGED}a, which was counted, is gone, and b is new"),
    "committed as a directory": ({"_temporary": {"0": MANY}}, "_temporary/0", {"_temporary": {"1": MANY}}, "success",
                                 40, 1, ""),
    "committed into the directory above": ({"_temporary": {"0": MANY}}, "_temporary/0", MANY, "partial", 0, 1,
                                           f"{CHANGED}has 40 instead of 0 files"),
    "deleted": ({"a": MANY, "b": DEEP}, "a", {"b": DEEP}, "success", 2, 1, ""),
    "deleted with those above": ({"a": {"b": {"c": MANY}}, "top": 1}, "a/b/c", {"top": 1}, "success", 1, 1, ""),
    "deleted with its home": ({"a": MANY, "top": 1}, "a", None, "success", 1, 1, ""),
    "deleted beside a new one": ({"a": MANY}, "a", {"c": {}}, "empty", 0, 1, ""),
    "deleted after another was listed beside a new one": (
        {"a": MANY, "b": DEEP}, "a", {"c": MANY}, "partial", 42, 1,
        f"{CHANGED}b, which was counted, is gone, and c is new"),
    "moved to where nobody looks any more": ({"a": {"x": MANY}, "b": {}}, "a/x", {"a": {}, "b": {"x": MANY}}, "empty",
                                             0, 1, ""),
    "bulk": ({f"d{number}": {"f": 1} for number in range(150)}, "none", {}, "success", 150, 0, ""),
}  # fmt: skip


class Moves(Fault):
    """Never fails: when a directory is asked for (the nth time), the home becomes another."""

    def __init__(self, server, home, path, then, nth=1):
        super().__init__("404")
        self.server, self.home, self.at, self.then, self.nth = server, home, f"{home}/{path}".rstrip("/"), then, nth

    def applies(self, api, path, _):
        if (api, path) == ("dbfs", self.at):
            self.hits += 1
            if self.hits == self.nth:
                grow(self.server, self.home, self.then)
        return False


def grow(server, home, tree):
    """The home is that tree and nothing else."""
    explicit = server.world.explicit["dbfs"]
    for path in [path for path in explicit if f"{path}/".startswith(f"{home}/")]:
        del explicit[path]
    if tree is not None:
        server.add_folder("dbfs", home, folder_of(tree))


def server_of(cases):
    """A user for each of them, with its name."""
    server = FakeDatabricks(users=list(cases), shape="none")
    moves = []
    for name in cases:
        before, path, then, *_ = CASES[name]
        grow(server, f"/Users/{name}", before)
        moves.append(Moves(server, f"/Users/{name}", path, then))
    server.change(faults=moves)
    return server


def told(result):
    return [result.status, result.dbfs.files, "".join(failure["error"] for failure in result.dbfs.failures)]


@pytest.mark.parametrize("case", CASES)
def test_what_moves_is_counted_once_or_said(clock, case):
    with server_of([case]) as server:
        client = make_client(server, clock, 1)
        [result] = scan_users([case], client.config, 1, client=client)
    *expected, vanished, why = CASES[case][3:]
    assert told(result) == [*expected, why]
    assert client.statistics["vanished"] == vanished


@pytest.mark.parametrize(("moves", "expected"), [
    ([("a", {"b": DEEP, "c": {"k": 1}}), ("b/g", {"c": {"k": 1}})], ["success", 2, ""]),  # c is new once
    ([(name, {then: DEEP}) for name, then in pairwise("abcdef")], ["success", 2, ""]),  # at each look
    ([(name, {then: DEEP}) for name, then in pairwise("abcdefgh")],
     ["partial", 0, "changed while it was scanned: 404, as what its folder had at earlier looks"]),  # it ends
    # b was counted, is away at the second look at the home, and there again at the third
    ([("", {"a": {"c": {"d": MANY}}, "b": DEEP}), ("b/g", {"a": {"c": {"d": MANY}}}), ("a/c/d", {}),
      ("a", {"b": DEEP}, 2)], ["success", 1, ""]),
])  # fmt: skip
def test_a_directory_in_which_more_than_one_thing_happens(clock, moves, expected):
    with FakeDatabricks(users=["a"], shape="none") as server:
        grow(server, "/Users/a", {"a": DEEP})
        server.change(faults=[Moves(server, "/Users/a", *move) for move in moves])
        client = make_client(server, clock, 1)
        assert told(*scan_users(["a"], client.config, 1, client=client)) == expected


def test_also_where_workers_list(workers, monkeypatch):
    """But for those in which it matters what is listed first."""
    cases = [case for case in CASES if " after " not in case and "looks" not in case]
    set_constants(monkeypatch, CLUSTER_DELAY=0.0)
    with server_of(cases) as server, slow_until(server, workers_help(server), slow=0.1):
        results = list(process_user_batch_parallel(workers, cases, config_of(server), 2))
    assert {result.username: told(result) for result in results} == {
        case: [*CASES[case][3:5], CASES[case][6]] for case in cases
    }


def test_the_summary_tells_how_many_vanished(scan):
    with server_of(["deleted"]) as server:
        assert "directories that vanished during the scan: 1" in scan(server, "deleted", "-o", "out.csv").err
