"""The documents say what the program says, and what they show runs. NOTEBOOK_USAGE.md: see test_notebook.py."""

import ast
import csv
import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

import databricks_user_files_simple as scanner
import databricks_user_list
from databricks_user_files_simple import CSV_COLUMNS, FILE_COLUMNS
from tests import demo
from tests.fake import FakeDatabricks, Fault
from tests.helpers import ROOT, SCANNER, USER_LIST, Result, needs_posix, rows_of

README = (ROOT / "README.md").read_text(encoding="utf-8")
OF_THE_TESTS = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
TOP_LEVEL = {".ci", ".gitignore", "NOTEBOOK_USAGE.md", "README.md", "WORKSPACE_VS_DBFS.md",
             "databricks_user_files_simple.py", "databricks_user_list.py", "requirements.txt", "tests"}  # fmt: skip
RUN = {"bash", "console", "crontab", "ini", "python", "sh", "text"}  # by the tests below
NOT_HERE = {"bat"}  # of Windows


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
    assert len(messages) >= 9
    pieces = [piece for message in messages for piece in message.split("...") if piece.strip()]
    assert [piece for piece in pieces if piece.strip(" :;") not in said] == []


def test_every_block_is_of_a_kind_that_is_tried():
    assert set(re.findall(r"^```(\w*)\n.*?^```", README, re.S | re.M)) <= RUN | NOT_HERE
    assert "```" not in (ROOT / "WORKSPACE_VS_DBFS.md").read_text(encoding="utf-8")


