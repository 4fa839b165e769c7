"""Whatever the bytes: files and answers give a right result or a clean error, and never a traceback or a hang.

Each property runs the code that both commands run, in this process. `INVENTORY_EXAMPLES` multiplies the examples.
"""

import csv
import io
import os
import unicodedata

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from databricks_user_list import (
    classify_error,
    parse_error_body,
    safe_cell,
)

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
