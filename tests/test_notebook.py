"""NOTEBOOK_USAGE.md, block by block, in a real IPython kernel; and what else happens to the scripts in notebooks."""

import ast
import json
import re
import shutil

import pytest

from tests import helpers
from tests.fake import FakeDatabricks, Fault
from tests.helpers import ROOT, SCANNER, USER_LIST, asked_for, saved_users, true_csv
from tests.kernel import Cell

DOCUMENT = (ROOT / "NOTEBOOK_USAGE.md").read_text(encoding="utf-8")
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
SHOW_CELLS = """
import os
from ipykernel.compiler import get_file_name
for text in {texts!r}:  # as a debugger does
    os.makedirs(os.path.dirname(get_file_name(text)), exist_ok=True)
    with open(get_file_name(text), "w", encoding="utf-8") as file:
        file.write(text)
__import__("sys").argv[1:] = ["--help"]  # which a cell of the scripts' texts does not take for its own
"""


def blocks_of(section):
    """Its Python blocks, with the scripts' texts in the place of the lines that stand for them."""
    blocks = re.findall(r"^```python\n(.*?)^```$", section, re.S | re.M)
    return [re.sub(r"^# the whole text of (\w+\.py)\n", lambda line: TEXTS[line[1]], block, flags=re.M)
            for block in blocks]  # fmt: skip


SECTIONS = {section.partition("\n")[0].strip(): blocks_of(section) for section in re.split("^##", DOCUMENT, flags=re.M)}
FILES, PASTED, WRITTEN = [blocks for heading, blocks in SECTIONS.items() if re.match(r"# \d\. ", heading)]
WAYS = {"files": FILES, "pasted": PASTED, "written": WRITTEN + FILES}  # to get the commands into a notebook
REST = [block for heading, blocks in SECTIONS.items() if not re.match(r"# \d\. ", heading) for block in blocks]
WITHOUT_SPARK = [block for block in REST if not re.search(r"\bspark\b", block)]
WITH_SPARK = [block for block in REST if " in scan_users(" not in block]
[SCAN] = [block for block in REST if " in scan_users(" in block]
WHOLE = next(block for block in REST if "user_files(" in block)


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


def bring_in(kernel, server, way="pasted"):
    """Gets the scripts in as the document says: nothing may appear. The files are there for the first way alone."""
    for script, text in TEXTS.items() if way == "files" else ():
        (kernel.folder / script).write_text(text, encoding="utf-8")
    before = (SHOW_CELLS.format(texts=WAYS[way]), DBUTILS.format(token=server.settings.token))
    cells = [kernel.run(cell) for cell in (*before, *WAYS[way])]
    written = [Cell(out=f"Writing {script}\n") for script in (USER_LIST, SCANNER)] if way == "written" else []
    assert [cell for cell in cells if cell != Cell()] == written


def assert_inventory(kernel, server):
    """What the blocks have left behind is the truth."""
    truth = {name: [server.truth(name).file_count, server.truth(name).total_size] for name in server.user_names}
    for rows in ("frame.itertuples()", "(table.collect() if 'table' in globals() else frame.itertuples())"):
        assert value_of(kernel, f"{{row.username: [row.file_count, row.total_size] for row in {rows}}}") == truth
    [kept] = kernel.folder.glob("volume/**/inventory.csv")
    assert kept.read_bytes() == true_csv(server)
    assert value_of(kernel, "len(files)") == sum(files for files, _ in truth.values())
    with_spark = "[row.size for row in largest.collect()] if hasattr(largest, 'collect') else sizes"
    assert value_of(kernel, f"(sizes := [*files.nlargest(10, 'size')['size']]) == ({with_spark})")
    token = server.settings.token.encode()
    left_behind = [path for path in kernel.folder.rglob("*") if path.is_file() and "ipython" not in path.parts]
    assert [path for path in left_behind if token in path.read_bytes()] == []


@pytest.mark.parametrize("way", WAYS)
def test_a_recipe(new_kernel, small, way):
    """Also after somebody has pasted step 2 alone, which says what the document says; a version is pasted over one."""
    kernel = new_kernel()
    alone = kernel.run(TEXTS[SCANNER])
    assert (alone.error, alone.err.splitlines()[0] in " ".join(DOCUMENT.split())) == ("SystemExit: 2", True)
    for _ in range(2 if way == "pasted" else 1):
        bring_in(kernel, small, way)
    cells = dict(zip(WITHOUT_SPARK, run_all(kernel, small, WITHOUT_SPARK), strict=True))
    assert (cells[SCAN].out.split("\r")[-1], cells[SCAN].err) == ("12 of 12 users", "")
    assert "12 users: " in cells[WHOLE].err
    assert_inventory(kernel, small)


def test_a_recipe_on_spark(connect_server, new_kernel):
    """Interrupted, it cancels its own queries alone: see test_cluster.py."""
    kernel = new_kernel()
    with FakeDatabricks(users=20, shape="bench", directories=40) as server:
        bring_in(kernel, server)
        run_all(kernel, server, [SPARK.format(remote=connect_server.remote)])
        with helpers.slow_until(server, helpers.workers_help(server), slow=1.0):
            cells = [cell.replace("session = None", "session = spark") for cell in WITH_SPARK]
            done = run_all(kernel, server, cells)
        assert any("parallel: this machine, and the Spark session of the caller" in cell.err for cell in done)
        assert_inventory(kernel, server)
    assert value_of(kernel, "spark.range(3).count()") == 3  # the command has not stopped the notebook's session


