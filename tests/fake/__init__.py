"""An HTTP server on loopback that answers as a Databricks workspace does: SCIM users, DBFS and Workspace listings.

From a test:

    with FakeDatabricks(users=50, latency=0.01, faults=[Fault("500", rate=0.05)]) as server:
        requests.get(server.url + "/api/2.0/dbfs/list?path=/Users", headers={"Authorization": "Bearer dapi-fake-token"})

As a program: `python -m tests.fake users=50 port=8099`. It prints its URL and its token when it is ready.
"""

from tests.fake.faults import FORMS, Answer, Fault, Key
from tests.fake.server import TOKEN_URL, Counts, FakeDatabricks, take_token
from tests.fake.trees import Listed, dbfs_directory, dbfs_file, workspace_object
from tests.fake.world import Folder, Truth, World

__all__ = [
    "FORMS", "TOKEN_URL", "Answer", "Counts", "FakeDatabricks", "Fault", "Folder", "Key", "Listed", "Truth", "World",
    "dbfs_directory", "dbfs_file", "take_token", "workspace_object",
]  # fmt: skip
