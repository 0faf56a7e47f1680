"""CalibrationEvaluator: each calibration's predictions reach its own metrics."""

import pytest
from mmdet.structures import DetDataSample
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmengine.registry import METRICS
from mmengine.structures import InstanceData

from apa_mmdet.evaluation.calibration_evaluator import CalibrationEvaluator
from apa_mmdet.models.calibration.roi_head import FIELD

NAMES = ["none", "NORCAL:gamma=0.5"]


@METRICS.register_module(force=True)
class Total(BaseMetric):
    """The sum of all scores, under two names."""

    default_prefix = "lvis"

    def __init__(self, outfile_prefix=None, classwise=False, factor=1, **kwargs):
        super().__init__(**kwargs)
        self.outfile_prefix, self.factor = outfile_prefix, factor

    def process(self, data_batch, data_samples):
        self.results += [
            dict(total=float(sample["pred_instances"]["scores"].sum()), id=sample["id"])
            for sample in data_samples
        ]

    def compute_metrics(self, results):
        total = self.factor * sum(result["total"] for result in results) / 100
        return {"bbox_AP": total, "bbox_FixedAP": 2 * total, "cat_precision": 0.0}


def sample(identity, *scores, names=NAMES):
    import torch

    instances = [InstanceData(scores=torch.tensor(each)) for each in scores]
    made = DetDataSample(metainfo=dict(id=identity))
    made.pred_instances = instances[0]
    setattr(made, FIELD, dict(zip(names, instances)))
    return made


def test_each_calibration_has_its_own_figures(monkeypatch):
    evaluator = CalibrationEvaluator(
        [dict(type="Total"), dict(type="Total", factor=3, prefix="three")], NAMES
    )
    evaluator.process([sample(0, [1.0, 2.0], [4.0]), sample(1, [5.0], [6.0, 1.0])])
    lines = []
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(logger, "info", lines.append)
    results = evaluator.evaluate(2)
    expected = {}
    for name, total in zip(NAMES, (0.08, 0.11)):
        for start, factor in (("lvis", 1), ("three", 3)):
            expected[f"{name}/{start}/bbox_AP"] = factor * total
            expected[f"{name}/{start}/bbox_FixedAP"] = 2 * factor * total
            expected[f"{name}/{start}/cat_precision"] = 0.0
    assert results == pytest.approx(expected)
    assert list(results) == list(expected)
    assert lines[:2] == [f"calibration: {name}" for name in NAMES]
    del lines[:2]
    titles = [line.splitlines()[0] for line in lines]
    kinds = ("lvis/bbox", "lvis/bbox Fixed AP", "three/bbox", "three/bbox Fixed AP")
    assert titles == [f"{kind}, in per cent" for kind in kinds]
    _, header, *rows = lines[1].splitlines()
    assert header.split() == ["FixedAP"]
    assert [row.split() for row in rows] == [[NAMES[0], "16.00"], [NAMES[1], "22.00"]]


def test_files_have_the_calibrations_name():
    metric = dict(type="Total", outfile_prefix="work/a", classwise=True)
    evaluator = CalibrationEvaluator(metric, NAMES)
    prefixes = [metric.outfile_prefix for metric in evaluator.metrics]
    assert prefixes == ["work/a.none", "work/a.NORCAL-gamma=0.5"]
    with pytest.raises(ValueError, match="classwise=True needs outfile_prefix"):
        CalibrationEvaluator(dict(type="Total", classwise=True), NAMES)


def test_predictions_by_other_calibrations():
    with pytest.raises(ValueError, match="expected two or more"):
        CalibrationEvaluator(dict(type="Total"), ["FRACAL"])
    evaluator = CalibrationEvaluator(dict(type="Total"), NAMES)
    with pytest.raises(ValueError, match="the model made some by none, FRACAL; give"):
        evaluator.process([sample(0, [1.0], [2.0], names=["none", "FRACAL"])])
    plain = DetDataSample(metainfo=dict(id=0), pred_instances=InstanceData())
    with pytest.raises(ValueError, match="made some by one at most"):
        evaluator.process([plain])
