"""The metric replaces LVISMetric, in one process and in several."""

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmdet.registry import METRICS
from mmengine.evaluator import Evaluator
from pycocotools import mask as mask_utils

from apa_mmdet.evaluation.core.evaluate import evaluate
from apa_mmdet.evaluation.files.annotations import load_ground_truth
from apa_mmdet.evaluation.files.results import read_results
from apa_mmdet.evaluation.metric import LVISFastMetric
from apa_mmdet.evaluation.store import disk

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]


def predictions(truth_path, seed=0, per_image=40, with_masks=True):
    """Data samples as a model gives them: near misses, duplicates, random boxes."""
    data = json.loads(Path(truth_path).read_text())
    rng = np.random.default_rng(seed)
    label = {category["id"]: i for i, category in enumerate(data["categories"])}
    samples = []
    for image in data["images"]:
        height, width = image["height"], image["width"]
        boxes, labels = [], []
        for annotation in data["annotations"]:
            if annotation["image_id"] == image["id"]:
                for _ in range(rng.integers(1, 4)):
                    jitter = rng.normal(0, 0.07, 4) * np.tile(annotation["bbox"][2:], 2)
                    boxes.append(np.array(annotation["bbox"]) + jitter)
                    labels.append(label[annotation["category_id"]])
        while len(boxes) < per_image:
            boxes.append([*rng.uniform(0, 60, 2), *rng.uniform(5, 60, 2)])
            labels.append(int(rng.integers(0, len(label))))
        boxes = np.array(boxes)
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        corners = corners.clip(0, np.tile([width, height], 2))
        preds = dict(
            bboxes=torch.tensor(corners, dtype=torch.float32),
            scores=torch.tensor(rng.random(len(boxes)), dtype=torch.float32),
            labels=torch.tensor(labels),
        )
        if with_masks:
            masks = np.zeros((len(boxes), height, width), bool)
            for mask, (x0, y0, x1, y1) in zip(masks, np.rint(corners).astype(int)):
                mask[y0:y1, x0:x1] = True
            preds["masks"] = torch.from_numpy(masks)
        samples.append(
            dict(img_id=image["id"], ori_shape=(height, width), pred_instances=preds)
        )
    return samples


def run(metric, samples, size=None, batch=7):
    for start in range(0, len(samples), batch):
        metric.process(None, samples[start : start + batch])
    return metric.evaluate(len(samples) if size is None else size)


@pytest.fixture(scope="module")
def truth_path(mini_lvis):
    return str(mini_lvis / "annotations/lvis_v1_val.json")


@pytest.fixture(scope="module")
def samples(truth_path):
    return predictions(truth_path)


@pytest.fixture(scope="module")
def default_results(truth_path, samples):
    """The results with default options."""
    return run(LVISFastMetric(truth_path, metric=["bbox", "segm"]), samples)


def test_results_equal_lvis_metric(truth_path, samples, default_results, tmp_path):
    theirs = METRICS.build(
        dict(
            type="LVISMetric",
            ann_file=truth_path,
            metric=["bbox", "segm"],
            outfile_prefix=str(tmp_path / "theirs"),
        )
    )
    expected = run(theirs, samples)
    assert list(default_results) == list(expected)
    for name, value in expected.items():  # rounded to three decimals
        assert default_results[name] == pytest.approx(value, abs=5.1e-4), name
    assert 0.05 < default_results["lvis/bbox_AP"] < 0.95
    assert any(round(value, 3) != value for value in default_results.values())

    ours = LVISFastMetric(
        truth_path, metric=["bbox", "segm"], outfile_prefix=str(tmp_path / "ours")
    )
    assert run(ours, samples) == default_results
    for kind in ("bbox", "segm"):
        paths = [(tmp_path / f"{who}.{kind}.json") for who in ("ours", "theirs")]
        written, expected = (json.loads(path.read_text()) for path in paths)
        assert written == expected


