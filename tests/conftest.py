"""Lets the tests import the independent reading of the specification as ``oracle``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
