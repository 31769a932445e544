#!/usr/bin/env bash
# Creates (or completes) the tested environment:  requirements/install.sh VENV [minkowski | export | loader | geo]
# Reads requirements/lock.txt. PYTHON sets the interpreter. OPS=torchvision, the default, installs mmcv-lite, whose
# operators come from torchvision; OPS=compiled compiles mmcv, with CUDA if a GPU is present or FORCE_CUDA=1 is set.
# State in VENV: .mmconvnextv2 marks the folder as ours, .lock records what is complete (the lock's hash and mmcv's
# operators), .source the installed clone, .unfinished-STEP that a step was interrupted and its files are not reliable.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${1:?usage: install.sh VENV [minkowski | export | loader | geo]}
lock=$here/lock.txt
python=${PYTHON:-python3}
need_gib=10
# Settings of the user for other installations would redirect this one.
unset PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_NO_DEPS PIP_REQUIREMENT PIP_CONSTRAINT PIP_DRY_RUN PIP_UPGRADE PIP_EDITABLE \
    PIP_IGNORE_INSTALLED PIP_NO_INDEX PIP_ONLY_BINARY PIP_NO_BINARY PYTHONHOME PYTHONPATH
export PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 HOME="${HOME:-$venv}"
torch_cuda=13.0  # of the locked torch; known here so that a missing toolkit is found before torch is fetched

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
say() { printf 'setup: %s\n' "$*"; }
pinned() { sed -n "s/^\($1==[^ ]*\).*/\1/p" "$lock"; }
pip() { "$venv/bin/python" -m pip "$@"; }
works() { [ -x "$venv/bin/python" ] && "$venv/bin/python" -c '' 2>/dev/null; }

# Allows one set-up per environment at a time; the lock of a dead process is taken over.
lock() {
    local place=${venv%/}.setup-lock holder tries=0
    mkdir -p "$(dirname "$venv")" 2>/dev/null || true
    until mkdir "$place" 2>/dev/null; do
        [ -d "$place" ] || return 0  # not writable; check_place reports it with a better message
        holder=$(cat "$place/process" 2>/dev/null || true)
        if [ -n "$holder" ] && ! kill -0 "$holder" 2>/dev/null; then rm -rf "$place"; continue; fi
        tries=$((tries + 1))
        [ "$tries" -lt 10 ] || fail "another set-up (process ${holder:-unknown}) is creating $venv: wait until it is done; if there is none, remove $place"
        sleep 0.2
    done
    echo $$ > "$place/process"
    trap 'rm -rf "$place_of_lock"' EXIT
    place_of_lock=$place
}

stop() {
    trap - INT TERM
    kill -INT -- "-$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
    kill -TERM -- "-$1" 2>/dev/null || true  # children that ignore SIGINT
    say "stopped: run the same command to continue from here" >&2
    exit 130
}

# Runs a command with its output in $venv/install.log, and prints its progress every ten seconds. The command has its own
# process group, so that Ctrl-C ends its compilers, too.
quietly() {
    local title=$1 started=$SECONDS shown=$SECONDS step pid; shift
    say "$title ..."
    printf '\n## %s: %s\n' "$title" "$*" >> "$venv/install.log"
    set -m; "$@" >> "$venv/install.log" 2>&1 < /dev/null & pid=$!; set +m
    trap 'stop $pid' INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        sleep 0.2
        if (( SECONDS - shown >= 10 )); then
            shown=$SECONDS
            step=$(tail -n 40 "$venv/install.log" | grep -oE '\[[0-9]+/[0-9]+\]|Downloading [^ ]+|Installing collected' | tail -n 1 || true)
            printf 'setup:   %4d s  %s\n' $((SECONDS - started)) "${step:-working}"
        fi
    done
    trap - INT TERM
    wait "$pid" || { tail -n 25 "$venv/install.log" >&2; fail "$title failed: see the full log $venv/install.log"; }
}

