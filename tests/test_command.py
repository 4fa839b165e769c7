"""What the two commands take, say and return."""

import csv
import gzip
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import responses

import databricks_user_files_simple as scanner
import databricks_user_list
from tests.fake import FakeDatabricks, Fault, Folder, World, dbfs_directory
from tests.helpers import ROOT, SCANNER, USER_LIST, assert_kept, needs_posix, rows_of, true_csv, write_users

SECRET = "dapi-secret-0123456789"
HEADER = "username,file_count,total_size,total_size_gb,status,file_source,error\n"


def usernames(path="out.csv"):
    return [row["username"] for row in rows_of(path)]


@pytest.fixture
def three():
    """a: files of known sizes in both file systems; b: partly unreadable; c: not readable; d: nothing."""
    world, deep = World(), Folder({"f2": 123_456_789})
    source = Folder({"x": "FILE", "y": None}, object_type="REPO")
    world.add_user("a", Folder({"f1": 3 * 1024**3, "deep": deep}), Folder({"n": "NOTEBOOK", "src": source}))
    world.add_user("b", Folder({"f": 7, "no": Folder(denied=True)}))
    world.add_user("c", Folder(denied=True), Folder(denied=True))
    world.add_user("d", Folder())
    with FakeDatabricks(world, token=SECRET) as server:
        yield server


BAD = [  # words of the scanner, and what the error says; where the words are in a list, both commands have them
    (["-o", "missing/out.csv"], "missing/out.csv cannot be written: No such file"),
    (["-o", "folder"], "folder cannot be written: it is a folder"), (["-o", ""], "cannot be written: it is a folder"),
    ((), "name users, or give --users-file; or --all-homes"), (("users.txt",), "was --users-file meant?"),
    (("--users-file", "no.csv"), "No such file or directory; to make it: python databricks_user_list.py -o"),
    (("--users-file", ""), "--users-file  cannot be read"), (("--resume",), "--checkpoint"),
    (("--threads", "0"), "--threads"), (("--threads", "65"), "from 1 to 64"),
    (("--dbfs-only", "--workspace-only"), "--workspace-only"), (("--quiet", "--debug"), "--debug"),
    (("--users-file", "users.txt", "-o", "users.txt"), "different files"),
    (("--users-file", "users.txt", "-o", scanner.CHECKPOINT_FILE), "different files"),
    (("-o", "/dev/zero", "--details", "/dev/zero"), "different files"), (("--details", "/dev/stdout"), "different"),
    (("-o", "a.csv", "--files", "./a.csv"), "different"), (("--files", "no/f.csv"), "f.csv cannot be written: No such"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "says"), BAD)
