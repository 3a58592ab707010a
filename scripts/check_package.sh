#!/bin/sh
# Build the sdist and, from it, the wheel; install the wheel alone and run its command.
set -eu
python="${VENV:-.venv}/bin/python"
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m build --outdir "$work/dist" . >"$work/log" 2>&1 || { tail -40 "$work/log"; exit 1; }
"$python" -m pip install --quiet --no-deps --target "$work/site" "$work"/dist/*.whl
# -S leaves out the editable install's import hook; what camelid needs comes from the environment all the same.
PYTHONPATH="$work/site:$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
export PYTHONPATH
cd "$work"
"$python" -P -S -c 'import camelid, sys; sys.exit("/site/" not in camelid.__file__)'
"$python" -P -S -c 'from camelid.kernels import instruction_sets; print("kernels:", ", ".join(instruction_sets()) or "torch only")'
"$python" -P -S -m camelid --version
ls -l "$work/dist" | tail -n +2
