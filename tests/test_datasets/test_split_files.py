"""Split files as they are published, and what is wrong with others."""

import json

import pytest

from apa_mmdet.datasets.split_files import read_split


def test_text(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("train/n01/a b.JPEG 0\n\ntrain/n02/c.JPEG 12\n")
    split = read_split(path)
    assert split.paths == ["train/n01/a b.JPEG", "train/n02/c.JPEG"]
    assert split.labels == [0, 12] and split.classes is None
    path.write_text("n01/a 1.jpg\nn02/c.jpg\n")
    split = read_split(path, need_labels=False)
    assert split.paths == ["n01/a 1.jpg", "n02/c.jpg"] and split.labels is None


def inaturalist(**changes):
    return (
        dict(
            images=[dict(id=7, file_name="a.jpg"), dict(id=3, file_name="b.jpg")],
            annotations=[
                dict(id=1, image_id=3, category_id=20),
                dict(id=2, image_id=7, category_id=10),
            ],
            categories=[dict(id=20, name="fox"), dict(id=10, name="elm")],
        )
        | changes
    )


def test_json_numbers_categories_by_id(tmp_path):
    path = tmp_path / "train2018.json"
    path.write_text(json.dumps(inaturalist()))
    split = read_split(path)
    assert split == (["b.jpg", "a.jpg"], [1, 0], ["elm", "fox"])
    path.write_text(json.dumps(inaturalist(categories=[])))
    assert read_split(path) == (["b.jpg", "a.jpg"], [1, 0], None)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "a.jpg 0\nb.jpg x\n", ["line 2: 'b.jpg x'", "'path label'"]),
        ("a.txt", "a.jpg\nb.jpg 1\n", ["line 2: 'b.jpg 1'", "as in other lines"]),
        ("a.txt", "a.jpg\n", ["line 1: 'a.jpg'", "integer label"]),
        ("a.txt", "a.jpg -1\n", ["line 1", "integer label >= 0"]),
        ("a.txt", "\n", ["has no images"]),
        ("a.json", "{}", ["no 'images'", "expected images with id and file_name"]),
        ("a.json", "[1", ["not a split file in JSON"]),
        (
            "a.json",
            inaturalist(annotations=[dict(image_id=4, category_id=10)]),
            ["annotations[0].image_id is 4", "any of its images"],
        ),
        (
            "a.json",
            inaturalist(annotations=[dict(image_id=3, category_id=5)]),
            ["annotations[0].category_id is 5", "any of its categories"],
        ),
        (
            "a.json",
            inaturalist(annotations=[dict(image_id=3, category_id=10)] * 2),
            ["2 annotations of fewer images"],
        ),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError) as error:
        read_split(path)
    message = str(error.value)
    assert "\n" not in message and message.startswith(str(path))
    for word in words:
        assert word in message


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such split file.*set ann_file"):
        read_split(tmp_path / "none.txt")
