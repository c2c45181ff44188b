# Makes and refreshes .venv; sourced by the other scripts, from the top folder of the tree.
#   ensure_venv local   what `squall run` needs
#   ensure_venv dev     that and the tools of scripts/check and scripts/test
# A stamp per set inside .venv is newer than the files that decide its contents, or the set is installed again.

venv_is_current() {
    local stamp=".venv/.squall-$1" file
    [[ -x .venv/bin/python && -f $stamp ]] || return 1
    for file in constraints.txt pyproject.toml sdk/pyproject.toml; do
        [[ $file -nt $stamp ]] && return 1
    done
    return 0
}

find_python() {
    local candidate
    for candidate in ${SQUALL_PYTHON:-} python3.11 python3 python3.12 python3.13 python3.14; do
        # Run it, do not just look it up: a version manager's stand-in is on PATH and may still refuse.
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return 0
        fi
    done
    echo "squall: needs Python 3.11 or newer; none of python3.11, python3, python3.12 ... is one. Set SQUALL_PYTHON to its path." >&2
    return 1
}

ensure_venv() {
    venv_is_current "$1" && return 0
    (
        # Two first uses at once must not install into each other's environment. Without flock (macOS) they may.
        if command -v flock >/dev/null; then
            exec 9>.venv.lock
            flock 9
        fi
        venv_is_current "$1" || install_venv "$1"
    )
}

# uv into .venv. Python's own pip does it in 2 s; ensurepip, which takes 7, is for a Python without one.
install_uv() {
    local python=$1
    if command -v uv >/dev/null && uv pip install --quiet --python .venv/bin/python -c constraints.txt uv 2>/dev/null; then
        return 0
    fi
    if "$python" -m pip --python .venv/bin/python install -qq --disable-pip-version-check --no-compile \
        --constraint constraints.txt uv 2>/dev/null; then
        return 0
    fi
    if ! .venv/bin/python -m ensurepip >/dev/null 2>&1; then
        echo "squall: $python has neither pip nor ensurepip; on Debian and Ubuntu: apt install python3-venv" >&2
        return 1
    fi
    .venv/bin/python -m pip install -q --disable-pip-version-check --constraint constraints.txt uv >&2
}

install_venv() {
    local set=$1 extras=$1 python started=$SECONDS
    [[ $set == dev ]] && extras=local,dev
    if [[ -f .venv/.squall-constraints ]]; then
        echo "squall: the dependencies changed, refreshing .venv ..." >&2
    else
        echo "squall: setting up .venv, once, about 15 s ..." >&2
    fi
    # Imports without byte-code are several times slower, and this is where it is written.
    unset PYTHONDONTWRITEBYTECODE
    python=$(find_python) || return 1
    if ! .venv/bin/python -c '' 2>/dev/null; then
        "$python" -m venv --clear --without-pip .venv >&2 || return 1
    fi
    if [[ ! -x .venv/bin/uv ]] || ! cmp -s constraints.txt .venv/.squall-constraints; then
        install_uv "$python" || return 1
    fi
    .venv/bin/uv pip install --quiet --python .venv/bin/python --compile-bytecode \
        --constraints constraints.txt --build-constraints constraints.txt \
        -e ./sdk -e ".[$extras]" >&2 || return 1
    cp constraints.txt .venv/.squall-constraints
    touch ".venv/.squall-$set"
    [[ $set == dev ]] && touch .venv/.squall-local
    echo "squall: .venv ready after $((SECONDS - started)) s" >&2
}
