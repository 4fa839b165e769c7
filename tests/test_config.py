"""Which workspace and which login are taken: SPEC section 2."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

import databricks_user_files_simple as scanner
import databricks_user_list
from databricks_user_list import DatabricksConfig, InventoryError, load_databricks_config, read_workspace_url
from tests.fake import FakeDatabricks, Fault
from tests.helpers import NAME, ROOT, SCANNER, USER_LIST, needs_posix

SECRET = "dapi-secret-0123456789"
A, B, C = "https://a.cloud.databricks.com", "https://b.cloud.databricks.com", "https://c.cloud.databricks.com"


@pytest.fixture
def profiles(tmp_path, monkeypatch):
    """Writes the profile file; bytes or text."""
    path = tmp_path / "profiles"
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(path))

    def write(text):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def environment(monkeypatch):
    """Sets variables without their DATABRICKS_."""
    return lambda **values: [monkeypatch.setenv(f"DATABRICKS_{name}", value) for name, value in values.items()]


def login(*arguments, **keywords):
    config = load_databricks_config(*arguments, **keywords)
    return config.host, config.token


def message_of(*arguments, **keywords):
    with pytest.raises(InventoryError) as caught:
        load_databricks_config(*arguments, **keywords)
    text = str(caught.value)
    assert len(text.splitlines()) <= 2
    return text


# Precedence

ENVIRONMENT = {"HOST": C, "TOKEN": "of-c"}
IN_B = f"[DEFAULT]\nhost={B}\ntoken=of-b\n"
MANY = IN_B + "".join(f"[{name}]\nhost={A}\ntoken=of-{name}\n" for name in "xyz")
FROM_Z = MANY + "[__settings__]\ndefault_profile = z\n"


@pytest.mark.parametrize(("arguments", "variables", "text", "expected"), [
    ((None, A, "of-a"), ENVIRONMENT, IN_B, (A, "of-a", "command line")),
    ((), ENVIRONMENT, IN_B, (B, "of-b", "profile DEFAULT in ")),
    ((), ENVIRONMENT, None, (C, "of-c", "environment")),
    (("x",), {"CONFIG_PROFILE": "y"}, FROM_Z, (A, "of-x", "profile x in ")),
    ((), {"CONFIG_PROFILE": "y"}, FROM_Z, (A, "of-y", "profile y in ")),
    ((), {}, FROM_Z, (A, "of-z", "profile z in ")),
    ((), {"CONFIG_PROFILE": "", "HOST": "", "TOKEN": ""}, MANY, (B, "of-b", "profile DEFAULT in ")),
    ((), {"HOST": B, "WORKSPACE_URL": A, "TOKEN": "t"}, None, (A, "t", "environment")),
    ((), ENVIRONMENT, "", (C, "of-c", "environment")),
    ((), ENVIRONMENT, "[DEFAULT]\n", (C, "of-c", "environment")),  # as the CLI begins a new file
    ((), ENVIRONMENT, f"# none\n[x]\nhost={A}\ntoken=t\n", (C, "of-c", "environment")),
    ((None, B), ENVIRONMENT | {"HOST": B}, f"[DEFAULT]\nhost={A}\ntoken=t\n", (B, "of-c", "environment")),
    ((None, B), {"TOKEN": "of-c"}, f"[DEFAULT]\nhost={A}\ntoken=t\n", (B, "of-c", "environment")),
    ((None, "b.cloud.databricks.com/browse?o=7"), {}, IN_B, (B, "of-b", "profile DEFAULT in ")),
    (("DEFAULT", "B.cloud.databricks.com"), {}, IN_B, (B, "of-b", "profile DEFAULT in ")),
])  # fmt: skip
def test_which_login_is_taken(profiles, environment, arguments, variables, text, expected):
    if text is not None:
        profiles(text)
    environment(**variables)
    config = load_databricks_config(*arguments)
    assert (config.host, config.token) == expected[:2]
    assert config.source.startswith(expected[2])


def test_the_profile_file_is_at_home_or_where_a_variable_says(tmp_path, monkeypatch):
    (tmp_path / "home" / "mine.cfg").write_text(IN_B)
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", "~/mine.cfg")
    assert login() == (B, "of-b")
    monkeypatch.delenv("DATABRICKS_CONFIG_FILE")
    (tmp_path / "home" / ".databrickscfg").write_text(f"[DEFAULT]\nhost={A}\ntoken=at-home\n")
    assert login() == (A, "at-home")


# What a profile file holds


@pytest.mark.parametrize("text", [
    b"host = URL\ntoken = t-1\n",
    b"host = URL # of the test\ntoken=t-1\t; mine\n",
    b"# b\xfcro, \xe9t\xe9 \xff\xfe\x00\nhost = URL\nnote = caf\xe9\ntoken = t-1\n",
    b"host = \"URL\"\ntoken = 't-1'\n",
    b"host = ' URL/ '\ntoken = \"t-1\" # quoted\n",
    b"  host = URL\n  token = t-1\n",
    b"\r\nhost : URL\r\ntoken = t-1\r\n\r\n",
])  # fmt: skip
def test_a_profile_is_read_as_people_write_it(profiles, text):
    profiles(b"\xef\xbb\xbf[DEFAULT]\n" + text.replace(b"URL", A.encode()))
    assert login() == (A, "t-1")


def test_quotes_around_values_of_the_environment_are_dropped(profiles, environment, tmp_path, monkeypatch):
    path = profiles(f"[my profile]\nhost={B}\ntoken=of-b\n")
    environment(CONFIG_FILE=f'"{path}"', CONFIG_PROFILE="'my profile'")
    assert login() == (B, "of-b")
    assert login('"my profile"', f"'{B}'") == (B, "of-b")
    assert login(None, f' "{A}"', "'t' ") == (A, "t")
    path.unlink()
    monkeypatch.delenv("DATABRICKS_CONFIG_PROFILE")
    environment(HOST=f"'{A}/'", TOKEN='"of-a"\r', WORKSPACE_ID='"12"')
    assert login() == (A, "of-a")
    assert load_databricks_config().workspace_id == "12"


@pytest.mark.parametrize(("host", "option", "named", "warned"), [
    (B, None, False, True), (A, None, False, False), (B, None, True, False), (B, A, False, False),
    ("", None, False, False), (f"no url {SECRET}", None, False, False),
])  # fmt: skip
def test_a_default_profile_that_wins_over_another_hosts_environment_is_warned_about(
    profiles, environment, caplog, host, option, named, warned
):
    profiles(f"[DEFAULT]\nhost={A}\ntoken=of-a\n")
    environment(HOST=host, TOKEN="of-b")
    assert login("DEFAULT" if named else None, option) == (A, "of-a")
    assert len(caplog.records) == warned
    assert not warned or (A in caplog.text and B in caplog.text)
    assert SECRET not in caplog.text


@pytest.mark.parametrize("main", [scanner.main, databricks_user_list.main])
def test_the_first_line_of_a_run_comes_before_a_warning_of_the_login(profiles, environment, capsys, main):
    with FakeDatabricks(users=["a"], shape="none") as server:
        profiles(f"[DEFAULT]\nhost={server.url}\ntoken={server.settings.token}\n").chmod(0o600)
        environment(HOST=B, TOKEN="of-b")
        assert main(["a"] if main is scanner.main else []) == 0
        first, second, *_ = capsys.readouterr().err.splitlines()
        assert first.startswith(f"Workspace {server.url}, login from profile DEFAULT in ")
        assert second.startswith(f"warning: the environment's host {B} is not used")
        environment(CONFIG_PROFILE="x", CONFIG_FILE="none", HOST="no url")
        assert main(["a"] if main is scanner.main else []) == 2
        warning, error = capsys.readouterr().err.splitlines()
        assert (warning[:17], error[:22]) == ("warning: DATABRIC", "error: DATABRICKS_HOST")


def test_who_has_no_home_has_no_profile_file(environment, monkeypatch, capsys):
    """As the user of a container, who is not in its /etc/passwd."""
    pwd = pytest.importorskip("pwd")

    def nobody(_):
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("DATABRICKS_CONFIG_FILE")
    assert login(None, A, "t") == (A, "t")
    environment(HOST=A, TOKEN="of-a")
    assert login() == (A, "of-a")
    assert databricks_user_list.main(["--list-profiles"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no profile file ~/.databrickscfg;")


def test_default_is_not_inherited(profiles):
    profiles(f"[DEFAULT]\nhost={A}\ntoken=of-default\n[x]\nhost={B}\nauth_type=pat\n")
    assert "no token" in message_of("x")
    profiles(f"[DEFAULT]\nhost={A}\ntoken=of-default\n[y]\ntoken=of-y\n")
    assert "no host" in message_of("y")


@pytest.mark.parametrize("token", ["50%", "%(host)s", "%%", "a#b", "a;b", "a=b:c"])
def test_values_are_raw(profiles, token):
    profiles(f"[x]\nhost = {A}\ntoken = {token}\n")
    assert login("x") == (A, token)


def test_settings_are_no_profile(profiles):
    profiles(f"[__settings__]\nhost={A}\ntoken=t\n[x]\nhost={B}\ntoken=t\n")
    text = message_of("__settings__")
    assert "x" in text.split("it has:")[1]
    assert "__settings__" not in text.split("it has:")[1]


def test_a_named_profile_that_is_missing_lists_those_there(profiles, environment):
    profiles(f"[DEFAULT]\n[prod]\nhost={A}\ntoken={SECRET}\n[test]\nhost={B}\n")
    environment(HOST=C, TOKEN="of-c")
    assert message_of("stage").startswith("--profile names no profile of ")
    assert message_of("stage").endswith("; it has: DEFAULT, prod, test")
    environment(CONFIG_PROFILE="stage")
    assert message_of().startswith("DATABRICKS_CONFIG_PROFILE names no profile of ")


def test_a_default_profile_that_is_missing_is_an_error(profiles, environment):
    profiles(f"[__settings__]\ndefault_profile=gone\n[prod]\nhost={A}\ntoken=t\n")
    environment(HOST=C, TOKEN="of-c")
    assert "default_profile" in message_of()
    assert "prod" in message_of()


def test_without_a_profile_file_the_environment_serves_a_named_profile_with_a_warning(environment, caplog):
    environment(HOST=A, TOKEN="t")
    assert login("stage") == (A, "t")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "--profile is not used" in caplog.text


# A token goes only where it belongs


@pytest.mark.parametrize(("option", "token", "named", "host_set"), list(itertools.product([True, False], repeat=4)))
def test_the_profile_token_goes_to_its_own_host_only(profiles, environment, option, token, named, host_set):
    """--workspace-url, --token, --profile and DATABRICKS_HOST, of other hosts than the profile's."""
    profiles(f"[DEFAULT]\nhost={A}\ntoken=of-a\n[p]\nhost={A}\ntoken=of-a\n")
    if host_set:
        environment(HOST=B, TOKEN="of-b")
    arguments = ("p" if named else None, C if option else None, "of-c" if token else None)
    if token:  # alone it belongs to no host
        expected = (C, "of-c") if option else None
    elif option:  # nothing is known for C
        expected = None
    else:
        expected = (A, "of-a")
    if expected:
        assert login(*arguments) == expected
    else:
        text = message_of(*arguments)
        assert not [word for word in ("of-a", "of-b", "of-c") if word in text]
        assert "--workspace-url" in text if token else A in text and C in text or not named


