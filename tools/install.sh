#!/usr/bin/env bash
# Creates .venv and installs worldline with everything its tests need; on failure, one line says what went wrong.
set -u
cd "$(dirname "$0")/.." || exit 1
log=.venv/install.log

fail() { echo "worldline: $*" >&2; exit 1; }

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3.11 python3.12 python3.13 python3; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            python=$candidate
            break
        fi
    done
fi
[ -n "$python" ] || fail "no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3.11"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
    || fail "$python is not Python 3.11 or newer; name another: make PYTHON=/path/to/python3.11"

if [ ! -x .venv/bin/python ]; then
    "$python" -m venv .venv >/dev/null 2>&1 || fail "$python cannot create .venv (on Debian: apt-get install python3-venv)"
fi
echo "Installing worldline and its tested dependencies into .venv (a few minutes the first time) ..."
if ! .venv/bin/pip install --quiet --constraint constraints.txt --editable '.[view,export,data,dev]' >"$log" 2>&1; then
    if grep -qiE 'connection|resolve|timed out|network|proxy' "$log"; then
        fail "pip could not reach the package index; check the network or proxy and run again ($log)"
    fi
    fail "pip failed: $(grep -m1 '^ERROR' "$log" || tail -n 1 "$log") ($log)"
fi
# A torchvision that does not fit torch breaks diffusers and transformers with a message that hides the cause.
if ! .venv/bin/python - <<'PY' >/dev/null 2>&1
import importlib.util
if importlib.util.find_spec("torchvision"):
    import torchvision
PY
then
    fail "the torchvision in .venv does not fit torch; worldline does not need it: .venv/bin/pip uninstall torchvision"
fi
touch .venv/.installed
