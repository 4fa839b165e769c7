"""Which workspace and which login are taken, and logins by the real databricks-sdk.

The fake workspace issues the tokens. A SHORT_LIVED one says that it lives 41 s, and dies after 1.5 s: as databricks-sdk
renews a token 40 s before its end, that is an hour's life within two seconds.
"""

import ast
import base64
import builtins
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
from concurrent import futures
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings

pytest.importorskip("databricks.sdk.core")

from databricks_user_files_simple import scan_users, user_files

from databricks_user_list import (  # isort: skip
    NOT_USED, DatabricksClient, DatabricksError, InventoryError, load_databricks_config, read_workspace_url,
)  # fmt: skip
from tests.fake import TOKEN_URL, FakeDatabricks, Fault

from tests.helpers import (  # isort: skip
    NAME, ROOT, SCANNER, USER_LIST, assert_all_true, assert_kept, needs_posix, saved_users, set_constants, true_csv,
    write_users,
)  # fmt: skip
from tests.strategies import bytes_of

SECRET = "dose%(host)s-50%-0123456789"
A, B, C = "https://a.cloud.databricks.com", "https://b.cloud.databricks.com", "https://c.cloud.databricks.com"
LOGIN = {"clients": {"the-client": SECRET}, "token": "dapi-nobody-has-this"}
SHORT_LIVED = {**LOGIN, "token_lifetime": 41.0, "token_dies_early": 39.5}
ALWAYS_NEW = {**LOGIN, "token_lifetime": 30}  # the SDK wants a new one each time
ANY = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture
def profiles(tmp_path):
    """Writes the profile file; its path."""
    path = tmp_path / "home" / ".databrickscfg"
    return lambda text: (path.write_bytes(text if isinstance(text, bytes) else text.encode()), path)[1]


@pytest.fixture
def environment(monkeypatch):
    """Sets variables without their DATABRICKS_."""
    return lambda **values: [monkeypatch.setenv(f"DATABRICKS_{name}", value) for name, value in values.items()]


@pytest.fixture
def work(profiles):
    """work(server): a profile `work` with client id and secret, in the form of the documentation."""
    return lambda server: profiles(
        f"; a service principal\n[DEFAULT]\nhost  = https://default.invalid\ntoken = dapi-of-default\n\n[work]\n"
        f"host          = {server.url}/?o=1\nclient_id     = the-client\nclient_secret = {SECRET}\n")  # fmt: skip


@pytest.fixture
def sdk_clock(monkeypatch, clock):
    """Between its attempts databricks-sdk waits by the fake clock."""
    for name, call in (("time", clock), ("sleep", clock.sleep)):
        monkeypatch.setattr(f"databricks.sdk.clock.RealClock.{name}", lambda _, *words, call=call: call(*words))


def login(*arguments, **keywords):
    config = load_databricks_config(*arguments, **keywords)
    return config.host, config.token


def message_of(*arguments, **keywords):
    with pytest.raises(InventoryError) as caught:
        load_databricks_config(*arguments, **keywords)
    text = str(caught.value)
    assert len(text.splitlines()) <= 2
    assert SECRET not in text
    return text


# Precedence

ENVIRONMENT = {"HOST": C, "TOKEN": "of-c"}
IN_A, IN_B = (f"[DEFAULT]\nhost={host}\ntoken=of-{name}\n" for host, name in ((A, "a"), (B, "b")))
MANY = IN_B + "".join(f"[{name}]\nhost={A}\ntoken=of-{name}\n" for name in "xyz")
FROM_Z = MANY + "[__settings__]\ndefault_profile = z\n"


@pytest.mark.parametrize(("arguments", "variables", "text", "expected"), [
    ((None, A, "of-a"), ENVIRONMENT, IN_B, (A, "of-a", "command line")),
    ((), ENVIRONMENT, IN_B, (B, "of-b", "profile DEFAULT in ")),
    ((), ENVIRONMENT, None, (C, "of-c", "environment")),
    (("x",), {"CONFIG_PROFILE": "y"}, FROM_Z, (A, "of-x", "profile x in ")),
    ((), {"CONFIG_PROFILE": "y", "RUNTIME_VERSION": "15.4"}, FROM_Z, (A, "of-y", "profile y in ")),  # in a notebook
    ((), {"CONFIG_PROFILE": "", "HOST": "", "TOKEN": ""}, MANY, (B, "of-b", "profile DEFAULT in ")),
    ((), {"HOST": B, "WORKSPACE_URL": A, "TOKEN": "t"}, None, (A, "t", "environment")),
    ((), ENVIRONMENT, "[DEFAULT]\n", (C, "of-c", "environment")),  # as the CLI begins a new file
    ((None, B), ENVIRONMENT | {"HOST": B}, f"[DEFAULT]\nhost={A}\ntoken=t\n", (B, "of-c", "environment")),
    ((None, "b.cloud.databricks.com/browse?o=7"), {}, IN_B, (B, "of-b", "profile DEFAULT in ")),
    (("x",), {}, MANY + "[DEFAULT]\nhost=twice\n[z ]\n", (A, "of-x", "profile x in ")),
    ((), {}, MANY.encode("utf-16"), (B, "of-b", "profile DEFAULT in ")),  # as PowerShell writes it
])  # fmt: skip
def test_which_login_is_taken(profiles, environment, arguments, variables, text, expected):
    if text is not None:
        profiles(text)
    environment(**variables)
    config = load_databricks_config(*arguments)
    assert (config.host, config.token) == expected[:2]
    assert config.source.startswith(expected[2])


