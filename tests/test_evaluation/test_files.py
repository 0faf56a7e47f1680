"""Annotation and results files are read as streams, and refused with reasons."""

import copy
import gzip
import json
import pickle
import re

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from apa_mmdet.evaluation.core.masks import (
    PackedMasks,
    decode,
    encode,
    find_damaged,
    measure,
)
from apa_mmdet.evaluation.files import json_stream, results
from apa_mmdet.evaluation.files.annotations import load_ground_truth
from apa_mmdet.evaluation.files.json_stream import iter_array, iter_members
from apa_mmdet.evaluation.files.results import read_results, write_results

VALUES = [
    [],
    [1, 22.5, -3e-7, 1234567890123],
    ["a, b] c", 'quote " and \\ and \u00e9 \u2192 \U0001f600', ""],
    [{"x": [1, {"y": None}]}, True, False, None, [[]], {}],
    [dict(image_id=i, bbox=[i / 7] * 4, text="}{" * (i % 9)) for i in range(300)],
]


@pytest.fixture(params=[1, 7, 64, 1 << 22])
def block(request, monkeypatch):
    """Characters read at once, so that blocks end anywhere."""
    monkeypatch.setattr(json_stream, "_BLOCK", request.param)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("zipped", [False, True])
def test_streams_equal_the_json_module(tmp_path, block, indent, zipped):
    for value in VALUES:
        path = tmp_path / "x"
        text = json.dumps(value, indent=indent, ensure_ascii=bool(indent)).encode()
        path.write_bytes(gzip.compress(text) if zipped else text)
        assert list(iter_array(path)) == value
    value = dict(info=dict(a=1), images=VALUES[4], empty=[], number=12345, last="x")
    path.write_text(json.dumps(value, indent=indent))
    read = {"empty": []}
    for key, item in iter_members(path):
        if isinstance(value[key], list):
            read.setdefault(key, []).append(item)
        else:
            read[key] = item
    assert read == value


def test_every_truncation_is_noticed(tmp_path, block):
    path = tmp_path / "truncated.json"
    text = json.dumps([dict(a="b\\c", d=[1.5, None]), dict(e=-12)])
    for length in range(len(text)):
        path.write_text(text[:length])
        with pytest.raises(ValueError, match=f"truncated at character {length}|end of"):
            list(iter_array(path))
    second = text.index('{"e"')
    path.write_text(text[: second + 3])
    with pytest.raises(ValueError, match="after 1 complete elements.*copy the file"):
        list(iter_array(path))


def test_a_truncated_gzip_file_is_noticed(tmp_path):
    path = tmp_path / "truncated.json.gz"
    whole = gzip.compress(json.dumps(VALUES[4]).encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=r"truncated at character \d+,\d+, after 1\d\d"
    ):
        list(iter_array(path))
    path.write_bytes(whole[:200] + b"zzzzzz" + whole[206:])
    with pytest.raises(ValueError, match="cannot be read after|not JSON|truncated"):
        list(iter_array(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2 3]", "not JSON at character 6 .*expected ',' or '\\]'"),
        ("[1, x]", "not JSON at character 4"),
        ("[1, 2] 3", "not JSON at character 7 .*expected the end"),
        ("[1, 2,]", "not JSON at character 6 .*nothing follows the comma, found ']"),
        ('[{"a": 1,}]', "not JSON at character [89] "),
        ("[tru]", "not JSON at character 1 "),
        ('["\\u12zz"]', "not JSON at character 3 .*escape"),
        ("[" + "9" * 5000 + "]", "not JSON at character 1 .*digits"),
        ("[" * 5_000, "not JSON at character 1 .*recursion"),
        ('{"a": 1}', "expected a JSON list of results, found '{"),
        ("", "expected a JSON list of results, found the end of the file"),
    ],
)
def test_the_position_of_invalid_json_is_shown(tmp_path, text, message):
    path = tmp_path / "x.json"
    for end in ("", " " * 40):
        path.write_text(text + end)
        with pytest.raises(ValueError, match=message):
            list(iter_array(path))


