"""Whatever is in the files: a message of one line, or lvis-api's figures.

A valid annotation file and a valid results file are damaged at random, seeds fixed.
One other process reads them all, so that a crash or a hang fails the test.
"""

import copy
import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).parents[2]
EVALUATE = """
import faulthandler, json, sys, types
sys.modules["apa_mmdet"] = package = types.ModuleType("apa_mmdet")
package.__path__ = [sys.argv[1]]
faulthandler.enable()
from apa_mmdet.evaluation import evaluate, load_ground_truth, read_results
for line in sys.stdin:
    faulthandler.dump_traceback_later(20, exit=True)
    iou_type, truth_path, results_path = json.loads(line)
    try:
        truth = load_ground_truth(truth_path, iou_type == "segm")
        dets = read_results(results_path, truth, iou_type == "segm")
        outcome = evaluate(truth, dets, iou_type, num_workers=1).summary()
    except ValueError as error:
        outcome = str(error)
    print(json.dumps(outcome), flush=True)
"""
# What Python and its libraries say of values that nobody checked.
RAW = ("NoneType", "interpreted", "subscriptable", "attribute", "literal", "codec",
       "must be real", "unpack", "iterable", "convert", "argument")  # fmt: skip
NUMBER = 30  # of each kind
SEEDS = (1001, 1003, 1004, 1007)  # of cases with results; the last without boxes
NUMBERS = [0, 3, 7.0, 12.5, 33, 60.0, -1, -50.5, 1000, 99_999.5, 3.0, 20, 48]
NUMBERS += [None, "7", "x", True, [], [7], {}, 2e8, -2e8, 1e300, 10**400, 2**31]
NUMBERS += [2**63, -(2**70), float("nan"), float("inf")]


def pick(rng, items):
    return items[rng.integers(len(items))]


def set_or_delete(rng, container, key, values):
    """Delete an entry, or give it another value."""
    if rng.random() < 0.15:
        del container[key]
    else:
        container[key] = copy.deepcopy(pick(rng, values))


def change_text(rng, text):
    """Truncate a text, or change a character or two of it."""
    at = int(rng.integers(len(text)))
    return pick(
        rng,
        [text[:-1], text[:at], text[at + 1 :], text[:at] + text[at + 1 :],
         text[:at] + pick(rng, "0Oo1 \u00e9\x00{") + text[at + 1 :],
         text + "0", text + "MC", text * 2, str(text.encode())],
    )  # fmt: skip


def segmentations(rng, data, results, form):
    """Return an entry with a segmentation of this form."""
    lists = [data["annotations"], results]
    if form is list:
        lists.pop()
    return pick(
        rng,
        [e for e in pick(rng, lists) if isinstance(e["segmentation"], form)],
    )


def damage_rle(rng, data, results):
    rle = segmentations(rng, data, results, dict)["segmentation"]
    if rng.random() < 0.7:
        rle["counts"] = change_text(rng, rle["counts"])
    elif rng.random() < 0.5:
        runs = [int(n) for n in rng.integers(0, 99, 9)]
        runs.append(rle["size"][0] * rle["size"][1] - sum(runs))
        set_or_delete(rng, runs, rng.integers(10), NUMBERS)
        rle["counts"] = runs
    else:
        set_or_delete(rng, rle["size"], rng.integers(2), NUMBERS)


def damage_polygon(rng, data, results):
    polygon = pick(rng, segmentations(rng, data, results, list)["segmentation"])
    if rng.random() < 0.2:  # back and forth, so far or often that it takes all memory
        polygon[:] = [0, 0, 9e4, 9e4] * int(rng.integers(2, 60))
        return
    for _ in range(rng.integers(1, 3)):
        set_or_delete(rng, polygon, rng.integers(len(polygon)), NUMBERS)


def replace_mask(rng, data, results):
    forms = [[], [[]], [[1, 2]], [[1, 2, 3, 4]], [[1, 2, 3]], [{}], [{"counts": "1"}]]
    forms += [None, 7, "mask", True, {}, [None], [[None] * 6], [1, 2, 3, 4, 5, 6]]
    for counts in ("", None, [], {}, 7, [-5, 50], [[1, 2]], [None], ["4"], [1e300]):
        forms.append({"counts": counts})
    entry = segmentations(rng, data, results, (dict, list))
    set_or_delete(rng, entry, "segmentation", forms)
    form = entry.get("segmentation")
    if isinstance(form, dict) and rng.random() < 0.8:
        image = next(i for i in data["images"] if i["id"] == entry["image_id"])
        form["size"] = [image["height"], image["width"]]
    elif isinstance(form, list) and rng.random() < 0.3:
        form.append([0, 0, 9, 0, 9, 9])


