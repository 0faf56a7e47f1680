"""Annotation and results files are read as streams, and refused with reasons."""

import copy
import gzip
import json

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from apa_mmdet.evaluation.core.masks import PackedMasks, encode, find_damaged, measure
from apa_mmdet.evaluation.files import json_stream
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
        ('{"a": 1}', "expected a JSON list of results, found '{"),
        ("", "expected a JSON list of results, found the end of the file"),
    ],
)
def test_the_position_of_invalid_json_is_shown(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text + " " * 40)
    with pytest.raises(ValueError, match=message):
        list(iter_array(path))


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
    assert_refused(
        case, set_first("annotations", bbox=[0, 0, 5]), "a bbox of 3 numbers"
    )
    assert_refused(case, set_first("annotations", area=float("nan")), "not finite")
    assert_refused(
        case, set_first("annotations", area="big"), "annotation .*: must be real"
    )
    assert_refused(case, drop("annotations", "area"), "has no 'area'")
    assert_refused(
        case, drop("images", "neg_category_ids"), "use an LVIS annotation file"
    )
    assert_refused(
        case, drop("categories", "frequency"), "has frequency None; expected 'r'"
    )
    assert_refused(case, lambda data: data.update(categories=[]), "no categories")
    assert_refused(case, lambda data: data.update(images=[]), "no images")
    rle = dict(size=[3, 4], counts=[12])
    assert_refused(
        case, set_first("annotations", segmentation=rle), "a mask of 3 x 4 in", True
    )
    assert_refused(
        case, set_first("annotations", segmentation=7), "a segmentation of", True
    )
    assert_refused(
        case, drop("annotations", "segmentation"), "has no 'segmentation'", True
    )
    assert_refused(case, set_first("images", height=0), "has no height and width", True)


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
    with pytest.raises(ValueError, match=r"annotation \d+: a segmentation of type int"):
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
    for expected in (
        f"{written.results_path}: cannot be evaluated (20 detections read)",
        "unknown image_id: 4, the first: result 1 (-1), result 2 (-2), result 3 (-3)\n",
        "unknown category_id: 1, the first: result 5 (99999)",
        "score is not finite: 2, the first: result 6",
        "nan, result 7",
        "box of negative size (x, y, width, height): 1, the first: result 8",
        "[0.0, 0.0, -4.0, 4.0]",
        "box is not finite: 1, the first: result 9",
        "mask of another size than its image (height x width): 1, the first: result "
        f"10 7 x 9 in image {image} of ",
        "damaged mask, an RLE that does not fill its image: 1, the first: result 13 "
        f"(image {image})",
        "id of another result: 2, the first: result 11 (id 3), result 12 (id 3)",
    ):
        assert expected in text, text


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (7, "result 0 cannot be read.*: 7; expected image_id"),
        ({"image_id": 1, "bbox": [0] * 4}, "no 'category_id'"),
        (dict(image_id=1, category_id=1, bbox=[1, 2, 3], score=1), "not enough values"),
        (dict(image_id="x", category_id=1, bbox=[1] * 4, score=1), "'str'|integer"),
        (dict(image_id=1, category_id=1, bbox=[1] * 4, score="high"), "real number"),
        (dict(image_id=1, category_id=1, bbox=[1] * 4), "no 'score'"),
    ],
)
def test_results_of_another_form_are_refused(case, item, message):
    written = case(5)
    written.results_path.write_text(json.dumps([item]))
    truth = load_ground_truth(written.truth_path)
    with pytest.raises(ValueError, match=message):
        read_results(written.results_path, truth)


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
    with pytest.raises(ValueError, match="counts are empty"):
        encode(dict(size=[2, 3], counts=""), 2, 3)
