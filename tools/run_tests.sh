#!/usr/bin/env bash
# Makes the environment if need be, then lints, then tests.
#
#   bash tools/run_tests.sh                      all but the slow and the GPU tests
#   bash tools/run_tests.sh -m slow              arguments go to pytest instead
#   bash tools/run_tests.sh tests/test_compat.py
#
#   APA_MMDET_STACK   openmmlab (default) or onedl
#   APA_MMDET_VENV    the environment, see tools/setup_env.sh
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup_env.sh "${APA_MMDET_STACK:-openmmlab}"
bin=${APA_MMDET_VENV:-.venv}/bin

"$bin/ruff" check .
"$bin/ruff" format --check .
if [ $# -eq 0 ]; then
    set -- -m "not slow and not gpu"
fi
"$bin/python" -m pytest "$@"
