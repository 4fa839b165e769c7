"""NOTEBOOK_USAGE.md, block by block, in a real IPython kernel; and what else happens to the scripts in notebooks."""

import ast
import json
import os
import re
import shutil
import time

import pytest

from tests.fake import FakeDatabricks, Fault
from tests.helpers import (
    ROOT,
    SCANNER,
    USER_LIST,
    asked_for,
    hang_when,
    needs_posix,
    saved_users,
    slow_until,
    true_csv,
    until,
    workers_help,
)
from tests.kernel import Cell

DOCUMENT = (ROOT / "NOTEBOOK_USAGE.md").read_text(encoding="utf-8")
WAYS = ("1. As files beside the notebook", "2. Pasted into cells", "3. Written by a cell")
TEXTS = {script: (ROOT / script).read_text(encoding="utf-8") for script in (SCANNER, USER_LIST)}
DBUTILS = """
from types import SimpleNamespace
dbutils = SimpleNamespace(secrets=SimpleNamespace(get=lambda scope, key: {token!r}))
"""
SPARK = """
from pyspark.sql import SparkSession
spark = SparkSession.builder.remote({remote!r}).create()
spark.conf.set("spark.sql.leafNodeDefaultParallelism", 2)  # task slots, and so workers that have to start
"""


# The document


def blocks_below(heading):
    """The Python blocks below a heading, with the scripts' texts in the place of the lines that stand for them."""
    section = re.split("^##", DOCUMENT.split(f"# {heading}\n")[1], maxsplit=1, flags=re.M)[0]
    return [with_texts(block) for block in re.findall(r"^```python\n(.*?)^```$", section, re.S | re.M)]


def with_texts(block):
    return re.sub(r"^# the whole text of (\w+\.py)\n", lambda line: TEXTS[line[1]], block, flags=re.M)


def getting_in(way):
    """The cells of one of the WAYS."""
    return blocks_below(way) + (blocks_below(WAYS[0]) if way == WAYS[2] else [])


LOG_IN, USERS, SCAN, FRAMES, WHOLE, FILES, JOB = map(
    blocks_below,
    ("Log in", "List the users", "Scan some of them", "As a DataFrame", "Scan the whole workspace",
     "Every file as a DataFrame", "As a job"),
)  # fmt: skip
EMPTY, SEQUENTIAL, PARALLEL = SCAN
WITHOUT_SPARK = [*LOG_IN, *USERS, EMPTY, SEQUENTIAL, FRAMES[0], WHOLE[0], FILES[0], *JOB]
WITH_SPARK = [*LOG_IN, *USERS, EMPTY, PARALLEL, *FRAMES, *WHOLE, *FILES, *JOB]


def test_every_block_of_the_document_is_run():
    every = {with_texts(block) for block in re.findall(r"^```.*\n((?s:.*?))^```$", DOCUMENT, re.M)}
    assert every == {cell for way in WAYS for cell in getting_in(way)} | {*WITHOUT_SPARK} | {*WITH_SPARK}


def own(kernel, server, cell):
    """A cell with a reader's own workspace and folders in it."""
    values = {"/tmp/": f"{kernel.folder}/", "/Volumes/main/": f"{kernel.folder}/volume/",
              "https://adb-1.2.azuredatabricks.net": server.url}  # fmt: skip
    for example, value in values.items():
        cell = cell.replace(example, value)
    return cell


def run_all(kernel, server, cells):
    """What each brought; none may fail."""
    done = []
    for cell in cells:
        done.append(kernel.run(own(kernel, server, cell)))
        assert not done[-1].error, f"{cell[-500:]}\n{done[-1]}"
    return done


def value_of(kernel, expression):
    """What an expression is in the kernel, through JSON."""
    cell = kernel.run(f"print(__import__('json').dumps({expression}))")
    assert not cell.error, cell
    return json.loads(cell.out)


def bring_in(kernel, server, way=WAYS[1]):
    """Gets the scripts in as the document says: nothing may appear. The files are there for the first way alone."""
    for script, text in TEXTS.items() if way == WAYS[0] else ():
        (kernel.folder / script).write_text(text, encoding="utf-8")
    cells = [kernel.run(cell) for cell in (DBUTILS.format(token=server.settings.token), *getting_in(way))]
    written = [Cell(out=f"Writing {script}\n") for script in (USER_LIST, SCANNER)] if way == WAYS[2] else []
    assert [cell for cell in cells if cell != Cell()] == written


