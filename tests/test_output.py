"""Where results are written: whole or not at all, and nothing of anybody else's is lost (SPEC section 5)."""

import csv
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import databricks_user_list
from databricks_user_list import safe_cell, write_output
from tests.fake import FakeDatabricks, Fault, dbfs_directory, workspace_object
from tests.helpers import NAME, ROOT, SCANNER, USER_LIST, WORDS, needs_posix, rows_of, running, true_csv, write_users

HEADER = "username,file_count,total_size,total_size_gb,status,file_source,error\n"
CSV = HEADER + "a,0,0,0.0000,empty,none,\n"
USERS = "username,display_name,active,user_id\n"
needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")


@pytest.fixture(scope="module")
def nobody():
    """A workspace without users and homes: every user is `empty`."""
    with FakeDatabricks(users=0) as server:
        yield server


def files_here():
    return {str(path) for path in Path().rglob("*")} - {"home"}


def user_requests(server):
    return [path for _, path in server.requests if str(path).startswith("/Users/")]


def test_the_outputs_are_replaced_only_when_complete(scan):
    words = ("-o", "out.csv", "--details", "details.json", "--threads", "1")
    for name in ("out.csv", "details.json"):
        Path(name).write_text("old\n")
    with FakeDatabricks(users=8, shape="small", expire_after_requests=5) as server:
        assert scan(server, *server.user_names, *words).code == 2
        assert [Path(name).read_text() for name in ("out.csv", "details.json")] == ["old\n"] * 2
        assert files_here() <= {"out.csv", "details.json", NAME}
        short = scan(server, *server.user_names)
        assert (short.code, short.out) == (2, "")
        server.change(expire_after_requests=None)
        assert scan(server, *server.user_names, *words).code == 0
    assert [len(Path(name).read_text().splitlines()) for name in ("out.csv", "details.json")] == [9, 8]
    assert files_here() == {"out.csv", "details.json"}


@needs_posix
def test_an_output_that_was_there_keeps_its_link_and_its_mode(scan, nobody):
    Path("real.csv").write_text("old\n")
    Path("real.csv").chmod(0o600)
    Path("out.csv").symlink_to("real.csv")
    assert scan(nobody, "a", "-o", "out.csv", "--details", "new.json").code == 0
    assert Path("out.csv").is_symlink()
    assert Path("real.csv").read_text() == CSV
    assert stat.S_IMODE(Path("real.csv").stat().st_mode) == 0o600
    os.umask(umask := os.umask(0))
    assert stat.S_IMODE(Path("new.json").stat().st_mode) == 0o666 & ~umask


@needs_posix
@pytest.mark.parametrize(("script", "name", "mode"), [
    (SCANNER, "-", "ab"), (SCANNER, "/dev/stdout", "ab"), (SCANNER, "/dev/stdout", "wb"),
    (SCANNER, "/proc/self/fd/1", "ab"), (SCANNER, "link", "ab"), (USER_LIST, "/dev/stdout", "ab"),
])  # fmt: skip
def test_what_went_to_our_own_stdout_before_stays_there(login, nobody, script, name, mode):
    Path("link").symlink_to("all.csv")
    words = [sys.executable, ROOT / script, *["a"] * (script == SCANNER), "-o", name]
    with open("all.csv", mode) as file:
        file.write(b"before\n")
        file.flush()
        done = subprocess.run(words, stdout=file, env={**os.environ, **login(nobody)}, check=False)
        file.seek(0, os.SEEK_END)
        file.write(b"after\n")
    assert done.returncode == 0
    assert Path("all.csv").read_text() == f"before\n{CSV if script == SCANNER else USERS}after\n"
    assert files_here() == {"all.csv", "link"}


def test_temporary_files_of_others_stay_and_two_at_a_time_do_not_mix():
    """In two containers each run may be process 1 of the same folder."""

    def write_first(file):
        [left] = Path().glob(".out.csv*")
        file.write("first")
        write_output("out.csv", lambda other: other.write("second"))
        assert Path("out.csv").read_text() == "second"
        assert left.exists()

    write_output("out.csv", write_first)
    assert Path("out.csv").read_text() == "first"
    assert files_here() == {"out.csv"}


def test_a_result_that_cannot_get_its_name_is_kept_and_named():
    def write(file):
        file.write("result")
        Path("out.csv").mkdir()

    with pytest.raises(databricks_user_list.InventoryError, match="cannot be replaced") as caught:
        write_output("out.csv", write)
    assert Path(str(caught.value).partition("the result is in ")[2]).read_text() == "result"


