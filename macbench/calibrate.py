"""`macbench calibrate`: MAC's tau and K for a byte budget, from one dense pass.

MAC's budget is an outcome: how often queries repeat. So held-out samples are decoded once by full
attention, with MAC's ring in shadow: for every step, layer, head and ring size, the distance and
position of the nearest query. Which row is nearest does not depend on tau, so the budget of every
tau follows: a KV head saves what the row that covers least would, if every query head of its group
is closer than the radius, and nothing if one is not. It falls with the radius; bisection finds tau.
Of the ring sizes the one that allows the strictest tau is taken: its ring costs bytes, too.

What this leaves out: under MAC itself answers and queries drift, and rows are reused that were
reused before. So MAC is run on the same samples, and where it reads something else, aims again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from macbench import calibration
from macbench.attention import Geometry, Method, Needs, create
from macbench.attention.mac import NEVER, ROUNDING, Mac
from macbench.calibration import Calibration
from macbench.engine import Answer
from macbench.engine.backend import resolve
from macbench.errors import MacbenchError
from macbench.groups import Group, make_groups, prompt_sha
from macbench.kernels.paged import wide
from macbench.models import Model, Source, load, pick_device
from macbench.run import make_engine

if TYPE_CHECKING:
    from macbench.config import RunConfig
    from macbench.progress import Progress

RINGS = (64, 128, 256, 512, 1024)
SEED = 4242  # unless told: not that of a run
GRID = 100_000  # taus between 0 and 1
TRIES = 4  # runs of MAC at most
CLOSE = 0.05  # of the budget, relative: near enough
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
    if "seed" not in own:
        rest.append(f"seed={SEED}")
    if "method" not in own:
        rest.append("method=mac")
    config = configure([*rest, f"out={own['out']}"])
    if {spec.name for spec in config.cells} != {"mac"}:
        raise MacbenchError("calibrate solves for mac only; other methods take budget= in a run.")
    if "mac.tau" in own:
        raise MacbenchError("mac.tau is what calibrate solves for; leave it out.")
    apart = {str({**spec.knobs, "K": 0}) for spec in config.cells}
    knobs = config.cells[0].knobs
    if len(apart) > 1 or knobs["match"] != "nearest" or knobs["max_chain"] is not None:
        raise MacbenchError(
            "calibrate takes one value of every option of mac but K; match=nearest, no max_chain."
        )
    if len(config.lengths) > 1:
        raise MacbenchError("calibrate at one length=; budgets at others differ.")
    rings = sorted({spec.knobs["K"] for spec in config.cells}) if "mac.K" in own else [*RINGS]
    return Asked(budget, per, rings, Path(own["out"]).expanduser()), config


@dataclass
class Recorded:
    """What a block's dense decode showed. distance, position: [layers, slots, steps, Hq, rings] of
    the nearest query; seen [slots, steps]: tokens in the cache, 0 where the row had ended."""

    rings: list[int]
    distance: Tensor
    position: Tensor
    seen: Tensor


class Shadow(Method):
    """Full attention that records what MAC's match would find, for several ring sizes at once."""

    name = "shadow"

    def __init__(self, mac: Mac, rings: Sequence[int], steps: int):
        self.rings, self.steps, self.match_on = sorted(rings), steps, mac.match_on
        self.size = max(rings)
        self.needs = Needs(prompt_queries=self.size)

    def allocate(self, geometry, slots, max_tokens):
        self.geometry = geometry
        heads, d, device = geometry.q_heads, geometry.head_dim, geometry.device
        ring = (geometry.layers, slots, heads, self.size, d)
        self.queries = torch.zeros(ring, dtype=geometry.dtype, device=device)
        shape = (geometry.layers, slots, self.steps, heads, len(self.rings))
        self.distance = torch.zeros(shape, device=device)
        self.position = torch.zeros(shape, dtype=torch.int32, device=device)
        self.seen = torch.zeros(slots, self.steps, dtype=torch.int64, device=device)
        self.row = torch.arange(slots, device=device)
        return 0

    def begin(self, layer, slot, prompt, view):
        if layer == 0:
            self.seen[slot] = 0
        kept = prompt.q_pre if self.match_on == "pre_rope" else prompt.q
        queries = kept[layer][-self.size :]
        position = torch.arange(prompt.length - len(queries), prompt.length, device=queries.device)
        at = position % self.size
        self.queries[layer, slot, :, at] = queries.transpose(0, 1).to(self.queries.dtype)

    def attend(self, layer, q_pre, q, view, trace):
        matched = q_pre if self.match_on == "pre_rope" else q
        t, step = view.lens - 1, view.step.clamp_max(self.steps - 1)
        distance, position = self._nearest(layer, matched, t)
        live = view.live[:, None, None]
        for kept, new in ((self.distance[layer], distance), (self.position[layer], position)):
            kept[self.row, step] = torch.where(live, new.to(kept.dtype), kept[self.row, step])
        if layer == 0:
            self.seen[self.row, step] = torch.where(view.live, view.lens, self.seen[self.row, step])
        self.queries[layer, self.row, :, t % self.size] = matched.to(self.queries.dtype)
        return view.exact(layer, q)[0]

    def _nearest(self, layer, matched, t):
        """For every ring size the least distance and the oldest position that has it (up to
        rounding), as in `Mac`: [B, Hq, rings] each."""
        query = wide(matched)
        apart = (wide(self.queries[layer]) - query[:, :, None]).square().sum(-1).sqrt()
        slot = torch.arange(self.size, device=t.device)
        t = t[:, None]
        place = (t - 1 - (t - 1 - slot) % self.size)[:, None]  # newest x < t with x = slot mod size
        slack = ROUNDING * query.norm(dim=-1, keepdim=True)
        found = []
        for ring in self.rings:
            held = (place >= 0) & (place >= t[..., None] - ring)
            distance = apart.masked_fill(~held, torch.inf)
            least = distance.amin(-1, keepdim=True)
            equal = held & (distance <= least + slack)
            oldest = place.masked_fill(~equal, NEVER).amin(-1).clamp(0).minimum(t)
            found.append((least.squeeze(-1), oldest))
        return tuple(torch.stack(each, -1) for each in zip(*found, strict=True))

    def recorded(self) -> Recorded:
        return Recorded(self.rings, self.distance.cpu(), self.position.cpu(), self.seen.cpu())

    def settle(self, view, trace):
        lens = view.lens[:, None]
        trace.read(slice(None), view, head_tokens=lens, kv_tokens=lens)


