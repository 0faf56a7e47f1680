"""COCO annotations completed to LVIS's format."""

import copy
import json
import random
import sys

import pytest
from lvis import LVIS, LVISEval, LVISResults
from pycocotools import mask as mask_utils

from apa_mmdet.datasets.coco_to_lvis import coco_to_lvis
from apa_mmdet.evaluation import evaluate, load_ground_truth, read_results

CUT = dict(size=[40, 50], counts="11")  # the first two runs of an RLE


def annotation(index, image, category, box, **fields):
    x, y, w, h = box
    polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    item = dict(id=index, image_id=image, category_id=category, bbox=box)
    return {**item, "area": w * h, "segmentation": polygon, "iscrowd": 0, **fields}


@pytest.fixture
def coco():
    """Train and val: class 7 in three training images, 3 in one, 5 in none."""
    categories = [dict(id=i, name=name) for i, name in ((7, "a"), (3, "b"), (5, "c"))]

    def images(*ids):
        return [dict(id=i, file_name=f"{i}.jpg", height=40, width=50) for i in ids]

    train = [
        annotation(1, 1, 7, [0, 0, 10, 10]),
        annotation(2, 1, 7, [20, 0, 10, 10]),
        annotation(3, 2, 7, [0, 0, 10, 10]),
        annotation(4, 3, 7, [0, 0, 10, 10]),
        annotation(5, 3, 3, [5, 5, 20, 10]),
    ]
    val = [
        annotation(1, 9, 3, [1, 2, 30, 20]),
        annotation(2, 8, 5, [1, 2, 30, 20], iscrowd=1),
        annotation(3, 8, 7, [10, 2, 8, 8]),
    ]
    return dict(
        train=dict(images=images(1, 2, 3, 4), annotations=train, categories=categories),
        val=dict(images=images(9, 8), annotations=val, categories=categories[::-1]),
    )


@pytest.fixture
def convert(tmp_path, coco):
    """Convert what is in ``coco`` by then; return the results and the LVIS files."""

    def run(**options):
        for split, data in coco.items():
            (tmp_path / f"{split}_coco.json").write_text(json.dumps(data))
        files = {split: tmp_path / f"{split}_coco.json" for split in coco}
        written = coco_to_lvis(files, tmp_path / "out", **options)
        data = {split: json.loads(written[split].path.read_text()) for split in written}
        return written, data

    return run


def lists(data):
    return {
        image["id"]: (image["neg_category_ids"], image["not_exhaustive_category_ids"])
        for image in data["images"]
    }


def test_every_file_gets_the_counts_of_train(convert):
    written, data = convert(rare_max=1, common_max=2)
    for split in data.values():
        figures = {
            item["name"]: (
                item["id"],
                item["image_count"],
                item["instance_count"],
                item["frequency"],
            )
            for item in split["categories"]
        }
        assert figures == {
            "a": (7, 3, 4, "f"),
            "b": (3, 1, 1, "r"),
            "c": (5, 0, 0, "r"),
        }
    assert written["val"].frequencies == dict(r=2, c=0, f=1)
    # LVIS's own borders: 10 and 100 images.
    assert convert()[0]["val"].frequencies == dict(r=3, c=0, f=0)


@pytest.mark.parametrize(
    "exhaustive, train, val",
    [
        (
            "all",
            {1: ([3, 5], []), 2: ([3, 5], []), 3: ([5], []), 4: ([3, 5, 7], [])},
            {9: ([5, 7], []), 8: ([3], [5])},  # of class 5, image 8 has a crowd
        ),
        (
            "annotated",
            {1: ([], []), 2: ([], []), 3: ([], []), 4: ([], [])},
            {9: ([], []), 8: ([], [5])},
        ),
        (
            "none",
            {1: ([], [7]), 2: ([], [7]), 3: ([], [3, 7]), 4: ([], [])},
            {9: ([], [3]), 8: ([], [5, 7])},
        ),
    ],
)
def test_lists_say_what_is_annotated(convert, exhaustive, train, val):
    written, data = convert(exhaustive=exhaustive)
    assert lists(data["train"]) == train
    assert lists(data["val"]) == val
    assert [item["id"] for item in data["val"]["annotations"]] == [1, 3]
    assert (written["val"].crowds, written["val"].instances) == (1, 2)


