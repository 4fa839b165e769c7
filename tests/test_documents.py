"""The documents say what the program says."""

import os
import re
import subprocess
import sys

import pytest

from tests import demo
from tests.fake_databricks import FakeDatabricks, Fault
from tests.helpers import ROOT, SCANNER, USER_LIST, Result

POSIX = pytest.mark.skipif(os.name == "nt", reason="needs POSIX")
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOP_LEVEL = {".ci", ".gitignore", "NOTEBOOK_USAGE.md", "README.md", "WORKSPACE_VS_DBFS.md",
             "databricks_user_files_simple.py", "databricks_user_list.py", "requirements.txt", "tests"}  # fmt: skip


def one_form(text):
    """Without what argparse prints differently from version to version: line breaks, and '-o FILE, --output FILE'."""
    return re.sub(r"(-\w) [A-Z]+, (--[\w-]+)", r"\1, \2", " ".join(text.split()))


@pytest.mark.parametrize("script", ["databricks_user_list.py", "databricks_user_files_simple.py"])
def test_the_option_block_is_what_help_prints(command, script):
    blocks = re.findall(r"```text\n(usage: .*?)```", README, re.S)
    shown = command(script, "--help", env={"COLUMNS": "100"}).out
    assert one_form(shown) in [one_form(block) for block in blocks]


def test_the_top_level_is_that_of_the_readme():
    words = ["git", "ls-tree", "--name-only", "HEAD"]
    names = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if names.returncode:
        pytest.skip("not a git checkout")
    assert set(names.stdout.split()) <= TOP_LEVEL


def test_every_file_that_the_documents_name_is_there():
    for document in ROOT.glob("*.md"):
        for name in re.findall(r"\b(?:tests/)?\w+\.(?:py|md)\b", document.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{document.name} names {name}"


# Every shell block is run, line by line where only some of its lines can be

NOT_RUN = {  # beginning of a line: why no test runs it
    "python3 -m venv": "takes packages from the network; the tour in it has a test of its own",
    ".venv/bin/pip install": "takes packages from the network; and runs the tests",
    "databricks ": "the Databricks CLI is not part of this project",
    "systemctl ": "needs systemd, and the rights of its administrator; tests/test_cron.py checks the units",
    "python databricks_user_files_simple.py --users-file users.csv -o inventory.csv --spark-remote": (
        "needs a Spark Connect server; tests/test_parallel.py runs the option"
    ),
    "#!/bin/sh": "tests/test_cron.py runs the whole block",
    "7 * * * 6,0": "tests/test_cron.py runs the line",
    "python -m tests.fake_databricks": "serves until it is stopped; its test is below",
}


def shell_blocks():
    """Document and text of every block that is for a shell or for cron."""
    return [(document.name, block) for document in sorted(ROOT.glob("*.md")) for block in
            re.findall(r"^```(?:bash|sh|shell|console|crontab)\n(.*?)^```", document.read_text(encoding="utf-8"),
                       re.S | re.M)]  # fmt: skip


def is_not_run(line):
    return any(line.startswith(start) for start in NOT_RUN)


def runnable(block):
    """The block without the lines that are not run."""
    if block.startswith("#!") and is_not_run(block):
        return ""
    return "".join(line for line in block.splitlines(keepends=True) if not is_not_run(line))


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
        profile = tmp_path / "home" / ".databrickscfg"
        profile.write_text(f"[DEFAULT]\nhost = {server.url}\ntoken = {server.settings.token}\n")
        profile.chmod(0o600)
        path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(["/bin/sh", "-c", text], capture_output=True, text=True, check=False, timeout=60,
                              env={**os.environ, "PATH": path}, stdin=subprocess.DEVNULL)  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@POSIX
def test_every_shell_block_runs_as_it_stands(shell, tmp_path):
    ran = 0
    with FakeDatabricks(users=12, shape="small") as server:
        for document, block in shell_blocks():
            text = runnable(block)
            if text.strip() and "details.jsonl" not in text:
                result = shell(server, f"set -e\n{text}")
                assert result.code == 0, f"{document}: {text}{result}"
                ran += 1
    assert ran >= 3
    assert len((tmp_path / "inventory.csv").read_text().splitlines()) == 1 + 12
    assert "no directory was listed by the cluster: the run ended before" in result.err  # of the last one


@POSIX
def test_the_block_that_shows_what_could_not_be_listed(shell, tmp_path):
    [block] = [block for _, block in shell_blocks() if "details.jsonl" in block]
    with FakeDatabricks(users=["a", "b"], shape="empty", faults=[Fault("403", api="dbfs", path="/Users/b")]) as server:
        (tmp_path / "users.csv").write_text("username\na\nb\n")
        result = shell(server, block)
    assert result.out == "dbfs\t/Users/b\t403 PERMISSION_DENIED: The caller may not list this path.\n", result


def test_no_reason_is_given_for_a_line_that_is_not_there():
    lines = [line for _, block in shell_blocks() for line in block.splitlines()]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []


@pytest.mark.usefixtures("processes")
def test_the_fake_workspace_starts_as_the_readme_says():
    [line] = [line for _, block in shell_blocks() for line in block.splitlines() if "tests.fake_databricks" in line]
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
