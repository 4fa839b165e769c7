"""Whatever the bytes: files and answers give a right result or a clean error, and never a traceback or a hang.

Each property runs the code that both commands run, in this process. `INVENTORY_EXAMPLES` multiplies the examples.
"""

import csv
import io
import itertools
import json
import os
import unicodedata
from contextlib import redirect_stdout

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from databricks_user_list import (
    DatabricksError,
    InventoryError,
    classify_error,
    list_profiles,
    load_databricks_config,
    parse_error_body,
    parse_page,
    read_workspace_url,
    safe_cell,
)
from tests.strategies import BODIES, HEADERS, JSON, STATUSES, answered, bytes_of

MANY = int(os.environ.get("INVENTORY_EXAMPLES", "1"))
TOKEN = "dapi-5ecret-0123456789"
SUPPRESSED = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def property_of(*strategies, examples=100, **named):
    """given(), with examples that are the same in every run."""

    def decorate(function):
        return settings(max_examples=examples * MANY, deadline=None, derandomize=MANY == 1,
                        suppress_health_check=SUPPRESSED)(given(*strategies, **named)(function))  # fmt: skip

    return decorate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all examples of a property, each with a name of its own."""
    path, number = tmp_path_factory.mktemp("properties"), itertools.count()
    return lambda: path / str(next(number))


# Files that people give


@property_of(bytes_of(
    b"[DEFAULT]\n", b"[__settings__]\n", b"host = https://a.net\n", b"\ntoken = " + TOKEN.encode(), b"\n[p]\n",
    b"default_profile = p\n", b"auth_type = pat\n", b"host = "), examples=150)  # fmt: skip
def test_any_bytes_as_profile_file(folder, data):
    path = folder()
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as shown:
        patch.setenv("DATABRICKS_CONFIG_FILE", str(path))
        for read in (load_databricks_config, list_profiles):
            try:
                print(repr(read()))
            except InventoryError as error:
                print(error)
    assert TOKEN not in shown.getvalue()


# Answers


TEXT = st.text(max_size=5) | JSON
USER = st.fixed_dictionaries({}, optional={"id": TEXT, "userName": TEXT, "active": JSON, "displayName": JSON})
PAGE = st.fixed_dictionaries({}, optional={
    "Resources": st.lists(USER, max_size=3) | JSON, "totalResults": st.integers() | JSON})  # fmt: skip


@property_of(STATUSES, BODIES | PAGE.map(json.dumps), HEADERS, examples=150)
def test_any_answer_to_a_page_of_users_is_the_page_or_an_error(status, body, headers):
    page = answered(parse_page, status, body, headers)
    if not isinstance(page, DatabricksError):
        assert status == 200
        assert len(page["Resources"]) == len(json.loads(body).get("Resources", []))
        assert page["totalResults"] >= 0


@property_of(st.integers(100, 999), st.text(max_size=200))
def test_any_text_as_an_error(status, text):
    error_code, message = parse_error_body(text)
    assert isinstance(classify_error(status, error_code, message), str)


# Texts


@property_of(st.text(max_size=30) | st.builds(
    "{}{}{}{}".format, st.sampled_from(["", "https://", "http://", "HTTPS:", "ftp://"]),
    st.sampled_from(["", "user:pw@", "@"]),
    st.sampled_from(["adb-1.net", "localhost", "127.0.0.1", "[::1]", "10.0.0.1", "x..y"]),
    st.sampled_from(["", ":443", ":x", "/?o=1#a", "\\", ":99999", "@evil.net"])), examples=200)  # fmt: skip
def test_any_text_as_workspace_url(text):
    try:
        host, _ = read_workspace_url(text, "x")
    except InventoryError as error:
        assert "pw" not in str(error)
        return
    scheme, _, name = host.partition("://")
    assert scheme == "https" or name.split(":")[0] in ("localhost", "127.0.0.1") or name.startswith("[::1]")
    assert not set(name) & set("/?#@\\ ")
    assert read_workspace_url(host, "x") == (host, "")


@property_of(st.text(max_size=6) | st.text("=+-@\t\r\n;,\"' a", max_size=6), st.sampled_from(",;\t"), examples=200)
def test_no_cell_is_a_formula(text, delimiter):
    file = io.StringIO()
    csv.writer(file).writerow(["a", safe_cell(text), "b"])
    for row in csv.reader(io.StringIO(file.getvalue(), newline=""), delimiter=delimiter):
        for cell in row:
            assert not cell.lstrip("\t\r\n").startswith(("=", "+", "-", "@"))
    assert not [sign for sign in safe_cell(text) if unicodedata.category(sign) == "Cc" and sign not in "\t\n\r"]
