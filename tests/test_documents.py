"""The documents say what the program says, and what they show runs. NOTEBOOK_USAGE.md: see test_notebook.py."""

import ast
import csv
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

import databricks_user_files_simple as scanner
import databricks_user_list
from databricks_user_files_simple import CSV_COLUMNS, FILE_COLUMNS, FileSystemTotals, UserResult
from tests import demo
from tests.fake import FakeDatabricks, Fault
from tests.helpers import ROOT, SCANNER, USER_LIST, Result, asked_for, hang_when, needs_posix, saved_users, until

README = (ROOT / "README.md").read_text(encoding="utf-8")
OF_THE_TESTS = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
TOP_LEVEL = {".ci", ".gitignore", "NOTEBOOK_USAGE.md", "README.md", "WORKSPACE_VS_DBFS.md",
             "databricks_user_files_simple.py", "databricks_user_list.py", "requirements.txt", "tests"}  # fmt: skip


def blocks(language, start=""):
    """The README's blocks of this language that start so."""
    found = re.findall(rf"^```{language}\n(.*?)^```", README, re.S | re.M)
    return [block for block in found if block.startswith(start)]


def one_form(text):
    """Without what argparse prints differently from version to version: line breaks, and '-o FILE, --output FILE'."""
    return re.sub(r"(-\w) [A-Z]+, (--[\w-]+)", r"\1, \2", " ".join(text.split()))


@pytest.mark.parametrize("script", [databricks_user_list, scanner], ids=["user_list", "user_files"])
def test_the_option_block_is_what_help_prints(monkeypatch, capsys, script):
    monkeypatch.setenv("COLUMNS", "100")
    assert script.main(["--help"]) == 0
    usage, _, options = capsys.readouterr().out.split("\n\n", 2)
    assert usage.startswith(f"usage: {script.__name__}.py")
    assert one_form(options) in map(one_form, blocks("text"))


def test_the_top_level_is_that_of_the_specification():
    words = ["git", "ls-tree", "--name-only", "HEAD"]
    names = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if names.returncode:
        pytest.skip("not a git checkout")
    assert set(names.stdout.split()) <= TOP_LEVEL


def test_every_file_that_the_documents_name_is_there():
    for document in [*ROOT.glob("*.md"), ROOT / "tests" / "README.md"]:
        for name in re.findall(r"\b(?:tests/)?\w+\.(?:py|md)\b", document.read_text(encoding="utf-8")):
            assert any((folder / name).exists() for folder in (ROOT, document.parent)), f"{document.name} names {name}"


def test_the_columns_are_those_that_are_written():
    table = README.split("| column | meaning |")[1].split("\n\n")[0]
    named = re.findall(r"^\| (`.+?`) \|", table, re.M)
    assert re.findall(r"\w+", " ".join(named)) == [*CSV_COLUMNS]
    assert f"`{','.join(FILE_COLUMNS)}`" in README


