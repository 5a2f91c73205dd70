"""Bad input: one line on stderr that says what is wrong, exit 2, nothing trained, nothing left on the disk."""

import os
import resource
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from test_main import run, run_here

SETTINGS = {  # a good command, quickly checked; what a bad line sets itself is left out
    "dataset": "digits",
    "recipe.steps": "60it",
    "recipe.eval_every": "20it",
    "prune.sparsity": "0.36",
    "replicates": "1",
    "device": "cpu",
    "wandb": "disabled",
}
HOLE = "lth.store.os.getcwd"  # begins as a target of ours does, and is none of ours
# What is typed | what the line on stderr must hold. A file named `file` stands in the working directory.
BAD = """
    dataset=mnits                                | dataset=mnits | did you mean mnist?
    model=lenet_300_10                           | model=lenet_300_10 | did you mean lenet_300_100?
    criterion=magnitud                           | criterion=magnitud | did you mean magnitude?
    pattern=unstructurd                          | pattern=unstructurd | did you mean unstructured?
    prune=iterativ                               | prune=iterativ | did you mean iterative?
    rewind=erly                                  | rewind=erly | did you mean early?
    branch=[random_mesk]                         | branch=random_mesk | did you mean random_mask?
    recipe=adam_lanet                            | recipe=adam_lanet | did you mean adam_lenet?
    study=quick/frankle2019_len                  | study=quick/frankle2019_len | did you mean quick/frankle2019_lenet?
    study=frankle2019_lenet size=small           | size=small | full, quick
    study=landscape size=quick                   | size=quick | frankle2019_lenet
    size=quick                                   | size=quick | frankle2019_lenet
    recipe/schedule=cosin                        | recipe/schedule=cosin | did you mean cosine?
    device=tpu                                   | device=tpu | cuda
    wandb=ofline                                 | wandb=ofline | did you mean offline?
    dataset=null                                 | dataset
    ~criterion                                   | criterion
    ~seed                                        | seed
    ~prune.sparsity                              | sparsity

    modle=mlp                                    | modle | did you mean model?
    recipes=sgd                                  | recipes | did you mean recipe?
    replicas=2                                   | replicas | did you mean replicates?
    prune.sparsty=0.5                            | prune.sparsty | did you mean prune.sparsity?
    recipe.step=10                               | recipe.step | did you mean recipe.steps?
    model.hiden=[3]                              | model.hiden | did you mean model.hidden?
    wandb.projct=x                               | wandb.projct | did you mean wandb.project?
    rewind.at=5                                  | rewind.at
    rewind=early rewind.att=5                    | rewind.att | did you mean rewind.at?
    recipe=sgd recipe.options.momentun=0.9       | recipe.options.momentun | did you mean recipe.options.momentum?
    recipe/schedule=step recipe.schedule.drop=[5] | recipe.schedule.drop | did you mean recipe.schedule.drops?
    +sedd=1                                      | sedd | did you mean seed?
    +optimizer=adam                              | optimizer
    +model.hiddn=[3]                             | hiddn | hidden
    +recipe.momentum=0.9                         | recipe | momentum
    +dataset.num_vall=3                          | num_vall | num_val
    +recipe.options.beta=1                       | recipe.options.beta | betas
    pattern.rates={1.weight:0}                   | pattern.rates | +pattern.rates=
    +pattern.rates={1.wight:0}                   | pattern.rates.1.wight=0 | did you mean 1.weight?
    pattern=channel prune.sparsity=0.999         | prune.sparsity=0.999 | one a layer
    +branch.mesk._target_=lth.branch.mesk.Mesk   | branch.mesk
    +branch.mesk={}                              | branch.mesk

    prune.sparsity=1                             | prune.sparsity=1 | [0, 1)
    prune.sparsity=1.5                           | prune.sparsity=1.5 | [0, 1)
    prune.sparsity=-0.1                          | prune.sparsity=-0.1 | [0, 1)
    prune.sparsity=abc                           | prune.sparsity=abc
    prune.sparsity=nan                           | prune.sparsity=nan
    prune.sparsity=true                          | prune.sparsity=True
    prune.sparsity=null                          | prune.sparsity=None
    prune=one_shot prune.sparsity=1              | prune.sparsity=1
    prune=rounds prune.sparsity=1                | prune.sparsity=1
    prune=one_shot prune.sparsity=0.99999        | sparsity
    prune.rate=0                                 | prune.rate=0 | (0, 1)
    prune.rate=1                                 | prune.rate=1 | (0, 1)
    prune.rate=2                                 | prune.rate=2 | (0, 1)
    prune.rate=x                                 | prune.rate=x
    prune=rounds prune.num_rounds=0              | prune.num_rounds=0
    prune=rounds prune.num_rounds=1.5            | prune.num_rounds=1.5
    prune.when=now                               | prune.when=now | trained, init
    criterion=movement prune.when=init           | criterion=movement | trained network | prune.when=init
    criterion=movement_abs prune.when=init       | criterion=movement_abs | prune.when=init

    criterion=early_bird                         | criterion=early_bird | batch norm
    criterion=grasp model=torchvision            | criterion=grasp needs second derivatives
    criterion=hessian criterion.method=exact     | criterion.method=exact | 10000
    criterion=hessian criterion.method=obd       | criterion.method=obd | hutchinson
    criterion=snip criterion.per_class=500       | criterion.per_class=500 | class
    criterion=snip criterion.num_batches=0       | criterion.num_batches=0
    criterion=grasp criterion.temperature=0      | criterion.temperature=0
    criterion=grasp criterion.temperature=nan    | criterion.temperature=nan
    criterion=synflow criterion.num_iterations=1.5 | criterion.num_iterations=1.5

    rewind=early rewind.at=60it                  | rewind.at=60it | recipe.steps=60
    rewind=early rewind.at=4ep                   | rewind.at=4ep | recipe.steps=60
    rewind=early rewind.at=-1                    | rewind.at=-1
    rewind=early rewind.at=5xx                   | rewind.at=5xx
    rewind=late rewind.fraction=-0.1             | rewind.fraction=-0.1 | [0, 1]
    rewind=late rewind.fraction=1.1              | rewind.fraction=1.1 | [0, 1]
    rewind=none rewind.optimizer=kep             | rewind.optimizer=kep | keep
    rewind=pretrained                            | rewind.source
    rewind=pretrained rewind.source=none.safetensors | rewind.source=none.safetensors | cannot be read
    rewind=pretrained rewind.source=file         | rewind.source=file | safetensors
    rewind=pretrained rewind.source=ABSENT       | rewind.source=ABSENT | not in the store outputs/store
    rewind=pretrained rewind.sourse=file         | rewind.sourse | did you mean rewind.source?

    branch.levels=every:0                        | branch.levels=every:0 | every:1
    branch.levels=[0.7]                          | branch.levels | 0.7 | 0.2, 0.36
    branch=[sign_flip] branch.sign_flip.probability=2 | branch.sign_flip.probability=2 | [0, 1]
    branch=[sign_flip] branch.sign_flip.probability=-0.1 | branch.sign_flip.probability=-0.1 | [0, 1]
    branch=[sign_flip] branch.sign_flip.probability=x | branch.sign_flip.probability=x | [0, 1]

    replicates=0                                 | replicates=0
    replicates=-1                                | replicates=-1
    replicates=1.5                               | replicates=1.5
    replicates=x                                 | replicates=x
    seed=-1                                      | seed=-1
    seed=x                                       | seed=x
    keep=al                                      | keep=al | all, tickets
    checkpoint_seconds=-1                        | checkpoint_seconds=-1
    checkpoint_seconds=nan                       | checkpoint_seconds=nan
    save_tickets=maybe                           | save_tickets=maybe
    wandb.mode=onlin                             | wandb.mode=onlin | online

    recipe.steps=-5                              | recipe.steps=-5
    recipe.steps=0                               | recipe.steps=0
    recipe.steps=10foo                           | recipe.steps=10foo
    recipe.eval_every=0                          | recipe.eval_every=0
    recipe.batch_size=0                          | recipe.batch_size=0 | 1197
    recipe.batch_size=-1                         | recipe.batch_size=-1
    recipe.batch_size=1000000                    | recipe.batch_size=1000000 | 1197
    recipe.batch_size=1.5                        | recipe.batch_size=1.5
    recipe.batch_size=true                       | recipe.batch_size=True
    recipe.lr=0                                  | recipe.lr=0
    recipe.lr=-1                                 | recipe.lr=-1
    recipe.lr=x                                  | recipe.lr=x
    recipe.lr=nan                                | recipe.lr=nan
    recipe.lr=inf                                | recipe.lr=inf
    recipe.optimizer=Adamm                       | recipe.optimizer=Adamm | Adam
    recipe.optimizer=LBFGS                       | recipe.optimizer=LBFGS
    recipe.optimizer=Muon                        | Muon
    recipe=sgd recipe.options.momentum=x         | recipe.options | momentum
    recipe.warmup=61it                           | recipe.warmup=61it | recipe.steps=60
    recipe.schedule=cosine                       | recipe.schedule=cosine
    recipe/schedule=step recipe.schedule.drops=[5xx] | recipe.schedule.drops=5xx
    recipe/schedule=step recipe.schedule.drops=5 | recipe.schedule.drops=5

    dataset.num_val=0                            | dataset.num_val=0
    dataset.num_val=1400                         | dataset.num_val=1400 | 1797
    dataset.num_val=x                            | dataset.num_val=x
    dataset.split_seed=x                         | dataset.split_seed=x
    model.hidden=[0]                             | model.hidden=[0]
    model.hidden=5                               | model | int
    model.init=foo                               | model.init=foo
    model.init=constant                          | model.init=constant
    model=resnet_20 model.depth=21               | model.depth=21 | 6n + 2
    model.init=kaiming_normal*0                  | model.init=kaiming_normal*0 | kaiming_normal*0.5
    model.init=xavier_normal*                    | model.init=xavier_normal* | above 0
    model=vit_tiny model.patch=3                 | model=vit_tiny | dataset=digits | model.patch=3 | 8 x 8
    model=lenet_5 model.least=8                  | model=lenet_5 | dataset=digits | 8 x 8 | model.kernel=5
    model=resnet_20 dataset=fake dataset.shape=[1,9] | model=resnet_20 | dataset=fake | [1, 9]
    model=torchvision model.name=resnet19        | model.name=resnet19 | resnet18
    pattern.scope=glob                           | pattern.scope=glob | global
    pattern.output=-0.1                          | pattern.output=-0.1 | [0, 1]
    pattern.output=1.5                           | pattern.output=1.5 | [0, 1]
    device.kind=gpu                              | device.kind=gpu | cuda
    device.numerics=fp32                         | device.numerics=fp32 | reference
    device.numerics=fp16                         | device.numerics=fp16 | cuda | bf16
    device.numerics=tf32                         | device.numerics=tf32 | cuda | fast
    recipe.ema=1                                 | recipe.ema=1 | [0, 1)
    recipe.clip=0                                | recipe.clip=0 | null
    recipe.accumulate=7                          | recipe.accumulate=7 | recipe.batch_size=60
    recipe.label_smoothing=x                     | recipe.label_smoothing=x
    device.engine=vmap                           | device.engine=vmap | auto, sequential, lockstep, graph, sparse
    model=conv_2 device.engine=sparse            | device.engine=sparse | of auto, sequential, lockstep take one
    recipe.accumulate=2 device.engine=lockstep   | device.engine=lockstep | of auto, sequential take one
    device.workers=-1                            | device.workers=-1
    device.workers=x                             | device.workers=x

    store=file                                   | store=file
    store=file/store                             | store=file/store
    store=null                                   | store
    data_dir=5                                   | data_dir
    hydra.run.dir=file/job                       | file/job
    -m hydra.sweep.dir=file/sweep                | file/sweep
    -m hydra.sweep.dir=file/sweep prune.sparsity=0.2,1.5 | file/sweep
    dataset=mnist data_dir=file/data             | data_dir=file/data

    model._target_=os.system                     | model._target_=os.system
    +model.x._target_=os.system                  | model.x._target_=os.system
    'model.hidden=[{_target_: os.getcwd}]'       | model.hidden | os.getcwd
    recipe.schedule._target_=builtins.print      | recipe.schedule._target_=builtins.print
    +recipe.options.x._target_=os.getcwd         | recipe.options.x._target_=os.getcwd
    +branch.x._target_=subprocess.run            | branch.x._target_=subprocess.run
    device._target_=lthx.device.Device           | device._target_=lthx.device.Device
    criterion._target_=lth.criterion.mag.Mag     | lth.criterion.mag
    criterion._target_=lth.rewind.init.Init      | criterion | lth.rewind.init.Init
    criterion._target_=torch.nn.ReLU             | criterion | torch.nn.ReLU
    +branch.x._target_=HOLE                      | branch.x
    recipe.schedule._target_=HOLE                | recipe.schedule | HOLE
    +recipe.options.weight_decay._target_=HOLE   | recipe.options | HOLE
    +model._partial_=true                        | model

    prune.sparsity=[0.5                          | [0.5
    prune.sparsity                               | prune.sparsity
    prune.sparsity=0.5}                          | prune.sparsity=0.5}
    prune.sparsity=0.2,0.3                       | prune.sparsity=0.2,0.3
    store=${nowhere}                             | nowhere
    store=???                                    | store

    -m prune.sparsity=0.5,1.5                    | cell 1 | prune.sparsity=1.5
    -m seed=0,-1 hydra.sweep.dir=a/b/c           | cell 1 | seed=-1
    -m criterion=random,magnitud                 | criterion=magnitud | did you mean magnitude?
    -m modle=mlp,lenet_300_100                   | modle | did you mean model?
    -m prune.sparsty=0.5,0.2                     | prune.sparsty | did you mean prune.sparsity?
"""
BAD = BAD.replace("HOLE", HOLE).replace("ABSENT", "ab" * 32)
ROWS = [[part.strip() for part in row.split(" | ")] for row in BAD.splitlines() if row.strip()]