def test_byte_order_marks(tmp_path, block):
    """Windows programs write them: Notepad in UTF-8, PowerShell's > in UTF-16."""
    path = tmp_path / "x.json"
    path.write_text(json.dumps(VALUES[2]), encoding="utf-8-sig")
    assert list(iter_array(path)) == VALUES[2]
    path.write_text(json.dumps(VALUES[2]), encoding="utf-16")
    with pytest.raises(ValueError, match="x.json: UTF-16 text; expected UTF-8"):
        list(iter_array(path))


def test_files_that_are_not_text(tmp_path, block):
    path = tmp_path / "results.pkl"  # of mmdet's tools/test.py --out
    path.write_bytes(pickle.dumps(VALUES, protocol=4))
    with pytest.raises(ValueError, match="results.pkl: not UTF-8 text; expected JSON"):
        list(iter_array(path))


@pytest.mark.parametrize("value", ["null", "7", '"x"', '{"a": 1}'])
def test_members_that_must_be_lists(tmp_path, value):
    path = tmp_path / "x.json"
    path.write_text(f'{{"a": [1], "b": {value}}}')
    assert list(iter_members(path, ["a"]))[0] == ("a", 1)
    expected = f"{path}: b is {value}; expected a list"
    with pytest.raises(ValueError, match=re.escape(expected)):
        list(iter_members(path, ["a", "b"]))
    with pytest.raises(ValueError, match="x.json: no c; expected a list"):
        list(iter_members(path, ["a", "c"]))


def test_an_invalid_file_is_not_read_to_its_end(tmp_path, monkeypatch):
    """An error at the start must not read all the rest into memory."""
    monkeypatch.setattr(json_stream, "_BLOCK", 1000)
    path = tmp_path / "x.json"
    path.write_text('[{"a": 1 "b"}, ' + "1, " * 100_000)
    largest = 0
    read = json_stream._Text._read

    def watched(self):
        nonlocal largest
        result = read(self)
        largest = max(largest, len(self._buffer))
        return result

    monkeypatch.setattr(json_stream._Text, "_read", watched)
    with pytest.raises(ValueError, match="not JSON at character 9"):
        list(iter_array(path))
    assert largest <= 1000


# ------------------------------------------------------------------- annotations


def assert_refused(case, change, message, with_masks=False):
    written = case(31, change=lambda data, results: change(data))
    with pytest.raises(ValueError, match=message):
        load_ground_truth(written.truth_path, with_masks)


def size_of(data, annotation):
    (image,) = (i for i in data["images"] if i["id"] == annotation["image_id"])
    return [image["height"], image["width"]]


def test_annotation_files_are_refused(case):
    def set_first(key, **values):
        return lambda data: [item.update(values) for item in data[key][:2]]

    def drop(key, name):
        return lambda data: data[key][0].pop(name)

    assert_refused(
        case, set_first("images", id=5), "image id used more than once: 1, the first: 5"
    )
    assert_refused(
        case, set_first("annotations", id=5), "annotation id used more than once: 1"
    )
    assert_refused(
        case, set_first("categories", id=5), "category id used more than once: 1"
    )
    assert_refused(
        case,
        set_first("annotations", image_id=-3),
        r"unknown image_id: 2, the first: annotation \d+ \(-3\), annotation \d+",
    )
    assert_refused(
        case, set_first("annotations", category_id=-3), "unknown category_id: 2"
    )
    assert_refused(case, set_first("annotations", bbox=[0, 0, -1, 5]), "negative size")
    assert_refused(case, set_first("annotations", area=float("nan")), "not finite")
    assert_refused(
        case, set_first("annotations", bbox=[0, 0, 1e200, 1e200]), "box is not finite"
    )
    assert_refused(case, drop("annotations", "area"), r"annotation \d+: has no area")
    assert_refused(
        case, drop("images", "neg_category_ids"), "use an LVIS annotation file"
    )
    assert_refused(case, lambda data: data.update(categories=[]), "no categories")
    assert_refused(case, lambda data: data.update(images=[]), "no images")


