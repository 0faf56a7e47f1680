"""Checkpoints load safely, lvis runs, and numpy itself does not change."""

import argparse
import io
import json
import os
import pickle
import sys

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner, load_checkpoint
from mmengine.runner.checkpoint import load_from_local

import apa_mmdet  # noqa: F401
from apa_mmdet import compat
from apa_mmdet.compat import stand_ins
from apa_mmdet.compat.multimodal import leave_out_broken_multimodal

weights_only_by_default = pytest.mark.skipif(
    torch.__version__ < (2, 6), reason="torch trusts every file below 2.6"
)


class TinyModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, inputs, mode="tensor"):
        return {"loss": self.linear(torch.stack(inputs)).square().mean()}


def make_runner(work_dir, max_iters, **kwargs):
    return Runner(
        model=TinyModel(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=[dict(inputs=torch.tensor([i, 1.0])) for i in range(4)],
            sampler=dict(type="DefaultSampler", shuffle=False),
            collate_fn=dict(type="pseudo_collate"),
            batch_size=2,
        ),
        train_cfg=dict(by_epoch=False, max_iters=max_iters),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9)),
        param_scheduler=dict(type="CosineAnnealingLR", by_epoch=False),
        default_hooks=dict(
            logger=dict(type="LoggerHook", interval=1),
            checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=1),
        ),
        experiment_name=f"compat-{work_dir.name}-{max_iters}",
        log_level="ERROR",
        **kwargs,
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The checkpoint that a real run writes after two iterations."""
    runner = make_runner(tmp_path_factory.mktemp("run"), 2)
    runner.message_hub.update_info("array", np.arange(6, dtype=np.int16).reshape(2, 3))
    runner.message_hub.update_info("empty", np.zeros(0))
    runner.message_hub.update_info("number", np.float32(0.5))
    runner.train()
    return os.path.join(runner.work_dir, "iter_2.pth")


def roundtrip(obj, **kwargs):
    buffer = io.BytesIO()
    torch.save(obj, buffer, **kwargs)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


class Call:
    """Pickles as a call of `function`, with a state to set afterwards."""

    def __init__(self, function, *args, state=None):
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.parts


def test_checkpoint_of_a_run_is_read(checkpoint):
    loaded = torch.load(checkpoint, weights_only=True)
    info = loaded["message_hub"]["runtime_info"]
    np.testing.assert_array_equal(info["array"], [[0, 1, 2], [3, 4, 5]])
    assert info["array"].dtype == np.int16
    assert info["empty"].shape == (0,)
    assert info["number"] == 0.5 and type(info["number"]) is np.float32
    losses = loaded["message_hub"]["log_scalars"]["train/loss"]
    assert type(losses) is HistoryBuffer
    assert type(losses.data[0]) is np.ndarray
    assert len(losses.data[0]) == 2
    assert losses.statistics("mean") == losses.data[0].mean()


def test_load_checkpoint_and_resume(checkpoint, tmp_path):
    model = TinyModel()
    load_checkpoint(model, checkpoint)
    saved = torch.load(checkpoint, weights_only=True)
    assert torch.equal(model.linear.weight, saved["state_dict"]["linear.weight"])

    runner = make_runner(tmp_path, 3, load_from=checkpoint, resume=True)
    runner.train()
    assert runner.iter == 3
    assert len(runner.message_hub.get_scalar("train/loss").data[0]) == 3
    # What was read from a checkpoint is written as plain numpy.
    with open(checkpoint, "rb") as file:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    assert names == []
    again = torch.load(tmp_path / "iter_3.pth", weights_only=True)
    assert again["message_hub"]["runtime_info"]["array"].tolist() == [
        [0, 1, 2],
        [3, 4, 5],
    ]


@pytest.mark.parametrize("load", [torch.load, load_from_local])
@weights_only_by_default
def test_malicious_checkpoint_does_not_run(load, tmp_path):
    touched = tmp_path / "touched"
    path = tmp_path / "evil.pth"
    weights = {"linear.weight": torch.zeros(1, 2)}
    torch.save(
        {"state_dict": weights, "meta": Call(os.system, f"touch {touched}")}, path
    )
    with pytest.raises(pickle.UnpicklingError):
        load(str(path), map_location="cpu")
    assert not touched.exists()


def test_malicious_checkpoint_is_refused_through_resume(tmp_path, checkpoint):
    touched = tmp_path / "touched"
    content = torch.load(checkpoint, weights_only=True)
    content["optimizer"] = Call(os.system, f"touch {touched}")
    torch.save(content, tmp_path / "evil.pth")
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(TinyModel(), str(tmp_path / "evil.pth"))
    runner = make_runner(tmp_path, 3)
    with pytest.raises(pickle.UnpicklingError):
        runner.resume(str(tmp_path / "evil.pth"))
    assert not touched.exists()


def test_namespace_beside_the_weights(tmp_path):
    path = tmp_path / "official.pth"
    state = {"linear.weight": torch.ones(1, 2), "linear.bias": torch.zeros(1)}
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1, depth=50)}, path)
    loaded = load_from_local(str(path), "cpu")
    assert type(loaded["args"]) is argparse.Namespace
    assert loaded["args"] == argparse.Namespace(lr=0.1, depth=50)
    assert torch.equal(loaded["model"]["linear.weight"], torch.ones(1, 2))


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (HistoryBuffer, "__class__"),
        (HistoryBuffer, "__init__"),
        (HistoryBuffer, "register_statistics"),
        (HistoryBuffer, "_statistics_methods"),
        (torch.Tensor, "mean"),
        (argparse.Namespace, "__init__"),
    ],
)
def test_getattr_is_limited_to_statistics(owner, name):
    with pytest.raises(pickle.UnpicklingError, match="only the statistics"):
        roundtrip(Call(getattr, owner, name))


def test_getattr_of_a_module_is_refused():
    with pytest.raises(pickle.UnpicklingError, match="only the statistics"):
        stand_ins.safe_getattr(os, "system")


def test_statistics_cannot_be_replaced_by_a_file(monkeypatch):
    buffer = HistoryBuffer([1.0, 3.0], [1, 1])
    file = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setitem(HistoryBuffer._statistics_methods, "mean", HistoryBuffer.max)
        torch.save(buffer, file)
    file.seek(0)
    with pytest.raises(pickle.UnpicklingError, match="statistic 'mean'"):
        torch.load(file, weights_only=True)
    assert buffer.statistics("mean") == 2.0


def test_history_buffer_with_other_content_is_refused():
    buffer = HistoryBuffer([1.0], [1])
    buffer.mean = "something else"
    with pytest.raises(pickle.UnpicklingError, match="HistoryBuffer with"):
        roundtrip(buffer)


def test_statistic_registered_by_the_user(monkeypatch):
    monkeypatch.setattr(HistoryBuffer, "_statistics_methods", {})
    HistoryBuffer.register_statistics(np.median)
    with torch.serialization.safe_globals([np.median]):
        loaded = roundtrip(HistoryBuffer([1.0, 2.0], [1, 1]))
        assert loaded.data[0].tolist() == [1, 2]
        file = io.BytesIO()
        torch.save(loaded, file)
        file.seek(0)
        del HistoryBuffer._statistics_methods["median"]
        with pytest.raises(pickle.UnpicklingError, match="register_statistics"):
            torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    "attack",
    [
        argparse.Namespace(__array_interface__=dict(data=(1, False), shape=(1,))),
        argparse.Namespace(detach=HistoryBuffer),
        Call(argparse.Namespace, 1),
        Call(HistoryBuffer, [1.0], [1]),
        # torch calls whatever stands here, and sets attributes on what it returns.
        Call(
            torch._tensor._rebuild_from_type_v2,
            Call(getattr, HistoryBuffer, "current"),
            HistoryBuffer,
            (HistoryBuffer([1.0], [1]),),
            {},
        ),
    ],
    ids=["interface", "method", "namespace call", "history call", "called statistic"],
)
def test_lookalikes_are_refused(attack):
    with pytest.raises((pickle.UnpicklingError, TypeError)):
        roundtrip(attack)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float16, ">i4", np.complex64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_and_scalars(dtype, order):
    array = np.asarray([[0, 1, 2], [3, 4, 5]], order=order).astype(dtype)
    loaded = roundtrip({"array": array, "scalar": array[1, 2], "none": array[:0]})
    np.testing.assert_array_equal(loaded["array"], array)
    # Numpy itself converts the other byte order to this machine's when it reads.
    assert loaded["array"].dtype == array.dtype.newbyteorder("=")
    assert loaded["scalar"] == array[1, 2]
    assert type(loaded["scalar"]) is type(array[1, 2])
    assert loaded["none"].shape == (0, 3)
    assert type(pickle.loads(pickle.dumps(loaded["array"]))) is np.ndarray
    loaded["array"][0, 0] = 1


@pytest.mark.parametrize(
    "names",
    [
        (b"numpy.core.multiarray", b"numpy._core.multiarray"),
        (b"numpy._core.multiarray", b"numpy.core.multiarray"),
    ],
)
def test_arrays_of_either_numpy(names):
    file = io.BytesIO()
    # The legacy format is a plain pickle, in which a name can be replaced.
    torch.save(
        [np.arange(3), np.float64(2)], file, _use_new_zipfile_serialization=False
    )
    file = io.BytesIO(file.getvalue().replace(*names))
    array, number = torch.load(file, weights_only=True)
    assert array.tolist() == [0, 1, 2] and number == 2


@pytest.mark.parametrize(
    "attack",
    [
        np.array([None, "text"], dtype=object),
        np.array(["text"]),
        np.zeros(1, dtype=[("a", "f4")]),
        # An object dtype whose flags deny that it holds objects.
        Call(np.dtype, "O8", False, True, state=(3, "|", None, None, None, -1, -1, 0)),
        Call(np.dtype, "f8", False, True, state=(3, 7, None, None, None, -1, -1, 0)),
        Call(np.dtype, "V8"),
        Call(np.dtype, ("f4", (10**6,))),
        Call(np.float64(0).__reduce__()[0], 0, b""),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_numpy_beyond_numbers_is_refused(attack):
    with pytest.raises(pickle.UnpicklingError):
        roundtrip(attack)


@pytest.mark.parametrize(
    ("shape", "data"),
    [((2,), b"1234"), ((-1,), b"1234"), ((1,), "text"), ([1], b"1234"), ((1.0,), b"")],
)
def test_array_with_data_that_does_not_fit_is_refused(shape, data):
    state = (1, shape, stand_ins.SafeDtype("f4"), False, data)
    with pytest.raises(pickle.UnpicklingError, match="numpy array"):
        stand_ins.SafeArray().__setstate__(state)


def test_onedl_has_no_unsafe_fallback(monkeypatch, tmp_path):
    from mmengine.runner import checkpoint

    def load_anyway(file, map_location=None, weights_only=None):
        return torch.load(file, map_location=map_location, weights_only=False)

    monkeypatch.setattr(checkpoint, "_safe_torch_load", load_anyway, raising=False)
    compat.refuse_untrusted_checkpoints()
    assert checkpoint._safe_torch_load is compat._torch_load
    path = tmp_path / "evil.pth"
    torch.save(Call(os.system, f"touch {tmp_path / 'touched'}"), path)
    with pytest.raises(pickle.UnpicklingError):
        checkpoint._safe_torch_load(path, weights_only=True)
    assert not (tmp_path / "touched").exists()


def test_applying_a_repair_twice_changes_nothing():
    import lvis.eval

    before = set(torch.serialization.get_safe_globals()), lvis.eval.np
    compat.allow_mmengine_checkpoints()
    compat.restore_np_float_in_lvis()
    assert (set(torch.serialization.get_safe_globals()), lvis.eval.np) == before


def test_lvis_evaluates_on_this_numpy(tmp_path):
    import lvis.eval

    assert lvis.eval.np.float is float
    assert lvis.eval.np.zeros is np.zeros
    annotation = dict(
        images=[
            dict(id=1, neg_category_ids=[], not_exhaustive_category_ids=[], width=64)
        ],
        categories=[
            dict(id=i, name=name, frequency=name[0], instance_count=1, image_count=1)
            for i, name in enumerate(["rare", "common", "frequent"], start=1)
        ],
        annotations=[
            dict(
                id=i,
                image_id=1,
                category_id=i,
                bbox=[0.0, 0.0, 10.0 * i, 10.0],
                area=100.0 * i,
                segmentation=[[0, 0, 10 * i, 0, 10 * i, 10, 0, 10]],
            )
            for i in (1, 2, 3)
        ],
    )
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(annotation))
    # The rare class is missed; the others are detected exactly.
    results = [
        dict(image_id=1, category_id=i, bbox=[0.0, 0.0, 10.0 * i, 10.0], score=0.9)
        for i in (2, 3)
    ]
    evaluation = lvis.eval.LVISEval(str(path), results, "bbox")
    evaluation.run()
    figures = evaluation.get_results()
    assert figures["APr"] == 0
    assert figures["APc"] == figures["APf"] == pytest.approx(1)
    assert figures["AP"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("moved", [True, False])
def test_mmpretrain_beside_a_transformers_that_moved_a_function(
    moved, tmp_path, monkeypatch
):
    function = "" if moved else "def chunk(): pass"
    files = {
        "transformers/__init__.py": "class Auto: pass",
        "transformers/fn.py": function,
        "mmpretrain/__init__.py": "raise RuntimeError('this imports much')",
        "mmpretrain/utils/dependency.py": "WITH_MULTIMODAL = True",
        "mmpretrain/models/utils/tokenizer.py": "from transformers import Auto",
        "mmpretrain/models/utils/huggingface.py": "import transformers",
        "mmpretrain/models/multimodal/a/b.py": "from transformers.fn import chunk",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("mmpretrain", "transformers"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    name = "mmpretrain.utils.dependency"
    for _ in range(2):
        leave_out_broken_multimodal()
        assert (name in sys.modules) == moved
        assert not moved or not sys.modules[name].WITH_MULTIMODAL
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("mmpretrain", "transformers"):
            monkeypatch.delitem(sys.modules, name)
