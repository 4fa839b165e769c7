"""python -m tests.fake: a fake workspace by hand."""

import argparse
import signal
import threading

from tests.fake.faults import FAULT_KINDS, Fault
from tests.fake.server import DEFAULT_TOKEN, FAMILIES, FakeDatabricks
from tests.fake.world import SHAPES


def fault_option(text: str) -> Fault:
    """KIND:RATE from the command line."""
    kind, _, rate = text.partition(":")
    try:
        return Fault(kind, rate=float(rate or 1))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="An HTTP server that behaves as a Databricks workspace does.")
    parser.add_argument("--users", type=int, default=50, help="number of users (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1, 0 for any free one")
    parser.add_argument("--seed", type=int, default=1, help="of faults (default: %(default)s)")
    parser.add_argument("--token", default=DEFAULT_TOKEN, help="the valid token (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="of every answer")
    parser.add_argument("--limit", type=float, help="requests per second, for each API")
    for family in FAMILIES:
        parser.add_argument(f"--{family}-limit", type=float, help=f"requests per second, for {family}")
    parser.add_argument("--retry-after", type=int, metavar="SECONDS", help="on answers of 429")
    parser.add_argument("--fault", dest="faults", type=fault_option, action="append", default=[], metavar="KIND:RATE",
                        help=f"repeatable; kinds: {', '.join(FAULT_KINDS)}")  # fmt: skip
    parser.add_argument("--shape", choices=SHAPES, default="mixed", help="of all users (default: %(default)s)")
    parser.add_argument("--directories", type=int, default=40, help="per user, for --shape bench")
    return parser


def main() -> int:
    """Serves until SIGTERM or SIGINT."""
    options = vars(build_parser().parse_args())
    limit = options.pop("limit")
    limits = {family: options.pop(f"{family}_limit") or limit for family in FAMILIES}
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with FakeDatabricks(limits=limits, **options) as server:
        print(server.url, server.settings.token, flush=True)
        while not ended.wait(1):  # in slices: on Windows a signal does not interrupt a wait without an end
            pass
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