def test_bad_input_is_a_short_error_exit_2_and_nothing_written(words, says, scan, list_users, nobody):
    def contents():
        return {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")}

    Path("folder").mkdir()
    write_users("ab")
    before = contents()
    runs = [scan(nobody, *["a@x.com"] * bool(words), *words)]
    runs += [list_users(nobody, *words)] if isinstance(words, list) else []
    for done in runs:
        lines = [line for line in done.err.splitlines() if not line.startswith("Workspace ")]
        assert (done.code, done.out, 1 <= len(lines) <= 2, says in done.err) == (2, "", True, True), done
    assert contents() == before


# Users

FORMULAS = ("=1+1", "-a", "@b", "+1", "\uff1d1")
NAMES = (*FORMULAS, "a@x.com", "o'neil", "a b", "a\u00a0b", "corp\\anna", "mailto:a", "#a",
         "\u00e9", "e\u0301", "\U0001f600", "...", "..a", "a%2F..", "%2e%2e", "..\\..", "a?path=%2FShared",
         "a&path=%2FShared", "a\u2215b", "a%00b", "username")  # fmt: skip
NO_NAMES = ("", ".", "..", "a/b", "../ann", "/", "a\"b", "Anna <a@x.com>", "a,b", "a;b", "a\nb", "a\tb", "a\0b",
            "\x7f", "\x85a", "\ufeffa", "a\u200bb", "\u202ea", "a\u00adb", "\ud800", " a", "a ", "a\u00a0",
            "\u3000a", "\u2028", "'a@x.com'", "a'", '="a@x.com"', 'a,"Berg, Anna",true,1')  # fmt: skip


def test_names_are_verbatim_and_do_not_leave_users(scan, nobody):
    cells = [f"'{name}" if name in FORMULAS else name for name in NAMES]  # which no spreadsheet runs
    assert scan(nobody, "-o", "out.csv", "--", *NAMES).code == 0
    assert usernames() == cells
    assert {path for api, path in nobody.requests if api == "workspace"} == {
        "/Users", *(f"/Users/{name}" for name in NAMES)}  # fmt: skip
    Path("users").write_text("username\n" + "\n".join(NAMES), encoding="utf-8")
    for path, other in (("users", "out.csv"), ("out.csv", "out2.csv")):  # a CSV of ours is a users file, too
        assert scan(nobody, "-o", other, "--users-file", path).code == 0
        assert usernames(other) == cells


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_what_is_no_name_is_refused_by_place_and_before_any_request(scan, nobody, name):
    with pytest.raises(ValueError, match="is not a user name: it "):
        next(scanner.scan_users(["good", name], databricks_user_list.DatabricksConfig(nobody.url, "", "")))
    runs = {"command line: ": ("good", "--", name)}
    if name == name.strip(" \t") and name != "\ud800":  # else it cannot be in a file, or is a good one there
        cell = name.replace('"', '""')
        Path("users").write_bytes(f'id,username\n1,good\n2,"{cell}"\n'.encode())
        runs[f"users, line {4 if chr(10) in name else 3}: "] = ("--users-file", "users")
    for place, words in runs.items():
        done = scan(nobody, *words)
        assert (done.code, done.out, nobody.total_requests, place in done.err) == (2, "", 0, True), done


@pytest.mark.parametrize(("data", "names"), [
    (b"a\nb\nc", "a b c"), (b"a\r\nb\r\nc\r\n", "a b c"), (b"a\rb\rc\r", "a b c"),
    (b"\n\nb\n \t \n\na\nb\n", "b a"), (b'  a  \n\tb\n"c"\n', "a b c"),
    ("\ufeffa\nb\u00e9\n".encode(), "a b\u00e9"), ("\ufeffa\nb\n".encode("utf-16-be"), "a b"),
    ("\ufeffdisplay_name\tusername\r\nBerg, A\ta\r\n\tb\r\n".encode("utf-16-le"), "a b"),  # as Excel writes it
    (gzip.compress("\ufeffuserName;active\r\na;true\r\n".encode("utf-16-le"), mtime=0), "a"),
    (b"username,display_name,active,user_id\na,A,true,1\nb,B,false,2\n", "a b"),
    (b"id,user_name\n1,a\n", "a"), (b"id,EMAIL,x\n1,a,2\n", "a"), (b"UserPrincipalName\na\n", "a"),
    (b"mail;userprincipalname\n;a\n", "a"), (b" id ,\tusername \n1, a \t\n", "a"),
    (b"email,username\nwrong,a\n", "a"), (b'id, "username", x\n1, "a", "1, 2"\n', "a"),
    (b'username;note\na;"x, y, z; w"\n', "a"), (b'x\t"username" \n\t "a" \n1 \tb\n', "a b"),
    (b'\t"username" , "x"\t\n "a"\t,\t"A, B" \n"b" ,\n', "a b"), (b"username,active\n\na,true,\n\n,\nb\n", "a b"),
    (b'username,display_name\na,"Berg, ""A"""\nb,"two\nlines"\nc,\n', "a b c"),
    (b"username,note\na," + 200_000 * b"x", "a"),  # more than Python's csv takes
])  # fmt: skip
def test_users_files(scan, nobody, data, names):
    Path("users").write_bytes(data)
    csv.field_size_limit(131_072)
    assert scan(nobody, "-o", "out.csv", "--users-file", "users").code == 0
    assert usernames() == names.split()
    assert csv.field_size_limit() == 131_072


@pytest.mark.parametrize(("data", "says"), [
    (b"id,name\n1,a\n", ": several columns"), (b"Mail;Name\na@x.com;A\n", ": several columns"),
    (b"id\tname\n1\ta\n", ": several columns, and none is called username, user_name, userPrincipalName, email"),
    (b"username,active\na,true\n,true\n", ", line 3"), (b"id,username\n1,a\n2\n", ", line 3"),
    (b"display_name,username\nA,a\nBerg, Anna,b\n", ", line 3: more columns"),
    (b'user_id,username,display_name\n1,a,A\n"2,b,""Berg, B"""\n', ", line 3"),  # whole rows in quotes
    (b'username,display_name\n"a,""Berg, A"""\n', ", line 2"), (b'"username,display_name"\n"a,A"\n', ", line 1"),
    (b'username;x\n"a" b;1\n', ", line 2"), (b'username,x\na,"open\nb,1\n', ", line 3"), (b"a\nb\0\n", ", line 2"),
    (b"username\n''=1\n", ", line 2"), (b"username\n'a\n", ", line 2"),  # only the mark before a formula goes
    (b"a\n\xff\xff\n", " is neither UTF-8 nor UTF-16"), (b"\xff\xfea", " is neither UTF-8 nor UTF-16"),
    ("\ufeff\ufeffusername\na\n".encode(), ", line 1"), (b"username\n", " has no user names"),
    (b"PK\3\4\24\0\6\0", " is a workbook, or another kind of zip file: save it as CSV"),
    (gzip.compress(b"a\n", mtime=0)[:-9], " cannot be read: "),
])  # fmt: skip
def test_users_files_that_are_refused(scan, nobody, data, says):
    Path("users").write_bytes(data)
    done = scan(nobody, "--users-file", "users")
    [_, line] = done.err.splitlines()  # the first names the workspace
    assert (done.code, done.out, nobody.total_requests, f"users{says}" in line) == (2, "", 0, True)


@needs_posix
def test_users_come_from_stdin_which_is_not_overwritten_and_may_be_closed(scan, login, nobody, monkeypatch):
    Path("users.txt").write_text("\ufeffusername;x\r\na;1\r\n\u00e9;2\r\n")
    rows = f"{HEADER}a,0,0,0.0000,empty,none,\n\u00e9,0,0,0.0000,empty,none,\n"
    environment = {**os.environ, **login(nobody), "PYTHONIOENCODING": "ascii"}
    for words, code, out in (([], 0, rows), (["-o", "users.txt"], 2, "")):
        command = [sys.executable, "-B", ROOT / SCANNER, "--users-file", "-", *words]
        with open("users.txt") as users:
            done = subprocess.run(command, stdin=users, env=environment, capture_output=True, check=False)
        assert (done.returncode, done.stdout.decode()) == (code, out), done
    assert b"must be different files" in done.stderr
    assert Path("users.txt").read_text().startswith("\ufeff")
    monkeypatch.setattr(sys, "stdin", None)
    done = scan(nobody, "--users-file", "-")
    assert (done.code, done.err.splitlines()[1:]) == (2, ["error: --users-file -: stdin is closed; name a file"])


def test_named_users_and_those_of_the_file_are_each_scanned_once(scan, nobody):
    Path("users").write_text("b\na\nc\n")
    assert scan(nobody, "a", "--users-file", "users", "-o", "out.csv", "--", "d", "--debug", "-c", "a").code == 0
    assert usernames() == ["a", "d", "'--debug", "'-c", "b", "c"]


def test_the_inventory_the_details_and_the_summary_of_users_of_all_kinds(scan, three):
    write_users("dcba")
    done = scan(three, "--users-file", "users.txt", "--details", "details.json")
    refused, of_dbfs = "403 PERMISSION_DENIED: The caller may not list this path.", 3 * 1024**3 + 123_456_789
    rows = [
        "d,0,0,0.0000,empty,none,",
        f"c,0,0,0.0000,error,none,dbfs:/Users/c: {refused} (and 1 more)",
        f"b,1,7,0.0000,partial,dbfs,dbfs:/Users/b/no: {refused}",
        f"a,5,{of_dbfs + 30_000},3.1150,success,both,",
    ]
    assert (done.code, done.out) == (1, HEADER + "\n".join(rows) + "\n")
    codes = {("a", "d"): 0, ("b",): 1, ("c",): 1, ("--help",): 0}
    assert {words: scan(three, *words).code for words in codes} == codes
    users = {record["username"]: record for record in map(json.loads, Path("details.json").read_text().splitlines())}
    assert list(users) == [*"dcba"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["scanned_at"]) for record in users.values())
    counts = [[*map(users["a"][at].get, ("files", "bytes", "directories", "types"))] for at in ("dbfs", "workspace")]
    types = {"FILE": 2, "DIRECTORY": 1}, {"NOTEBOOK R": 1, "REPO": 1, "FILE": 1, "UNKNOWN": 1}
    assert counts == [[2, of_dbfs, 2, types[0]], [3, 30_000, 2, types[1]]]
    assert [at["path"] for at in users["b"]["dbfs"]["failures"]] == ["/Users/b/no"]
    assert "403" in users["c"]["workspace"]["failures"][0]["error"]
    one = scan(three, "a", "-o", "out.csv").err
    assert "DBFS: 2 directories listed with 1 DIRECTORY, 2 FILE" in one
    assert "Workspace: 2 directories listed with 1 FILE, 1 NOTEBOOK R, 1 REPO, 1 UNKNOWN" in one
    assert "4 users: 1 success, 1 empty, 1 partial, 1 error" in done.err
    table = done.err.splitlines()[done.err.splitlines().index("         files        size   estimated") :]
    assert table[1:7] == [
        "             3     3.1 GiB           -  DBFS",
        "             3    29.3 KiB    29.3 KiB  Workspace, 10,000 bytes an object",
        "  " + "-" * 38,
        "             5     3.1 GiB    29.3 KiB  a",
        "             1         7 B           -  b",
        "homes: 4 in DBFS, 2 in Workspace",
    ]
    assert re.match(r"\d+ requests, ", table[7])
    assert f"  partial: b: dbfs:/Users/b/no: {refused}" in table
    assert [line.split(": ")[:2] for line in table if line.startswith("  error")] == [["  error", "c"]]