@pytest.mark.parametrize(("configured", "option", "expected"), [
    ({"TOKEN": "t"}, A, (A, "t")),  # a token without a host goes to --workspace-url
    ({"TOKEN": "t"}, None, None),
    ({"HOST": A, "TOKEN": "t"}, A + "/?o=12", (A, "t")),
    ({"HOST": A, "TOKEN": "t"}, B, None),
    ({"WORKSPACE_URL": A, "HOST": B, "TOKEN": "t"}, B, None),
    ({"WORKSPACE_URL": A, "HOST": B, "TOKEN": "t"}, A, (A, "t")),
    ({"HOST": A}, A, None),
    ({"HOST": A}, None, None),
    ({}, A, None),
    ({}, None, None),
])  # fmt: skip
def test_the_environment_token_goes_to_its_own_host_only(environment, configured, option, expected):
    environment(**configured)
    if expected:
        assert login(workspace_url=option) == expected
    else:
        message_of(workspace_url=option)


def test_the_same_host_with_another_port_is_another_host(environment):
    environment(HOST=A, TOKEN="t")
    message_of(workspace_url=A + ":8443")


# Hosts


@pytest.mark.parametrize(("text", "host"), [
    ("adb-123.4.azuredatabricks.net", "https://adb-123.4.azuredatabricks.net"),
    ("  https://adb-1.net/ \n", "https://adb-1.net"),
    ("https://adb-1.net/?o=123#job/4", "https://adb-1.net"),
    ("adb-1.net/browse/folders/1?o=2", "https://adb-1.net"),
    ("adb-1.net?x=https://other.net", "https://adb-1.net"),
    ("https://user:pw@adb-1.net", "https://adb-1.net"),
    ("HTTPS://ADB-1.Net", "https://adb-1.net"),
    ("adb-1.net:8443/x", "https://adb-1.net:8443"),
    ("https://10.0.0.1:8443", "https://10.0.0.1:8443"),
    ("https://[2001:db8::1]:8443/x", "https://[2001:db8::1]:8443"),
    ("http://localhost:8080/x", "http://localhost:8080"),
    ("http://127.1.2.3", "http://127.1.2.3"),
    ("http://[::1]:8080", "http://[::1]:8080"),
])  # fmt: skip
def test_hosts_are_normalised(text, host):
    assert read_workspace_url(text, "--workspace-url")[0] == host