def arguments(line: str) -> str:
    """`line` after the SETTINGS that it does not make itself."""
    words = shlex.split(line)
    made = {word.lstrip("+~").partition("=")[0] for word in words}
    apart = {"prune.sparsity"} if "prune" in made else {"device"} if "device" in made else set()
    settings = [f"{key}={value}" for key, value in SETTINGS.items() if key not in made and key not in apart]
    flags = [word for word in words if word == "-m"]
    return shlex.join([*flags, *settings, *(word for word in words if word != "-m")])


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(line: str, cwd: Path) -> str:
    """Run a command that must be refused and return its line on stderr; whatever is wrong with it fails."""
    before = files(cwd)
    # Hydra composes everything once more to ask for hydra.mode, which nobody sets here: half the time of these tests
    mode = patch("hydra._internal.hydra.Hydra.get_mode", return_value=None)
    with mode, patch("main.execute", side_effect=lambda *_, **__: pytest.fail("accepted: it would train")):
        ran = run_here(arguments(line), cwd, workers=None)
    assert ran.code == 2
    said = ran.err.splitlines()
    assert len(said) == 1 and 0 < len(said[0]) <= 200, ran.err
    assert "Traceback" not in ran.err + ran.out and ran.out == ""
    assert files(cwd) == before
    return said[0]


