"""The documents say what the program says."""
import ast
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


# Every message can be found in the README: the longest of its pieces between values, colons, semicolons and full stops

SPEAKERS = {"InventoryError", "SparkUnavailable", "MalformedAnswer", "ArgumentTypeError", "TimeoutError", "warning",
            "error", "give_up", "DatabricksError", "IsADirectoryError"}  # fmt: skip
SPOKEN_NAMES = {"message", "NOT_READABLE"}
VALUE = "\0"


def constant_text(node):
    """The text of a message as far as it stands in the code, VALUE for the rest."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[-.\d]*[sdrf]", VALUE, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(constant_text, node.values))
    return VALUE


def spoken(node):
    """The expressions of a node that become messages."""
    if isinstance(node, ast.Call):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        return node.args if name in SPEAKERS else []
    if isinstance(node, ast.Assign) and any(getattr(target, "id", "") in SPOKEN_NAMES for target in node.targets):
        return [node.value, getattr(node.value, "orelse", node.value)]
    if isinstance(node, ast.FunctionDef) and node.name == "check_username":
        return [part for part in ast.walk(node) if isinstance(part, ast.JoinedStr)]
    return []


def messages_of(script):
    """The piece of each message that the README has to have, and the whole message."""
    for node in ast.walk(ast.parse((ROOT / script).read_text(encoding="utf-8"))):
        for text in map(constant_text, spoken(node)):
            piece = max((one_text(piece) for piece in re.split(rf"[{VALUE};]|: |\. ", text)), key=len)
            if " " in piece and len(piece) > 8:
                yield piece, text.replace(VALUE, "...")


def one_text(text):
    return " ".join(text.replace("`", "").split()).strip(" .,:()'")


@pytest.mark.parametrize("script", ["databricks_user_list.py", "databricks_user_files_simple.py"])
def test_every_message_can_be_found_in_the_readme(script):
    messages = list(messages_of(script))
    assert len(messages) > 8
    readme = one_text(README)
    missing = [f"{piece!r} of {message!r}" for piece, message in messages if piece not in readme]
    assert not missing, "README, \"When something is wrong\", lacks:\n" + "\n".join(missing)