# The recipes


def assert_inventory(kernel, server):
    """What the blocks have left behind is the truth."""
    truth = {name: [server.truth(name).file_count, server.truth(name).total_size] for name in server.user_names}
    rows = "{{row.username: [row.file_count, row.total_size] for row in {}}}"
    assert value_of(kernel, rows.format("frame.itertuples()")) == truth
    if value_of(kernel, "'table' in globals()"):
        assert value_of(kernel, rows.format("table.collect()")) == truth
        assert value_of(kernel, "table.toPandas().equals(frame)")
    sizes = sum(size for _, size in truth.values())
    assert value_of(kernel, "frame.total_size_gb.sum()") == pytest.approx(sizes / 1024**3, abs=0.001)
    kept = kernel.folder / "volume/default/inventory/2026-11"
    assert sorted(path.name for path in kept.iterdir()) == ["files.csv.gz", "inventory.csv"]
    assert (kept / "inventory.csv").read_bytes() == true_csv(server)
    token = server.settings.token.encode()
    left_behind = [path for path in kernel.folder.rglob("*") if path.is_file() and "ipython" not in path.parts]
    assert [path for path in left_behind if token in path.read_bytes()] == []


def files_of(server):
    """How many each user has who has any."""
    truths = map(server.truth, server.user_names)
    return {truth.username: truth.file_count for truth in truths if truth.file_count}


@pytest.mark.parametrize("way", WAYS)
def test_a_recipe(new_kernel, small, way):
    """Also after somebody has pasted step 2 alone, which says what the document says."""
    kernel = new_kernel()
    alone = kernel.run(TEXTS[SCANNER])
    assert (alone.error, alone.err.splitlines()[0] in " ".join(DOCUMENT.split())) == ("SystemExit: 2", True)
    bring_in(kernel, small, way)
    _, config, users, _, scan, _, whole, _, _ = run_all(kernel, small, WITHOUT_SPARK)
    assert value_of(kernel, "files.username.value_counts().to_dict()") == files_of(small)
    assert value_of(kernel, "[int(number) for number in by_ending.sum()] == [len(files), int(files['size'].sum())]")
    assert value_of(kernel, "len(largest) == 10 and 0 < len(unchanged) < len(files)")
    assert_inventory(kernel, small)
    assert small.url in config.result
    assert small.settings.token not in config.result
    assert users.err.splitlines() == [f"Workspace {small.url}, login from environment", "12 users"]
    assert (scan.out.split("\r")[-1], scan.err) == ("12 of 12 users", "")
    assert "12 users: 11 success, 1 empty" in whole.err
    assert whole.err.count("warning:") == 1  # that there is no checkpoint to go on with


@pytest.fixture
def large():
    """Twenty users with forty directories each."""
    with FakeDatabricks(users=20, shape="bench", directories=40) as server:
        yield server


def test_a_recipe_on_spark(connect_server, new_kernel, large):
    """Interrupted, it cancels its own queries alone: see test_cluster.py."""
    kernel = new_kernel()
    bring_in(kernel, large)
    run_all(kernel, large, [SPARK.format(remote=connect_server.remote)])
    with slow_until(large, workers_help(large)):
        cells = dict(zip(WITH_SPARK, run_all(kernel, large, WITH_SPARK), strict=True))
    scan, whole = cells[PARALLEL], cells[WHOLE[1]]
    assert (scan.out.split("\r")[-1], scan.err) == ("20 of 20 users", "")
    assert "parallel: this machine, and the Spark session of the caller" in whole.err
    assert "20 users: 20 success" in whole.err
    assert whole.err.count("warning:") == 1
    assert_inventory(kernel, large)
    counts = "every_file.count(), largest.count(), unchanged.count(), sum(row[1] for row in by_ending.collect())"
    number = sum(files_of(large).values())
    unchanged = value_of(kernel, "len(files[files.modified < two_years_ago])")
    assert value_of(kernel, f"[{counts}]") == [number, 10, unchanged, number]
    assert value_of(kernel, "spark.range(3).count()") == 3  # main() has not stopped the notebook's session


# The stop button


THREADS = "sum('list_directories' in thread.name for thread in __import__('threading').enumerate())"


