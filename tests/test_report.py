"""What is said while it runs, the page of --report, and --compare: each number against what the CSV says."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from html import escape, unescape
from pathlib import Path

import pytest

from tests.fake import FakeDatabricks, Fault, dbfs_directory, dbfs_file, workspace_object
from tests.helpers import FILE_SYSTEMS, ROOT, SCANNER, needs_posix, rows_of, run_and_kill, saved_users, set_constants

LINE = (
    r"^\d\d:\d\d:\d\d  ([\d,]+) of 12 users, ([\d,]+) directories, ([\d,]+) waiting, ([\d,]+) files, "
    r"[\d,]+ requests/s(?:, longest \(([\d,]+) to come\): (\S+))?$"
)


def test_without_a_terminal_lines_tell_how_far_it_is_and_what_is_to_come(scan, monkeypatch, small):
    set_constants(monkeypatch, PROGRESS_SECONDS=0.0)
    said = scan(small, *small.user_names, "-o", "out.csv").err
    truths = [small.truth(name) for name in small.user_names]
    dbfs, workspace = (sum(bool(getattr(truth, name).directories) for truth in truths) for name in FILE_SYSTEMS)
    asked = len(truths) - workspace  # a home that the Workspace's listing does not have is asked for
    homes = f"{dbfs} in DBFS, {workspace} in Workspace, {asked} to look for"
    assert f"homes to list: {homes}; at least {dbfs + len(truths)} requests\n" in said[: said.index(" of 12 users, ")]
    lines = re.findall(LINE, said, re.M)
    numbers = [[int(number.replace(",", "") or 0) for number in line[:5]] for line in lines]
    users, directories, waiting, files, longest = map(list, zip(*numbers, strict=True))
    assert (users, directories, files) == (sorted(users), sorted(directories), sorted(files))
    listed = sum(truth.dbfs.directories + truth.workspace.directories for truth in truths)
    assert users[-1] in (11, 12)
    assert numbers[-1][1:] == [listed, 0, sum(truth.file_count for truth in truths), 0]
    assert all(there >= of_one for there, of_one in zip(waiting, longest, strict=True))
    assert 0 < max(longest) < max(waiting)
    assert lines[0][5] == small.user_names[0]  # named until that one is done
    assert " users, " not in scan(small, *small.user_names, "-q", "-o", "out.csv").err
    set_constants(monkeypatch, PROGRESS_SECONDS=0.1)
    said = scan(small, small.user_names[0], "--rate", "10", "-o", "out.csv").err  # of each file system
    assert 3 <= max(map(int, re.findall(r" (\d+) requests/s", said))) <= 60, said


def test_a_user_in_progress_has_no_homes_that_are_still_to_be_listed(scan, server, login):
    run_and_kill(server, login, lambda: len(saved_users()) >= 2)
    begun = re.findall('"username": "(.*?)"', "".join(path.read_text() for path in Path().glob(".journal-*")))
    left = {name: server.truth(name) for name in server.user_names if name not in {*begun, *saved_users()}}
    requests = sum(1 + bool(truth.dbfs.directories) for truth in left.values())
    said = scan(server, "--users-file", "users.txt", "-o", "out.csv", "--resume").err
    assert f"; at least {requests} requests\n" in said
    assert 0 < len(left) < 8


def on_a_terminal(server, login, columns=120, **variables):
    """Exit code of a scan of all users on a terminal of that width, and what it showed there."""
    import fcntl
    import pty
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    words = [sys.executable, "-B", ROOT / SCANNER, *server.user_names, "--threads", "2", "-o", "out.csv"]
    environment = {**os.environ, **login(server), **variables}
    with subprocess.Popen(words, env=environment, stderr=follower, stdout=subprocess.DEVNULL) as process:
        os.close(follower)
        shown = b""
        with open(leader, "rb", buffering=0) as screen, suppress(OSError):  # Linux: the other end is closed
            while part := screen.read(65536):
                shown += part
    return process.returncode, shown.decode()


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


TQDM = "class tqdm:\n    def __init__(self, **_): self.disable = False\n"
BROKEN_BARS = {  # variables, and the text of a module tqdm
    "a variable that tqdm stumbles over later": ({"TQDM_ASCII": "1"}, None),
    "cannot be imported": ({}, "raise RuntimeError('broken')"), "cannot draw": ({}, TQDM),
    "cannot write": ({}, f"{TQDM}    update = set_postfix_str = close = lambda self, *_: None"),
}  # fmt: skip


@needs_posix
@pytest.mark.parametrize("kind", BROKEN_BARS)
def test_a_bar_that_does_not_work_changes_nothing_but_itself(login, tmp_path, kind):
    variables, text = BROKEN_BARS[kind]
    if text:
        Path("tqdm.py").write_text(text)
    with FakeDatabricks(users=4, shape="empty", groups=["users"]) as server:
        code, text = on_a_terminal(server, login, PYTHONPATH=str(tmp_path), **variables)
    said = ("Workspace http", "warning: this login is not", "4 users: 4 empty", " requests, ")
    assert (code, [text.count(piece) for piece in said]) == (0, [1] * len(said)), text
    assert not re.search("Traceback|Exception", text), text


ODD_NAMES = ["o'brien&amp@x", "=1+1@x", "long" * 75, "דוד@x", "😀@x"]
NAMES = [*(f"user{number}@example.com" for number in range(22)), *ODD_NAMES]
NOBODYS = ["<script>alert(1)<b>", "3f2b8c1e-0000-4000-8000-123456789abc"]
NOW = time.time()
OLD, YOUNG = int(NOW - 367 * 86400) * 1000, int(NOW - 363 * 86400) * 1000
REFUSED = f"/Users/{NAMES[3]}/<no>"
WORDS = ("--users-file", "users.csv", "-o", "out.csv", "--files", "files.csv", "--report", "page.html")


@pytest.fixture
def people():
    """Users of all kinds, every fifth of them deactivated, and two homes of nobody; no two have the same size."""
    with FakeDatabricks(users=NAMES, shape="none", faults=[Fault("403", path=REFUSED)]) as server:
        for number, name in enumerate([*NAMES, *NOBODYS]):
            home, size = f"/Users/{name}", 100 * (number + 1) ** 3
            times = [OLD, OLD if number % 4 else YOUNG] if number % 6 else []
            files = [dbfs_file(f"{home}/{odd}", size + odd, time) for odd, time in enumerate(times)]
            directories = [dbfs_directory(REFUSED)] if number == 3 else []
            if number % 12:
                server.add_tree("dbfs", {home: [*files, *directories], REFUSED: []})
            languages = ["PYTHON", "SQL", "SCALA"][: number % 5]
            objects = [workspace_object(f"{home}/{language}", language=language) for language in languages]
            sized = workspace_object(f"{home}/sized", "FILE", size=number)
            server.add_tree("workspace", {home: [*objects, sized, workspace_object(f"{home}/odd", "DASHBOARD")]})
        rows = "".join(f"{name},{number % 5 != 1}\n" for number, name in enumerate(NAMES))
        rows += f"{NAMES[6]},True\n"  # who was deactivated and is there again
        Path("users.csv").write_text("username,active\n" + rows, encoding="utf-8")
        yield server


def read_page():
    """Heading -> the caption of the table below it, and the cells of each row behind its titles; and the whole text."""
    text = Path("page.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|img|link|iframe|object)|\b(src|href|id|on\w+)=|url\(|@import", text)
    sections = {}
    for title, section in re.findall("<h2>(.*?)</h2>(.*?)(?=<h2>|$)", text, re.S):
        cells = [re.findall("<t[dh].*?>(.*?)</t[dh]>", row) for row in re.findall("<tr>(.*?)</tr>", section)[1:]]
        rows = [tuple(unescape(re.sub("<.*?>", "", cell)) for cell in row) for row in cells]
        sections[unescape(title)] = re.search("<caption>(.*?)</caption>", section)[1], rows
    return sections, unescape(text)


def human(size):
    for unit, below in (("B", 1024), ("KiB", 1024**2), ("MiB", 1024**3), ("GiB", 1024**4)):
        if size < below:
            return f"{size:,} B" if unit == "B" else f"{size / below * 1024:,.1f} {unit}"
    return f"{size / 1024**4:,.1f} TiB"


def username(row):
    """The name itself, without what keeps a spreadsheet from running it."""
    return row["username"].removeprefix("'")


def shares(files, key=username, count=None):
    """The caption and the cells of a table of these rows of --files by that key; `count` is that of the users."""
    sums = {key(row): (0, 0, 0) for row in files}
    for row in files:
        number, total, estimated = sums[key(row)]
        size = int(row["size"] or 10_000)
        sums[key(row)] = (number + 1, total + size, estimated + (0 if row["size"] else size))
    count = count or len(sums)
    total = human(sum(size for _, size, _ in sums.values()))
    rows = [(name, f"{files:,}", human(size), human(estimated) if estimated else "-")
            for name, (files, size, estimated) in sorted(sums.items(), key=lambda item: -item[1][1])[:20]]  # fmt: skip
    return f"{count:,} row{'s' * (count > 1)}, {len(files):,} files, {total}; the largest {len(rows)}:", rows


@pytest.mark.parametrize("words", [(), ("--resume",), ("--all-homes",), ("--dbfs-only",), ("--workspace-only",)])
def test_every_number_of_the_page_is_that_of_the_rows(scan, people, words):
    if "--resume" in words:
        people.change(faults=[Fault("403", path=f"/Users/{NAMES[7]}"), *people.settings.faults])
        assert scan(people, *WORDS).code == 1
        people.change(faults=people.settings.faults[1:])
    failed = "--workspace-only" not in words
    assert scan(people, *WORDS, *words).code == failed
    asked = {api for api, _ in people.requests}
    assert ("dbfs" in asked, "workspace" in asked) == (failed, "--dbfs-only" not in words)
    rows, files = rows_of("out.csv"), rows_of("files.csv")
    sections, text = read_page()
    assert len(rows) == len({*map(username, rows)}) == (29 if "--all-homes" in words else 27)
    if failed:
        error = f"partial: dbfs:{REFUSED}: 403 PERMISSION_DENIED: The caller may not list this path."
        title = f"Missing: 1 of {len(rows)} rows could not be listed completely"
        assert sections.pop(title) == ("The first 1", [(NAMES[3], error)])
    total = human(sum(int(row["total_size"]) for row in rows))
    assert f"<p>{len(rows):,} rows, {len(files):,} files, {total}. 27 users" in text
    labels = {"dbfs": "DBFS", "workspace": "Workspace"}
    assert sections.pop("Sums")[1] == shares(files, lambda row: labels[row["file_system"]])[1]
    languages = Counter(row["language"] for row in files if row["object_type"] == "NOTEBOOK").most_common()
    table = [(f"NOTEBOOK {name}", f"{count:,}") for name, count in languages]
    assert sections.pop("Notebooks", ("", []))[1] == table
    gone = {name for number, name in enumerate(NAMES) if number % 5 == 1} - {NAMES[6]}
    year_ago = time.strftime("%Y-%m-%d", time.gmtime(NOW - 365 * 86400))
    not_old = {NAMES[3], *(username(row) for row in files if row["modified"] > year_ago)}
    old = [row for row in files if row["file_system"] == "dbfs" and username(row) not in not_old]
    expected = {
        "The largest": shares(files, count=len(rows)),
        "Homes of nobody": shares([row for row in files if username(row) == NOBODYS[0]]),
        "Homes of service principals": shares([row for row in files if username(row) == NOBODYS[1]]),
        "Homes of deactivated users": shares([row for row in files if username(row) in gone], count=len(gone)),
        "Homes in DBFS without a file younger than a year": shares(old),
    }
    assert sections == {title: table for title, table in expected.items() if table[1]}


def test_a_page_of_one_user_and_of_none(scan, people):
    assert scan(people, NAMES[5], "--report", "page.html").code == 0
    assert "<p>All of 1 row could be listed completely.</p>" in read_page()[1]
    with FakeDatabricks(users=[], shape="none") as nobody:
        assert scan(nobody, "--all-homes", "--workspace-only", "--report", "page.html").code == 0
    assert read_page()[0]["Sums"][1] == []


def test_whose_a_home_is_the_workspaces_users_tell(scan, people):
    words = (NAMES[1], "--all-homes", "-o", "out.csv", "--details", "details.jsonl")
    told = scan(people, *words).err
    people.change(faults=[Fault("403", api="scim")])
    not_told = scan(people, *words).err
    kinds = [json.loads(line).get("of") for line in Path("details.jsonl").read_text(encoding="utf-8").splitlines()]
    assert Counter(kinds) == {None: 28, "service principals": 1}
    assert "it cannot be told which names are no user's (" in not_told
    assert "28 users, 1 home of service principals: " in not_told
    assert "27 users, 1 home of nobody, 1 home of service principals: " in told
    sizes = {username(row): int(row["total_size"]) for row in rows_of("out.csv")}
    assert f"{human(sizes[NOBODYS[0]]):>12}    29.3 KiB  of it 1 home of nobody\n" in told


WRAPPER = """<!doctype html><body>{frames}<pre></pre><script>
onload = () => {{
  const pages = [...document.querySelectorAll("iframe")].map(frame => frame.contentDocument);
  const width = element => element.getBoundingClientRect().width;
  document.querySelector("pre").textContent = JSON.stringify(pages.map(page => ({{
    room: page.documentElement.clientWidth, taken: page.documentElement.scrollWidth,
    color: page.defaultView.getComputedStyle(page.body).color,
    bars: [...page.querySelectorAll(".bar")].map(bar => [width(bar), ...[...bar.children].map(width)])}})));
}}</script>"""
CHROMIUM = (
    "chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --user-data-dir=chromium --dump-dom wrapper.html"
)


@pytest.fixture
def browse():
    """browse(dark): what is drawn of page.html in frames of 400 and of 1600 pixels, each by the measures of WRAPPER."""
    if not shutil.which("chromium"):
        pytest.skip("chromium is not installed")

    def look(dark):
        page = escape(Path("page.html").read_text(encoding="utf-8"))
        frames = "".join(f'<iframe srcdoc="{page}" style="width: {width}px"></iframe>' for width in (400, 1600))
        Path("wrapper.html").write_text(WRAPPER.format(frames=frames), encoding="utf-8")
        words = [*CHROMIUM.split(), f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
        return json.loads(re.search("<pre>(.*)</pre>", done.stdout)[1])

    return look


def test_in_a_browser_the_page_fits_and_its_bars_are_in_proportion(scan, people, browse):
    assert scan(people, *WORDS, "--all-homes").code == 1
    sums = Counter()
    for row in rows_of("files.csv"):
        sums[username(row), row["size"] == ""] += int(row["size"] or 10_000)
    largest = sorted(rows_of("out.csv"), key=lambda row: -int(row["total_size"]))[:20]
    shares = [[sums[username(row), at] / int(largest[0]["total_size"]) for at in (False, True)] for row in largest]
    for dark, color in ((False, "rgb(0, 0, 0)"), (True, "rgb(255, 255, 255)")):
        for page in browse(dark):
            assert (page["taken"] <= page["room"], page["color"]) == (True, color)
            for share, (room, *drawn) in zip(shares, page["bars"][2:22], strict=True):
                assert drawn == pytest.approx([part * room for part in share], abs=1)


def test_every_change_is_that_between_the_two_inventories(scan, people):
    words = (*WORDS, "--compare", "out.csv")
    first = scan(people, *words)
    assert "there is no out.csv yet to compare with" in first.err
    assert "Compared" not in first.err + read_page()[1]
    assert scan(people, *NAMES[1:3], "--dbfs-only", "-o", "old.csv").code == 0
    less = scan(people, *NAMES[1:3], "--compare", "old.csv").err
    assert "Compared with old.csv, which has nothing of Workspace\n" in less
    before = {username(row): int(row["total_size"]) for row in rows_of("out.csv")}
    for size, name in enumerate(NAMES[5:], 1_000_000):
        people.add_tree("dbfs", {f"/Users/{name}": [dbfs_file(f"/Users/{name}/new", size)]})
    Path("users.csv").write_text("\n".join([*NAMES[1:], *NOBODYS[1:]]), encoding="utf-8")
    people.change(faults=[Fault("403", path=f"/Users/{NAMES[4]}")])
    said = scan(people, *words).err
    after = {username(row): int(row["total_size"]) for row in rows_of("out.csv")}
    changes = {"Grew": {}, "Shrank": {}, "Came": {}, "Went": {}}
    for name in {*before, *after} - {NAMES[3], NAMES[4]}:  # not complete before, not complete now
        grown = after.get(name, 0) - before.get(name, 0)
        kind = "Came" if name not in before else "Went" if name not in after else "Grew" if grown > 0 else "Shrank"
        if grown or kind in ("Came", "Went"):
            changes[kind][name] = grown
    counts = sorted(map(len, changes.values()))
    assert (counts[0], counts[-1] > 10) == (1, True)
    (sections, text), lines, cells = read_page(), [], []
    for title, sizes in changes.items():
        lines.append(f"{title}: {len(sizes)} row{'s' * (len(sizes) > 1)}, {signed(sum(sizes.values()))}")
        assert f"<caption>{lines[-1]}</caption>" in text
        largest = sorted(sizes.items(), key=lambda item: -abs(item[1]))[:10]
        lines += [f"{signed(size):>14}  {name}" for name, size in largest]
        cells += [*((name, signed(size)) for name, size in largest), ("name", "change")]
    total = signed(sum(size for sizes in changes.values() for size in sizes.values()))
    line = f"In all {total}; 2 rows not compared, since not complete in both"
    assert "\n".join(["Compared with out.csv", line, *lines]) in said.replace("'=1+1@x", "=1+1@x")
    assert f"<p>{line}</p>" in text
    shown = [(name.removeprefix("'"), change) for name, change in sections["Compared with out.csv"][1]]
    assert shown == cells[:-1]


def signed(size):
    return f"{'-' if size < 0 else '+'}{human(abs(size))}"


HEADER = "username,file_count,total_size,total_size_gb,status,file_source,error\n"
NO_ROW = "not a row of an inventory"
NO_INVENTORY = [  # a file to compare with, the options, and what is said of it
    (None, (), "--compare old.csv cannot be read: No such file or directory\n"),
    (None, ("--compare", "-"), "--compare takes a file"), (HEADER, ("--report", "./old.csv"), "--compare takes a file"),
    ("", (), f"line 0: {NO_ROW}"), ("a\nb\n", (), f"line 2: {NO_ROW}"),
    (f"{HEADER}a,1,1.2E+11,0.0,success,dbfs,\n", (), f"line 2: {NO_ROW}"),
    (HEADER + "a,1,1,0.0,success,dbfs,\n" * 2, (), f"line 3: {NO_ROW}"),
    (f"{HEADER}a,1,1,0.0,done,dbfs,\n", (), f"line 2: {NO_ROW}"),
    (f"{HEADER}a,1,1,0.0,success,both,\n", ("--dbfs-only",), "old.csv has files of Workspace, which this run"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words", "says"), NO_INVENTORY)
def test_what_cannot_be_compared_is_said_before_the_scan(scan, people, text, words, says):
    if text is not None:
        Path("old.csv").write_text(text)
    done = scan(people, "user1@example.com", "--compare", "old.csv", *words)
    assert (done.code, done.out, people.total_requests, says in done.err) == (2, "", 0, True), done