@pytest.mark.parametrize("text", [
    "", " ", "https://", "https:///SECRET", "https:/SECRET", "/SECRET", "://x", "ftp://SECRET", "https://a b.net",
    "https://adb-1.net:SECRET", "https://adb-1.net:99999", "https://[::1", "https://[fe80::1%SECRET]", "https://a..net",
    "https://.net", "https://adb-1.net\\@SECRET", "https://adb-1.net SECRET", "https://adb-1.net\ntoken = SECRET",
    "http://adb-1.net/?SECRET", "http://[2001:db8::1]", "http://localhost.evil.net", "http://127.0.0.1.evil.net",
    "http://127.0.0.1@evil.net", "http://token:SECRET@adb-1.net",
])  # fmt: skip
def test_refused_hosts_are_not_shown(text):
    with pytest.raises(InventoryError, match=r"^--workspace-url ") as caught:
        read_workspace_url(text.replace("SECRET", SECRET), "--workspace-url")
    assert len(str(caught.value).splitlines()) == 1
    assert SECRET not in str(caught.value)


# The workspace's number


ONE = f"[p]\nhost = {A}/\ntoken = t\nworkspace_id = 111\n"


@pytest.mark.parametrize(("option", "profile", "variables", "number"), [
    (None, ONE, {"WORKSPACE_ID": "333"}, "111"),
    (f"{A}/?o=222", ONE, {}, "222"),
    (A, ONE, {"WORKSPACE_ID": "333"}, "111"),
    (None, ONE.replace("com/", "com/browse?o=222#x"), {}, "222"),
    (None, ONE.replace("111", "none"), {"WORKSPACE_ID": "333"}, ""),
    (None, "", {"HOST": A, "WORKSPACE_ID": "333"}, "333"),
    (None, "", {"HOST": f"{A}?o=222", "WORKSPACE_ID": "333"}, "222"),
    (f"{A}?o=444", "", {"HOST": f"{A}?o=222", "WORKSPACE_ID": "333"}, "444"),
    (A, "", {"HOST": f"{A}?o=222"}, "222"),
    (A, "", {"WORKSPACE_ID": "333"}, "333"),
    (f"{A}/?o=0", "", {}, ""),
])  # fmt: skip
def test_the_workspaces_number_comes_from_where_its_host_comes_from(
    profiles, environment, option, profile, variables, number
):
    profiles(profile)
    environment(TOKEN="t", **variables)
    config = load_databricks_config("p" if profile else None, option)
    assert (config.host, config.workspace_id) == (A, number)
    assert config.workspace == (f"{A}/?o={number}" if number else A)