def test_results_equal_lvis_api(
    truth_path, samples, default_results, tmp_path, lvis_api
):
    metric = METRICS.build(
        dict(
            type="LVISFastMetric",
            ann_file=truth_path,
            metric=["bbox", "segm"],
            format_only=True,
            outfile_prefix=str(tmp_path / "out"),
        )
    )
    assert run(metric, samples) == {}
    for kind in ("bbox", "segm"):
        path = tmp_path / f"out.{kind}.json"
        results = json.loads(path.read_text())
        expected = lvis_api(truth_path, results, kind)
        for name in NAMES:
            figure = default_results[f"lvis/{kind}_{name}"]
            assert figure == pytest.approx(expected.figures[name], abs=1e-9)
        truth = load_ground_truth(truth_path, with_masks=True)
        result = evaluate(truth, read_results(path, truth, kind == "segm"), kind)
        np.testing.assert_allclose(result.precision, expected.precision, atol=1e-9)


def test_only_judged_detections_are_kept(truth_path, samples, monkeypatch):
    kept = []
    add = disk.ShardWriter.add

    def watched(self, shard):
        kept.append(shard)
        add(self, shard)

    monkeypatch.setattr(disk.ShardWriter, "add", watched)
    run(LVISFastMetric(truth_path, metric=["bbox", "segm"], max_dets=20), samples)
    truth = load_ground_truth(truth_path)
    total = sum(len(sample["pred_instances"]["scores"]) for sample in samples)
    assert 0 < sum(len(shard.scores) for shard in kept) < total / 3
    for shard in kept:
        assert shard.num_dets[0] <= 20
        image_index = np.repeat(shard.image_index, shard.num_dets)
        assert truth.is_judged(truth.pairs(image_index, shard.class_index)).all()
        assert (shard.mask_lengths > 0).all()


def test_many_small_shards_give_the_same_result(
    truth_path, samples, default_results, monkeypatch
):
    monkeypatch.setattr(disk, "_MAX_BYTES_HELD", 5000)
    written = []
    flush = disk.ShardWriter.flush
    monkeypatch.setattr(
        disk.ShardWriter, "flush", lambda self: (written.append(1), flush(self))
    )
    metric = LVISFastMetric(truth_path, metric=["bbox", "segm"])
    assert run(metric, samples) == default_results
    assert len(written) > 5
    assert run(metric, samples) == default_results  # and again, as after another epoch


def test_masks_may_be_rles(truth_path, samples, default_results):
    encoded = []
    for sample in samples:
        preds = dict(sample["pred_instances"])
        preds["masks"] = [
            mask_utils.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
            for mask in preds["masks"]
        ]
        encoded.append({**sample, "pred_instances": preds})
    metric = LVISFastMetric(truth_path, metric=["bbox", "segm"])
    assert run(metric, encoded) == default_results


def test_mask_scores(truth_path, samples):
    """Boxes are ranked and limited by one score, masks by the other."""
    with_mask_scores, only_mask_scores = [], []
    for sample in samples:
        preds = dict(sample["pred_instances"])
        preds["mask_scores"] = preds["scores"].flip(0)
        with_mask_scores.append({**sample, "pred_instances": preds})
        preds = {**preds, "scores": preds["mask_scores"]}
        del preds["mask_scores"]
        only_mask_scores.append({**sample, "pred_instances": preds})
    options = dict(metric=["bbox", "segm"], max_dets=15)
    both = run(LVISFastMetric(truth_path, **options), with_mask_scores)
    boxes = run(LVISFastMetric(truth_path, **options), samples)
    masks = run(LVISFastMetric(truth_path, **options), only_mask_scores)
    for name in NAMES:
        assert both[f"lvis/bbox_{name}"] == boxes[f"lvis/bbox_{name}"]
        assert both[f"lvis/segm_{name}"] == masks[f"lvis/segm_{name}"]
    assert both["lvis/segm_AP"] != boxes["lvis/segm_AP"]


