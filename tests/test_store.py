"""Law 5: nothing half-written is ever read. Whatever happens to an entry or to its writer, a reader sees what was
committed, whole, or nothing."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lth.mask import Mask
from lth.stage import Diverged, Numbers, digest, task
from lth.state import TrainState
from lth.store import Store, StoreError, check_writable

ABOUT = {"seconds": 0.5, "versions": {"torch": "2"}}
FILES = ("value.json", "value.safetensors", "manifest.json")


@task(version=1, value=TrainState)
def state(context, name):
    """A stage of a TrainState."""


@task(version=1, value=Mask)
def mask(context, name):
    """A stage of a Mask."""


@task(version=1, value=Numbers)
def numbers(context, name):
    """A stage of Numbers."""


STATE = TrainState(
    7,
    {"0.weight": torch.linspace(-1, 1, 12).reshape(3, 4), "0.bias": torch.tensor([-0.0, float("nan"), float("inf")])},
    {"1.num_batches_tracked": torch.tensor(2**62), "1.running_mean": torch.zeros(0)},
    {"0.weight/exp_avg": torch.ones(3, 4).T, "0.weight/step": torch.tensor(3.0)},
)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def same(one: TrainState, other: TrainState) -> bool:
    """Equal in names, types, shapes and every bit."""

    def spelled(state: TrainState) -> dict:
        parts = {"params": state.params, "buffers": state.buffers, "optimizer": state.optimizer}
        return {
            (part, name): (t.dtype, tuple(t.shape), bytes(t.contiguous().reshape(-1).view(torch.uint8).tolist()))
            for part, tensors in parts.items()
            for name, t in tensors.items()
        }

    return one.step == other.step and spelled(one) == spelled(other)


def place(store: Store, key: str) -> Path:
    return store.root / "stages" / key[:2] / key


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, files with their content."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def left_over(store: Store) -> list[Path]:
    """What lies in tmp/."""
    return list((store.root / "tmp").iterdir()) if (store.root / "tmp").exists() else []


def set_aside(store: Store) -> list[Path]:
    """What lies in bad/."""
    return list((store.root / "bad").iterdir()) if (store.root / "bad").exists() else []


# Round trips


def test_state_round_trip(store):
    """float32 and int64, no dimension, no element, not contiguous, NaN and -0, empty parts: every bit comes back."""
    for name, value in (("full", STATE), ("bare", TrainState(0, {"w": torch.ones(1)})), ("empty", TrainState(3, {}))):
        store.commit(state(name=name), value, ABOUT)
        assert same(store.read(state(name=name)), value)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int8, torch.uint8, torch.bool]
)
def test_other_types_round_trip(store, dtype):
    """What other optimisers and buffers hold comes back in its type."""
    value = TrainState(1, {"w": torch.tensor([[0, 1], [1, 0]]).to(dtype)})
    store.commit(state(name="x"), value, ABOUT)
    assert same(store.read(state(name="x")), value)


def test_mask_round_trip(store):
    """A mask comes back equal, whatever its number of bits."""
    value = Mask({"a": torch.arange(13) % 3 == 0, "b": torch.eye(3), "c": torch.zeros(2, 1, 2)})
    store.commit(mask(name="x"), value, ABOUT)
    assert store.read(mask(name="x")) == value


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5).filter(lambda name: name != "diverged_step"), json_values, max_size=4))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_numbers_round_trip(tmp_path_factory, content):
    """Numbers come back equal to the last digit, in their types."""
    store, stage = Store(tmp_path_factory.mktemp("store")), numbers(name="x")
    store.commit(stage, Numbers(content), ABOUT)
    found = store.read(stage)
    assert type(found) is Numbers
    assert json.dumps(found, sort_keys=True) == json.dumps(content, sort_keys=True)


@pytest.mark.parametrize("kind", [state, mask, numbers])
def test_diverged_round_trip(store, kind):
    """A stage of any kind may hold Diverged instead of its value."""
    store.commit(kind(name="x"), Diverged(12), ABOUT)
    assert store.read(kind(name="x")) == Diverged(12)


def test_absent(store):
    """What was never committed is not held, nobody is warned, and reading it is one line with the store's path."""
    stage = numbers(name="x")
    assert not store.holds(stage.key)
    assert not store.present(stage.key)
    with pytest.raises(StoreError, match=r"^[^\n]*$") as caught:
        store.read(stage)
    assert str(store.root) in str(caught.value)
    assert not set_aside(store)


