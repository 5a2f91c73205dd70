"""What torchvision downloads, by its own loaders: one process at a time, and nothing half-made is left behind.

A download is checked by the MD5 sums that torchvision holds, since nobody publishes SHA-256 sums of these files: that
finds damage, not a mirror that means harm. An archive is unpacked only when its sum is right, so none writes outside
its folder; CIFAR's files are pickles, which torchvision reads only when their own sums are.
"""

import contextlib
import queue
import socket
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import SoftFileLease


def parts(
    name: str, data_dir: Path, files: list[Path], urls: list[str], archives: list[Path], load: Callable[..., Any]
) -> list[Any]:
    """The training and the test part of a torchvision data set, downloaded to `data_dir` if its files are not there.

    load(train, download) calls torchvision's class. files: what it reads. archives: what it leaves beside them.
    Raises ValueError, one line, where the files are neither there nor to be had, or are damaged.
    """

    if not all(path.is_file() for path in files):
        if not reachable(urls):
            wanted = f"put {files[0].name} (and its {len(files) - 1} fellows) into {files[0].parent}"
            raise ValueError(f"{name} is not in data_dir={data_dir} and its mirrors cannot be reached; {wanted}")
        made = [folder for folder in (files[0].parent, *files[0].parents) if not folder.exists()]
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            with SoftFileLease(data_dir / f".{name}.lock"):
                _download(files, archives, load)
        except (OSError, RuntimeError, EOFError, HTTPException, zlib.error) as error:
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # leaves what is not empty
            raise ValueError(f"{name} cannot be downloaded to data_dir={data_dir}: {_line(error)}") from error
    try:
        return [load(train, False) for train in (True, False)]
    except (OSError, RuntimeError, ValueError, AssertionError, LookupError) as error:
        raise ValueError(f"{name} in {files[0].parent} is damaged ({_line(error)}); delete it there") from error


def _download(files: list[Path], archives: list[Path], load: Callable[..., Any]) -> None:
    """Download what is missing, nothing where another process just has. Whatever ends that early, no part stays."""
    missing = [path for path in files if not path.is_file()]
    try:
        for train in (True, False) if missing else ():
            load(train, True)
    except BaseException:  # Ctrl-C too
        for path in (*archives, *missing):
            path.unlink(missing_ok=True)
        raise


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).partition(". You can use download=True")[0]  # advice for those who write Python


def reachable(urls: list[str], seconds: float = 2.0) -> bool:
    """True if one of the hosts takes a connection, or a proxy stands between and nobody can say."""
    if urllib.request.getproxies():
        return True
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def connect(url: str) -> None:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            with socket.create_connection((parts.hostname or "", port), timeout=seconds):
                answers.put(True)
        except OSError:
            answers.put(False)

    for url in urls:  # daemons: a name server that never answers must not hold us up
        threading.Thread(target=connect, args=(url,), daemon=True).start()
    deadline = time.monotonic() + seconds
    with contextlib.suppress(queue.Empty):
        return any(answers.get(timeout=max(0.0, deadline - time.monotonic())) for _ in urls)
    return False
