"""Classes chosen by name: the figures are lvis-api's for those category ids."""

import json

import numpy as np
import pytest

from apa_mmdet.evaluation.core.classes import select_classes
from apa_mmdet.evaluation.core.evaluate import evaluate
from apa_mmdet.evaluation.files.annotations import load_ground_truth
from apa_mmdet.evaluation.files.results import read_results


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_some_classes_equal_lvis_api(case, lvis_api, kind):
    with_masks, measured = kind == "segm", 0
    for seed in range(20):
        written = case(seed, with_masks)
        rng = np.random.default_rng(seed)
        categories = written.data["categories"]
        chosen = rng.permutation(categories)[: rng.integers(1, len(categories) + 1)]
        ids = [category["id"] for category in chosen]
        results = [item for item in written.results if item["category_id"] in ids]
        if not results:  # lvis-api refuses an empty list
            continue
        written.results_path.write_text(json.dumps(results))
        truth = load_ground_truth(written.truth_path, with_masks)
        names = [category["name"] for category in chosen]
        truth = select_classes(truth, names, "file")
        assert truth.class_ids[truth.label_to_class].tolist() == ids
        assert truth.class_names == [f"class_{i}" for i in sorted(ids)]
        dets = read_results(written.results_path, truth, with_masks)
        result = evaluate(truth, dets, kind)
        expected = lvis_api(written.truth_path, results, kind, cat_ids=sorted(ids))
        np.testing.assert_allclose(result.precision, expected.precision, atol=1e-9)
        np.testing.assert_allclose(result.recall, expected.recall, atol=1e-9)
        for name, value in result.summary().items():
            assert value == pytest.approx(expected.figures[name], abs=1e-9), name
        measured += (result.precision > 0).any()
    assert measured > 10  # the cases are not trivial


def test_mmdetections_spelling_of_an_lvis_class(case):
    def change(data, results):
        data["categories"][1]["name"] = "speaker_(stero_equipment)"  # as in LVIS

    truth = load_ground_truth(case(0, change=change).truth_path)
    names = [truth.class_names[i] for i in truth.label_to_class]
    theirs = [name.replace("stero", "stereo") for name in names]
    assert theirs != names
    assert select_classes(truth, theirs, "file") is truth
    only = select_classes(truth, theirs[1:2], "file")
    assert only.class_names == ["speaker_(stero_equipment)"]


def test_classes_that_cannot_be_found(case):
    def change(data, results):
        for category, name in zip(data["categories"], "abb"):
            category["name"] = name

    truth = load_ground_truth(case(0, change=change).truth_path)
    in_file = [truth.class_names[i] for i in truth.label_to_class]
    shared = truth.class_ids[[i for i, n in enumerate(truth.class_names) if n == "b"]]
    first, second = sorted(shared)
    for names, message in (
        (
            ["a", "z", "y"],
            r"^file.json: no category is named 'z', 'y' \(2 of the data set's 3 "
            rf"classes\); the file has {len(in_file)}, 'a', 'b', 'b', .*Set metainfo",
        ),
        (["a", "b"], f"file.json: categories {first} and {second} share the name 'b'"),
        (["a", "a"], r"metainfo\['classes'\] of the data set has 'a' 2 times"),
    ):
        with pytest.raises(ValueError, match=message):
            select_classes(truth, names, "file.json")
    # In the file's order each label is known, whatever the names.
    assert select_classes(truth, in_file, "file.json") is truth
