"""Console scripts: each becomes the program of its name that the wheel holds in bin/."""

import os
import sys
from pathlib import Path


def _become(program):
    path = str(Path(__file__).with_name("bin") / program)
    os.execv(path, [path, *sys.argv[1:]])


def serve():
    _become("mlx_parallm_serve")


def main():
    _become("mlx_parallm")
