"""Logins without a token of their own, by the real databricks-sdk: renewed in time, and after a refusal.

The fake workspace issues the tokens. They say that they live LIFETIME seconds, and die DIES_AFTER seconds after they
were made: as databricks-sdk renews a token 40 s before its end, that is an hour's life within two seconds.
"""

import json
import os
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("databricks.sdk.core")

import databricks_user_files_simple as scanner
import databricks_user_list
from databricks_user_files_simple import scan_users
from databricks_user_list import DatabricksClient, InventoryError, load_databricks_config
from tests.fake import TOKEN_URL, FakeDatabricks, Fault
from tests.helpers import (
    ROOT,
    SCANNER,
    USER_LIST,
    Result,
    block_imports,
    saved_users,
    set_constants,
    true_csv,
    write_users,
)

SECRET = "dose%(host)s-50%-0123456789"
LIFETIME, DIES_AFTER = 41.0, 2.0
LOGIN = {"clients": {"the-client": SECRET}, "token": "dapi-nobody-has-this"}
SHORT_LIVED = {**LOGIN, "token_lifetime": LIFETIME, "token_dies_early": LIFETIME - DIES_AFTER}
needs_posix = pytest.mark.skipif(os.name == "nt", reason="the stand-in for the CLI is a script with #!")


@pytest.fixture
def profiles(tmp_path):
    """Writes the profile file."""
    path = tmp_path / "home" / ".databrickscfg"
    return lambda text: path.write_text(text, encoding="utf-8")


@pytest.fixture
def work(profiles):
    """work(server): a profile `work` with client id and secret, in the form of the documentation."""
    return lambda server, secret=SECRET: profiles(
        f"; a service principal\n[DEFAULT]\nhost  = https://default.invalid\ntoken = dapi-of-default\n\n[work]\n"
        f"host          = {server.url}/?o=1\nclient_id     = the-client\nclient_secret = {secret}\n")  # fmt: skip


@pytest.fixture
def run(capsys):
    """run(script, *words): its main() in this process, which imports databricks-sdk once."""

    def call(script, *words):
        code = {SCANNER: scanner, USER_LIST: databricks_user_list}[script].main([*map(str, words)])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def often(monkeypatch):
    """Asks databricks-sdk as often in an hour's life of two seconds as else in an hour."""
    set_constants(monkeypatch, HELD_SECONDS=0.01, FAILED_SECONDS=0.0)


def tokens_asked_for(server):
    return server.requests["oidc", TOKEN_URL]


def when(server, condition, action):
    """Do something once, before the first request at which the condition is true."""
    once, watcher = threading.Lock(), Fault("500")

    def applies(*_):
        if condition() and once.acquire(blocking=False):
            action()
        return False

    watcher.applies = applies
    server.change(faults=[watcher])


def message_of(*arguments, **keywords):
    with pytest.raises(InventoryError) as caught:
        load_databricks_config(*arguments, **keywords)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert SECRET not in text
    return text


# A run that outlives its tokens


def test_tokens_are_renewed_before_they_expire(work, often, tmp_path, run):
    with FakeDatabricks(users=20, shape="bench", directories=20, latency=0.02, **SHORT_LIVED) as server:
        work(server)
        write_users(server.user_names)
        done = run(SCANNER, "-p", "work", "--users-file", "users.txt", "-o", "out.csv", "--threads", "3", "--debug")
        assert done.code == 0
        assert Path("out.csv").read_bytes() == true_csv(server)
        assert tokens_asked_for(server) >= 3
        assert server.statuses[401] == 0
        shown = done.err
    assert shown.splitlines()[0] == (f"Workspace {server.url}/?o=1, login from profile work in "
                                     f"{tmp_path / 'home' / '.databrickscfg'} (OAuth, oauth-m2m)")  # fmt: skip
    assert SECRET not in shown
    assert not [token for token in server.issued if token in shown]


def test_a_token_that_is_refused_is_renewed_once_without_an_attempt(work):
    with FakeDatabricks(users=20, shape="small", latency=0.005, **LOGIN) as server:
        work(server)
        client = DatabricksClient(load_databricks_config("work"), 4)
        when(server, lambda: server.total_requests > 100, server.revoke)
        results = list(scan_users(server.user_names, client.config, 4, client=client))
        assert {result.username: result.file_count for result in results} == {
            name: server.truth(name).file_count for name in server.user_names}  # fmt: skip
        assert len(server.issued) == 2
        assert 1 <= server.statuses[401] <= 4
        assert client.statistics["retries"] == 0