def let_go(server):
    """Ends the requests that hang; from now on answers come."""
    server.change(faults=[])
    for connection in list(server.connections):
        server.loop.call_soon_threadsafe(connection.transport.abort)
    until(lambda: server.in_flight == 0, 60)
    server.counts_reset()


def interrupted(kernel, server, cell, requests=60):
    """What a cell brought that was interrupted when a few users were done, and answers came no more."""
    server.counts_reset()
    gate = hang_when(server, lambda: server.total_requests > requests)
    gate.seconds = 600.0
    return kernel.run(own(kernel, server, cell), interrupt_when=lambda: gate.hits >= 2)


@needs_posix
def test_an_interrupted_scan_goes_on(new_kernel, small):
    kernel = new_kernel()
    bring_in(kernel, small)
    run_all(kernel, small, [*LOG_IN, *USERS, EMPTY])
    assert interrupted(kernel, small, SEQUENTIAL).error == "KeyboardInterrupt: "
    done = value_of(kernel, "list(results)")
    assert 0 < len(done) < 12
    let_go(small)
    until(lambda: value_of(kernel, THREADS) == 0, 60)
    run_all(kernel, small, [SEQUENTIAL])
    assert [asked_for(small, name) for name in done] == [0] * len(done)
    assert kernel.run("for result in scan_users(names, config): 1 / 0").error.startswith("ZeroDivisionError")
    until(lambda: value_of(kernel, THREADS) == 0, 60)
    run_all(kernel, small, [FRAMES[0], WHOLE[0]])
    assert_inventory(kernel, small)


@needs_posix
def test_an_interrupted_main_goes_on(new_kernel, small):
    """It returns 130; the checkpoint is copied; the same cell, which has --resume, goes on."""
    kernel = new_kernel()
    bring_in(kernel, small)
    run_all(kernel, small, [*LOG_IN, *USERS, EMPTY, SEQUENTIAL, FRAMES[0]])
    cell = interrupted(kernel, small, WHOLE[0])
    assert (cell.error, value_of(kernel, "code")) == ("", 130)
    assert kernel.run(JOB[0]).error == "RuntimeError: exit codes 0 (users) and 130 (files): see README.md"
    kept = kernel.folder / "volume/default/inventory/2026-11"
    done = saved_users(kept / "checkpoint.json")
    assert 0 < len(done) < 12
    assert f"{len(done)} of 12 users saved in " in cell.err
    let_go(small)
    shutil.rmtree(kernel.folder / "inventory-2026-11")  # a new cluster, which has what was kept
    small.counts_reset()
    run_all(kernel, small, [WHOLE[0], *JOB])
    assert [asked_for(small, name) for name in done] == [0] * len(done)
    assert_inventory(kernel, small)


# What else people do


def test_pasted_again(new_kernel, small):
    """Login and results from before go with the functions from after."""
    kernel = new_kernel()
    bring_in(kernel, small)
    half = "results = {result.username: result for result in scan_users(names[:6], config)}"
    run_all(kernel, small, [*LOG_IN, *USERS, half])
    bring_in(kernel, small)
    small.change(faults=[Fault("html", times=1)])
    run_all(kernel, small, [SEQUENTIAL, "write_results(results.values(), 'results.csv', None)"])
    small.change(faults=[])
    run_all(kernel, small, [FRAMES[0], WHOLE[0]])
    assert_inventory(kernel, small)


def test_without_output_the_csv_is_the_cells_output(new_kernel, small):
    kernel = new_kernel()
    bring_in(kernel, small)
    run_all(kernel, small, LOG_IN)
    name = small.user_names[0]
    cell = kernel.run(f"user_files([{name!r}, '--quiet'])")
    assert cell.out.encode() == true_csv(small, [name])
    assert (kernel.console.read_bytes().count(b"username"), cell.result) == (0, "0")
    cell = kernel.run("user_list(['--max-users', '1'])")
    assert cell.out.splitlines()[0] == "username,display_name,active,user_id"
    for command, script in (("user_files", SCANNER), ("user_list", USER_LIST)):
        assert kernel.run(f"{command}(['--help'])").out.startswith(f"usage: {script} [-h]")


