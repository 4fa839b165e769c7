"""Where results are written: whole or not at all, and nothing of anybody else's is lost."""

import csv
import errno
import gzip
import io
import os
import re
import select
import shutil
import stat
import subprocess
import sys
import tempfile
import unicodedata
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from databricks_user_list import InventoryError, check_output, safe_cell, write_output
from tests.fake import FakeDatabricks, Fault, Folder, World
from tests.helpers import ROOT, SCANNER, USER_LIST, needs_posix, rows_of, saved_users, set_constants, until, write_users

CSV = "username,file_count,total_size,total_size_gb,status,file_source,error\na,0,0,0.0000,empty,none,\n"
ANYBODY = 65534  # a user of the system that is neither root nor anybody here
needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")


@pytest.fixture(autouse=True)
def temporary_folder(monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def files_here():
    return {str(path) for path in Path().rglob("*")} - {"home"}


def long_names(number):
    """Sixty rows with these are more than the buffers of a stream or 8 KB of disk hold, 400 more than a pipe."""
    return [f"{user:0200}" for user in range(number)]


def named_file(text):
    """The file of which an error says that it has all."""
    return Path(re.search("the whole text is in (.+)$", text, re.M)[1])


def test_the_outputs_are_replaced_only_when_complete(scan):
    names = ("out.csv", "details.json")
    words = ("-o", names[0], "--details", names[1], "--threads", "1")
    for name in names:
        Path(name).write_text("old\n")
    with FakeDatabricks(users=8, shape="small", expire_after_requests=5) as server:
        assert scan(server, *server.user_names, *words).code == 2
        assert [Path(name).read_text() for name in names] == ["old\n"] * 2
        short = scan(server, *server.user_names)
        assert (short.code, short.out, files_here()) == (2, "", {*names})
        server.change(expire_after_requests=None)
        assert scan(server, *server.user_names, *words).code == 0
    assert [len(Path(name).read_text().splitlines()) for name in names] == [9, 8]
    assert files_here() == {*names}


def test_names_of_files_mean_what_they_meant_at_the_start(scan):
    """A program that this one is a guest of may go to another folder in mid-run."""
    words = ("-o", "out.csv", "--details", "details.json", "--files", "files.csv", "--checkpoint", "saved")
    for folder in ("here", "there"):
        Path(folder).mkdir()
        for name in words[1::2]:
            Path(folder, name).write_text("other\n" if folder == "there" else "")
    moved = Fault("429", path="/Users/a", when=lambda: os.chdir("../there"))
    with FakeDatabricks(users=["a"], shape="small", faults=[moved]) as server:
        os.chdir("here")
        assert scan(server, "a", *words).code == 0
    assert [Path(name).read_text() for name in words[1::2]] == ["other\n"] * 4
    assert {path.name for path in Path("../here").iterdir() if path.stat().st_size} == {*words[1:6:2]}


def test_every_output_whose_name_ends_in_gz_is_gzipped(scan, list_users, small):
    assert list_users(small, "-o", "users.CSV.gz").code == 0
    options = {"-o": "out", "--details": "details", "--files": "files", "--report": "page"}
    for ending in ("", ".GZ"):
        words = [word for option, name in options.items() for word in (option, name + ending)]
        assert scan(small, "--users-file", "users.CSV.gz", *words).code == 0
    for name in options.values():
        with gzip.open(f"{name}.GZ") as file:
            assert len(file.read().splitlines()) == len(Path(name).read_bytes().splitlines()) >= 12


def run_or_skip(*words):
    try:
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not to be had here: {error}")


@needs_posix
@pytest.mark.parametrize(("of_folder", "of_file", "is_replaced"), [
    ("chmod 755", "chmod 640", True), ("chmod 755", f"chown {ANYBODY}:{ANYBODY}", True),
    ("chmod 755", f"setfacl -m u:{ANYBODY}:rw,g::---", True), ("chmod 755", "ln -v", False),
    (f"setfacl -d -m u:{ANYBODY}:rw", "chmod 640", False),  # it has no ACL, where new files get one
    ("chmod 755", "chmod 640", None),  # it cannot be told
])  # fmt: skip
def test_an_output_that_was_there_keeps_its_link_and_who_may_read_it(
    scan, nobody, monkeypatch, of_folder, of_file, is_replaced
):
    folder, file = Path("folder"), Path("folder/out.csv")
    folder.mkdir()
    file.write_text("old, and longer than the new one" * 9)
    Path("link").symlink_to(file)
    run_or_skip(*of_folder.split(), folder)
    run_or_skip(*of_file.split(), file)
    if is_replaced is None:
        monkeypatch.delattr(os, "listxattr")
    before = run_or_skip("getfacl", "-n", file), file.stat().st_ino
    assert scan(nobody, "a", "-o", "link", "--details", "new.json").code == 0
    assert (run_or_skip("getfacl", "-n", file), file.stat().st_ino == before[1]) == (before[0], not is_replaced)
    assert (file.read_text(), os.listdir(folder), Path("link").is_symlink()) == (CSV, ["out.csv"], True)
    os.umask(umask := os.umask(0))
    assert stat.S_IMODE(Path("new.json").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize(("folder_mode", "mode", "elsewhere", "is_written"), [
    (0o1777, 0o666, True, True), (0o755, 0o666, True, True), (0o755, 0o666, False, False), (0o777, 0o444, True, False),
    (0o755, None, True, False),
], ids=["sticky", "takes no file", "no place elsewhere", "read-only", "new, but the folder takes no file"])  # fmt: skip
def test_where_nothing_can_be_renamed_the_text_is_copied_in_or_refused_before(folder_mode, mode, elsewhere, is_written):
    if not hasattr(os, "seteuid") or os.geteuid():
        pytest.skip("only root can be somebody else for a while")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        file, open_folder = Path(name, "out.csv"), Path(name, "open")
        open_folder.mkdir()
        if mode:
            file.write_text("old, and longer")
            file.chmod(mode)
        open_folder.chmod(0o777)
        os.chmod(name, folder_mode)
        tempfile.tempdir = str(open_folder) if elsewhere else "/nowhere"
        os.seteuid(ANYBODY)
        try:
            with nullcontext() if is_written else pytest.raises(InventoryError, match=r"csv cannot be written: [PN]"):
                check_output(str(file))
                write_output(str(file), lambda out: out.write("new"))
        finally:
            os.seteuid(0)
        assert {path.name for path in Path(name).rglob("*")} == {"open"} | ({"out.csv"} if mode else set())
        assert not mode or (file.read_text() == "new", file.stat().st_uid) == (is_written, 0)


@needs_posix
@pytest.mark.parametrize(
    ("name", "mode"), [("-", "ab"), ("/dev/stdout", "wb"), ("/proc/self/fd/1", "ab"), ("link", "ab")]
)
def test_what_went_to_our_own_stdout_before_stays_there(login, nobody, name, mode):
    Path("link").symlink_to("all.csv")
    words = [sys.executable, ROOT / SCANNER, "a", "-o", name]
    with open("all.csv", mode) as file:
        file.write(b"before\n")
        file.flush()
        done = subprocess.run(words, stdout=file, env={**os.environ, **login(nobody)}, check=False)
        file.seek(0, os.SEEK_END)
        file.write(b"after\n")
    assert done.returncode == 0
    assert Path("all.csv").read_text() == f"before\n{CSV}after\n"
    assert files_here() == {"all.csv", "link"}


def test_what_a_python_caller_has_printed_comes_before_the_rows(login, nobody):
    code = "from databricks_user_files_simple import user_files; print('before'); user_files(['a', '-q'])"
    environment = {**os.environ, **login(nobody), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, check=True)
    assert done.stdout.decode() == f"before\n{CSV}"


def test_temporary_files_of_others_stay_and_two_at_a_time_do_not_mix():
    """In two containers each run may be process 1 of the same folder."""

    def write_first(file):
        [left] = Path().glob(".out.csv*")
        file.write("first")
        write_output("out.csv", lambda other: other.write("second"))
        assert (Path("out.csv").read_text(), left.exists()) == ("second", True)

    write_output("out.csv", write_first)
    assert (Path("out.csv").read_text(), files_here()) == ("first", {"out.csv"})
    check_output(longest := "\u00e9" * 127)  # bytes, of 255
    write_output(longest, lambda file: file.write("first"))


@needs_posix
def test_a_device_stays_a_device(scan, list_users, nobody, small):
    run_or_skip("sh", "-c", "mknod -m 666 null c 1 3 && :> null")  # not the machine's, which root might replace
    for option in ("-o", "--details"):
        assert scan(nobody, "a", option, "null").code == 0
    assert list_users(small, "-o", "null").code == 0
    assert stat.S_ISCHR(Path("null").stat().st_mode)
    assert scan(nobody, "a", "-o", "/dev/stdout").code == 0
    assert os.fstat(1)  # still open


@needs_full
@pytest.mark.parametrize(
    ("option", "users"), [("-o", 60), ("-o", 1), ("--details", 60), ("--files", 1), ("--report", 1)]
)
def test_an_output_that_fails_keeps_no_other_from_being_written_and_is_kept(
    scan, nobody, monkeypatch, temporary_folder, option, users
):
    places = {"-o": "out.csv", "--details": "details.json", "--files": "files.csv", "--report": "page.html"}
    words = [word for pair in (places | {option: "/dev/full"}).items() for word in pair]
    done = scan(nobody, *long_names(users), *words)
    fails = "error: /dev/full cannot be written: No space left on device; "
    kept = named_file(done.err)
    assert (done.code, done.out, f"{users} user" in done.err) == (2, "", True)
    assert re.findall("^error: .*", done.err, re.M) == [f"{fails}the whole text is in {kept}"]
    assert (stat.S_IMODE(kept.stat().st_mode), files_here()) == (0o600, {*places.values()} - {places[option]})
    texts = {name: Path(path).read_text() for name, path in (places | {option: str(kept)}).items()}
    assert "</table>" in texts.pop("--report")
    lines = {name: len(text.splitlines()) for name, text in texts.items()}
    assert lines == {"-o": users + 1, "--details": users, "--files": 1}
    write_users(long_names(users))
    err = scan(nobody, "--users-file", "users.txt", *words).err  # which has a checkpoint
    assert f"{fails}the same command with --resume and another name writes all again\n{users} of {users} user" in err
    assert [*temporary_folder.iterdir()] == [kept]
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    if option != "--files":  # which needs one for itself
        assert f"{fails}nor does the temporary folder take the text" in scan(nobody, "a", option, "/dev/full").err


def test_a_mounted_file_is_copied_in_and_a_copy_that_ends_early_leaves_no_short_one(scan, nobody, small_disk):
    """As containers get single files. The whole text is named then."""
    small_disk("size=8k")
    for name in ("disk/out.csv", "out.csv"):
        Path(name).write_text("old\n")
    run_or_skip("mount", "--bind", "disk/out.csv", "out.csv")
    try:
        done = scan(nobody, *long_names(60), "-o", "out.csv")
        assert ("out.csv cannot be written: No space" in done.err, Path("out.csv").read_text()) == (True, "")
        assert len(named_file(done.err).read_text().splitlines()) == 61
        small_disk("size=10m")
        assert scan(nobody, "a", "-o", "out.csv").code == 0
        assert Path("disk/out.csv").read_text() == CSV
        run_or_skip("mount", "-o", "remount,bind,ro", "out.csv")
        done = scan(nobody, "a", "-o", "out.csv")
        assert (done.code, nobody.total_requests, "Read-only" in done.err) == (2, 0, True)
    finally:
        subprocess.run(["umount", "-l", "out.csv"], check=True)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EIO])