def test_a_number_in_the_environment_is_that_of_its_own_host(environment):
    environment(WORKSPACE_ID="333")
    assert load_databricks_config(None, A, "t").workspace_id == "333"
    assert load_databricks_config(None, f"{A}?o=222", "t").workspace_id == "222"
    environment(HOST=B)
    assert load_databricks_config(None, A, "t").workspace_id == ""


def test_two_workspaces_of_one_host_are_two(command, profiles):
    with FakeDatabricks(users=["a", "b"], workspace_ids=("111",), faults=[Fault("403", path="/Users/b")]) as server:
        token = f"token = {server.settings.token}\n"
        profiles(f"[one]\nhost = {server.url}/?o=111\nworkspace_id = 222\n{token}[two]\nhost = {server.url}\n{token}"
                 "workspace_id = 222\n")  # fmt: skip
        done = command(USER_LIST, "-p", "one", "-o", "users.csv", env={"DATABRICKS_WORKSPACE_ID": "333"})
        assert done.code == 0, done
        words = ("--users-file", "users.csv", "-o", "out.csv")
        done = command(SCANNER, *words, "-p", "one")
        assert done.code == 1, done
        assert done.err.startswith(f"Workspace {server.url}/?o=111, login from profile one ")
        saved = Path(NAME).read_bytes()
        server.change(workspace_ids=("111", "222"))
        server.counts_reset()
        for other in (("-p", "two"), ("-p", "one", "--workspace-url", f"{server.url}?o=222")):
            done = command(SCANNER, *words, *other, "--resume")
            assert done.code == 2, done
            assert f"{server.url}/?o=111" in done.err
            assert f"{server.url}/?o=222" in done.err
            assert Path(NAME).read_bytes() == saved
        assert server.total_requests == 0
        server.change(workspace_ids=("222",), faults=[])
        refused = command(SCANNER, *words, "-p", "one", "--resume")
        assert refused.code == 2
        assert f"{server.url}/?o=111 does not accept the token" in refused.err
        server.change(workspace_ids=("111",))
        assert command(SCANNER, *words, "-p", "one", "--resume").code == 0


