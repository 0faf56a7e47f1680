"""The tool: what it prints and writes, and its errors."""

import csv
import json
import math
import re

import pytest
from PIL import Image

TOOL = "analyze_activations.py"
CONFIG = "configs/mini_lvis/mask_rcnn_r18_apa.py"
SMALL = {
    "model.backbone.base_channels": 8,
    "model.neck.in_channels": "[8,16,32,64]",
    "model.roi_head.bbox_head.fc_out_channels": 32,
    "model.train_cfg.rpn_proposal.max_per_img": 32,
    # It needs the class frequencies of the training data.
    "model.roi_head.bbox_head.loss_cls.rare_threshold": 0.1,
}


def arguments(repo, mini_lvis, *more, **settings):
    options = {**SMALL, "data_root": mini_lvis, **settings}
    pairs = [f"{key}={value}" for key, value in options.items()]
    return [repo / CONFIG, *more, "--cfg-options", *pairs]


@pytest.fixture
def analysed(run_tool, repo, mini_lvis, tmp_path):
    more = ["--images", 4, "--replicates", 2, "--data", "val", "--out", tmp_path]
    more += ["--sites", "backbone.layer4", "roi_head.bbox_head"]
    return run_tool(TOOL, *arguments(repo, mini_lvis, *more)), tmp_path


def test_it_prints_a_table_and_writes_files(analysed):
    shown, folder = analysed
    report = json.loads((folder / "activations.json").read_text())
    assert report["num_images"] == 4 and report["checkpoint"] is None
    sites = [record["site"] for record in report["sites"]]
    layers = [f"backbone.layer4.{i}.act{j}" for i in (0, 1) for j in (1, 2)]
    shared = [f"roi_head.bbox_head.shared_acts.{i}" for i in (0, 1)]
    assert sites == [*layers, *shared]
    first = report["sites"][0]
    assert (first["type"], first["lam"], first["kappa"]) == ("AGLU", 1, 50)
    assert first["start_lam"] == 1
    for name in ("normal", "logistic", "gumbel", "apa"):
        fit = first["fits"][name]
        assert fit["ks_low"] <= fit["ks_high"] and math.isfinite(fit["aic"])
    logits = {(r["role"], r["group"]): r for r in report["classifiers"]}
    # So few proposals may show no object of some group.
    assert set(logits) > {(role, g) for role in ("other", "background") for g in "rcf"}
    assert {role for role, _ in logits} == {"target", "other", "background"}
    background = logits["background", "f"]
    assert background["lam"] == 0 and background["count"] > 100
    assert background["mean"] < -1  # the prior's bias
    assert all(record["fits"]["apa"]["kappa"] > 0 for record in report["classes"])

    with (folder / "activations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(
        len(report[part]) for part in ("sites", "classifiers", "classes")
    )
    assert float(rows[0]["apa_lam"]) == first["fits"]["apa"]["lam"]
    assert float(rows[0]["quantile_0.5"]) == first["quantiles"]["0.5"]
    for label in (*sites, "roi_head.bbox_head background f"):
        assert re.search(rf"^{re.escape(label)} +[\d,]+ ", shown, re.M), label
    assert "too few to fit a distribution: at least 50 are needed" in shown
    pictures = sorted(path.name for path in folder.glob("*.png"))
    head = "roi_head.bbox_head"
    expected = [f"classes_{head}", f"classifier_{head}", "depth", "sites_1"]
    assert pictures == [f"{name}.png" for name in expected]
    for name in pictures:
        assert name in shown
        with Image.open(folder / name) as image:
            # More than an empty frame: several colours.
            assert len(image.convert("P").getcolors()) > 20, name


@pytest.mark.parametrize(
    "more, settings, words",
    [
        (["--sites", "backbone.layer5"], {}, "--sites 'backbone.layer5' matches none"),
        (["nowhere.pth"], {}, "nowhere.pth: no such file"),
        ([], {"data_root": "nowhere"}, "not found: .*nowhere/annotations"),
    ],
)
def test_errors_come_without_a_traceback(
    run_tool, repo, mini_lvis, capsys, more, settings, words
):
    with pytest.raises(SystemExit) as raised:
        more = [*more, "--images", 2]
        run_tool(TOOL, *arguments(repo, mini_lvis, *more, **settings))
    said = f"{raised.value} {capsys.readouterr().err}"
    assert re.search(words, said)
    assert raised.value.code != 0


@pytest.mark.parametrize(
    "more", [["--images", "0"], ["--data", "test"], ["--device", "abacus"]]
)
def test_unfit_options_are_refused(run_tool, repo, mini_lvis, more):
    with pytest.raises(SystemExit) as raised:
        run_tool(TOOL, *arguments(repo, mini_lvis, *more))
    assert raised.value.code == 2
