"""A tour in under a minute, without a workspace: python -m tests.demo

Starts the fake workspace with 50 users and real limits (30 requests/s for DBFS, 50 for the Workspace), and runs the
commands that a user would type: list the users, scan, interrupt, resume. Needs no login; writes to a temporary folder.
"""
from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fake_databricks import FakeDatabricks

ROOT = Path(__file__).resolve().parent.parent
INTERRUPT_AFTER = 6  # seconds


def main() -> int:
    small = {17: "small", 23: "small"}  # instead of the giant and the deep user, who take a minute at these limits
    with tempfile.TemporaryDirectory(prefix="inventory-demo-") as folder, \
            FakeDatabricks(users=50, shapes=small, latency=0.03, limits={"dbfs": 30, "workspace": 50}) as server:
        environment = os.environ | server_login(server)
        say(f"A fake workspace with {len(server.user_names)} users answers at {server.url}.")
        type_command("databricks_user_list.py -o users.csv", folder, environment)
        scan = "databricks_user_files_simple.py --users-file users.csv -o inventory.csv"
        say(f"Now the scan, interrupted with Ctrl-C after {INTERRUPT_AFTER} seconds:")
        type_command(scan, folder, environment, interrupt_after=INTERRUPT_AFTER)
        say("It goes on where it stopped:")
        code = type_command(f"{scan} --resume", folder, environment)
        rows = (Path(folder) / "inventory.csv").read_text(encoding="utf-8").splitlines()
        say("The first rows of inventory.csv:")
        print(*rows[:6], sep="\n", flush=True)
        right = rows[1:] and all(row_is_true(row, server) for row in rows[1:])
        say(f"All {len(rows) - 1} rows equal what the fake workspace holds." if right else "The rows are WRONG.")
        print("Next, with your own workspace: see \"Log in\" in README.md.")
        return code if right else 1


def server_login(server: FakeDatabricks) -> dict[str, str]:
    return {"DATABRICKS_HOST": server.url, "DATABRICKS_TOKEN": server.settings.token,
            "DATABRICKS_CONFIG_FILE": os.devnull}


def type_command(words: str, folder: str, environment: dict[str, str], interrupt_after: float | None = None) -> int:
    """Shows and runs one of the two commands; returns its exit code."""
    print(f"\n$ python {words}", flush=True)
    script, *options = shlex.split(words)
    process = subprocess.Popen([sys.executable, str(ROOT / script), *options], cwd=folder, env=environment)
    try:
        process.wait(interrupt_after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    return process.wait()


def row_is_true(row: str, server: FakeDatabricks) -> bool:
    username, files, size, *_ = row.split(",")
    truth = server.truth(username)
    return (int(files), int(size)) == (truth.file_count, truth.total_size)


def say(text: str) -> None:
    print(f"\n{text}", flush=True)
    time.sleep(0.5)  # time to read it


if __name__ == "__main__":
    raise SystemExit(main())
