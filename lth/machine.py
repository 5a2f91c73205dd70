"""Machine: what fixes speed and low-order bits here, and what was measured of it, once for all runs of a store.

    machines/<12 digits of the digest of machine()>/<name>-<12 digits of the digest of about>.json

in the store's folder: what a measurement chose is taken again by every worker and by every later command on such a
machine, so that a resumed run goes on as it began (law 6). Another machine, or another torch, measures anew.
"""

import json
import logging
import os
import platform
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lth.stage import canonical, describe, digest
from lth.store import Store, StoreError, sync

log = logging.getLogger("lth")


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict:
    """CPU, the vector instructions that torch takes there, cores that this process may use, GPUs, version of torch."""
    return {
        "cpu": _cpu(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": num_cores(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "torch": str(torch.__version__),
    }


def _cpu() -> str:
    """Its model, where the system says; else the architecture."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def recalled(root: Path, name: str, about: Any, measure: Callable[[], dict]) -> dict:
    """What `measure` found on this machine, as the first process that asked wrote it into the store's folder `root`.

    name, about: what is measured, a word and its settings; `about` is described as the inputs of a stage are. measure()
    -> JSON; it is called where there is no record, or a damaged one, by one process at a time. Raises StoreError where
    the record cannot be read or written.
    """
    here, about = machine(), describe(about)
    place = root / "machines" / digest(here)[:12] / f"{name}-{digest(about)[:12]}.json"
    if (found := _read(place, here, about)) is not None:
        return found
    with Store(root).lease(digest([name, here, about])):  # two that measure at once would slow each other down
        if (found := _read(place, here, about)) is not None:
            return found
        if place.exists():
            log.warning("%s is damaged; it is measured again", place)
        when = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"machine": here, "about": about, "when": when, "found": measure()}
        draft = place.with_name(uuid.uuid4().hex)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                file.write(canonical(record | {"sha256": digest(record)}) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if (found := _read(place, here, about)) is None:  # else another took the lease over, and was first
                draft.replace(place)
                sync(place.parent)
        except OSError as error:
            raise StoreError(f"cannot write {place}: {error.strerror}; mend that, run again") from error
        finally:
            draft.unlink(missing_ok=True)
    return found if found is not None else json.loads(canonical(record))["found"]


def _read(place: Path, here: dict, about: Any) -> dict | None:
    """What a good record found; None where there is no record, or a damaged one."""
    try:
        record = json.loads(place.read_bytes())
        claimed = record.pop("sha256")
        whole = digest(record) == claimed and (record["machine"], record["about"]) == (here, about)
        return record["found"] if whole else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {place}: {error.strerror}; mend that and run again") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
