"""An HTTP server on loopback that answers as a Databricks workspace does: SCIM users, DBFS and Workspace listings.

From a test:

    with FakeDatabricks(users=50, latency=0.01, faults=[Fault("500", rate=0.05)]) as server:
        requests.get(server.url + "/api/2.0/dbfs/list", params={"path": "/Users"}, headers=server.headers)

As a program: `python -m tests.fake --users 50 --port 8099`. It prints its URL and its token when it is ready.
"""

from tests.fake.faults import FAULT_KINDS, FORMS, Answer, Fault, Key
from tests.fake.server import DEFAULT_TOKEN, TOKEN_URL, Counts, FakeDatabricks, take_token
from tests.fake.trees import AWKWARD_NAMES, Listed, dbfs_directory, dbfs_file, workspace_object
from tests.fake.workspace import ESTIMATED_OBJECT_SIZE, Truth, Workspace, make_user_name

__all__ = [
    "AWKWARD_NAMES",
    "DEFAULT_TOKEN",
    "ESTIMATED_OBJECT_SIZE",
    "FAULT_KINDS",
    "FORMS",
    "TOKEN_URL",
    "Answer",
    "Counts",
    "FakeDatabricks",
    "Fault",
    "Key",
    "Listed",
    "Truth",
    "Workspace",
    "dbfs_directory",
    "dbfs_file",
    "make_user_name",
    "take_token",
    "workspace_object",
]