def bisect(holds: Callable[[float], bool]) -> float:
    """The largest x in [0, 1], to GRID parts, at which a condition holds that ends at some x."""
    low, high = 0, GRID + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle / GRID) else (low, middle)
    return low / GRID


@dataclass(frozen=True)
class Curve:
    """Byte budget against tau, of one layer or of all, with one ring size.

    worst [n], rising: of every KV head and step the distance of its group's farthest head; saved
    [n]: the tokens not read where it is within the radius, summed up. total: tokens of full
    attention. fixed: share read whatever is matched: 1 and the ring.
    """

    worst: NDArray
    saved: NDArray
    total: float
    fixed: float
    head_dim: int

    @staticmethod
    def of(worst: NDArray, saved: NDArray, total: float, fixed: float, head_dim: int) -> Curve:
        """From the pairs in any order."""
        order = np.argsort(worst, kind="stable")
        return Curve(worst[order], np.cumsum(saved[order]), total, fixed, head_dim)

    def at(self, tau: float) -> float:
        """Predicted byte budget."""
        radius = (2 * self.head_dim) ** 0.5 * (1 - tau)
        hits = int(np.searchsorted(self.worst, radius, side="left"))
        return self.fixed - (float(self.saved[hits - 1]) / self.total if hits else 0.0)

    def solve(self, budget: float) -> float:
        """The strictest tau that reads no more than `budget`; 0 where none does."""
        return bisect(lambda tau: self.at(tau) <= budget)


