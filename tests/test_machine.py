"""Machine: what was measured is written once for a machine and a question, and taken again by all who ask after."""

import json
import multiprocessing
import time
from pathlib import Path

import pytest
import torch

import lth.machine
from lth.machine import machine, num_cores, recalled
from lth.store import Store, StoreError


class Measure:
    """Finds another number each time."""

    def __init__(self):
        self.times = 0

    def __call__(self) -> dict:
        self.times += 1
        return {"choice": f"measured {self.times}", "seconds": (0.1, self.times)}


def test_a_machine_is_what_torch_and_the_system_say():
    here = machine()
    assert json.loads(json.dumps(here)) == here and here == machine()
    assert here["torch"] == torch.__version__ and here["capability"] in torch.__config__.show()
    assert here["cores"] == num_cores() >= 1 and here["cpu"]


def test_gpus_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    assert machine()["gpus"] == ["GPU 0", "GPU 1"]


def test_measured_once_for_a_machine_a_name_and_settings(tmp_path: Path, monkeypatch):
    measure = Measure()
    first = recalled(tmp_path, "probe", {"shape": (3, 4.0)}, measure)
    assert first == {"choice": "measured 1", "seconds": [0.1, 1]}  # as JSON has it, from the first time on
    assert recalled(tmp_path, "probe", {"shape": [3, 4]}, measure) == first and measure.times == 1
    assert recalled(tmp_path, "probe", {"shape": [3, 5]}, measure)["choice"] == "measured 2"
    assert recalled(tmp_path, "other", {"shape": [3, 4]}, measure)["choice"] == "measured 3"
    here = machine()
    for number, (field, there) in enumerate({"torch": "2.10.0", "cpu": "another", "cores": 999}.items(), 4):
        monkeypatch.setattr(lth.machine, "machine", lambda changed={field: there}: here | changed)
        assert recalled(tmp_path, "probe", {"shape": [3, 4]}, measure)["choice"] == f"measured {number}"
    monkeypatch.setattr(lth.machine, "machine", lambda: here)
    assert recalled(tmp_path, "probe", {"shape": [3, 4]}, measure) == first


def test_a_record_says_what_it_is_of(tmp_path: Path):
    recalled(tmp_path, "probe", {"shape": [3, 4]}, Measure())
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    record = json.loads(file.read_text())
    assert file.name.startswith("probe-") and file.parent.parent == tmp_path / "machines"
    assert record["machine"] == machine() and record["about"] == {"shape": [3, 4]}
    assert record["found"]["choice"] == "measured 1" and record["when"].startswith("20")


def test_a_damaged_record_is_measured_again(tmp_path: Path, caplog):
    """Cut off, empty, of no form, or with any one byte another: one warning, and a whole record stands there again."""
    measure = Measure()
    recalled(tmp_path, "probe", None, measure)
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    whole = file.read_bytes()
    bent = [whole[:-20], b"", b"[]", b"{}", b"\xff", whole.replace(b"measured 1", b"measured 8")]
    for number, content in enumerate(bent, 2):
        file.write_bytes(content)
        caplog.clear()
        found = recalled(tmp_path, "probe", None, measure)
        assert found["choice"] == f"measured {number}" and [r.levelname for r in caplog.records] == ["WARNING"]
        assert recalled(tmp_path, "probe", None, measure) == found
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]  # no draft, no lease is left


def test_what_raises_leaves_nothing(tmp_path: Path):
    with pytest.raises(ZeroDivisionError):
        recalled(tmp_path, "probe", None, lambda: {"share": 1 / 0})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert recalled(tmp_path, "probe", None, Measure())["choice"] == "measured 1"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "machines").write_text("a file")
    with pytest.raises(StoreError, match="machines") as caught:
        recalled(tmp_path, "probe", None, Measure())
    assert len(str(caught.value).splitlines()) == 1


def test_the_first_who_writes_wins(tmp_path: Path):
    """One whose lease was taken over while it measured computes as the one that was faster."""
    fast = Measure()

    def slow() -> dict:
        with pytest.MonkeyPatch.context() as patch:  # its lease is gone
            patch.setattr(Store, "lease", lambda self, unit: multiprocessing.Lock())
            assert recalled(tmp_path, "probe", None, fast)["choice"] == "measured 1"
        return {"choice": "too late"}

    assert recalled(tmp_path, "probe", None, slow)["choice"] == "measured 1"
    assert recalled(tmp_path, "probe", None, slow)["choice"] == "measured 1" and fast.times == 1


def _ask(root: str, number: int, gate, pipe) -> None:
    def measure() -> dict:
        Path(root, f"measured by {number}").touch()
        time.sleep(0.3)
        return {"by": number}

    gate.wait()
    pipe.send(recalled(Path(root), "probe", None, measure))


def test_processes_that_ask_at_once_get_one_answer(tmp_path: Path):
    """And one of them measures, undisturbed by the other."""
    start = multiprocessing.get_context("forkserver")
    gate, asked = start.Barrier(2), []
    for number in range(2):
        ours, theirs = start.Pipe()
        process = start.Process(target=_ask, args=(str(tmp_path), number, gate, theirs))
        process.start()
        asked.append((process, ours))
    answers = [pipe.recv() for _, pipe in asked]
    for process, pipe in asked:
        process.join()
        pipe.close()
    assert answers[0] == answers[1] == recalled(tmp_path, "probe", None, Measure())
    assert len(list(tmp_path.glob("measured by *"))) == 1