def damage_ids(rng, data, results):
    entries = pick(
        rng, [data["images"], data["categories"], data["annotations"], results]
    )
    names = [name for name in entries[0] if name == "id" or name.endswith("_id")]
    name = pick(rng, names)
    if rng.random() < 0.5:
        set_or_delete(rng, pick(rng, entries), name, NUMBERS)
        return
    retype = pick(rng, [float, float, str, lambda i: -i, lambda i: i * 1e9])
    for entry in entries:
        entry[name] = retype(entry[name])


def damage_anything(rng, data, results):
    values = [*NUMBERS, "r", "rare", [None], [{}], ["x"], [[]]]
    lists = [data["images"], data["categories"], data["annotations"], results]
    entries, number = pick(rng, lists), rng.random()
    if number < 0.2:
        set_or_delete(rng, data, pick(rng, [*data]), values)
    elif number < 0.4:
        set_or_delete(rng, entries, rng.integers(len(entries)), values)
    else:
        entry = pick(rng, entries)
        name = pick(rng, [*entry])
        if isinstance(entry[name], list) and entry[name] and rng.random() < 0.5:
            set_or_delete(rng, entry[name], rng.integers(len(entry[name])), values)
        else:
            set_or_delete(rng, entry, name, values)


def damage_text(rng, text):
    """Truncate the text of a file, or change a character or two of it."""
    at = int(rng.integers(len(text)))
    return pick(
        rng,
        [text[:at], text[:at] + pick(rng, '"[]{},:0-e.x\\') + text[at + 1 :],
         text[:at] + text[at + 1 :], text[:-1] + "," + text[-1], "\ufeff" + text,
         text + text, "[" * at, "", text.replace("0", "9" * 5000, 1)],
    )  # fmt: skip


KINDS = [damage_rle, damage_polygon, replace_mask, damage_ids, damage_anything]
KINDS += [damage_text]


def make_inputs(folder, kind, number, cases):
    """Yield damaged inputs: the kind of IoU, the two files and their texts."""
    for seed in range(number):
        rng = np.random.default_rng([KINDS.index(kind), seed])
        written = pick(rng, cases)
        contents = copy.deepcopy((written.data, written.results))
        if kind is not damage_text:
            kind(rng, *contents)
        texts = [json.dumps(content) for content in contents]
        if kind is damage_text:
            which = rng.integers(2)
            texts[which] = kind(rng, texts[which])
        iou_type = pick(rng, ["bbox", "segm"]) if kind in KINDS[3:] else "segm"
        paths = [folder / f"{kind.__name__}_{seed}_{end}.json" for end in ("gt", "dt")]
        for path, text in zip(paths, texts):
            text = text.encode()
            path.write_bytes(gzip.compress(text) if rng.random() < 0.3 else text)
        yield iou_type, paths, texts


def test_damaged_files_are_refused_or_evaluated_as_by_lvis_api(
    case, lvis_api, tmp_path
):
    cases = [case(seed, with_masks=True) for seed in SEEDS]
    inputs = [
        each for kind in KINDS for each in make_inputs(tmp_path, kind, NUMBER, cases)
    ]
    lines = [json.dumps([each[0], *map(str, each[1])]) for each in inputs]
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE, REPO / "apa_mmdet"],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=120,
    )
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert not done.returncode, (lines[len(outcomes)], done.stderr)
    assert not done.stderr
    num_compared = 0
    for (iou_type, paths, texts), outcome in zip(inputs, outcomes):
        if isinstance(outcome, str):
            assert outcome.startswith(tuple(f"{path}: " for path in paths)), outcome
            assert outcome.isprintable() and len(outcome) < 1500, outcome
            assert not [phrase for phrase in RAW if phrase in outcome], outcome
            continue
        data, results = (json.loads(text.lstrip("\ufeff")) for text in texts)
        for number, annotation in enumerate(data["annotations"]):
            if annotation["id"] <= 0:  # lvis-api takes a match with 0 for none
                annotation["id"] = 10**6 + number
        paths[0].write_text(json.dumps(data))
        try:
            expected = lvis_api(paths[0], results, iou_type).figures
        except Exception:  # it does not accept this input
            continue
        num_compared += 1
        assert outcome == pytest.approx(expected, abs=1e-9), paths
    assert len(outcomes) == len(inputs)
    num_refused = sum(isinstance(outcome, str) for outcome in outcomes)
    assert num_refused > 2 * NUMBER, num_refused
    assert num_compared > NUMBER / 2, num_compared