def test_commit_is_idempotent(store):
    """Storing what is there changes no byte, even with other provenance; the manifest says what made the value."""
    stage = state(name="x")
    store.commit(stage, STATE, ABOUT)
    before, inode = tree(store.root), place(store, stage.key).stat().st_ino
    store.commit(stage, STATE, {"seconds": 99})
    assert tree(store.root) == before
    assert place(store, stage.key).stat().st_ino == inode
    manifest = store.manifest(stage.key)
    assert digest(manifest["stage"]) == stage.key
    assert {name: manifest[name] for name in ABOUT} == ABOUT
    assert sorted(path.name for path in place(store, stage.key).iterdir()) == sorted(FILES)


def test_equal_values_are_equal_bytes(store):
    """Nothing but the value and its provenance is in an entry: two stores hold the same bytes."""
    other = Store(store.root.parent / "other")
    for each in (store, other):
        each.commit(state(name="x"), STATE, ABOUT)
    assert tree(store.root / "stages") == tree(other.root / "stages")


def test_drop(store):
    """A dropped value is gone, without a warning, and can be made again; dropping what is not there is nothing."""
    stage = numbers(name="x")
    store.drop(stage.key)
    store.commit(stage, Numbers(a=1), ABOUT)
    store.commit(numbers(name="y"), Numbers(a=2), ABOUT)
    store.drop(stage.key)
    assert not store.holds(stage.key)
    assert store.read(numbers(name="y")) == {"a": 2}
    assert not left_over(store)
    assert not set_aside(store)
    store.commit(stage, Numbers(a=1), ABOUT)
    assert store.read(stage) == {"a": 1}


def test_dropped_while_being_read(store, monkeypatch, caplog):
    """An entry that another worker drops under a reader's hands is absent, not damaged."""
    stage, read_bytes = numbers(name="x"), Path.read_bytes
    for file in ("manifest.json", "value.json"):
        store.commit(stage, Numbers(a=1), ABOUT)

        def dropping(path: Path, file: str = file) -> bytes:
            if path.name == file:
                store.drop(stage.key)
            return read_bytes(path)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", dropping)
            assert not store.holds(stage.key)
    assert not caplog.records
    assert not set_aside(store)


# Damage