# Tokens


def test_repr_has_no_token():
    config = DatabricksConfig(A, SECRET)
    assert SECRET not in repr(config)
    assert SECRET not in str(config)
    assert SECRET not in f"{config}"


URL = "https://a.net"
REFUSED = {  # what is refused: arguments, variables, profile file
    "--workspace-url": (("--workspace-url", f"{URL} {SECRET}"), {}, ""),
    "--token": (("--workspace-url", URL, "--token", f"{SECRET} and more"), {}, ""),
    "DATABRICKS_HOST": ((), {"HOST": f"{URL} {SECRET}", "TOKEN": "t"}, ""),
    "DATABRICKS_WORKSPACE_URL": ((), {"WORKSPACE_URL": f"ftp://{SECRET}", "TOKEN": "t"}, ""),
    "DATABRICKS_TOKEN": ((), {"HOST": URL, "TOKEN": f"{SECRET}\r\nX-Other: 1"}, ""),
    "host of profile x": (("-p", "x"), {}, f"[x]\nhost = {URL}\n token = {SECRET}\n"),
    "token of profile x": (("-p", "x"), {}, f"[x]\nhost = {URL}\ntoken = {SECRET}\n\n\t{SECRET}\n"),
    "client_secret of profile y": (("-p", "x"), {}, f"[y]\nclient_secret = {SECRET}\n  {SECRET}\n[x]\nhost = {URL}\n"),
    "host of profile x in": (("-p", "x"), {}, f"[x]\nhost = https://{SECRET}/ b\n"),
    "token of profile x in": (("-p", "x"), {}, f"[x]\nhost = {URL}\ntoken = {SECRET} \u00e9\n"),
    "--profile": (("-p", SECRET), {}, f"[x]\nhost = {URL}\n"),
    "DATABRICKS_CONFIG_PROFILE": ((), {"CONFIG_PROFILE": SECRET}, f"[x]\nhost = {URL}\n"),
    "?o= of --workspace-url": (("--workspace-url", f"{URL}?o={SECRET}", "--token", "t"), {}, ""),
    "DATABRICKS_WORKSPACE_ID": ((), {"HOST": URL, "TOKEN": "t", "WORKSPACE_ID": SECRET}, ""),
    "workspace_id of profile x": (("-p", "x"), {}, f"[x]\nhost = {URL}\ntoken = t\nworkspace_id = {SECRET}\n"),
    "default_profile": ((), {}, f"[x]\nhost = {URL}\n[__settings__]\ndefault_profile = {SECRET}\n"),
    "--max-users": (("--max-users", SECRET), {}, ""),
    "--active-only": ((f"--active-only={SECRET}",), {}, ""),
    "--tokn": (("--tokn", SECRET), {}, ""),
    "--url": ((f"--url={SECRET}", f"-t{SECRET}"), {}, ""),
}


