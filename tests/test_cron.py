"""README's script and crontab line, as they stand there, in the environment that cron gives."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial

import pytest

from tests.fake import FakeDatabricks, Fault
from tests.helpers import ROOT, SCANNER, USER_LIST, until

README = (ROOT / "README.md").read_text(encoding="utf-8")
fcntl = pytest.importorskip("fcntl")
pytestmark = pytest.mark.usefixtures("processes")
TOOLS = ("sh", "date", "dirname", "cat")  # all that the script may use: macOS has no flock


def block(language, start):
    """The README's block of this language that starts so."""
    [text] = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.S) if text.startswith(start)]
    return text


@pytest.fixture
def installed(tmp_path):
    """The folder of README's script in a home, with a profile; installed(server) logs in there."""
    (tmp_path / "home" / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "home" / "bin" / tool).symlink_to(shutil.which(tool))
    folder = tmp_path / "home" / "inventory"
    (folder / ".venv" / "bin").mkdir(parents=True)
    python = folder / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -B "$@"\n')
    script = folder / "inventory.sh"
    script.write_text(block("sh", "#!/bin/sh"))
    for name in (SCANNER, USER_LIST):
        (folder / name).symlink_to(ROOT / name)
    for program in (python, script):
        program.chmod(0o755)

    def log_in(server):
        profile = f"[DEFAULT]\nhost = {server.url}\ntoken = {server.settings.token}\n"
        path = tmp_path / "home" / ".databrickscfg"
        path.write_text(profile)
        path.chmod(0o600)
        return folder

    return log_in


def cron(folder):
    """Starts the crontab's command as cron does: /bin/sh -c, next to no environment, no terminal."""
    command = block("crontab", "7 *").split(None, 5)[5].strip()
    home = str(folder.parent)
    words = ["/usr/bin/env", "-i", f"HOME={home}", "LOGNAME=inventory", "SHELL=/bin/sh", f"PATH={home}/bin"]
    return subprocess.Popen([*words, "/bin/sh", "-c", command], cwd=home, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip


def mail_of(process):
    """Exit code, and what cron would mail."""
    mail, _ = process.communicate(timeout=30)
    return process.returncode, mail.decode()


def names_in(folder):
    return sorted(re.sub(r"\d{4}-W\d\d", "WEEK", path.name) for path in folder.iterdir() if path.is_file()
                  and not path.is_symlink())  # fmt: skip


def rows_in(folder):
    [name] = folder.glob("inventory-*.csv")
    with open(name, encoding="utf-8", newline="") as file:
        return {row["username"]: (int(row["file_count"]), int(row["total_size"])) for row in csv.DictReader(file)}


def truth(server):
    truths = map(server.truth, server.workspace.owners)
    return {truth.username: (truth.file_count, truth.total_size) for truth in truths if truth.file_count}


def filled(rows):
    return {name: figures for name, figures in rows.items() if figures[0]}


def is_free(lock):
    with open(lock, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_cron_mails_nothing_when_all_is_well_and_a_second_start_does_nothing(installed):
    with FakeDatabricks(users=25, shape="small") as server:
        folder = installed(server)
        assert mail_of(cron(folder)) == (0, "")
        assert filled(rows_in(folder)) == truth(server)
        assert names_in(folder) == ["inventory-WEEK.csv", "inventory-WEEK.log", "inventory.lock", "inventory.sh",
                                    "users-WEEK.csv"]  # fmt: skip
        requests = server.total_requests
        assert mail_of(cron(folder)) == (0, "")
        assert server.total_requests == requests


def test_cron_mails_the_log_of_a_run_that_could_not_list_everything(installed):
    with FakeDatabricks(users=3, shape="small") as server:
        server.change(faults=[Fault("403", path=f"/Users/{server.user_names[1]}")])
        code, mail = mail_of(cron(installed(server)))
    assert code == 1
    assert f"  error: {server.user_names[1]}: dbfs:" in mail or f"  partial: {server.user_names[1]}: dbfs:" in mail
    assert "3 users: " in mail
    assert "Traceback" not in mail


@pytest.mark.parametrize(("change", "says"), [
    ({"total_results_offset": 2}, "2 users missing"), ({"token": "another"}, "does not accept the token"),
])  # fmt: skip
def test_a_user_list_that_is_short_is_scanned_and_one_that_failed_is_not(installed, change, says):
    with FakeDatabricks(users=5, shape="small") as server:
        folder = installed(server)
        server.change(**change)
        code, mail = mail_of(cron(folder))
        assert says in mail
        if "token" in change:
            assert code == 2
            assert not list(folder.glob("*.csv"))
        else:
            assert code == 1
            assert filled(rows_in(folder)) == truth(server)
            assert mail_of(cron(folder)) == (0, "")


def test_without_python_the_script_fails(installed):
    with FakeDatabricks(users=1) as server:
        folder = installed(server)
    (folder / ".venv" / "bin" / "python").unlink()
    assert mail_of(cron(folder))[0] == 127


def test_a_machine_that_goes_down_loses_nothing_and_two_starts_are_one(installed):
    with FakeDatabricks(users=40, shape="small", latency=0.02) as server:
        folder = installed(server)
        first = cron(folder)
        until(lambda: any(saved.read_text().count('"username"') > 5 for saved in folder.glob(".checkpoint*.json")))
        assert mail_of(cron(folder)) == (0, "")  # the other is under way
        os.killpg(first.pid, signal.SIGKILL)
        mail_of(first)
        until(partial(is_free, folder / "inventory.lock"))  # what was killed may take a moment to be gone
        [saved] = folder.glob(".checkpoint*.json")
        done = json.loads(saved.read_text())["results"][0]["username"]
        assert server.requests["dbfs", f"/Users/{done}"]
        server.counts_reset()
        assert mail_of(cron(folder)) == (0, "")
        assert filled(rows_in(folder)) == truth(server)
        assert not server.requests["dbfs", f"/Users/{done}"]


def test_an_outage_is_mailed_and_the_next_hour_goes_on(installed):
    with FakeDatabricks(users=3, shape="small") as server:
        folder = installed(server)
        token = server.settings.token
        server.change(token="another")
        code, mail = mail_of(cron(folder))
        assert code == 2
        assert "does not accept the token" in mail
        server.change(token=token)
        assert mail_of(cron(folder)) == (0, "")
        assert filled(rows_in(folder)) == truth(server)
