"""What one invocation did: a line of OUT/runs.jsonl."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from macbench.engine import Answer
from macbench.engine.memory import peak


@dataclass
class Totals:
    """Sums over the blocks of a run."""

    backend: str  # what attended
    samples: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    steps: float = 0.0  # decode steps of all rows
    repeat_mismatch: int = 0  # re-decoded rows that differ from what is stored
    failed: list[str] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)  # their folders
    sharing: dict[str, float] = field(default_factory=dict)

    def count(self, answers: list[list[Answer]]) -> None:
        """Add a decoded block, by method and sample."""
        self.steps += sum(answer.reads["steps"] for said in answers for answer in said)
        self.prefill_s += sum(a.prefill_s for a in answers[0])
        self.decode_s += answers[0][0].decode_s

    def write(self, out: Path | str, began: float) -> None:
        """Append them, with times and memory."""
        line = {
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
            "wall_s": round(time.time() - began, 2),
            "peak_bytes": peak(),
            **asdict(self),
        }
        with Path(out, "runs.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