def curves(blocks: Sequence[Recorded], mac: Mac, ring: int, geometry: Geometry) -> list[Curve]:
    """A curve per layer from the recorded blocks, for `mac` with this ring size."""
    number = blocks[0].rings.index(ring)
    groups = (geometry.kv_heads, geometry.group)
    bytes_ = replace(mac, K=ring).ring_bytes(geometry)
    scanned = geometry.group * ring * geometry.head_dim * geometry.dtype.itemsize
    found = []
    for layer in range(geometry.layers):
        worst, saved, seen = [], [], []
        for block in blocks:
            held = block.seen > 0
            tokens = block.seen[held][:, None]  # [steps, 1]
            distance = block.distance[layer][held][..., number]
            end = mac.covered(block.position[layer][held][..., number].long())
            usable = (end > mac.sink) & (tokens - 1 >= mac.min_context)
            distance = distance.masked_fill(~usable, torch.inf)
            worst.append(distance.unflatten(-1, groups).amax(-1))
            saved.append((end - mac.sink).clamp_min(0).unflatten(-1, groups).amin(-1))
            seen.append(tokens)
        context = torch.cat(seen).flatten()
        idle = int((context <= mac.min_context).sum())  # steps that do not look at the ring
        meta = (len(context) * bytes_ - idle * scanned) / geometry.token_bytes
        total = float(context.sum())
        parts = [(torch.cat(x).flatten().double().numpy()) for x in (worst, saved)]
        heads, d = geometry.kv_heads, geometry.head_dim
        found.append(Curve.of(*parts, total * heads, 1 + meta / total, d))
    return found


def pooled(layers: Sequence[Curve]) -> Curve:
    """All layers under one tau."""
    worst = np.concatenate([curve.worst for curve in layers])
    saved = np.concatenate([np.diff(curve.saved, prepend=0.0) for curve in layers])
    total = sum(curve.total for curve in layers)
    return Curve.of(worst, saved, total, layers[0].fixed, layers[0].head_dim)


@dataclass(frozen=True)
class Choice:
    """A ring size and the tau that goes with it."""

    ring: int
    tau: float | list[float]  # one, or one per layer
    predicted: float
    strictness: float  # mean tau


def choose(by_ring: dict[int, list[Curve]], budget: float, per: str) -> list[Choice]:
    """The rings that can read so little, the one with the strictest tau first.

    per="layer": all layers read one and the same share, but those whose least is more.
    """
    found = []
    for ring, layers in by_ring.items():
        if pooled(layers).at(0) > budget:
            continue
        if per == "global":
            tau = pooled(layers).solve(budget)
            found.append(Choice(ring, tau, pooled(layers).at(tau), tau))
            continue

        def read(level: float, layers: list[Curve] = layers) -> float:
            return sum(layer.at(layer.solve(level)) for layer in layers) / len(layers)

        level = bisect(lambda level: read(level) <= budget)
        taus = [layer.solve(level) for layer in layers]
        found.append(Choice(ring, taus, read(level), sum(taus) / len(taus)))
    return sorted(found, key=lambda choice: (-choice.strictness, choice.ring))


@dataclass(frozen=True)
class Try:
    """A run of MAC: the prediction that was aimed at, and what was read."""

    aim: float
    read: float
    choice: Choice
    knobs: dict[str, Any]


def _aim(budget: float, tried: Sequence[Try]) -> float:
    """What to aim at next: the budget, then it less the error, then by secant."""
    if not tried:
        return budget
    last = tried[-1]
    slope = 1.0
    if len(tried) > 1 and last.read != tried[-2].read:
        slope = (last.aim - tried[-2].aim) / (last.read - tried[-2].read)
    return last.aim + slope * (budget - last.read)