def test_a_login_that_is_taken_away_stops_the_run_and_resume_goes_on(work, run):
    with FakeDatabricks(users=20, shape="small", latency=0.005, **LOGIN) as server:
        work(server)
        write_users(server.user_names)
        words = ("-p", "work", "--users-file", "users.txt", "-o", "out.csv", "--threads", "4")
        when(server, lambda: server.total_requests > 150, lambda: (server.revoke(), server.change(clients={})))
        stopped = run(SCANNER, *words)
        assert stopped.code == 2
        assert "invalid_client" in stopped.err
        assert "Traceback" not in stopped.err
        assert SECRET not in stopped.out + stopped.err
        saved = saved_users()
        assert saved
        assert not Path("out.csv").exists()
        server.change(**LOGIN)
        assert run(SCANNER, *words, "--resume").code == 0
        assert Path("out.csv").read_bytes() == true_csv(server)


def test_a_new_token_that_is_refused_as_well_ends_the_run(work):
    with FakeDatabricks(users=5, shape="small", **{**LOGIN, "token_lifetime": 60, "token_dies_early": 60}) as server:
        work(server)
        with pytest.raises(InventoryError, match="does not accept the token of profile work"):
            list(scan_users(server.user_names, load_databricks_config("work")))
        assert len(server.issued) == 2


@pytest.mark.parametrize(("kind", "path"), [
    ("503", TOKEN_URL), ("429", TOKEN_URL), ("html", TOKEN_URL), ("truncated", TOKEN_URL), ("reset", None),
])  # fmt: skip
def test_a_token_endpoint_that_fails_for_a_while_loses_nothing(work, often, clock, kind, path):
    with FakeDatabricks(users=8, shape="small", **LOGIN) as server:
        work(server)
        client = DatabricksClient(load_databricks_config("work"), 4, clock=clock, sleep=clock.sleep)
        times = 12 if path else 3  # the SDK waits a second itself
        fault = Fault(kind, api="oidc", path=path, times=times)
        when(server, lambda: server.total_requests > 60, lambda: (server.revoke(), server.change(faults=[fault])))
        results = list(scan_users(server.user_names, client.config, 4, client=client))
        assert fault.hits == times
        assert {result.username: (result.status, result.file_count) for result in results} == {
            name: ("success" if server.truth(name).file_count else "empty", server.truth(name).file_count)
            for name in server.user_names}  # fmt: skip


def test_a_token_endpoint_that_stays_away_ends_the_run_after_a_quarter_of_an_hour(work, often, clock):
    with FakeDatabricks(users=8, shape="small", **LOGIN) as server:
        work(server)
        client = DatabricksClient(load_databricks_config("work"), 4, clock=clock, sleep=clock.sleep)
        page = f"<html><title>we had {SECRET}</title></html>"
        fault, began = Fault("body", path=TOKEN_URL, status=500, body=page, content_type="text/html"), clock()
        when(server, lambda: server.total_requests > 60, lambda: (server.revoke(), server.change(faults=[fault])))
        with pytest.raises(InventoryError, match="no success for 15 minutes") as caught:
            list(scan_users(server.user_names, client.config, 4, client=client))
        assert clock() - began > 15 * 60
        assert "we had ***" in str(caught.value)


def test_a_token_endpoint_that_never_answers_is_given_up(work, often, monkeypatch):
    set_constants(monkeypatch, LOGIN_SECONDS=0.5)
    with FakeDatabricks(users=1, **{**LOGIN, "token_lifetime": 30}) as server:  # the SDK wants a new one each time
        work(server)
        config = load_databricks_config("work")
        server.change(faults=[Fault("hang", path=TOKEN_URL, seconds=60, times=2)])
        time.sleep(0.02)
        began = time.monotonic()
        assert config.current_token() == config.token
        with pytest.raises(databricks_user_list.DatabricksError, match="no answer within") as caught:
            config.current_token(config.token)
        assert caught.value.kind == "connection"
        assert config.current_token() != config.token
        assert time.monotonic() - began < 5