@pytest.fixture
def cwd(tmp_path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path


def test_settings_are_good(cwd):
    """What the bad lines are told apart from is accepted, single and as a sweep: it comes to the point of training."""
    for line in ("", "-m seed=0,1"):
        with pytest.raises(pytest.fail.Exception, match="accepted"):
            refused(line, cwd)


@pytest.mark.parametrize("line, words", [(row[0], row[1:]) for row in ROWS], ids=[row[0] for row in ROWS])
def test_bad_input_is_refused_in_one_line(cwd, line, words):
    """Exit 2, one line of at most 200 characters that names what is wrong and what is near; nothing left."""
    said = refused(line, cwd)
    assert all(word in said for word in words), said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused(cwd):
    """device=cuda on a machine without one names the device and what to use."""
    said = refused("device=cuda", cwd)
    assert "device=cuda" in said and "cpu" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("key", ["store", "hydra.run.dir"])
def test_folder_without_permission_is_refused(cwd, key):
    """A store or an output directory whose parent may not be written."""
    (cwd / "closed").mkdir(mode=0o500)
    assert "closed/new" in refused(f"{key}=closed/new", cwd)


@pytest.mark.parametrize("way", ["no network", "dead proxy"])
@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_missing_data_without_network_is_refused(cwd, monkeypatch, dataset, way):
    """A data set that is neither in data_dir nor to be downloaded names data_dir, and leaves no folder."""
    import torchvision.datasets

    monkeypatch.setattr(urllib.request, "_opener", None)  # urllib keeps its first one, with the proxies of that moment
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    if way == "dead proxy":
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    for kind in (torchvision.datasets.MNIST, torchvision.datasets.FashionMNIST):
        monkeypatch.setattr(kind, "mirrors", ["http://127.0.0.1:9/"])  # the discard port: nobody listens
    said = refused(f"dataset={dataset} data_dir=some/where", cwd)
    assert "data_dir=some/where" in said


BAD_DATA = {  # files of one's own, made by `write_data` | what the line must hold
    "dataset=folder dataset.path=single": ["single", "at least 2 classes", "cat: 2"],
    "dataset=folder dataset.path=parts": ["parts/train", "parts/test", "same classes", "dog"],
    "dataset=folder dataset.path=text": ["text/cat/0.png", "no image"],
    "dataset=tensors dataset.path=pixels.npz": ["dataset.path=pixels.npz", "uint8 or finite floats", "int64 [8, 1, 4]"],
    "dataset=tensors dataset.path=labels.npz": ["dataset.path=labels.npz", "y must hold the classes", "0.0, 1.0"],
    "dataset=tensors dataset.path=words.npz": ["dataset.path=words.npz", "cannot be used"],
    "dataset=mnist": ["MNIST in MNIST/raw is damaged", "delete it"],
}


def write_data(cwd: Path) -> None:
    """What BAD_DATA speaks of."""
    for place in ("single/cat", "parts/train/cat", "parts/train/dog", "parts/test/cat", "parts/test/emu", "text/dog"):
        (cwd / place).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (4, 4)).save(cwd / place / f"{i}.png")
    (cwd / "text" / "cat").mkdir()
    (cwd / "text" / "cat" / "0.png").write_text("read me")
    x, y = np.zeros((8, 1, 4), np.uint8), np.arange(8) % 2
    arrays = {"pixels": (x.astype(np.int64), y), "labels": (x, y / 1), "words": (x, y.astype(str))}
    for name, (x, y) in arrays.items():
        np.savez(cwd / f"{name}.npz", x=x, y=y)
    (cwd / "MNIST" / "raw").mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (cwd / "MNIST" / "raw" / f"{name}-ubyte").write_bytes(b"cut short")


