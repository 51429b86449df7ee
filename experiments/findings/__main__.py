"""Starts the runs of `macbench.experiments.findings`, several at a time, until a deadline."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import torch

from macbench.experiments.findings import __doc__ as about
from macbench.experiments.findings import runs

GRACE = 20  # seconds to stop in


def main() -> int:
    parser = argparse.ArgumentParser("findings", description=about)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--only", nargs="*", default=[], help="folders, or FOLDER/set")
    parser.add_argument("--jobs", type=int, default=4, help="runs at a time on each GPU")
    parser.add_argument("--list", action="store_true", help="only say what would be run")
    args = parser.parse_args()
    known = dict.fromkeys(name.rpartition("-")[0] or name for name in runs())
    for start in args.only:
        if not any(name.startswith(start) for name in runs()):
            parser.error(f"no run is called {start}; choose from {', '.join(known)}")
    wanted = {
        name: [*words, f"out={args.out / name.rpartition('/')[0]}"]
        for name, words in runs().items()
        if not args.only or any(name.startswith(start) for start in args.only)
    }
    if args.list:
        print("\n".join(f"macbench run {' '.join(words)}" for words in wanted.values()))
        return 0
    run = [sys.executable, "-m", "macbench.cli", "run"]
    commands = {name: [*run, *words] for name, words in wanted.items()}
    return launch(commands, args.out, args.jobs, time.monotonic() + 60 * args.minutes)


def launch(commands: dict[str, list[str]], out: Path, jobs: int, deadline: float) -> int:
    """So many at a time on each GPU, which is all they see; their output to OUT/logs. 0 where all
    are done, 1 where one failed or was stopped."""
    cards = visible()
    waiting = list(commands)
    running: dict[str, tuple[str, subprocess.Popen, IO[str]]] = {}
    (out / "logs").mkdir(parents=True, exist_ok=True)
    code = 0
    while waiting or running:
        late = time.monotonic() > deadline
        for name, (_, process, log) in list(running.items()):
            if late:
                process.send_signal(signal.SIGINT)  # what is measured stays; it continues later
                try:
                    process.wait(GRACE)
                except subprocess.TimeoutExpired:
                    process.kill()
            if process.poll() is not None:
                log.close()
                print(f"{name}: exit code {process.returncode}", flush=True)
                code = code or int(process.returncode != 0)
                del running[name]
        if late:
            return code or int(bool(waiting))
        loads = {card: sum(card == c for c, *_ in running.values()) for card in cards}
        card = min(cards, key=lambda card: loads[card])
        if waiting and loads[card] < jobs:
            name = waiting.pop(0)
            log = (out / "logs" / f"{name.replace('/', '-')}.txt").open("w")
            running[name] = (card, start(commands[name], card, log), log)
        else:
            time.sleep(0.5)
    return code


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [*map(str, range(max(torch.cuda.device_count(), 1)))]
    return named.split(",")


def start(command: list[str], card: str, log: IO[str]) -> subprocess.Popen:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": card}
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)


if __name__ == "__main__":
    sys.exit(main())
