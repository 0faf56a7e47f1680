"""The tool that prints what a config's conversion does."""

import pytest

YOLOX = "mmdet::yolox/yolox_tiny_8xb8-300e_coco.py"


def test_shows_sites_and_what_is_left(run_tool):
    options = ["--cfg-options", "model.parts=[backbone]"]
    shown = run_tool("show_conversion.py", YOLOX, *options)
    lines = shown.splitlines()
    assert lines[0] == "35 activations became learnable; 39 left unconverted."
    row = next(line for line in lines if line.startswith("backbone.stem.conv.activate"))
    expected = "backbone.stem.conv.activate SiLU AGLU lambda 1, kappa 1"
    assert row.split() == expected.split()
    assert "not in parts=['backbone']" in shown
    assert lines[-1] == "Weight decay: none for lambda and kappa."


def test_a_converted_config_is_shown_with_its_own_options(run_tool, repo):
    config = repo / "configs/coco/yolox_s_apa.py"
    shown = run_tool("show_conversion.py", config, "--cfg-options", "model.init=relu")
    assert shown.startswith("74 activations became learnable; 0 left unconverted.")
    assert "kappa 50" in shown


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere.py"], "no such config file: nowhere.py"),
        (["mmdet::yolox/nowhere.py"], "no such config file: mmdet::yolox/nowhere.py"),
        ([YOLOX, "--cfg-options", "model.init=tanh"], "'tanh'"),
    ],
)
def test_errors_come_without_a_traceback(run_tool, args, words):
    with pytest.raises(SystemExit, match=words) as caught:
        run_tool("show_conversion.py", *args)
    assert caught.value.__cause__ is None