def test_the_profile_file_is_at_home_or_where_a_variable_says(tmp_path, environment, monkeypatch):
    environment(CONFIG_FILE="~/mine.cfg", HOST=A, TOKEN="of-a")
    (tmp_path / "home" / "mine.cfg").write_text(IN_B)
    (tmp_path / "home" / ".databrickscfg").write_text(IN_B.replace("of-b", "at-home"))
    assert login() == (B, "of-b")
    monkeypatch.delenv("DATABRICKS_CONFIG_FILE")
    assert login() == (B, "at-home")
    monkeypatch.delenv("HOME")  # as the user of a container, who is not in its /etc/passwd
    monkeypatch.setattr(pytest.importorskip("pwd"), "getpwuid", {}.__getitem__)
    assert login() == (A, "of-a")


@pytest.mark.parametrize(("text", "host", "arguments", "warned"), [
    (IN_A, B, (), f" serves, for {A}, not {B} of the environment"), (IN_A, B, ("DEFAULT",), ""), (IN_A, A, (), ""),
    (IN_A, B, (None, A), ""), (IN_A, f"no url {SECRET}", (), ""), (None, A, ("stage",), "--profile is not used"),
])  # fmt: skip
def test_a_login_that_few_would_expect_is_warned_about(profiles, environment, caplog, text, host, arguments, warned):
    if text:
        profiles(text)
    environment(HOST=host, TOKEN="of-a")
    assert login(*arguments) == (A, "of-a")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * bool(warned)
    assert warned in caplog.text
    assert SECRET not in caplog.text


# What a profile file holds


@pytest.mark.parametrize(("text", "token"), [
    (b"host = URL # of the test\ntoken=t-1\t; mine\n", "t-1"),
    (b"# b\xfcro, \xe9t\xe9 \xff\xfe\x00\nhost = URL\nnote = caf\xe9\ntoken = t-1\n", "t-1"),
    (b"host = ' URL/ '\ntoken = \"t-1\" # quoted\n", "t-1"),
    (b"  host = URL\n  token = t-1\n", "t-1"),
    (b"[__settings__]\ndefault_profile = p\n[ p ]\nhost = URL\ntoken = t-1\n", "t-1"),
    *((f"host = URL\ntoken = {token}\n".encode(), token) for token in ("50%", "%(host)s", "%%", "a#b", "a;b", "a=b:c")),
])  # fmt: skip
def test_a_profile_is_read_as_people_write_it_and_raw(profiles, text, token):
    profiles(b"\xef\xbb\xbf[DEFAULT]\n" + text.replace(b"URL", A.encode()))
    assert login() == (A, token)


def test_quotes_around_values_are_dropped(profiles, environment, monkeypatch):
    path = profiles(f"[my profile]\nhost={B}\ntoken=of-b\n")
    environment(CONFIG_FILE=f'"{path}"', HOST=f"'{A}/?o=12'", TOKEN='"of-a"\r', CONFIG_PROFILE="'my profile'")
    assert login() == login('"my profile"', f"'{B}'") == (B, "of-b")
    assert login(None, f' "{A}"', "'t' ") == (A, "t")
    path.unlink()
    assert login() == (A, "of-a")


TWO = f"[DEFAULT]\nhost={A}\ntoken=of-default\n[x]\nhost={B}\nauth_type=pat\n[y]\ntoken=of-y\n"
GONE = f"[__settings__]\nhost={A}\ntoken=t\ndefault_profile=gone\n[prod]\nhost={A}\ntoken={SECRET}\n"


