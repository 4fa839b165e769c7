"""What is said while it runs, the page of --report, and --compare: each number against what the CSV says."""

import os
import re
import struct
import subprocess
import sys

import pytest

from tests.fake import FakeDatabricks
from tests.helpers import ROOT, SCANNER, needs_posix, set_constants

# Progress


LINE = (
    r"^\d\d:\d\d:\d\d  ([\d,]+) of 12 users, ([\d,]+) directories, ([\d,]+) waiting, ([\d,]+) files, "
    r"[\d,]+ requests/s(?:, longest \(([\d,]+) to come\): (\S+))?$"
)


def test_without_a_terminal_lines_tell_how_far_it_is(scan, monkeypatch, small):
    set_constants(monkeypatch, PROGRESS_SECONDS=0.0)
    said = scan(small, *small.user_names, "-o", "out.csv").err
    numbers = [[int(number.replace(",", "") or 0) for number in line[:5]]
               for line in re.findall(LINE, said, re.M)]  # fmt: skip
    users, directories, waiting, files, longest = map(list, zip(*numbers, strict=True))
    assert (users, directories, files) == (sorted(users), sorted(directories), sorted(files))
    truths = [small.truth(name) for name in small.user_names]
    listed = sum(truth.dbfs.directories + truth.workspace.directories for truth in truths)
    assert users[-1] in (11, 12)
    assert numbers[-1][1:] == [listed, 0, sum(truth.file_count for truth in truths), 0]
    assert all(there >= of_one for there, of_one in zip(waiting, longest, strict=True))
    assert 0 < max(longest) < max(waiting)
    # The user who is named longest is the first one until that one is done.
    assert re.findall(LINE, said, re.M)[0][5] == small.user_names[0]
    assert "longest: " not in scan(small, *small.user_names, "-q", "-o", "out.csv").err


def test_before_the_first_user_a_line_says_how_many_requests_there_are_at_least(scan, small):
    lines = scan(small, *small.user_names, "-o", "out.csv").err.splitlines()
    truths = [small.truth(name) for name in small.user_names]
    dbfs, workspace = (
        sum(bool(getattr(truth, name).directories) for truth in truths) for name in ("dbfs", "workspace"))  # fmt: skip
    asked = len(truths) - workspace  # a home that the Workspace's listing does not have is asked for
    counts = f"{dbfs} in DBFS, {workspace} in Workspace, {asked} to look for"
    line = f"homes to list: {counts}; at least {dbfs + len(truths)} requests"
    assert lines.index(line) < lines.index(next(line for line in lines if line.startswith("12 users: ")))


def on_a_terminal(server, login, columns=120, **variables):
    """Exit code of a scan of all users on a terminal of that width, and what it showed there."""
    import fcntl
    import pty
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-B", ROOT / SCANNER, *server.user_names, "--threads", "2", "-o", "out.csv"],
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


@needs_posix
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_bar_shows_whole_numbers_and_no_forecast(login, columns):
    with FakeDatabricks(users=12, shape="small", latency=0.02) as server:
        code, text = on_a_terminal(server, login, columns)
        truths = [server.truth(name) for name in server.user_names]
    states = [line for line in re.split("[\r\n]", text) if " users [" in line]
    assert (code, max(map(len, states)) <= columns) == (0, True)
    assert "12/12 users [00:0" in states[-1]
    assert not re.search(r"<\d|\?", text)
    if columns > 40:
        directories = sum(truth.dbfs.directories + truth.workspace.directories for truth in truths)
        assert f", {directories:,} directories, 0 waiting" in states[-1]
        assert any(re.search(r" waiting, .*longest \(\d+ to come\): \S+", line) for line in states)
    assert not re.search(r"\d$", states[len(states) // 2].rstrip())  # a number that the terminal's edge has cut


BROKEN_BARS = {  # variables, and the text of a package tqdm
    "a variable that tqdm stumbles over later": ({"TQDM_ASCII": "1"}, None),
    "cannot be imported": ({}, "raise RuntimeError('broken')"),
    "cannot draw": ({}, "class tqdm:\n    def __init__(self, **_): self.disable = False"),
    "cannot write": ({}, "class tqdm:\n    def __init__(self, **_): self.disable = False\n"
                         "    update = set_postfix_str = close = lambda self, *_: None"),
}  # fmt: skip


@needs_posix
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