def test_the_messages_of_the_table_are_those_of_the_program():
    trees = [ast.parse((ROOT / script).read_text(encoding="utf-8")) for script in (SCANNER, USER_LIST)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    said = "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    messages = re.findall(r"^\| `(.+?)` \|", README.split("| it says")[1].split("\n## ")[0], re.M)
    assert len(messages) >= 10
    pieces = [piece for message in messages for piece in message.split("...") if piece.strip()]
    assert [piece for piece in pieces if piece.rstrip() not in said] == []


# What runs in a shell


def install(folder, python):
    """Both scripts in a folder, and a program of that path that is this Python."""
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -B "$@"\n')
    python.chmod(0o755)
    for script in (SCANNER, USER_LIST):
        (folder / script).symlink_to(ROOT / script)


def log_in(server):
    """The README's profile, of that server and by default."""
    [profile] = blocks("ini")
    own = {"[work]": "[DEFAULT]", "https://adb-1.2.azuredatabricks.net": server.url, "dapi...": server.settings.token}
    for example, value in own.items():
        assert example in profile
        profile = profile.replace(example, value)
    path = Path(os.environ["DATABRICKS_CONFIG_FILE"])
    path.write_text(profile)
    path.chmod(0o600)


@pytest.fixture
def shell(tmp_path):
    """shell(server, text): exit code and output of a shell in a folder with both scripts."""
    install(tmp_path, tmp_path / "bin" / "python")

    def run(server, text):
        log_in(server)
        variables = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(
            ["/bin/sh", "-c", text],
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@needs_posix
def test_every_command_runs_as_it_stands(shell):
    """But for the tour, which installs packages first."""
    commands = [block for block in blocks("bash") if "tests.demo" not in block]
    assert len(commands) >= 2
    with FakeDatabricks(users=12, shape="small") as server:
        result = shell(server, "set -e\n" + "\n".join(commands))
    assert result.code == 0, result
    assert len(Path("inventory.csv").read_text().splitlines()) == 1 + 12


@needs_posix
def test_the_first_screen_is_what_the_commands_print(shell):
    """But for the place, and the bar, which a terminal alone has."""
    [screen] = blocks("text", "$ ")
    words = [line[2:] for line in screen.splitlines() if line.startswith("$ ")]
    refused = Fault("403", api="workspace", path="/Users/ben.berg@example.com")
    with FakeDatabricks(users=50, shapes=demo.SHAPES, faults=[refused]) as server:
        result = shell(server, "\n".join(words))
    left_out = ("$ ", "Workspace ", "███", "...")
    shown = [line for line in screen.splitlines() if not line.startswith(left_out)]
    assert [line for line in shown if line not in f"{result.out}{result.err}".splitlines()] == []


@pytest.mark.usefixtures("processes")
def test_the_fake_workspace_starts_by_hand():
    [line] = [line for line in OF_THE_TESTS.splitlines() if "python -m tests.fake" in line]
    words = line.replace("8099", "0").split()[1:]  # any free port
    with subprocess.Popen([sys.executable, "-B", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.terminate()
    assert process.returncode == 0


@needs_posix
@pytest.mark.usefixtures("processes")
def test_the_tour(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(demo, "LIMITS", {})
    monkeypatch.setattr(demo, "INTERRUPT_AFTER", 1.2)
    monkeypatch.setenv("PATH", str(tmp_path))  # without Java
    assert demo.main() == 0
    shown = capfd.readouterr().out
    assert "There is no Java 17" in shown or "pyspark is not installed" in shown
    assert "All 50 rows equal what the fake workspace holds" in shown
    assert "--resume" in shown


# Monthly use


def write_rows(path, *rows):
    with (gzip.open if path.endswith(".gz") else open)(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def write_inventory(month, *rows):
    """Rows of username, GiB and status."""
    cells = [[name, 1, size * 2**30, f"{size}.0000", status, "dbfs", ""] for name, size, status in rows]
    write_rows(f"inventory-{month}.csv", CSV_COLUMNS, *cells)


@pytest.mark.usefixtures("processes")
def test_the_recipes():
    """Of two months; incomplete rows did not grow, and a file without a size or time is none of the largest or old."""
    pytest.importorskip("pandas")
    write_inventory("2026-10", ("ann", 1, "success"), ("bob", 2, "success"), ("cyd", 0, "partial"),
                    ("dan", 4, "success"), ("fay", 9, "success"))  # fmt: skip
    write_inventory("2026-11", ("ann", 4, "success"), ("bob", 0, "empty"), ("cyd", 50, "success"), ("dan", 60, "error"),
                    ("eve", 2, "success"), ("sp", 0, "success"))  # fmt: skip
    write_rows("users.csv", ["username"], *([name] for name in ("ann", "bob", "cyd", "dan", "eve")))
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    old = f"{int(now[:4]) - 2}{now[4:]}"
    results = [
        UserResult("old", now, FileSystemTotals(1, 7, 1, last_modified=old)),
        UserResult("new", now, FileSystemTotals(1, 7, 1, last_modified=now)),
        UserResult("without a time", now, FileSystemTotals(1, 7, 1)),
        UserResult("partial", now, FileSystemTotals(1, 7, 1, {}, [{"path": "/x", "error": "403"}], old)),
        UserResult("not of DBFS", now, workspace=FileSystemTotals(1, 7, 1, last_modified=old)),
    ]
    Path("details.jsonl").write_text("".join(f"{json.dumps(result.as_dict())}\n" for result in results))
    write_rows("files.csv.gz", FILE_COLUMNS, ["a", "dbfs", "/Users/a/9", "FILE", 9, "2026-01-02T03:04:05Z"],
               ["a", "workspace", "/Users/a/n", "NOTEBOOK", "", ""],
               ["b", "dbfs", "/Users/b/x,\n10", "FILE", 10, ""])  # fmt: skip
    text, chart = blocks("python")[0].split("# A chart")
    if find_spec("matplotlib"):
        text += f"# A chart{chart}"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["username"], ["ann", "3.0"], ["eve", "2.0"], ["sp", "0.0"], ["bob", "-2.0"],
        ["username", "file_count", "total_size_gb", "status"], ["sp", "1", "0.0", "success"],
        [old[:10], "7", "'old'"],
        ["10", r"'/Users/b/x,\n10'"], ["9", "2026-01-02", "'/Users/a/9'"],
    ]  # fmt: skip
    assert not find_spec("matplotlib") or Path("sizes.png").read_bytes().startswith(b"\x89PNG")


# From cron


@pytest.fixture
def inventory(tmp_path, processes):
    """The folder of README's script, in a home that has no tools but those that the script may use."""
    folder, tools = tmp_path / "home" / "inventory", tmp_path / "home" / "bin"
    tools.mkdir()
    for tool in ("sh", "date", "dirname", "cat"):  # macOS has no flock
        (tools / tool).symlink_to(shutil.which(tool))
    folder.mkdir()
    install(folder, folder / ".venv" / "bin" / "python")
    [text] = blocks("sh")
    (folder / "inventory.sh").write_text(text)
    (folder / "inventory.sh").chmod(0o755)
    return folder


def cron(folder):
    """Starts the crontab's command as cron does: /bin/sh -c, next to no environment, no terminal."""
    [line] = blocks("crontab")
    home = str(folder.parent)
    words = ["/usr/bin/env", "-i", f"HOME={home}", "LOGNAME=inventory", "SHELL=/bin/sh", f"PATH={home}/bin"]
    return subprocess.Popen([*words, "/bin/sh", "-c", line.split(None, 5)[5].strip()], cwd=home, text=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            start_new_session=True)  # fmt: skip


def mail_of(process):
    """Exit code, and what cron would mail."""
    mail, _ = process.communicate(timeout=60)
    return process.returncode, mail


def assert_inventory(folder, server):
    [name] = folder.glob("inventory-*.csv")
    with open(name, encoding="utf-8", newline="") as file:
        found = {row["username"]: (int(row["file_count"]), int(row["total_size"])) for row in csv.DictReader(file)}
    truths = map(server.truth, server.user_names)
    assert found == {truth.username: (truth.file_count, truth.total_size) for truth in truths}


def is_free(lock):
    import fcntl

    with open(lock, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@needs_posix
def test_cron_mails_what_failed_once_and_nothing_when_all_is_well(inventory):
    """A login that is refused, then a run that works, then a start that finds all done; at last no Python at all."""
    with FakeDatabricks(users=25, shape="small") as server:
        log_in(server)
        token = server.settings.token
        server.change(token="another")
        code, mail = mail_of(cron(inventory))
        assert (code, "does not accept the token" in mail, [*inventory.glob("*.csv")]) == (2, True, [])
        server.change(token=token)
        assert mail_of(cron(inventory)) == (0, "")
        assert_inventory(inventory, server)
        names = [re.sub(r"\d{4}-W\d\d", "WEEK", path.name) for path in inventory.iterdir() if not path.is_symlink()]
        assert sorted(names) == [".venv", "inventory-WEEK.csv", "inventory-WEEK.log", "inventory.lock", "inventory.sh",
                                 "users-WEEK.csv"]  # fmt: skip
        requests = server.total_requests
        assert mail_of(cron(inventory)) == (0, "")
        assert server.total_requests == requests
    next(inventory.glob("inventory-*.csv")).unlink()
    (inventory / ".venv" / "bin" / "python").unlink()
    assert mail_of(cron(inventory))[0] == 127


@needs_posix
def test_cron_mails_the_log_of_a_run_with_users_missing_and_one_that_could_not_be_listed(inventory):
    with FakeDatabricks(users=3, shape="small", total_results_offset=2) as server:
        log_in(server)
        server.change(faults=[Fault("403", path=f"/Users/{server.user_names[1]}")])
        code, mail = mail_of(cron(inventory))
    assert code == 1
    assert "2 users missing" in mail
    assert f"  error: {server.user_names[1]}: dbfs:" in mail or f"  partial: {server.user_names[1]}: dbfs:" in mail
    assert "3 users: " in mail
    assert "Traceback" not in mail


@needs_posix
def test_a_machine_that_goes_down_loses_nothing_and_two_starts_are_one(inventory):
    with FakeDatabricks(users=40, shape="small", latency=0.02) as server:
        log_in(server)
        gate = hang_when(
            server, lambda: any(len(saved_users(path)) > 5 for path in inventory.glob(".checkpoint*.json"))
        )
        first = cron(inventory)
        until(lambda: gate.hits, 60)
        assert mail_of(cron(inventory)) == (0, "")  # the other is under way
        os.killpg(first.pid, signal.SIGKILL)
        mail_of(first)
        until(lambda: is_free(inventory / "inventory.lock"))  # what was killed may take a moment to be gone
        [saved] = inventory.glob(".checkpoint*.json")
        done = saved_users(saved)
        server.counts_reset()
        server.change(faults=[])
        assert mail_of(cron(inventory)) == (0, "")
        assert_inventory(inventory, server)
        assert [asked_for(server, name) for name in done] == [0] * len(done)
