"""Models, data sets and processes of an analysis."""

import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config

from apa_mmdet.analysis.collect import Statistics
from apa_mmdet.analysis.run import (
    build_dataset,
    build_model,
    class_groups,
    class_images,
    collect,
    prepare,
)
from apa_mmdet.analysis.sampling import ImageSampler
from apa_mmdet.datasets import set_data_root
from apa_mmdet.models.losses import APALoss
from apa_mmdet.testing.small_detectors import FASTER_RCNN, small_config

CONFIG = "configs/mini_lvis/mask_rcnn_r18_apa.py"


def test_groups_are_those_of_lvis():
    counts = np.array([0, 1, 10, 11, 100, 101, 5_000])
    assert "".join(class_groups(counts)) == "rrrccff"


@pytest.fixture(scope="module")
def cfg(repo, mini_lvis):
    cfg = Config.fromfile(repo / CONFIG)
    set_data_root(cfg, str(mini_lvis))
    return cfg


def test_validation_annotations_are_resized_with_the_image(cfg):
    dataset = build_dataset(cfg, "val")
    raw = dataset.get_data_info(3)
    sample = dataset[3]["data_samples"]
    scale = 160 / raw["width"]
    assert sample.img_shape == (160, 160) and scale != 1
    expected = np.array([each["bbox"] for each in raw["instances"]]) * scale
    boxes = sample.gt_instances.bboxes
    np.testing.assert_allclose(boxes.tensor, expected, rtol=1e-5)
    assert len(sample.gt_instances.masks) == len(expected)
    # The config itself stays as it was.
    types = [step["type"] for step in cfg.val_dataloader.dataset.pipeline]
    assert types.index("LoadAnnotations") > types.index("Resize")


def test_class_images_counts_images_not_repetitions(cfg):
    dataset = build_dataset(cfg, "train")
    names, counts = class_images(dataset)
    inner = dataset.dataset
    assert names == tuple(inner.metainfo["classes"])
    shown = [set(inner.get_cat_ids(index)) for index in range(len(inner))]
    assert counts.tolist() == [sum(c in each for each in shown) for c in range(40)]
    assert len(dataset) > len(inner)  # some are repeated


def test_untrained_weights_depend_on_the_seed_only():
    cfg = small_config(FASTER_RCNN)
    models = []
    for seed in (1, 1, 2):
        model, _ = build_model(cfg, seed=seed)
        prepare(model, torch.ones(3), is_trained=False, seed=seed)
        assert model.training
        models.append(model)
    one, same, other = (model.state_dict() for model in models)
    for key, weight in one.items():
        torch.testing.assert_close(same[key], weight)
    assert not torch.equal(other["backbone.conv1.weight"], one["backbone.conv1.weight"])


def test_a_checkpoint_gives_start_and_current_values(tmp_path):
    cfg = small_config(FASTER_RCNN)
    path = str(tmp_path / "weights.pth")
    model, start = build_model(cfg)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lambda_param"):
                parameter.fill_(0.25)
    torch.save(dict(state_dict=model.state_dict()), path)
    loaded, before = build_model(cfg, path)
    prepare(loaded, torch.ones(3), is_trained=True)
    assert not loaded.training
    for key, weight in loaded.state_dict().items():
        torch.testing.assert_close(weight, model.state_dict()[key])
    assert before.keys() == start.keys()
    assert before["backbone.relu"][0] == 1 and start["backbone.relu"][0] == 1
    # The weights of the unconverted detector fit as well.
    plain = small_config(FASTER_RCNN, converted=False)
    torch.save(build_model(plain)[0].state_dict(), path)
    build_model(cfg, path)


def test_frequencies_of_a_checkpoint_stay():
    model = torch.nn.Module()
    model.loss = APALoss(num_classes=3)
    prepare(model, torch.full((3,), 0.5), is_trained=True)
    prepare(model, torch.full((3,), 0.25), is_trained=True)
    assert model.loss.class_frequency.tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "content, message",
    [
        ("wider", r"has roi_head.bbox_head.fc_cls.weight of shape \(\d, 48\), "),
        ("part", r"lacks backbone\.conv1\.weight \(and \d+ more\), so the model"),
        ("junk", "cannot be read as a checkpoint"),
        ("empty", "contains no weights|expected"),
    ],
)
def test_unfit_checkpoints_are_refused(tmp_path, content, message):
    cfg = small_config(FASTER_RCNN)
    path = tmp_path / "weights.pth"
    if content == "junk":
        path.write_bytes(b"junk")
    elif content == "empty":
        torch.save(dict(meta={}), path)
    else:
        options = {"roi_head.bbox_head.fc_out_channels": 48}
        other = small_config(FASTER_RCNN, **options if content == "wider" else {})
        weights = build_model(other)[0].state_dict()
        if content == "part":
            weights = {k: v for k, v in weights.items() if "backbone" not in k}
        torch.save(weights, path)
    with pytest.raises(ValueError, match=message) as raised:
        build_model(cfg, str(path))
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def analysed(detector, images):
    sampler = ImageSampler(100, 20, num_replicates=4)
    statistics = Statistics(sampler, np.array(["r", "c", "f", "f"]))
    return collect(detector(), images(9), statistics, 7)


def test_two_processes_give_what_one_gives(detector, images, tmp_path):
    command = [sys.executable, "-W", "ignore", __file__, str(tmp_path)]
    subprocess.run(command, check=True, timeout=120)
    together = pickle.loads((tmp_path / "statistics").read_bytes())
    alone = analysed(detector, images)
    assert together.num_images == alone.num_images == 7
    assert list(together.sites) == list(alone.sites)
    for name, site in alone.sites.items():
        theirs = together.sites[name].histogram
        np.testing.assert_array_equal(theirs.counts, site.histogram.counts)
        np.testing.assert_array_equal(theirs.edges, site.histogram.edges)
    one, two = alone.classifiers["head"], together.classifiers["head"]
    assert one.histograms.keys() == two.histograms.keys()
    for key, histogram in one.histograms.items():
        np.testing.assert_array_equal(two.histograms[key].counts, histogram.counts)
    for series in range(12):
        values = one.by_class.values_of(series)
        np.testing.assert_array_equal(two.by_class.values_of(series), values)


def _worker(rank, folder):
    from conftest import Detector, Images

    def detector():
        torch.manual_seed(0)
        return Detector()

    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    statistics = analysed(detector, Images)
    if rank == 0:
        Path(folder, "statistics").write_bytes(pickle.dumps(statistics))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_worker, args=(r, sys.argv[1])) for r in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(any(worker.exitcode for worker in workers))