def test_another_version_with_autoreload(new_kernel, small):
    kernel = new_kernel()
    bring_in(kernel, small, WAYS[0])
    run_all(kernel, small, ["%load_ext autoreload\n%autoreload 2", *LOG_IN, *USERS])
    count = "sum(result.workspace.bytes for result in scan_users(names, config))"
    before = value_of(kernel, count)
    text = TEXTS[SCANNER].replace("WORKSPACE_OBJECT_SIZE = 10_000 ", "WORKSPACE_OBJECT_SIZE = 20_000 ")
    path = kernel.folder / SCANNER
    path.write_text(text, encoding="utf-8")
    os.utime(path, (time.time() + 10, time.time() + 10))
    small.change(faults=[Fault("html", times=1)])
    assert value_of(kernel, count) == 2 * before


def test_the_run_magic_leaves_the_kernel_alive(new_kernel):
    """Also with pyspark there, because of which the scanner's process ends without waiting for threads."""
    kernel = new_kernel()
    kernel.run("__import__('sys').modules['pyspark'] = None")
    for script in TEXTS:
        assert kernel.run(f"%run {ROOT / script} --help").out.startswith(f"usage: {script} [-h]")
        assert kernel.run(f"%run {ROOT / script} --no-such").error.startswith("RuntimeError: exit code 2: ")


# A script task of a job: the file's text in a kernel, from another folder

TASK = """
import sys
filename = {path!r}
sys.argv = [filename, *{words!r}]
with open(filename, "rb") as f:
    exec(compile(f.read(), filename, "exec"))
"""


def task(kernel, script, *words):
    return kernel.run(TASK.format(path=str(ROOT / script), words=list(words)))


@pytest.mark.parametrize("wrapper", [None, "/databricks/python_shell/scripts/db_ipykernel_launcher.py"])
def test_a_script_task_does_its_work_and_fails_by_an_exception_alone(new_kernel, small, wrapper):
    kernel, login = new_kernel(), ("--workspace-url", small.url, "--token", small.settings.token)
    assert kernel.run("import databricks_user_files_simple").error.startswith("ModuleNotFoundError")
    bound = kernel.run(f"__file__ = {wrapper!r}" if wrapper else "__file__")
    assert bound.error == ("" if wrapper else "NameError: name '__file__' is not defined")
    scan = ("--users-file", "users.csv", "-o", "out.csv")
    refused = task(kernel, USER_LIST, "--no-such")
    assert refused.error.startswith("RuntimeError: exit code 2: ")
    assert task(kernel, SCANNER, *scan, *login).error.startswith("RuntimeError: exit code 2: ")
    assert "users.csv" in task(kernel, SCANNER, *scan, *login).err
    listed = task(kernel, USER_LIST, "-o", "users.csv", *login)
    assert (listed.error, "12 users" in listed.err) == ("", True)
    small.change(faults=[Fault("403", path=f"/Users/{small.user_names[1]}")])
    assert task(kernel, SCANNER, *scan, *login).error.startswith("RuntimeError: exit code 1: ")
    small.change(faults=[])
    assert task(kernel, SCANNER, *scan, *login, "--resume").error == ""
    assert (kernel.folder / "out.csv").read_bytes() == true_csv(small)


SHOW_CELLS = """
import os
from ipykernel.compiler import get_file_name
for text in {texts!r}:
    os.makedirs(os.path.dirname(get_file_name(text)), exist_ok=True)
    with open(get_file_name(text), "w", encoding="utf-8") as file:
        file.write(text)
"""


def test_a_cell_starts_nothing_also_when_a_debugger_has_written_it_to_a_file(new_kernel, small):
    kernel = new_kernel()
    assert kernel.run(SHOW_CELLS.format(texts=getting_in(WAYS[1]))).error == ""
    kernel.run("__import__('sys').argv[1:] = ['--help']")
    bring_in(kernel, small)


def test_pasted_the_scripts_and_the_blocks_do_not_take_names_from_each_other():
    assert assigned(TEXTS[SCANNER]) & assigned(TEXTS[USER_LIST]) == {"main"}
    blocks = assigned("\n".join(WITH_SPARK))
    assert {"results", "words"} < blocks
    assert blocks & (assigned(TEXTS[SCANNER]) | assigned(TEXTS[USER_LIST])) == set()


def assigned(text):
    """The names that a script's top level gives to what it makes."""
    names = set()
    for statement in ast.parse(text).body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            names.add(statement.name)
        elif not isinstance(statement, ast.If):
            stored = (node for node in ast.walk(statement) if isinstance(node, ast.Name))
            names |= {node.id for node in stored if isinstance(node.ctx, ast.Store)}
    return names
