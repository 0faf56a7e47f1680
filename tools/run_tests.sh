#!/usr/bin/env bash
# Makes the environment if need be, then lints, then tests.
#
#   bash tools/run_tests.sh                      all but the slow and the GPU tests,
#                                                two files at a time
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
    # A file stays in one process, for its fixtures; more threads would be in the way.
    set -- -m "not slow and not gpu" -n 2 --dist loadfile
    export OMP_NUM_THREADS=1
fi
"$bin/python" -m pytest "$@"