@pytest.mark.parametrize(("text", "profile", "variables", "begin", "end"), [
    (TWO, "x", {}, "profile x in ", " has no token; `databricks configure --profile x` asks for one"),
    (TWO, "y", {}, "profile y in ", " has no host"),
    (TWO, "stage", ENVIRONMENT, "--profile names no profile of ", "; it has: DEFAULT, x, y"),
    (GONE, None, ENVIRONMENT, "default_profile names no profile of ", "; it has: prod"),
    ("", None, {}, "no login found in ", "run `databricks configure`, or set DATABRICKS_HOST and DATABRICKS_TOKEN"),
    ("[DEFAULT]\n" + TWO[TWO.index("[x]") :], None, {}, "no login found: name a profile of ", "has: x, y"),
    ("", None, {"TOKEN": "t"}, "DATABRICKS_TOKEN is set, and no workspace that it is for", "or give --workspace-url"),
    (TWO + "[x]\ntoken=t\n", "x", {}, "profile x is there twice in ", ": take one of the two out"),
    ("[p]\nhost=https://127.0.0.1:1\nclient_id=1\nclient_secret=2\n", "p", {}, "no token from profile p in ",
     "oauth-m2m: the host does not say where its tokens are made; can https://127.0.0.1:1 be reached, and is this "
     "login still good (its secret, `databricks auth login`, `az login`)?"),
    (f"[p]\nhost={A}\nazure_use_msi=true\n", "p", {"CLI_PATH": "none"}, "no token from profile p in ",
     "databricks-sdk for Python has no azure_use_msi: `az login --identity`, and auth_type = azure-cli"),
    ("", None, {"RUNTIME_VERSION": "15.4"}, "no login found in ", "DATABRICKS_TOKEN"),  # beside a notebook
    ("", None, {"CONFIG_FILE": "x" * 300}, "no login found in ", "DATABRICKS_TOKEN"),  # no name, as a closed HOME
])  # fmt: skip
def test_a_profile_without_a_login_says_what_is_missing(
    profiles, environment, sdk_clock, text, profile, variables, begin, end
):
    profiles(text)
    environment(**variables)
    message = message_of(profile)
    assert message.startswith(begin)
    assert message.endswith(end)


@ANY
@example(f"[x]\ntoken={SECRET}\ntoken={SECRET}\n".encode())
@example(f"[x]\ntoken={SECRET}\n[x]\n".encode())
@example(f"host={A}\ntoken={SECRET}\n".encode())
@example(f"\ufeff[x]\ntoken={SECRET}\n".encode("utf-16-le"))
@given(bytes_of(
    b"[DEFAULT]\n", b"[__settings__]\n", b"host = https://a.net\n", b"\ntoken = " + SECRET.encode(), b"\n[p]\n",
    b"default_profile = p\n", b"auth_type = pat\n", b"host = "))  # fmt: skip
def test_whatever_is_in_a_profile_file_no_error_shows_it(tmp_path, data):
    """Nor what the error came from, which --debug shows."""
    path = Path(os.environ["DATABRICKS_CONFIG_FILE"])
    path.write_bytes(data)
    try:
        assert SECRET not in repr(load_databricks_config())
    except InventoryError as error:
        assert str(path) in str(error)
        assert SECRET not in "".join(traceback.format_exception(error))


# A token goes only where it belongs


@pytest.mark.parametrize(("arguments", "text", "variables", "expected"), [
    (("DEFAULT", None, "t"), IN_A, {}, None),  # --token alone belongs to no host
    ((None, None, "t"), "", ENVIRONMENT, None),
    ((None, C, "t"), IN_A, {"HOST": B, "TOKEN": "of-b"}, (C, "t")),
    ((None, C), IN_A, {"HOST": B, "TOKEN": "of-b"}, None),
    (("DEFAULT", C), IN_A, {"HOST": C, "TOKEN": "of-c"}, None),
    ((None, A), "", {"TOKEN": "t"}, (A, "t")),  # a token without a host goes to --workspace-url
    ((), "", {"TOKEN": "t"}, None),
    ((None, A + ":8443"), "", {"HOST": A, "TOKEN": "t"}, None),
    ((None, B), "", {"WORKSPACE_URL": A, "HOST": B, "TOKEN": "t"}, None),
    (("DEFAULT", C), IN_A.replace("token=of-a", f"client_id=1\nclient_secret={SECRET}"), {}, None),
    ((None, C), "", {"HOST": A, "CLIENT_ID": "1", "CLIENT_SECRET": SECRET}, None),
])  # fmt: skip
def test_a_token_or_secret_goes_to_its_own_host_only(profiles, environment, arguments, text, variables, expected):
    profiles(text)
    environment(**variables)
    if expected:
        assert login(*arguments) == expected
    else:
        assert not re.search(r"of-[abc]\b", message_of(*arguments))


# Hosts, and the workspace's number


