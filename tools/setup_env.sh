#!/usr/bin/env bash
# Creates the environment for apa_mmdet; if it is complete, returns in seconds.
#
#   bash tools/setup_env.sh [openmmlab|onedl]
#
# Two stacks provide the imports mmengine, mmcv and mmdet: OpenMMLab's releases, which
# are the default, and the OneDL forks. An environment contains one of them.
#
#   APA_MMDET_VENV   the environment, created if missing        .venv in the checkout
#   PYTHON           the Python to create it with, 3.9 to 3.12  python3
#   TORCH_SPEC       the torch to install if there is none      torch==2.13.0
#                    (pip options are possible: "torch==2.13.0 --index-url URL")
#   APA_MMDET_CLASSIFICATION   1 to add MMPretrain               0
#                    (it imports torchvision: without a GPU, see docs/classification.md)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
stack=${1:-openmmlab}
case $stack in  # a test compares the versions with apa_mmdet/requirements.py
    openmmlab)
        mmengine=mmengine==0.10.7 mmcv=mmcv==2.1.0 mmdet=mmdet==3.3.0
        mmpretrain=mmpretrain==1.2.0
        other=onedl others=(onedl-mmengine onedl-mmcv onedl-mmdetection) ;;
    onedl)
        mmengine=onedl-mmengine==0.10.12 mmcv=onedl-mmcv==2.3.6
        mmdet=onedl-mmdetection==3.5.1 mmpretrain=onedl-mmpretrain==1.3.6
        other=openmmlab others=(mmengine mmcv mmdet) ;;
    *)
        echo "usage: bash tools/setup_env.sh [openmmlab|onedl], not '$*'" >&2
        exit 2 ;;
esac
python=${PYTHON:-python3}
torch_spec=${TORCH_SPEC:-torch==2.13.0}
[ "${APA_MMDET_CLASSIFICATION:-0}" != 0 ] || mmpretrain=""
venv=${APA_MMDET_VENV:-$root/.venv}
mkdir -p "$(dirname "$venv")"
venv=$(cd "$(dirname "$venv")" && pwd)/$(basename "$venv")
py=$venv/bin/python
log=$venv/setup_env.log
stamp=$venv/setup_env.stamp
constraints=$venv/setup_env.constraints.txt
scratch=$venv/setup_env.tmp

# -------------------------------------------------------------------------- reporting
steps=8 step=0 name="" remedy="" child="" logging="" SECONDS=0

clock() { printf '%d:%02d' $((SECONDS / 60)) $((SECONDS % 60)); }
say() { printf '           %s\n' "$*"; }
begin() {  # begin NAME REMEDY
    step=$((step + 1)) name=$1 remedy=$2
    printf '[%d/%d %5s] %s\n' "$step" "$steps" "$(clock)" "$name"
}

fail() {  # fail MESSAGE [REMEDY]
    echo "$1" >&2
    remedy=${2:-$remedy}
    exit 1
}

