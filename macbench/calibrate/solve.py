"""`macbench calibrate`: a method's knobs for a byte budget that only data decide.

MAC: tau and K. Held-out samples are decoded once by full attention with MAC's ring in shadow
(`macbench.calibrate.shadow`), bisection finds the strictest tau for every ring size, and of the
ring sizes the one that allows the strictest is taken: its ring costs bytes, too. Other methods:
their own budget knob, which where heads choose for themselves says less than is read, or Twilight's
p. Tasks weigh the same, however long their answers, as in the tables.

Then the method itself runs on the same samples, and where it reads something else (MAC's answers
and queries drift, heads disagree), the aim is moved; the run that came nearest is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from macbench.attention import Method, create
from macbench.attention.mac import Mac
from macbench.calibrate import saved
from macbench.calibrate.saved import Calibration
from macbench.calibrate.shadow import RINGS, Choice, Recorded, Shadow, choose, curves, mean
from macbench.engine import Answer
from macbench.engine.backend import resolve
from macbench.errors import MacbenchError
from macbench.models import Model, Source, load, pick_device
from macbench.run.groups import Group, make_engine, make_groups, prompt_sha

if TYPE_CHECKING:
    from macbench.config import RunConfig
    from macbench.progress import Progress

SEED = 4242  # unless told: not that of a run
TRIES = 5  # runs of the method at most
CLOSE = 0.02  # of the budget, relative: near enough
PER = ("global", "layer")


@dataclass(frozen=True)
class Asked:
    budget: float
    per: str
    rings: list[int]  # to choose from
    out: Path


def read_words(words: Sequence[str]) -> tuple[Asked, RunConfig]:
    """What `macbench calibrate WORDS` means: its own words, and a run's."""
    from macbench.config import configure

    own = {key: value for key, _, value in (word.partition("=") for word in words)}
    rest = [word for word in words if word.partition("=")[0] not in ("budget", "per", "out")]
    if "seed" not in own:
        rest.append(f"seed={SEED}")
    if "method" not in own:
        rest.append("method=mac")
    config = configure(rest)
    for key in ("budget", "out"):
        if not own.get(key):
            raise MacbenchError(
                f"{key}= is missing; as in macbench calibrate method=mac budget=0.2 out=mac20.yaml."
            )
    try:
        budget = float(own["budget"])
    except ValueError:
        budget = 0.0
    if not 0 < budget < 1:
        raise MacbenchError(f"budget={own['budget']} must be a share in (0, 1), such as 0.2.")
    per = own.get("per", "global")
    if per not in PER:
        raise MacbenchError(f"per={per}: choose {' or '.join(PER)}.")
    if len(config.lengths) > 1:
        raise MacbenchError("calibrate at one length=; budgets at others differ.")
    _check_method(config, own)
    rings = sorted({spec.knobs["K"] for spec in config.cells}) if "mac.K" in own else [*RINGS]
    return Asked(budget, per, rings, Path(own["out"]).expanduser()), config


def _check_method(config: RunConfig, own: dict[str, str]) -> None:
    """Refuse what cannot be solved for."""
    first = config.cells[0]
    solved = "tau" if first.name == "mac" else _knob(first.knobs)
    if len({spec.name for spec in config.cells}) > 1 or solved is None:
        raise MacbenchError("calibrate one method: mac, or another that takes a budget or p.")
    if f"{first.name}.{solved}" in own:
        raise MacbenchError(f"{first.name}.{solved} is what calibrate solves for; leave it out.")
    if len({str({**spec.knobs, "K": 0}) for spec in config.cells}) > 1:
        raise MacbenchError("calibrate takes one value of every option but mac.K.")
    if first.name == "mac" and (
        first.knobs["match"] != "nearest" or first.knobs["max_chain"] is not None
    ):
        raise MacbenchError("calibrate predicts match=nearest without max_chain only.")
    if first.name != "mac" and own.get("per", "global") != "global":
        raise MacbenchError(f"per={own['per']} is for mac: {first.name} has one budget.")