@pytest.mark.parametrize("line", BAD_DATA)
def test_bad_data_are_refused(cwd, line):
    """Files that are no data set: one line that says which and what they must hold, and they stay as they were."""
    write_data(cwd)
    own = "" if line == "dataset=mnist" else "dataset.num_val=1 dataset.num_test=1"
    size = "dataset.size=4" if "folder" in line else ""
    said = refused(f"{line} {own} {size} data_dir=.", cwd)
    assert all(word in said for word in BAD_DATA[line]), said


def test_long_sweep_lines_still_say_what_is_wrong(cwd):
    """However much is typed, the 200 characters name the cell and the value that is wrong with it."""
    said = refused(f"-m data_dir={'x' * 150} prune.sparsity=0.5,1.5", cwd)
    assert "cell 1" in said and "prune.sparsity=1.5" in said and "[0, 1)" in said


def test_refused_sweep_spares_what_was_there(cwd):
    """A refused sweep takes away what it made, and nothing that was there before."""
    (cwd / "a" / "b").mkdir(parents=True)
    (cwd / "a" / "notes.txt").write_text("mine")
    assert "cell 1" in refused("-m seed=0,-1 hydra.sweep.dir=a/b/c/d", cwd)
    earlier = cwd / "a" / "b" / "multirun.yaml"
    earlier.write_text("of an earlier sweep")
    assert "cell 1" in refused("-m seed=0,-1 hydra.sweep.dir=a/b", cwd)
    assert earlier.read_text() == "of an earlier sweep"


# The same in a process of its own: what a shell sees


@pytest.mark.slow
@pytest.mark.parametrize(
    "line, words",
    [
        ("prune.sparsity=1.5", ["prune.sparsity=1.5"]),
        ("-m prune.sparsity=0.5,1.5", ["cell 1", "prune.sparsity=1.5"]),
    ],
    ids=["job", "cell"],
)
def test_a_shell_sees_one_line_and_exit_2(tmp_path, line, words):
    """python main.py with its defaults: exit 2, one line on stderr, nothing on stdout, no folder, in at most twice the
    processor time of importing torch and Hydra (1.4 to 1.7 times seen; the clock on the wall would measure the
    machine's other work)."""

    def seconds(start) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    baseline = seconds(lambda: subprocess.run([sys.executable, "-c", "import torch, hydra.main"], check=True))
    ran = []
    took = seconds(lambda: ran.append(run(line, tmp_path)))
    (ran,) = ran
    assert ran.code == 2 and ran.out == "" and files(tmp_path) == []
    said = ran.err.splitlines()
    assert len(said) == 1 and len(said[0]) <= 200 and all(word in said[0] for word in words), ran.err
    assert took < 2 * baseline
