"""Annotation and result files: read in a stream, and refused with reasons."""

import gzip
import json

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from apa_mmdet.evaluation import json_stream
from apa_mmdet.evaluation.ground_truth import load_ground_truth
from apa_mmdet.evaluation.json_stream import iter_array, iter_members
from apa_mmdet.evaluation.masks import PackedMasks, encode, measure
from apa_mmdet.evaluation.results_file import ResultsWriter, read_results

VALUES = [
    [],
    [1, 22.5, -3e-7, 1234567890123],
    ["a, b] c", 'quote " and \\ and \u00e9 \u2192 \U0001f600', ""],
    [{"x": [1, {"y": None}]}, True, False, None, [[]], {}],
    [dict(image_id=i, bbox=[i / 7] * 4, text="}{" * (i % 9)) for i in range(300)],
]


@pytest.fixture(params=[1, 7, 64, 1 << 22])
def block(request, monkeypatch):
    """Read in blocks of so many characters, so that they end anywhere."""
    monkeypatch.setattr(json_stream, "_BLOCK", request.param)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("zipped", [False, True])
def test_streams_equal_json(tmp_path, block, indent, zipped):
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


def test_every_cut_is_noticed(tmp_path, block):
    path = tmp_path / "cut.json"
    text = json.dumps([dict(a="b\\c", d=[1.5, None]), dict(e=-12)])
    for length in range(len(text)):
        path.write_text(text[:length])
        with pytest.raises(ValueError, match=f"cut short at character {length}|end of"):
            list(iter_array(path))
    second = text.index('{"e"')
    path.write_text(text[: second + 3])
    with pytest.raises(ValueError, match="after 1 complete elements.*copy the file"):
        list(iter_array(path))


def test_a_cut_gzip_is_noticed(tmp_path):
    path = tmp_path / "cut.json.gz"
    whole = gzip.compress(json.dumps(VALUES[4]).encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=r"cut short at character \d+,\d+, after 1\d\d"
    ):
        list(iter_array(path))
    path.write_bytes(whole[:200] + b"zzzzzz" + whole[206:])
    with pytest.raises(ValueError, match="cannot be read after|not JSON|cut short"):
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
def test_what_is_not_json_is_shown(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text + " " * 40)
    with pytest.raises(ValueError, match=message):
        list(iter_array(path))


def test_a_broken_file_is_not_read_to_its_end(tmp_path, monkeypatch):
    """What is wrong at the start must not bring all the rest into memory."""
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


def refused(case, change, message, with_masks=False):
    written = case(31, change=lambda data, results: change(data))
    with pytest.raises(ValueError, match=message):
        load_ground_truth(written.truth, with_masks)


def test_annotation_files_are_refused(case):
    def set_first(key, **values):
        return lambda data: [item.update(values) for item in data[key][:2]]

    def drop(key, name):
        return lambda data: data[key][0].pop(name)

    refused(case, set_first("images", id=5), r"1 image ids are used more than.*\[5\]")
    refused(case, set_first("annotations", id=5), "1 annotation ids are used more")
    refused(case, set_first("categories", id=5), "1 category ids are used more")
    refused(
        case,
        set_first("annotations", image_id=-3),
        r"2 of \d+ annotations name an unknown image.*image_id -3",
    )
    refused(case, set_first("annotations", category_id=-3), "unknown category")
    refused(case, set_first("annotations", bbox=[0, 0, -1, 5]), "negative size")
    refused(case, set_first("annotations", bbox=[0, 0, 5]), "a bbox of 3 numbers")
    refused(case, set_first("annotations", area=float("nan")), "not finite")
    refused(case, set_first("annotations", area="big"), "annotation .*: must be real")
    refused(case, drop("annotations", "area"), "has no 'area'")
    refused(case, drop("images", "neg_category_ids"), "give an LVIS annotation file")
    refused(case, drop("categories", "frequency"), "has frequency None; expected 'r'")
    refused(case, lambda data: data.update(categories=[]), "no categories")
    refused(case, lambda data: data.update(images=[]), "no images")
    rle = dict(size=[3, 4], counts=[12])
    refused(
        case, set_first("annotations", segmentation=rle), "a mask of 3 x 4 in", True
    )
    refused(case, set_first("annotations", segmentation=7), "a segmentation of", True)
    refused(case, drop("annotations", "segmentation"), "has no 'segmentation'", True)
    refused(case, set_first("images", height=0), "has no height and width", True)


def test_annotations_before_images_and_gzip(case, tmp_path):
    written = case(1003, with_masks=True)
    usual = load_ground_truth(written.truth, with_masks=True)
    backwards = dict(reversed(written.data.items()))
    path = tmp_path / "backwards.json.gz"
    path.write_bytes(gzip.compress(json.dumps(backwards).encode()))
    other = load_ground_truth(path, with_masks=True)
    for name in (
        "image_ids",
        "class_ids",
        "judged",
        "image",
        "category",
        "box",
        "area",
    ):
        np.testing.assert_array_equal(getattr(other, name), getattr(usual, name), name)
    assert (
        other.masks.compact().buffer.tobytes() == usual.masks.compact().buffer.tobytes()
    )


def test_labels_go_by_the_order_in_the_file(case):
    written = case(12)
    truth = load_ground_truth(written.truth)
    in_file = [category["id"] for category in written.data["categories"]]
    assert in_file != sorted(in_file)
    assert truth.class_ids[truth.labels].tolist() == in_file
    names = [category["name"] for category in written.data["categories"]]
    assert [truth.names[index] for index in truth.labels] == names


# ----------------------------------------------------------------------- results