def test_the_summary_names_five_of_those_that_could_not_be_listed_and_counts_the_others(scan):
    names, paths = [f"u{number}" for number in range(7)], [f"/Users/u0/{number}" for number in range(8)]
    with FakeDatabricks(users=names, shape="empty", faults=[Fault("403", api="dbfs")]) as server:
        many, five = (scan(server, *names[:count], "-q", "-o", "out.csv").err for count in (7, 5))
        server.add_tree("dbfs", {"/Users/u0": [*map(dbfs_directory, paths)]})
        server.change(faults=[Fault("403", path=path) for path in paths])
        one = scan(server, "u0", "-o", "out.csv").err
    assert (many.count("  partial: u"), many.count("  and 2 more users"), five.count("more user")) == (5, 1, 0)
    assert ("1 user: 1 partial" in one, one.count("  not listed: /Users/u0/")) == (True, 5)
    assert "  not listed: 3 more\nWorkspace: 1 directory listed\n" in one
    assert all("--details names" in shown for shown in (many, one))


def test_the_summary_counts_retries_and_429s(scan, monkeypatch):
    for kind in ("server", "rate limit"):
        monkeypatch.setitem(databricks_user_list.RETRIES, kind, (5, 0.01))
    paths = ("/Users", "/Users/a")  # before the first user, and of one
    faults = [Fault(kind, api=api, path=path, times=times)
              for kind, api, times in (("500", "dbfs", 3), ("429", "workspace", 2)) for path in paths]  # fmt: skip
    with FakeDatabricks(users=["a"], shape="empty", faults=faults) as server:
        done = scan(server, "a")
        assert (done.code, server.total_requests) == (0, 17)
    assert "17 requests, 10 of them repeats, 4 answered 429, in 0:00:0" in done.err