def test_while_the_token_endpoint_fails_the_old_token_serves(work, often):
    with FakeDatabricks(users=1, **{**LOGIN, "token_lifetime": 30}) as server:  # the SDK wants a new one each time
        work(server)
        config = load_databricks_config("work")
        server.change(faults=[Fault("503", path=TOKEN_URL)])
        time.sleep(0.02)
        assert config.current_token() == config.token
        assert server.counts.faults["503"]
        with pytest.raises(databricks_user_list.DatabricksError) as caught:
            config.current_token(refused=config.token)
        assert caught.value.kind == "connection"


# One token for many threads


def test_many_threads_ask_for_one_token(work):
    with FakeDatabricks(users=1, latency=0.05, **{**LOGIN, "token_lifetime": 30}) as server:
        work(server)
        config = load_databricks_config("work")
        with ThreadPoolExecutor(16) as pool:
            assert set(pool.map(lambda _: config.current_token(), range(1000))) == {config.token}
            assert tokens_asked_for(server) == 1
            second = set(pool.map(lambda _: config.current_token(config.token), range(100)))
        assert len(second) == 1
        assert tokens_asked_for(server) == 2


# Which login it is


def test_a_profile_takes_nothing_from_the_environment_or_default(profiles, monkeypatch):
    with FakeDatabricks(users=1, **LOGIN) as server, FakeDatabricks(users=1) as other:
        profiles(
            f"[DEFAULT]\nhost={other.url}\ntoken=dapi-of-default\naccount_id=1\n[work]\nhost={server.url}\n"
            f"client_id=the-client\nclient_secret={SECRET}\n[__settings__]\ndefault_profile = work\n"
        )
        for name, value in {
            "TOKEN": "dapi-of-environment", "HOST": other.url, "CLIENT_ID": "another", "CLIENT_SECRET": "another",
            "AUTH_TYPE": "pat", "USERNAME": "u", "PASSWORD": "p", "ACCOUNT_ID": "2", "GROUP_ID": "3",
            "DISCOVERY_URL": f"{other.url}/oidc/.well-known/oauth-authorization-server", "CLOUD": "AZURE",
        }.items():  # fmt: skip
            monkeypatch.setenv(f"DATABRICKS_{name}", value)
        monkeypatch.setenv("ARM_CLIENT_ID", "azure")
        for profile in (None, "work"):
            config = load_databricks_config(profile)
            assert (config.host, config.token) == (server.url, list(server.issued)[-1])
        assert other.total_requests == 0


def test_a_profile_with_a_token_needs_no_sdk_unless_it_says_otherwise(profiles):
    with FakeDatabricks(users=1, **LOGIN) as server:
        m2m = f"client_id=the-client\nclient_secret={SECRET}\ntoken=dapi-old\nhost={server.url}\n"
        profiles(f"[a]\n{m2m}[b]\n{m2m}auth_type=oauth-m2m\n[c]\n{m2m}auth_type=pat\n")
        assert load_databricks_config("a").token == load_databricks_config("c").token == "dapi-old"
        assert tokens_asked_for(server) == 0
        assert load_databricks_config("b").token in server.issued


def test_the_environment_without_a_token(monkeypatch, run):
    with FakeDatabricks(users=3, **LOGIN) as server:
        variables = {"DATABRICKS_HOST": server.url, "DATABRICKS_CLIENT_ID": "the-client",
                     "DATABRICKS_CLIENT_SECRET": f'"{SECRET}"'}  # fmt: skip
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        done = run(USER_LIST, "-o", "users.csv")
        assert (done.code, done.err.splitlines()[0]) == (
            0, f"Workspace {server.url}, login from environment (OAuth, oauth-m2m)")  # fmt: skip


def test_a_secret_goes_to_its_own_host_only(work, monkeypatch):
    with FakeDatabricks(users=1, **LOGIN) as server, FakeDatabricks(users=1, **LOGIN) as other:
        work(server)
        assert other.url in message_of("work", other.url)
        Path(os.environ["DATABRICKS_CONFIG_FILE"]).unlink()
        for name, value in {"HOST": server.url, "CLIENT_ID": "the-client", "CLIENT_SECRET": SECRET}.items():
            monkeypatch.setenv(f"DATABRICKS_{name}", value)
        assert "no login found" in message_of(workspace_url=other.url)
        assert (server.total_requests, other.total_requests) == (0, 0)