@pytest.mark.parametrize(("text", "host"), [
    ("  adb-123.4.azuredatabricks.net \n", "https://adb-123.4.azuredatabricks.net"),
    ("https://adb-1.net/?o=123#job/4", "https://adb-1.net"),
    ("https://user:pw@adb-1.net/login.html?token=pw", "https://adb-1.net"),
    ("HTTPS://ADB-1.Net:8443/x", "https://adb-1.net:8443"),
    ("https://[2001:db8::1]:8443/x", "https://[2001:db8::1]:8443"),
    ("http://[::1]:8080", "http://[::1]:8080"),
])  # fmt: skip
def test_hosts_are_normalised(text, host):
    assert read_workspace_url(text, "--workspace-url")[0] == host


@pytest.mark.parametrize("text", [
    "", "https:///SECRET", "/SECRET", "ftp://SECRET", "https://a b.net", "user:SECRET@a b", "https://adb-1.net:SECRET",
    "https://adb-1.net:99999", "https://[::1", "https://[fe80::1%SECRET]", "https://a..net", "https://adb-1.net\\@SECRET",
    "https://adb-1.net\ntoken = SECRET", "http://adb-1.net/?SECRET", "http://[2001:db8::1]", "http://localhost.evil.net",
    "http://127.0.0.1.evil.net", "http://127.0.0.1@evil.net", "https://a.n\u00e9t", "https//a.net", "dapi0123456789ab",
])  # fmt: skip
def test_refused_hosts_are_not_shown(text):
    with pytest.raises(InventoryError, match=r"^--workspace-url ") as caught:
        read_workspace_url(text.replace("SECRET", SECRET), "--workspace-url")
    assert not re.search(rf"\n|dapi|{re.escape(SECRET)}", str(caught.value))


ONE = f"[p]\nhost = {A}/\ntoken = t\nworkspace_id = 111\n"


@pytest.mark.parametrize(("arguments", "profile", "variables", "number"), [
    (("p",), ONE, {"WORKSPACE_ID": "333"}, "111"),
    (("p", f"{A}/?o=222"), ONE, {}, "222"),
    (("p",), ONE.replace("com/", "com/?workspace_id=222"), {}, "222"),
    (("p",), ONE.replace("com/", "com/#job/7?o=222"), {}, "222"),
    (("p",), ONE.replace("111", "none"), {"WORKSPACE_ID": "333"}, ""),
    ((), "", {"HOST": A, "WORKSPACE_ID": "333"}, "333"),
    ((None, f"{A}?o=444"), "", {"HOST": f"{A}?o=222", "WORKSPACE_ID": "333"}, "444"),
    ((None, A), "", {"WORKSPACE_ID": "333"}, "333"),
    ((None, A, "t"), "", {"WORKSPACE_ID": "333"}, "333"),
    ((None, A, "t"), "", {"WORKSPACE_ID": "333", "HOST": B}, ""),  # which is that of B
    ((None, "adb-7.1.azuredatabricks.net/?o=71", "t"), "", {}, "71"),
    ((None, "adb-7.1.azuredatabricks.net/?o=7", "t"), "", {}, "7"),  # which the host has in its name
])  # fmt: skip
def test_the_workspaces_number_comes_from_where_its_host_comes_from(
    profiles, environment, arguments, profile, variables, number
):
    profiles(profile)
    environment(TOKEN="t", **variables)
    config = load_databricks_config(*arguments)
    assert config.workspace_id == number
    assert config.workspace == (f"{config.host}/?o={number}" if number not in ("", "7") else config.host)


def test_two_workspaces_of_one_host_are_two(run, profiles):
    with FakeDatabricks(users=["a"], workspace_ids=("111",)) as server:
        profiles("".join(f"[of-{number}]\nhost = {server.url}\ntoken = {server.settings.token}\nworkspace_id={number}\n"
                         for number in (111, 222)))  # fmt: skip
        assert run(SCANNER, "a", "-p", "of-111").err.startswith(f"Workspace {server.url}/?o=111, login from ")
        done = run(SCANNER, "a", "-p", "of-222")
        assert (done.code, f"{server.url}/?o=222 does not accept the token" in done.err) == (2, True), done


# What is refused is named and not shown