def test_a_disk_without_fsync_is_no_obstacle_but_one_that_fails_is(monkeypatch, number):
    def fail(_):
        raise OSError(number, "refused")

    is_obstacle = number == errno.EIO
    Path("out.csv").write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InventoryError, match="refused") if is_obstacle else nullcontext():
        write_output("out.csv", lambda file: file.write("new"))
    assert (Path("out.csv").read_text(), files_here()) == ("old" if is_obstacle else "new", {"out.csv"})


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="/proc is Linux's")
def test_idle_connections_are_closed_before_outputs_are_written(scan, list_users, small, monkeypatch):
    """So there are descriptors for the outputs where a process has few."""

    def count(*names):  # established connections to the server
        connections.append(len(re.findall(rf" \w+:{port:04X} 01 ", Path("/proc/net/tcp").read_text())))
        replace(*names)

    connections, replace, port = [], os.replace, int(small.url.rpartition(":")[2])
    monkeypatch.setattr(os, "replace", count)
    assert scan(small, *small.user_names, "-o", "out.csv").code == list_users(small, "-o", "users.csv").code == 0
    assert connections == [0, 0]


@needs_full
@pytest.mark.skipif(not shutil.which("bash"), reason="a shell with PIPESTATUS")
@pytest.mark.parametrize("script", [SCANNER, USER_LIST])
@pytest.mark.parametrize(("stream", "code", "says", "saved"), [
    ("{} >/dev/full", 2, "stdout cannot be written: No space left on device; the", 400),
    ("{} >&-", 2, "stdout cannot be written: it is closed; name a file with --output", 0),
    ("{} | true; exit ${{PIPESTATUS[0]}}", 0, "", 0),
])  # fmt: skip
def test_a_stdout_that_cannot_be_written_is_a_line_and_needs_no_reader(login, script, stream, code, says, saved):
    """400 rows of long names are more than a pipe holds."""
    with FakeDatabricks(users=long_names(400), shape="none", file_systems=("dbfs",)) as server:
        write_users(server.user_names)
        words = "--users-file users.txt --dbfs-only --threads 32" if script == SCANNER else ""
        text = stream.format(f"'{sys.executable}' -B '{ROOT / script}' {words}")
        done = subprocess.run(["bash", "-c", text], env={**os.environ, **login(server)}, capture_output=True,
                              text=True, check=False)  # fmt: skip
    errors = re.findall("^error: (.*)$", done.stderr, re.M)
    assert (done.returncode, [error[: len(says)] for error in errors]) == (code, [says] if says else []), done
    assert not re.search("Traceback|Exception ignored", done.stderr)
    assert len(saved_users()) == (saved if script == SCANNER else 0)


