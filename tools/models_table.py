"""Puts build/models.md, which the tensor tests wrote (`make models`), into README.md between its two marks."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
readme = ROOT / "README.md"
table = (ROOT / "build" / "models.md").read_text()
marks = re.compile(r"(<!-- models -->\n).*?(<!-- /models -->)", re.S)
text, count = marks.subn(lambda m: m[1] + table + m[2], readme.read_text())
assert count == 1, "README.md has the marks once"
readme.write_text(text)