finish() {
    local status=$?
    trap - EXIT
    if [ -n "$child" ]; then kill -- "-$child" 2>/dev/null || true; fi
    rm -rf "$scratch"
    if [ "$status" -ge 130 ]; then
        remedy="run this again; finished steps are kept"
    fi
    if [ "$status" -ne 0 ]; then
        {
            echo
            echo "tools/setup_env.sh stopped in step $step of $steps: $name"
            if [ -n "$logging" ]; then
                echo "The last lines of $log:"
                tail -n 15 "$log" | sed 's/^/    /'
            fi
            echo "What to do: $remedy"
        } >&2
    fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

progress() {  # of a compilation by ninja
    local plan built total
    plan=$(find "$scratch" -name build.ninja 2>/dev/null | head -n 1)
    if [ -n "$plan" ]; then
        built=$(find "$(dirname "$plan")" -name '*.o' | wc -l)
        total=$(grep -c '^build .*\.o: ' "$plan" || true)
        printf ', %d of %d files compiled' "$built" "$total"
    fi
}

run() {  # run COMMAND...: output to the log, progress every 30 seconds
    local began=$SECONDS beat=30 status=0
    printf '\n$ %s\n' "$*" >>"$log"
    mkdir -p "$scratch"
    set -m  # its own process group, so that finish() can stop all of it
    TMPDIR=$scratch "$@" >>"$log" 2>&1 </dev/null &
    child=$!
    set +m
    while kill -0 "$child" 2>/dev/null; do
        sleep 0.2
        if [ $((SECONDS - began)) -ge "$beat" ]; then
            beat=$((beat + 30))
            say "... $(clock)$(progress)"
        fi
    done
    wait "$child" || status=$?
    child=""
    rm -rf "$scratch"
    return "$status"
}

pip_install() { run "$py" -m pip install -c "$constraints" "$@"; }

# ---------------------------------------------------------------- what is installed
version() {  # version DISTRIBUTION: the installed version, or nothing
    "$py" -c "from importlib.metadata import version; print(version('$1'))" \
        2>/dev/null || true
}

has() { [ "$(version "${1%%==*}")" = "${1##*==}" ]; }  # has NAME==VERSION

ops_work() {  # runs nms and RoIAlign; prints the result, or why they fail
    "$py" - <<'PY'
import sys

try:
    import torch
    from mmcv.ops import RoIAlign, nms
except ImportError as error:
    sys.exit(f"mmcv.ops: {error}")

has_gpu = torch.version.cuda and torch.cuda.is_available()
boxes = torch.tensor([[0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 29, 29.0]])
scores = torch.tensor([0.8, 0.9, 0.7])
# On a linear ramp, RoIAlign must return the value at the centre of each bin.
ramp = torch.arange(16.0).repeat(16, 1)[None, None]
rois = torch.tensor([[0, 2, 4, 10, 12.0]])
centres = torch.tensor([[[[3.5, 7.5], [3.5, 7.5]]]])
for device in ["cpu", "cuda"] if has_gpu else ["cpu"]:
    try:
        _, indices = nms(boxes.to(device), scores.to(device), iou_threshold=0.5)
        pooled = RoIAlign(2, 1.0, 2)(ramp.to(device), rois.to(device)).cpu()
    except RuntimeError as error:
        sys.exit(f"mmcv.ops on {device}: {error}")
    if indices.tolist() != [1, 2]:
        sys.exit(f"mmcv.ops.nms on {device}: {indices.tolist()}, expected [1, 2]")
    if not torch.allclose(pooled, centres, atol=1e-5):
        sys.exit(f"mmcv.ops.RoIAlign on {device}: {pooled.tolist()}")
print("nms and RoIAlign give correct results on cpu" + " and cuda" * bool(has_gpu))
PY
}

require_ops() {  # sets proof to what ops_work prints
    if ! proof=$(ops_work 2>&1); then
        echo "$proof" >>"$log"
        fail "mmcv's ops do not work."
    fi
}

# What the environment is created for; it changes with the checkout and its versions.
request() {
    echo "$root $stack $mmengine $mmcv $mmdet $mmpretrain"
    cat "$root/pyproject.toml" "${BASH_SOURCE[0]}"
}

# ------------------------------------------------------------------------------ steps
begin "the environment $venv" \
    "choose a Python with PYTHON=/path/to/python3, or another environment with \
APA_MMDET_VENV=/path/to/it"
if [ ! -x "$py" ]; then
    if [ -e "$venv" ] && [ -n "$(ls -A "$venv" 2>/dev/null)" ]; then
        fail "$venv exists and is not an environment: it has no bin/python." \
            "remove it, or choose another with APA_MMDET_VENV=/path/to/it"
    fi
    command -v "$python" >/dev/null ||
        fail "There is no Python called '$python' (PYTHON)."
    "$python" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info < (3, 13))' ||
        fail "$("$python" --version 2>&1) is not supported: 3.9 to 3.12 is needed."
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python has no venv module." \
            "install it (Debian, Ubuntu: apt install python3-venv), or choose another \
Python with PYTHON=/path/to/python3"
    "$python" -m venv "$venv"
fi
"$py" -m pip --version >/dev/null 2>&1 ||
    fail "$venv has no pip." "run '$py -m ensurepip', then this again"
installed=""
for distribution in "${others[@]}"; do
    [ -z "$(version "$distribution")" ] || installed="$installed $distribution"