def test_a_refused_secret_is_an_error_of_a_line(work, run):
    with FakeDatabricks(users=1, **LOGIN) as server:
        work(server, SECRET + "-wrong")
        for words in ((), ("--debug",)):
            done = run(SCANNER, "a", "-p", "work", *words)
            assert (done.code, done.out) == (2, "")
            assert "error: no token from profile work in " in done.err
            assert "invalid_client: Client authentication failed; can " in done.err
            assert SECRET not in done.err
            assert words or len(done.err.splitlines()) == 1


def test_a_host_that_does_not_answer_is_an_error_at_once(work, run):
    with FakeDatabricks(users=1, **LOGIN, faults=[Fault("reset")]) as server:
        work(server)
        began = time.monotonic()
        done = run(SCANNER, "a", "-p", "work")
        assert (done.code, len(done.err.splitlines())) == (2, 1)
        assert f"can {server.url} be reached" in done.err
        assert time.monotonic() - began < 8


def test_without_the_sdk_a_line_says_how_to_install_it(work, command, tmp_path):
    blocked = {"PYTHONPATH": str(block_imports(tmp_path / "blocked", "databricks"))}
    with FakeDatabricks(users=3, shape="small", **LOGIN) as server:
        work(server)
        done = command(SCANNER, "a", "-p", "work", env=blocked)
        assert (done.code, len(done.err.splitlines())) == (2, 1)
        assert "pip install databricks-sdk" in done.err
        with_token = {"DATABRICKS_HOST": server.url, "DATABRICKS_TOKEN": LOGIN["token"],
                      "DATABRICKS_CONFIG_FILE": "none"}  # fmt: skip
        assert command(SCANNER, *server.user_names, env=blocked | with_token).code == 0


# The profiles that there are

PROFILES = f"""; The profile defined in the DEFAULT section is to be used as a fallback when no profile is explicitly specified.
[DEFAULT]

# `databricks configure --token`
[pat]
host  = https://p.cloud.databricks.com
token = {SECRET}

; `databricks auth login`
[u2m]
host         = https://u.cloud.databricks.com
account_id   = 00000000-0000-0000-0000-000000000001
workspace_id = 1234567890
auth_type    = databricks-cli

[m2m]
host          = https://m.cloud.databricks.com
client_id     = 00000000-0000-0000-0000-000000000002
client_secret = {SECRET}

[azure-sp]
host                = https://adb-1.2.azuredatabricks.net
azure_tenant_id     = t
azure_client_id     = c
azure_client_secret = {SECRET}

[azure]
host = https://adb-3.4.azuredatabricks.net

[google]
host               = https://1.2.gcp.databricks.com
google_credentials = {{"private_key": "{SECRET}"}}

[old]
host      = https://o.cloud.databricks.com
auth_type = pat
token     = {SECRET}
client_secret = {SECRET}

[__settings__]
default_profile = u2m
auth_storage    = secure
"""  # noqa: E501


def test_list_profiles_tells_the_kind_of_login_and_no_secret(profiles, capsys):
    profiles(PROFILES)
    assert databricks_user_list.main(["--list-profiles"]) == 0
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err
    assert [line.replace(" (default)", "").split() for line in shown.out.splitlines()] == [
        ["pat", "https://p.cloud.databricks.com", "token"],
        ["u2m", "https://u.cloud.databricks.com", "databricks-cli"],
        ["m2m", "https://m.cloud.databricks.com", "oauth-m2m"],
        ["azure-sp", "https://adb-1.2.azuredatabricks.net", "azure-client-secret"],
        ["azure", "https://adb-3.4.azuredatabricks.net", "azure-cli"],
        ["google", "https://1.2.gcp.databricks.com", "google-credentials"],
        ["old", "https://o.cloud.databricks.com", "token"],
    ]
    assert "u2m (default)" in shown.out


# The Databricks CLI

