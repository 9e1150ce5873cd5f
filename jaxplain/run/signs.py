"""Signs of life: small files by which the processes of a run know of each other."""

import json
import os
import socket
from pathlib import Path
from typing import Any

from jaxplain.run import store


def give(path: Path, content: dict[str, Any]) -> None:
    """Write a small file so that others see it whole; it need not outlive the machine."""
    store.write(path, json.dumps(content).encode(), lasting=False)


def read(path: Path) -> dict[str, Any] | None:
    """What such a file says; None where there is none, or it is not one."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def here() -> dict[str, Any]:
    """Which process this is, among those that `gone` can look up."""
    return {"place": place(), "pid": os.getpid(), "started": started(os.getpid())}


def place() -> str:
    """The machine and the space of its process numbers; empty where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def started(pid: int) -> str | None:
    """When a process of this machine began, so that another of its number is not taken for it.

    None if it is no more, or dead and its parent has not asked yet.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def of_this_machine(sign: dict[str, Any]) -> bool:
    return bool(sign["place"]) and sign["place"] == place()


def gone(sign: dict[str, Any]) -> bool:
    """Whether the process that gave a sign was on this machine, and is no more."""
    return of_this_machine(sign) and started(sign["pid"]) != sign.get("started", "")