def _knob(knobs: dict[str, Any]) -> str | None:
    """What a method's bytes rise with."""
    return next((knob for knob in ("budget", "p") if knob in knobs), None)


@dataclass
class HeldOut:
    """The samples to learn from, ready to be decoded."""

    config: RunConfig
    model: Model
    groups: list[Group]
    progress: Progress

    def decode(self, make: Callable[[Group], Method]) -> Iterator[tuple[str, Method, list[Answer]]]:
        """Every block of samples through a method of its own; the task's name with it."""
        self.progress.start(sum(len(group.samples) for group in self.groups))
        for group in self.groups:
            self.model.prepare(group.tokens)
            for at in range(0, len(group.requests), self.config.block):
                requests = group.requests[at : at + self.config.block]
                method = make(group)
                engine = make_engine(group, [method], len(requests))
                (answers,) = engine.run(requests)
                self.progress.advance(len(requests))
                yield group.task_name, method, answers
        self.progress.stop()

    def read(self, name: str, knobs: dict[str, Any]) -> float:
        """The byte budget of a method with these knobs: mean over tasks."""
        g = self.model.geometry
        bytes_: dict[str, float] = defaultdict(float)
        context: dict[str, float] = defaultdict(float)
        for task, _, answers in self.decode(lambda group: create(name, knobs)):
            for answer in answers:
                bytes_[task] += sum(map(sum, answer.reads.get("kv_tokens", ()))) * g.token_bytes
                bytes_[task] += sum(map(sum, answer.reads.get("meta_bytes", ())))
                context[task] += answer.reads["context"]
        full = g.layers * g.kv_heads * g.token_bytes
        shares = [bytes_[task] / (context[task] * full) for task in context if context[task]]
        if not shares:
            raise MacbenchError(
                "these answers have no decode step to learn from; use another task."
            )
        return sum(shares) / len(shares)


@dataclass(frozen=True)
class Proposal:
    """Knobs that should read the budget that was aimed at."""

    knobs: dict[str, Any]
    predicted: float | None
    told: str


def mac_solver(asked: Asked, held: HeldOut) -> Callable[[float], Proposal | None]:
    """One dense pass; from then on tau for any budget. The ring is that of the first one."""
    knobs = held.config.cells[0].knobs
    mac = cast(Mac, create("mac", knobs))

    def shadow(group: Group) -> Shadow:
        steps = max(r.hold for r in group.requests) + max(r.max_new for r in group.requests)
        return Shadow(mac, asked.rings, steps)

    blocks: dict[str, list[Recorded]] = defaultdict(list)
    for task, method, _ in held.decode(shadow):
        if (block := cast(Shadow, method).recorded()).seen.any():
            blocks[task].append(block)
    if not blocks:
        raise MacbenchError("these answers have no decode step to learn from; use another task.")
    geometry = held.model.geometry
    by_ring = {ring: curves([*blocks.values()], mac, ring, geometry) for ring in asked.rings}
    kept: list[int] = []

    def solve(budget: float) -> Proposal | None:
        rings = {ring: by_ring[ring] for ring in kept or by_ring}
        choices = choose(rings, budget, asked.per)
        if not kept and not choices:
            least = {ring: mean(layers).at(0) for ring, layers in by_ring.items()}
            ring = min(least, key=lambda ring: least[ring])
            raise MacbenchError(
                f"mac cannot read as little as {100 * budget:g} % here: {100 * least[ring]:.1f} % "
                f"at least, with K={ring} and tau=0, the loosest; ask for a larger budget=, or "
                "take a longer length= or a smaller mac.r."
            )
        if not choices:
            return None
        if not kept:
            kept.append(choices[0].ring)
            taus = ", ".join(f"{c.strictness:.3f} (K={c.ring})" for c in choices)
            held.progress.note(f"tau for {100 * budget:g} %: {taus}")
        return _proposal(knobs, choices[0])

    return solve


def _proposal(knobs: dict[str, Any], choice: Choice) -> Proposal:
    many = " (mean)" if isinstance(choice.tau, list) else ""
    told = f"K={choice.ring} tau={choice.strictness:.4f}{many}"
    solved = {**knobs, "tau": choice.tau, "K": choice.ring}
    return Proposal(solved, choice.predicted, told)


