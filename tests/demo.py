"""A tour in under a minute, without a workspace: python -m tests.demo

Starts the fake workspace with 50 users and real limits (30 requests/s for DBFS, 50 for the Workspace), and runs the
commands that a user would type: list the users, scan, interrupt, resume. Needs no login; writes to a temporary folder.
"""

import csv
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fake import FakeDatabricks

ROOT = Path(__file__).resolve().parent.parent
INTERRUPT_AFTER = 6  # seconds
LIMITS = {"dbfs": 30, "workspace": 50}  # requests/s, as published
NEXT = """Next, with your own workspace:
  1. "Log in" in README.md
  2. python databricks_user_list.py -o users.csv
  3. python databricks_user_files_simple.py --users-file users.csv -o inventory.csv --report inventory.html"""
SHAPES = {17: "small"}  # instead of the giant user, who takes a minute at these limits


def main() -> int:
    with (
        tempfile.TemporaryDirectory(prefix="inventory-demo-") as folder,
        FakeDatabricks(users=50, shapes=SHAPES, latency=0.03, limits=LIMITS) as server,
    ):
        environment = {**os.environ, "DATABRICKS_HOST": server.url, "DATABRICKS_TOKEN": server.settings.token,
                       "DATABRICKS_CONFIG_FILE": os.devnull}  # fmt: skip
        say(f"A fake workspace with {len(server.user_names)} users answers at {server.url}. Who they are:")
        type_command("databricks_user_list.py -o users.csv", folder, environment)
        scan = "databricks_user_files_simple.py --users-file users.csv -o inventory.csv"
        say(f"Now the scan, interrupted with Ctrl-C after {INTERRUPT_AFTER} seconds:")
        type_command(scan, folder, environment, interrupt_after=INTERRUPT_AFTER)
        say("It goes on where it stopped:")
        type_command(f"{scan} --resume", folder, environment)
        text = (Path(folder) / "inventory.csv").read_text(encoding="utf-8")
        if list(csv.DictReader(text.splitlines())) != [server.truth(name).row for name in server.user_names]:
            print("\nThe rows are WRONG.")
            return 1
        say(f"All {len(server.user_names)} rows equal what the fake workspace holds. {NEXT}")
        return 0


def type_command(words: str, folder: str, environment: dict[str, str], interrupt_after: float | None = None) -> None:
    """One of the two commands, shown and run."""
    print(f"\n$ python {words}", flush=True)
    script, *options = shlex.split(words)
    process = subprocess.Popen([sys.executable, str(ROOT / script), *options], cwd=folder, env=environment)
    try:
        process.wait(interrupt_after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()


def say(text: str) -> None:
    print(f"\n{text}", flush=True)
    time.sleep(0.5)  # time to read it


if __name__ == "__main__":
    raise SystemExit(main())
