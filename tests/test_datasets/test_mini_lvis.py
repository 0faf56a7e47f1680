"""Mini-LVIS is LVIS v1: exact fields, masks, federated labels; both readers read it."""

import copy
import json
from collections import Counter

import cv2
import lvis
import numpy as np
import pytest
from mmdet.datasets import LVISV1Dataset
from pycocotools import mask as mask_utils

import apa_mmdet  # noqa: F401  repairs lvis-api for current numpy
from apa_mmdet.datasets.mini_lvis import CLASSES, generator, make_mini_lvis
from apa_mmdet.datasets.mini_lvis.assignment import image_quotas
from apa_mmdet.datasets.mini_lvis.scenes import compose

SMALL = dict(seed=0, num_train=375, num_val=60, image_size=96)
SPLITS = ("train", "val")


def read(root, split):
    return json.loads((root / "annotations" / f"lvis_v1_{split}.json").read_text())


def all_bytes(root):
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    calls = []
    out = tmp_path_factory.mktemp("data") / "mini_lvis"
    made = make_mini_lvis(out, **SMALL, progress=lambda *args: calls.append(args))
    assert made.created and made.root == out
    assert calls == [(i, 435) for i in range(1, 436)]
    return out


@pytest.fixture(scope="module", params=SPLITS)
def data(request, root):
    return read(root, request.param) | {"split": request.param, "root": root}


