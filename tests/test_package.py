"""What the package requires, and what importing it changes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from apa_mmdet.requirements import (
    MINIMUM,
    MMPRETRAIN,
    MMPRETRAIN_ONEDL,
    ONEDL,
    OPENMMLAB,
)

ROOT = Path(__file__).parents[1]


def run(code, *flags, path=()):
    """Run Python in a new process, with `path` before this checkout."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)])}
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def import_error(done):
    """The message of the one ImportError that ended the process."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.count("Traceback (most recent call last)") == 1, done.stderr
    head, _, text = done.stderr.partition("\nImportError: ")
    assert text, done.stderr
    return text


@pytest.fixture
def fake(tmp_path):
    """Write packages and distributions for a process that sees nothing else."""

    def write(**packages):
        for name, (distribution, version, files) in packages.items():
            folder = tmp_path / name
            folder.mkdir()
            for file, text in {"__init__.py": "", **files}.items():
                (folder / file).write_text(text)
            info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
            )
        return tmp_path

    return write


# With fake packages, the package itself cannot be imported.
BARE = """
import sys; from importlib.util import find_spec, module_from_spec
sys.modules['apa_mmdet'] = module_from_spec(find_spec('apa_mmdet'))
"""
OPS = {"_ext.py": ""}
GOOD = dict(
    torch=("torch", "2.13.0+cpu", {}),
    pkg_resources=("setuptools", "80.0", {}),
    mmengine=("mmengine", "0.10.7", {}),
    mmcv=("mmcv", "2.1.0", OPS),
    mmdet=("mmdet", "3.3.0", {}),
)
GOOD_ONEDL = dict(
    torch=("torch", "2.13.0+cpu", {}),
    mmengine=("onedl-mmengine", "0.10.12", {}),
    mmcv=("onedl-mmcv", "2.3.6", OPS),
    mmdet=("onedl-mmdetection", "3.5.1", {}),
)
REBUILD = "pip install --no-cache-dir --no-build-isolation --force-reinstall --no-deps "
REFUSALS = {
    "no torch": (
        {**GOOD, "torch": None},
        "torch is not installed",
        'pip install "torch>=2.1"',
    ),
    "old torch": (
        {**GOOD, "torch": ("torch", "2.0.1", {})},
        "torch 2.0.1 is older than 2.1",
        'pip install "torch>=2.1"',
    ),
    "no mmengine": (
        {**GOOD, "mmengine": None},
        "mmengine is not installed",
        "pip install mmengine==0.10.7\n",
    ),
    "no mmcv": (
        {**GOOD, "mmcv": None},
        "mmcv is not installed",
        "pip install --no-build-isolation mmcv==2.1.0\n",
    ),
    "no mmdet": (
        {**GOOD, "mmdet": None},
        "mmdet is not installed",
        "pip install mmdet==3.3.0\n",
    ),
    "nothing": (
        {"torch": GOOD["torch"]},
        "mmengine and mmcv and mmdet are not installed",
        "pip install mmengine==0.10.7 mmdet==3.3.0\n",
    ),
    "no mmdet, onedl": (
        {**GOOD_ONEDL, "mmdet": None},
        "mmdet is not installed",
        "pip install onedl-mmdetection==3.5.1\n",
    ),
    "old mmdet": (
        {**GOOD, "mmdet": ("mmdet", "2.28.2", {})},
        "mmdet 2.28.2 is older than 3.0",
        "pip install mmdet==3.3.0\n",
    ),
    "old mmcv": (
        {**GOOD, "mmcv": ("mmcv", "1.7.2", OPS)},
        "mmcv 1.7.2 is older than 2.0",
        "pip install --no-build-isolation mmcv==2.1.0\n",
    ),
    "mmcv that mmdet refuses": (
        {
            **GOOD,
            "mmdet": (
                "mmdet",
                "3.3.0",
                {"__init__.py": "assert False, 'MMCV==2.2.0 is used'"},
            ),
        },
        "mmdet rejects an installed version (MMCV==2.2.0 is used)",
        "pip install --no-build-isolation mmcv==2.1.0 && pip install mmengine",
    ),
    "no pkg_resources": (
        {**GOOD, "pkg_resources": None},
        "pkg_resources",
        'pip install "setuptools<81"\n',
    ),
    "no ops": (
        {**GOOD, "mmcv": ("mmcv", "2.1.0", {})},
        "mmcv is installed without its compiled ops",
        REBUILD + "mmcv==2.1.0\n",
    ),
    "no ops, onedl": (
        {**GOOD_ONEDL, "mmcv": ("onedl-mmcv", "2.3.6", {})},
        "mmcv is installed without its compiled ops",
        REBUILD + "onedl-mmcv==2.3.6\n",
    ),
    "ops of another torch": (
        {
            **GOOD,
            "mmcv": (
                "mmcv",
                "2.1.0",
                {"_ext.py": "raise ImportError('undefined symbol: _ZN2at')"},
            ),
        },
        "mmcv's compiled ops do not load with this torch (undefined symbol: _ZN2at)",
        REBUILD + "mmcv==2.1.0\n",
    ),
    "torchvision of another torch": (
        {
            **GOOD,
            "mmpretrain": ("mmpretrain", "1.2.0", {}),
            "torchvision": (
                "torchvision",
                "0.26.0",
                {"__init__.py": "raise RuntimeError('no torchvision::nms')"},
            ),
        },
        "needs torchvision, which does not work with this torch (no torchvision::nms)",
        'pip install "torchvision==0.28.*"\n'
        "or, to do without classification,\n    pip uninstall mmpretrain\n",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_import_names_the_command(case, fake):
    packages, problem, command = REFUSALS[case]
    packages = {name: package for name, package in packages.items() if package}
    # Without site-packages (-S), the process sees only the fake packages.
    code = "import apa_mmdet"
    if "mmengine" not in packages:  # then the import itself checks nothing
        code += ".requirements as r; r.check_requirements()"
    text = import_error(run(code, "-S", path=[fake(**packages)]))
    assert problem in text
    assert command in text
    assert "bash tools/setup_env.sh" in text
    assert "Without mmengine installed, apa_mmdet.ops" in text


@pytest.mark.parametrize("packages", [GOOD, GOOD_ONEDL], ids=["openmmlab", "onedl"])
def test_check_accepts_both_stacks(packages, fake):
    code = BARE + (
        "from apa_mmdet.requirements import check_requirements; check_requirements()"
    )
    done = run(code, "-S", path=[fake(**packages)])
    assert done.returncode == 0, done.stderr


MMPRETRAIN_OK = dict(
    mmpretrain=("mmpretrain", "1.2.0", {}), modelindex=("model-index", "0.1.11", {})
)
BROKEN = {"__init__.py": "raise ImportError('undefined symbol: _ZN2at')"}
CLASSIFICATION_REFUSALS = {
    "no mmpretrain": (
        GOOD,
        "mmpretrain is not installed",
        "pip install mmpretrain==1.2.0 model-index\n",
    ),
    "no mmpretrain, onedl": (
        GOOD_ONEDL,
        "mmpretrain is not installed",
        "pip install onedl-mmpretrain==1.3.6 model-index\n",
    ),
    "old mmpretrain": (
        {**GOOD, "mmpretrain": ("mmpretrain", "0.9.1", {})},
        "mmpretrain 0.9.1 is too old",
        "pip install mmpretrain==1.2.0 model-index\n",
    ),
    "the empty modelindex": (
        {**GOOD, "mmpretrain": ("mmpretrain", "1.2.0", {})},
        "needs model-index, which is not installed",
        "pip install mmpretrain==1.2.0 model-index\n",
    ),
    "no torchvision": (
        {**GOOD, **MMPRETRAIN_OK},
        "needs torchvision, which is not installed",
        'pip install "torchvision==0.28.*"\n',
    ),
    "torchvision of another torch": (
        {**GOOD, **MMPRETRAIN_OK, "torchvision": ("torchvision", "0.26.0", BROKEN)},
        "does not work with this torch (undefined symbol: _ZN2at)",
        'pip install "torchvision==0.28.*"\n',
    ),
}


@pytest.mark.parametrize("case", CLASSIFICATION_REFUSALS)
def test_import_of_classification_names_the_command(case, fake):
    packages, problem, command = CLASSIFICATION_REFUSALS[case]
    code = BARE + "import apa_mmdet.classification"
    text = import_error(run(code, "-S", path=[fake(**packages)]))
    assert "apa_mmdet.classification cannot be used here" in text
    assert problem in text and command in text
    assert "APA_MMDET_CLASSIFICATION=1 bash tools/setup_env.sh" in text


def test_mmcv_without_ops_in_a_real_environment(fake):
    done = run("import apa_mmdet", path=[fake(mmcv=("mmcv", "2.1.0", {}))])
    text = import_error(done)
    assert "mmcv is installed without its compiled ops" in text
    assert REBUILD in text


HIDE = "import sys; sys.modules.update(dict.fromkeys({names}))\n"  # None: not installed


def test_without_mmengine_torch_is_enough():
    code = HIDE.format(names=["mmengine", "mmcv", "mmdet", "lvis"]) + (
        "import torch\n"
        "from apa_mmdet.conversion import convert_activations\n"
        "from apa_mmdet.layers import AGLU\n"
        "from apa_mmdet.ops import aglu\n"
        "from apa_mmdet.optim import param_groups\n"
        "model = torch.nn.Sequential(torch.nn.ReLU())\n"
        "convert_activations(model)\n"
        "print(type(model[0]) is AGLU, len(param_groups(model, 0.1)))\n"
        "print(aglu(torch.zeros(1), torch.ones(1), torch.ones(1)).item())"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "1", "0.0"]


def test_without_mmengine_the_evaluation_does_not_import_torch():
    code = HIDE.format(names=["torch", "mmengine", "mmcv", "mmdet", "lvis"])
    done = run(code + "import apa_mmdet.evaluation as e; print(e.evaluate.__name__)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "evaluate"


def test_the_evaluation_tool_imports_neither_torch_nor_mmdet():
    code = HIDE.format(names=["torch", "mmcv", "mmdet"]) + (
        "import runpy; sys.argv[1:] = ['--help']\n"
        "runpy.run_path('tools/analysis_tools/eval_lvis.py', run_name='__main__')"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")


# ---------------------------------------------------------- what importing changes


@pytest.fixture(scope="module")
def installation():
    script = "tests/record_installation.py"
    done = run(f"import runpy; runpy.run_path({script!r}, run_name='__main__')")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_modules_alone_only_add_their_own_types(installation):
    names = {name for name, _, _ in installation["modules"]}
    assert {"apa_mmdet.compat", "apa_mmdet.engine.flops", "apa_mmdet.models"} <= names
    own = {
        "mmdet evaluator: CalibrationEvaluator",
        "mmdet dataset: LVISFormatDataset",
        "mmdet hook: AlignmentHook",
        "mmdet hook: ClassFrequencyHook",
        "mmdet hook: SetupCheckHook",
        "mmdet metric: LVISFastMetric",
        "mmdet model: APABBoxHead",
        "mmdet model: APADetector",
        "mmdet model: APALoss",
        "mmdet model: APAResNeXt",
        "mmdet model: APAResNet",
        "mmdet model: EQLV2BoxLoss",
        "mmdet model: EfficientNetLite",
        "mmdet task util: FRACAL",
        "mmdet task util: LogitAdjustment",
        "mmdet task util: NORCAL",
        "mmdet task util: PostCompensation",
        "mmengine model: APACBAM",
        "mmengine model: APASELayer",
        "mmengine model: CosineConv2d",
        "mmengine model: WrappedCauchyLinear",
    }
    for name, replaced, added in installation["modules"]:
        assert replaced == [], name
        assert set(added) <= own, name
    assert set(added) == own


def test_the_package_installs_what_its_list_says(installation):
    assert installation["replaced"] == [
        "loader for: ",
        "lvis.eval.np",
        "mmdet.models.roi_heads.base_roi_head.BaseRoIHead.__init__",
        "mmengine.runner.checkpoint.CheckpointLoader._schemes",
        "mmengine.runner.checkpoint.load_url",
    ]
    by_modules = installation["modules"][-1][-1]
    maximized = {
        f"{hook} maximizes: {name}"
        for hook in ("CheckpointHook", "EarlyStoppingHook")
        for name in ("bbox_AP", "segm_AP", "_FixedAP", "ARs@", "ARm@", "ARl@")
    }
    assert set(installation["added"]) - set(by_modules) - maximized == {
        "loader for: package://",
        "activations of: apa_mmdet::aglu",
        "activations of: apa_mmdet::apa",
        "activations of: prim::PythonOp._PlainAPA",
        "flops of: apa_mmdet::aglu",
        "flops of: apa_mmdet::apa",
        "flops of: prim::PythonOp._PlainAPA",
        "mmdet optimizer wrapper constructor: DefaultOptimWrapperConstructor",
        "mmengine model: AGLU",
        "mmengine model: APA",
        "safe: argparse.Namespace",
        "safe: builtins.bytes",
        "safe: builtins.getattr",
        "safe: mmengine.logging.history_buffer.HistoryBuffer",
        "safe: numpy._core.multiarray._reconstruct",
        "safe: numpy._core.multiarray.scalar",
        "safe: numpy.core.multiarray._reconstruct",
        "safe: numpy.core.multiarray.scalar",
        "safe: numpy.dtype",
        "safe: numpy.ndarray",
    }
    assert maximized <= set(installation["added"]) - set(by_modules)
    assert installation["shadowing"] == [
        "mmdet optimizer wrapper constructor: DefaultOptimWrapperConstructor"
    ]


def test_custom_imports_are_enough(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        "custom_imports = dict(imports=['apa_mmdet'], allow_failed_imports=False)\n"
    )
    code = (
        "import numpy\n"
        "before = hasattr(numpy, 'float'), set(vars(numpy))\n"
        "from mmengine.config import Config\n"
        f"Config.fromfile({str(config)!r})\n"
        "import lvis.eval\n"
        "from mmengine.registry import MODELS\n"
        "print(hasattr(numpy, 'float') == before[0])\n"
        "print('float' in vars(numpy))\n"
        "print(lvis.eval.np.float is float)\n"
        "print(MODELS.get('AGLU').__module__)\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "True",
        "False",
        "True",
        "apa_mmdet.layers.activation",
    ]


@pytest.fixture(scope="module")
def project():
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        tomllib = pytest.importorskip("tomli")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_plain_install_brings_no_mmdetection(project):
    names = {Requirement(text).name for text in project["dependencies"]}
    assert names == {"torch", "numpy", "lvis", "pycocotools", "tqdm"}


@pytest.mark.parametrize(
    "extra, stack, others",
    [("openmmlab", OPENMMLAB, {"setuptools"}), ("onedl", ONEDL, set())],
)
def test_each_stack_is_an_extra_without_mmcv(project, extra, stack, others):
    requirements = project["optional-dependencies"][extra]
    specifiers = {(each := Requirement(r)).name: each.specifier for r in requirements}
    pins = dict(stack[name] for name in ("mmengine", "mmdet"))
    assert specifiers.keys() == pins.keys() | others
    for name, version in pins.items():
        assert version in specifiers[name], name


@pytest.mark.parametrize(
    "extra, pin",
    [("classification", MMPRETRAIN), ("classification-onedl", MMPRETRAIN_ONEDL)],
)
def test_mmpretrain_is_an_extra(project, extra, pin):
    text, other = project["optional-dependencies"][extra]
    assert other == "model-index"
    requirement = Requirement(text)
    assert requirement.name == pin[0] and pin[1] in requirement.specifier


def test_minimum_of_torch(project):
    (torch,) = (r for r in project["dependencies"] if r.startswith("torch"))
    assert torch == f"torch>={'.'.join(map(str, MINIMUM['torch']))}"


def test_versions_in_scripts_and_pages_are_the_requirements():
    mmpretrain = (MMPRETRAIN, MMPRETRAIN_ONEDL)
    pins = dict([*OPENMMLAB.values(), *ONEDL.values(), *mmpretrain])
    # mmdet==3.3.0, or mmdet 3.3.0 in a sentence
    pattern = rf"(?<![\w-])({'|'.join(pins)})(?:==| )(\d+\.\d+\.\d+)"
    paths = [ROOT / "tools/setup_env.sh", ROOT / "README.md", *ROOT.glob("docs/*.md")]
    for path in paths:
        for name, version in re.findall(pattern, path.read_text()):
            assert version == pins[name], f"{path}: {name} {version}"
    script = dict(re.findall(pattern, paths[0].read_text()))
    assert script == pins


def test_the_wheel_contains_every_source(tmp_path):
    source = tmp_path / "source"
    hide = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "apa_mmdet", source / "apa_mmdet", ignore=hide)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = "-m pip wheel --no-deps --no-build-isolation --quiet --wheel-dir"
    subprocess.run(
        [sys.executable, *command.split(), str(tmp_path), str(source)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    written = {name for name in ZipFile(wheel).namelist() if "dist-info" not in name}
    package = (source / "apa_mmdet").rglob("*")
    files = {str(path.relative_to(source)) for path in package if path.is_file()}
    assert written == files


def test_version_is_exported():
    import apa_mmdet
    from apa_mmdet.version import __version__

    assert apa_mmdet.__version__ == __version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
