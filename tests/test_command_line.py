"""What the commands take, print, write and return: SPEC section 5."""

import csv
import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import responses

import databricks_user_files_simple as inventory
import databricks_user_list
from tests.fake import FakeDatabricks, Fault, dbfs_directory, dbfs_file, workspace_object
from tests.helpers import ROOT, SCANNER, USER_LIST, true_csv

SECRET = "dapi-secret-0123456789"
HEADER = "username,file_count,total_size,total_size_gb,status,file_source,error\n"
CHECKPOINT = ".checkpoint_progress.json"
POSIX = pytest.mark.skipif(os.name == "nt", reason="needs POSIX")


@pytest.fixture(scope="module")
def quiet_server():
    """A workspace without homes: every user is `empty`. Tests count requests by differences."""
    with FakeDatabricks(users=0) as server:
        yield server


@pytest.fixture
def scan(monkeypatch):
    """scan(server, *words): the scanner in this process, with --output out.csv; exit code and rows (None: no file)."""

    def run(server, *words, output="out.csv"):
        monkeypatch.setenv("DATABRICKS_HOST", server.url)
        monkeypatch.setenv("DATABRICKS_TOKEN", server.settings.token)
        code = inventory.main(["--output", output, *words])
        try:
            with open(output, encoding="utf-8", newline="") as file:
                return code, list(csv.DictReader(file))
        except FileNotFoundError:
            return code, None

    return run


