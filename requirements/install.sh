#!/usr/bin/env bash
# Makes (or completes) the tested environment:  requirements/install.sh VENV [minkowski]
# Reads requirements/lock.txt. PYTHON names the interpreter; FORCE_CUDA=1 builds mmcv with CUDA ops, FORCE_CUDA=0 never.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${1:?usage: install.sh VENV [minkowski]}
lock=$here/lock.txt
python=${PYTHON:-python3}
need_gib=12

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
say() { printf 'setup: %s\n' "$*"; }
pinned() { sed -n "s/^\($1==[^ ]*\).*/\1/p" "$lock"; }

# Runs a command with its output in $venv/install.log, and shows every ten seconds that it is alive.
quietly() {
    local title=$1 started=$SECONDS step pid; shift
    say "$title ..."
    printf '\n## %s: %s\n' "$title" "$*" >> "$venv/install.log"
    "$@" >> "$venv/install.log" 2>&1 & pid=$!
    trap 'kill $pid 2>/dev/null; exit 130' INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        if (( (SECONDS - started) % 10 == 9 )) && kill -0 "$pid" 2>/dev/null; then
            step=$(tail -n 40 "$venv/install.log" | grep -oE '\[[0-9]+/[0-9]+\]|Downloading [^ ]+|Installing collected' | tail -n 1 || true)
            printf 'setup:   %4d s  %s\n' $((SECONDS - started)) "${step:-working}"
        fi
    done
    trap - INT TERM
    wait "$pid" || { tail -n 25 "$venv/install.log" >&2; fail "$title failed; the whole log is $venv/install.log"; }
}

