#!/usr/bin/env bash
# venv.sh FOLDER PIP-ARGUMENT...: a Python venv that holds what the arguments name (`-r FILE` works).
# Does nothing when the folder's stamp matches the arguments and the content of the files among them.
set -euo pipefail
folder=$1
shift
key="$(for word in "$@"; do
  printf '%s\n' "$word"
  [ ! -f "$word" ] || cat "$word"
done | cksum)"
if [ -x "$folder/bin/python" ] && [ "$(cat "$folder/stamp" 2>/dev/null)" = "$key" ]; then
  exit 0
fi
printf 'setup: installing into %s: %s\n' "$folder" "$*" >&2
# A venv left half-made, or of a Python that is gone, can't be mended: start again.
"$folder/bin/python" -m pip --version >/dev/null 2>&1 || "${PYTHON:-python3}" -m venv --clear "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2
printf '%s\n' "$key" >"$folder/stamp"