@pytest.mark.parametrize("where", REFUSED)
def test_a_refused_value_is_named_and_never_shown(command, profiles, environment, where):
    words, variables, text = REFUSED[where]
    profiles(text)
    environment(**variables)
    for more in ((), ("--debug",)):
        done = command(USER_LIST, *words, *more)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"error: {where} ") or f" {where}" in done.err.splitlines()[0], done
        assert SECRET not in done.err
        assert more or len(done.err.splitlines()) == 1


@pytest.mark.parametrize("data", [
    f"host={A}\ntoken={SECRET}\n".encode(),
    f"[x\ntoken={SECRET}\n".encode(),
    f"[x]\n{SECRET}\n".encode(),
    f"[x]\ntoken={SECRET}\ntoken={SECRET}\n".encode(),
    f"[x]\ntoken={SECRET}\n[x]\ntoken={SECRET}\n".encode(),
    b"\x00\x01" + SECRET.encode(),
    b"\xff\xfe" + f"[x]\ntoken={SECRET}\n".encode("utf-16-le"),
    ("{" + f'"token": "{SECRET}"' + "}").encode(),
])  # fmt: skip
def test_a_broken_profile_file_is_named_without_its_token(profiles, data):
    path = profiles(data)
    with pytest.raises(InventoryError) as caught:
        load_databricks_config("x")
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
    chain = [caught.value]
    while chain[-1].__cause__ or (chain[-1].__context__ and not chain[-1].__suppress_context__):
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    assert not [error for error in chain if SECRET in str(error) or SECRET in repr(error)]


@pytest.mark.parametrize("kind", ["directory", "below a file", "too long a name"])
def test_a_profile_file_that_cannot_be_read_is_named(tmp_path, environment, kind):
    (tmp_path / "file").write_text("")
    path = tmp_path / {"directory": "", "below a file": "file/x", "too long a name": "x" * 300}[kind]
    environment(CONFIG_FILE=str(path), HOST=A)
    assert str(path) in message_of("x")


def test_a_profile_file_without_permission_is_named(profiles, monkeypatch):
    path = profiles(f"[x]\nhost={A}\ntoken={SECRET}\n")
    if os.name == "nt":
        pytest.skip("chmod takes no reading away on Windows")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("runs as root, who may read everything")
    text = message_of("x")
    assert str(path) in text
    assert SECRET not in text


@needs_posix
@pytest.mark.parametrize(("to", "code", "says"), [
    (">&-", 2, "error: stdout cannot be written: "), (">/dev/full", 2, "error: stdout cannot be written: No space "),
    ("| true", 0, ""), ("| cat", 0, ""), ("| head -c1", 0, ""),
])  # fmt: skip
def test_profiles_are_listed_into_any_stream(profiles, to, code, says):
    profiles("".join(f"[b\u00fcro-{number}]\nhost={A}\ntoken={SECRET}\n" for number in range(2000)))
    words = f'"{sys.executable}" "{ROOT / USER_LIST}" --list-profiles {to}'
    done = subprocess.run(["/bin/sh", "-c", words], capture_output=True, check=False,
                          env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"})  # fmt: skip
    assert done.returncode == code, done
    assert done.stderr.decode().startswith(says)
    assert b"Traceback" not in done.stderr
    assert to != "| cat" or done.stdout.decode().count("b\u00fcro-") == 2000


def test_no_login_at_all_says_what_to_do():
    text = message_of()
    assert "DATABRICKS_HOST" in text
    assert "databricks configure" in text