# install STEP TITLE ARGUMENTS: pip install; reinstalls the packages if an earlier run of the same step was interrupted.
install() {
    local step=$1 title=$2 again=(); shift 2
    [ ! -e "$venv/.unfinished-$step" ] || again=(--ignore-installed)
    touch "$venv/.unfinished-$step"
    quietly "$title" pip install ${again[@]+"${again[@]}"} "$@"
    rm "$venv/.unfinished-$step"
}

check_machine() {
    command -v "$python" >/dev/null || fail "$python not found: install CPython 3.11, or set PYTHON=/path/to/python3.11"
    local found
    found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    case $found in
        3.11) ;;
        3.12 | 3.13) say "Python $found: the locked packages support it, but only 3.11 runs every test" ;;
        *) fail "$python is Python $found, but the locked packages need CPython 3.11, 3.12 or 3.13: set PYTHON=/path/to/python3.11 (for 3.10 see docs/installed.md)" ;;
    esac
    "$python" -c 'import venv, ensurepip' 2>/dev/null || fail "$python has no venv module: install it (Debian: python$found-venv)"
    [ "$ops" = torchvision ] || check_compiler mmcv
    [ "$ops" != cuda ] || check_cuda_toolkit
}

# check_compiler PACKAGE: compiling a package needs a C++ compiler and the headers of Python.
check_compiler() {
    command -v c++ >/dev/null || fail "no C++ compiler (c++) found, which $1 needs: install one (Debian: g++)"
    [ -f "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
        fail "the C headers of $python are missing (Python.h), which $1 needs: install them (Debian: python3-dev)"
}

check_place() {
    local parent free there=0
    if [ -n "$(ls -A "$venv" 2>/dev/null)" ] && ! ours; then
        fail "$venv exists and was not created by this set-up: choose another place with VENV=/path"
    fi
    parent=$(dirname "$venv"); mkdir -p "$parent" 2>/dev/null || fail "cannot create the folder $parent: choose another place with VENV=/path"
    if [ -d "$venv" ]; then there=$(du -sk "$venv" | awk '{print int($1 / 1048576)}'); fi
    free=$(df -Pk "$parent" | awk 'NR == 2 {print int($4 / 1048576)}')
    [ $((free + there)) -ge "$need_gib" ] ||
        fail "$free GiB are free in $parent, but the environment needs $((need_gib - there)) GiB: free some space, or choose another place with VENV=/path"
}

ours() { [ -e "$venv/.mmconvnextv2" ] || [[ $made =~ ^[0-9a-f]{16}-(torchvision|cpu|cuda)$ ]]; }

# Prints the operators to install for mmcv: "torchvision", or compiled ones, "cpu" or "cuda".
mmcv_ops() {
    case ${FORCE_CUDA:-auto} in
        0 | 1 | auto) ;;
        *) fail "FORCE_CUDA is '$FORCE_CUDA': expected 0 (CPU operators), 1 (CUDA operators) or unset (CUDA operators if a GPU is present), together with OPS=compiled" ;;
    esac
    local choice=${OPS:-}
    [ -n "$choice" ] || [ "${FORCE_CUDA:-}" != 1 ] || choice=compiled  # its meaning before OPS existed
    case ${choice:-torchvision}:${FORCE_CUDA:-auto} in
        torchvision:*) echo torchvision ;;
        compiled:0) echo cpu ;;
        compiled:1) echo cuda ;;
        compiled:auto) if nvidia-smi -L 2>/dev/null | grep GPU >/dev/null; then echo cuda; else echo cpu; fi ;;
        *) fail "OPS is '$OPS': expected torchvision (nothing is compiled; the default) or compiled (mmcv's own operators, compiled here)" ;;
    esac
}