def flips(content: bytes) -> list[tuple[str, bytes]]:
    """One bit wrong: each bit of the first and last 8 bytes, and 150 between."""
    bits = {*range(64), *range(8 * len(content) - 64, 8 * len(content))}
    bits |= set(random.Random(0).sample(range(8 * len(content)), min(150, 8 * len(content))))
    changed = []
    for bit in sorted(bit for bit in bits if 0 <= bit < 8 * len(content)):
        wrong = bytearray(content)
        wrong[bit // 8] ^= 1 << bit % 8
        changed.append((f"bit {bit}", bytes(wrong)))
    return changed


def cuts(content: bytes) -> list[tuple[str, bytes]]:
    """Truncated, to nothing and by one byte too; and one byte too long."""
    lengths = {0, 1, len(content) // 2, len(content) - 1, *random.Random(1).sample(range(len(content)), 10)}
    return [*((f"cut to {n}", content[:n]) for n in sorted(lengths)), ("longer", content + b"x")]


def holes(content: bytes) -> list[tuple[str, bytes]]:
    """Blocks of 16 bytes that a file system gave back as zeros, and a file of zeros."""
    blocks = [content[:i] + bytes(len(content[i : i + 16])) + content[i + 16 :] for i in range(0, len(content), 16)]
    return [(f"hole {i}", block) for i, block in enumerate([*blocks, bytes(len(content))]) if block != content]


@pytest.mark.parametrize("damage", [flips, cuts, holes], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("file", FILES)
def test_damage_is_noticed(store, caplog, file, damage):
    """Any such change in any file: not held, set aside under bad/ as it was, one warning line that names it, and the
    next commit stores the value again."""
    stage = state(name="x")
    store.commit(stage, STATE, ABOUT)
    entry = place(store, stage.key)
    good = tree(entry)
    for number, (what, content) in enumerate(damage(good[file]), start=1):
        (entry / file).write_bytes(content)
        caplog.clear()
        assert not store.holds(stage.key), what
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert str(entry) in record.getMessage()
        assert "\n" not in record.getMessage()
        assert not entry.exists()
        aside = set_aside(store)
        assert len(aside) == number
        entry.mkdir()
        for name, part in good.items():
            (entry / name).write_bytes(part)
    caplog.clear()
    (entry / file).write_bytes(content)
    store.commit(stage, STATE, ABOUT)  # over a bad entry
    assert len(caplog.records) == 1
    assert same(store.read(stage), STATE)
    shutil.rmtree(store.root / "bad")
    (entry / file).write_bytes(content)
    assert not store.holds(stage.key)
    assert tree(set_aside(store)[0]) == good | {file: content}
    assert not left_over(store)


@pytest.mark.parametrize("file", FILES)
def test_missing_and_exchanged_files_are_noticed(store, caplog, file):
    """A file deleted, taken from another entry, or a folder in its place: one warning line, set aside, made again."""
    one, two = state(name="one"), state(name="two")
    other = TrainState(8, {"w": torch.ones(2)})

    def removed(path: Path) -> None:
        path.unlink()

    def exchanged(path: Path) -> None:
        theirs = place(store, two.key) / file
        path.rename(path.with_suffix(".hold"))
        theirs.rename(path)
        path.with_suffix(".hold").rename(theirs)

    def a_folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    for number, damage in enumerate((removed, exchanged, a_folder), start=1):
        store.commit(one, STATE, ABOUT)
        store.commit(two, other, ABOUT)
        damage(place(store, one.key) / file)
        for stage in (one, two) if damage is exchanged else (one,):
            caplog.clear()
            assert not store.holds(stage.key)
            assert len(caplog.records) == 1
            assert not store.holds(stage.key)
            assert len(caplog.records) == 1
        assert len(set_aside(store)) == number + (number > 1)
    store.commit(one, STATE, ABOUT)
    store.commit(two, other, ABOUT)
    assert same(store.read(one), STATE)
    assert same(store.read(two), other)


def test_an_entry_under_another_name_is_noticed(store):
    """Two whole entries exchanged (a careless mv, a file system that mixes up folders): neither value is served under
    the other's key."""
    one, two = numbers(name="one"), numbers(name="two")
    store.commit(one, Numbers(a=1), ABOUT)
    store.commit(two, Numbers(a=2), ABOUT)
    place(store, one.key).rename(store.root / "hold")
    place(store, two.key).parent.mkdir(exist_ok=True)
    place(store, two.key).rename(place(store, one.key))
    (store.root / "hold").rename(place(store, two.key))
    assert not store.holds(one.key)
    with pytest.raises(StoreError):
        store.read(two)


def test_the_manifest_is_read_to_the_letter(store):
    """Also what JSON reads as the same is noticed: a flipped bit in the last of 17 digits, a space at the end."""
    stage = numbers(name="x")
    for old, new in ((b"0.30000000000000004", b"0.30000000000000005"), (b"}}", b"}} ")):
        store.commit(stage, Numbers(a=1), {"seconds": 0.1 + 0.2})
        path = place(store, stage.key) / "manifest.json"
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new))
        assert not store.holds(stage.key), new


@pytest.mark.parametrize("reason", [errno.EMFILE, errno.EACCES, errno.ESTALE, errno.ENOMEM], ids=os.strerror)
def test_what_cannot_be_opened_is_not_damaged(store, monkeypatch, reason):
    """Too many open files or a missing permission says nothing about an entry: StoreError, and the entry stays."""
    stage = numbers(name="x")
    store.commit(stage, Numbers(a=1), ABOUT)

    def refuse(path: Path) -> bytes:
        raise OSError(reason, os.strerror(reason), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with contextlib.suppress(StoreError):
            assert not store.holds(stage.key)
    assert not set_aside(store)
    assert store.read(stage) == {"a": 1}


def test_a_bad_sector_is_damage(store, monkeypatch, caplog):
    """EIO is the disk's word that the entry is lost: set aside with one warning, and computed again."""
    stage = numbers(name="x")
    store.commit(stage, Numbers(a=1), ABOUT)

    def lost(path: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lost)
        assert not store.holds(stage.key)
    assert len(caplog.records) == 1 and len(set_aside(store)) == 1
    store.commit(stage, Numbers(a=1), ABOUT)
    assert store.read(stage) == {"a": 1}


@pytest.mark.parametrize("operation", ["mkdir", "rename"])
def test_a_bad_entry_that_cannot_be_set_aside(store, monkeypatch, operation):
    """On a read-only disk a bad entry is a StoreError of one line with its path, not an OSError."""
    stage = numbers(name="x")
    store.commit(stage, Numbers(a=1), ABOUT)
    (place(store, stage.key) / "value.json").write_bytes(b"{}")
    with monkeypatch.context() as patch:
        fail(patch, operation, 1, forever=True)
        with pytest.raises(StoreError, match=r"^[^\n]*$") as caught:
            store.holds(stage.key)
    assert str(store.root) in str(caught.value)


# Failing writes


class Broken:
    """A file of which every write stops half way with OSError where `tick` says so."""

    def __init__(self, file, tick: Callable[[], None]):
        self.file, self.tick = file, tick

    def __enter__(self) -> "Broken":
        return self

    def __exit__(self, *error) -> None:
        self.file.close()

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def write(self, content: bytes) -> int:
        try:
            self.tick()
        except OSError:
            self.file.write(content[: len(content) // 2])
            raise
        return self.file.write(content)


def fail(patch: pytest.MonkeyPatch, operation: str, nth: int, forever: bool) -> list[int]:
    """Let the nth call of a file operation, and with `forever` all later ones, raise ENOSPC. Returns its counter."""
    calls = [0]

    def tick() -> None:
        calls[0] += 1
        if calls[0] == nth or (forever and calls[0] > nth):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def ticking(function: Callable) -> Callable:
        def wrapper(*args, **kwargs):
            tick()
            return function(*args, **kwargs)

        return wrapper

    plain_open = Path.open
    if operation == "write":
        patch.setattr(Path, "open", lambda path, *args, **kwargs: Broken(plain_open(path, *args, **kwargs), tick))
    else:
        owner = os if operation == "fsync" else Path
        patch.setattr(owner, operation, ticking(getattr(owner, operation)))
    return calls


OPERATIONS = ("fsync", "open", "write", "rename", "mkdir")


@pytest.mark.parametrize("forever", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_commit_that_fails_leaves_all_or_nothing(tmp_path, monkeypatch, caplog, operation, forever):
    """The disk is full at the n-th file operation, for every n: the whole entry or none, StoreError in one line with
    the path, nothing in tmp/, and once there is room again the same commit works."""
    stage, nth, failures = state(name="x"), 0, 0
    while True:
        nth += 1
        store = Store(tmp_path / f"store{nth}")
        failed = None
        with monkeypatch.context() as patch:
            calls = fail(patch, operation, nth, forever)
            try:
                store.commit(stage, STATE, ABOUT)
            except StoreError as error:
                failed = str(error)
        whole = store.present(stage.key)
        assert whole or failed
        if whole:
            assert same(store.read(stage), STATE)
        if failed:
            failures += 1
            assert "\n" not in failed
            assert str(place(store, stage.key)) in failed
        assert not left_over(store)
        assert not set_aside(store)
        store.commit(stage, STATE, ABOUT)
        assert same(store.read(stage), STATE)
        if calls[0] < nth:
            break
    assert not caplog.records
    assert nth > 1
    assert failures or (operation == "rename" and not forever)  # which is tried a second time


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_checkpoint_that_fails_leaves_one(tmp_path, monkeypatch, operation):
    """The disk is full at the n-th file operation of a checkpoint, or of finishing: StoreError alone, and the older
    checkpoint or the newer one is there."""
    key, nth = digest("run"), 0
    while True:
        nth += 1
        store = Store(tmp_path / f"store{nth}")
        store.checkpoint(key, 10, ({"w": torch.ones(2)}, {"step": 10}))
        with monkeypatch.context() as patch:
            calls = fail(patch, operation, nth, forever=True)
            with contextlib.suppress(StoreError):
                store.checkpoint(key, 20, ({"w": torch.ones(2)}, {"step": 20}))
        assert store.resume(key)[1]["step"] in (10, 20)
        with monkeypatch.context() as patch:
            fail(patch, operation, nth, forever=True)
            with contextlib.suppress(StoreError):
                store.finished(key)
        assert store.resume(key) is None or store.resume(key)[1]["step"] in (10, 20)
        assert not set_aside(store)
        if calls[0] < nth:
            break


# Several writers, killed writers


def forked(work: Callable[[], None]) -> int:
    """Run `work` in a child process that ends without a trace of pytest; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """Exit code of a child, negative the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_every_file_is_flushed_before_it_is_named(store, monkeypatch):
    """What a power cut may take: all files of an entry, and the folder that names them, are fsynced before the rename
    that is the commit, and the folder that names the entry after it."""
    fsync, rename, stage, events = os.fsync, Path.rename, state(name="x"), []

    def noting_fsync(handle: int) -> None:
        events.append(os.fstat(handle).st_ino)
        fsync(handle)

    def noting_rename(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", noting_fsync)
        patch.setattr(Path, "rename", noting_rename)
        store.commit(stage, STATE, ABOUT)
    entry = place(store, stage.key)
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    assert set(before) >= {path.stat().st_ino for path in (*(entry / name for name in FILES), entry)}
    assert before.index((entry / "manifest.json").stat().st_ino) == before.index(entry.stat().st_ino) - 1  # the last
    assert set(before) >= {path.stat().st_ino for path in (entry.parent.parent, store.root)}  # they name new folders
    assert entry.parent.stat().st_ino in after


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_in_a_commit(tmp_path, caplog):
    """SIGKILL inside the n-th fsync of a commit, for every n: the whole entry or none, and no reader is warned; the
    same commit works afterwards."""
    stage, nth, code = state(name="x"), 0, -signal.SIGKILL
    fsync, found = os.fsync, []
    while code:
        nth += 1
        store, left = Store(tmp_path / f"store{nth}"), [nth]

        def killing(handle: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(handle)

        def commit(store: Store = store, killing: Callable = killing) -> None:
            os.fsync = killing
            store.commit(stage, STATE, ABOUT)

        code = ended(forked(commit))
        assert code in (0, -signal.SIGKILL)
        found.append(store.present(stage.key))
        assert store.holds(stage.key) == found[-1]
        store.commit(stage, STATE, ABOUT)
        assert same(store.read(stage), STATE)
    assert not caplog.records
    assert found == sorted(found)  # nothing before the rename, the entry after it
    assert found[0] is False
    assert len(found) > 3


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_writers_of_one_key(store, caplog):
    """Four processes that commit the same key at the same moment all succeed, and there is one entry."""
    for number in range(8):
        stage = state(name=number)
        ready, go = os.pipe()

        def commit(stage=stage, ready=ready, go=go) -> None:
            os.close(go)
            os.read(ready, 1)  # returns when the parent closes its end
            store.commit(stage, STATE, ABOUT)

        children = [forked(commit) for _ in range(4)]
        os.close(ready)
        os.close(go)
        assert [ended(child) for child in children] == [0] * 4
        assert same(store.read(stage), STATE)
    assert len(list((store.root / "stages").glob("*/*"))) == 8
    assert not left_over(store)
    assert not set_aside(store)
    assert not caplog.records


# Checkpoints


def test_checkpoints(store):
    """The newest is what resume gives; earlier ones go; finished forgets them all; other keys and the stages stay."""
    one, two = digest("one"), digest("two")
    assert store.resume(one) is None
    store.checkpoint(two, 5, ({}, {"step": 5}))
    for step in (9, 10, 100):
        store.checkpoint(one, step, ({"w": torch.full((3,), step)}, {"step": step, "points": [{"loss": 0.1}]}))
        tensors, meta = store.resume(one)
        assert meta == {"step": step, "points": [{"loss": 0.1}]}
        assert tensors["w"].tolist() == [step] * 3
        assert len(list((store.root / "work").glob(f"{one}.*"))) == 1
    assert not store.present(one)
    store.finished(one)
    store.finished(one)
    assert store.resume(one) is None
    assert store.resume(two) == ({}, {"step": 5})
    assert not left_over(store)


def test_a_bad_checkpoint_gives_way_to_the_one_before(store, caplog):
    """Killed between a checkpoint's commit and the removal of the last one, and the new one is bad: the old one."""
    key = digest("run")
    store.checkpoint(key, 10, ({}, {"step": 10}))
    folder = store.root / "work"
    (older,) = folder.iterdir()
    shutil.copytree(older, store.root / "copy")
    store.checkpoint(key, 20, ({}, {"step": 20}))
    (newer,) = folder.iterdir()
    (store.root / "copy").rename(older)
    (newer / "value.json").write_bytes(b'{"step":21}')
    assert store.resume(key) == ({}, {"step": 10})
    assert len(caplog.records) == 1
    assert len(set_aside(store)) == 1


@pytest.mark.parametrize("operation", ["mkdir", "rename", "fsync", "iterdir", "is_dir"])
@pytest.mark.parametrize("method", ["checkpoint", "resume"])
def test_finished_by_another_worker(tmp_path, monkeypatch, caplog, method, operation):
    """Two jobs may train the same run; where one finishes it and forgets its checkpoints while the other writes or
    reads one, at the n-th file operation, for every n, the other does not fail."""
    key, nth, calls = digest("run"), 0, [1]
    while nth < calls[0]:
        nth += 1
        store = Store(tmp_path / f"store{nth}")
        store.checkpoint(key, 10, ({}, {"step": 10}))
        owner = os if operation == "fsync" else Path
        plain, calls = getattr(owner, operation), [0]

        def meddling(*args, owner=owner, plain=plain, calls=calls, store=store, nth=nth, **kwargs):
            calls[0] += 1
            if calls[0] == nth:
                with pytest.MonkeyPatch.context() as other:
                    other.setattr(owner, operation, plain)
                    store.finished(key)
            return plain(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(owner, operation, meddling)
            if method == "checkpoint":
                store.checkpoint(key, 20, ({}, {"step": 20}))
            else:
                assert store.resume(key) in (None, ({}, {"step": 10}))
        assert store.resume(key) in (None, ({}, {"step": 20}), ({}, {"step": 10}))
        assert not left_over(store)
    assert not caplog.records


# Places


def test_check_writable(tmp_path):
    """A folder that is there or can be made is writable, and looking leaves nothing."""
    check_writable(tmp_path, "store")
    check_writable(tmp_path / "a" / "b", "store")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "x", "x/y"])
def test_below_a_file_is_not_writable(tmp_path, below):
    """One line that names the key, the path and the file that stands in the way; a commit there is a StoreError too."""
    (tmp_path / "file").touch()
    path = tmp_path / "file" / below
    with pytest.raises(StoreError, match=r"^store=[^\n]* cannot be written[^\n]*$") as caught:
        check_writable(path, "store")
    assert str(tmp_path / "file") in str(caught.value)
    with pytest.raises(StoreError, match=r"^[^\n]*$") as caught:
        Store(path).commit(numbers(name="x"), Numbers(a=1), ABOUT)
    assert str(path) in str(caught.value)
    assert not Store(path).holds(numbers(name="x").key)


def test_a_name_that_is_too_long_is_not_writable(tmp_path):
    """A path that the file system refuses is one line too."""
    with pytest.raises(StoreError, match=r"^store=[^\n]* cannot be written[^\n]*$"):
        check_writable(tmp_path / ("x" * 300), "store")


KEYS = ("../../x", "../x", "..", ".", "", "a/../../../x", "stages", "work", "/absolute")


@pytest.mark.parametrize("operation", ["present", "holds", "drop", "manifest", "checkpoint", "resume", "finished"])
def test_a_name_cannot_leave_the_store(tmp_path, operation):
    """Only a key names an entry: whatever else is asked for, nothing outside changes, and nothing inside is lost."""
    stage, run, harmed = numbers(name="x"), digest("run"), []
    for number, key in enumerate(KEYS):
        outer = tmp_path / str(number)
        store = Store(outer / "inner" / "store")
        store.commit(stage, Numbers(a=1), ABOUT)
        store.checkpoint(run, 1, ({}, {"step": 1}))
        for folder in (outer, outer / "inner", store.root):
            (folder / "x").mkdir()
            (folder / "x" / "mine.txt").write_text("mine")
        before = tree(outer)
        name = str(outer / "x") if key == "/absolute" else key
        with contextlib.suppress(StoreError, ValueError, OSError):
            getattr(store, operation)(name, *((1, ({}, {})) if operation == "checkpoint" else ()))
        after, inside = tree(outer), str(store.root.relative_to(outer))
        new = [path for path in after.keys() - before.keys() if not path.startswith(inside)]
        if new or not after.items() >= before.items():
            harmed.append(key)
    assert not harmed


@pytest.mark.parametrize("content", [None, b"", b"{"])
def test_the_manifest_of_nothing(store, content):
    """The provenance of a stage that is absent or damaged is a StoreError of one line."""
    stage = numbers(name="x")
    if content is not None:
        store.commit(stage, Numbers(a=1), ABOUT)
        (place(store, stage.key) / "manifest.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"^[^\n]*$") as caught:
        store.manifest(stage.key)
    assert str(store.root) in str(caught.value)
