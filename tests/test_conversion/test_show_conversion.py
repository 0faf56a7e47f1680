"""The tool that prints what a config's conversion does."""

import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest


@pytest.fixture
def show(repo, monkeypatch, capsys):
    path = repo / "tools/analysis_tools/show_conversion.py"
    spec = spec_from_file_location("show_conversion", path)
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["show_conversion.py", *map(str, args)])
        tool.main()
        return capsys.readouterr().out

    return run


def test_shows_sites_and_what_is_left(show):
    options = ["--cfg-options", "model.parts=[backbone]"]
    shown = show("mmdet::yolox/yolox_tiny_8xb8-300e_coco.py", *options)
    lines = shown.splitlines()
    assert lines[0] == "35 activations became learnable; 39 were left."
    row = next(line for line in lines if line.startswith("backbone.stem.conv.activate"))
    assert row.split() == "backbone.stem.conv.activate SiLU AGLU".split() + [
        "lambda",
        "1,",
        "kappa",
        "1",
    ]
    assert "not in parts=['backbone']" in shown
    assert lines[-1] == "Weight decay: none for lambda and kappa."


def test_a_converted_config_is_shown_with_its_own_options(show, repo):
    config = repo / "configs/coco/yolox_s_apa.py"
    shown = show(config, "--cfg-options", "model.init=relu")
    assert shown.startswith("74 activations became learnable; 0 were left.")
    assert "kappa 50" in shown


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere.py"], "no such config file: nowhere.py"),
        (["mmdet::yolox/nowhere.py"], "does not exist"),
        (
            ["mmdet::yolox/yolox_tiny_8xb8-300e_coco.py"]
            + ["--cfg-options", "model.init=tanh"],
            "'tanh'",
        ),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(show, args, words):
    with pytest.raises(SystemExit, match=words) as caught:
        show(*args)
    assert caught.value.__cause__ is None
