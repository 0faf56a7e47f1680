"""Tables, CSV, plot, and the tool that evaluates results files."""

import csv
import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from apa_mmdet.evaluation import report
from apa_mmdet.evaluation.core import bootstrap
from apa_mmdet.evaluation.core.evaluate import evaluate
from apa_mmdet.evaluation.files.annotations import load_ground_truth
from apa_mmdet.evaluation.files.results import read_results

REPO = Path(__file__).parents[2]
TOOL = REPO / "tools/analysis_tools/eval_lvis.py"


def run_tool(*args, cwd, fails=False, tool=TOOL):
    env = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run(
        [sys.executable, tool, *map(str, args)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr if fails else done.stdout


def result_of(case):
    truth = load_ground_truth(case.truth_path)
    return evaluate(truth, read_results(case.results_path, truth))


def test_summary_table():
    figures = {
        "first": {"AP": 0.12345, "APr": -1.0, "AR@300": 1.0},
        "2": {"AP": 0.0, "APr": 0.5, "AR@300": 0.00004},
    }
    assert report.summary_table(figures).splitlines() == [
        "           AP     APr  AR@300",
        "first   12.35       -  100.00",
        "2        0.00   50.00    0.00",
    ]


def test_difference_table():
    differences = {
        "AP": bootstrap.Difference(0.2, 0.25, 0.01, 0.09, 0.99),
        "APr": bootstrap.Difference(0.2, 0.19, -0.05, 0.02, 0.4),
    }
    lines = report.difference_table(differences).splitlines()
    assert lines[1].split() == "AP 20.00 25.00 +5.00 +1.00 .. +9.00 99%".split()
    assert lines[2].endswith("40%  could be chance")
    assert lines[2].split()[3] == "-1.00"


def test_class_table_is_sorted_by_ap(case):
    result = result_of(case(37))
    cells = report.class_table(result, columns=1).splitlines()
    values = [float(cell.split()[-1]) for cell in cells]
    assert values == sorted(values)
    assert len(values) == np.isfinite(result.class_ap()).sum() > 2


def test_csv_has_every_class_at_full_precision(case, tmp_path):
    first, second = result_of(case(37)), result_of(case(37))
    path = tmp_path / "deep" / "classes.csv"
    report.write_class_csv(path, {"ours": first, "b/theirs": second})
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    truth, ap = first.truth, first.class_ap()
    assert [int(row["category_id"]) for row in rows] == truth.class_ids.tolist()
    assert [int(row["image_count"]) for row in rows] == truth.image_counts.tolist()
    assert [row["frequency"] for row in rows] == ["rcf"[i] for i in truth.frequency]
    for row, value in zip(rows, ap):
        assert row["AP ours"] == row["AP b/theirs"]
        assert row["AP ours"] == ("" if np.isnan(value) else repr(float(value)))


@pytest.fixture
def saved_figures(monkeypatch):
    """The matplotlib figures that were saved."""
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda self, *a, **k: (figures.append(self), save(self, *a, **k)),
    )
    return figures


def test_plot_shows_classes_and_group_bounds(case, tmp_path, saved_figures):
    result = result_of(case(37))
    path = tmp_path / "tail.png"
    report.plot_long_tail(path, {"ours": result, "theirs": result})
    axis = saved_figures[0].axes[0]
    bounds = [
        x for line in axis.lines for x in {*line.get_xdata()} if x in (10.5, 100.5)
    ]
    assert sorted(bounds) == [10.5, 100.5]
    points = [line for line in axis.lines if line.get_marker() == "."]
    ap = 100 * result.class_ap()
    for line in points:
        is_shown = np.isfinite(ap)
        np.testing.assert_array_equal(
            line.get_xdata(), result.truth.image_counts[is_shown]
        )
        np.testing.assert_allclose(line.get_ydata(), ap[is_shown])
    labels = axis.get_legend_handles_labels()[1]
    value = 100 * result.summary()["AP"]
    assert labels[0].startswith(f"ours: AP {value:.1f}") and len(labels) == 2
    image = cv2.imread(str(path))
    assert image.shape[0] > 400 and image.std() > 5


def test_plot_needs_image_counts(case, tmp_path):
    written = case(
        37, change=lambda data, _: [c.pop("image_count") for c in data["categories"]]
    )
    with pytest.raises(ValueError, match="no image_count"):
        report.plot_long_tail(tmp_path / "x.png", {"": result_of(written)})


def test_csv_without_image_counts(case, tmp_path):
    written = case(
        37, change=lambda data, _: [c.pop("image_count") for c in data["categories"]]
    )
    report.write_class_csv(tmp_path / "x.csv", {"": result_of(written)})
    with open(tmp_path / "x.csv", newline="") as file:
        assert {row["image_count"] for row in csv.DictReader(file)} == {""}


@pytest.mark.parametrize("number", [2, 12])
def test_csv_and_plot_show_all_results(case, tmp_path, saved_figures, number):
    results = {f"run {i}": result_of(case(37)) for i in range(number)}
    report.write_class_csv(tmp_path / "x.csv", results)
    with open(tmp_path / "x.csv", newline="") as file:
        row = next(csv.DictReader(file))
    assert [name for name in row if name.startswith("AP")] == [
        f"AP {name}" for name in results
    ]
    report.plot_long_tail(tmp_path / "x.png", results)
    handles, labels = saved_figures[0].axes[0].get_legend_handles_labels()
    assert [label.split(":")[0] for label in labels] == list(results)
    assert len({tuple(line.get_color()) for line in handles}) == number


# ------------------------------------------------------------------------- the tool


def test_tool_evaluates_a_file(case, tmp_path, lvis_api):
    written = case(37)
    zipped = tmp_path / "results.json.gz"
    zipped.write_bytes(gzip.compress(written.results_path.read_bytes()))
    out = run_tool(
        *(written.truth_path, zipped, "--fixed-ap", "--classwise", "--csv", "a.csv"),
        *("--png", "a.png", "--json", "a.json", "--max-dets", 4),
        cwd=tmp_path,
    )
    figures = json.loads((tmp_path / "a.json").read_text())["figures"][
        "results.json.gz"
    ]
    expected = lvis_api(written.truth_path, written.results, "bbox", max_dets=4).figures
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, abs=1e-9)
    whole = lvis_api(written.truth_path, written.results, "bbox", max_dets=-1).figures
    assert figures["FixedAP"] == pytest.approx(whole["AP"], abs=1e-9)
    assert f"{100 * expected['AP']:.2f}" in out
    assert "AP of each class" in out
    assert (tmp_path / "a.csv").exists() and (tmp_path / "a.png").exists()


