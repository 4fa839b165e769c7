"""The documents say what the program says."""
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
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
