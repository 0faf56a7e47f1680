"""ClassFrequencyHook in a Runner: training, and loading a checkpoint."""

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS
from mmengine.runner import Runner

from apa_mmdet.models import APALoss


@DATASETS.register_module(force=True)
class FrequencyToy(BaseDataset):
    """Images, each given by the labels it shows."""

    METAINFO = dict(classes=("a", "b", "c"))

    def __init__(self, shown, **kwargs):
        self.shown = shown
        super().__init__(pipeline=[], **kwargs)

    def load_data_list(self):
        return [dict(labels=labels) for labels in self.shown]

    def get_cat_ids(self, idx):
        return self.shown[idx]

    def prepare_data(self, idx):
        return dict(inputs=torch.ones(2), labels=self.shown[idx][0])


class Model(BaseModel):
    """A linear classifier with APALoss."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.fc = torch.nn.Linear(2, num_classes)
        self.loss_cls = APALoss(num_classes, rare_threshold=0.3, learnable="shared")

    def forward(self, inputs, labels, mode):
        labels = torch.as_tensor(labels)
        return dict(loss=self.loss_cls(self.fc(torch.stack(inputs)), labels))


SHOWN = [[0], [0, 1], [0], [0, 2], [0]]
EXPECTED = torch.tensor([1.0, 0.2, 0.2])


def runner(tmp_path, shown=SHOWN, model=None, hooks=True, **kwargs):
    return Runner(
        model=model or Model(),
        work_dir=str(tmp_path),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type="DefaultSampler", shuffle=True),
            dataset=dict(type="FrequencyToy", shown=shown),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        custom_hooks=[dict(type="mmdet.ClassFrequencyHook")] if hooks else None,
        experiment_name=f"{tmp_path.name}_{torch.randint(10**9, ()).item()}",
        **kwargs,
    )


def test_fills_the_buffer_and_the_checkpoint(tmp_path):
    run = runner(tmp_path)
    run.train()
    torch.testing.assert_close(run.model.loss_cls.class_frequency, EXPECTED)
    saved = torch.load(tmp_path / "epoch_1.pth")["state_dict"]
    torch.testing.assert_close(saved["loss_cls.class_frequency"], EXPECTED)


def test_training_data_wins_over_a_checkpoint(tmp_path):
    runner(tmp_path / "first").train()
    run = runner(
        tmp_path / "second",
        shown=[[1], [0]],
        load_from=str(tmp_path / "first" / "epoch_1.pth"),
    )
    run.train()
    expected = torch.tensor([0.5, 0.5, 0.0])
    torch.testing.assert_close(run.model.loss_cls.class_frequency, expected)
    log = "".join(path.read_text() for path in (tmp_path / "second").rglob("*.log"))
    assert "class frequencies differ" in log


def test_wrong_number_of_classes_stops_before_training(tmp_path):
    run = runner(tmp_path, model=Model(num_classes=5))
    with pytest.raises(ValueError, match="num_classes=5.*data set's 3 classes"):
        run.train()
    assert run.iter == 0


def test_a_missing_hook_stops_before_training(tmp_path):
    run = runner(tmp_path, hooks=False)
    with pytest.raises(RuntimeError, match="ClassFrequencyHook"):
        run.train()
    assert run.iter == 0


class CountingHead(torch.nn.Module):
    """What a classification head keeps."""

    def __init__(self):
        super().__init__()
        self.register_buffer("class_counts", torch.zeros(3, dtype=torch.int64))

    def set_class_counts(self, counts):
        self.class_counts.copy_(counts)

    def check_class_counts(self):
        pass


class CountingMetric(BaseMetric):
    """What a metric by groups of classes needs."""

    counts = None

    def set_class_counts(self, counts):
        self.counts = counts.tolist()

    def require_class_counts(self):
        if self.counts is None:
            raise RuntimeError("no counts")

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(first=self.counts[0])


class CountingModel(Model):
    def __init__(self, with_head=True):
        super().__init__()
        self.loss_cls = torch.nn.Identity()
        if with_head:
            self.head = CountingHead()

    def forward(self, inputs, labels, mode):
        if mode == "predict":
            return [dict()] * len(inputs)
        return dict(loss=self.fc(torch.stack(inputs)).sum())


def counting_runner(tmp_path, shown=SHOWN, with_head=True, **kwargs):
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type="DefaultSampler", shuffle=False),
        dataset=dict(type="FrequencyToy", shown=[[0], [1]]),
    )
    val = dict(val_dataloader=loader, val_cfg=dict(), val_evaluator=[CountingMetric()])
    test = dict(
        test_dataloader=loader, test_cfg=dict(), test_evaluator=[CountingMetric()]
    )
    model = CountingModel(with_head)
    return runner(tmp_path, shown=shown, model=model, **val, **test, **kwargs)


def test_counts_reach_head_and_metric_and_stay_in_the_checkpoint(tmp_path):
    run = counting_runner(tmp_path / "first")
    run.train()
    assert run.val_evaluator.metrics[0].counts == [5, 1, 1]
    path = tmp_path / "first/epoch_1.pth"
    saved = torch.load(path)["state_dict"]["head.class_counts"]
    assert saved.tolist() == [5, 1, 1]
    run = counting_runner(tmp_path / "test", load_from=str(path))
    assert run.test() == dict(first=5)
    run = counting_runner(tmp_path / "second", [[1], [0]], load_from=str(path))
    run.train()
    assert run.model.head.class_counts.tolist() == [1, 1, 0]
    log = "".join(path.read_text() for path in (tmp_path / "second").rglob("*.log"))
    assert "class counts, 7 images, differ from those of the training data" in log


def test_counts_of_a_metric_can_be_read_to_test(tmp_path):
    run = counting_runner(tmp_path, with_head=False)
    with pytest.raises(RuntimeError, match="no counts"):
        run.test()
    assert run.test_evaluator.metrics[0].results == []
    (hook,) = (h for h in run.hooks if type(h).__name__ == "ClassFrequencyHook")
    hook.read_in_test = True
    dataset = dict(type="FrequencyToy", shown=SHOWN)
    run.cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
    assert run.test() == dict(first=5)
