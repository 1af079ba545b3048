#!/usr/bin/env python3
"""Holds the tree to its own rules (docs/map.md tells why); the tests run it. Prints each breach, exits 1 on any.

Checked: which folder of src/ includes which, which files may include MLX, 600 lines a file, where exceptions are caught,
no `using namespace` in a header, no path of one machine or registry host in a tracked file, docs/map.md names every
folder of src/, one MLX version everywhere.
"""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Folder of src/ -> what its files may include beside their own folder and base/: folders, or single headers.
MAY_INCLUDE = {
    "base": [],
    "text": [],
    "memory": [],
    "hub": [],
    "kernels": [],
    "nn": ["kernels/"],
    "kv": ["nn/", "kernels/"],
    "models": ["nn/", "kv/cache.h"],
    "engine": ["models/model.h", "models/models.h", "kv/", "nn/lora.h", "nn/pick.h", "nn/host_array.h"],
    "mind": ["engine/plan.h", "kv/recall_how.h", "memory/", "text/"],
    "api": ["engine/engine.h", "engine/memory_tally.h", "engine/plan.h", "engine/sampling.h", "kv/recall_how.h", "mind/", "text/", "memory/store.h"],
    "library": ["text/", "memory/", "mind/", "hub/", "kernels/", "nn/", "kv/", "models/", "engine/"],
    "commands": ["library/", "api/", "engine/", "mind/", "text/", "kernels/"],
}
MAY_INCLUDE_MLX = ("src/kernels/", "src/nn/", "src/kv/", "src/models/", "src/engine/reader.", "src/engine/runner.",
                   "src/engine/sampler.", "src/library/", "tests/tensor/")
MAY_CATCH = {
    "src/api/server.cpp",  # an error becomes a response
    "src/mind/jobs.cpp",  # an error becomes the job's
    "src/mind/recall.cpp",  # a document that was replaced meanwhile; a full disk
    "src/library/memories.cpp",  # what a reading leaves behind
    "src/engine/engine.cpp",  # a failed step fails its rows, and serves on
    "src/library/generate.cpp",  # a prompt that can't begin fails alone
    "src/commands/serve.cpp",  # CLI11's own errors; the thread that loads the model
    "src/commands/generate.cpp",  # CLI11's own errors
    "src/commands/convert.cpp",  # CLI11's own errors
    "src/commands/download.cpp",  # CLI11's own errors
    "src/commands/memory.cpp",  # CLI11's own errors
    "src/commands/memory_bench.cpp",  # CLI11's own errors
    "src/main.cpp",  # the rest becomes a line and an exit status
}
MAX_LINES = 600
CODE = {".h", ".cpp", ".cu", ".rs", ".py", ".sh", ".cmake", ".js", ".css", ".html"}
TEXT = CODE | {".md", ".txt", ".json", ".toml", ".yml", ".yaml", ".supp", ""}
FOREIGN = re.compile(
    r"(?<![\w.])/(?:work|root|farm|Users|home)/\w|pypi[.]org|files[.]pythonhosted|crates[.]io/api|index[.]crates"
    r"|registry[.]npmjs|deb[.]debian")
COMMENT_OR_STRING = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.S)
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)[">]', re.M)


def tracked_files():
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, capture_output=True, text=True)
    if listing.returncode == 0:
        names = listing.stdout.splitlines()
    else:  # an unpacked archive: everything but what builds and set-up leave
        skip = re.compile(r"(^|/)(build[^/]*|\.venv[^/]*|\.cache|target|__pycache__|\.git)/")
        names = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if not skip.search(str(p.relative_to(ROOT)) + "/")]
    return sorted(name for name in names if (ROOT / name).is_file() and not (ROOT / name).is_symlink())


def check_includes(name, text):
    folder = name.split("/")[1] if name.count("/") >= 2 else None  # a file of src/ itself wires all: no limit
    for mark, header in INCLUDE.findall(text):
        if header.startswith("mlx/"):
            if not name.startswith(MAY_INCLUDE_MLX):
                yield f"{name}: includes <{header}>; only {', '.join(MAY_INCLUDE_MLX)} may include MLX"
        elif mark == '"' and folder and name.startswith("src/"):
            allowed = [folder + "/", "base/", *MAY_INCLUDE.get(folder, [])]
            own_project = header.split("/")[0] in MAY_INCLUDE
            if own_project and not any(header == a or (a.endswith("/") and header.startswith(a)) for a in allowed):
                yield f'{name}: includes "{header}"; {folder}/ may include {", ".join(allowed)}'


def check_file(name):
    path = ROOT / name
    if path.suffix not in TEXT or name.endswith((".lock", "-lock.json")):
        return
    text = path.read_text(errors="replace")
    lines = text.count("\n")
    if path.suffix in CODE and lines > MAX_LINES:
        yield f"{name}: {lines} lines; the limit is {MAX_LINES}"
    for number, line in enumerate(text.splitlines(), 1):
        if found := FOREIGN.search(line):
            yield f"{name}:{number}: names a path of one machine or a registry host: {found.group()}"
    if path.suffix not in {".h", ".cpp", ".cu"}:
        return
    yield from check_includes(name, text)
    code = COMMENT_OR_STRING.sub("", text)
    if name.startswith("src/") and name not in MAY_CATCH and re.search(r"\bcatch\s*\(", code):
        yield f"{name}: catches an exception; only {', '.join(sorted(MAY_CATCH))} may"
    if path.suffix == ".h" and re.search(r"\busing\s+namespace\b", code):
        yield f"{name}: `using namespace` in a header"
    if name.startswith("tests/") and re.search(r'#\s*include\s*"[^"]+\.cpp"', text):
        yield f"{name}: a test includes a .cpp"


def check_folders(names):
    folders = sorted({name.split("/")[1] for name in names if name.startswith("src/") and name.count("/") >= 2})
    table = (ROOT / "docs/map.md").read_text()
    for folder in folders:
        if folder not in MAY_INCLUDE:
            yield f"src/{folder}/: not in the table of tools/check_tree.py"
        if f"`{folder}/`" not in table:
            yield f"docs/map.md: does not name `{folder}/`"


def check_versions():
    wanted = re.search(r"^MLX_VERSION=(\S+)", (ROOT / "tools/versions.sh").read_text(), re.M).group(1)
    for name, pattern in [("pyproject.toml", r'"mlx[\w-]*==([\d.]+)'), ("cmake/mlx.cmake", r"find_package\(MLX ([\d.]+)")]:
        for version in re.findall(pattern, (ROOT / name).read_text()):
            if version != wanted:
                yield f"{name}: MLX {version}; tools/versions.sh says {wanted}"


def main():
    names = tracked_files()
    breaches = [b for name in names for b in check_file(name)] + [*check_folders(names), *check_versions()]
    print(*breaches, sep="\n", end="\n" if breaches else "")
    print(f"check_tree: {len(names)} files, {len(breaches)} breaches")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
