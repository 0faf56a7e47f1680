"""The pages: up to date where generated, and with links and configs that work."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]
METAFILES = [
    yaml.safe_load((ROOT / path).read_text("utf-8"))
    for path in yaml.safe_load((ROOT / "model-index.yml").read_text("utf-8"))["Import"]
]
MODEL_ENTRIES = [model for metafile in METAFILES for model in metafile["Models"]]
CONFIG_EXAMPLES = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    )
    if "_base_ =" in block
]
NEEDS_MMPRETRAIN = "apa_mmdet.classification"


def test_model_zoo_is_what_its_generator_prints():
    command = [sys.executable, ROOT / "tools/analysis_tools/model_zoo.py"]
    printed = subprocess.run(command, check=True, capture_output=True).stdout
    assert printed.decode() == (ROOT / "docs/model_zoo.md").read_text("utf-8")


def test_model_index_lists_each_config_once():
    configs = [model["Config"] for model in MODEL_ENTRIES]
    shipped = {str(path.relative_to(ROOT)) for path in ROOT.glob("configs/*/*.py")}
    bases = {path for path in shipped if path.startswith("configs/_base_/")}
    assert sorted(configs) == sorted(shipped - bases)


@pytest.mark.parametrize("model", MODEL_ENTRIES, ids=lambda model: model["Name"])
def test_metafile_describes_its_config(model):
    assert model["Config"] == f"configs/{model['Name']}.py"
    collections = [c["Name"] for file in METAFILES for c in file.get("Collections", ())]
    assert model["In Collection"] in collections
    assert {"Summary", "Initial Weights"} <= model["Metadata"].keys()
    # Without its imports, since those of classifiers need MMPretrain.
    cfg = Config.fromfile(ROOT / model["Config"], import_custom_modules=False)
    epochs = cfg.train_cfg.get("max_epochs")
    assert epochs in (model["Metadata"]["Epochs"], None)  # V3Det's count iterations
    for result in model.get("Results", ()):
        assert result.keys() == {"Task", "Dataset", "Metrics"}
        assert all(0 < value < 100 for value in result["Metrics"].values())
        assert model["Metadata"]["Results Source"].startswith("published")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if not re.match(r"https?:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("text", CONFIG_EXAMPLES)
def test_config_example_builds(text, tmp_path):
    if NEEDS_MMPRETRAIN in text:
        pytest.importorskip("mmpretrain")
    path = tmp_path / "config.py"
    path.write_text(text)
    register_all_modules(init_default_scope=True)
    cfg = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmdet")):
        MMENGINE_MODELS.build(cfg.model)