ID = "; expected a whole number below 2\\^63, without quotes$"


@pytest.mark.parametrize(
    ("entries", "change", "message"),
    [
        ("annotations", dict(bbox=[0, 0, 5]), r"bbox is \[0, 0, 5\]; expected 4 num"),
        ("annotations", dict(bbox=[0, 0, 5, "5"]), 'bbox is "5"; expected a number'),
        ("annotations", dict(area="big"), 'area is "big"; expected a number'),
        ("annotations", dict(image_id="7"), 'image_id is "7"' + ID),
        ("annotations", dict(image_id=1.5), "image_id is 1.5" + ID),
        ("annotations", dict(category_id=None), "category_id is null" + ID),
        ("annotations", dict(id="a"), '"a": id is "a"' + ID),
        ("images", dict(id="7.jpg"), 'image "7.jpg": id is "7.jpg"' + ID),
        ("images", dict(id=2**63), "id is 9223372036854775808" + ID),
        ("images", dict(id=None), "image number 2: id is null" + ID),
        ("images", dict(height="480"), 'height is "480"; expected a whole number'),
        ("images", dict(width=-5), "width is -5; expected a whole number"),
        ("images", dict(neg_category_ids=None), "neg_category_ids is null; expected a"),
        ("images", dict(not_exhaustive_category_ids=5), "ids is 5; expected a list"),
        ("images", dict(neg_category_ids=["5"]), 'neg_category_ids is "5"' + ID),
        ("categories", dict(id="7"), 'category "7": id is "7"' + ID),
        ("categories", dict(frequency=None), "frequency is null; expected 'r', 'c' or"),
        ("categories", dict(image_count="many"), 'image_count is "many"; expected a'),
    ],
)  # fmt: skip
def test_fields_of_annotation_files_are_refused_by_name(case, entries, change, message):
    assert_refused(case, lambda data: data[entries][1].update(change), message)


@pytest.mark.parametrize("entries", ["annotations", "images", "categories"])
def test_entries_of_annotation_files_are_refused_by_position(case, entries):
    kind = dict(annotations="annotation", images="image", categories="category")
    for value in (None, 7, "cat", ["cat"]):

        def replace(data, value=value):
            data[entries][2] = value

        message = f"{kind[entries]} number 3: expected an object {{...}}, found "
        assert_refused(case, replace, re.escape(message + json.dumps(value)))
    assert_refused(
        case,
        lambda data: data[entries][2].pop("id"),
        f"{kind[entries]} number 3: has no id$",
    )
    assert_refused(
        case,
        lambda data: data.update({entries: None}),
        f"{entries} is null; expected",
    )
    assert_refused(
        case, lambda data: data.pop(entries), f"no {entries}; expected a list"
    )


def test_whole_floats_are_ids_and_unknown_counts_are_null(case):
    def as_floats(data, results):
        for item in data["images"] + data["categories"]:
            item["id"] = float(item["id"])
        for item in data["annotations"] + results:
            for name in ("id", "image_id", "category_id"):
                if name in item:
                    item[name] = float(item[name])
        for image in data["images"]:
            image["height"] = float(image["height"])
            image["neg_category_ids"] = [float(i) for i in image["neg_category_ids"]]

    def without_counts(data, results):
        data["categories"][0]["image_count"] = None
        data["categories"][1].pop("image_count")

    written = case(1003, with_masks=True)
    truths = [load_ground_truth(written.truth_path, with_masks=True)]
    dets = [read_results(written.results_path, truths[0])]
    written = case(1003, with_masks=True, change=as_floats)
    truths.append(load_ground_truth(written.truth_path, with_masks=True))
    dets.append(read_results(written.results_path, truths[1]))
    for name in ("image_ids", "class_ids", "judged_pairs", "heights", "class_index"):
        values, expected = (getattr(truth, name) for truth in reversed(truths))
        np.testing.assert_array_equal(values, expected)
        assert values.dtype == expected.dtype
    np.testing.assert_array_equal(dets[1].image_index, dets[0].image_index)
    np.testing.assert_array_equal(dets[1].boxes, dets[0].boxes)
    counts = load_ground_truth(case(31, change=without_counts).truth_path).image_counts
    assert (counts < 0).sum() == 2


