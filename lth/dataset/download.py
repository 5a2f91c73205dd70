"""What torchvision reads, downloaded from its mirrors: one process at a time, and nothing half-made is left behind.

A download is checked by its MD5 sum, torchvision's own, and by its SHA-256 sum, which stands in the file of its data
set, before anything of it is unpacked. Unpacked are the files that the data set reads, by their names, and nothing
else, so that no archive writes outside its folder. CIFAR's files are pickles, which torchvision reads only when their
own MD5 sums are right, too. Files that lie there unpacked are not subject to the sum of an archive.
"""

import contextlib
import gzip
import hashlib
import queue
import shutil
import socket
import tarfile
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from filelock import SoftFileLease


class Archive(NamedTuple):
    """A download: where it comes to lie, where from (one of urls is enough), its sums as hex digits, and the files that
    it holds: of a .tar.gz by their paths from its own folder on, of another .gz the one, else itself."""

    path: Path
    urls: list[str]
    md5: str
    sha256: str
    files: list[Path]


def parts(name: str, data_dir: Path, archives: list[Archive], load: Callable[[bool], Any]) -> list[Any]:
    """The training and the test part of a torchvision data set, downloaded to `data_dir` if its files are not there.

    load(train) calls torchvision's class, which reads all files of the archives and downloads nothing.
    Raises ValueError, one line, where the files are neither there nor to be had, or are damaged.
    """

    files = [path for archive in archives for path in archive.files]
    if not all(path.is_file() for path in files):
        if not reachable(archives[0].urls):
            wanted = f"put {files[0].name} (and its {len(files) - 1} fellows) into {files[0].parent}"
            raise ValueError(f"{name} is not in data_dir={data_dir} and its mirrors cannot be reached; {wanted}")
        made = [folder for folder in (files[0].parent, *files[0].parents) if not folder.exists()]
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            with SoftFileLease(data_dir / f".{name}.lock"):
                for archive in archives:
                    _download(archive)
        except (OSError, RuntimeError, EOFError, HTTPException, tarfile.TarError, zlib.error) as error:
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # leaves what is not empty
            raise ValueError(f"{name} cannot be downloaded to data_dir={data_dir}: {_line(error)}") from error
    try:
        return [load(train) for train in (True, False)]
    except (OSError, RuntimeError, ValueError, AssertionError, LookupError) as error:
        raise ValueError(f"{name} in {files[0].parent} is damaged ({_line(error)}); delete it there") from error


def _download(archive: Archive) -> None:
    """Download and unpack what is missing, nothing where another process just has. What ends that early leaves no part
    of this archive; those before it are whole and stay."""
    missing = [path for path in archive.files if not path.is_file()]
    try:
        if missing:
            _fetch(archive)
            _unpack(archive, missing)
    except BaseException:  # Ctrl-C too
        for path in (archive.path, *missing):
            path.unlink(missing_ok=True)
        raise


def _fetch(archive: Archive) -> None:
    """An archive from the first of its mirrors that gives it with both sums right. Raises RuntimeError for none."""
    from torchvision.datasets.utils import download_url

    said = []
    for url in archive.urls:
        try:
            download_url(url, archive.path.parent, archive.path.name, archive.md5)
            with archive.path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found == archive.sha256:
                return
            said.append(f"its SHA-256 is {found[:12]}..., not {archive.sha256[:12]}...")
        except (OSError, RuntimeError, HTTPException) as error:
            said.append(_line(error))
        archive.path.unlink(missing_ok=True)
    raise RuntimeError(f"{archive.path.name}: {'; '.join(dict.fromkeys(said))}")


def _unpack(archive: Archive, missing: list[Path]) -> None:
    """Write the missing files of an archive; whatever else it holds, wherever that would go, is passed over."""
    wanted = {path.relative_to(archive.path.parent).as_posix(): path for path in missing if path != archive.path}
    if archive.path.name.endswith(".tar.gz"):
        with tarfile.open(archive.path) as packed:
            for member in packed:  # in its order: to go back would unpack all from the start again
                if member.isfile() and member.name in wanted:
                    _write(packed.extractfile(member), wanted.pop(member.name))
    elif wanted:
        with gzip.open(archive.path) as packed:
            _write(packed, wanted.popitem()[1])
    if wanted:
        raise RuntimeError(f"{archive.path.name} lacks {', '.join(wanted)}")


def _write(packed: Any, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        shutil.copyfileobj(packed, file)


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