def test_missing_areas_and_masks(convert, coco):
    boxed, masked, empty, *_ = coco["train"]["annotations"]
    del boxed["area"]
    boxed["segmentation"] = []
    del masked["area"]
    masked["segmentation"] = [[20, 0, 30, 0, 20, 10]]
    empty.update(bbox=[5, 5, 0, 10], area=0)
    written, data = convert()
    assert (written["train"].boxes_only, written["train"].empty) == (1, 1)
    boxed, masked, *_ = data["train"]["annotations"]
    assert boxed["area"] == 100 and "segmentation" not in boxed
    rle = mask_utils.merge(mask_utils.frPyObjects(masked["segmentation"], 40, 50))
    assert masked["area"] == mask_utils.area(rle) < 60
    # The annotation without area is not counted, and its image does not show the class.
    assert data["train"]["categories"][0]["image_count"] == 2
    assert lists(data["train"])[2] == ([3, 5, 7], [])
    with pytest.raises(ValueError, match="segmentation"):
        load_ground_truth(written["train"].path, with_masks=True)


def test_whole_floats_are_ids(convert, coco):
    for item in coco["train"]["annotations"]:
        item["image_id"] = float(item["image_id"])
    coco["train"]["images"][0]["id"] = 1.0
    _, data = convert()
    assert data["train"]["annotations"][0]["image_id"] == 1
    assert '"image_id": 1,' in json.dumps(data["train"]["annotations"][0])


def test_unused_categories_can_be_left_out(convert, coco):
    root = dict(id=0, name="a")  # as in exports with a root category
    for data in coco.values():
        data["categories"].insert(0, root)
    with pytest.raises(ValueError, match="0 and 7 are both named 'a'.*--drop-unused"):
        convert()
    _, data = convert(drop_unused=True)
    # Class 5 has only a crowd in val.
    assert [item["id"] for item in data["train"]["categories"]] == [7, 3, 5]
    assert lists(data["train"])[4] == ([3, 5, 7], [])


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_ground_truth_as_predictions_has_ap_1(convert, tmp_path, iou_type):
    written, data = convert()
    path = str(written["val"].path)
    results = [
        {key: item[key] for key in ("image_id", "category_id", "bbox", "segmentation")}
        for item in data["val"]["annotations"]
    ]
    for item in results:
        rles = mask_utils.frPyObjects(item["segmentation"], 40, 50)
        rle = mask_utils.merge(rles)
        item.update(score=0.9, segmentation=dict(rle, counts=rle["counts"].decode()))
    # Class 5 is not exhaustive in image 8, so this counts for nothing.
    results.append(dict(results[-1], category_id=5))
    (tmp_path / "results.json").write_text(json.dumps(results))
    with_masks = iou_type == "segm"
    truth = load_ground_truth(path, with_masks)
    dets = read_results(tmp_path / "results.json", truth, with_masks)
    assert evaluate(truth, dets, iou_type).summary()["AP"] == pytest.approx(1)
    lvis = LVIS(path)
    reference = LVISEval(lvis, LVISResults(lvis, copy.deepcopy(results)), iou_type)
    reference.run()
    assert reference.results["AP"] == pytest.approx(1)
    false_alarm = dict(
        results[0], category_id=7, score=0.95
    )  # known to be absent in image 9
    (tmp_path / "results.json").write_text(json.dumps([*results, false_alarm]))
    dets = read_results(tmp_path / "results.json", truth, with_masks)
    assert evaluate(truth, dets, iou_type).summary()["AP"] == pytest.approx(0.75)


def change(split, key, index, **fields):
    def apply(coco):
        coco[split][key][index].update(fields)

    return apply