def test_a_file_of_images_only(case):
    """Such as LVIS's image_info_test_dev.json."""

    def strip(data, results):
        del data["annotations"]
        for image in data["images"]:
            del image["neg_category_ids"], image["not_exhaustive_category_ids"]
        for category in data["categories"]:
            del category["frequency"], category["image_count"]

    expected = load_ground_truth(case(31).truth_path)
    path = case(31, change=strip).truth_path
    truth = load_ground_truth(path, is_annotated=False)
    for name in ("image_ids", "heights", "widths", "class_ids", "label_to_class"):
        np.testing.assert_array_equal(getattr(truth, name), getattr(expected, name))
    assert not len(truth.areas) and not len(truth.judged_pairs)
    with pytest.raises(ValueError, match=r"category \d+: frequency|has no neg_"):
        load_ground_truth(path)


# ----------------------------------------------------------- masks in annotations

OUTSIDE = (
    r"corner 2 of a polygon is \({}\) in an image of \d+ x \d+ .*; expected pixels"
)
MASKS = [
    ([], r"segmentation is \[\]; expected a polygon of at least three corners"),
    ([[]], r"segmentation is \[\[\]\]; expected a polygon"),
    ([[5, 5]], r"segmentation is \[\[5, 5\]\]; expected a polygon"),
    ([[0, 0, 9, 0, 9]], r"polygon is \[0, 0, 9, 0, 9\]; expected a list of numbers"),
    ([{"x": 1}], 'polygon is {"x": 1}; expected a list of numbers'),
    ([1, 2, 3, 4, 5, 6], "polygon is 1; expected a list of numbers"),
    ([[None, 10, 50, 10, 50, 50]], r"polygon is \[null, 10, 50, 10, 50, 50\]; exp"),
    ([["1", 10, 50, 10, 50, 50]], r'polygon is \["1", 10'),
    ([[0, 0, 2e8, 0, 9, 9]], OUTSIDE.format(r"2e\+08, 0")),
    ([[0, 0, 9, -(10**6), 9, 9]], OUTSIDE.format(r"9, -1e\+06")),
    ([[0, 0, float("nan"), 0, 9, 9]], OUTSIDE.format("nan, 0")),
    ([[0, 0, 9, float("inf"), 9, 9]], OUTSIDE.format("9, inf")),
    ([[0, 0, 9, 10**400, 9, 9]], r"polygon is \[0, 0, 9, 10000"),
    ([[0, 0, 9e4, 9e4] * 30], "the outline of a polygon is 5,400,000 pixels long; exp"),
    (7, "segmentation is 7; expected polygons .* or an RLE"),
    (None, "segmentation is null or missing; expected polygons"),
    ({"counts": "1"}, "RLE has no size"),
    ({"size": None, "counts": "1"}, r"RLE size is null in an image of \d+ x \d+"),
    ({"size": [3, 4], "counts": [12]}, r"RLE size is \[3, 4\] in an image of \d+ x"),
    ({"size": 0}, "RLE has no counts"),
    ({"size": 0, "counts": None}, "RLE counts is null; expected run lengths"),
    ({"size": 0, "counts": ""}, 'RLE counts is ""; expected run lengths'),
    ({"size": 0, "counts": []}, r"RLE counts is \[\]; expected run lengths"),
    ({"size": 0, "counts": [-5, 50]}, r"RLE counts is \[-5, 50\]; expected run"),
    ({"size": 0, "counts": [1.5, 50]}, r"RLE counts is \[1.5, 50\]; expected run"),
    ({"size": 0, "counts": ["5", 50]}, r'RLE counts is \["5", 50\]; expected run'),
    ({"size": 0, "counts": "b'1'"}, r'RLE counts is "b\'1\'", Python\'s text for'),
]  # fmt: skip


