#!/usr/bin/env bash
# Creates the environment if necessary, checks the style, and runs the tests.
#
#   bash tools/run_tests.sh                        all except slow and GPU tests, two
#                                                  files at a time
#   bash tools/run_tests.sh -m slow                arguments are passed to pytest
#   bash tools/run_tests.sh tests/test_compat.py
#
#   APA_MMDET_STACK   openmmlab (default) or onedl
#   APA_MMDET_VENV    the environment, see tools/setup_env.sh
#   APA_MMDET_CLASSIFICATION=1   the tests of apa_mmdet.classification, which are skipped
#                     without MMPretrain; set APA_MMDET_VENV to an environment for it
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup_env.sh "${APA_MMDET_STACK:-openmmlab}"
bin=${APA_MMDET_VENV:-.venv}/bin

"$bin/ruff" check .
"$bin/ruff" format --check .
if [ $# -eq 0 ] && [ "${APA_MMDET_CLASSIFICATION:-0}" != 0 ]; then
    set -- tests/test_classification
fi
if [ $# -eq 0 ]; then
    # One process runs a whole file, because of its fixtures, on one thread.
    set -- -m "not slow and not gpu" -n 2 --dist loadfile
    export OMP_NUM_THREADS=1
fi
"$bin/python" -m pytest "$@"