done
if [ -n "$installed" ]; then
    fail "$venv contains the $other stack (${installed# }), which has the same imports \
as $stack." \
        "use one environment for each stack: \
APA_MMDET_VENV=$venv-$stack bash tools/setup_env.sh $stack"
fi
if [ -f "$stamp" ] && [ "$(request)" = "$(cat "$stamp")" ] &&
    has "$mmengine" && has "$mmcv" && has "$mmdet" &&
    { [ -z "$mmpretrain" ] || has "$mmpretrain"; } && proof=$(ops_work 2>&1); then
    say "the $stack stack is installed; $proof ($(clock))"
    exit 0
fi
rm -f "$stamp"
: >"$log"
logging=yes
say "$("$py" --version), stack $stack, log in $log"

begin "torch" "choose a torch that is available for this Python and machine, such as \
TORCH_SPEC=torch==2.8.0 bash tools/setup_env.sh $stack, or install one into $venv first"
if [ -z "$(version torch)" ]; then
    say "installing $torch_spec (a CUDA build has several gigabytes)"
    read -ra torch_arguments <<<"$torch_spec"
    run "$py" -m pip install "${torch_arguments[@]}"
fi
torch=$("$py" -c 'import torch; print(torch.__version__)' 2>>"$log") ||
    fail "The installed torch, $(version torch), cannot be imported."
cuda=$("$py" -c 'import torch; print(torch.version.cuda)')
if [ -n "$mmpretrain" ] && [ "$cuda" = None ]; then
    "$py" -c 'import torchvision' >>"$log" 2>&1 ||
        fail "MMPretrain needs a torchvision that works with this CPU torch." \
            "give both, in another environment: APA_MMDET_CLASSIFICATION=1 \
APA_MMDET_VENV=$venv-classification \
TORCH_SPEC='torch==2.11.0 torchvision==0.26.0' bash tools/setup_env.sh $stack"
fi
# As its metadata has it: PyPI's 2.11.0 calls itself 2.11.0+cu130.
echo "torch==$(version torch)" >"$constraints"
say "torch $torch; no later step changes it"

begin "build tools for mmcv" "see the log; the usual cause is the network"
pip_install "setuptools>=77,<81" wheel packaging ninja psutil numpy

begin "$mmcv with its compiled ops" \
    "see the log for the compiler's first error. A C++ compiler is needed (Debian, \
Ubuntu: apt install build-essential), and for a GPU also the CUDA toolkit of torch's \
version, with CUDA_HOME set. MAX_JOBS=1 needs less memory. Then run this again"
cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
export MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$cores}
if ! has "$mmcv"; then
    say "pip compiles it unless it has cached a wheel: 10 to 20 minutes on 2 cores"
    pip_install --no-build-isolation "$mmcv"
fi
if ! proof=$(ops_work 2>&1); then
    echo "$proof" >>"$log"
    say "$(printf '%s' "$proof" | tail -n 1)"
    say "compiling mmcv again: 10 to 20 minutes on 2 cores"
    pip_install --no-cache-dir --no-build-isolation --force-reinstall --no-deps "$mmcv"
    require_ops
fi
say "$proof"

begin "$mmengine and $mmdet" "see the log; the usual cause is the network"
pip_install --no-build-isolation "$mmengine" "$mmdet"

begin "torchvision${mmpretrain:+ and $mmpretrain}" \
    "see the log; the usual cause is the network"
if [ "$cuda" != None ]; then
    pip_install torchvision
elif [ -z "$mmpretrain" ]; then
    say "skipped: PyPI's is built for CUDA and cannot be imported with a CPU torch; \
torchvision:// weights need a torchvision for your torch"
fi
if [ -n "$mmpretrain" ]; then
    # MMPretrain imports model-index, and declares modelindex, which is empty.
    pip_install --no-build-isolation "$mmpretrain" model-index
fi

begin "apa_mmdet, its test tools and what the examples need" "see the log"
pip_install --no-build-isolation -e "$root[$stack,test,examples]"

begin "final check" "remove $venv and run this again"
"$py" -m pip check >>"$log" 2>&1 || say "pip check reports problems, see the log"
require_ops
"$py" -c "import apa_mmdet${mmpretrain:+.classification}" >>"$log" 2>&1
request >"$stamp"
say "ready in $(clock). To use it: source $venv/bin/activate"