@pytest.mark.parametrize(("mask", "message"), MASKS)
def test_segmentations_that_are_no_masks_are_named(case, mask, message):
    """pycocotools would end in a traceback, or with the process, or in a wrong AP."""

    def change(data):
        for annotation in data["annotations"][:2]:
            size = size_of(data, annotation)
            is_rle = isinstance(mask, dict) and mask.get("size") == 0
            annotation["segmentation"] = dict(mask, size=size) if is_rle else mask

    prefix = r"^.*\.json: cannot be evaluated \(\d+ annotations read\): no usable mask "
    prefix += r"\(.* --metric bbox, .*\): 2, the first: annotation \d+ \("
    assert_refused(case, change, prefix + message, True)
    written = case(31, change=lambda data, results: change(data))
    assert len(load_ground_truth(written.truth_path).areas)  # boxes can be evaluated


def test_box_only_files_and_images_without_a_size_have_no_masks(case):
    def drop(data, results):
        for annotation in data["annotations"]:
            del annotation["segmentation"]

    written = case(31, change=drop)
    number = len(written.data["annotations"])
    with pytest.raises(ValueError, match=rf"--metric bbox.*: {number}, the first: ann"):
        load_ground_truth(written.truth_path, with_masks=True)
    assert len(load_ground_truth(written.truth_path).areas) == number

    def change(data):
        data["images"][0]["height"] = 0

    assert_refused(case, change, "its image has no height and width", True)


@pytest.mark.parametrize("outside", [0.5, 30, 3_000, 99_999])
def test_polygons_are_clipped_as_by_pycocotools(outside):
    rng = np.random.default_rng(0)
    for _ in range(20 if outside < 9_999 else 1):
        polygon = rng.uniform(-outside, 60 + outside, 2 * rng.integers(3, 9)).tolist()
        expected = mask_utils.frPyObjects([polygon], 60, 80)[0]["counts"]
        assert encode([polygon], 60, 80) == expected
        # Those with fewer corners cover nothing.
        assert encode([[1, 1, 30, 20], [5, 5], [], polygon], 60, 80) == expected


@pytest.mark.parametrize("counts", ["123", [1, 2]])
def test_damaged_masks_in_annotations_are_refused(case, counts):
    def damage(data):
        for annotation in data["annotations"][:2]:
            size = size_of(data, annotation)
            annotation["segmentation"] = dict(size=size, counts=counts)

    assert_refused(
        case,
        damage,
        r"damaged mask, .*: 2, the first: annotation \d+, annotation",
        True,
    )


def test_annotations_before_images_and_gzip(case, tmp_path):
    written = case(1003, with_masks=True)
    expected = load_ground_truth(written.truth_path, with_masks=True)
    reordered = dict(reversed(written.data.items()))
    path = tmp_path / "reordered.json.gz"
    path.write_bytes(gzip.compress(json.dumps(reordered).encode()))
    other = load_ground_truth(path, with_masks=True)
    for name in (
        "image_ids",
        "class_ids",
        "judged_pairs",
        "image_index",
        "class_index",
        "boxes",
        "areas",
    ):
        np.testing.assert_array_equal(
            getattr(other, name), getattr(expected, name), name
        )
    masks = [truth.masks.compact().buffer.tobytes() for truth in (other, expected)]
    assert masks[0] == masks[1]
    reordered["annotations"][0]["segmentation"] = 7
    path.write_text(json.dumps(reordered))
    with pytest.raises(ValueError, match=r"annotation \d+ \(segmentation is 7; exp"):
        load_ground_truth(path, with_masks=True)


def test_labels_follow_the_order_of_the_file(case):
    written = case(12)
    truth = load_ground_truth(written.truth_path)
    in_file = [category["id"] for category in written.data["categories"]]
    assert in_file != sorted(in_file)
    assert truth.class_ids[truth.label_to_class].tolist() == in_file
    names = [category["name"] for category in written.data["categories"]]
    assert [truth.class_names[index] for index in truth.label_to_class] == names


