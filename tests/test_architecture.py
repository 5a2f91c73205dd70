"""What may stand where: read from the sources, so that a rule of the design that is broken is named with its line."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import main

ROOT = Path(__file__).parents[1]
LTH = sorted((ROOT / "lth").rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))
PRODUCT = [*LTH, ROOT / "main.py", *sorted((ROOT / "hydra_plugins").rglob("*.py"))]
REPORTING = {"lth.analysis", "lth.plot", "lth.report", "lth.__main__"}  # may import tables and figures as they load


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module(path: Path) -> str:
    """Dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a file imports, wherever in it; `from a import b` is a.b."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module(path) if path.name == "__init__.py" else module(path).rpartition(".")[0]
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            where = ".".join([*parts, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{where}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            yield node.lineno, str(first.value) if isinstance(first, ast.Constant) else "something computed"


def dotted(node: ast.AST) -> str:
    """ "a.b.c" of a name or an attribute, "" of anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def tracked(*endings: str) -> list[Path]:
    """Files of the repository as git lists them; without git, those outside of ignored folders."""
    git = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(git, capture_output=True, text=True)
    if listing.returncode == 0 and listing.stdout:
        paths = [ROOT / name for name in listing.stdout.splitlines()]
    else:
        top = [
            path for path in ROOT.iterdir() if not path.name.startswith(".") and path.name not in ("outputs", "venv")
        ]
        paths = [path for folder in top for path in ([folder] if folder.is_file() else folder.rglob("*"))]
    return sorted(path for path in paths if path.suffix in endings and path.is_file())


# Imports


def test_lth_knows_nothing_of_hydra_or_studies():
    """lth is how, conf is which, experiments is why: lth imports none of what stands above it."""
    above = {"hydra", "omegaconf", "experiments", "hydra_plugins", "main", "tests", "conftest"}
    found = [f"{path}:{line} {name}" for path in LTH for line, name in imports(path) if name.split(".")[0] in above]
    assert not found


def test_only_main_and_the_launcher_know_hydra():
    """Below main there is no cfg: hydra and omegaconf are imported there and in hydra_plugins only."""
    others = [*LTH, *EXPERIMENTS, *sorted((ROOT / "notebooks").rglob("*.py"))]
    found = [f"{p}:{line}" for p in others for line, name in imports(p) if name.split(".")[0] in ("hydra", "omegaconf")]
    assert not found


def test_only_tracking_imports_wandb():
    """W&B is a view: one file knows it, and that one not as it loads."""
    users = {path for path in [*PRODUCT, *EXPERIMENTS] for _, name in imports(path) if name.split(".")[0] == "wandb"}
    assert users == {ROOT / "lth" / "tracking.py"}
    loading = [
        node for node in tree(ROOT / "lth" / "tracking.py").body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert "wandb" not in ast.unparse(ast.Module(loading, []))


def test_experiments_import_results_only():
    """A study reads rows: lth.analysis (whose tables are rich's), lth.plot, lth.report, pandas, matplotlib, yaml
    (for the configurations beside the rows), the standard library, and other studies."""
    allowed = {"lth.analysis", "lth.plot", "lth.report", "rich.table", "yaml"}
    for path in EXPERIMENTS:
        for line, name in imports(path):
            top = name.split(".")[0]
            known = top in sys.stdlib_module_names or top in ("pandas", "matplotlib", "experiments")
            assert known or name in allowed or name.rpartition(".")[0] in allowed, f"{path}:{line} imports {name}"


def test_every_import_is_declared():
    """What the product imports is of the standard library, its own, or among the dependencies of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w-]+", text)[0].lower().replace("-", "_") for text in project["dependencies"]}
    names |= {
        "hydra",
        "sklearn",
        "yaml",
        "numpy",
    }  # of hydra-core, scikit-learn and pyyaml; torch and pandas stand on numpy
    own = {"lth", "main", "hydra_plugins", "experiments"}
    for path in [*PRODUCT, *EXPERIMENTS]:
        for line, name in imports(path):
            top = name.split(".")[0]
            if (path.name, name) == ("main.py", "something computed"):  # its own experiments, see main.experiment
                continue
            assert top in sys.stdlib_module_names or top in own or top in names, f"{path}:{line} imports {name}"


# What executes


def dangers(path: Path) -> Iterator[str]:
    """Whatever can execute what is read from a file, or a string."""
    modules = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    calls = {"eval", "exec", "os.system", "os.popen", "torch.load", "torch.save", "yaml.load", "torch.hub.load"}
    aliases = {}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                whole = alias.name if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"
                aliases[alias.asname or alias.name] = whole
    for line, name in imports(path):
        if name.split(".")[0] in modules or name == "something computed":
            yield f"{path}:{line} imports {name}"
    for node in ast.walk(tree(path)):
        name = dotted(node)
        head, _, rest = name.partition(".")
        whole = f"{aliases.get(head, head)}.{rest}".rstrip(".")
        if whole in calls or re.search(r"\b(read_pickle|allow_pickle|unsafe_load|full_load)$", whole):
            yield f"{path}:{node.lineno} {whole}"
        if isinstance(node, ast.keyword):
            constant = node.value.value if isinstance(node.value, ast.Constant) else None
            if (node.arg, constant) in (("weights_only", False), ("shell", True), ("allow_pickle", True)):
                yield f"{path}:{node.value.lineno} {node.arg}={constant}"


def test_nothing_executes_what_it_reads():
    """No pickle in any form, no torch.load, no eval or exec, no shell; one computed import, that of an experiment by
    the name of its file, which nothing else can be."""
    (found,) = [danger for path in [*PRODUCT, *EXPERIMENTS] for danger in dangers(path)]
    lines, first = inspect.getsourcelines(main.experiment)
    assert found in [f"{ROOT / 'main.py'}:{first + i} imports something computed" for i in range(len(lines))]
    for name in ("os", "../main", "experiments.os", "__init__", "nobody's", "", "landscape/../../main"):
        assert main.experiment(name).__name__ == "experiments.tickets"
    assert main.experiment("landscape").__name__ == "experiments.landscape"


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from pickle import loads", "import torch; torch.load(f)", "from torch import load; load(f)",
        "import torch as t; t.load(f)", "eval('1')", "exec(text)", "import os; os.system('ls')", "run(x, shell=True)",
        "from os import system as s; s('ls')", "load(f, weights_only=False)", "import yaml; yaml.load(f)",
        "np.load(f, allow_pickle=True)", "pd.read_pickle(f)", "from joblib import load",
        "importlib.import_module(name)",
    ],
)  # fmt: skip
def test_dangers_are_seen(tmp_path, monkeypatch, line):
    """The search above finds each of these."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "line.py"
    path.write_text(line)
    assert list(dangers(path))
    path.write_text("model.eval(); from safetensors.torch import load; load(f); yaml.safe_load(f)".replace("; ", "\n"))
    assert not list(dangers(path))


# Names and words


def test_no_empty_names():
    """No module, class or function named utils, helpers, manager or base, none that begins with get_."""
    empty = {"util", "utils", "helper", "helpers", "manager", "base", "misc", "common"}
    for path in LTH:
        defined = [
            n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        ]
        for name, line in [(path.stem, 1), (path.parent.name, 1), *((node.name, node.lineno) for node in defined)]:
            words = {word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", name)}
            assert not words & empty, f"{path}:{line} {name}"
            assert not name.lstrip("_").startswith("get_"), f"{path}:{line} {name}"


def test_ascii_only():
    """Every tracked source, configuration and page is ASCII."""
    for path in tracked(".py", ".yaml", ".yml", ".md", ".toml"):
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            assert line.isascii(), f"{path}:{number}"


def test_every_module_says_what_it_is():
    """A docstring at the head of every file of lth, but for the empty __init__.py of a namespace folder."""
    for path in LTH:
        if path.name == "__init__.py" and not path.read_text().strip():
            continue
        assert ast.get_docstring(tree(path)), path


def test_lth_stays_small(capsys):
    """Size is a symptom: what is shared (lth/*.py) stays under 6,000 lines, an engine under 200, a member of a group
    under 160."""
    lines = {path: len(path.read_text().splitlines()) for path in LTH}
    shared = sum(number for path, number in lines.items() if path.parent.name == "lth")
    with capsys.disabled():
        print(
            f"\nlth: {shared} lines shared, {sum(lines.values()) - shared} in {len(lines)} files of groups and engines"
        )
    assert shared < 6000
    for path, number in lines.items():
        assert path.parent.name == "lth" or number < (200 if path.parent.name == "engine" else 160), path


# Configuration


def targets(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (str(value) for name, value in node.items() if name == "_target_")
        yield from (target for value in node.values() for target in targets(value))
    elif isinstance(node, list):
        yield from (target for value in node for target in targets(value))


CONF = sorted((ROOT / "conf").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONF, ids=lambda path: str(path.relative_to(ROOT / "conf")))
def test_targets_exist(path):
    """Every _target_ is a thing of this project that can be imported and called; no interpolation, no _partial_."""
    text = path.read_text()
    assert "_partial_" not in text
    for target in targets(yaml.safe_load(text)):
        where, _, name = target.rpartition(".")
        assert where.split(".")[0] in ("lth", "torch", "torchvision", "hydra_plugins"), target
        assert callable(getattr(importlib.import_module(where), name)), target


# Start-up


def test_start_up_is_light():
    """Importing all that plans and trains loads no W&B, tables, figures, data sets or statistics."""
    names = [name for name in (module(path) for path in LTH) if name not in REPORTING]
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    heavy = {"wandb", "pandas", "scipy", "matplotlib", "sklearn", "torchvision", "mlxtend", "hydra", "omegaconf"}
    assert {"torch", "lth"} <= loaded
    assert not loaded & heavy