@needs_posix
def test_a_device_as_output_stays_a_device(scan, list_users, nobody, tmp_path):
    """One of our own where we may make one (root), so that a defect does not break the machine's."""
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_bytes(b"")
    except OSError:
        if os.geteuid() == 0:
            pytest.skip("root may replace /dev/null")
        device = Path("/dev/null")
    assert scan(nobody, "a", "-o", device).code == 0
    assert scan(nobody, "a", "--details", device).code == 0
    assert list_users(nobody, "-o", device).code == 0
    assert stat.S_ISCHR(device.stat().st_mode)


@needs_posix
def test_a_pipe_as_output_gets_the_csv(scan, nobody):
    os.mkfifo("pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append(Path("pipe").read_text()), daemon=True)
    reader.start()
    assert scan(nobody, "a", "-o", "pipe").code == 0
    reader.join(20)
    assert got == [CSV]


@pytest.fixture
def mounted():
    """mounted(source, target, *options): the file is mounted over the other one, as containers get single files."""
    mounts = []

    def mount(source, target, *options):
        commands = [["--bind", source, target]]
        if options:
            commands.append(["-o", f"remount,bind,{','.join(options)}", target])
        for words in commands:
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
def test_a_mounted_file_is_written_in_place(scan, nobody, mounted, tmp_path, name):
    Path("outside").write_text("old, and longer than the new one" * 9)
    Path(name).touch()
    mounted("outside", tmp_path / name)
    assert scan(nobody, "a", "-o", name).code == 0
    assert Path("outside").read_text() == CSV
    assert files_here() == {name, "outside"}


def test_a_file_that_is_mounted_read_only_is_found_out_before_the_scan(scan, nobody, mounted, tmp_path):
    for name in ("outside", "out.csv"):
        Path(name).touch()
    mounted("outside", tmp_path / "out.csv", "ro")
    done = scan(nobody, "a", "-o", "out.csv")
    assert (done.code, nobody.total_requests) == (2, 0), done
    assert "out.csv cannot be written" in done.err


@needs_posix
def test_a_folder_that_may_not_be_written_is_found_out_before_the_scan(scan, nobody):
    """Root may write everywhere but in /proc."""
    folder = Path("locked")
    folder.mkdir(0o500)
    if os.access(folder, os.W_OK):
        folder = Path("/proc")
    done = scan(nobody, "a", "-o", folder / "out.csv")
    assert (done.code, nobody.total_requests) == (2, 0), done
    assert "cannot be written" in done.err


# What cannot be written any more


@needs_full
@pytest.mark.parametrize("users", [1, 900])  # less than a buffer holds, and more
@pytest.mark.parametrize("option", ["--details", "--files"])
def test_a_csv_on_stdout_waits_until_the_others_are_written(scan, nobody, option, users):
    done = scan(nobody, *range(users), option, "/dev/full")
    assert (done.code, done.out) == (2, "")


@needs_full
def test_of_two_outputs_the_one_that_cannot_be_written_is_named(scan, nobody):
    """The other one is whole: the CSV comes last."""
    done = scan(nobody, *range(900), "-o", "/dev/full", "--details", "details.json")
    assert done.code == 2, done
    assert done.err.splitlines()[-1] == "error: /dev/full cannot be written: No space left on device"
    assert len(Path("details.json").read_text().splitlines()) == 900


def test_no_csv_is_written_where_the_details_cannot_get_their_name(scan, nobody, monkeypatch):
    """As where a folder has come to be in its place during the scan."""
    replace = os.replace

    def refuse_details(source, target):
        if target.endswith("details.json"):
            raise PermissionError(1, "Operation not permitted")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_details)
    done = scan(nobody, "a", "-o", "out.csv", "--details", "details.json")
    assert done.code == 2, done
    assert "details.json cannot be replaced (Operation not permitted); the result is in" in done.err
    assert [name for name in files_here() if not name.endswith(".tmp")] == []


@needs_posix
@pytest.mark.parametrize("words", [("-o", "disk/out.csv"), ("-o", "out.csv", "--details", "disk/details.jsonl")],
                         ids=["csv", "details"])  # fmt: skip
def test_a_disk_that_is_full_when_the_output_is_written(scan, small_disk, words):
    """The checkpoint is elsewhere and keeps all; after room was made nothing is scanned again."""
    small_disk("size=8k")
    with FakeDatabricks(users=300, shape="empty") as server:
        write_users(server.user_names)
        done = scan(server, "--users-file", "users.txt", *words)
        assert done.code == 2, done
        assert f"{words[-1]} cannot be written: No space left on device" in done.err
        assert "300 of 300 users saved in" in done.err
        assert os.listdir("disk") == []
        assert not Path("out.csv").exists()
        small_disk("size=10m")
        assert scan(server, "--users-file", "users.txt", *words, "--resume").code == 0
        assert user_requests(server) == []
        assert Path(words[1]).read_bytes() == true_csv(server)


BAD_STDOUT = {"a full disk": "{} >/dev/full", "closed": "{} >&-", "no reader": "{} | true; exit ${{PIPESTATUS[0]}}"}