check_cuda_toolkit() {
    local nvcc has
    nvcc=${CUDA_HOME:+$CUDA_HOME/bin/nvcc}
    nvcc=${nvcc:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
    has=$( ("$nvcc" --version 2>/dev/null || true) | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
    [ "${has%%.*}" = "${torch_cuda%%.*}" ] ||
        fail "mmcv's CUDA operators need the CUDA toolkit $torch_cuda for $(pinned torch), but nvcc is ${has:-missing}: install it, omit OPS=compiled, or build only CPU operators with FORCE_CUDA=0"
}

# Builds a source distribution once per torch version, keeps the wheel and installs it.
build() {
    local requirement=$1 kind=$2 torch store; shift 2
    torch=$("$venv/bin/python" -c 'import torch; print(torch.__version__)')
    store=${XDG_CACHE_HOME:-$HOME/.cache}/mmconvnextv2/wheels/torch-$torch-$kind-$(uname -m)
    # A prebuilt wheel cannot be distinguished from a CPU-only one, so a CUDA build never uses it.
    local source=(); [ "$kind" = cpu ] || source=(--no-binary "${requirement%%==*}")
    mkdir -p "$store"
    if ! ls "$store"/ | grep -i "^${requirement%%==*}-${requirement##*==}-" >/dev/null; then
        install tools "installing build tools" --no-deps "$(pinned ninja)" "$(pinned psutil)"
        rm -rf "$store/.new"
        quietly "building $requirement ($kind operators; 5 to 15 minutes on two cores unless a wheel is at hand)" \
            env "$@" "$venv/bin/python" -m pip wheel -v --no-cache-dir --no-deps --no-build-isolation ${source[@]+"${source[@]}"} \
            -w "$store/.new" "$requirement"
        mv "$store/.new"/*.whl "$store"/
    fi
    install "${requirement%%==*}" "installing $requirement" --no-deps --no-index --force-reinstall \
        "$(ls "$store"/* | grep -i "/${requirement%%==*}-${requirement##*==}-" | head -n 1)"
}

# mmcv, mmcv-lite and the forks install the same folder, so uninstall any of them before installing another.
provide_operators() {
    quietly "removing mmcv with other operators" pip uninstall -y mmcv mmcv-lite
    if [ "$ops" = torchvision ]; then
        install mmcv "installing $(pinned mmcv-lite)" --no-deps "$(pinned mmcv-lite)"
    else
        build_mmcv
    fi
}

# Prints for which GPUs to compile: those that the user names, the visible ones, or the common ones.
cuda_architectures() {
    local found
    found=$( (nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null || true) |
        awk '/^[0-9]+[.][0-9]+$/ && !seen[$0]++ { all = all separator $0; separator = ";" } END { print all }')
    echo "${TORCH_CUDA_ARCH_LIST:-${found:-7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX}}"
}

build_mmcv() {
    local built
    if [ "$ops" = cuda ]; then
        local architectures
        architectures=$(cuda_architectures)
        build "$(pinned mmcv)" "cuda-${architectures//[; ]/_}" MMCV_WITH_OPS=1 FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="$architectures"
    else
        build "$(pinned mmcv)" cpu MMCV_WITH_OPS=1 FORCE_CUDA=0 CUDA_VISIBLE_DEVICES=
    fi
    built=$("$venv/bin/python" -c 'import mmcv.ops as ops, mmengine; print(ops.get_compiling_cuda_version())' 2>> "$venv/install.log") ||
        fail "mmcv.ops cannot be imported: see $venv/install.log"
    case $ops:$built in
        'cpu:not available') say "built mmcv with CPU operators only (FORCE_CUDA=1 builds CUDA operators)" ;;
        'cuda:not available') fail "mmcv was built without CUDA operators: see $venv/install.log" ;;
        *) say "built mmcv with CPU and CUDA $built operators" ;;
    esac
}

install_all() {
    say "creating $venv from requirements/lock.txt: about 6 GB, 2 to 5 minutes; the log is $venv/install.log"
    mkdir -p "$venv"; touch "$venv/.mmconvnextv2"
    works && pip --version >/dev/null 2>&1 || quietly "creating the virtual environment" "$python" -m venv "$venv"
    install torch "installing $(pinned torch), $(pinned torchvision) (3 GB to download)" -c "$lock" \
        "$(pinned torch)" "$(pinned torchvision)" "$(pinned setuptools)" "$(pinned wheel)"
    sed -n '/^# rest/,/^# compiled/p' "$lock" > "$venv/rest.txt"
    install rest "installing the other locked packages" --no-deps -r "$venv/rest.txt"
    [ "$ops" = torchvision ] || provide_operators
}

# Keeps the mark, so that the folder is still recognised as ours if the removal is interrupted.
remove_old() {
    say "$1, creating $venv again"
    touch "$venv/.mmconvnextv2"
    find "$venv/" -mindepth 1 -maxdepth 1 ! -name .mmconvnextv2 -exec rm -rf {} +
}

install_minkowski() {
    [ ! -e "$venv/.minkowski" ] || return 0
    [[ $(ldconfig -p) == *libopenblas.so* ]] || fail "MinkowskiEngine needs OpenBLAS, which is missing: install it (Debian: apt-get install libopenblas-dev)"
    if ! pip download -q --no-deps --only-binary :all: -d "$venv/probe" MinkowskiEngine==0.5.4 >> "$venv/install.log" 2>&1; then
        check_compiler MinkowskiEngine
        echo '#include <cblas.h>' | c++ -E - >/dev/null 2>&1 || fail "building MinkowskiEngine needs OpenBLAS's headers: install them (Debian: apt-get install libopenblas-dev)"
    fi
    rm -rf "$venv/probe"
    build MinkowskiEngine==0.5.4 cpu BLAS=openblas CUDA_VISIBLE_DEVICES=
    "$venv/bin/python" -c 'import collections, collections.abc as a; collections.Sequence = a.Sequence; import MinkowskiEngine' \
        >> "$venv/install.log" 2>&1 || fail "MinkowskiEngine cannot be imported: see $venv/install.log"
    touch "$venv/.minkowski"
    say "MinkowskiEngine 0.5.4 is installed in $venv"
}

# install_list PART TITLE DONE: the packages of PART.txt, which the lock does not have
install_list() {
    local list=$here/$1.txt
    ! cmp -s "$list" "$venv/.$1" || return 0
    install "$1" "installing $2" --no-deps -r "$list"
    cp "$list" "$venv/.$1"
    say "$3 in $venv"
}

hash=$( (sha256sum "$lock" 2>/dev/null || shasum -a 256 "$lock") | cut -c 1-16)
lock
made=$(cat "$venv/.lock" 2>/dev/null || true)
ops=$(mmcv_ops)
if [ "${made%-*}" != "$hash" ] || ! works; then
    check_place
    check_machine
    if [ -n "$made" ]; then remove_old "the lock or the Python changed"; fi
    install_all
    echo "$hash-$ops" > "$venv/.lock"
elif [ "${made##*-}" != "$ops" ] && [ -n "${OPS:-}${FORCE_CUDA:-}" ]; then
    check_machine
    say "mmcv in $venv has ${made##*-} operators, replacing them with $ops ones"
    rm "$venv/.lock"  # until the others are installed; the next call completes an unfinished environment
    provide_operators
    echo "$hash-$ops" > "$venv/.lock"
elif [ "${made##*-}" = cpu ] && nvidia-smi -L 2>/dev/null | grep GPU >/dev/null; then
    say "a GPU is present, but mmcv in $venv has CPU operators only: OPS=torchvision make env supports both"
fi
if [ "$(cat "$venv/.source" 2>/dev/null)" != "$(dirname "$here")" ]; then
    install source "installing this package (editable)" --no-deps --no-build-isolation -e "$(dirname "$here")"
    # for scripts that import mmdet without importing this package
    "$venv/bin/python" "$(dirname "$here")/mmconvnextv2/mmcv_operators/install.py" >> "$venv/install.log"
    dirname "$here" > "$venv/.source"
fi
case ${2:-} in
    '') ;;
    minkowski) install_minkowski ;;
    export) install_list export "ONNX and its runtime" "ONNX files can be exported" ;;
    loader) install_list loader "numba and libjpeg-turbo" "pretraining reads images by region" ;;
    geo) install_list geo rasterio "GeoTIFF files can be read" ;;
    *) fail "unknown optional part '$2': expected minkowski, export, loader or geo" ;;
esac