def files_below(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*"))


def error_lines(result):
    """What stderr has beside the line that names the workspace."""
    return [line for line in result.err.splitlines() if not line.startswith("Workspace ")]


def add_three_users(server):
    """a: files of known sizes in both file systems; b: partly unreadable; c: not readable; d: nothing."""
    for name in ("a", "b", "c", "d"):
        server.add_user(name, "none")
    server.add_tree("dbfs", {
        "/Users/a": [dbfs_file("/Users/a/f1", 3 * 1024**3), dbfs_directory("/Users/a/deep")],
        "/Users/a/deep": [dbfs_file("/Users/a/deep/f2", 123_456_789)],
        "/Users/b": [dbfs_file("/Users/b/f", 7), dbfs_directory("/Users/b/no")],
        "/Users/b/no": [dbfs_file("/Users/b/no/f", 1_000)],
        "/Users/c": [],
        "/Users/d": [],
    })  # fmt: skip
    server.add_tree("workspace", {
        "/Users/a": [workspace_object("/Users/a/n"), workspace_object("/Users/a/src", "REPO")],
        "/Users/a/src": [workspace_object("/Users/a/src/x", "FILE"), workspace_object("/Users/a/src/y", None)],
        "/Users/c": [],
    })  # fmt: skip
    server.change(faults=[Fault("403", path="/Users/b/no"), Fault("403", path="/Users/c")])
    return server


# Bad input


BAD_INPUT = {
    "no credentials at all": ((), {"DATABRICKS_HOST": "", "DATABRICKS_TOKEN": ""}, "no login found"),
    "unknown profile": (("--profile", "nope"), {"DATABRICKS_CONFIG_FILE": "good.cfg"}, "prod"),
    "profile file that is no INI": ((), {"DATABRICKS_CONFIG_FILE": "binary"}, "binary"),
    "profile file without sections": ((), {"DATABRICKS_CONFIG_FILE": "users.txt"}, "users.txt"),
    "host that does not resolve": ((), {"DATABRICKS_HOST": "https://nowhere.invalid"}, "nowhere.invalid"),
    "host that is none": (("--workspace-url", "https://"), {}, "workspace URL"),
    "wrong token": ((), {"DATABRICKS_TOKEN": SECRET}, "token"),
    "http host that is not loopback": ((), {"DATABRICKS_HOST": "http://adb-1.net"}, "unencrypted"),
    "token without a workspace": (("--token", SECRET), {}, "--workspace-url"),
    "output folder missing": (("-o", "missing/out.csv"), {}, "missing/out.csv"),
    "output folder not writable": (("-o", "users.txt/out.csv"), {}, "users.txt/out.csv"),
    "output is a folder": (("-o", "folder"), {}, "folder"),
    "unknown option": (("--nope",), {}, "--nope"),
    "abbreviated option": (("--prof", "x"), {}, "--prof"),
    "option without its value": (("--profile",), {}, "--profile"),
}
BAD_SCANS = {
    "users file missing": (("--users-file", "missing.csv"), {}, "missing.csv"),
    "users file empty": (("--users-file", "empty"), {}, "empty"),
    "users file with a header alone": (("--users-file", "header.csv"), {}, "header.csv"),
    "users file binary": (("--users-file", "binary"), {}, "binary"),
    "users file that leads out of /Users": (("--users-file", "escape.txt"), {}, "escape.txt, line 2"),
    "users file that is a folder": (("--users-file", "folder"), {}, "folder"),
    "name that leads out of /Users": (("../../Shared",), {}, "../../Shared"),
    "details folder missing": (("--users-file", "users.txt", "--details", "missing/d.json"), {}, "missing/d.json"),
    "threads 0": (("a", "--threads", "0"), {}, "--threads"),
    "threads -1": (("a", "--threads", "-1"), {}, "--threads"),
    "threads 65": (("a", "--threads", "65"), {}, "from 1 to 64"),
    "threads no number": (("a", "--threads", "many"), {}, "--threads"),
    "both only": (("a", "--dbfs-only", "--workspace-only"), {}, "--workspace-only"),
    "quiet and debug": (("a", "--quiet", "--debug"), {}, "--debug"),
    "no users": ((), {}, "--users-file"),
    "output is the users file": (("--users-file", "users.txt", "-o", "users.txt"), {}, "different files"),
    "output is the users file otherwise": (("--users-file", "users.txt", "-o", "folder/../users.txt"), {}, "file"),
    "details are the output": (("a", "-o", "out", "--details", "out"), {}, "different files"),
    "output is the checkpoint": (("--users-file", "users.txt", "-o", CHECKPOINT), {}, "different files"),
    "resume of what is not saved": (("a", "--resume"), {}, "--checkpoint"),
    "details on stdout, too": (("a", "--details", "-"), {}, "different files"),
    "details on stdout by another name": (("a", "--details", "/dev/stdout"), {}, "different files"),
    "details and output are one device": (("a", "-o", "/dev/zero", "--details", "/dev/zero"), {}, "different files"),
    "checkpoint folder missing": (("a", "--checkpoint", "missing/c.json"), {}, "missing/c.json"),
    "not a checkpoint": (("--users-file", "users.txt", "--resume", "--checkpoint", "escape.txt"), {}, "escape.txt"),
}  # fmt: skip
CASES = [(script, name, *case) for script, cases in (
    (SCANNER, BAD_SCANS), (USER_LIST, BAD_INPUT),
    (SCANNER, {name: (("a@x.com", *words), env, says) for name, (words, env, says) in BAD_INPUT.items()}),
) for name, case in cases.items()]  # fmt: skip


@pytest.mark.parametrize(("script", "words", "env", "says"), [(case[0], *case[2:]) for case in CASES],
                         ids=[f"{case[0][11:-3]}: {case[1]}" for case in CASES])  # fmt: skip
def test_bad_input_is_a_short_error_exit_2_and_nothing_written(
    script, words, env, says, command, login, tmp_path, quiet_server
):
    (tmp_path / "folder").mkdir()
    for name, content in {
        "empty": b"", "header.csv": b"username,active\n", "binary": bytes(range(256)), "users.txt": b"a\nb\n",
        "escape.txt": b"a@x.com\n../../Shared\n", "good.cfg": b"[prod]\nhost=https://p.net\ntoken=t\n",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    before = {name: (tmp_path / name).is_file() and (tmp_path / name).read_bytes() for name in files_below(tmp_path)}
    result = command(script, *words, env={**login(quiet_server), **env})
    assert result.code == 2, result
    assert 1 <= len(error_lines(result)) <= 2, result
    assert says in result.err, result
    assert "Traceback" not in result.err
    assert SECRET not in result.err
    assert result.out == ""
    after = {name: (tmp_path / name).is_file() and (tmp_path / name).read_bytes() for name in files_below(tmp_path)}
    assert after == before


@POSIX
def test_a_folder_that_may_not_be_written_is_found_out_before_the_scan(command, login, quiet_server, tmp_path):
    """Root may write everywhere but in /proc."""
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):
        folder = Path("/proc")
        if not folder.is_dir():
            pytest.skip("runs as root, and there is no /proc")
    asked = quiet_server.total_requests
    result = command(SCANNER, "a@x.com", "-o", folder / "out.csv", env=login(quiet_server))
    assert result.code == 2, result
    assert len(error_lines(result)) <= 2
    assert quiet_server.total_requests == asked


# Users

NAMES = ("a@x.com", "=1+1", "-a", "@b", "+1", "o'neil", "a b", "a\u00a0b", "corp\\anna", "mailto:a", "#a",
         "\u00e9", "e\u0301", "\U0001f600", "...", "..a", "a%2F..", "username")  # fmt: skip
NO_NAMES = ("", ".", "..", "a/b", "../ann", "/", "a\"b", "Anna <a@x.com>", "a,b", "a;b", "a\nb", "a\tb", "a\0b",
            "a\x7f", "\x85a", "\ufeffa", "a\u200bb", "\u202ea", "a\u00adb", "\ud800", " a", "a ",
            "a\u00a0", "\u3000a", "\u2028",
            "'a@x.com'", "a'", '="a@x.com"', 'a,"Berg, Anna",true,1')  # fmt: skip


def test_names_are_verbatim(scan, quiet_server, tmp_path):
    assert [row["username"] for row in scan(quiet_server, "--", *NAMES)[1]] == list(NAMES)
    (tmp_path / "users").write_text("username\n" + "\n".join(NAMES), encoding="utf-8")
    assert [row["username"] for row in scan(quiet_server, "--users-file", "users")[1]] == list(NAMES)


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_what_is_no_name_is_refused_by_place_and_before_any_request(scan, quiet_server, tmp_path, name, capsys):
    asked = quiet_server.total_requests
    with pytest.raises(ValueError, match="is not a user name: it "):
        next(inventory.scan_users(["good", name], databricks_user_list.DatabricksConfig(quiet_server.url, "t")))
    assert scan(quiet_server, "good", name) == (2, None)
    assert "command line: " in capsys.readouterr().err
    if name == name.strip(" \t") and name != "\ud800":  # else it cannot be in a file, or is a good one there
        cell = name.replace('"', '""')
        (tmp_path / "users").write_bytes(f'id,username\n1,good\n2,"{cell}"\n'.encode())
        assert scan(quiet_server, "--users-file", "users") == (2, None)
        line = 4 if "\n" in name else 3
        assert f"users, line {line}: " in capsys.readouterr().err
    assert quiet_server.total_requests == asked


@pytest.mark.parametrize(("data", "names"), [
    (b"a\nb\nc", "a b c"),
    (b"a\r\nb\r\nc\r\n", "a b c"),
    (b"a\rb\rc\r", "a b c"),
    (b"\n\nb\n \t \n\na\nb\n", "b a"),
    (b'  a  \n\tb\n"c"\n', "a b c"),
    ("\ufeffa\nb\u00e9\n".encode(), "a b\u00e9"),
    ("\ufeffa\r\nb\u00e9\r\n".encode("utf-16-le"), "a b\u00e9"),
    ("\ufeffa\nb\n".encode("utf-16-be"), "a b"),
    ("\ufeffuserName;active\r\na;true\r\n".encode("utf-16-le"), "a"),
    ("\ufeffdisplay_name\tusername\r\nBerg, A\ta\r\n\tb\r\n".encode("utf-16-le"), "a b"),  # as Excel writes it
    (b"username,display_name,active,user_id\na,A,true,1\nb,B,false,2\n", "a b"),
    (b"id,user_name\n1,a\n", "a"),
    (b"id,EMAIL,x\n1,a,2\n", "a"),
    (b"UserPrincipalName\na\n", "a"),
    (b"mail;userprincipalname\n;a\n", "a"),
    (b" id ,\tusername \n1, a \t\n", "a"),
    (b"email,username\nwrong,a\n", "a"),
    (b'id, "username", x\n1, "a", "1, 2"\n', "a"),
    (b'username;note\na;"x, y, z; w"\n', "a"),
    (b'username,display_name\na,"Berg, ""A"""\nb,"two\nlines"\nc,\n', "a b c"),
    (b"username,active\n\na,true,\n\n,\nb\n", "a b"),
])  # fmt: skip
def test_users_files(scan, quiet_server, tmp_path, data, names):
    (tmp_path / "users").write_bytes(data)
    code, rows = scan(quiet_server, "--users-file", "users")
    assert code == 0
    assert [row["username"] for row in rows] == names.split()


@pytest.mark.parametrize(("data", "says"), [
    (b"id,name\n1,a\n", "users: several columns"),
    (b"id\tname\n1\ta\n", "users, line 1"),
    (b"a;b\n", "users, line 1"),
    (b"username,active\na,true\n,true\n", "users, line 3"),
    (b"id,username\n1,a\n2\n", "users, line 3"),
    (b"display_name,username\nA,a\nBerg, Anna,b\n", "users, line 3: more columns"),
    (b'user_id,username,display_name\n1,a,A\n"2,b,""Berg, B"""\n', "users, line 3"),  # whole rows in quotes
    (b'username,display_name\n"a,""Berg, A"""\n', "users, line 2"),
    (b'"username,display_name"\n"a,A"\n', "users, line 1"),
    (b'username;x\n"a" b;1\n', "users, line 2"),
    (b'username,x\na,"open\nb,1\n', "users, line 3"),
    (b"a\nb\x00\n", "users, line 2"),
    (b"a\n\xff\xff\n", "users is neither UTF-8 nor UTF-16"),
    (b"\xff\xfea", "users is neither UTF-8 nor UTF-16"),
    ("\ufeff\ufeffusername\na\n".encode(), "users, line 1"),
    (b"username\n", "users has no user names"),
    (b" \n\n", "users has no user names"),
])  # fmt: skip
def test_users_files_that_are_refused(scan, quiet_server, tmp_path, data, says, capsys):
    (tmp_path / "users").write_bytes(data)
    assert scan(quiet_server, "--users-file", "users") == (2, None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # the first names the workspace
    assert says in lines[1]


@POSIX
def test_a_closed_stdin_is_a_line(login, quiet_server):
    words = f"'{sys.executable}' -B '{inventory.__file__}' --users-file - <&-"
    done = subprocess.run(["/bin/sh", "-c", words], env={**os.environ, **login(quiet_server)}, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == ["error: --users-file -: stdin is closed; name a file"]


def test_named_users_and_those_of_the_file_are_each_scanned_once(scan, quiet_server, tmp_path):
    (tmp_path / "users").write_text("b\na\nc\n")
    code, rows = scan(quiet_server, "a", "--users-file", "users", "d", "a")
    assert code == 0
    assert [row["username"] for row in rows] == ["a", "d", "b", "c"]


@pytest.mark.parametrize("names", [["-a", "b", "c"], ["a", "-b", "c"], ["a", "b", "-c"], ["-a"], ["--debug", "b"]])
def test_no_name_after_two_dashes_is_lost(scan, quiet_server, names):
    code, rows = scan(quiet_server, "--", *names)
    assert code == 0
    assert [row["username"] for row in rows] == names


@pytest.mark.parametrize("data", ["a\nb\n", "\ufeffusername;x\r\na;1\r\nb;2\r\n"])
def test_users_come_from_stdin(command, login, quiet_server, data):
    result = command(SCANNER, "--users-file", "-", env=login(quiet_server), stdin=data)
    assert result.code == 0, result
    assert [line.partition(",")[0] for line in result.out.splitlines()] == ["username", "a", "b"]


# Results


def test_the_inventorys_bytes(scan, tmp_path):
    (tmp_path / "users").write_text("d\nc\nb\na\n")
    with add_three_users(FakeDatabricks(users=0)) as server:
        code, rows = scan(server, "--users-file", "users")
        truth = server.truth("a")
    assert code == 1
    assert (truth.file_count, truth.total_size) == (5, 3 * 1024**3 + 123_456_789 + 3 * 10_000)
    expected = [
        "d,0,0,0.0000,empty,none,",
        "c,0,0,0.0000,error,none,dbfs:/Users/c: 403 PERMISSION_DENIED: The caller may not list this path. (and 1 more)",
        "b,1,7,0.0000,partial,dbfs,dbfs:/Users/b/no: 403 PERMISSION_DENIED: The caller may not list this path.",
        f"a,5,{truth.total_size},3.1150,success,both,",
    ]
    assert (tmp_path / "out.csv").read_bytes() == (HEADER + "\n".join(expected) + "\n").encode()
    assert [row["status"] for row in rows] == ["empty", "error", "partial", "success"]


@pytest.mark.parametrize("script_words", [("-o", "-"), ("--output", "-"), ()])
def test_stdout_has_the_csv_alone(command, login, quiet_server, script_words):
    result = command(SCANNER, "\u00e9", *script_words, env={**login(quiet_server), "PYTHONIOENCODING": "ascii"})
    assert result.code == 0, result
    assert result.out == HEADER + "\u00e9,0,0,0.0000,empty,none,\n"


def test_details_are_a_json_object_per_user(scan, tmp_path):
    with add_three_users(FakeDatabricks(users=0)) as server:
        scan(server, "a", "b", "c", "d", "--details", "details.json")
    text = (tmp_path / "details.json").read_text(encoding="utf-8")
    users = {record["username"]: record for record in map(json.loads, text.splitlines())}
    assert list(users) == ["a", "b", "c", "d"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["scanned_at"]) for record in users.values())
    dbfs, workspace = users["a"]["dbfs"], users["a"]["workspace"]
    assert (dbfs["files"], dbfs["bytes"], dbfs["directories"]) == (2, 3 * 1024**3 + 123_456_789, 2)
    assert dbfs["types"] == {"FILE": 2, "DIRECTORY": 1}
    assert (workspace["files"], workspace["bytes"], workspace["directories"]) == (3, 30_000, 2)
    assert workspace["types"] == {"NOTEBOOK": 1, "REPO": 1, "FILE": 1, "UNKNOWN": 1}
    assert [at["path"] for at in users["b"]["dbfs"]["failures"]] == ["/Users/b/no"]
    assert "403" in users["c"]["workspace"]["failures"][0]["error"]


def test_a_path_with_a_line_break_stays_in_its_row(scan):
    names = ["new\nline", "carriage\rreturn"]
    with FakeDatabricks(users=["a", "z"], shape="none") as server:
        server.add_tree("dbfs", {"/Users/a": [dbfs_directory(f"/Users/a/{name}") for name in names]})
        server.change(faults=[Fault("403", path=f"/Users/a/{name}") for name in names])
        code, rows = scan(server, "a", "z")
    assert code == 1
    assert [(row["username"], row["status"]) for row in rows] == [("a", "partial"), ("z", "empty")]


@pytest.mark.parametrize(("words", "code"), [
    (("a",), 0), (("d",), 0), (("a", "d"), 0), (("b",), 1), (("c",), 1), (("a", "b", "c", "d"), 1),
    (("a", "--nope"), 2), ((), 2), (("--help",), 0),
])  # fmt: skip
def test_exit_codes(command, login, words, code):
    with add_three_users(FakeDatabricks(users=0)) as server:
        result = command(SCANNER, *words, env=login(server))
    assert result.code == code, result


def test_only_options_leave_the_other_file_system_alone(scan):
    with add_three_users(FakeDatabricks(users=0)) as server:
        assert scan(server, "a", "--dbfs-only")[1][0]["file_count"] == "2"
        assert "workspace" not in {api for api, _ in server.requests}
        server.counts_reset()
        assert scan(server, "a", "--workspace-only")[1][0]["file_count"] == "3"
        assert "dbfs" not in {api for api, _ in server.requests}


def test_threads_1_is_one_request_at_a_time(scan):
    with FakeDatabricks(users=12, latency=0.002) as server:
        code, rows = scan(server, *server.user_names, "--threads", "1")
        assert (code, len(rows), server.max_in_flight) == (0, 12, 1)


# What is written when


def test_the_output_is_replaced_only_when_complete(command, login, tmp_path):
    (tmp_path / "out.csv").write_text("old\n")
    (tmp_path / "details.json").write_text("old\n")
    with FakeDatabricks(users=8, shape="small", expire_after_requests=5) as server:
        result = command(SCANNER, *server.user_names, "-o", "out.csv", "--details", "details.json", "--threads", "1",
                         env=login(server))  # fmt: skip
        assert result.code == 2, result
        assert (tmp_path / "out.csv").read_text() == "old\n"
        assert (tmp_path / "details.json").read_text() == "old\n"
        assert set(files_below(tmp_path)) <= {"home", "out.csv", "details.json", CHECKPOINT}
        server.change(expire_after_requests=None)
        result = command(SCANNER, *server.user_names, "-o", "out.csv", "--details", "details.json", env=login(server))
        assert result.code == 0, result
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 9
    assert len((tmp_path / "details.json").read_text().splitlines()) == 8
    assert set(files_below(tmp_path)) <= {"home", "out.csv", "details.json"}


def test_a_short_result_does_not_go_to_stdout(command, login):
    with FakeDatabricks(users=8, shape="small", expire_after_requests=5) as server:
        result = command(SCANNER, *server.user_names, "--threads", "1", env=login(server))
    assert result.code == 2, result
    assert result.out == ""


ROW = "a,0,0,0.0000,empty,none,\n"


@POSIX
def test_an_output_that_was_there_keeps_its_link_and_its_mode(scan, quiet_server, tmp_path):
    (tmp_path / "real.csv").write_text("old\n")
    (tmp_path / "real.csv").chmod(0o600)
    (tmp_path / "out.csv").symlink_to("real.csv")
    assert scan(quiet_server, "a", "--details", "new.json")[0] == 0
    assert (tmp_path / "out.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == HEADER + ROW
    assert stat.S_IMODE((tmp_path / "real.csv").stat().st_mode) == 0o600
    os.umask(umask := os.umask(0))
    assert stat.S_IMODE((tmp_path / "new.json").stat().st_mode) == 0o666 & ~umask


OWN_STDOUT = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "all.csv", "link", "folder/../all.csv"]


@POSIX
@pytest.mark.parametrize(("script", "name", "mode"), [(SCANNER, name, "ab") for name in OWN_STDOUT] + [
    (SCANNER, "/dev/stdout", "wb"), (USER_LIST, "/dev/stdout", "ab"),
])  # fmt: skip
def test_what_went_to_our_own_stdout_before_stays_there(login, tmp_path, quiet_server, script, name, mode):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("all.csv")
    words = [sys.executable, ROOT / script, *["a"] * (script == SCANNER), "-o", name]
    with open("all.csv", mode) as file:
        file.write(b"before\n")
        file.flush()
        done = subprocess.run(words, stdout=file, env={**os.environ, **login(quiet_server)}, check=False)
        file.seek(0, os.SEEK_END)
        file.write(b"after\n")
    assert done.returncode == 0
    text = HEADER + ROW if script == SCANNER else "username,display_name,active,user_id\n"
    assert (tmp_path / "all.csv").read_text() == f"before\n{text}after\n"
    assert set(files_below(tmp_path)) == {"all.csv", "folder", "home", "link"}


def test_temporary_files_of_others_stay_and_two_at_a_time_do_not_mix(tmp_path):
    """In two containers each run may be process 1 of the same folder."""
    with databricks_user_list.open_output("out.csv") as first:
        [left] = tmp_path.glob(".out.csv*")
        first.write("first")
        with databricks_user_list.open_output("out.csv") as second:
            second.write("second")
        assert (tmp_path / "out.csv").read_text() == "second"
        assert left.exists()
    assert (tmp_path / "out.csv").read_text() == "first"
    assert files_below(tmp_path) == ["home", "out.csv"]


@POSIX
@pytest.mark.parametrize("script", [SCANNER, USER_LIST])
def test_a_device_as_output_stays_a_device(command, login, tmp_path, script, quiet_server):
    """A device of our own where we may make one (root), so that a defect does not break the machine's."""
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_bytes(b"")
    except OSError:
        if os.geteuid() == 0:
            pytest.skip("root may replace /dev/null")
        device = Path("/dev/null")
    for words in (["a", "-o", device], ["a", "--details", device]) if script == SCANNER else (["-o", device],):
        result = command(script, *words, env=login(quiet_server))
        assert result.code == 0, result
        assert stat.S_ISCHR(device.stat().st_mode)


@POSIX
def test_a_pipe_as_output_gets_the_csv(command, login, tmp_path, quiet_server):
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    result = command(SCANNER, "a", "-o", "pipe", env=login(quiet_server))
    reader.join(5)
    assert result.code == 0, result
    assert got == [HEADER + ROW]


@pytest.fixture
def mounted(tmp_path):
    """mounted(source, target, *options): the file is mounted over the other one, as containers get single files."""
    mounts = []

    def mount(source, target, *options):
        for words in (
            ["--bind", source, target],
            *([["-o", f"remount,bind,{','.join(options)}", target]] if options else []),
        ):
            done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no file can be mounted here: {done.stderr}")
            mounts[:] = [target]

    if not shutil.which("mount") or sys.platform != "linux":
        pytest.skip("mount --bind is Linux's")
    yield mount
    for target in mounts:
        subprocess.run(["umount", "-l", target], check=True)


@pytest.mark.parametrize("name", ["out.csv", "a b\\\u00e9.csv"])
def test_a_mounted_file_is_written_in_place(command, login, tmp_path, quiet_server, mounted, name):
    (tmp_path / "outside").write_text("old, and longer than the new one" * 9)
    (tmp_path / name).touch()
    mounted(tmp_path / "outside", tmp_path / name)
    result = command(SCANNER, "a", "-o", name, env=login(quiet_server))
    assert result.code == 0, result
    assert (tmp_path / "outside").read_text() == HEADER + ROW
    assert set(files_below(tmp_path)) == {name, "home", "outside"}


def test_a_file_that_is_mounted_read_only_is_found_out_before_the_scan(command, login, tmp_path, quiet_server, mounted):
    for name in ("outside", "out.csv"):
        (tmp_path / name).touch()
    mounted(tmp_path / "outside", tmp_path / "out.csv", "ro")
    asked = quiet_server.total_requests
    result = command(SCANNER, "a", "-o", "out.csv", env=login(quiet_server))
    assert result.code == 2, result
    assert "out.csv cannot be written" in result.err
    assert quiet_server.total_requests == asked


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
def test_of_two_outputs_the_one_that_cannot_be_written_is_named(command, login, tmp_path, quiet_server):
    """Rows more than a buffer holds, so that it comes to light while the other one is written, too."""
    words = (*map(str, range(900)), "-o", "/dev/full", "--details", "details.json")
    result = command(SCANNER, *words, env=login(quiet_server))
    assert result.code == 2, result
    assert result.err.splitlines()[-1] == "error: /dev/full cannot be written: No space left on device"
    assert files_below(tmp_path) == ["home"]


CLOSED = {"a full disk": "{} >/dev/full", "closed": "{} >&-", "no reader": "{} | true; exit ${{PIPESTATUS[0]}}"}


@POSIX
@pytest.mark.skipif(not shutil.which("bash") or not os.path.exists("/dev/full"), reason="a shell of Linux")
@pytest.mark.parametrize("stream", CLOSED)
def test_a_stdout_of_the_user_list_that_is_closed_or_full_is_a_line(login, quiet_server, stream):
    """tests/test_faults.py has those of the scanner."""
    text = CLOSED[stream].format(f"'{sys.executable}' '{ROOT / USER_LIST}'")
    done = subprocess.run(["bash", "-c", text], env={**os.environ, **login(quiet_server)}, capture_output=True,
                          text=True, check=False)  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Workspace ")]
    assert (done.returncode, len(lines)) == (2, 1), done
    assert "stdout cannot be written" in lines[0]


# What is said


def test_the_first_line_names_the_workspace_and_the_login(command, login, quiet_server):
    for script, words in ((SCANNER, ["a"]), (USER_LIST, [])):
        first = command(script, *words, env=login(quiet_server)).err.splitlines()[0]
        assert quiet_server.url in first
        assert "environment" in first


def test_the_summary_of_several_users(command, login):
    with add_three_users(FakeDatabricks(users=0)) as server:
        text = command(SCANNER, "a", "b", "c", "d", "-o", "out.csv", env=login(server)).err
    assert "4 users: 1 success, 1 empty, 1 partial, 1 error" in text
    table = text.splitlines()[text.splitlines().index("         files        size   estimated") :]
    assert table[1:6] == [
        "             3     3.1 GiB           -  DBFS",
        "             3    29.3 KiB    29.3 KiB  Workspace, 10,000 bytes an object",
        "             5     3.1 GiB    29.3 KiB  a",
        "             1         7 B           -  b",
        table[5],
    ]
    assert table[5] == "homes: 4 in DBFS, 2 in Workspace"
    assert re.match(r"\d+ requests, ", table[6])
    assert "  partial: b: dbfs:/Users/b/no: 403 PERMISSION_DENIED: The caller may not list this path." in table
    assert [line.split(": ")[:2] for line in table if line.startswith("  error")] == [["  error", "c"]]


def test_the_summary_names_five_of_those_that_could_not_be_listed_and_counts_the_others(command, login):
    names = [f"u{number}" for number in range(7)]
    with FakeDatabricks(users=names, shape="empty", faults=[Fault("403", api="dbfs")]) as server:
        text = command(SCANNER, *names, "-q", "-o", "out.csv", env=login(server)).err
        one = command(SCANNER, names[0], "-q", "-o", "out.csv", env=login(server)).err
    assert text.count("  partial: u") == 5
    assert "  and 2 more users" in text
    assert one.count("/Users/u0") == 1
    assert all("--details names" in shown for shown in (text, one))


@pytest.mark.parametrize(("count", "shown"), [(0, "0 users"), (1, "1 user"), (2, "2 users"), (30_000, "30,000 users")])
def test_one_is_singular(count, shown):
    assert databricks_user_list.counted(count, "user") == shown


def test_the_summary_counts_retries_and_429s(scan, monkeypatch, capsys):
    for kind in ("server", "rate limit"):
        monkeypatch.setitem(databricks_user_list.RETRIES, kind, (5, 0.01))
    faults = [Fault("500", api="dbfs", times=3), Fault("429", api="workspace", times=2)]
    with FakeDatabricks(users=["a"], shape="empty", faults=faults) as server:
        assert scan(server, "a")[0] == 0
        assert server.total_requests == 12
    assert "12 requests, 5 of them repeats, 2 answered 429" in capsys.readouterr().err


def test_the_summary_of_one_user_is_its_breakdown(command, login):
    with add_three_users(FakeDatabricks(users=0)) as server:
        text = command(SCANNER, "a", "-o", "out.csv", env=login(server)).err
    assert "1 DIRECTORY, 2 FILE" in text
    assert "1 FILE, 1 NOTEBOOK, 1 REPO, 1 UNKNOWN" in text
    assert "DBFS: 2 directories listed with" in text


def test_quiet_says_warnings_errors_and_the_summary_only(command, login):
    with FakeDatabricks(users=3, shape="small", groups=["users"]) as server:
        loud = command(SCANNER, *server.user_names, env=login(server)).err
        quiet = command(SCANNER, *server.user_names, "--quiet", env=login(server)).err
    assert "warning" in quiet
    assert "3 users" in quiet
    assert len(quiet.splitlines()) <= len(loud.splitlines())
    assert command(SCANNER, "a", "-q").err.startswith("error: ")


@pytest.mark.parametrize(("words", "shown"), [((), False), (("--debug",), True)])
def test_a_traceback_is_shown_with_debug_alone(command, login, quiet_server, words, shown):
    env = {**login(quiet_server), "DATABRICKS_TOKEN": "wrong"}
    for script, users in ((SCANNER, ["a"]), (USER_LIST, [])):
        result = command(script, *users, *words, env=env)
        assert result.code == 2
        assert ("Traceback" in result.err) is shown
        assert "wrong" not in result.err


def test_debug_names_each_directory_and_not_the_token(command, login):
    with add_three_users(FakeDatabricks(users=0, token=SECRET)) as server:
        result = command(SCANNER, "a", "--debug", env=login(server))
    assert result.code == 0, result
    for path in ("/Users/a", "/Users/a/deep", "/Users/a/src"):
        assert path in result.err
    assert SECRET not in result.err + result.out


@pytest.mark.parametrize("form", [("--token", SECRET), (f"--token={SECRET}",)])
def test_the_token_option_is_shown_and_saved_nowhere(command, tmp_path, form):
    with FakeDatabricks(users=8, shape="small", token=SECRET, expire_after_requests=40) as server:
        (tmp_path / "users").write_text("".join(f"{name}\n" for name in server.user_names))
        words = ("--workspace-url", server.url, "--threads", "1", "-o", "out.csv", "--users-file", "users")
        result = command(SCANNER, *words, *form)
    assert result.code == 2, result
    saved = len(json.loads((tmp_path / CHECKPOINT).read_bytes())["results"])
    assert result.err.endswith(f"{saved} of 8 users saved in {CHECKPOINT}; the same command with --resume goes on\n")
    assert saved > 0
    assert SECRET not in result.err + result.out
    for path in tmp_path.iterdir():
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()


def test_without_a_terminal_there_are_no_control_characters(command, login):
    with FakeDatabricks(users=30, shape="small", faults=[Fault("403", rate=0.1)]) as server:
        for words in ((), ("--debug",)):
            result = command(SCANNER, *server.user_names, *words, env={**login(server), "TERM": "xterm-256color"})
            assert result.code == 1
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", result.err)
            assert "%|" not in result.err


def test_names_with_control_characters_reach_no_log(command, login):
    with FakeDatabricks(users=["a"], shape="none") as server:
        server.add_tree("dbfs", {
            "/Users/a": [dbfs_directory("/Users/a/\x1b[31mred\x1b]0;title\x07"), dbfs_directory("/Users/a/two\nlines")],
        })  # fmt: skip
        server.change(faults=[Fault("403", path=path) for path in ("/Users/a/\x1b[31mred\x1b]0;title\x07",)])
        result = command(SCANNER, "a", "--debug", env=login(server))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", result.err)


def on_a_terminal(server, login, **variables):
    """Exit code of a scan of all users on a terminal, and what it showed there."""
    import fcntl
    import pty
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-B", inventory.__file__, *server.user_names, "--threads", "2", "-o", "out.csv"],
        env={**os.environ, **login(server), **variables}, stderr=follower, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(follower)
    shown = b""
    try:
        while part := os.read(leader, 65536):
            shown += part
    except OSError:  # Linux: the other end is closed
        pass
    os.close(leader)
    return process.wait(10), shown.decode()


@POSIX
def test_on_a_terminal_a_bar_shows_users_and_requests_per_second(login):
    with FakeDatabricks(users=12, shape="empty", latency=0.1) as server:
        code, text = on_a_terminal(server, login)
    assert code == 0
    assert "12/12 users" in text
    assert re.search(r"\d+ requests/s", text)
    assert re.search(r"\d+ files", text)


BROKEN_BARS = {  # variables, and the text of a package tqdm
    "a variable that is no number": ({"TQDM_MININTERVAL": "abc"}, None),
    "a variable that tqdm stumbles over later": ({"TQDM_ASCII": "1"}, None),
    "switched off": ({"TQDM_DISABLE": "1"}, None),
    "a folder of that name": ({}, ""),
    "cannot be imported": ({}, "raise RuntimeError('broken')"),
    "cannot draw": ({}, "class tqdm:\n    def __init__(self, **_): self.disable = False"),
    "cannot write": ({}, "class tqdm:\n    def __init__(self, **_): self.disable = False\n"
                         "    update = set_postfix_str = close = lambda self, *_: None"),
}  # fmt: skip


@POSIX
@pytest.mark.parametrize("kind", BROKEN_BARS)
def test_a_bar_that_does_not_work_changes_nothing_but_itself(login, tmp_path, kind):
    variables, text = BROKEN_BARS[kind]
    if text is not None:
        (tmp_path / "tqdm").mkdir()
        (tmp_path / "tqdm" / "__init__.py").write_text(text)
        variables = {"PYTHONPATH": str(tmp_path)}
    with FakeDatabricks(users=4, shape="empty", groups=["users"]) as server:
        code, text = on_a_terminal(server, login, **variables)
    assert code == 0, text
    said = ("Workspace http", "warning: this login is not", "4 users: 4 empty", " requests, ")
    assert [text.count(piece) for piece in said] == [1] * len(said), text
    assert not re.search("Traceback|Exception", text), text


def test_commands_in_threads_of_one_process_say_each_message_once(login, monkeypatch, capsys):
    with FakeDatabricks(users=2, shape="empty", groups=["users"], latency=0.02) as server:
        for name, value in login(server).items():
            monkeypatch.setenv(name, value)
        both, codes = threading.Barrier(2), []

        def run(number):
            both.wait()
            codes.append(inventory.main([server.user_names[number], "-o", f"out{number}.csv"]))

        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert capsys.readouterr().err.count("warning: this login is not in the group admins") == 2
        assert inventory.main([server.user_names[0], "-o", "out.csv"]) == 0
    assert codes == [0, 0]
    assert capsys.readouterr().err.count("warning: this login is not in the group admins") == 1
    assert databricks_user_list.log.propagate
    assert not databricks_user_list.log.handlers


@POSIX
def test_64_threads_need_few_open_files(login):
    words = f"ulimit -n 128 && exec '{sys.executable}' -B '{inventory.__file__}' --threads 64 --users-file users"
    with FakeDatabricks(users=60, shape="small", latency=0.05) as server:
        Path("users").write_text("\n".join(server.user_names), encoding="utf-8")
        done = subprocess.run(["/bin/sh", "-c", words], env={**os.environ, **login(server)}, capture_output=True,
                              text=True, check=False)  # fmt: skip
        assert server.max_in_flight > 50
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr


def test_the_files_have_no_name_in_common_but_main_and_what_one_imports():
    ours = {name for name, value in vars(inventory).items() if not name.startswith("_")}
    theirs = vars(databricks_user_list)
    assert [name for name in ours & theirs.keys() if theirs[name] is not vars(inventory)[name]] == ["main"]
    assert inventory.main is inventory.user_files
    assert databricks_user_list.main is databricks_user_list.user_list


@responses.activate
def test_both_commands_have_one_version_and_tell_the_service(capsys):
    responses.get(re.compile("https://"), status=403)
    for main, words in ((inventory.main, ["a"]), (databricks_user_list.main, [])):
        assert main(["--version"]) == 0
        assert capsys.readouterr().out.endswith(f".py {databricks_user_list.VERSION}\n")
        main(["--workspace-url", "https://adb-1.net", "--token", SECRET, *words])
    agents = {call.request.headers["User-Agent"] for call in responses.calls}
    assert agents == {f"databricks-user-files/{databricks_user_list.VERSION}"}


@pytest.mark.parametrize("script", [SCANNER, USER_LIST])
def test_help_names_every_option_and_that_a_token_shows_in_the_process_list(command, script):
    result = command(script, "--help")
    assert result.code == 0
    assert result.err == ""
    options = {"--profile", "--workspace-url", "--token", "--output", "--debug"}
    options |= {"--max-users", "--active-only", "--list-profiles"} if script == USER_LIST else {
        "--users-file", "--details", "--threads", "--dbfs-only", "--workspace-only", "--resume", "--checkpoint",
        "--quiet",
    }  # fmt: skip
    assert options <= set(re.findall(r"--[a-z-]+", result.out))
    assert "process list" in " ".join(result.out.split())


@pytest.mark.parametrize("options", [("-P",), ("-I",), ("-m",)])
def test_neither_command_needs_the_others_folder_on_the_path(login, options):
    """-P is PYTHONSAFEPATH=1."""
    if options == ("-P",) and sys.version_info < (3, 11):
        pytest.skip("Python 3.10 has no -P")
    with FakeDatabricks(users=3, shape="small") as server:
        environment = {**os.environ, **login(server), "PYTHONPATH": str(ROOT) if options == ("-m",) else ""}
        for script, words in (
            (USER_LIST, ["-o", "users.csv"]),
            (SCANNER, ["--users-file", "users.csv", "-o", "out.csv"]),
        ):
            place = Path(script).stem if options == ("-m",) else ROOT / script
            done = subprocess.run([sys.executable, *options, place, *words], env=environment, capture_output=True,
                                  check=False)  # fmt: skip
            assert done.returncode == 0, done.stderr
        assert Path("out.csv").read_bytes() == true_csv(server)