def test_tool_evaluates_masks_if_the_file_has_some(case, tmp_path, lvis_api):
    written = case(1009, with_masks=True)
    ids = sorted(image["id"] for image in written.data["images"])[::2]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    options = ("--img-ids", "ids.json", "--iou-thrs", 0.5, 0.75, "--json", "a.json")
    out = run_tool(written.truth_path, written.results_path, *options, cwd=tmp_path)
    assert out.startswith(f"segm, {len(ids)} images")
    figures = json.loads((tmp_path / "a.json").read_text())["figures"]
    results = [result for result in written.results if result["image_id"] in ids]
    expected = lvis_api(
        written.truth_path, results, "segm", img_ids=ids, iou_thrs=[0.5, 0.75]
    ).figures
    for name, value in expected.items():
        assert figures[written.results_path.name][name] == pytest.approx(
            value, abs=1e-9
        )


def test_tool_compares_files(case, tmp_path):
    written = case(37)
    other = tmp_path / "b" / written.results_path.name
    other.parent.mkdir()
    worse = [dict(r, bbox=[v * 1.1 for v in r["bbox"]]) for r in written.results]
    other.write_text(json.dumps(worse))
    options = (
        "--num-resamples",
        200,
        "--json",
        "a.json",
        "--csv",
        "a.csv",
        "--png",
        "a.png",
    )
    out = run_tool(
        written.truth_path, written.results_path, other, *options, cwd=tmp_path
    )
    name = f"b/{other.name}"
    assert f"B = {name}; 200 resamples" in out
    report = json.loads((tmp_path / "a.json").read_text())
    (differences,) = report["differences"].values()
    first, second = report["figures"].values()
    assert differences["AP"]["difference"] == pytest.approx(second["AP"] - first["AP"])
    assert differences["AP"]["low"] <= differences["AP"]["difference"]
    head = (tmp_path / "a.csv").read_text().splitlines()[0]
    assert head.endswith(
        f"annotations,AP {written.results_path.parent.name}/{other.name},AP {name}"
    )