def knob_solver(held: HeldOut, knob: str) -> Callable[[float], Proposal | None]:
    """The method's own knob; a budget from its floor on."""
    spec = held.config.cells[0]
    tokens = max(group.tokens for group in held.groups)
    floor = create(spec.name, spec.knobs).floor(held.model.geometry, tokens) or 0.0

    def solve(value: float) -> Proposal | None:
        if knob == "budget" and not floor <= value <= 1:
            return None
        value = min(max(value, 0.01), 1.0)
        predicted = value if knob == "budget" else None
        return Proposal({**spec.knobs, knob: value}, predicted, f"{knob}={value:.4f}")

    return solve


def next_aim(budget: float, tried: Sequence[tuple[float, float]], first: float) -> float:
    """What to aim at after these (aim, read): at `first`; then by as much more or less as was read
    less or more; and once both sides are known between them. A method that derails may read less
    for a higher aim, so no slope is trusted."""
    if not tried:
        return first
    low = max(((aim, read) for aim, read in tried if read <= budget), default=None)
    high = min(((aim, read) for aim, read in tried if read > budget), default=None)
    if low and high and low[0] < high[0]:
        share = (budget - low[1]) / (high[1] - low[1])
        return low[0] + min(max(share, 0.1), 0.9) * (high[0] - low[0])
    aim, read = tried[-1]
    return aim + budget - read


def told(predicted: float | None, read: float) -> str:
    """Such as "predicted 20.0 %, checked by a run 20.3 % of full attention's bytes"."""
    before = "" if predicted is None else f"predicted {100 * predicted:.1f} %, "
    return f"{before}checked by a run {100 * read:.1f} % of full attention's bytes"


def calibrate(asked: Asked, config: RunConfig, progress: Progress) -> Calibration:
    """Solve, check by running, and save."""
    saved.check_writable(asked.out)
    model = load(Source(**config.model), reads=True)
    resolve(config.backend, pick_device(Source(**config.model).device))
    groups = list(make_groups(config, model, progress))
    if not groups:
        raise MacbenchError("none of these tasks can be made at this length; ask for a longer one.")
    held, name = HeldOut(config, model, groups, progress), config.cells[0].name
    knobs = config.cells[0].knobs
    knob = "budget" if name == "mac" else _knob(knobs)
    assert knob is not None  # `read_words` has seen to it
    first = asked.budget if knob == "budget" else knobs[knob]
    create(name, knobs).check(model.geometry, config.lengths[0])
    solve = mac_solver(asked, held) if name == "mac" else knob_solver(held, knob)
    tried: list[tuple[float, float]] = []  # what was aimed at and read
    proposals: list[Proposal] = []
    while len(tried) < TRIES and (proposal := solve(aim := next_aim(asked.budget, tried, first))):
        read = held.read(name, proposal.knobs)
        progress.note(f"{proposal.told}: {told(proposal.predicted, read)}")
        tried.append((aim, read))
        proposals.append(proposal)
        if abs(read - asked.budget) <= CLOSE * asked.budget:
            break
    if not tried:
        least = create(name, knobs).floor(model.geometry, max(group.tokens for group in groups))
        told_least = "" if least is None else f": {100 * least:.1f} % at least"
        raise MacbenchError(
            f"{name} cannot read as little as {100 * asked.budget:g} % here{told_least}; ask for a "
            "larger budget=, or take a longer length=."
        )
    errors = [abs(read - asked.budget) for _, read in tried]
    best = errors.index(min(errors))
    found = Calibration(
        method=name,
        knobs=proposals[best].knobs,
        budget=asked.budget,
        predicted=proposals[best].predicted,
        checked=round(tried[best][1], 6),
        per=asked.per,
        model=model.name,
        weights=model.weights,
        tasks=[group.task_name for group in groups],
        length=config.lengths[0],
        seed=config.seed,
        prompts=[prompt_sha(request) for group in groups for request in group.requests],
    )
    saved.write(asked.out, found)
    return found
