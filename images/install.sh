#!/bin/sh
# Install ModelScaling from the lock file: the one way in, for the Dockerfile, for `make install`
# and, through its environment, for the devcluster.
#
#   images/install.sh [--into DIR] [--corpus PATH] (operator | trainer | development)...
#
#   operator, trainer   what that image needs, and nothing else
#   development         everything, with the tools, and the packages as they are in this tree
#   --into DIR          the virtual environment; .venv when it is not given
#   --corpus PATH       make PATH a link to the interpreter's standard library, the text that the
#                       examples train on
set -eu

fail() {
    echo "images/install.sh: $1" >&2
    exit 2
}

root=$(cd "$(dirname "$0")/.." && pwd)
environment=$root/.venv
corpus=
development=
extras=
while [ $# -gt 0 ]; do
    case $1 in
    --into | --corpus)
        [ $# -ge 2 ] || fail "$1 needs a path after it"
        if [ "$1" = --into ]; then environment=$2; else corpus=$2; fi
        shift
        ;;
    operator | trainer) extras="$extras --extra $1" ;;
    development) development=yes ;;
    *) fail "unknown argument '$1'; give operator, trainer or development" ;;
    esac
    shift
done
[ -n "$extras$development" ] || fail "nothing to install; give operator, trainer or development"
command -v uv >/dev/null || fail "uv is not on PATH; install it with 'pip install uv'"

export UV_PROJECT_ENVIRONMENT="$environment"
# Processes by the hundred, and pods that may not write, import what is compiled here.
export UV_COMPILE_BYTECODE=1
if [ -n "$development" ]; then
    uv sync --project "$root" --frozen --all-extras
else
    # uv takes a package of an earlier build from its cache as long as pyproject.toml is the same,
    # so our own is always built anew.
    # shellcheck disable=SC2086 # one word an extra
    uv sync --project "$root" --frozen --no-dev --no-editable \
        --reinstall-package modelscaling $extras
fi

if [ -n "$corpus" ]; then
    library=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
    mkdir -p "$(dirname "$corpus")"
    ln -sfn "$library" "$corpus"
fi