check_machine() {
    command -v "$python" >/dev/null || fail "no $python here: install CPython 3.11, or name one with PYTHON=/path/to/python3.11"
    local found parent free
    found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    [ "$found" = 3.11 ] || fail "$python is Python $found, the tested set needs CPython 3.11: name one with PYTHON=/path/to/python3.11"
    "$python" -c 'import venv, ensurepip' 2>/dev/null || fail "$python has no venv module: install it (Debian: python3.11-venv)"
    command -v c++ >/dev/null || fail "no C++ compiler (c++) here: mmcv is built from source, install one (Debian: g++)"
    [ -f "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
        fail "the C headers of $python are missing (Python.h): install them (Debian: python3.11-dev)"
    parent=$(dirname "$venv"); mkdir -p "$parent" || fail "cannot make the folder $parent"
    free=$(df -Pk "$parent" | awk 'NR == 2 {print int($4 / 1048576)}')
    [ "$free" -ge "$need_gib" ] || fail "$free GiB are free in $parent, the environment needs $need_gib GiB: free some, or choose another place with VENV=/path"
}

# Prints "cuda" or "cpu": which ops mmcv is to be built with, and why on standard error.
mmcv_ops() {
    local force=${FORCE_CUDA:-auto}
    if [ "$force" = 0 ]; then echo cpu; return; fi
    if [ "$force" != 1 ] && ! nvidia-smi -L 2>/dev/null | grep -q GPU; then echo cpu; return; fi
    echo cuda
}

check_cuda_toolkit() {
    local wants has
    wants=$("$venv/bin/python" -c 'import torch; print(torch.version.cuda or "none")')
    has=$( ("${CUDA_HOME:+$CUDA_HOME/bin/}nvcc" --version 2>/dev/null || true) | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
    [ "${has%%.*}" = "${wants%%.*}" ] ||
        fail "mmcv's CUDA ops need the CUDA toolkit $wants that torch was built with, nvcc here is ${has:-missing}: install it, or build CPU ops only with FORCE_CUDA=0"
}

# Builds a source distribution once for this torch, keeps the wheel, installs it.
build() {
    local requirement=$1 ops=$2 torch store; shift 2
    torch=$("$venv/bin/python" -c 'import torch; print(torch.__version__)')
    store=${XDG_CACHE_HOME:-$HOME/.cache}/mmconvnextv2/wheels/torch-$torch-$ops
    mkdir -p "$store"
    # A prebuilt wheel elsewhere cannot be told from a CPU-only one, so a CUDA build never takes it.
    local source=(); [ "$ops" = cpu ] || source=(--no-binary "${requirement%%==*}")
    if ! ls "$store"/ | grep -qi "^${requirement%%==*}-${requirement##*==}-"; then
        quietly "building $requirement ($ops ops; 5 to 15 minutes on two cores unless a wheel is at hand)" \
            env "$@" "$venv/bin/pip" wheel -v --no-cache-dir --no-deps --no-build-isolation "${source[@]}" -w "$store" "$requirement"
    fi
    quietly "installing $requirement" "$venv/bin/pip" install --no-deps --no-index --force-reinstall \
        "$(ls "$store"/* | grep -i "/${requirement%%==*}-${requirement##*==}-" | head -n 1)"
}

install_all() {
    local ops tools rest
    say "making $venv from requirements/lock.txt: about 10 GB, 5 to 20 minutes; the log is $venv/install.log"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    ops=$(mmcv_ops)
    tools="$(pinned setuptools) $(pinned wheel) $(pinned ninja) $(pinned psutil)"
    quietly "installing build tools" "$venv/bin/pip" install --no-deps $tools
    quietly "installing $(pinned torch), $(pinned torchvision) (3 GB to fetch)" \
        "$venv/bin/pip" install -c "$lock" "$(pinned torch)" "$(pinned torchvision)"
    rest=$venv/rest.txt; sed -n '/^# rest/,$p' "$lock" > "$rest"
    quietly "installing the rest of the lock" "$venv/bin/pip" install --no-deps -r "$rest"
    [ "$ops" = cpu ] || check_cuda_toolkit
    if [ "$ops" = cuda ]; then build "$(pinned mmcv)" cuda MMCV_WITH_OPS=1 FORCE_CUDA=1; else build "$(pinned mmcv)" cpu MMCV_WITH_OPS=1 CUDA_VISIBLE_DEVICES=; fi
    "$venv/bin/python" -c 'import mmcv.ops, mmengine' >> "$venv/install.log" 2>&1 || fail "mmcv.ops does not import; see $venv/install.log"
    say "mmcv was built with $ops ops"
}

install_minkowski() {
    [ ! -e "$venv/.minkowski" ] || return 0
    ldconfig -p | grep -q 'libopenblas\.so' || fail "MinkowskiEngine needs OpenBLAS, which is not here: install it (Debian: apt-get install libopenblas-dev)"
    if ! "$venv/bin/pip" download -q --no-deps --only-binary :all: -d "$venv/probe" MinkowskiEngine==0.5.4 >> "$venv/install.log" 2>&1; then
        echo '#include <cblas.h>' | c++ -E - >/dev/null 2>&1 || fail "building MinkowskiEngine needs OpenBLAS's headers: install them (Debian: apt-get install libopenblas-dev)"
    fi
    rm -rf "$venv/probe"
    build MinkowskiEngine==0.5.4 cpu BLAS=openblas CUDA_VISIBLE_DEVICES=
    "$venv/bin/python" -c 'import collections, collections.abc as a; collections.Sequence = a.Sequence; import MinkowskiEngine' \
        >> "$venv/install.log" 2>&1 || fail "MinkowskiEngine does not import; see $venv/install.log"
    touch "$venv/.minkowski"
    say "MinkowskiEngine 0.5.4 is installed in $venv"
}

stamp=$(sha256sum "$lock" | cut -c 1-16)-$(mmcv_ops)
if [ "$(cat "$venv/.lock" 2>/dev/null)" != "$stamp" ]; then
    check_machine
    if [ -e "$venv/.lock" ]; then say "the lock changed, making $venv anew"; rm -rf "$venv"; fi
    [ ! -e "$venv" ] || [ -e "$venv/pyvenv.cfg" ] || fail "$venv exists and is not a virtual environment: choose another place with VENV=/path"
    install_all
    echo "$stamp" > "$venv/.lock"
fi
if [ "$(cat "$venv/.source" 2>/dev/null)" != "$(dirname "$here")" ]; then
    quietly "installing this package (editable)" "$venv/bin/pip" install --no-deps --no-build-isolation -e "$(dirname "$here")"
    dirname "$here" > "$venv/.source"
fi
if [ "${2:-}" = minkowski ]; then install_minkowski; fi