CLI = """
import json, sys, urllib.error, urllib.parse, urllib.request
from datetime import datetime, timedelta
words = sys.argv[1:]
with open({calls!r}, "a") as calls:
    print(json.dumps(words), file=calls)
if words[0] == "version":
    print(json.dumps({{"Version": "{version}", **dict(zip(("Major", "Minor", "Patch"), {numbers}))}}))
    raise SystemExit
form = {{"grant_type": "refresh_token", "client_id": "databricks-cli", "refresh_token": {refresh_token!r}}}
try:
    with urllib.request.urlopen({url!r}, urllib.parse.urlencode(form).encode()) as answer:
        token = json.load(answer)
except urllib.error.HTTPError:
    print("Error: A new access token could not be retrieved because the refresh token is invalid. To reauthenticate, "
          "run `databricks auth login --profile work`", file=sys.stderr)
    raise SystemExit(1)
expiry = datetime.now().astimezone() + timedelta(seconds=token["expires_in"])
print(json.dumps({{"access_token": token["access_token"], "token_type": "Bearer", "expiry": expiry.isoformat()}}))
"""


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """cli(server, version): a `databricks` on the PATH that does as the real one; what it was called with."""

    def install(server, version="0.296.0", size=2**20):
        folder, calls = tmp_path / "bin", tmp_path / "calls"
        folder.mkdir(exist_ok=True)
        text = CLI.format(calls=str(calls), version=version, numbers=tuple(map(int, version.split("."))),
                          url=server.url + TOKEN_URL, refresh_token="the-refresh-token")  # fmt: skip
        text = f"#!{sys.executable}\n{text}\n#"
        (folder / "databricks").write_text(text + "x" * (size - len(text)))  # the SDK takes a smaller one for the old
        (folder / "databricks").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return lambda: [json.loads(line) for line in calls.read_text().splitlines() if "version" not in line]

    return install


@needs_posix
@pytest.mark.parametrize(("version", "words"), [
    ("0.296.0", ["--profile", "work", "--force-refresh"]), ("0.230.0", ["--profile", "work"]), ("0.205.0", None),
])  # fmt: skip
def test_the_login_of_the_databricks_cli(profiles, cli, run, monkeypatch, version, words):
    with FakeDatabricks(users=20, shape="small", refresh_token="the-refresh-token", token="x", latency=0.005) as server:
        calls = cli(server, version)
        profiles(f"[work]\nhost      = {server.url}\nauth_type = databricks-cli\n")
        write_users(server.user_names)
        when(server, lambda: server.total_requests > 100, server.revoke)
        monkeypatch.setenv("DATABRICKS_CONFIG_PROFILE", "another")
        monkeypatch.setenv("DATABRICKS_TOKEN", "dapi-of-environment")
        done = run(SCANNER, "-p", "work", "--users-file", "users.txt", "-o", "out.csv")
        assert done.code == 0, done
        assert "(OAuth, databricks-cli)" in done.err.splitlines()[0]
        assert Path("out.csv").read_bytes() == true_csv(server)
        assert calls() == [["auth", "token", *(words or ["--host", server.url])]] * 2
        assert len(done.err.splitlines()) == len(set(done.err.splitlines()))


@needs_posix
@pytest.mark.parametrize("case", ["logged out", "no CLI", "the old CLI"])
def test_a_cli_that_has_no_login_is_an_error_with_its_remedy(profiles, cli, run, tmp_path, case):
    with FakeDatabricks(users=1, refresh_token="another") as server:
        cli(server, size=2**20 if case != "the old CLI" else 0)
        if case == "no CLI":
            (tmp_path / "bin" / "databricks").unlink()
        profiles(f"[work]\nhost      = {server.url}\nauth_type = databricks-cli\n")
        done = run(SCANNER, "a", "-p", "work")
        assert (done.code, len(done.err.splitlines())) == (2, 1)
        assert "databricks auth login" in done.err


# A notebook

NATIVE = """
def init_runtime_native_auth():
    return {host!r}, lambda: {{"Authorization": "Bearer " + open({token!r}).read()}}
"""
REPL = """
class Context:
    workspaceUrl = {name!r}
    apiToken = property(lambda self: open({token!r}).read())
def get_context():
    return Context()
"""
SCAN_IN_NOTEBOOK = """
import sys
sys.path.insert(0, {root!r})
from databricks_user_files_simple import scan_users
from databricks_user_list import load_databricks_config
config = load_databricks_config()
print(config.host, config.source, config.current_token())
for result in scan_users({names!r}, config) if {scan} else ():
    print(result.username, result.file_count)
"""