URL = "https://a.net"
REFUSED = {  # what is refused: arguments, variables, profile file
    "--workspace-url": (("--workspace-url", f"{URL} {SECRET}"), {}, ""),
    "--token": (("--workspace-url", URL, "--token", f"{SECRET} and more"), {}, ""),
    "DATABRICKS_HOST": ((), {"HOST": f"{URL} {SECRET}", "TOKEN": "t"}, ""),
    "DATABRICKS_TOKEN": ((), {"HOST": URL, "TOKEN": f"{SECRET}\r\nX-Other: 1"}, ""),
    "token of profile x": (("-p", "x"), {}, f"[x]\nhost = {URL}\ntoken = {SECRET}\n\n\t{SECRET}\n"),
    "host of profile x in": (("-p", "x"), {}, f"[x]\nhost = https://{SECRET}/ b\n"),
    "token of profile x in": (("-p", "x"), {}, f"[x]\nhost = {URL}\ntoken = {SECRET} \u00e9\n"),
    "--profile": (("-p", SECRET), {}, f"[x]\nhost = {URL}\n"),
    "DATABRICKS_CONFIG_PROFILE": ((), {"CONFIG_PROFILE": SECRET}, f"[x]\nhost = {URL}\n"),
    "?o= of --workspace-url": (("--workspace-url", f"{URL}?o={SECRET}", "--token", "t"), {}, ""),
    "DATABRICKS_WORKSPACE_ID": ((), {"HOST": URL, "TOKEN": "t", "WORKSPACE_ID": SECRET}, ""),
    "workspace_id of profile x": (("-p", "x"), {}, f"[x]\nhost = {URL}\ntoken = t\nworkspace_id = {SECRET}\n"),
    "default_profile": ((), {}, f"[x]\nhost = {URL}\n[__settings__]\ndefault_profile = {SECRET}\n"),
    "--max-users": (("--max-users", SECRET), {}, ""),
}


@pytest.mark.parametrize("where", REFUSED)
def test_a_refused_value_is_named_and_never_shown(run, profiles, environment, where):
    words, variables, text = REFUSED[where]
    profiles(text)
    environment(**variables)
    done = run(USER_LIST, *words, "--debug")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {where} ") or f" {where}" in done.err.splitlines()[0], done
    assert SECRET not in done.err


@pytest.mark.parametrize(("script", "words", "says"), [
    (SCANNER, ("-u", "x"), "-u is no option: was --users-file meant?"),
    (SCANNER, ("-t", "4"), "-t is no option: was --token or --threads meant?"),
    (SCANNER, ("--users_file", "x"), "--users_file is no option: was --users-file meant?"),
    (SCANNER, ("\u2013o", "o.csv"), "\u2013o is no option: was -o meant?"),
    (SCANNER, ("a", "\u2014output", "o.csv"), "\u2014output is no option: was --output meant?"),
    (SCANNER, ("--output o.csv",), "--output and what follows it came as one word: they have to be two"),
    (SCANNER, ("--resume --quiet", "a"), "--resume and what follows it came as one word: they have to be two"),
    (SCANNER, ("--users-files=x",), "--users-file... is no option: was --users-file meant?"),
    (SCANNER, ("-pabcdefgh", f"-t{SECRET}"), "-t... is no option: was --token meant?"),
    (SCANNER, (f"--token{SECRET}",), "--token... is no option: was --token meant?"),
    (SCANNER, (f"--spark=sc://y/;token={SECRET}",), "--spark is no option"),
    (SCANNER, (f"--quiet='{SECRET}",), "argument -q/--quiet: ignored explicit argument"),
    (SCANNER, ("a", "--threads", SECRET), "argument --threads: not a number from 1 to 64"),
    (SCANNER, ("anna berg",), "a word with a blank in it is taken for a user after -- only, or in a users file"),
    (SCANNER, ("a.csv",), "a word is a file: was --users-file meant?"),
    (USER_LIST, ("a.csv",), "a stray word is no option"),
    (SCANNER, ("-", "a"), "a word that begins with a dash is no option"),
])  # fmt: skip
def test_a_word_that_is_not_understood_is_told_from_a_user(run, script, words, says):
    Path("a.csv").touch()
    done = run(script, *words)
    assert (done.code, done.err) == (2, f"error: {says} (see --help)\n")


# A run that outlives its tokens


@pytest.fixture
def often(monkeypatch):
    """Asks databricks-sdk as often in an hour's life of two seconds as else in an hour."""
    set_constants(monkeypatch, HELD_SECONDS=0.01, FAILED_SECONDS=0.0)


def when(server, condition, action):
    """Do something once, before the first request at which the condition is true."""
    once = threading.Lock()
    server.change(
        faults=[Fault("500", when=lambda: condition() and once.acquire(blocking=False) and action() and False)]
    )


def test_tokens_are_renewed_before_they_expire(work, often, tmp_path, run):
    with FakeDatabricks(users=16, shape="bench", directories=20, latency=0.02, **SHORT_LIVED) as server:
        work(server)
        write_users(server.user_names)
        done = run(SCANNER, "-p", "work", "--users-file", "users.txt", "-o", "out.csv", "--threads", "3", "--debug")
        assert done.code == 0
        assert Path("out.csv").read_bytes() == true_csv(server)
        assert server.requests["oidc", TOKEN_URL] >= 3
        assert server.statuses[401] == 0
    assert done.err.splitlines()[0] == (f"Workspace {server.url}/?o=1, login from profile work in "
                                        f"{tmp_path / 'home' / '.databrickscfg'} (OAuth, oauth-m2m)")  # fmt: skip
    assert not [token for token in [SECRET, *server.issued] if token in done.err]