def test_what_is_said_first_with_quiet_and_with_debug(scan, list_users, nobody):
    with FakeDatabricks(users=3, shape="small", groups=["users"]) as server:
        quiet, loud = (scan(server, *server.user_names, *option).err for option in (["--quiet"], []))
    said = ("warning", "3 users", "sequential")
    assert [[text in shown for text in said] for shown in (quiet, loud)] == [[True, True, False], [True, True, True]]
    for run, words in ((scan, ["a"]), (list_users, [])):
        assert run(nobody, *words).err.splitlines()[0] == f"Workspace {nobody.url}, login from environment"
        for debug in ([], ["--debug"]):
            done = run(nobody, *words, "--workspace-url", nobody.url, "--token", "wrong", *debug)
            assert (done.code, "Traceback" in done.err, "wrong" in done.err) == (2, bool(debug), False)


def test_debug_names_each_directory_and_the_token_option_is_shown_and_saved_nowhere(scan, three):
    write_users("abcd")
    words = ("--workspace-url", three.url, f"--token={SECRET}", "--debug", "--files", "files.csv", "-o", "out.csv")
    done = scan(three, "--users-file", "users.txt", *words)
    assert done.code == 1
    assert [path for path in ("/Users/a", "/Users/a/deep", "/Users/a/src") if path not in done.err] == []
    assert_kept(SECRET, done.out, done.err)
    assert Path(scanner.CHECKPOINT_FILE).exists()