THREADS = "sum('list_directories' in thread.name for thread in __import__('threading').enumerate())"


def interrupted(kernel, server, cell):
    """What a cell brought that was interrupted when a few users were done; from then on answers come again."""
    server.counts_reset()
    gate = helpers.hang_when(server, lambda: server.total_requests > 60)
    gate.seconds = 600.0
    done = kernel.run(own(kernel, server, cell), interrupt_when=lambda: gate.hits >= 2)
    server.change(faults=[])
    for connection in list(server.connections):
        server.loop.call_soon_threadsafe(connection.transport.abort)
    helpers.until(lambda: server.in_flight == 0 and value_of(kernel, THREADS) == 0, 60)
    server.counts_reset()
    return done


@helpers.needs_posix
def test_an_interrupted_notebook_goes_on(new_kernel, small):
    """First in the loop over results; then in the command, whose cell has --resume, on a cluster without its files."""
    kernel = new_kernel()
    bring_in(kernel, small)
    scan, whole = WITHOUT_SPARK.index(SCAN), WITHOUT_SPARK.index(WHOLE)
    run_all(kernel, small, WITHOUT_SPARK[:scan])
    assert interrupted(kernel, small, SCAN).error == "KeyboardInterrupt: "
    done = value_of(kernel, "list(results)")
    assert 0 < len(done) < 12
    run_all(kernel, small, WITHOUT_SPARK[scan:whole])
    assert [asked_for(small, name) for name in done] == [0] * len(done)
    cell = interrupted(kernel, small, WHOLE)
    assert cell.error == "KeyboardInterrupt: "  # so that "Run all" stops
    [checkpoint] = kernel.folder.glob("volume/**/*checkpoint*.json")
    done = saved_users(checkpoint)
    assert 0 < len(done) < 12
    assert f"{len(done)} of 12 users saved in " in cell.err
    for folder in kernel.folder.glob("inventory*"):
        shutil.rmtree(folder)
    run_all(kernel, small, WITHOUT_SPARK[whole:])
    assert [asked_for(small, name) for name in done] == [0] * len(done)
    assert_inventory(kernel, small)


def test_without_output_the_csv_is_the_cells_output(new_kernel, small):
    """And %run leaves the kernel alive, also with pyspark there, because of which a process ends without waiting."""
    kernel = new_kernel()
    bring_in(kernel, small)
    run_all(kernel, small, [block for block in WITHOUT_SPARK if "DATABRICKS_TOKEN" in block])
    name = small.user_names[0]
    cell = kernel.run(f"user_files([{name!r}, '--quiet'])")
    assert (cell.out.encode(), cell.result) == (true_csv(small, [name]), "0")
    assert kernel.console.read_bytes().count(b"username") == 0
    assert kernel.run("user_list(['--max-users', '1'])").out.startswith("username,display_name,active,user_id")
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


@pytest.mark.parametrize("wrapper", [None, "/databricks/python_shell/scripts/db_ipykernel_launcher.py"])
def test_a_script_task_does_its_work_and_fails_by_an_exception_alone(new_kernel, small, wrapper):
    kernel, login = new_kernel(), ("--workspace-url", small.url, "--token", small.settings.token)
    if wrapper:
        kernel.run(f"__file__ = {wrapper!r}")

    def task(script, *words):
        return kernel.run(TASK.format(path=str(ROOT / script), words=[*words, *login]))

    scan = (SCANNER, "--users-file", "users.csv", "-o", "out.csv")
    refused = task(*scan)
    assert (refused.error[:24], "users.csv" in refused.err) == ("RuntimeError: exit code ", True)
    listed = task(USER_LIST, "-o", "users.csv")
    assert (listed.error, "12 users" in listed.err) == ("", True)
    small.change(faults=[Fault("403", path=f"/Users/{small.user_names[1]}")])
    assert task(*scan).error.startswith("RuntimeError: exit code 1: ")
    small.change(faults=[])
    assert task(*scan, "--resume").error == ""
    assert (kernel.folder / "out.csv").read_bytes() == true_csv(small)


def test_pasted_the_scripts_and_the_blocks_do_not_take_names_from_each_other():
    assert assigned(TEXTS[SCANNER]) & assigned(TEXTS[USER_LIST]) == {"main"}
    blocks = assigned("\n".join(REST))
    assert {"results", "names"} < blocks
    assert blocks & (assigned(TEXTS[SCANNER]) | assigned(TEXTS[USER_LIST])) == set()


def test_star_imports_replace_no_name_of_the_scripts():
    numpy, functions = pytest.importorskip("numpy"), pytest.importorskip("pyspark.sql.functions")
    for text in TEXTS.values():
        imports = [node for node in ast.parse(text).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        imported = {alias.asname or alias.name.partition(".")[0] for node in imports for alias in node.names}
        assert (assigned(text) | imported) & {*numpy.__all__, *functions.__all__} == set()


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