# ----------------------------------------------------------------------- results


def test_results_are_read_unchanged(case):
    written = case(1001, with_masks=True)
    truth = load_ground_truth(written.truth_path)
    dets = read_results(written.results_path, truth, with_masks=True)
    assert truth.image_ids[dets.image_index].tolist() == [
        r["image_id"] for r in written.results
    ]
    assert dets.scores.tolist() == [r["score"] for r in written.results]
    assert dets.boxes.tolist() == [r["bbox"] for r in written.results]
    judged = truth.is_judged(truth.pairs(dets.image_index, dets.class_index))
    assert judged.any() and not judged.all()
    for index, result in enumerate(written.results):
        (rle,) = dets.masks.rles(index, index + 1, 1, 1)
        expected = result["segmentation"]["counts"].encode() if judged[index] else b""
        assert rle["counts"] == expected


def test_all_errors_in_results_are_reported_at_once(case):
    def spoil(data, results):
        image = data["images"][0]
        (size, here) = ([image["height"], image["width"]], image["id"])
        data["categories"][0]["id"] = 77
        image["neg_category_ids"] = [77]  # so that masks are read
        good = dict(image_id=here, category_id=77, score=0.5, bbox=[0, 0, 4, 4])
        data["annotations"].clear()
        empty = mask_utils.encode(np.zeros(size, np.uint8, order="F"))
        good["segmentation"] = dict(size=size, counts=empty["counts"].decode())
        results[:] = [copy.deepcopy(dict(good, id=i)) for i in range(20)]
        for index in (1, 2, 3, 4):
            results[index]["image_id"] = -index
        results[5]["category_id"] = 99_999
        results[6]["score"] = float("nan")
        results[7]["score"] = float("-inf")
        results[8]["bbox"] = [0, 0, -4, 4]
        results[9]["bbox"] = [0, float("inf"), 4, 4]
        results[10]["segmentation"] = dict(size=[7, 9], counts="abc")
        results[11]["id"] = results[12]["id"] = 3
        results[13]["segmentation"]["counts"] = "123"

    written = case(1002, with_masks=True, change=spoil)
    truth = load_ground_truth(written.truth_path)
    with pytest.raises(ValueError) as caught:
        read_results(written.results_path, truth, with_masks=True)
    text = str(caught.value)
    image = written.results[10]["image_id"]
    assert "\n" not in text
    for expected in (
        f"{written.results_path}: cannot be evaluated (20 detections read): ",
        "unknown image_id: 4, the first: result 2 (-1), result 3 (-2), result 4 (-3);",
        "unknown category_id: 1, the first: result 6 (99999)",
        "score is not finite: 2, the first: result 7",
        "nan, result 8",
        "box of negative size (x, y, width, height): 1, the first: result 9",
        "[0.0, 0.0, -4.0, 4.0]",
        "box is not finite: 1, the first: result 10",
        "no usable mask (mend the file, or evaluate boxes with --metric bbox, in a "
        f"config metric='bbox'): 1, the first: result 11 (image {image}) (RLE size is "
        "[7, 9] in an image of ",
        "damaged mask, an RLE that does not fill its image: 1, the first: result 14 "
        f"(image {image})",
        "id of another result: 2, the first: result 12 (id 3), result 13 (id 3)",
    ):
        assert expected in text, text