@pytest.mark.parametrize(
    "spoil, message",
    [
        (change("train", "images", 0, id="x"), "image number 1 has id 'x'"),
        (change("train", "images", 1, id=1), "image id used more than once"),
        (change("train", "images", 0, height=None), "image 1 has height None"),
        (change("train", "images", 0, width=0), "height 40 and width 0"),
        (change("train", "images", 0, file_name=3), "image 1 has file_name 3"),
        (change("val", "images", 0, neg_category_ids=[]), "val_coco.json: image 9 has"),
        (change("train", "categories", 1, name=None), "category 3 has name None"),
        (change("val", "annotations", 0, id=1.5), "annotation 1.5 has id 1.5"),
        (change("val", "annotations", 0, bbox=None), "annotation 1 has bbox None"),
        (change("val", "annotations", 0, bbox=[1, 2, 3]), r"has bbox \[1, 2, 3\]"),
        (change("val", "annotations", 0, area="9"), "annotation 1 has area '9'"),
        (change("val", "annotations", 0, image_id=4), "unknown image_id"),
        (change("val", "annotations", 0, category_id=4), "unknown category_id"),
        (change("val", "annotations", 0, category_id=True), "has category_id True"),
        (change("val", "annotations", 0, area=None, segmentation=7), "annotation 1: "),
        (
            change("val", "annotations", 0, area=None, segmentation=CUT),
            "annotation 1 has a damaged mask",
        ),
        (lambda coco: coco["val"].update(annotations=None), "annotations has null in"),
        (lambda coco: coco["val"].update(images=[]), "no images; expected COCO"),
        (lambda coco: coco["val"].update(categories=["a"]), 'has "a" in position 1'),
        (
            lambda coco: coco["val"].update(
                categories=[dict(id=1, name="a"), *coco["val"]["categories"][:2]]
            ),
            "category 'a' has id 1, and id 7 in .*train_coco.json",
        ),
    ],
)
def test_unusable_files_are_refused(convert, coco, tmp_path, spoil, message):
    coco["val"]["categories"] = copy.deepcopy(coco["val"]["categories"])
    spoil(coco)
    with pytest.raises(ValueError, match=message) as error:
        convert()
    assert "_coco.json" in str(error.value) and "unchecked" not in str(error.value)
    assert not list(tmp_path.glob("out/*"))


def test_no_damage_ends_in_another_error(convert, coco):
    """What is converted can be evaluated; all else is refused by name."""
    values = [None, -1, 0, 1.5, 2.0, 2**70, float("nan"), "x", True, [], [[]], {}]
    rng, valid, refused = random.Random(0), copy.deepcopy(coco), 0
    for _ in range(200):
        coco.update(copy.deepcopy(valid))
        data = coco[rng.choice(["train", "val"])]
        key = rng.choice(["images", "annotations", "categories"])
        item = rng.choice(data[key])
        field = rng.choice([name for name in item if name != "segmentation"])
        if rng.random() < 0.2:
            del item[field]
        elif rng.random() < 0.1:
            data[key] = rng.choice(values)
        elif field == "bbox" and rng.random() < 0.7:
            item[field][rng.randrange(4)] = rng.choice(values)
        else:
            item[field] = rng.choice(values)
        try:
            written, _ = convert()
        except ValueError as error:
            assert "_coco.json" in str(error)
            refused += 1
        else:
            for result in written.values():
                load_ground_truth(result.path)
    assert 50 < refused < 190


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(exhaustive="some"), "exhaustive='some'"),
        (dict(rare_max=20, common_max=10), "rare_max=20, common_max=10"),
    ],
)
def test_unusable_arguments_are_refused(convert, options, message):
    with pytest.raises(ValueError, match=message):
        convert(**options)


def test_inputs_are_not_overwritten(tmp_path, coco):
    (tmp_path / "train.json").write_text(json.dumps(coco["train"]))
    with pytest.raises(ValueError, match="train.json: would be overwritten"):
        coco_to_lvis(dict(train=tmp_path / "train.json"), tmp_path)
    assert json.loads((tmp_path / "train.json").read_text()) == coco["train"]


@pytest.fixture
def tool(load_tool, monkeypatch):
    """The function that runs the tool with arguments."""
    module = load_tool("dataset_converters/coco_to_lvis.py")

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["coco_to_lvis.py", *map(str, args)])
        module.main()

    return run


def test_the_tool_says_what_it_wrote(tool, tmp_path, coco, capsys):
    path, out = tmp_path / "coco.json", tmp_path / "out"
    path.write_text(json.dumps(coco["val"]))
    tool("--train", path, "--out", out, "--rare-max", 0)
    assert capsys.readouterr().out.splitlines() == [
        f"{out}/train.json: 2 images, 2 instances",
        "  1 crowds or ignored left out, their classes not exhaustive",
        f"0 frequent, 2 common and 1 rare classes, counted in {path}",
    ]


def test_the_tool_refuses_in_one_line(tool, tmp_path, coco, capsys):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco["train"])[:-30])
    missing = tmp_path / "no.json"
    for train, message in ((path, "truncated"), (missing, f"{missing}: no such file")):
        with pytest.raises(SystemExit) as error:
            tool("--train", train, "--out", tmp_path / "out")
        printed = capsys.readouterr().err
        assert error.value.code == 2 and message in printed
        assert printed.startswith("error: ") and printed.count("\n") == 1