def notebook(tmp_path, server, **modules):
    """A process as a notebook's: with the package dbruntime, whose modules these are."""
    folder, token = tmp_path / "runtime" / "dbruntime", tmp_path / "token"
    folder.mkdir(parents=True, exist_ok=True)
    token.write_text(server.settings.token)
    (folder / "__init__.py").write_text(
        "class UserNamespaceInitializer:\n"
        "    getOrCreate = classmethod(lambda cls: cls())\n"
        "    get_namespace_globals = lambda self: {}\n")  # fmt: skip
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(
            text.format(host=server.url, name=server.url.partition("://")[2], token=str(token))
        )
    program = SCAN_IN_NOTEBOOK.format(root=str(ROOT), names=server.user_names, scan="native" in str(modules))
    environment = {**os.environ, "DATABRICKS_RUNTIME_VERSION": "15.4", "PYTHONPATH": str(folder.parent)}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.usefixtures("processes")
def test_a_notebooks_own_login(tmp_path):
    with FakeDatabricks(users=3, shape="small") as server:
        done = notebook(tmp_path, server, sdk_credential_provider=NATIVE)
        truth = [f"{name} {server.truth(name).file_count}" for name in server.user_names]
        first, *rows = done.stdout.splitlines()
        assert first == f"{server.url} notebook (OAuth, runtime) {server.settings.token}", done.stderr
        assert sorted(rows) == sorted(truth)


@pytest.mark.usefixtures("processes")
def test_a_notebook_of_a_runtime_without_that_module(tmp_path):
    """Its host has TLS, which the fake workspace does not: nothing is asked of it."""
    with FakeDatabricks(users=1) as server:
        done = notebook(tmp_path, server, databricks_repl_context=REPL)
        where = server.url.replace("http:", "https:")
        assert done.stdout == f"{where} notebook (OAuth, runtime) {server.settings.token}\n", done.stderr


@pytest.mark.usefixtures("processes")
def test_a_notebook_beside_which_something_is_configured(tmp_path, work, monkeypatch):
    with FakeDatabricks(users=3, shape="small", **LOGIN) as server, FakeDatabricks() as other:
        work(server)
        monkeypatch.setenv("DATABRICKS_CONFIG_PROFILE", "work")
        done = notebook(tmp_path, other, sdk_credential_provider=NATIVE)
        assert done.stdout.startswith(f"{server.url} profile work in "), done.stderr


OLD_SDK = {
    "__init__": "",
    "version": "__version__ = '0.1.6'",
    "core": "class Config:\n    attributes = list\n    def __init__(self, **_):\n        raise ValueError\n",
}


def test_a_notebook_whose_sdk_is_too_old_says_how_to_get_a_newer_one(tmp_path):
    folder = tmp_path / "runtime" / "databricks" / "sdk"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    for name, text in OLD_SDK.items():
        (folder / f"{name}.py").write_text(text)
    with FakeDatabricks(users=1) as server:
        done = notebook(tmp_path, server)
    *_, last = done.stderr.splitlines()
    assert last.endswith("InventoryError: databricks-sdk 0.1.6 is too old for the notebook's own login: run "
                         "`%pip install --upgrade databricks-sdk`, then `dbutils.library.restartPython()`")  # fmt: skip


def test_a_process_beside_a_notebook_has_no_login(monkeypatch):
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "15.4")
    assert "no login found" in message_of()


def test_a_notebooks_login_that_hangs_later_is_given_up_and_the_old_token_serves(monkeypatch, often):
    hangs, ended, threads = threading.Event(), threading.Event(), []

    def authenticate():
        threads.append(threading.current_thread())
        if hangs.is_set():
            ended.wait(20)
        return {"Authorization": "Bearer of-the-notebook"}

    runtime = types.ModuleType("databricks.sdk.runtime")
    for kind in ("native_unified", "repl_auth", "legacy_auth"):
        setattr(runtime, f"init_runtime_{kind}", None)
    runtime.init_runtime_native_auth = lambda: (server.url, authenticate)
    monkeypatch.setitem(sys.modules, "databricks.sdk.runtime", runtime)
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "15.4")
    with FakeDatabricks(users=1) as server:  # asked by the SDK what it is
        config = load_databricks_config()
        assert (config.host, set(threads)) == (server.url, {threading.current_thread()})
        set_constants(monkeypatch, LOGIN_SECONDS=0.3)
        hangs.set()
        time.sleep(0.02)
        assert config.current_token() == "of-the-notebook"
        with pytest.raises(databricks_user_list.DatabricksError, match="no answer within"):
            config.current_token("of-the-notebook")
        ended.set()