@needs_posix
def test_a_stdout_that_does_not_block_gets_every_row(login, nobody):
    write_users(long_names(400))
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    words = [sys.executable, "-B", ROOT / SCANNER, "--users-file", "users.txt", "-q"]
    with subprocess.Popen(words, stdout=writer, env={**os.environ, **login(nobody)}) as process:
        until(lambda: not select.select([], [writer], [], 0)[1])  # it is full
        os.close(writer)
        with open(reader) as file:
            assert (len(file.readlines()), process.wait(20)) == (401, 0)


def test_what_a_narrow_stream_has_no_sign_for_is_escaped_and_the_summary_is_there(scan, nobody, monkeypatch):
    """As in a notebook, or a program that has replaced sys.stdout."""
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="cp1252") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    assert scan(nobody, "\u65e5\u672c", "\u00e9").code == 0
    out, err = (stream.buffer.getvalue().decode("cp1252") for stream in streams.values() if not stream.flush())
    assert [line.partition(",")[0] for line in out.splitlines()[1:]] == ["\\u65e5\\u672c", "\u00e9"]
    assert "no home anywhere: 2 users, the first is \\u65e5\\u672c" in err


def test_where_inodes_are_0_no_file_is_taken_for_a_stream_or_another_file(scan, nobody, monkeypatch):
    def without_inode(look, *place, **more):
        mode, _, _, *others = look(*place, **more)
        return os.stat_result([mode, 0, 0, *others])

    set_constants(monkeypatch, ON_WINDOWS=True)
    Path("out.csv").write_text("old")
    Path("details.json").write_text("old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", partial(without_inode, os.stat))
        patched.setattr(os, "fstat", partial(without_inode, os.fstat))
        done = scan(nobody, "a", "-o", "out.csv", "--details", "details.json")
    assert (done.code, done.out, Path("out.csv").read_text()) == (0, "", CSV), done


