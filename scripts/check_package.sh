#!/bin/sh
# Build the sdist and, from it, the wheel; install the wheel alone and run its command.
set -eu
python="${VENV:-.venv}/bin/python"
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m build --outdir "$work/dist" . >"$work/log" 2>&1 || { tail -40 "$work/log"; exit 1; }
"$python" -m pip install --quiet --no-deps --target "$work/site" "$work"/dist/*.whl
cd "$work"
PYTHONPATH="$work/site" "$python" -P -c 'import camelid, sys; sys.exit("/site/" not in camelid.__file__)'
PYTHONPATH="$work/site" "$python" -P -m camelid --help >/dev/null
ls -l "$work/dist" | tail -n +2
