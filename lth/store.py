"""The store: values of stages on disk, named by their keys, verified on every read, committed atomically.

    stages/<2 digits>/<key>/   value.json  value.safetensors  manifest.json
    work/<key>.<step>/         the same: checkpoints of trainings in flight
    bad/                       entries that failed verification, set aside
    tmp/                       entries being written; a killed writer leaves its folder here
    leases/<unit>              who computes what now
    machines/                  what was measured of machines (lth/machine.py)

Commit: write every file into a folder of its own under tmp/, fsync each, write the manifest (SHA-256 and size of every
file, and its own SHA-256) last, fsync the folder, rename the folder into place, fsync the parent. A reader sees a whole
entry or none. Tensors are safetensors, the rest is JSON; nothing here can execute code.

Leases save work and nothing else: two owners of one unit would commit the same bytes, and the first commit stands.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

from filelock import SoftFileLease
from safetensors.torch import load, save

from lth.stage import Diverged, Stage, canonical, digest

log = logging.getLogger("lth")

LEASE_SECONDS = 30.0  # a lease whose owner has been silent for so long is taken over; a dead process's at once


class StoreError(Exception):
    """The store cannot be read or written; the message is one line with the path."""


def check_writable(path: Path, name: str) -> None:
    """Raises StoreError, naming `name`, unless `path` is a folder that can be written or one that can be made."""
    try:
        existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        Path(tempfile.mkdtemp(dir=existing)).rmdir()  # trying is the only answer that counts: permissions lie to root
    except OSError as error:
        raise StoreError(f"{name}={path} cannot be written: {_reason(error)}; choose another") from error


def _reason(error: OSError) -> str:
    return f"{error.strerror} ({Path(str(error.filename)).parent})" if error.filename else str(error.strerror)


class Store:
    """Values of stages below `root`, which is made when the first one is written."""

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def _place(self, key: str) -> Path:
        return self.root / "stages" / key[:2] / _checked(key)

    # Values of stages

    def present(self, key: str) -> bool:
        """True if an entry stands there, good or bad: a quick look."""
        return self._place(key).is_dir()

    def holds(self, key: str) -> bool:
        """True if a verified entry is stored. A bad one is set aside with a warning, and counts as absent."""
        return self._read(self._place(key)) is not None

    def read(self, stage: Stage) -> Any:
        """The value of a stored stage. Raises StoreError if it is absent or was found bad."""
        entry = self._read(self._place(stage.key))
        if entry is None:
            raise StoreError(f"{stage} is not in the store {self.root}; run the same command again to make it")
        tensors, meta, _ = entry
        if meta.keys() == {"diverged_step"}:
            return Diverged(meta["diverged_step"])
        return stage.task.value.unpack(tensors, meta)

    def manifest(self, key: str) -> dict:
        """Provenance of a stored stage: its description (task, inputs), files, seconds, versions. Raises StoreError."""
        entry = self._read(self._place(key))
        if entry is None:
            raise StoreError(f"{key[:12]} is not in the store {self.root}; run the same command again to make it")
        return entry[2]

    def commit(self, stage: Stage, value: Any, about: dict) -> None:
        """Store a value with its provenance `about` (seconds, versions). Storing what is there changes nothing."""
        self._write(self._place(stage.key), value.pack(), {"stage": stage.description, **about})

    def drop(self, key: str) -> None:
        """Forget a value; it can be made again."""
        self._discard(self._place(key))

    # Checkpoints of trainings in flight

    def checkpoint(self, key: str, step: int, parts: tuple[dict, dict]) -> None:
        """Keep (tensors, meta) of a training in flight; earlier steps go once this one is committed."""
        place = self.root / "work" / f"{_checked(key)}.{step:012d}"
        self._write(place, parts, {})
        for entry in self._checkpoints(key):
            if entry.name < place.name:
                self._discard(entry)

    def resume(self, key: str) -> tuple[dict, dict] | None:
        """(tensors, meta) of the newest good checkpoint of a training, or None."""
        for entry in reversed(self._checkpoints(key)):
            if (parts := self._read(entry)) is not None:
                return parts[:2]
        return None

    def finished(self, key: str) -> None:
        """Forget the checkpoints of a training whose values are committed."""
        for entry in self._checkpoints(key):
            self._discard(entry)

    def _checkpoints(self, key: str) -> list[Path]:
        return sorted((self.root / "work").glob(f"{_checked(key)}.*"))

    # Leases

    def lease(self, unit: str) -> SoftFileLease:
        """The lease of a unit of work, not taken yet: `acquire(blocking=False)` raises filelock.Timeout while another
        process has it, on this machine or on another one that sees the store. Its owner's heart beats until `release`.
        Without flock, which does not exclude over NFS.
        """
        place = self.root / "leases" / _checked(unit)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write {place}: {error.strerror}; mend that, run again") from error
        return SoftFileLease(place, lease_duration=LEASE_SECONDS)

    # Files

    def _write(self, place: Path, parts: tuple[dict, dict], about: dict) -> None:
        tensors, meta = parts
        files = {"value.json": canonical(meta)}
        if tensors:
            files["value.safetensors"] = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        sums = {
            n: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)} for n, content in files.items()
        }
        manifest = about | {"files": sums}
        manifest["sha256"] = hashlib.sha256(canonical(manifest)).hexdigest()
        folder = self.root / "tmp" / uuid.uuid4().hex
        try:
            folder.mkdir(parents=True)
            for name, content in [*files.items(), ("manifest.json", canonical(manifest))]:
                with (folder / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            sync(folder)
            if not place.parent.is_dir():
                place.parent.mkdir(parents=True, exist_ok=True)
                for made in (place.parent.parent, self.root):  # their own names, too, are to outlive a power cut
                    sync(made)
            try:
                folder.rename(place)
            except OSError:
                # Somebody committed the same key first: the same value, by law 4. Unless what stands there is bad.
                if self._read(place) is None:
                    folder.rename(place)
            sync(place.parent)
        except OSError as error:
            size = sum(len(content) for content in files.values())
            raise StoreError(f"cannot write {size} bytes to {place}: {error.strerror}; mend that, run again") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _read(self, place: Path) -> tuple[dict, dict, dict] | None:
        """(tensors, meta, manifest), or None where there is no entry or a bad one, which is set aside."""
        if not place.is_dir():
            return None
        try:
            written = (place / "manifest.json").read_bytes()
            manifest = json.loads(written)
            if canonical(manifest) != written:
                raise ValueError("manifest.json is not as it was written")
            claimed = manifest.pop("sha256")
            if hashlib.sha256(canonical(manifest)).hexdigest() != claimed:
                raise ValueError("manifest.json does not match its checksum")
            if "stage" in manifest and digest(manifest["stage"]) != place.name:
                raise ValueError("it is the entry of another stage")
            content = {}
            for name, expected in manifest["files"].items():
                content[name] = (place / name).read_bytes()
                if hashlib.sha256(content[name]).hexdigest() != expected["sha256"]:
                    raise ValueError(f"{name} does not match its checksum")
            tensors = load(content["value.safetensors"]) if "value.safetensors" in content else {}
            return tensors, json.loads(content["value.json"]), manifest
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            if not place.is_dir():  # another worker dropped it while we looked
                return None
            reason = f"{Path(str(error.filename)).name} is missing"
        except OSError as error:
            if error.errno != errno.EIO:  # says nothing about the entry: too many open files, no permission, stale
                raise StoreError(f"cannot read {place}: {error.strerror}; mend that and run again") from error
            reason = "its disk cannot be read there"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())
        log.warning("%s is damaged (%s); it is set aside and will be computed again", place, reason)
        try:
            (self.root / "bad").mkdir(exist_ok=True)
            place.rename(self.root / "bad" / f"{place.name}-{uuid.uuid4().hex[:8]}")
        except FileNotFoundError:
            pass  # another worker has set it aside
        except OSError as error:
            raise StoreError(f"cannot set {place} aside: {error.strerror}; mend that and run again") from error
        return None

    def _discard(self, place: Path) -> None:
        """Remove a folder in one step for readers: out of the way first, then file by file."""
        trash = self.root / "tmp" / uuid.uuid4().hex
        try:
            trash.parent.mkdir(parents=True, exist_ok=True)
            place.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)
        except FileNotFoundError:
            pass  # it is not there
        except OSError as error:
            raise StoreError(f"cannot remove {place}: {error.strerror}; mend that and run again") from error


def _checked(key: str) -> str:
    """A key, which names nothing outside its folder. Raises StoreError for anything but 64 hex digits."""
    if not re.fullmatch("[0-9a-f]{64}", key):
        raise StoreError(f"{key!r} is not a key of the store; a key is 64 hex digits")
    return key


def sync(folder: Path) -> None:
    """Make a rename or a new name in `folder` durable (POSIX; other systems do it by themselves)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
