# Sourced by every script here:  . "$(dirname "${BASH_SOURCE[0]}")/lib.sh"; enter_project
# shellcheck shell=bash
# Also for bash 3.2, which is macOS' own: no mapfile, and an empty array counts as unset.
set -euo pipefail

# Sets ROOT (the project's folder) and PYTHON (the project's own, else the first python3), and goes to ROOT, so that a
# script works from any folder; CALLER_DIR keeps where it was called. PYTHON may be set from outside.
enter_project() {
    ROOT="$(CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    if [[ -z "${PYTHON:-}" ]]; then
        if [[ -x "$ROOT/.venv/bin/python" ]]; then
            PYTHON="$ROOT/.venv/bin/python"
        else
            PYTHON="python3"
        fi
    fi
    export CALLER_DIR="$PWD" ROOT PYTHON
    cd "$ROOT"
}

# Stops with the command that helps if the Python at hand lacks a module:  need_module cog "scripts/setup"
need_module() {
    if ! "$PYTHON" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; then
        echo "$(basename "$0"): $PYTHON has no module $1. Run $2 first; it installs the pinned packages into .venv." >&2
        exit 1
    fi
}

# Prints the name of the first Python on PATH that is new enough.
find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "Python 3.11 or newer is needed; python3 is $(python3 --version 2>&1). Install one and put it on PATH." >&2
    return 1
}

# Makes .venv with the pins of requirements-local.txt or requirements-dev.txt; does nothing when they are in it already.
# Without effect where the caller has set PYTHON: that Python is the caller's own.
make_venv() {
    local requirements="$1" stamp wanted python line quiet=() torch=()
    if [[ "$PYTHON" != "$ROOT/.venv/bin/python" && "$PYTHON" != "python3" ]]; then
        return
    fi
    stamp="$ROOT/.venv/.installed-$requirements"
    wanted="$(cat requirements.txt requirements-local.txt "$requirements" | cksum) ${TORCH_INDEX_URL:-}"
    if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then
        return
    fi
    # One without pip was left half made, by Ctrl-C or for want of the system's package python3-venv.
    if ! "$ROOT/.venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python="$(find_python)"
        echo "Making .venv with $("$python" --version)"
        "$python" -m venv --clear "$ROOT/.venv"
    fi
    PYTHON="$ROOT/.venv/bin/python"
    [[ -t 1 ]] || quiet=(--quiet)
    echo "Installing the pinned packages of $requirements into .venv (about 6 GB with torch's CUDA build; minutes)"
    if [[ -n "${TORCH_INDEX_URL:-}" ]]; then
        while IFS= read -r line; do
            torch+=("$line")
        done < <(grep -E '^torch(vision|audio)?==' requirements.txt)
        "$PYTHON" -m pip install ${quiet[@]+"${quiet[@]}"} --index-url "$TORCH_INDEX_URL" "${torch[@]}"
    fi
    # The constraints keep a package of a later file from moving a pin of requirements.txt.
    "$PYTHON" -m pip install ${quiet[@]+"${quiet[@]}"} -c requirements.txt -r "$requirements"
    echo "$wanted" >"$stamp"
}
