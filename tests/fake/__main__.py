"""python -m tests.fake: a fake workspace by hand."""

import argparse
import signal
import threading

from tests.fake.faults import FAMILIES, FAULT_KINDS, Fault
from tests.fake.server import DEFAULT_TOKEN, FakeDatabricks
from tests.fake.trees import FILE_SYSTEMS, SHAPES


def fault_option(text):
    """KIND:RATE from the command line."""
    kind, _, rate = text.partition(":")
    try:
        return Fault(kind, rate=float(rate or 1))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def build_parser():
    """The command line."""
    parser = argparse.ArgumentParser(description="An HTTP server that behaves as a Databricks workspace does.")
    parser.add_argument("--users", type=int, default=50, help="number of users (default: %(default)s)")
    parser.add_argument("--service-principals", type=int, default=0, help="how many (default: %(default)s)")
    parser.add_argument("--unlisted-homes", type=int, default=0, help="homes of nobody (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1, 0 for any free one")
    parser.add_argument("--seed", type=int, default=1, help="of trees and faults (default: %(default)s)")
    parser.add_argument("--token", default=DEFAULT_TOKEN, help="the valid token (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="of every answer")
    parser.add_argument("--limit", type=float, help="requests per second, for each API")
    for family in FAMILIES:
        parser.add_argument(f"--{family}-limit", type=float, help=f"requests per second, for {family}")
    parser.add_argument("--retry-after", choices=("none", "seconds", "date"), default="none", help="on 429")
    parser.add_argument("--in-flight-limit", type=int, help="requests at once")
    parser.add_argument("--fault", type=fault_option, action="append", default=[], metavar="KIND:RATE",
                        help=f"repeatable; kinds: {', '.join(FAULT_KINDS)}")  # fmt: skip
    parser.add_argument("--shape", choices=SHAPES, default="mixed", help="of all users (default: %(default)s)")
    parser.add_argument("--directories", type=int, default=40, help="per user, for --shape bench")
    parser.add_argument("--files-per-directory", type=int, default=5, help="for --shape bench")
    parser.add_argument("--file-system", choices=FILE_SYSTEMS, help="the only one, for --shape bench")
    parser.add_argument("--no-count-paths", action="store_true", help="count no single paths: for millions of requests")
    parser.add_argument("--truth", metavar="FILE", help="write what a complete scan finds, as a CSV")
    return parser


def server_from(options):
    """A server as the command line wants it."""
    limits = {family: getattr(options, f"{family}_limit") or options.limit for family in FAMILIES}
    return FakeDatabricks(
        users=options.users, port=options.port, seed=options.seed, shape=options.shape,
        directories=options.directories, files_per_directory=options.files_per_directory,
        file_systems=(options.file_system,) if options.file_system else FILE_SYSTEMS,
        token=options.token, latency=options.latency, limits=limits, retry_after=options.retry_after,
        service_principals=options.service_principals, unlisted_homes=options.unlisted_homes,
        in_flight_limit=options.in_flight_limit, faults=options.fault, count_paths=not options.no_count_paths,
    )  # fmt: skip


def main(argv=None):
    """Serve until SIGTERM or SIGINT."""
    options = build_parser().parse_args(argv)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server = server_from(options)
    if options.truth:
        server.workspace.write_truth(options.truth)
    with server:
        print(server.url, server.settings.token, flush=True)
        # In slices, because on Windows a signal does not interrupt a wait without an end.
        while not ended.wait(1):
            pass
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
