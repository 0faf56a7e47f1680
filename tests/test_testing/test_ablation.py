"""tools/analysis_tools/ablate.py, with training and testing that take no time.

The stand-ins of train.py and test.py leave the same files behind. Two settings at the
top of a config tell them what to do: ``quality`` is the share of the instances that the
test detects, ``behaviour`` how the training ends.
"""

import json
import signal
import sys

import numpy as np
import pytest
from mmengine.config import Config

from apa_mmdet.evaluation import (
    accuracy,
    compare,
    evaluate,
    load_ground_truth,
    read_results,
)
from apa_mmdet.evaluation.core.bootstrap import Resamples
from apa_mmdet.testing.ablation import jobs, report

CONFIG = """
dataset = dict(
    type="LVISV1Dataset",
    data_root="{root}/",
    ann_file="annotations/lvis_v1_train.json",
    data_prefix=dict(img=""),
)
data_root = "{root}/"
train_dataloader = test_dataloader = val_dataloader = dict(dataset=dataset)
test_cfg = val_cfg = dict()
test_evaluator = val_evaluator = dict(
    type="LVISFastMetric", ann_file="{root}/annotations/lvis_v1_val.json"
)
train_cfg = dict(max_epochs=4)
param_scheduler = [dict(type="MultiStepLR", milestones=[3], end=4)]
model = dict(type="MaskRCNN")
"""
START = """
import json, os, pathlib, random, signal, sys
cfg = {}
exec(pathlib.Path(sys.argv[1]).read_text(), cfg)
work = pathlib.Path(sys.argv[sys.argv.index("--work-dir") + 1])
work.mkdir(parents=True, exist_ok=True)
with (work.parent.parent / "calls").open("a") as calls:
    print(work.parent.name, work.name, *sys.argv[4:], file=calls)
"""
TRAIN = """
(work / "epoch_1.pth").touch()
(work / "last_checkpoint").write_text("/another/machine/epoch_1.pth")
assert all(cfg[f"test_{name}"] is None for name in ("cfg", "dataloader", "evaluator"))
if cfg.get("behaviour") == "fail":
    sys.exit("ValueError: no luck")
if cfg.get("behaviour") == "cut" and "--resume" not in sys.argv:
    os.kill(os.getppid(), signal.SIGTERM)
    signal.pause()
"""
TEST = """
truth = json.loads(pathlib.Path(cfg["test_evaluator"]["ann_file"]).read_text())
rng = random.Random(cfg["randomness"]["seed"])
results = [
    dict(image_id=a["image_id"], category_id=a["category_id"], bbox=a["bbox"], score=1)
    for a in truth["annotations"]
    if rng.random() < cfg.get("quality", 0.5)
]
assert pathlib.Path(sys.argv[4]).exists()
key, prefix = sys.argv[-1].split("=")
assert key == "test_evaluator.outfile_prefix"
pathlib.Path(f"{prefix}.bbox.json").write_text(json.dumps(results))
"""

CLASSIFIER = """
train_dataloader = test_dataloader = val_dataloader = dict(dataset=dict(type="A"))
test_cfg = val_cfg = dict()
test_evaluator = val_evaluator = dict(type="LongTailAccuracy")
train_cfg = dict(max_epochs=4)
param_scheduler = []
model = dict(type="ImageClassifier", head=dict(shift=0))
"""
TEST_CLASSIFIER = """
share = cfg["quality"] - cfg["model"]["head"]["shift"]
right = round(100 * share) - cfg["randomness"]["seed"]
labels = [0, 1, 2] * 100
predicted = [a if i // 3 < right else (a + 1) % 3 for i, a in enumerate(labels)]
key, prefix = sys.argv[-1].split("=")
assert key == "test_evaluator.outfile_prefix"
counts = [500, 50, 5]
content = dict(labels=labels, predicted=predicted, class_counts=counts)
pathlib.Path(f"{prefix}.top1.json").write_text(json.dumps(content))
"""