def test_every_promise_is_held_by_tests_and_every_test_holds_one():
    """But for those of the documents and of the fake workspace."""
    table = OF_THE_TESTS.split("| promise | held by |")[1].split("\n## ")[0]
    named = {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.rpartition(" | ")[2])}
    files = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")}
    tests = {name: set(re.findall(r"^def test_(\w+)", text, re.M)) for name, text in files.items()}
    own = tests["test_documents.py"] | tests["test_fake.py"]
    assert named - set().union(*tests.values()) == set()
    assert set().union(*tests.values()) - named - own == set()


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """shell(server, text): what a shell says, in a folder with both commands, with the README's profile as default."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for folder in (tmp_path / "bin", tmp_path / ".venv" / "bin"):
        folder.mkdir(parents=True)
        (folder / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" -B "$@"\n')
        (folder / "python").chmod(0o755)
    for script in (SCANNER, USER_LIST):
        (tmp_path / script).symlink_to(ROOT / script)

    def run(server, text):
        [profile] = blocks("ini")
        profile = re.sub(r"^\[\w+\]", "[DEFAULT]", profile)
        profile = re.sub(r"(?m)^(host *= *).*", rf"\g<1>{server.url}", profile)
        profile = re.sub(r"(?m)^(token *= *).*", rf"\g<1>{server.settings.token}", profile)
        Path(os.environ["DATABRICKS_CONFIG_FILE"]).write_text(profile)
        done = subprocess.run(["/bin/sh", "-c", text], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@needs_posix
def test_the_first_screen_and_every_command_and_recipe(shell):
    """The screen but for the place; commands but for those that install. Names such as None are names."""
    [screen] = blocks("text", "$ ")
    typed = [line[2:] for line in screen.splitlines() if line.startswith("$ ")]
    commands = [block for block in blocks("bash") if "pip install" not in block]
    assert len(commands) >= 1
    refused = Fault("403", api="workspace", path="/Users/ben.berg@example.com")
    with FakeDatabricks(users=50, shapes=demo.SHAPES, faults=[refused]) as server:
        first = shell(server, "\n".join(typed))
        server.change(faults=[])
        result = shell(server, "\n".join(["set -e", *commands]))
    shown = [line for line in screen.splitlines() if not line.startswith(("$ ", "..."))]
    assert [line for line in shown if line not in f"{first.out}{first.err}".splitlines()] == []
    assert result.code == 0, result
    assert len(Path("inventory.csv").read_text().splitlines()) == 1 + 50
    with open("inventory.csv", "a") as rows, open("users.csv", "a") as users, gzip.open("files.csv.gz", "at") as files:
        for name in ("None", "NA", "null"):
            rows.write(f"{name},1,{2**50},1048576.0000,success,dbfs,\n")
            users.write(f"{name},,{'' if name == 'NA' else 'false'},{name}\n")
            files.write(f"{name},dbfs,/Users/{name}/x,FILE,,,{2**50},\n")
    for question in blocks("python") if find_spec("pandas") else ():
        done = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert [name for name in ("None", "NA", "null") if f"/Users/{name}" not in done.stdout] == []
        active = {row["username"]: row["active"] for row in rows_of("users.csv")}
        for flags, whose in ((("true", ""), "user"), (("false",), "deactivated")):
            rows = [row for row in rows_of("inventory.csv") if active[row["username"]] in flags]
            sums = [str(sum(int(row[column]) for row in rows)) for column in ("file_count", "total_size")]
            assert re.search(rf"(?m)^{whose} +{' +'.join(sums)} *$", done.stdout)
        folders = Counter()
        with gzip.open("files.csv.gz", "rt", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                folders["/".join(row["path"].split("/")[:-1][:5])] += int(row["size"] or 0) / 2**30
        for folder, size in folders.most_common(20):
            assert re.search(rf"{re.escape(folder)} +\d+ +{size:,.2f}\b", done.stdout)
    [answered] = blocks("console")
    for line in answered.replace("\\\n", "").splitlines():
        if line.startswith("duckdb") and find_spec("duckdb"):
            found = __import__("duckdb").sql(re.search('"(.*)"', line)[1]).fetchall()
            assert {path for _, path, _ in found[:3]} == {f"/Users/{name}/x" for name in ("None", "NA", "null")}
        elif "sqlite3" in line and shutil.which("sqlite3"):
            assert shell(server, line).out.count(f"|{2**50}\n") == 3


@needs_posix
def test_the_script_of_cron(shell, tmp_path):
    """The crontab's command, as cron starts it: a user that fails goes once more, the next month is compared."""
    [text] = blocks("sh")
    [line] = blocks("crontab")
    folder = tmp_path / "home" / "inventory"
    with FakeDatabricks(users=5, shape="small") as server:
        shell(server, "cp -RP .venv *.py home && mkdir home/inventory && mv home/.venv home/*.py home/inventory")
        (tmp_path / "bin" / "sleep").write_text("#!/bin/sh\n")
        (tmp_path / "bin" / "sleep").chmod(0o755)
        (folder / "inventory.sh").write_text(text)
        (folder / "inventory.sh").chmod(0o755)
        path = f"PATH={tmp_path / 'bin'}:/usr/bin:/bin"
        words = ["/usr/bin/env", "-i", f"HOME={folder.parent}", path, "/bin/sh", "-c"]
        server.change(faults=[Fault("403", path=f"/Users/{server.user_names[1]}", times=1)])
        for said in ("1 partial", "Compared with "):
            done = subprocess.run([*words, line.split(None, 5)[5].strip()], cwd=folder.parent, capture_output=True,
                                  stdin=subprocess.DEVNULL, check=False, text=True)  # fmt: skip
            assert (done.returncode, "Traceback" in done.stdout, done.stderr) == (0, False, "")
            assert said in done.stdout
            [inventory] = folder.glob("inventory-2*.csv")
            inventory = inventory.rename(folder / "inventory-1999-12.csv")
        found = {row["username"]: int(row["file_count"]) for row in rows_of(inventory)}
        assert found == {name: server.truth(name).file_count for name in server.user_names}


@needs_posix
@pytest.mark.usefixtures("processes")
def test_the_tour_and_the_fake_workspace_by_hand(monkeypatch, capfd):
    monkeypatch.setattr(demo, "LIMITS", {})
    monkeypatch.setattr(demo, "INTERRUPT_AFTER", 1.2)
    assert demo.main() == 0
    shown = capfd.readouterr().out
    assert "All 50 rows equal what the fake workspace holds" in shown
    assert "--resume" in shown
    [line] = [line for line in OF_THE_TESTS.splitlines() if "python -m tests.fake" in line]
    words = line.replace("8099", "0").split()[1:]  # any free port
    with subprocess.Popen([sys.executable, "-B", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0
