"""What the collector sees is what goes into activations and classifiers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import nn

from apa_mmdet.analysis.classifier import ClassifierStatistics
from apa_mmdet.analysis.collect import Collector, Statistics
from apa_mmdet.analysis.compare import moments
from apa_mmdet.analysis.run import collect
from apa_mmdet.analysis.sampling import ImageSampler
from apa_mmdet.analysis.sites import parameters_of, planned_names
from apa_mmdet.conversion import convert_activations
from apa_mmdet.layers import AGLU, APA
from apa_mmdet.testing.small_detectors import FASTER_RCNN, small_config

GROUPS = np.array(["r", "c", "f", "f"])


def empty(**options):
    return Statistics(ImageSampler(num_replicates=5, **options), GROUPS)


def collected(model, dataset, patterns=("*",), num_images=99, **options):
    return collect(model, dataset, empty(**options), num_images, patterns)


def inputs_of_block(block, x):
    """What goes into each site, computed step by step."""
    inputs = {"relu.0": block.conv(x)}
    inputs["relu.1"] = inputs["relu.0"].relu() - 1
    inputs["leakyrelu"] = inputs["relu.1"].relu() + 0.5
    first = F.leaky_relu(inputs["leakyrelu"])
    inputs["gate"] = -block.aglu(first)
    inputs["aglu"] = torch.stack([first, -inputs["gate"]])
    return inputs


@torch.no_grad()
def test_sites_and_their_inputs(detector, images):
    model, dataset = detector(), images(4)
    statistics = collected(model, dataset)
    expected = inputs_of_block(
        model.block, torch.stack([dataset[i]["inputs"] for i in range(4)])
    )
    found = {name.removeprefix("block."): s for name, s in statistics.sites.items()}
    assert list(found) == ["relu.0", "relu.1", "leakyrelu", "aglu", "gate"]
    for name, values in expected.items():
        histogram = found[name].histogram
        assert histogram.total == values.numel()
        counts, _ = np.histogram(values.numpy().ravel(), histogram.edges)
        assert np.abs(counts - histogram.counts[0]).sum() <= 4, name
    assert found["leakyrelu"].type == "LeakyReLU, inline"
    assert found["aglu"].type == "AGLU"
    assert statistics.num_images == 4


def test_a_converted_model_has_the_same_sites(detector, images):
    model = detector()
    names = list(collected(model, images(2)).sites)
    convert_activations(model, gates=True)
    assert list(collected(model, images(2)).sites) == names


def test_names_of_residual_blocks_are_those_of_the_conversion():
    cfg = small_config(FASTER_RCNN, converted=False)
    names = planned_names(MODELS.build(cfg.model))
    block = "backbone.layer1.0"
    assert names[f"{block}.relu"] == [f"{block}.act1", f"{block}.act2"]
    assert names["rpn_head.relu"] == ["rpn_head.relu"]


def test_nothing_stays_behind(detector, images):
    model = detector()
    collected(model, images(1))
    for module in model.modules():
        assert not module._forward_pre_hooks and not module._forward_hooks
    assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.parametrize(
    "patterns, expected",
    [
        (["block"], ["relu.0", "relu.1", "leakyrelu", "aglu", "gate"]),
        (["*.relu"], ["relu.0", "relu.1"]),
        (["block.relu.1", "*gate"], ["relu.1", "gate"]),
        (["head"], []),
    ],
)
def test_patterns_choose_sites(detector, images, patterns, expected):
    statistics = collected(detector(), images(1), patterns)
    assert list(statistics.sites) == [f"block.{name}" for name in expected]
    assert list(statistics.classifiers) == ["head"] * ("head" in patterns)


def test_a_pattern_without_a_match_is_refused_after_one_image(detector, images):
    class Counted(type(images())):
        read = 0

        def __getitem__(self, index):
            self.read += 1
            return super().__getitem__(index)

    dataset = Counted()
    with pytest.raises(ValueError, match=r"'neck' matches none of .* 6 .*block\.aglu"):
        collected(detector(), dataset, ["block", "neck"])
    assert dataset.read == 1


@torch.no_grad()
@pytest.mark.parametrize("with_background", [False, True])
def test_logits_by_role_and_group(detector, images, with_background):
    model, dataset = detector(4 + with_background), images(6)
    statistics = collected(model, dataset).classifiers["head"]
    logits, labels = [], []

    def keep(_, args):
        logits.append(args[0].numpy())
        labels.append(args[1].numpy())

    model.head.loss_cls.register_forward_pre_hook(keep)
    for index in range(6):
        data = dataset[index]
        model(data["inputs"][None], [data["data_samples"]], "loss")
    logits, labels = np.concatenate(logits), np.concatenate(labels)
    target = np.eye(5, dtype=bool)[labels]
    if not with_background:
        target, groups = target[:, :4], GROUPS
    else:
        groups = np.append(GROUPS, "b")
    on_background = np.broadcast_to((labels == 4)[:, None], target.shape)
    masks = dict(
        target=target,
        other=~target & ~on_background,
        background=~target & on_background,
    )
    keys = set()
    for role, mask in masks.items():
        for group in np.unique(groups):
            values = logits[mask & (groups == group)]
            if not len(values):
                continue
            keys.add((role, group))
            histogram = statistics.histograms[role, group]
            counts, _ = np.histogram(values, histogram.edges)
            np.testing.assert_array_equal(histogram.counts[0], counts)
        for label in range(4):
            np.testing.assert_array_equal(
                np.sort(statistics.class_values(role, label)),
                np.sort(logits[mask[:, label], label]),
            )
    assert set(statistics.histograms) == keys
    assert (("target", "b") in keys) == with_background


def test_ignored_proposals_do_not_count(detector):
    model, statistics = detector(), empty()
    logits = torch.randn(6, 4)
    labels = torch.tensor([0, 1, -1, 2, 4, 4])
    weight = torch.tensor([1.0, 1, 1, 0, 1, 0])
    with Collector(model, statistics) as collector:
        collector.start_image(0, 0)
        model.head.loss_cls(logits, labels, weight)
    seen = statistics.classifiers["head"].by_class.seen.reshape(3, 4)
    np.testing.assert_array_equal(seen, [[1, 1, 0, 0], [1, 1, 2, 2], [1, 1, 1, 1]])


@pytest.mark.parametrize(
    "labels, reason",
    [
        (torch.zeros(6, 4), r"labels of shape \(6, 4\), expected \(N, C\) and \(N,\)"),
        (torch.zeros(6), "its labels are not integers"),
        (None, "not called with logits and labels"),
    ],
)
def test_other_losses_are_left_out_with_the_reason(detector, labels, reason):
    model, statistics = detector(), empty()
    with Collector(model, statistics) as collector:
        collector.start_image(0, 0)
        model.head.loss_cls(torch.randn(6, 4), labels)
    assert not statistics.classifiers
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(statistics.skipped["head"])


def describe(histogram):
    return moments(histogram.centers, histogram.counts[0])


def test_large_maps_are_sampled_evenly(detector, images):
    dataset = images(3, size=100)
    full = collected(detector(), dataset, values_per_call=10**6)
    part = collected(detector(), dataset, values_per_call=1_000)
    for name, site in full.sites.items():
        sampled = part.sites[name].histogram
        n = site.histogram.total
        assert 0.9 * n < sampled.total <= n
        one, other = describe(site.histogram), describe(sampled)
        # From 3,000 values: a standard error of 0.02 standard deviations.
        assert other["mean"] == pytest.approx(one["mean"], abs=0.07 * one["std"])
        assert other["std"] == pytest.approx(one["std"], rel=0.2)
    logits = part.classifiers["head"].histograms
    for key, histogram in full.classifiers["head"].histograms.items():
        assert logits[key].total == pytest.approx(histogram.total, rel=0.1)


def assert_same(one, other):
    assert list(one.sites) == list(other.sites)
    for name, site in one.sites.items():
        theirs = other.sites[name].histogram
        np.testing.assert_array_equal(site.histogram.counts, theirs.counts)
        np.testing.assert_array_equal(site.histogram.edges, theirs.edges)
    for head, classifier in one.classifiers.items():
        theirs = other.classifiers[head]
        for key, histogram in classifier.histograms.items():
            counts = theirs.histograms[key].counts
            np.testing.assert_array_equal(histogram.counts, counts)
        for series in range(12):
            np.testing.assert_array_equal(
                classifier.by_class.values_of(series),
                theirs.by_class.values_of(series),
            )
    assert one.num_images == other.num_images


def test_parts_merge_to_the_whole(detector, images):
    model, dataset = detector(), images(7, size=30)

    def run(*indices):
        statistics = empty(values_per_call=500, values_per_class=20)
        with torch.no_grad(), Collector(model, statistics) as collector:
            for index in indices:
                collector.start_image(index, index)
                data = dataset[index]
                model(data["inputs"][None], [data["data_samples"]], "loss")
        return statistics

    whole, merged = run(*range(7)), run(5, 3)
    merged.merge(run(0, 1, 2, 4, 6))
    assert_same(merged, whole)


@pytest.mark.parametrize("num_classes, expected", [(40, 512), (13_204, 52)])
def test_fewer_values_are_kept_of_very_many_classes(num_classes, expected):
    classifier = ClassifierStatistics(np.repeat("f", num_classes), ImageSampler())
    assert classifier.by_class.size == expected


def test_proposals_of_a_dense_head_are_sampled(detector):
    statistics, model = empty(values_per_call=2**30), detector()
    with Collector(model, statistics) as collector:
        collector.start_image(0, 0)
        labels = torch.full((600_000,), 4)
        labels[:100] = 2
        model.head.loss_cls(torch.randn(600_000, 4), labels)
    classifier = statistics.classifiers["head"]
    assert classifier.histograms["target", "f"].total == 100
    assert classifier.histograms["background", "r"].total == 599_898  # 3 * 199,966
    assert classifier.by_class.seen[-1] == 199_966


def test_1203_classes_take_bounded_memory():
    statistics = Statistics(ImageSampler(values_per_class=8), np.repeat("f", 1_203))
    model = nn.Module()
    model.head = nn.Module()
    model.head.num_classes = 1_203
    model.head.loss_cls = nn.CrossEntropyLoss()
    sizes = []
    with Collector(model, statistics) as collector:
        for number in range(12):
            collector.start_image(number, number)
            labels = torch.arange(64) * 40 % 1_204
            model.head.loss_cls(torch.randn(64, 1_204), labels)
            classifier = statistics.classifiers["head"]
            reservoir = classifier.by_class
            sizes.append(
                sum(h.counts.nbytes for h in classifier.histograms.values())
                + sum(c.nbytes for p in reservoir._pending for c in p)
                + sum(c.nbytes for c in reservoir._kept)
            )
    assert reservoir.seen.sum() == 12 * 64 * 1_203
    assert max(sizes) < 16e6


@pytest.mark.parametrize(
    "module, expected",
    [
        (AGLU(init=dict(lam=0.25, kappa=3.0)), (0.25, 3)),
        (APA(init="sigmoid"), (1, 1)),
        (nn.SiLU(), (1, 1)),
        (nn.Sigmoid(), (1, 1)),
        (nn.ReLU(), None),
    ],
)
def test_parameters_in_use(module, expected):
    found = parameters_of(module)
    assert found == expected or tuple(float(v[0]) for v in found) == expected


def test_a_negative_lambda_acts_as_zero():
    module = AGLU()
    nn.init.constant_(module.lambda_param, -0.5)
    assert parameters_of(module)[0] == 0
