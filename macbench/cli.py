"""The command line. Exit codes: 0 all done, 1 a cell failed, 2 something the user can put right."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from os.path import normpath
from pathlib import Path
from typing import Any, NoReturn

from macbench import __version__
from macbench.errors import MacbenchError

INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one sentence."""

    def error(self, message: str) -> NoReturn:
        raise MacbenchError(f"{message}; see `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """The `macbench` program; returns its exit code."""
    try:
        args, rest = parser().parse_known_args(argv)
        words = [word for word in rest if not word.startswith("-")]
        if rest != words or (rest and args.command not in ("run", "plot")):
            raise MacbenchError(
                f"unknown argument '{rest[0]}'; see `macbench {args.command} --help`."
            )
        if args.command in ("run", "plot"):
            args.options += words
        return args.act(args) or 0
    except MacbenchError as error:
        print(f"macbench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("macbench: stopped; the same command again continues.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `macbench show … | head`
        sys.stderr.close()
        return 0


def parser() -> Parser:
    """Every command, with an example that works as pasted."""
    from macbench.fetch.table import NAMES

    top = Parser(
        prog="macbench",
        description="Long-context quality of KV-cache methods at matched budgets.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"macbench {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, act: Any, about: str, example: str, more: str = "") -> Parser:
        made = commands.add_parser(
            name,
            help=about,
            description=about,
            epilog=f"example:\n  {example}\n{more}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(act=act)
        return made

    add = command(
        "run",
        run,
        "Run tasks with methods; the same command again continues.",
        "macbench run task=ruler/niah_single_2 'method=[full,mac]' 'mac.tau=[0.45,0.6]' length=1k "
        "limit=2 out=results/local/try",
        _options(),
    )
    add.add_argument("-m", "--multirun", action="store_true", help="sweep several runs")
    add.add_argument("options", nargs="*", metavar="key=value")

    add = command(
        "calibrate",
        calibrate,
        "Knobs that read an asked share of bytes (MAC's tau and K), found on held-out samples.",
        "macbench calibrate method=mac budget=0.4 task=ruler/niah_multikey_1 length=4k limit=8 "
        "out=results/local/mac40.yaml\n"
        "  macbench run 'method=[full,mac@results/local/mac40.yaml]' task=ruler/niah_multikey_1 "
        "length=4k out=results/local/matched",
        "\nown options: budget=SHARE out=FILE per=global|layer (one tau, or one per layer); all "
        "others as of `macbench run`, seed=4242 where none is given. method=quest and others that "
        "take a budget, and twilight's p: moved until the share is what they read.",
    )
    add.add_argument("options", nargs="*", metavar="key=value")

    add = command(
        "bench",
        bench,
        "Time attention or a whole model's decode step on a GPU, beside its floor and rivals.",
        "macbench bench attention preset=hit_curve batch=1 'hit=[0,0.9,1]' out=results/local/bench"
        "\n  macbench bench decode preset=mixed out=results/local/bench",
        _bench_options("attention") + _bench_options("decode"),
    )
    add.add_argument("what", choices=("attention", "decode"))
    add.add_argument("options", nargs="*", metavar="key=value")

    add = command(
        "train",
        train,
        "Make the adapter of model=smollm2-long, on a GPU; the same command continues.",
        "macbench train out=results/local/train",
        _train_options(),
    )
    add.add_argument("options", nargs="*", metavar="key=value")

    add = command("list", list_, "What there is to run.", "macbench list methods --json")
    add.add_argument("what", choices=("models", "tasks", "methods"))
    add.add_argument("--json", action="store_true", help="as JSON")

    add = command(
        "score",
        score,
        "Judge stored LongGenBench answers again; generates nothing, the same command continues.",
        "macbench score results/local/run judge=local judge_model=smollm2",
        "\noptions: judge=keyword|local|openai judge_model=NAME judge_url=ADDRESS/v1\n"
        "judge=local without judge_model: the published judge, llama-3.1-8b-instruct (gated)\n"
        "judge=openai reads its key from OPENAI_API_KEY",
    )
    add.add_argument("dir", type=Path, metavar="DIR")
    add.add_argument("options", nargs="*", metavar="key=value")

    add = command("show", show, "The table of a results folder.", "macbench show results/demo")
    add.add_argument("dir", type=Path, metavar="DIR")
    add.add_argument("--format", choices=("md", "csv", "latex"), help="default: for reading")
    which = add.add_mutually_exclusive_group()
    which.add_argument(
        "--averages", action="store_true", help="RULER's own: over its 13 tasks and its lengths"
    )
    which.add_argument("--layers", action="store_true", help="what MAC reuses, layer by layer")

    add = command(
        "compare",
        compare,
        "Methods at matched budgets: scores with intervals, tests against full, sample sizes.",
        "macbench compare results/demo",
    )
    add.add_argument("dirs", type=Path, nargs="+", metavar="DIR")
    add.add_argument("--format", choices=("md", "csv", "latex"), help="default: for reading")
    add.add_argument(
        "--margin",
        type=float,
        metavar="POINTS",
        help="loss that would matter (default: RULER 1, LongBench v2 2, others 3)",
    )
    add.add_argument(
        "--bandwidth",
        type=float,
        metavar="GB/S",
        help="at which a step reads (an H200: 4800), to say when a method's prefill work pays",
    )
    add.add_argument(
        "--against",
        default="full",
        metavar="METHOD",
        help='test against this row, such as "quest budget=0.2" (default: full)',
    )

    add = command(
        "plot",
        plot,
        "Draw a figure from a results folder.",
        "macbench plot accuracy_budget --from results/demo --out results/local/figures\n"
        "  macbench plot budget_curve --from results/demo --out results/local/figures paper=true",
    )
    add.add_argument("figure", metavar="FIGURE")
    add.add_argument("--from", dest="dir", type=Path, required=True, metavar="DIR")
    add.add_argument("--out", type=Path, metavar="DIR", help="default: the folder itself")
    add.add_argument("options", nargs="*", metavar="key=value")

    add = command(
        "fetch",
        fetch,
        "Get a benchmark's data or the embedded model; the same command continues.",
        "macbench fetch ruler\n  macbench fetch --list",
    )
    add.add_argument("what", nargs="?", choices=NAMES)
    add.add_argument("--list", action="store_true", help="what is there and what is missing")

    command("env", env, "Versions and hardware, for a report.", "macbench env")

    add = command(
        "demo",
        demo,
        "A small true comparison on three benchmarks: table and two figures.",
        "macbench demo --samples 2 --length 1k",
    )
    add.add_argument(
        "--samples", type=int, default=5, metavar="N", help="per RULER task (default 5)"
    )
    add.add_argument("--length", default="2k", help="tokens of a RULER sample (default 2k)")
    add.add_argument("--out", type=Path, default=Path("results/local/demo"), metavar="DIR")
    return top


def _options() -> str:
    """The options of `run` with their defaults: conf/config.yaml without its plumbing."""
    from importlib.resources import files

    text = (files("macbench.conf") / "config.yaml").read_text("utf-8")
    body = text.partition("\n\n")[2].partition("\nhydra:")[0]
    body = body.replace("tasks:", "task:").replace("methods:", "method:").rstrip()
    return "\n".join(
        [
            "\noptions and defaults (key=value; a nested key as decoding.temperature=0.7):",
            *(f"  {line}" for line in body.splitlines()),
            "  model: smollm2 # see `macbench list models`; model.source= for any other",
            "\na method's own options: `macbench list methods`, as in mac.tau=[0.45,0.6]",
            "sweeps: macbench run -m length=2k,4k seed=1,2 hydra/launcher=joblib",
        ]
    )


def _bench_options(what: str) -> str:
    """The options of `bench WHAT` with their defaults: its YAML without the first lines."""
    from macbench import presets

    lines = presets.text("bench", what).splitlines()
    more = {
        "attention": "tiling.FIELD=value changes what the kernels choose, such as "
        "tiling.programs=[264,396]; the same command continues",
        "decode": "a method's own options: `macbench list methods`, as in mac.tau=[0.45,0.6]",
    }
    return "\n".join(
        [
            f"\noptions of {what} and defaults (key=value, or a list key=[a,b]):",
            *(f"  {line}".rstrip() for line in lines if not line.startswith("#")),
            f"\npreset=NAME puts others in their place: {', '.join(presets.names('bench', what))}",
            f"{more[what]}\n",
        ]
    )


def _train_options() -> str:
    """The options of `train` with their defaults: its YAML without the first line."""
    from macbench import presets

    lines = presets.text("train", "smollm2-long").splitlines()[1:]
    return "\n".join(
        [
            "\noptions and defaults (key=value; a share as shares.prose=0.2):",
            *(f"  {line}" for line in lines),
        ]
    )


def train(args: argparse.Namespace) -> None:
    from macbench.experiments.long_context_adapter.train import main as train_all
    from macbench.progress import Progress

    with Progress() as progress:
        print(train_all(args.options, progress.note))


def bench(args: argparse.Namespace) -> int:
    if args.what == "decode":
        from macbench.bench.decode import decode

        return decode(args.options)
    from macbench.bench.attention import attention

    return attention(args.options)


def run(args: argparse.Namespace) -> int:
    if args.multirun:
        from macbench.run.sweep import sweep

        return sweep(args.options)
    from macbench.config import configure

    config = configure(args.options)
    from macbench import store
    from macbench.progress import Progress
    from macbench.run.run import run as run_all
    from macbench.tables import report

    with Progress() as progress:
        code = run_all(config, progress)
    print(report.table(store.read(config.out), "text"))
    print(f"\nThis table again: macbench show {config.out}")
    return code


def calibrate(args: argparse.Namespace) -> None:
    from macbench.calibrate.solve import calibrate as solve
    from macbench.calibrate.solve import read_words, told
    from macbench.progress import Progress

    asked, config = read_words(args.options)
    with Progress() as progress:
        found = solve(asked, config, progress)
    print(
        f"asked {100 * found.budget:g} %, {told(found.predicted, found.checked)}\n"
        f"{asked.out}: macbench run 'method=[full,{found.method}@{asked.out}]' …"
    )


def list_(args: argparse.Namespace) -> None:
    from macbench import listing

    rows = getattr(listing, args.what)()
    print(json.dumps(rows, indent=2) if args.json else listing.text(rows))


def score(args: argparse.Namespace) -> None:
    from macbench import score as scoring
    from macbench import store
    from macbench.progress import Progress
    from macbench.tables import report

    asked = scoring.read_options(args.options)
    with Progress() as progress:
        scoring.score(_results(args.dir), asked, progress)
    print(report.table(store.read(args.dir), "text"))


def show(args: argparse.Namespace) -> None:
    from macbench import store
    from macbench.tables import averages, layers, report

    table = averages.table if args.averages else layers.table if args.layers else report.table
    print(table(store.read(_results(args.dir)), args.format or "text"))


def compare(args: argparse.Namespace) -> None:
    from macbench import store
    from macbench.tables import compare as comparing

    results = store.read(*map(_results, args.dirs))
    margin = None if args.margin is None else args.margin / 100
    bandwidth = None if args.bandwidth is None else args.bandwidth * 1e9
    format = args.format or "text"
    print(comparing.table(results, format, margin, bandwidth, args.against))


def plot(args: argparse.Namespace) -> None:
    from macbench import plots
    from macbench.store.cell import check_writable

    folder = args.out or _results(args.dir)
    check_writable(folder)
    for path in plots.draw(args.figure, _results(args.dir), folder, args.options):
        print(path)


def _results(folder: Path) -> Path:
    cell = (folder / "samples.jsonl").is_file()
    if cell or folder.is_file():
        raise MacbenchError(
            f"{folder} is {'one cell of a run' if cell else 'a file'}; give the folder above it, "
            f"{normpath(folder / '..')}."
        )
    if not folder.is_dir():
        raise MacbenchError(f"there is no folder {folder}; give the out= of a run.")
    return folder


def fetch(args: argparse.Namespace) -> None:
    from macbench import fetch as fetching
    from macbench.fetch.meter import Meter

    if args.list:
        for row in fetching.listing():
            if args.what in (None, row["name"]):
                print(f"{row['name']}/{row['file']}  {row['about']} ({row['size']})")
                print(f"    from {row['url']}\n    licence: {row['licence']}\n    {row['state']}")
        return
    if args.what is None:
        raise MacbenchError(f"say what to fetch: {', '.join(fetching.NAMES)}; or --list.")
    print(fetching.fetch(args.what, Meter()))


def env(args: argparse.Namespace) -> None:
    from macbench.environment import environment

    for key, value in environment().items():
        if isinstance(value, dict):
            for name, inner in value.items():
                print(f"{name}: {inner}")
        else:
            print(f"{key}: {value}")


def demo(args: argparse.Namespace) -> int:
    if args.samples < 1:
        raise MacbenchError(f"--samples {args.samples}: give at least 1.")
    from macbench.experiments.demo import main as run_demo
    from macbench.progress import Progress

    with Progress() as progress:
        return run_demo(args.out, args.samples, args.length, progress)


if __name__ == "__main__":
    sys.exit(main())