def test_tool_reports_what_is_wrong(case, tmp_path):
    written = case(37)
    text = written.results_path.read_text()
    truncated = tmp_path / "truncated.json"
    truncated.write_text(text[: len(text) // 2])
    error = run_tool(written.truth_path, truncated, cwd=tmp_path, fails=True)
    assert (
        f"error: {truncated}: truncated at character {len(text) // 2:,}, after" in error
    )
    unknown = tmp_path / "unknown.json"
    results = [dict(r, image_id=-1) for r in written.results]
    unknown.write_text(json.dumps(results))
    error = run_tool(written.truth_path, unknown, cwd=tmp_path, fails=True)
    assert (
        f"unknown image_id: {len(results)}, the first: result 1 (-1), result 2" in error
    )
    error = run_tool(written.truth_path, "nowhere.json", cwd=tmp_path, fails=True)
    assert "nowhere.json: no such file" in error
    error = run_tool(written.results_path, written.truth_path, cwd=tmp_path, fails=True)
    assert "expected a JSON" in error  # the two in the wrong order
    error = run_tool(
        written.truth_path,
        written.results_path,
        "--metric",
        "segm",
        cwd=tmp_path,
        fails=True,
    )
    assert "--metric bbox" in error
    error = run_tool(
        written.truth_path,
        written.results_path,
        "--max-dets",
        0,
        cwd=tmp_path,
        fails=True,
    )
    assert "--max-dets 0: expected at least 1" in error


@pytest.fixture
def eval_lvis(case, run_tool, capsys):
    """The function that runs the tool here, and returns what it says when it fails."""
    written = case(37)

    def run(*options):
        with pytest.raises(SystemExit) as stopped:
            run_tool("eval_lvis.py", written.truth_path, written.results_path, *options)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["x"], '--img-ids: "x" is neither a whole number nor a file; expected ids'),
        (["1", "ids.txt"], '--img-ids: "ids.txt" is neither a whole number nor'),
        (["-5", "-6"], r"2 of 2 ids are not in the annotation file, the first: \[-6, "),
        ([str(2**63)], "an entry of img_ids is 9223372036854775808; expected a whole"),
        ("1 one", r'--img-ids .*/ids: "one" is neither a whole number nor'),
        ("[1, null]", r'--img-ids .*/ids: "null" is neither a whole number nor'),
        ("1 \udcff", r'--img-ids .*/ids: "\\ufffd" is neither a whole number nor'),
        ("[]", r"--img-ids .*/ids: the file has no ids"),
    ],
)  # fmt: skip
def test_tool_refuses_image_ids(eval_lvis, tmp_path, ids, message):
    if isinstance(ids, str):
        path = tmp_path / "ids"
        path.write_text(ids, errors="surrogateescape")
        ids = [path]
    error = eval_lvis("--img-ids", *ids)
    assert re.match("error: .*" + message, error) and error.count("\n") == 1, error


@pytest.mark.parametrize("text", ["[{}, {}]\n", "{}\n{}\n", "{},{}", "\ufeff{} {}"])
def test_tool_reads_image_ids_from_a_file(case, run_tool, tmp_path, text):
    written = case(37)
    ids = [image["id"] for image in written.data["images"][:2]]
    path = tmp_path / "ids"
    path.write_text(text.format(*ids), encoding="utf-8")
    files = written.truth_path, written.results_path
    printed = run_tool("eval_lvis.py", *files, "--img-ids", path)
    assert printed == run_tool("eval_lvis.py", *files, "--img-ids", *ids)
    assert printed.startswith("bbox, 2 images, ")


def test_tool_without_matplotlib_refuses_a_plot_at_once(eval_lvis, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    error = eval_lvis("--png", "tail.png")
    assert "error: --png needs matplotlib; pip install matplotlib" in error


def test_tool_writes_figures_before_it_plots(eval_lvis, tmp_path):
    paths = [tmp_path / "new" / name for name in ("a.json", "a.csv", "a.unknown")]
    error = eval_lvis("--json", paths[0], "--csv", paths[1], "--png", paths[2])
    assert re.match(r"error: .*'unknown' is not supported", error)
    assert [path.exists() for path in paths] == [True, True, False]


def test_importing_the_evaluation_needs_only_numpy(tmp_path):
    missing = ["torch", "mmengine", "pycocotools", "lvis", "tqdm", "matplotlib", "cv2"]
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({missing}))\n"  # None: not installed
        "from apa_mmdet import evaluation\n"
        "from apa_mmdet.evaluation import report\n"
        "print(evaluation.evaluate.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(os.environ, PYTHONPATH=str(REPO)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "evaluate", done.stderr


def test_evaluators_of_the_benchmark_agree(tmp_path):
    args = "--images 12 --detections 60 --only apa_mmdet lvis-api --metric segm"
    tool = TOOL.with_name("benchmark_lvis_eval.py")
    out = run_tool(*args.split(), cwd=tmp_path, tool=tool)
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    ours, theirs = rows["apa_mmdet"], rows["lvis-api"]
    assert ours[-2:] == theirs[-2:]  # AP and APr
    assert 0.1 < float(ours[-2]) < 0.9
    share = float(rows["judged"][5].rstrip("%"))
    assert 25 < share < 42
    assert "lvis-api:" in out and "times the memory" in out