@pytest.mark.parametrize(("names", "says"), [
    (("O.csv", "o.csv"), "different files"), (("\u00e9.csv", "e\u0301.csv"), "different files"),
    (("a:b.csv", "x"), "colon"), (("C:\\x\\out.csv:stream", "x"), "colon"), (("out.csv:a", "x"), "colon"),
])  # fmt: skip
def test_names_that_are_another_file_elsewhere_are_refused(scan, nobody, monkeypatch, names, says):
    set_constants(monkeypatch, ON_WINDOWS=says == "colon")
    done = scan(nobody, "a", "-o", names[0], "--details", names[1])
    assert (done.code, says in done.err, nobody.total_requests, files_here()) == (2, True, 0, set())


@pytest.mark.parametrize(("name", "refused", "tries", "code"), [
    ("replace", 3, 4, 0), ("replace", 4, 4, 0), ("open", 1, 1, 2),
], ids=["new, for a moment", "new", "old"])  # fmt: skip
def test_on_windows_what_is_held_is_tried_again_or_refused(scan, nobody, monkeypatch, name, refused, tries, code):
    def refuse(*words, **more):
        if any(str(word).endswith("/out.csv") for word in words):
            tried.append(words)
            if len(tried) <= refused:
                raise PermissionError(13, "Permission denied")
        return call(*words, **more)

    set_constants(monkeypatch, ON_WINDOWS=True, RENAME_WAITS=(0.0,) * 3)
    if code:
        Path("out.csv").write_text("old")
    call, tried = getattr(os, name), []
    monkeypatch.setattr(os, name, refuse)
    done = scan(nobody, "a", "-o", "out.csv")
    held = "out.csv cannot be written: Permission denied (is it open in another program?)" in done.err
    assert (done.code, len(tried), held, nobody.total_requests == 0) == (code, tries, code == 2, code == 2)
    assert (files_here(), Path("out.csv").read_text()) == ({"out.csv"}, "old" if code else CSV)


