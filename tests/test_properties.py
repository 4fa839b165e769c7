"""Whatever the bytes: files and answers give a right result or a clean error, and never a traceback or a hang.

Each property runs the code that both commands run, in this process. `INVENTORY_EXAMPLES` multiplies the examples.
"""

import csv
import io
import json
import os
import unicodedata

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from databricks_user_list import (
    DatabricksError,
    classify_error,
    parse_error_body,
    parse_page,
    safe_cell,
)
from tests.strategies import BODIES, HEADERS, JSON, STATUSES, answered

MANY = int(os.environ.get("INVENTORY_EXAMPLES", "1"))
TOKEN = "dapi-5ecret-0123456789"
SUPPRESSED = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def property_of(*strategies, examples=100, **named):
    """given(), with examples that are the same in every run."""

    def decorate(function):
        return settings(max_examples=examples * MANY, deadline=None, derandomize=MANY == 1,
                        suppress_health_check=SUPPRESSED)(given(*strategies, **named)(function))  # fmt: skip

    return decorate


# Files that people give


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


@property_of(st.text(max_size=6) | st.text("=+-@\t\r\n;,\"' a", max_size=6), st.sampled_from(",;\t"), examples=200)
def test_no_cell_is_a_formula(text, delimiter):
    file = io.StringIO()
    csv.writer(file).writerow(["a", safe_cell(text), "b"])
    for row in csv.reader(io.StringIO(file.getvalue(), newline=""), delimiter=delimiter):
        for cell in row:
            assert not cell.lstrip("\t\r\n").startswith(("=", "+", "-", "@"))
    assert not [sign for sign in safe_cell(text) if unicodedata.category(sign) == "Cc" and sign not in "\t\n\r"]