@needs_full
@pytest.mark.skipif(not shutil.which("bash"), reason="a shell with PIPESTATUS")
@pytest.mark.parametrize("script", [SCANNER, USER_LIST])
@pytest.mark.parametrize("stream", BAD_STDOUT)
def test_a_stdout_that_cannot_be_written_is_a_line_and_the_scan_goes_on_with_resume(scan, login, stream, script):
    """3,000 rows are more than a pipe holds. A closed stdout is found out before the scan."""
    with FakeDatabricks(users=3000, shape="none", file_systems=("dbfs",)) as server:
        write_users(server.user_names)
        words = "--users-file users.txt --dbfs-only --threads 32" if script == SCANNER else ""
        text = BAD_STDOUT[stream].format(f"'{sys.executable}' -B '{ROOT / script}' {words}")
        done = subprocess.run(["bash", "-c", text], env={**os.environ, **login(server)}, capture_output=True,
                              text=True, check=False)  # fmt: skip
        [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 2, done
        assert "stdout cannot be written" in line
        assert not [word for word in ("Traceback", "Exception ignored") if word in done.stderr]
        if script == SCANNER and stream == "closed":
            assert "--output" in line
            assert not Path(NAME).exists()
        elif script == SCANNER:
            assert "3,000 of 3,000 users saved in" in done.stderr
            again = scan(server, *words.split(), "--resume")
            assert (again.code, again.out) == (0, true_csv(server).decode())
            assert user_requests(server) == []


@needs_full
@pytest.mark.parametrize("streams", [">&- 2>&-", "2>/dev/full"])
def test_a_log_that_cannot_be_written_stops_nothing(server, login, streams):
    with running(server, login, *WORDS, prefix=("sh", "-c", f'exec "$@" {streams}', "sh")) as process:
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert Path("out.csv").read_bytes() == true_csv(server)


@needs_posix
def test_a_closed_stdin_is_a_line(login, nobody):
    words = f"'{sys.executable}' -B '{ROOT / SCANNER}' --users-file - <&-"
    done = subprocess.run(["/bin/sh", "-c", words], env={**os.environ, **login(nobody)}, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == ["error: --users-file -: stdin is closed; name a file"]


# What names and messages may do to a terminal or a spreadsheet


@settings(max_examples=200, deadline=None, derandomize=True)
@example("\uff1d1\t\uff0b1\n\uff0d1", ";")
@example('a;"=1\r\n\uff201;""=1', ";")
@given(st.text(max_size=6) | st.text("=+-@\t\r\n;,\"' a", max_size=6), st.sampled_from(",;\t"))
def test_no_cell_is_a_formula_whatever_separates_the_cells(text, delimiter):
    file = io.StringIO()
    csv.writer(file).writerow(["a", safe_cell(text), "b"])
    for row in csv.reader(io.StringIO(file.getvalue(), newline=""), delimiter=delimiter):
        for cell in row:
            assert not cell.lstrip("\t\r\n").startswith(tuple("=+-@\uff1d\uff0b\uff0d\uff20"))
    assert not [sign for sign in safe_cell(text) if unicodedata.category(sign) == "Cc" and sign not in "\t\n\r"]


@pytest.mark.parametrize("text", ["Anna", "a-b", "a = b", "1+1", "x@y", "", " ", "it's", "a;b", "a, b", "e\u0301"])
def test_other_cells_stay_as_they_are(text):
    assert safe_cell(text) == text


STEERING = ("\x1b]0;owned\x07", "\x9b31m", "a\rb", "a\x08\x08b", "\u202egnp.exe", "\u2066x", "a\nerror: forged",
            "=HYPERLINK(1)", "x;=cmd()")  # fmt: skip


def test_names_and_messages_neither_steer_a_terminal_nor_forge_lines_nor_run_in_a_spreadsheet(scan):
    paths = [f"/Users/a/{name}" for name in STEERING]
    with FakeDatabricks(users=["a", "b"], shape="none") as server:
        server.add_tree("dbfs", {"/Users/a": [dbfs_directory(path) for path in paths]})
        objects = [workspace_object(f"/Users/b/{number}", name) for number, name in enumerate(STEERING)]
        server.add_tree("workspace", {"/Users/b": objects})
        server.change(faults=[Fault("403", path=path, error_code=name, message=f"{name} {name}")
                              for path, name in zip(paths, STEERING, strict=True)])  # fmt: skip
        for words, code in ((["a"], 1), (["b"], 0), (["a", "b"], 1)):
            done = scan(server, *words, "--debug", "-o", "out.csv")
            assert done.code == code, done
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", done.err)
            assert [line for line in done.err.splitlines() if line.startswith("error:")] == []
            assert not [row for row in rows_of() if re.search("(^|;)[=+@-]", row["error"])]