@needs_full
@pytest.mark.parametrize("streams", [">&- 2>&-", "2>/dev/full"])
def test_a_log_that_cannot_be_written_stops_nothing(login, nobody, streams):
    words = ["sh", "-c", f'exec "$@" {streams}', "sh", sys.executable, "-B", ROOT / SCANNER, "a", "-o", "out.csv"]
    done = subprocess.run(words, env={**os.environ, **login(nobody)}, capture_output=True, check=False)
    assert (done.returncode, done.stderr, Path("out.csv").read_text()) == (0, b"", CSV)


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
    for plain in ("Anna", "a-b", "a = b", "1+1", "x@y", "", " ", "it's", "a;b", "a, b", "e\u0301"):
        assert safe_cell(plain) == plain
    assert not [sign for sign in safe_cell(text) if unicodedata.category(sign) == "Cc" and sign not in "\t\n\r"]


STEERING = ("\x1b]0;owned\x07", "\x9b31m", "a\rb", "a\x08\x08b", "\u202egnp.exe", "\u2066x", "a\nerror: forged",
            "=HYPERLINK(1)", "x;=cmd()")  # fmt: skip


def test_names_and_messages_neither_steer_a_terminal_nor_forge_lines_nor_run_in_a_spreadsheet(scan):
    world, types = World(), enumerate((*STEERING, "\ud800"))
    world.add_user("a", Folder({name: Folder() for name in STEERING}))
    world.add_user("b", Folder(), Folder({str(number): name for number, name in types}))
    faults = [Fault("403", path=f"/Users/a/{name}", error_code=name, message=f"{name} {name}") for name in STEERING]
    with FakeDatabricks(world, faults=faults) as server:
        for words, code in ((["a"], 1), (["b"], 0), (["a", "b"], 1)):
            done = scan(server, *words, "--debug", "-o", "out.csv", "--files", "files.csv", "--details", "details.json")
            assert (done.code, "error:" in re.findall("^.{6}", done.err, re.M)) == (code, False), done
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", done.err)
            assert [row["username"] for row in rows_of() if not re.search("(^|;)[=+@-]", row["error"])] == words
