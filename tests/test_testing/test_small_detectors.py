"""The small detectors are those that users build, only narrower."""

import pytest
from mmdet.registry import MODELS

from apa_mmdet.testing.models import quiet_mmdet
from apa_mmdet.testing.small_detectors import FASTER_RCNN, RETINANET, small_config


@pytest.mark.parametrize("path", [FASTER_RCNN, RETINANET])
def test_both_forms_build_the_same_narrow_detector(path):
    with quiet_mmdet():
        plain, model = (
            MODELS.build(small_config(path, converted).model)
            for converted in (False, True)
        )
    assert type(plain) is type(model)
    assert len(model.conversion_report.sites) > 10
    assert set(plain.state_dict()) < set(model.state_dict())
    assert max(p.shape[0] for p in plain.backbone.parameters()) == 64


def test_settings_override_without_changing_the_next_config():
    cfg = small_config(RETINANET, **{"backbone.depth": 34, "parts": ["neck"]})
    assert (cfg.model.backbone.depth, cfg.model.parts) == (34, ["neck"])
    assert small_config(RETINANET).model.backbone.depth == 18
    assert "parts" not in small_config(RETINANET).model
