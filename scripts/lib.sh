# Sourced by every script here:  . "$(dirname "${BASH_SOURCE[0]}")/lib.sh"; enter_project
# shellcheck shell=bash
set -euo pipefail

# Sets ROOT (the project's folder) and PYTHON (the project's own, else the first python3), and goes to ROOT, so that a
# script works from any folder; CALLER_DIR keeps where it was called. PYTHON may be set from outside.
enter_project() {
    ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
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

# Makes .venv with the pins of requirements-local.txt or requirements-dev.txt; does nothing when they are in it already.
# Without effect where the caller has set PYTHON: that Python is the caller's own.
make_venv() {
    local requirements="$1" stamp wanted
    if [[ "$PYTHON" != "$ROOT/.venv/bin/python" && "$PYTHON" != "python3" ]]; then
        return
    fi
    stamp="$ROOT/.venv/.installed-$requirements"
    wanted="$(cat requirements.txt requirements-local.txt "$requirements" | cksum) ${TORCH_INDEX_URL:-}"
    if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then
        return
    fi
    if [[ ! -x "$ROOT/.venv/bin/python" ]]; then
        if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "Python 3.11 or newer is needed; python3 is $(python3 --version 2>&1). Install one and put it first on PATH." >&2
            exit 1
        fi
        echo "Making .venv with $(python3 --version)"
        python3 -m venv "$ROOT/.venv"
    fi
    PYTHON="$ROOT/.venv/bin/python"
    local quiet=()
    [[ -t 1 ]] || quiet=(--quiet)
    echo "Installing the pinned packages of $requirements into .venv (about 6 GB with torch's CUDA build; minutes)"
    if [[ -n "${TORCH_INDEX_URL:-}" ]]; then
        mapfile -t torch < <(grep -E '^torch(vision|audio)?==' requirements.txt)
        "$PYTHON" -m pip install "${quiet[@]}" --index-url "$TORCH_INDEX_URL" "${torch[@]}"
    fi
    # The constraints keep a package of a later file from moving a pin of requirements.txt.
    "$PYTHON" -m pip install "${quiet[@]}" -c requirements.txt -r "$requirements"
    echo "$wanted" >"$stamp"
}