def test_options_have_an_effect(
    truth_path, samples, default_results, lvis_api, tmp_path
):
    bbox = {k: v for k, v in default_results.items() if "bbox" in k}
    prefix = str(tmp_path / "all")
    run(LVISFastMetric(truth_path, format_only=True, outfile_prefix=prefix), samples)
    results = json.loads(Path(f"{prefix}.bbox.json").read_text())

    metric = LVISFastMetric(truth_path, iou_thrs=[0.5], prefix="x")
    at_50 = run(metric, samples)
    assert at_50["x/bbox_AP"] == at_50["x/bbox_AP50"] == bbox["lvis/bbox_AP50"]
    assert at_50["x/bbox_AP75"] == -1

    metric = LVISFastMetric(truth_path, max_dets=5, metric_items=["AP", "ARs@5"])
    few = run(metric, samples)
    assert set(few) == {"lvis/bbox_AP", "lvis/bbox_ARs@5"}
    expected = lvis_api(truth_path, results, "bbox", max_dets=5).figures
    assert few["lvis/bbox_AP"] == pytest.approx(expected["AP"], abs=1e-9)
    assert few["lvis/bbox_ARs@5"] == pytest.approx(expected["ARs@5"], abs=1e-9)
    assert few["lvis/bbox_AP"] != bbox["lvis/bbox_AP"]

    ids = [sample["img_id"] for sample in samples[::3]]
    part = run(LVISFastMetric(truth_path, img_ids=ids), samples)
    predicted = run(LVISFastMetric(truth_path, img_ids="predicted"), samples[::3])
    some = [result for result in results if result["image_id"] in ids]
    expected = lvis_api(truth_path, some, "bbox", img_ids=ids).figures
    for name in NAMES:
        value = pytest.approx(expected[name], abs=1e-9)
        assert part[f"lvis/bbox_{name}"] == predicted[f"lvis/bbox_{name}"] == value
    # As with LVISMetric, images that were not predicted count as missed.
    missed = run(LVISFastMetric(truth_path), samples[::3])
    assert missed["lvis/bbox_AP"] < predicted["lvis/bbox_AP"]


def test_proposals(truth_path, samples):
    metric = LVISFastMetric(
        truth_path, metric=["proposal"], proposal_nums=(3, 50), iou_thrs=[0.5]
    )
    recalls = run(metric, samples)
    assert list(recalls) == [f"lvis/AR{a}@{n}" for n in (3, 50) for a in ("", *"sml")]
    # Classes do not matter: the labels of an RPN are all 0.
    unlabelled = []
    for sample in samples:
        preds = dict(sample["pred_instances"])
        preds["labels"] = torch.zeros_like(preds["labels"])
        unlabelled.append({**sample, "pred_instances": preds})
    assert run(metric, unlabelled) == recalls
    assert recalls["lvis/AR@3"] < recalls["lvis/AR@50"]
    assert recalls["lvis/AR@50"] > 0.9  # each instance has a near miss
    metric = LVISFastMetric(
        truth_path, metric="proposal_fast", proposal_nums=(3, 50), iou_thrs=0.5
    )
    fast = run(metric, samples)
    assert list(fast) == ["lvis/AR@3", "lvis/AR@50"]
    assert fast["lvis/AR@50"] >= recalls["lvis/AR@50"]


def test_fixed_ap(
    truth_path, samples, default_results, lvis_api, tmp_path, monkeypatch
):
    prefix = str(tmp_path / "all")
    metric = LVISFastMetric(
        truth_path,
        metric=["bbox", "segm"],
        fixed_ap=True,
        max_dets=10,
        outfile_prefix=prefix,
    )
    results = run(metric, samples)
    written = json.loads(Path(f"{prefix}.segm.json").read_text())
    for kind in ("bbox", "segm"):
        expected = lvis_api(truth_path, written, kind, max_dets=-1).figures
        for name in NAMES:
            value = results[f"lvis/{kind}_Fixed{name}"]
            assert value == pytest.approx(expected[name], abs=1e-9)
    assert results["lvis/bbox_AP"] != results["lvis/bbox_FixedAP"]
    # Dropping early what cannot count does not change the result.
    limited = dict(metric="segm", fixed_ap=True, max_dets_per_class=6)
    whole = run(LVISFastMetric(truth_path, **limited), samples)
    monkeypatch.setattr(disk, "_MAX_DETS_HELD", 30)
    monkeypatch.setattr(disk, "_MAX_BYTES_HELD", 5000)
    assert run(LVISFastMetric(truth_path, **limited), samples) == whole
    assert whole["lvis/segm_FixedAP"] < results["lvis/segm_FixedAP"]


