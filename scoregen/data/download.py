"""Downloads that are complete or leave no file."""

import contextlib
import hashlib
import http.client
import os
import urllib.request
from pathlib import Path

from scoregen.errors import UsageError

TIMEOUT = 10  # seconds without an answer


def download(what: str, url: str, md5: str, folder: Path) -> Path:
    """Download a file into `folder` under a temporary name, verify its md5, and then rename it.

    `what` is its name in messages. Raises UsageError without a network, and for a file with another md5. No file is
    left behind then.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    name = url.rpartition("/")[2]
    absent = "" if folder.exists() else " (there is no such folder)"
    by_hand = f"get {url} and put it into {folder}, or say dir=FOLDER with the folder that has it"
    part, seen = folder / f".{name}.{os.getpid()}", hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            folder.mkdir(parents=True, exist_ok=True)  # not before: without a network no folder is left behind
            columns = what, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
            with Progress(*columns, console=Console(stderr=True)) as progress, part.open("wb") as file:
                task = progress.add_task("", total=int(response.headers.get("Content-Length") or 0) or None)
                while chunk := response.read(1 << 18):
                    seen.update(chunk)
                    progress.advance(task, file.write(chunk))
        if seen.hexdigest() != md5:
            raise UsageError(
                f"the download of {url} is damaged ({part.stat().st_size} bytes, md5 {seen.hexdigest()}, not {md5}): "
                f"try again, or {by_hand}"
            )
        return part.replace(folder / name)
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", None) or error or type(error).__name__).split())
        raise UsageError(f"{what} is not in {folder}{absent} and cannot be downloaded ({reason}): {by_hand}") from error
    finally:
        with contextlib.suppress(OSError):  # after the rename it no longer exists
            part.unlink()
