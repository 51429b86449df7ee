"""Lets the tests of this folder import `triton_cases`, and tests/attention's `naive`, `harness`."""

from __future__ import annotations

import sys
from pathlib import Path

here = Path(__file__).parent
sys.path[:0] = [str(here), str(here.with_name("attention"))]
