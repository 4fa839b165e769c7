"""A real IPython kernel, as a notebook has it."""

import os
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass
class Cell:
    """What a cell's execution brought: both streams' texts, the last expression's repr, the error's name."""

    out: str = ""
    err: str = ""
    result: str = ""
    error: str = ""


class Kernel:
    """An IPython kernel in a process of its own; what it writes elsewhere than into cells is in `console`."""

    def __init__(self, folder: Path):
        self.folder, self.console = folder, folder / "console"
        self.manager: Any = import_module("jupyter_client.manager").KernelManager(
            connection_file=str(folder / "kernel.json")
        )
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("DATABRICKS_", "SPARK_"))}
        home = {"HOME": str(folder), "IPYTHONDIR": str(folder / "ipython"), "PYTHONDONTWRITEBYTECODE": "1",
                "DATABRICKS_CONFIG_FILE": str(folder / "none")}  # fmt: skip
        with open(self.console, "wb") as console:
            self.manager.start_kernel(cwd=str(folder), env=keep | home, stdout=console, stderr=console)
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, code: str, interrupt_when: Callable[[], object] | None = None, timeout: float = 120) -> Cell:
        """Runs a cell; with `interrupt_when` it is interrupted, as by the stop button, when that has become true."""
        cell, request, limit = Cell(), self.client.execute(code), time.monotonic() + timeout
        while time.monotonic() < limit and self.manager.is_alive():
            if interrupt_when and interrupt_when():
                self.manager.interrupt_kernel()
                interrupt_when = None
            try:
                message = self.client.get_iopub_msg(timeout=0.05 if interrupt_when else 1)
            except queue.Empty:
                continue
            if message["parent_header"].get("msg_id") == request and not take(cell, message):
                return cell
        raise AssertionError(f"the kernel is {'slow' if self.manager.is_alive() else 'dead'}: {cell}\n"
                             + self.console.read_text(encoding="utf-8", errors="replace")[-2000:])  # fmt: skip

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.context.destroy()


def take(cell: Cell, message: dict[str, Any]) -> bool:
    """Notes what a message tells; False for a cell's last one."""
    content = message["content"]
    if message["msg_type"] == "stream":
        name = "out" if content["name"] == "stdout" else "err"
        setattr(cell, name, getattr(cell, name) + content["text"])
    elif message["msg_type"] in ("execute_result", "display_data"):
        cell.result += content["data"]["text/plain"]
    elif message["msg_type"] == "error":
        cell.error = f"{content['ename']}: {content['evalue']}"
    return not (message["msg_type"] == "status" and content["execution_state"] == "idle")