GOOD = dict(image_id=1, category_id=1, bbox=[1, 2, 3, 4], score=0.5)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (7, "result 1: expected an object {...}, found 7"),
        (None, "result 1: expected an object {...}, found null"),
        ({"image_id": 1, "bbox": [0] * 4}, "result 1: has no category_id"),
        (dict(GOOD, bbox=[1, 2, 3]), "bbox is [1, 2, 3]; expected 4 numbers [x, y, "),
        (dict(GOOD, bbox=[1, 2, 3, None]), "bbox is null; expected a number"),
        (dict(GOOD, bbox="1234"), 'bbox is "1234"; expected 4 numbers'),
        (dict(GOOD, image_id="x"), 'image_id is "x"; expected a whole number'),
        (dict(GOOD, category_id=2**63), "category_id is 9223372036854775808; expected"),
        (dict(GOOD, category_id=1.5), "category_id is 1.5; expected a whole number"),
        (dict(GOOD, id="a"), 'id is "a"; expected a whole number'),
        (dict(GOOD, score="high"), 'score is "high"; expected a number'),
        (dict(GOOD, score=10**400), "score is not finite: 1, the first: result 1 "),
        (dict(image_id=1, category_id=1, bbox=[1] * 4), "result 1: has no score"),
    ],
)  # fmt: skip
def test_results_of_another_form_are_refused(case, item, message):
    written = case(5)
    truth = load_ground_truth(written.truth_path)
    written.results_path.write_text(json.dumps([item]))
    with pytest.raises(ValueError, match=re.escape(message)):
        read_results(written.results_path, truth)


def test_a_fault_in_a_later_result_is_reported_with_its_position(case):
    written = case(5)
    truth = load_ground_truth(written.truth_path)
    results = written.results[:3]
    written.results_path.write_text(json.dumps([*results, dict(results[0], score="x")]))
    with pytest.raises(ValueError, match=r"json: result 4: score is"):
        read_results(written.results_path, truth)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("is_judged", [False, True])
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (lambda counts: counts[:-1], r"damaged mask, .*: 1, the first: result {row} "),
        (lambda counts: str(counts.encode()), r"no usable mask .*: 1, .*Python's text"),
        (
            lambda counts: "",
            r"no usable .*result {row} \(image .*RLE counts is",
        ),
    ],
)
def test_damaged_masks_in_results_are_refused(
    case, counts, message, is_judged, zipped, monkeypatch
):
    """Also those that nothing decodes, plain and gzip, in any piece of the file."""
    monkeypatch.setattr(results, "_CHECKED_AT_ONCE", 7)
    written = case(1001, with_masks=True)
    truth = load_ground_truth(written.truth_path)
    dets = read_results(written.results_path, truth, with_masks=True)
    judged = truth.is_judged(truth.pairs(dets.image_index, dets.class_index))
    row = np.flatnonzero(judged == is_judged)[-1]
    rle = written.results[row]["segmentation"]
    rle["counts"] = counts(rle["counts"])
    text = json.dumps(written.results).encode()
    written.results_path.write_bytes(gzip.compress(text) if zipped else text)
    with pytest.raises(ValueError, match=message.format(row=row + 1)):
        read_results(written.results_path, truth, with_masks=True)
    read_results(written.results_path, truth)  # boxes need no masks


def test_results_without_masks_cannot_be_evaluated_as_masks(case):
    written = case(5)
    with pytest.raises(ValueError, match="--metric bbox"):
        read_results(
            written.results_path, load_ground_truth(written.truth_path), with_masks=True
        )


def test_results_without_boxes_get_the_boxes_of_the_masks(case):
    written = case(1007, with_masks=True)
    assert "bbox" in written.results[0]
    truth = load_ground_truth(written.truth_path)
    for result in written.results:
        del result["bbox"]
    written.results_path.write_text(json.dumps(written.results))
    dets = read_results(written.results_path, truth)
    judged = truth.is_judged(truth.pairs(dets.image_index, dets.class_index))
    for index in np.flatnonzero(judged):
        rle = written.results[index]["segmentation"]
        assert dets.areas[index] == mask_utils.area(rle)
        assert dets.boxes[index].tolist() == mask_utils.toBbox(rle).tolist()