def test_fields_equal_lvis_v1(data):
    split = data["split"]
    assert {"info", "annotations", "images", "licenses", "categories"} <= set(data)
    assert data["info"]["mini_lvis"] == SMALL | {"generator_version": 1}
    assert len(data["images"]) == SMALL[f"num_{split}"]
    for image in data["images"]:
        assert set(image) == {
            *("id", "width", "height", "coco_url", "flickr_url", "license"),
            *("date_captured", "neg_category_ids", "not_exhaustive_category_ids"),
        }
        name = f"{split}2017/{image['id']:012d}.jpg"
        assert image["coco_url"] == f"http://images.cocodataset.org/{name}"
        pixels = cv2.imread(str(data["root"] / name))
        assert pixels.shape == (image["height"], image["width"], 3) == (96, 96, 3)
    for ann in data["annotations"]:
        assert set(ann) == {
            *("id", "image_id", "category_id", "bbox", "area", "segmentation"),
        }
        assert all(len(p) >= 6 and len(p) % 2 == 0 for p in ann["segmentation"])
    ids = [ann["id"] for ann in data["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    for index, cat in enumerate(data["categories"]):
        assert set(cat) == {
            *("id", "name", "synset", "synonyms", "def"),
            *("image_count", "instance_count", "frequency"),
        }
        assert (cat["id"], cat["name"]) == (index + 1, CLASSES[index])
    assert len(data["categories"]) == len(CLASSES) == len(set(CLASSES)) == 40


def test_image_ids_of_the_splits_are_disjoint(root):
    train, val = ({i["id"] for i in read(root, split)["images"]} for split in SPLITS)
    assert not train & val


def test_frequency_follows_the_training_images(root):
    train, val = (read(root, split) for split in SPLITS)
    assert train["categories"] == val["categories"]
    pairs = [(a["category_id"], a["image_id"]) for a in train["annotations"]]
    instances = Counter(category for category, _ in pairs)
    images = Counter(category for category, _ in set(pairs))
    for cat in train["categories"]:
        count = images[cat["id"]]
        assert cat["image_count"] == count > 0
        assert cat["instance_count"] == instances[cat["id"]]
        assert cat["frequency"] == ("r" if count < 11 else "c" if count < 101 else "f")
    assert {cat["frequency"] for cat in train["categories"]} == set("rcf")


def test_default_size_fills_every_group():
    train, val = image_quotas(600, 150)
    assert ((train <= 10).sum(), (train > 100).sum()) == (15, 10)
    assert val.min() >= 4
    # However large the set, its rare classes stay rare.
    train, _ = image_quotas(10_000, 1_000)
    assert ((train <= 10).sum(), (train > 100).sum()) == (15, 10)


def test_val_shows_every_class_several_times_and_knows_it_absent_often(root):
    val = read(root, "val")
    shown = {(a["category_id"], a["image_id"]) for a in val["annotations"]}
    images = Counter(category for category, _ in shown)
    negatives = Counter(i for image in val["images"] for i in image["neg_category_ids"])
    for category in range(1, 41):
        assert images[category] >= 4
        assert negatives[category] >= 5


def test_federated_labels(data):
    shown = {image["id"]: set() for image in data["images"]}
    for ann in data["annotations"]:
        shown[ann["image_id"]].add(ann["category_id"])
    for image in data["images"]:
        negative = image["neg_category_ids"]
        present = shown[image["id"]]
        assert present
        assert len(negative) == len(set(negative)) == 12
        assert set(negative) <= set(range(1, 41)) - present
        assert set(image["not_exhaustive_category_ids"]) <= present
    partly = sum(bool(image["not_exhaustive_category_ids"]) for image in data["images"])
    assert partly < 0.12 * len(data["images"])
    assert partly > 0 or data["split"] == "val"


def test_a_not_exhaustive_class_has_an_instance_without_annotation(
    tmp_path, monkeypatch
):
    drawn = []

    def spy(size, categories, rng):
        drawn.append(Counter(categories))
        return compose(size, categories, rng)

    monkeypatch.setattr(generator, "compose", spy)
    make_mini_lvis(tmp_path, **SMALL)
    for split, scenes in (("train", drawn[:375]), ("val", drawn[375:])):
        annotated = {}
        for ann in read(tmp_path, split)["annotations"]:
            annotated.setdefault(ann["image_id"], Counter())[ann["category_id"]] += 1
        for image, scene in zip(read(tmp_path, split)["images"], scenes):
            assert 1 <= sum(scene.values()) <= 6
            missing = scene - annotated[image["id"]]
            assert sorted(missing) == image["not_exhaustive_category_ids"]
            assert not set(scene) & set(image["neg_category_ids"])


def test_masks_boxes_and_areas_agree_with_pycocotools(data):
    seen = {image["id"]: np.zeros((96, 96), int) for image in data["images"]}
    for ann in data["annotations"]:
        rle = mask_utils.merge(mask_utils.frPyObjects(ann["segmentation"], 96, 96))
        x, y, w, h = ann["bbox"]
        assert mask_utils.area(rle) == ann["area"]
        assert mask_utils.toBbox(rle).tolist() == ann["bbox"]
        assert min(w, h) >= 8 and min(x, y) >= 0 and max(x + w, y + h) <= 96
        seen[ann["image_id"]] += mask_utils.decode(rle)
    # The visible parts of two objects do not overlap.
    assert max(mask.max() for mask in seen.values()) == 1


@pytest.mark.parametrize("seed", range(8))
def test_masks_cover_the_visible_objects(seed):
    red, blue = CLASSES.index("red_cat") + 1, CLASSES.index("blue_heart") + 1
    order = [red, blue, red, blue]
    image, masks = compose(160, order, np.random.default_rng(seed))
    for category, mask in zip(order, masks):
        # Without the dark rims, its own and those of objects next to it.
        inner = cv2.erode(mask, np.ones((5, 5), np.uint8)).astype(bool)
        colour, channel = image[inner].astype(int), 2 if category == red else 0  # BGR
        others = np.delete(colour, channel, axis=1).max(axis=1)
        assert (colour[:, channel] > others).mean() > 0.8
    background = ~np.any(masks, axis=0)
    assert background.mean() > 0.2


def test_the_seed_determines_every_byte(root, tmp_path):
    as_numpy = {name: np.int64(value) for name, value in SMALL.items()}
    make_mini_lvis(tmp_path / "same", **as_numpy)
    make_mini_lvis(tmp_path / "other", **(SMALL | {"seed": 1}))
    first, same, other = (
        all_bytes(path) for path in (root, tmp_path / "same", tmp_path / "other")
    )
    assert len(first) == 375 + 60 + 2
    assert first == same
    assert set(first) == set(other)
    assert all(first[name] != other[name] for name in first)


def test_mmdet_reads_it(root):
    dataset = LVISV1Dataset(
        data_root=str(root),
        ann_file="annotations/lvis_v1_train.json",
        data_prefix=dict(img=""),
        metainfo=dict(classes=CLASSES),
        filter_cfg=dict(filter_empty_gt=True, min_size=8),
        pipeline=[
            dict(type="mmcv.LoadImageFromFile"),
            dict(type="mmdet.LoadAnnotations", with_bbox=True, with_mask=True),
        ],
    )
    train = read(root, "train")
    assert len(dataset) == 375
    labels = Counter()
    for index in range(len(dataset)):
        labels.update(
            i["bbox_label"] for i in dataset.get_data_info(index)["instances"]
        )
    assert labels == Counter(a["category_id"] - 1 for a in train["annotations"])
    item = dataset[0]
    assert item["img"].shape == (96, 96, 3)
    masks = item["gt_masks"].to_ndarray()
    areas = [a["area"] for a in train["annotations"] if a["image_id"] == item["img_id"]]
    assert masks.sum(axis=(1, 2)).tolist() == areas


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_perfect_predictions_score_one(root, iou_type):
    truth = lvis.LVIS(str(root / "annotations" / "lvis_v1_val.json"))
    results = []
    for ann in copy.deepcopy(truth.dataset["annotations"]):
        keys = ["image_id", "category_id"]
        if iou_type == "bbox":
            keys.append("bbox")
        else:
            ann["segmentation"] = truth.ann_to_rle(ann)
            keys.append("segmentation")
        results.append({key: ann[key] for key in keys} | {"score": 0.9})
    found = lvis.LVISResults(truth, results)
    evaluation = lvis.LVISEval(truth, found, iou_type)
    evaluation.run()
    scores = evaluation.get_results()
    for name in ("AP", "APr", "APc", "APf"):
        assert scores[name] == pytest.approx(1.0)


def test_a_complete_set_is_left_unchanged(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    made = make_mini_lvis(str(root), **SMALL, progress=lambda *_: pytest.fail("drew"))
    assert not made.created
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert made.splits["train"]["images"] == 375
    assert made.splits["val"]["instances"] == len(read(root, "val")["annotations"])
    groups = Counter(cat["frequency"] for cat in read(root, "train")["categories"])
    for counts in made.splits.values():
        assert {group: counts[group] for group in "rcf"} == groups


def test_an_interrupted_set_is_generated_again(root, tmp_path):
    class Interrupt(Exception):
        pass

    def stop(done, total):
        if done == 20:
            raise Interrupt

    with pytest.raises(Interrupt):
        make_mini_lvis(tmp_path, **(SMALL | {"seed": 1}), progress=stop)
    assert not list(tmp_path.rglob("*.json"))
    # As if the interrupted set had been larger.
    (tmp_path / "val2017" / "000000009999.jpg").touch()
    assert make_mini_lvis(tmp_path, **SMALL).created
    assert all_bytes(tmp_path) == all_bytes(root)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("num_train", 0),
        ("num_train", 374),
        ("num_val", 59),
        ("num_val", 100.0),
        ("image_size", 95),
    ],
)
def test_bad_numbers_are_refused_by_name(tmp_path, name, value):
    with pytest.raises(ValueError, match=rf"{name}={value!r}: expected an integer"):
        make_mini_lvis(tmp_path / "new", **(SMALL | {name: value}))
    assert not (tmp_path / "new").exists()


def test_a_folder_with_other_contents_is_refused(root, tmp_path):
    with pytest.raises(FileExistsError, match="made with .*Delete that folder"):
        make_mini_lvis(root, **(SMALL | {"seed": 5}))

    note = tmp_path / "note.txt"
    note.write_text("mine")
    for taken in (tmp_path, note):
        with pytest.raises(FileExistsError, match="not mini-LVIS.*choose another"):
            make_mini_lvis(taken, **SMALL)
    assert [*tmp_path.iterdir()] == [note] and note.read_text() == "mine"


def test_missing_images_are_noticed(root, tmp_path):
    for split in SPLITS:
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / f"{split}2017").mkdir()
        name = f"annotations/lvis_v1_{split}.json"
        (tmp_path / name).write_bytes((root / name).read_bytes())
    with pytest.raises(FileExistsError, match="damaged.*0 images in train2017"):
        make_mini_lvis(tmp_path, **SMALL)