def test_results_are_read_as_they_are(case):
    written = case(1001, with_masks=True)
    truth = load_ground_truth(written.truth)
    found = read_results(written.found, truth, with_masks=True)
    assert truth.image_ids[found.image].tolist() == [
        r["image_id"] for r in written.results
    ]
    assert found.score.tolist() == [r["score"] for r in written.results]
    assert found.box.tolist() == [r["bbox"] for r in written.results]
    judged = truth.is_judged(truth.pair(found.image, found.category))
    assert judged.any() and not judged.all()
    for index, result in enumerate(written.results):
        (rle,) = found.masks.rles(index, index + 1, 1, 1)
        expected = result["segmentation"]["counts"].encode() if judged[index] else b""
        assert rle["counts"] == expected


def test_all_that_is_wrong_with_results_is_said_at_once(case):
    def spoil(data, results):
        image = data["images"][0]
        (size, here) = ([image["height"], image["width"]], image["id"])
        data["categories"][0]["id"], only = 77, 77
        good = dict(image_id=here, category_id=only, score=0.5, bbox=[0, 0, 4, 4])
        data["annotations"].clear()
        empty = mask_utils.encode(np.zeros(size, np.uint8, order="F"))
        good["segmentation"] = dict(size=size, counts=empty["counts"].decode())
        results[:] = [dict(good, id=i) for i in range(20)]
        for index in (1, 2, 3, 4):
            results[index]["image_id"] = -index
        results[5]["category_id"] = 99_999
        results[6]["score"] = float("nan")
        results[7]["score"] = float("-inf")
        results[8]["bbox"] = [0, 0, -4, 4]
        results[9]["bbox"] = [0, float("inf"), 4, 4]
        results[10]["segmentation"] = dict(size=[7, 9], counts="abc")
        results[11]["id"] = results[12]["id"] = 3

    written = case(1002, with_masks=True, change=spoil)
    truth = load_ground_truth(written.truth)
    with pytest.raises(ValueError) as caught:
        read_results(written.found, truth, with_masks=True)
    text = str(caught.value)
    image = written.results[10]["image_id"]
    for expected in (
        f"{written.found}: cannot be evaluated (20 detections read)",
        "unknown image_id: 4, the first: result 1 (-1), result 2 (-2), result 3 (-3)\n",
        "unknown category_id: 1, the first: result 5 (99999)",
        "score is not finite: 2, the first: result 6",
        "nan, result 7",
        "box of negative size (x, y, width, height): 1, the first: result 8",
        "[0.0, 0.0, -4.0, 4.0]",
        "box is not finite: 1, the first: result 9",
        "mask of another size than its image (height x width): 1, the first: result "
        f"10 7 x 9 in image {image} of ",
        "id of another result: 2, the first: result 11 (id 3), result 12 (id 3)",
    ):
        assert expected in text, text


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (7, "result 0 is not what is expected.*: 7; expected image_id"),
        ({"image_id": 1, "bbox": [0] * 4}, "no 'category_id'"),
        (dict(image_id=1, category_id=1, bbox=[1, 2, 3], score=1), "not enough values"),
        (dict(image_id="x", category_id=1, bbox=[1] * 4, score=1), "'str'|integer"),
        (dict(image_id=1, category_id=1, bbox=[1] * 4, score="high"), "real number"),
        (dict(image_id=1, category_id=1, bbox=[1] * 4), "no 'score'"),
    ],
)
def test_results_of_another_form(case, item, message):
    written = case(5)
    written.found.write_text(json.dumps([item]))
    truth = load_ground_truth(written.truth)
    with pytest.raises(ValueError, match=message):
        read_results(written.found, truth)


def test_boxes_alone_cannot_be_evaluated_as_masks(case):
    written = case(5)
    with pytest.raises(ValueError, match="--metric bbox"):
        read_results(written.found, load_ground_truth(written.truth), with_masks=True)


def test_results_without_boxes_get_those_of_the_masks(case):
    written = case(1007, with_masks=True)
    assert "bbox" in written.results[0]
    truth = load_ground_truth(written.truth)
    for result in written.results:
        del result["bbox"]
    written.found.write_text(json.dumps(written.results))
    found = read_results(written.found, truth)
    judged = truth.is_judged(truth.pair(found.image, found.category))
    for index in np.flatnonzero(judged):
        rle = written.results[index]["segmentation"]
        assert found.area[index] == mask_utils.area(rle)
        assert found.box[index].tolist() == mask_utils.toBbox(rle).tolist()


def test_results_writer(case, tmp_path):
    written = case(1006 + 1, with_masks=True)
    truth = load_ground_truth(written.truth)
    found = read_results(written.found, truth, with_masks=True)
    judged = np.flatnonzero(truth.is_judged(truth.pair(found.image, found.category)))
    path = tmp_path / "new" / "out.json"
    writer = ResultsWriter(path)
    for part in (judged[:3], judged[3:3], judged[3:]):
        writer.write(truth, found.take(part))
    assert not path.exists()  # until it is complete
    writer.close()
    assert json.loads(path.read_text()) == [written.results[i] for i in judged]
    assert list(path.parent.iterdir()) == [path]


# -------------------------------------------------------------------------- masks


def test_packed_masks():
    counts = [b"abc", b"", b"defgh", b"i"]
    masks = PackedMasks.pack(counts)

    def back(packed):
        return [rle["counts"] for rle in packed.rles(0, len(packed), 2, 3)]

    assert back(masks) == counts
    some = masks.take(np.array([2, 0]))
    assert back(some) == [b"defgh", b"abc"]
    assert back(some.compact()) == back(some)
    assert len(some.compact().buffer) == 8
    both = PackedMasks.concatenate([some, masks])
    assert back(both) == back(some) + counts
    assert back(PackedMasks.pack([])) == []
    assert masks.rles(0, 1, 2, 3)[0]["size"] == [2, 3]


def test_all_forms_of_a_segmentation_give_one_mask():
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
