"""The documents say what the program says, and what they show runs. NOTEBOOK_USAGE.md: see test_notebook.py."""

import ast
import csv
import gzip
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from databricks_user_files_simple import CSV_COLUMNS, FILE_COLUMNS, FileSystemTotals, UserResult
from tests import demo
from tests.fake import FakeDatabricks, Fault
from tests.helpers import ROOT, SCANNER, USER_LIST, Result

POSIX = pytest.mark.skipif(os.name == "nt", reason="needs POSIX")
README = (ROOT / "README.md").read_text(encoding="utf-8")
OF_THE_TESTS = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
TOP_LEVEL = {".ci", ".gitignore", "NOTEBOOK_USAGE.md", "README.md", "WORKSPACE_VS_DBFS.md",
             "databricks_user_files_simple.py", "databricks_user_list.py", "requirements.txt", "tests"}  # fmt: skip


def blocks(*languages, text=README):
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", text, re.S | re.M)


def one_form(text):
    """Without what argparse prints differently from version to version: line breaks, and '-o FILE, --output FILE'."""
    return re.sub(r"(-\w) [A-Z]+, (--[\w-]+)", r"\1, \2", " ".join(text.split()))


@pytest.mark.parametrize("script", [USER_LIST, SCANNER])
def test_the_option_block_is_what_help_prints(command, script):
    usage, _, options = command(script, "--help", env={"COLUMNS": "100"}).out.split("\n\n", 2)
    assert usage.startswith(f"usage: {script}")
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


@pytest.fixture
def shell(tmp_path):
    """shell(server, text): exit code and output of a shell in a folder with both scripts, logged in by a profile."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -B "$@"\n')
    python.chmod(0o755)
    for script in (SCANNER, USER_LIST):
        (tmp_path / script).symlink_to(ROOT / script)

    def run(server, text):
        [profile] = [block for block in blocks("ini") if "host" in block]
        values = {
            "[work]": "[DEFAULT]",
            "https://adb-1.2.azuredatabricks.net": server.url,
            "dapi...": server.settings.token,
        }
        for example, value in values.items():
            assert example in profile
            profile = profile.replace(example, value)
        path = tmp_path / "home" / ".databrickscfg"
        path.write_text(profile)
        path.chmod(0o600)
        done = subprocess.run(["/bin/sh", "-c", text], capture_output=True, text=True, check=False, timeout=60,
                              env={**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"},
                              stdin=subprocess.DEVNULL)  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@POSIX
def test_every_command_runs_as_it_stands(shell, tmp_path):
    """But for the tour, which installs packages first, and what test_cron.py runs."""
    commands = [block for block in blocks("bash") if not block.startswith("python3 -m venv")]
    with FakeDatabricks(users=12, shape="small") as server:
        for text in commands:
            result = shell(server, f"set -e\n{text}")
            assert result.code == 0, f"{text}{result}"
    assert len(commands) >= 2
    assert len((tmp_path / "inventory.csv").read_text().splitlines()) == 1 + 12


@POSIX
def test_the_first_screen_is_what_the_commands_print(shell):
    """But for the place, and the bar, which a terminal alone has."""
    [screen] = [block for block in blocks("text") if block.startswith("$ ")]
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


@POSIX
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


@pytest.fixture
def recipe(processes):
    """recipe(title): the words of each line that the part of the block below this comment prints."""
    pytest.importorskip("pandas")
    [block] = blocks("python")
    imports, *parts = block.split("\n\n# ")
    assert len(parts) == 5, "a recipe has no test"

    def run(title):
        [part] = [part for part in parts if part.startswith(title)]
        words = [sys.executable, "-c", f"{imports}\n# {part}"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done
        return [line.split() for line in done.stdout.splitlines()]

    return run


def write_inventory(month, *rows):
    """Rows of username, GiB and status."""
    cells = [[name, 1, size * 2**30, f"{size}.0000", status, "dbfs", ""] for name, size, status in rows]
    write_rows(open(f"inventory-{month}.csv", "w", encoding="utf-8", newline=""), CSV_COLUMNS, *cells)


def write_rows(file, *rows):
    with file:
        csv.writer(file, lineterminator="\n").writerows(rows)


@pytest.fixture
def inventories():
    """Two months of ann, bob, cyd and dan, two of whom are partial once; eve is new, fay gone, and sp nobody's home."""
    write_inventory("2026-10", ("ann", 1, "success"), ("bob", 2, "success"), ("cyd", 0, "partial"),
                    ("dan", 4, "success"), ("fay", 9, "success"))  # fmt: skip
    write_inventory("2026-11", ("ann", 4, "success"), ("bob", 0, "empty"), ("cyd", 50, "success"), ("dan", 60, "error"),
                    ("eve", 2, "success"), ("sp", 0, "success"))  # fmt: skip
    write_rows(open("users.csv", "w", encoding="utf-8"), ["username", "active"],
               *([name, "true"] for name in ("ann", "bob", "cyd", "dan", "eve")))  # fmt: skip


@pytest.mark.usefixtures("inventories")
def test_who_grew_leaves_incomplete_rows_out(recipe):
    assert recipe("Who grew")[1:] == [["ann", "3.0"], ["eve", "2.0"], ["sp", "0.0"], ["bob", "-2.0"]]


@pytest.mark.usefixtures("inventories")
def test_homes_that_nobody_listed_owns(recipe):
    assert recipe("Homes that nobody")[1:] == [["sp", "1", "0.0", "success"]]


@pytest.mark.usefixtures("inventories")
def test_the_chart(recipe):
    pytest.importorskip("matplotlib")
    assert recipe("A chart") == []
    assert Path("sizes.png").read_bytes().startswith(b"\x89PNG")


def test_homes_untouched_for_a_year_are_complete_and_have_a_time(recipe):
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    old = f"{int(now[:4]) - 2}{now[4:]}"
    refused = [{"path": "/Users/partial/x", "error": "403"}]
    results = [
        UserResult("old", now, FileSystemTotals(1, 7, 1, last_modified=old)),
        UserResult("new", now, FileSystemTotals(1, 7, 1, last_modified=now)),
        UserResult("without a time", now, FileSystemTotals(1, 7, 1)),
        UserResult("partial", now, FileSystemTotals(1, 7, 1, last_modified=old, failures=refused)),
        UserResult("not of DBFS", now, workspace=FileSystemTotals(1, 7, 1, last_modified=old)),
    ]
    Path("details.jsonl").write_text("".join(f"{json.dumps(result.as_dict())}\n" for result in results))
    assert recipe("Homes in DBFS") == [[old[:10], "7", "'old'"]]


def test_the_largest_files(recipe):
    write_rows(gzip.open("files.csv.gz", "wt", encoding="utf-8", newline=""),
               FILE_COLUMNS,
               ["a", "dbfs", "/Users/a/9", "FILE", 9, "2026-01-02T03:04:05Z"],
               ["a", "workspace", "/Users/a/n", "NOTEBOOK", "", ""],
               ["b", "dbfs", "/Users/b/x,\n10", "FILE", 10, ""])  # fmt: skip
    assert recipe("The largest") == [["10", r"'/Users/b/x,\n10'"], ["9", "2026-01-02", "'/Users/a/9'"]]
