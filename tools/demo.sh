#!/usr/bin/env bash
# From nothing to a trained detector: environment, mini-LVIS, training, test, picture.
# Usage: bash tools/demo.sh [openmmlab|onedl]
set -euo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
say() { printf '\n== %s (%d s)\n' "$*" "$((SECONDS - started))"; }

config=configs/mini_lvis/mask_rcnn_r18_apa.py
work=work_dirs/demo
data=data/mini_lvis

say "1/5 environment"
bash tools/setup_env.sh "$@"
python=${APA_MMDET_VENV:-.venv}/bin/python
started=$SECONDS

say "2/5 mini-LVIS in $data"
"$python" tools/dataset_converters/make_mini_lvis.py "$data"

say "3/5 training (about 6 minutes on 2 cores; continues if it was interrupted)"
# Without validation, which is the next step.
"$python" -W ignore tools/train.py "$config" --work-dir "$work" --resume \
    --cfg-options train_cfg.val_interval=1000

say "4/5 evaluation on the validation images"
checkpoint=$(cat "$work/last_checkpoint")
rm -rf "$work/test"
"$python" -W ignore tools/test.py "$config" "$checkpoint" --work-dir "$work/test"

say "5/5 picture"
"$python" -W ignore tools/analysis_tools/show_detections.py "$config" "$checkpoint" \
    --out "$work/detections.png"

"$python" - "$work"/test/*/*.json <<'PYTHON'
import json
import sys

with open(sys.argv[1]) as file:
    results = json.load(file)
print("\nmini-LVIS val     AP    APr    APc    APf")
for kind in ("bbox", "segm"):
    values = [results[f"lvis/{kind}_{name}"] for name in ("AP", "APr", "APc", "APf")]
    print(f"{kind:<12}" + "".join(f"{100 * value:7.1f}" for value in values))
PYTHON
say "done"
cat <<TEXT
Picture:     $work/detections.png
Checkpoint:  $checkpoint
Next, the same training with a sigmoid classifier instead of APA:
    $python tools/train.py $config --work-dir work_dirs/sigmoid --cfg-options \\
        model.roi_head.bbox_head.loss_cls.lam=1.0 \\
        model.roi_head.bbox_head.loss_cls.learnable=None
TEXT