def test_classwise(truth_path, samples, tmp_path):
    prefix = str(tmp_path / "out")
    metric = LVISFastMetric(truth_path, classwise=True, outfile_prefix=prefix)
    results = run(metric, samples)
    with open(f"{prefix}.bbox.classwise.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    values = [float(row["AP"]) for row in rows]
    assert np.mean(values) == pytest.approx(results["lvis/bbox_AP"], abs=1e-12)
    for row, value in zip(rows, values):
        assert results[f"lvis/{row['name']}_precision"] == value
    rare = [v for row, v in zip(rows, values) if row["frequency"] == "r"]
    assert np.mean(rare) == pytest.approx(results["lvis/bbox_APr"], abs=1e-12)
    both = LVISFastMetric(truth_path, ["bbox", "segm"], classwise=True)
    results = run(both, samples)
    name = rows[0]["name"]
    assert results[f"lvis/bbox_{name}_precision"] == values[0]
    assert f"lvis/segm_{name}_precision" in results


def test_mmengines_evaluator_without_detections(truth_path, samples):
    empty = []
    for sample in samples:
        preds = {name: value[:0] for name, value in sample["pred_instances"].items()}
        empty.append({**sample, "pred_instances": preds})
    config = dict(type="mmdet.LVISFastMetric", ann_file=truth_path, metric="segm")
    evaluator = Evaluator(config)
    results = evaluator.offline_evaluate(empty, chunk_size=4)
    assert results["lvis/segm_AP"] == 0
    assert run(LVISFastMetric(truth_path), [])["lvis/bbox_AP"] == 0


# ------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(metric="boxes"), KeyError, "metric='boxes': expected bbox, segm"),
        (dict(format_only=True), ValueError, "needs outfile_prefix"),
        (dict(max_dets=0), ValueError, "max_dets=0: expected at least 1"),
        (dict(proposal_nums=()), ValueError, r"proposal_nums=\[\]"),
        (dict(iou_thrs=[50]), ValueError, r"iou_thrs=\[50\]"),
        (dict(img_ids="all"), ValueError, "img_ids='all': expected a list"),
        (dict(img_ids=[-1]), ValueError, "1 of 1 ids are not in the annotation file"),
        (dict(metric_items=["mAP"]), ValueError, r"metric_items has \['mAP'\]"),
        (dict(timeout=0), ValueError, "timeout=0"),
        (dict(file_client_args={}), RuntimeError, "use backend_args"),
    ],
)
def test_bad_arguments_are_refused_at_once(truth_path, options, error, message):
    with pytest.raises(error, match=message):
        LVISFastMetric(truth_path, **options)


def test_the_annotation_file_is_required(tmp_path):
    with pytest.raises(ValueError, match="set val_evaluator.ann_file to"):
        LVISFastMetric()
    with pytest.raises(FileNotFoundError):
        LVISFastMetric(str(tmp_path / "nowhere.json"))


def test_bad_predictions_are_refused_by_process(truth_path, samples):
    metric = LVISFastMetric(truth_path, metric=["bbox", "segm"])

    def assert_refused(message, img_id=None, **changes):
        preds = {**samples[0]["pred_instances"]}
        for name, change in changes.items():
            preds[name] = change(preds[name].clone())
        sample = {**samples[0], "pred_instances": preds}
        sample["img_id"] = sample["img_id"] if img_id is None else img_id
        with pytest.raises(ValueError, match=message):
            metric.process(None, [sample])

    def put(value, *index):
        def change(tensor):
            for i in index:
                tensor[i] = value
            return tensor

        return change

    here = samples[0]["img_id"]
    assert_refused("img_id 999 is not in the annotation file", img_id=999)
    assert_refused(
        rf"of image {here}.*: score is not finite: 4, the first: detection 2 nan, "
        "detection 6 nan, detection 7 nan$",
        scores=put(float("nan"), 1, 5, 6, 9),
    )
    assert_refused("box of negative size.*detection 3 ", bboxes=put(-5, (2, 2)))
    assert_refused("box is not finite: 1", bboxes=put(float("inf"), (0, 3)))
    assert_refused(
        r"label outside the 40 classes that are evaluated .*: 2, the first: "
        r"detection 1 \(40\), detection 4 ",
        labels=put(40, 0, 3),
    )
    assert_refused(
        "mask of another size than its image, 96 x 96", masks=lambda m: m[:, :-1]
    )
    rles = [dict(size=[96, 96], counts=b"123")] * len(
        samples[0]["pred_instances"]["masks"]
    )
    assert_refused("damaged mask, .*first: detection", masks=lambda _: rles)
    without = {**samples[0]["pred_instances"]}
    del without["masks"]
    with pytest.raises(
        ValueError, match="no masks, but metric has 'segm'.*metric=bbox"
    ):
        metric.process(None, [{**samples[0], "pred_instances": without}])


