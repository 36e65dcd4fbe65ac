"""What the page about .onnx files says of operators."""

from __future__ import annotations

import re
from pathlib import Path

from lrexport.onnx_network.operators.table import NAMES

PAGE = Path(__file__).parents[2] / "docs" / "onnx_files.md"


def test_the_page_names_every_operator_that_has_gradients_and_no_other() -> None:
    table = PAGE.read_text(encoding="utf-8").split("## Operators with gradients\n")[1]
    assert re.findall(r"`([\w.]+)`", table) == [
        *sorted(name for name in NAMES if "." not in name),
        *sorted(name for name in NAMES if "." in name),
    ]