@pytest.mark.parametrize(("status", "body"), [
    (403, '{"error_code": 403, "message": "JWT has expired"}'), (400, "io.jsonwebtoken.ExpiredJwtException: expired"),
])  # fmt: skip
def test_a_token_that_has_expired_in_other_words_is_renewed_once_and_else_ends_the_run(work, run, status, body):
    with FakeDatabricks(users=3, shape="small", latency=0.005, **LOGIN) as server:
        work(server)
        write_users(server.user_names)
        words = ("-p", "work", "--users-file", "users.txt", "-o", "out.csv", "--threads", "1")
        fault = Fault("body", api="workspace", status=status, body=body, when=saved_users)
        server.change(faults=[fault])
        done = run(SCANNER, *words)
        assert (done.code, "does not accept the token of profile work" in done.err) == (2, True), done
        assert len(server.issued) == 2
        assert not Path("out.csv").exists()
        fault.times = fault.hits + 1
        assert run(SCANNER, *words, "--resume").code == 0
        assert len(server.issued) == 4
        assert Path("out.csv").read_bytes() == true_csv(server)


def test_a_login_that_is_taken_away_stops_the_run(work, run):
    """And the next one at its start."""
    with FakeDatabricks(users=10, shape="small", latency=0.005, **LOGIN) as server:
        work(server)
        when(server, saved_users, lambda: (server.revoke(), server.change(clients={})))
        for words in ((), (), ("--debug",)):
            done = run(SCANNER, "-p", "work", *server.user_names, "--checkpoint", NAME, "-o", "out.csv", *words)
            assert (done.code, done.out, Path("out.csv").exists()) == (2, "", False), done
            assert "invalid_client: Client authentication failed; can " in done.err.replace("\n", " ")
            assert SECRET not in done.err
    assert saved_users()


def test_a_token_endpoint_that_fails_for_a_while_loses_nothing(work, often, clock):
    with FakeDatabricks(users=6, shape="small", **LOGIN) as server:
        work(server)
        client = DatabricksClient(load_databricks_config("work"), 4, clock=clock, sleep=clock.sleep)
        fault = Fault("503", api="oidc", path=TOKEN_URL, times=12)
        when(server, lambda: server.total_requests > 30, lambda: (server.revoke(), server.change(faults=[fault])))
        assert_all_true(
            server,
            {result.username: result for result in scan_users(server.user_names, client.config, 4, client=client)},
        )
        assert fault.hits == 12


def test_while_the_token_endpoint_fails_or_does_not_answer_the_old_token_serves(work, often, monkeypatch):
    set_constants(monkeypatch, LOGIN_SECONDS=0.3)
    for fault in (Fault("503", path=TOKEN_URL), Fault("hang", path=TOKEN_URL, seconds=60)):
        with FakeDatabricks(users=1, **ALWAYS_NEW) as server:
            work(server)
            config = load_databricks_config("work")
            server.change(faults=[fault])
            time.sleep(0.02)
            assert config.current_token() == config.token
            assert fault.hits
            with pytest.raises(DatabricksError, match="no token from profile work") as caught:
                config.current_token(refused=config.token)
            assert caught.value.kind == "connection"
            server.change(faults=[])
            assert config.current_token(refused=config.token) != config.token


def test_a_token_endpoint_that_fails_is_not_asked_for_each_request(work, often, monkeypatch):
    fault = Fault("400", path=TOKEN_URL)
    with FakeDatabricks(users=1, **ALWAYS_NEW) as server:
        work(server)
        config = load_databricks_config("work")
        set_constants(monkeypatch, FAILED_SECONDS=60.0)
        server.change(faults=[fault])
        for _ in range(3):
            with pytest.raises(DatabricksError, match="no token from profile work"):
                config.current_token(refused=config.token)
        assert fault.hits == 1


# Which login of databricks-sdk it is


def test_a_profile_takes_nothing_from_the_environment_or_default(profiles, environment, monkeypatch):
    with FakeDatabricks(users=1, **LOGIN) as server, FakeDatabricks(users=1) as other:
        profiles(
            f"[DEFAULT]\nhost={other.url}\ntoken=dapi-of-default\naccount_id=1\n[work]\nhost={server.url}\n"
            f"client_id=the-client\nclient_secret={SECRET}\n[__settings__]\ndefault_profile = work\n"
        )
        environment(
            TOKEN="dapi-of-environment", HOST=other.url, CLIENT_ID="another", CLIENT_SECRET="another", AUTH_TYPE="pat",
            USERNAME="u", PASSWORD="p", ACCOUNT_ID="2", GROUP_ID="3", CLOUD="AZURE",
            DISCOVERY_URL=f"{other.url}/oidc/.well-known/oauth-authorization-server",
        )  # fmt: skip
        monkeypatch.setenv("ARM_CLIENT_ID", "azure")
        for profile in (None, "work"):
            assert login(profile) == (server.url, list(server.issued)[-1])
        assert other.total_requests == 0