def test_images_predicted_twice(truth_path, samples, default_results):
    options = dict(ann_file=truth_path, metric=["bbox", "segm"])
    again = samples + samples[:3]
    # A sampler that fills up the last batch is accepted,
    assert run(LVISFastMetric(**options), again, size=len(samples)) == default_results
    # a data set that contains images twice is not.
    with pytest.raises(ValueError, match="3 images were predicted more than once"):
        run(LVISFastMetric(**options), again)


# ------------------------------------------------------------------ many processes


@pytest.fixture(scope="module")
def three_processes(truth_path, tmp_path_factory):
    """What three processes report; what they do is in _worker, below.

    A process that waits for a dead one until the metric's timeout exceeds this one's.
    """
    folder = tmp_path_factory.mktemp("three")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, truth_path, str(folder)],
        env=dict(
            os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(Path(__file__).parents[2])
        ),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [
        json.loads(path.read_text()) if path.exists() else None
        for path in (folder / f"{rank}.json" for rank in range(3))
    ], folder


def test_three_processes_equal_one(three_processes, default_results):
    seen, _ = three_processes
    for each in seen[:2]:
        assert each["results"] == default_results


def test_a_failure_in_the_first_process_reaches_the_others(three_processes):
    seen, _ = three_processes
    assert seen[0]["failure"].startswith(
        "ValueError: 1 images were predicted more than"
    )
    expected = "RuntimeError: the evaluation failed in process 0: ValueError: 1 images"
    assert seen[1]["failure"].startswith(expected)


def test_a_killed_process_raises_in_the_others(three_processes):
    seen, folder = three_processes
    assert seen[2] is None  # killed, it could not write
    text = seen[0]["killed"]
    assert text.startswith("RuntimeError: LVIS evaluation: process 2 died, or did not")
    expected = "RuntimeError: the evaluation failed in process 0: " + text
    assert seen[1]["killed"] == expected
    assert "did not answer within 3 s" in seen[0]["never came"]
    assert seen[0]["left behind"] == 1  # the killed one's


def _worker(rank, truth_path, folder):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3
    )
    samples = predictions(truth_path)
    size = len(samples)
    seen = {}

    def build(timeout):
        return LVISFastMetric(
            truth_path,
            metric=["bbox", "segm"],
            collect_dir=f"{folder}/shards",
            timeout=timeout,
        )

    metric = build(3600)
    # As the sampler distributes them, with the first image again to fill the batch.
    mine = (samples + samples[:1] * (-size % 3))[rank::3]
    seen["results"] = run(metric, mine, size)

    def error_of(function):
        try:
            function()
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    twice = mine + (samples[:1] if rank == 1 else [])
    seen["failure"] = error_of(lambda: run(metric, twice, size + 1))
    for sample in mine:
        metric.process(None, [sample])
        if rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    seen["killed"] = error_of(lambda: metric.evaluate(size))
    seen["never came"] = error_of(lambda: run(build(3), mine, size))
    seen["left behind"] = len(os.listdir(f"{folder}/shards"))
    Path(folder, f"{rank}.json").write_text(json.dumps(seen))
    os._exit(0)  # gloo would wait for the dead process


if __name__ == "__main__":
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_worker, args=(rank, *sys.argv[1:])) for rank in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, -signal.SIGKILL]