@pytest.fixture
def ablate(load_tool, monkeypatch, tmp_path, mini_lvis, capsys):
    """The function that runs the tool and returns its exit code and what it printed."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "train.py").write_text(START + TRAIN)
    (tools / "test.py").write_text(START + TEST)
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(root=mini_lvis))
    tool = load_tool("analysis_tools/ablate.py")
    monkeypatch.setattr(tool, "TOOLS", tools)
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    handlers = {number: signal.getsignal(number) for number in numbers}

    def run(*args):
        own = ["--config", config, "--work-dir", tmp_path / "runs"]
        own += ["--num-resamples", 100]
        monkeypatch.setattr(sys, "argv", ["ablate.py", *map(str, [*own, *args])])
        with pytest.raises(SystemExit) as end:
            tool.main()
        return end.value.code, capsys.readouterr()

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def calls(tmp_path):
    """The function that returns the commands run since it was last called."""

    def take():
        path = tmp_path / "runs/calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    return take


V = "--variation"
GOOD = (V, "good", "quality=0.9")
BAD = (V, "bad", "quality=0.2")
SEEDS = ("--seeds", 0, 1)


def table_row(shown, name):
    """Return the only row of the printed tables with that name."""
    (row,) = (line for line in shown.splitlines() if line.startswith(f"{name}  "))
    return row


def test_the_table_has_mean_spread_and_differences(ablate, tmp_path, mini_lvis):
    code, shown = ablate(*GOOD, *BAD, "--variation", "same", "quality=0.9", *SEEDS)
    assert code == 0, shown.err
    written = json.loads((tmp_path / "runs/table.json").read_text())
    truth = load_ground_truth(mini_lvis / "annotations/lvis_v1_val.json")
    results = {
        (name, seed): evaluate(truth, read_results(path, truth))
        for name in ("good", "bad")
        for seed in (0, 1)
        for path in [tmp_path / f"runs/{name}-{seed}/{name}/predictions.bbox.json.gz"]
    }
    for (name, seed), result in results.items():
        figures = written["runs"][name][str(seed)]
        assert set(figures) == {f"bbox AP{letter}" for letter in ("", "r", "c", "f")}
        for figure, value in figures.items():
            assert value == pytest.approx(100 * result.summary()[figure[5:]])
    one, other = (written["runs"]["good"][str(seed)]["bbox AP"] for seed in (0, 1))
    cell = f"{(one + other) / 2:.1f} ± {abs(one - other) / 2**0.5:.1f}"
    assert table_row(shown.out, "good").startswith(f"good  2      {cell}  ")
    # The differences of good and bad are clear, those of good and same are not, so no
    # variation is the best.
    differences = {
        (each["second"], each["first"]): each
        for each in written["differences"]
        if each["figure"] == "bbox AP"
    }
    assert set(differences) == {("bad", "good"), ("same", "good"), ("same", "bad")}
    bad = differences["bad", "good"]
    expected = written["runs"]["bad"]["0"]["bbox AP"] - one
    expected += written["runs"]["bad"]["1"]["bbox AP"] - other
    assert bad["difference"] == pytest.approx(expected / 2)
    assert bad["over_images"][0] < bad["difference"] < bad["over_images"][1] < 0
    assert differences["same", "good"]["over_images"] == [0, 0]
    assert table_row(shown.out, "bad - good").count("*") == 4
    for name in ("same - good", "good", "same", "bad"):
        assert "*" not in table_row(shown.out, name)
    page = (tmp_path / "runs/table.md").read_text()
    assert f"| good | 2 | {cell} |" in page
    assert f"| bad - good | **{bad['difference']:+.1f} (" in page
    assert (tmp_path / "runs/table.png").stat().st_size > 1000


def test_one_seed_gives_the_interval_of_a_comparison(ablate, tmp_path, mini_lvis):
    code, shown = ablate(*BAD, *GOOD, "--seeds", 3)
    assert code == 0, shown.err
    truth = load_ground_truth(mini_lvis / "annotations/lvis_v1_val.json")
    pair = [
        evaluate(truth, read_results(path, truth))
        for name in ("bad", "good")
        for path in [tmp_path / f"runs/{name}-3/{name}/predictions.bbox.json.gz"]
    ]
    expected = compare(*pair, num_resamples=100)
    written = json.loads((tmp_path / "runs/table.json").read_text())["differences"]
    assert [each["figure"] for each in written] == [
        f"bbox AP{letter}" for letter in ("", "r", "c", "f")
    ]
    for each in written:
        other = expected[each["figure"][5:]]
        interval = pytest.approx([100 * other.low, 100 * other.high])
        assert each["over_images"] == each["over_images_and_seeds"] == interval
    good = table_row(shown.out, "good")
    assert good.count("*") == 4 and "±" not in good


def test_a_difference_within_the_spread_of_the_seeds_is_not_marked():
    noise = np.random.default_rng(0).normal(0, 0.005, (1000, 6))

    def measured(*values):
        return {
            seed: {
                "bbox ": Resamples(np.full(6, v), v + noise * (1 + v), {}, 0),
                "bbox Fixed": Resamples(np.full(6, v), noise, {}, 0),
            }
            for seed, v in enumerate(values)
        }

    runs = {
        "base": measured(0.300, 0.300, 0.300),
        "lucky": measured(0.299, 0.330, 0.360),
        "better": measured(0.340, 0.350, 0.360),
        "worst": measured(0.200, 0.210, 0.220, 0.230),
    }
    compared = report.compare_variations(runs)
    lucky = compared["bbox AP"]["base", "lucky"]
    assert lucky.images.value == pytest.approx(0.0297, abs=1e-4)
    assert lucky.images.low > 0 > lucky.seeds.low and not lucky.is_clear
    assert compared["bbox AP"]["base", "better"].is_clear
    tiny = report.Difference(0.3, 0.3001, 5e-5, 1.5e-4, 1.0)
    assert not report.Comparison(tiny, tiny).is_clear  # it is shown as 0.0
    # Over the seeds that both have.
    worst = compared["bbox AP"]["base", "worst"].images
    assert worst.value == pytest.approx(0.21 - 0.3)
    figures, differences, fixed, _ = report.make_tables(
        report.figures(runs), compared, "<{}>".format
    )
    assert figures[0] == ["box", "seeds", "AP", "APr", "APc", "APf"]
    assert fixed[0][2:] == ["FixedAP", "FixedAPr", "FixedAPc", "FixedAPf"]
    rows = {row[0]: row[1:] for row in (*figures, *differences)}
    # The best is not clearly better than the lucky one.
    assert rows["better"] == ["3", *["35.0 ± 1.0"] * 4]
    assert rows["worst"] == ["4", *["21.5 ± 1.3"] * 4]
    assert rows["lucky - base"][0].startswith("+3.0 (+")
    assert rows["better - base"][0].startswith("<+5.0 (+")
    del runs["lucky"]
    compared = report.compare_variations(runs)
    (better,) = (
        row
        for row in report.make_tables(report.figures(runs), compared, "<{}>".format)[0]
        if row[0] == "better"
    )
    assert better == ["better", "3", *["<35.0 ± 1.0>"] * 4]


def test_a_cut_training_resumes_and_nothing_is_repeated(ablate, calls, tmp_path):
    variations = (*GOOD, "--variation", "cut", "behaviour=cut", "--seeds", 0)
    code, _ = ablate(*variations)
    assert code == 128 + signal.SIGTERM
    assert [line.split()[:2] for line in calls()] == [
        ["good-0", "train"],
        ["good-0", "good"],
        ["cut-0", "train"],
    ]
    code, shown = ablate(*variations)
    assert code == 0, shown.err
    train, test = (line.split() for line in calls())
    assert train[:2] == ["cut-0", "train"] and test[:2] == ["cut-0", "cut"]
    assert train[-2:] == ["--resume", str(tmp_path / "runs/cut-0/train/epoch_1.pth")]
    assert ablate(*variations)[0] == 0
    assert calls() == []


def test_a_checkpoint_that_was_removed_is_not_resumed(ablate, calls, tmp_path):
    (tmp_path / "runs/good-0/train").mkdir(parents=True)
    (tmp_path / "runs/good-0/train/last_checkpoint").write_text("epoch_7.pth")
    assert ablate(*GOOD, "--seeds", 0)[0] == 0
    assert "--resume" not in calls()[0]


def test_a_failure_is_listed_and_the_others_go_on(ablate, calls, tmp_path):
    fails = ("--variation", "fails", "behaviour=fail")
    code, shown = ablate(*fails, *GOOD, *SEEDS, "--jobs", 2)
    assert code == 1
    log = tmp_path / "runs/fails-1/log.txt"
    assert (
        f"failed: fails, seed 1: training failed with exit code 1, see {log}: "
        "ValueError: no luck\n"
    ) in shown.err
    assert "missing: fails, seed 0\n" in shown.err
    assert table_row(shown.out, "good").split()[1] == "2"
    assert "\nfails" not in shown.out
    assert len(calls()) == 6
    written = json.loads((tmp_path / "runs/table.json").read_text())
    assert written["missing"] == ["fails, seed 0", "fails, seed 1"]


def test_a_test_variation_uses_the_weights_of_another(ablate, calls, tmp_path):
    both = (*BAD, "--test-variation", "better=bad", "quality=0.9", *SEEDS)
    code, shown = ablate(*both)
    assert code == 0, shown.err
    assert [line.split()[:2] for line in calls()] == [
        [f"bad-{seed}", step] for seed in (0, 1) for step in ("train", "bad", "better")
    ]
    assert table_row(shown.out, "better").count("*") == 4
    cfg = Config.fromfile(tmp_path / "runs/bad-1/better.config.py")
    assert (cfg.quality, cfg.randomness.seed) == (0.9, 1)
    # Another test of the same weights, later, trains nothing.
    code, _ = ablate(*both, "--test-variation", "worse=bad", "quality=0.1")
    assert code == 0
    assert [line.split()[:2] for line in calls()] == [
        [f"bad-{seed}", "worse"] for seed in (0, 1)
    ]


def test_tables_are_recomputed_from_what_is_there(ablate, calls, tmp_path):
    ablate(*GOOD, "--seeds", 0)
    before = (tmp_path / "runs/table.json").read_text()
    calls()
    code, _ = ablate(*GOOD, "--seeds", 0, "--report-only")
    assert code == 0
    assert (
        json.loads((tmp_path / "runs/table.json").read_text())["runs"]
        == (json.loads(before)["runs"])
    )
    code, shown = ablate(*GOOD, *SEEDS, "--report-only")
    assert code == 1 and "missing: good, seed 1\n" in shown.err
    assert table_row(shown.out, "good").split()[1] == "1"
    damaged = tmp_path / "runs/good-0/good/predictions.bbox.json.gz"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    code, shown = ablate(*GOOD, "--seeds", 0, "--report-only")
    assert code == 1 and f"missing: good, seed 0: {damaged}" in shown.err
    assert calls() == []


def test_changed_settings_are_noticed(ablate, calls, tmp_path):
    ablate(*GOOD, "--seeds", 0)
    calls()
    code, shown = ablate(*GOOD, "--seeds", 0, "--epochs", 2)
    assert code == 2
    folder = tmp_path / "runs/good-0"
    assert f"error: {folder}/train.config.py: made with other settings, " in shown.err
    assert "other settings, param_scheduler " in shown.err
    assert f"remove this file and {folder}\n" in shown.err
    # Another evaluation needs no other training.
    fixed = ("--cfg-options", "test_evaluator.fixed_ap=True")
    code, shown = ablate(*GOOD, "--seeds", 0, *fixed)
    assert code == 2
    assert "test_evaluator.fixed_ap None and True" in shown.err
    assert f"remove this file and {folder}/good\n" in shown.err
    assert calls() == []


def test_settings_of_all_and_of_one(ablate, tmp_path):
    o = "--cfg-options"  # given twice, they add up
    common = (o, "model.depth=18", o, "model.width=32", "--epochs", 8)
    own = (V, "a", "model.width=64", V, "b", "model.depth=50", "hooks=[{'type': 'A'}]")
    assert ablate(*own, *common, "--seeds", 3)[0] == 0
    cfgs = [
        Config.fromfile(tmp_path / f"runs/{name}-3/train.config.py") for name in "ab"
    ]
    assert [(cfg.model.depth, cfg.model.width) for cfg in cfgs] == [(18, 64), (50, 32)]
    assert "hooks" not in cfgs[0] and cfgs[1].hooks == [dict(type="A")]
    for cfg in cfgs:
        assert cfg.randomness.seed == 3
        assert cfg.train_cfg.max_epochs == cfg.param_scheduler[0].end == 8
        assert cfg.param_scheduler[0].milestones == [6]
        assert cfg.val_dataloader is cfg.val_cfg is cfg.val_evaluator is None


def test_options_from_a_file(ablate, calls, tmp_path):
    path = tmp_path / "options.txt"
    path.write_text("# two\n--variation good quality=0.9 # most\n--seeds 0 1\n")
    assert ablate(f"@{path}", "--seeds", 4)[0] == 0
    assert [line.split()[:2] for line in calls()] == [
        ["good-4", "train"],
        ["good-4", "good"],
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "expected at least one --variation"),
        ((V, "a=nowhere.py"), "--variation a: no such config file: nowhere.py"),
        ((V, "a=broken.py"), "--variation a: broken.py cannot be read, NameError: "),
        ((V, "a", V, "a"), "--variation a: this name was given before"),
        ((V, "a/b"), "--variation a/b: expected letters, digits and"),
        ((V, "train"), "--variation train: expected letters"),
        ((V, "a", "--seeds", 1, 1), "--seeds 1 1: expected each seed once"),
        ((V, "a", "--seeds", "x"), "invalid int value: 'x'"),
        ((V, "a", "--jobs", 0), "argument --jobs: 0: expected at least 1"),
        ((V, "a", "quality"), "--variation a: quality: expected KEY=VALUE"),
        ((V, "a", "hooks={type: x}"), "--variation a: hooks={type: x}: expected KEY="),
        ((V, "a", "--cfg-options", "x"), "--cfg-options: x: expected KEY=VALUE"),
        ((V, "a", "head=relu"), "--variation a: head=relu: expected a config, or one"),
        ((V, "a", "head=no.py"), "--variation a: no such config file: no.py"),
        ((V, "a", "model.type.x=1"), "--variation a: "),
        (
            (V, "a", "test_evaluator.type=LVISMetric"),
            "no LVISFastMetric in test_evaluator",
        ),
        (
            (V, "a", "test_evaluator.metric=proposal"),
            "test_evaluator.metric=['proposal']: expected bbox or segm",
        ),
        ((V, "a", "test_evaluator.max_dets=0"), "max_dets=0: expected at least 1"),
        (
            (V, "a", V, "b", "test_evaluator.max_dets=9"),
            "variations a and b differ in test_evaluator.max_dets",
        ),
        (
            (V, "a", "--test-variation", "b=c"),
            "--test-variation b=c: no such variation; expected one of a",
        ),
        ((V, "a", "--test-variation", "b"), "--test-variation b: no variation"),
        ((V, "a", "--test-variation", "a=a"), "a: this name was given before"),
        ((V, "a", "data_root=nowhere"), "not found: "),
    ],
)
def test_refusals(ablate, calls, tmp_path, args, message):
    (tmp_path / "broken.py").write_text("model = nothing")
    code, shown = ablate(*args)
    assert code == 2
    assert message in shown.err.splitlines()[-1 if "not found" not in message else 0]
    assert "Traceback" not in shown.err
    assert calls() == []


def test_classifiers_are_compared_by_accuracy(ablate, tmp_path):
    (tmp_path / "config.py").write_text(CLASSIFIER)
    (tmp_path / "tools/test.py").write_text(START + TEST_CLASSIFIER)
    test = ("--test-variation", "shifted=good", "model.head.shift=0.25")
    code, shown = ablate(*GOOD, *BAD, *test, *SEEDS)
    assert code == 0, shown.err
    runs = json.loads((tmp_path / "runs/table.json").read_text())["runs"]
    for name, right in (("good", 0.9), ("bad", 0.2), ("shifted", 0.65)):
        for seed in "01":
            figures = runs[name][seed]
            assert [*figures] == [f"top1 {group}" for group in accuracy.FIGURES]
            wrong = 100 - figures["top1 few"]
            assert figures["top1 all"] == pytest.approx(100 * right - int(seed), abs=1)
            assert wrong == pytest.approx(100 * (1 - right) + int(seed), abs=2)
    header = next(line for line in shown.out.splitlines() if "seeds" in line)
    assert header.split() == ["top1", "seeds", "all", "many", "medium", "few"]
    assert table_row(shown.out, "good").count("*") == 4
    assert table_row(shown.out, "bad - good").split()[3][0] == "-"


@pytest.mark.slow
def test_real_runs_give_the_figures_that_the_test_logs(
    load_tool, monkeypatch, tmp_path, mini_lvis, repo
):
    settings = [
        f"data_root={mini_lvis}",
        "train_dataloader.dataset.dataset.indices=8",
        "train_dataloader.batch_size=4",
        "model.backbone.base_channels=8",
        "model.neck.in_channels=[8,16,32,64]",
        "model.roi_head.bbox_head.loss_cls.rare_threshold=None",
        # Untrained boxes still overlap something.
        "test_evaluator.iou_thrs=[0.05]",
        "test_evaluator.fixed_ap=True",
    ]
    for loader in ("train_dataloader", "test_dataloader"):
        settings += [f"{loader}.num_workers=0", f"{loader}.persistent_workers=False"]
    args = ["--config", str(repo / "configs/mini_lvis/mask_rcnn_r18_apa.py")]
    args += ["--cfg-options", *settings, "--epochs", "1", "--seeds", "0"]
    args += [
        V,
        "apa",
        "--test-variation",
        "few=apa",
        "model.test_cfg.rcnn.max_per_img=5",
    ]
    args += ["--work-dir", str(tmp_path), "--num-resamples", "10"]
    monkeypatch.setattr(sys, "argv", ["ablate.py", *args])
    with pytest.raises(SystemExit, match="0"):
        load_tool("analysis_tools/ablate.py").main()
    runs = json.loads((tmp_path / "table.json").read_text())["runs"]
    for test in ("apa", "few"):
        (scalars,) = (tmp_path / "apa-0" / test).glob("*/*.json")
        logged = json.loads(scalars.read_text())
        figures = runs[test]["0"]
        assert set(figures) == {
            f"{kind} {fixed}AP{letter}"
            for kind in ("segm", "bbox")
            for fixed in ("", "Fixed")
            for letter in ("", "r", "c", "f")
        }
        for name, value in figures.items():
            key = f"lvis/{name.replace(' ', '_')}"
            assert value == pytest.approx(100 * logged[key], abs=1e-9)
    assert 0 < runs["few"]["0"]["bbox AP"] != runs["apa"]["0"]["bbox AP"]


def test_a_config_is_needed(load_tool, monkeypatch, capsys):
    tool = load_tool("analysis_tools/ablate.py")
    monkeypatch.setattr(sys, "argv", ["ablate.py", V, "a"])
    with pytest.raises(SystemExit):
        tool.main()
    message = "error: --variation a: no config; expected a=CONFIG, or --config\n"
    assert capsys.readouterr().err == message