def test_written_results_are_those_that_were_read(case, tmp_path):
    written = case(1007, with_masks=True)
    truth = load_ground_truth(written.truth_path)
    dets = read_results(written.results_path, truth, with_masks=True)
    judged = np.flatnonzero(
        truth.is_judged(truth.pairs(dets.image_index, dets.class_index))
    )
    path = tmp_path / "new" / "out.json"

    def pieces():
        for rows in (judged[:3], judged[3:3], judged[3:]):
            yield dets.take(rows)
        assert not path.exists()  # until it is complete

    write_results(path, truth, pieces())
    assert json.loads(path.read_text()) == [written.results[i] for i in judged]
    assert list(path.parent.iterdir()) == [path]


# -------------------------------------------------------------------------- masks


def test_packed_masks():
    counts = [b"abc", b"", b"defgh", b"i"]
    masks = PackedMasks.pack(counts)

    def counts_of(packed):
        return [rle["counts"] for rle in packed.rles(0, len(packed), 2, 3)]

    assert counts_of(masks) == counts
    some = masks.take(np.array([2, 0]))
    assert counts_of(some) == [b"defgh", b"abc"]
    assert counts_of(some.compact()) == counts_of(some)
    assert len(some.compact().buffer) == 8
    joined = PackedMasks.concatenate([some, masks])
    assert counts_of(joined) == counts_of(some) + counts
    assert counts_of(PackedMasks.pack([])) == []
    assert masks.rles(0, 1, 2, 3)[0]["size"] == [2, 3]


def test_all_forms_of_a_segmentation_give_the_same_mask():
    bitmap = np.zeros((6, 8), np.uint8, order="F")
    bitmap[1:4, 2:7] = 1
    rle = mask_utils.encode(bitmap)
    uncompressed = dict(size=[6, 8], counts=[13, 3, 3, 3, 3, 3, 3, 3, 3, 3, 8])
    polygon = [[2, 1, 7, 1, 7, 4, 2, 4]]
    text = dict(rle, counts=rle["counts"].decode())
    for form in (rle, text, uncompressed, polygon):
        assert encode(form, 6, 8) == rle["counts"]
        np.testing.assert_array_equal(decode(form, 6, 8), bitmap)
    for damaged in (dict(rle, counts=rle["counts"][:-1]), dict(rle, counts=[5, 5])):
        with pytest.raises(ValueError, match="damaged mask"):
            decode(damaged, 6, 8)
    area, box = measure(
        PackedMasks.pack([rle["counts"], b""]), *np.array([[6, 6], [8, 8]])
    )
    assert area.tolist() == [15, 0]
    assert box.tolist() == [[2, 1, 5, 3], [0, 0, 0, 0]]


def test_damaged_rles_are_noticed():
    """pycocotools would return a wrong IoU for these, or never return."""
    rng = np.random.default_rng(0)
    counts, num_pixels = [], []
    for density in (0, 0.01, 0.3, 0.5, 1):
        for _ in range(10):
            height, width = rng.integers(1, 90, 2)
            bitmap = (rng.random((height, width)) < density).astype(np.uint8)
            counts.append(mask_utils.encode(np.asfortranarray(bitmap))["counts"])
            num_pixels.append(height * width)
    num_pixels = np.array(num_pixels)
    masks = PackedMasks.pack(counts)
    assert not find_damaged(masks, num_pixels).any()
    assert find_damaged(masks, num_pixels + 1).all()
    for change in (
        lambda rle: rle[:-1],
        lambda rle: rle[: len(rle) // 2],
        lambda rle: rle + b"1",
        lambda rle: b"1" + rle,
        lambda rle: rle[:-1] + b"o",  # says that another character follows
        lambda rle: b"\xff" + rle[1:],
        lambda rle: b"oooooooooooo0" + rle,
        lambda rle: rle + b"MC",  # adds a run of -3 and one of 3
    ):
        changed = [change(rle) for rle in counts]
        is_damaged = find_damaged(PackedMasks.pack(changed), num_pixels)
        assert (is_damaged | [not rle for rle in changed]).all()
    some_left_out = PackedMasks.pack([counts[20][:-1], b"", counts[21], b""])
    is_damaged = find_damaged(some_left_out, num_pixels[[20, 20, 21, 21]])
    assert is_damaged.tolist() == [True, False, False, False]