def test_a_profile_with_a_token_needs_no_sdk_unless_it_says_otherwise(profiles, monkeypatch):
    with FakeDatabricks(users=1, **LOGIN) as server:
        m2m = f"client_id=the-client\nclient_secret={SECRET}\ntoken=dapi-old\nhost={server.url}\n"
        profiles(f"[a]\n{m2m}[b]\n{m2m}auth_type=oauth-m2m\n[c]\n{m2m}auth_type=pat\n")
        assert login("b")[1] in server.issued
        monkeypatch.setitem(sys.modules, "databricks.sdk.core", None)
        assert login("a") == login("c") == (server.url, "dapi-old")
        assert "pip install databricks-sdk" in message_of("b")


def test_the_environment_without_a_token(environment, run):
    with FakeDatabricks(users=3, **LOGIN) as server:
        environment(CLIENT_ID="the-client", CLIENT_SECRET=f'"{SECRET}"')
        assert load_databricks_config(workspace_url=server.url).host == server.url
        environment(HOST=server.url, WORKSPACE_ID="12", X_TOKEN=" " * 9)
        done = run(USER_LIST, "-o", "users.csv")
        first = f"Workspace {server.url}/?o=12, login from environment (OAuth, oauth-m2m)"
        assert (done.code, done.err.splitlines()) == (0, [first, "3 users"])
        header = base64.b64encode(f"the-client:{SECRET}".encode()).decode()
        page = f"<html><title>we had {SECRET}, {quote(SECRET).lower()}, Basic {header}</title></html>"
        server.change(faults=[Fault("body", path=TOKEN_URL, status=500, body=page, content_type="text/html")])
        done = run(USER_LIST, "-o", "users.csv")
        assert (done.code, "we had ***, ***, Basic ***" in done.err) == (2, True), done
        assert_kept(SECRET, done.err)


# The Databricks CLI

CLI = """#!{python}
import json, sys
print(*sys.argv[1:], file=open({calls!r}, "a"))
if sys.argv[1] == "version":
    print(json.dumps({{"Version": "0.296.0", "Major": 0, "Minor": 296, "Patch": 0}}))
else:
    print(json.dumps({{"access_token": {token!r}, "token_type": "Bearer", "expiry": "2099-01-01T00:00:00Z"}}))
#"""


@needs_posix
def test_the_login_of_the_databricks_cli(profiles, environment, run, tmp_path, monkeypatch):
    with FakeDatabricks(users=1) as server:
        program, calls = tmp_path / "databricks", tmp_path / "calls"
        text = CLI.format(python=sys.executable, calls=str(calls), token=server.settings.token)
        program.write_text(text + "x" * 2**20)  # databricks-sdk takes a smaller one for the old CLI
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        profiles(f"[work]\nhost = {server.url}\nauth_type = databricks-cli\n")
        environment(CONFIG_PROFILE="another", TOKEN="dapi-of-environment")
        done = run(SCANNER, server.user_names[0], "-p", "work")
    assert (done.code, "(OAuth, databricks-cli)" in done.err) == (0, True), done
    assert calls.read_text().splitlines()[-1].startswith("auth token --profile work")


# A notebook


def test_a_notebooks_own_login(monkeypatch, environment):
    """By the module which databricks-sdk asks a notebook for its login."""
    threads, runtime = [], types.ModuleType("databricks.sdk.runtime")
    for kind in ("native_unified", "repl_auth", "legacy_auth"):
        setattr(runtime, f"init_runtime_{kind}", None)
    header = {"Authorization": "Bearer the-token"}
    monkeypatch.setitem(sys.modules, "databricks.sdk.runtime", runtime)
    environment(RUNTIME_VERSION="15.4")
    with FakeDatabricks(users=3, shape="small", token="the-token") as server:
        runtime.init_runtime_native_auth = lambda: (
            server.url, lambda: threads.append(threading.current_thread()) or header
        )  # fmt: skip
        config = load_databricks_config()
        assert (config.host, config.source) == (server.url, "notebook (OAuth, runtime)")
        assert set(threads) == {threading.current_thread()}  # others may wait for the notebook's own for ever
        assert_all_true(server, {result.username: result for result in scan_users(server.user_names, config)})
        assert login(workspace_url=server.url) == (server.url, "the-token")
        assert "no login found" in message_of(workspace_url=A)