@pytest.mark.parametrize(("seconds", "passed_over"), [(600.0, 1), (0.0, 0)])
def test_of_two_interrupts_the_second_counts_when_the_first_has_had_its_time(monkeypatch, seconds, passed_over):
    monkeypatch.setattr(databricks_user_list, "INTERRUPT_SECONDS", seconds)
    with databricks_user_list.interrupts():
        for _ in range(2):
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
                passed_over -= 1
    assert passed_over == 0


@responses.activate
def test_both_files_have_one_version_tell_it_the_service_and_have_main_alone_in_common(capsys):
    ours = {name: value for name, value in vars(scanner).items() if not name.startswith("_")}
    theirs = vars(databricks_user_list)
    assert [name for name in ours.keys() & theirs.keys() if theirs[name] is not ours[name]] == ["main"]
    assert (scanner.main, databricks_user_list.main) == (scanner.user_files, databricks_user_list.user_list)
    responses.get(re.compile("https://"), status=403)
    for main, words in ((scanner.main, ["a"]), (databricks_user_list.main, [])):
        assert main(["--version"]) == 0
        assert capsys.readouterr().out.endswith(f".py {databricks_user_list.VERSION}\n")
        main(["--workspace-url", "https://adb-1.net", "--token", SECRET, *words])
    agents = {call.request.headers["User-Agent"] for call in responses.calls}
    assert agents == {f"databricks-user-files/{databricks_user_list.VERSION}"}


@pytest.mark.parametrize("options", [("-P",), ("-I",), ("-m",)])
def test_neither_command_needs_the_others_folder_on_the_path(login, options, small):
    """-P is PYTHONSAFEPATH=1; a script may be a link."""
    if options == ("-P",) and sys.version_info < (3, 11):
        pytest.skip("Python 3.10 has no -P")
    environment = {**os.environ, **login(small), "PYTHONPATH": str(ROOT) if options == ("-m",) else ""}
    for script, words in ((USER_LIST, ["-o", "users"]), (SCANNER, ["--users-file", "users", "-o", "out.csv"])):
        Path("link.py").unlink(missing_ok=True)
        Path("link.py").symlink_to(ROOT / script)
        place = Path(script).stem if options == ("-m",) else "link.py"
        subprocess.run([sys.executable, *options, place, *words], env=environment, check=True)
    assert Path("out.csv").read_bytes() == true_csv(small)
