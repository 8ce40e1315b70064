"""Python processes with several CPU devices, for the tests of several devices and hosts."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STARTED = []


@pytest.fixture(autouse=True)
def nobody_is_left():
    """End the processes that a test leaves running: if its partner has failed, a process waits for it."""
    yield
    for process in STARTED:
        if process.poll() is None:
            process.kill()
            process.communicate()
    STARTED.clear()


def start(devices, *command, cwd=ROOT):
    """Start a Python process with this number of CPU devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    env = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    STARTED.append(process)
    return process


def address() -> str:
    """An address of this machine with a free port."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return f"localhost:{found.getsockname()[1]}"


def said(process) -> tuple[int, str, str]:
    """(exit code, stdout, stderr), without the messages of the CPU collectives: their threads mix their lines."""
    out, err = process.communicate(timeout=900)
    out = re.sub(r"\[Gloo\].*\n|\d* is connected to .*\n", "", out)
    return process.returncode, re.sub(r"(?m)^\n", "", out), err