def test_a_notebook_whose_sdk_is_too_old_says_how_to_get_a_newer_one(monkeypatch, environment):
    def old_config(**_):
        raise ValueError

    old_config.attributes = list
    environment(RUNTIME_VERSION="14.3")
    monkeypatch.setattr("databricks.sdk.core.Config", old_config)
    monkeypatch.setattr("databricks.sdk.version.__version__", "0.1.6")
    assert message_of().startswith(
        "databricks-sdk 0.1.6 is too old for the notebook's own login: run `%pip install --upgrade databricks-sdk`"
    )


# A guest in the process


def test_what_a_run_changes_in_the_process_is_as_before_and_disabled_loggers_silence_no_error(profiles, run):
    ours, sdk = (logging.getLogger(name) for name in ("databricks_user_files", "databricks.sdk"))
    ours.setLevel(logging.ERROR)
    sdk.setLevel(logging.DEBUG)
    before = dict(os.environ), sys.stderr
    for silence in (lambda: logging.disable(logging.CRITICAL), lambda: setattr(ours, "disabled", True)):
        silence()
        try:
            assert run(USER_LIST, "--debug").err.startswith("error: no login found in ")
        finally:
            logging.disable(logging.NOTSET)
            ours.disabled = False
    assert (ours.level, sdk.level, ours.propagate, ours.handlers) == (logging.ERROR, logging.DEBUG, True, [])
    assert (dict(os.environ), sys.stderr) == before


@needs_posix
def test_ctrl_break_ends_a_run_that_waits_for_an_answer(environment, run, monkeypatch):
    """As on Windows, where no handler runs while a lock is waited for."""
    waits, wait = [], futures.wait
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    monkeypatch.setattr(futures, "wait", lambda whom, seconds: waits.append(seconds) or wait(whom, seconds))
    with FakeDatabricks(users=["a"], faults=[Fault("hang", seconds=20)]) as server:
        environment(HOST=server.url, TOKEN=server.settings.token)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        done = run(USER_LIST)
    assert (done.code, done.err.splitlines()[1:]) == (130, ["interrupted"])
    assert max(waits) <= 0.2


@needs_posix
def test_an_exception_of_the_callers_own_reaches_the_caller(environment):
    def give_up(*_):
        raise ZeroDivisionError("the caller's time is over")

    before = signal.signal(signal.SIGALRM, give_up)
    with FakeDatabricks(users=["a"], faults=[Fault("hang", seconds=20)]) as server:
        environment(HOST=server.url, TOKEN=server.settings.token)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(ZeroDivisionError):
            user_files(["a"])
    assert signal.signal(signal.SIGALRM, before) is give_up


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(("raised", "code", "says"), [
    ("KeyboardInterrupt", 130, ""), ("ValueError('x')", 2, "error: ValueError: x; --debug shows where\n"),
])  # fmt: skip
def test_what_is_no_error_of_ours_is_a_line_of_a_script(raised, code, says):
    text = f"import databricks_user_list as it\ndef main(words): raise {raised}\nit.run_as_script(main)"
    done = subprocess.run([sys.executable, "-c", text], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert (done.returncode, done.stderr) == (code, says)


def test_without_words_a_command_called_from_python_takes_none_of_its_process(environment, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kernel", "-f", "kernel.json"])
    assert user_files() == 2
    assert capsys.readouterr().err.startswith("error: no login found")


@pytest.fixture(scope="module")
def pasted():
    """The names of both files when their texts were run in one cell after the other."""
    names = {"__name__": "__main__", "__builtins__": builtins}
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: True))
    for script in (USER_LIST, SCANNER):
        exec(compile((ROOT / script).read_text(encoding="utf-8"), "<cell>", "exec"), names)
    monkeypatch.undo()
    return names


@pytest.mark.parametrize("name", ["max", "all", "str", "datetime", "time"])
def test_beside_a_replaced_built_in_pasted_code_refuses_to_run(pasted, monkeypatch, capsys, name):
    monkeypatch.setitem(pasted, name, lambda *_: None)
    for command in ("user_list", "user_files"):
        assert pasted[command]([]) == 2
        assert f"a cell has replaced {name}, " in capsys.readouterr().err
    with pytest.raises(pasted["InventoryError"], match="%%writefile"):
        next(pasted["scan_users"](["a"], pasted["DatabricksConfig"](A, "t")))


def test_no_built_in_that_may_be_replaced_is_used():
    trees = [ast.parse((ROOT / script).read_text(encoding="utf-8")) for script in (USER_LIST, SCANNER)]
    used = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert used.intersection(NOT_USED) == {"open", "print"}