def calibrate(asked: Asked, config: RunConfig, progress: Progress) -> Calibration:
    """Record, solve, check and save."""
    model = load(Source(**config.model))
    backend = resolve(config.backend, pick_device(Source(**config.model).device))
    groups = list(make_groups(config, model, progress))
    if not groups:
        raise MacbenchError("none of these tasks can be made at this length; ask for a longer one.")
    mac: Any = create("mac", config.cells[0].knobs)
    samples = sum(len(group.samples) for group in groups)
    progress.start(samples)
    blocks = []
    for group in groups:
        steps = max(r.hold for r in group.requests) + max(r.max_new for r in group.requests)
        for block in _blocks(config, group):
            shadow = Shadow(mac, asked.rings, steps)
            _decode(config, model, group, block, shadow, backend, progress)
            blocks.append(shadow.recorded())
    progress.stop()
    if not any(bool(block.seen.any()) for block in blocks):
        raise MacbenchError("these answers have no decode step to learn from; use another task.")
    by_ring = {ring: curves(blocks, mac, ring, model.geometry) for ring in asked.rings}
    del blocks
    tried: list[Try] = []
    while len(tried) < TRIES and (aim := _aim(asked.budget, tried)) > 0:
        choices = choose(by_ring, aim, asked.per)
        if not tried:
            if not choices:
                raise MacbenchError(_unreachable(asked, by_ring))
            taus = ", ".join(f"{c.strictness:.3f} (K={c.ring})" for c in choices)
            progress.note(f"tau for {100 * aim:g} %: {taus}")
            by_ring = {choices[0].ring: by_ring[choices[0].ring]}  # the ring stays
        if not choices:
            break
        knobs = {**config.cells[0].knobs, "tau": choices[0].tau, "K": choices[0].ring}
        progress.start(samples)
        read = _read(config, model, groups, knobs, backend, progress)
        progress.stop()
        progress.note(_told(choices[0], read))
        tried.append(Try(aim, read, choices[0], knobs))
        if abs(read - asked.budget) <= CLOSE * asked.budget:
            break
    best = min(tried, key=lambda one: abs(one.read - asked.budget))
    found = Calibration(
        method="mac",
        knobs=best.knobs,
        budget=asked.budget,
        predicted=round(best.choice.predicted, 6),
        checked=round(best.read, 6),
        per=asked.per,
        model=model.name,
        weights=model.weights,
        tasks=[group.task_name for group in groups],
        length=config.lengths[0],
        seed=config.seed,
        prompts=[prompt_sha(request) for group in groups for request in group.requests],
    )
    calibration.write(asked.out, found)
    return found


def _blocks(config: RunConfig, group: Group) -> list[range]:
    count = len(group.samples)
    starts = range(0, count, config.block)
    return [range(start, min(start + config.block, count)) for start in starts]


def _decode(
    config: RunConfig,
    model: Model,
    group: Group,
    block: range,
    method: Method,
    backend: str,
    progress: Progress,
) -> list[Answer]:
    """One block through one method."""
    model.prepare(group.tokens)
    engine = make_engine(config, model, group, [method], len(block), backend)
    (answers,) = engine.run([group.requests[i] for i in block])
    progress.advance(len(block))
    return answers


def _read(
    config: RunConfig,
    model: Model,
    groups: Sequence[Group],
    knobs: dict[str, Any],
    backend: str,
    progress: Progress,
) -> float:
    """The byte budget of MAC with these knobs on all samples."""
    g, bytes_, context = model.geometry, 0.0, 0.0
    for group in groups:
        for block in _blocks(config, group):
            mac = create("mac", knobs)
            for answer in _decode(config, model, group, block, mac, backend, progress):
                reads = answer.reads
                bytes_ += sum(map(sum, reads.get("kv_tokens", ()))) * g.token_bytes
                bytes_ += sum(map(sum, reads.get("meta_bytes", ())))
                context += reads["context"]
    return bytes_ / (context * g.layers * g.kv_heads * g.token_bytes)


def _told(choice: Choice, read: float) -> str:
    tau = f"{choice.strictness:.4f}" + (" (mean)" if isinstance(choice.tau, list) else "")
    return (
        f"K={choice.ring} tau={tau}: predicted {100 * choice.predicted:.1f} %, checked by a run "
        f"{100 * read:.1f} % of full attention's bytes"
    )


def _unreachable(asked: Asked, by_ring: dict[int, list[Curve]]) -> str:
    """What MAC reads at least, with every query within the loosest radius taken as a match."""
    least = {ring: pooled(layers).at(0) for ring, layers in by_ring.items()}
    ring = min(least, key=lambda ring: least[ring])
    return (
        f"mac cannot read as little as {100 * asked.budget:g} % here: {100 * least[ring]:.1f} % at "
        f"least, with K={ring} and tau=0, the loosest."
    )
