"""A fake workspace by hand: python -m tests.fake users=50 port=8099 latency=0.05 limit=30 500:0.02

Words are what FakeDatabricks() takes, and faults with their rate.
"""

import ast
import sys
import time
from contextlib import suppress
from typing import Any

from tests.fake.faults import Fault
from tests.fake.server import FakeDatabricks


def options_of(words: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {"faults": []}
    for name, sign, value in (word.partition("=" if "=" in word else ":") for word in words):
        if sign == "=":
            options[name] = ast.literal_eval(value) if value[:1] in "0123456789({[" else value
        else:
            options["faults"].append(Fault(name, rate=float(value or 1)))
    return options


def main() -> None:
    """Serves until it is ended."""
    with FakeDatabricks(**options_of(sys.argv[1:])) as server, suppress(KeyboardInterrupt):
        print(server.url, server.settings.token, flush=True)
        while True:
            time.sleep(1)  # in slices: on Windows a signal does not interrupt a wait without an end


if __name__ == "__main__":
    main()
