"""One block of samples through one model and several methods."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from macbench.attention.base import Method, Prompt
from macbench.engine.answer import Answer, Request, Transcript
from macbench.engine.audit import Audit
from macbench.engine.backend import resolve
from macbench.engine.cache import PagedCache
from macbench.engine.clock import Clock, Span
from macbench.engine.decode import Rows, build, decode, views
from macbench.engine.prefill import prefill
from macbench.engine.sampling import Decoding, choose
from macbench.measure.trace import Trace

if TYPE_CHECKING:
    from macbench.models import Model


class Engine:
    """Memory for `slots` samples and their forks; sized once, used for any number of blocks.

    max_prompt counts whole prompts, max_hold the prompt tokens that are decoded instead, max_made
    the tokens of an answer that end a prompt already (they are among the answer's max_new).
    audit: every how many steps a method is compared with exact attention, 0 for never.
    resident[m]: bytes method m holds for one sample, on top of the KV cache.
    """

    def __init__(
        self,
        model: Model,
        methods: Sequence[Method],
        slots: int,
        max_prompt: int,
        max_new: int,
        max_hold: int = 0,
        decoding: Decoding | None = None,
        chunk: int = 4096,
        backend: str = "torch",
        max_made: int = 0,
        audit: int = 0,
    ):
        self.model, self.methods, self.slots = model, list(methods), slots
        self.audit = audit
        self.clock = Clock(model.geometry.device)
        self.decoding = decoding or Decoding()
        self.chunk = chunk
        self.longest = max_prompt + max_new
        self.span = max_hold + max_new  # decode steps at most
        model.prepare(self.longest)
        rows = slots * len(self.methods)
        self.geometry = replace(model.geometry, backend=resolve(backend, model.geometry.device))
        max_prompt += max_made
        self.cache = PagedCache(self.geometry, slots, rows, max_prompt, max_hold + max_new)
        self.resident = [m.allocate(self.geometry, slots, self.longest) for m in self.methods]
        self.keep = max(m.needs.prompt_queries for m in self.methods)

    @property
    def bytes(self) -> int:
        """Bytes held: the pools and what the methods took."""
        return self.cache.bytes + self.slots * sum(self.resident)

    @torch.inference_mode()
    def run(
        self,
        requests: Sequence[Request],
        every: int = 0,
        pause: Callable[[list[list[Answer]]], None] | None = None,
    ) -> list[list[Answer]]:
        """Answers [method][sample] for exactly `slots` requests.

        pause: called after every `every` decode steps with the answers as far as they are.
        """
        assert len(requests) == self.slots, "an engine runs full blocks; make one of the right size"
        hold = [min(r.hold, len(r.tokens) - 1) for r in requests]
        lengths = [len(r.tokens) - h for r, h in zip(requests, hold, strict=True)]
        self.spans: list[tuple[int, int, Span]] = []  # method, slot: its observe() and begin()
        prompts, firsts, seconds = [], [], []
        for slot, request in enumerate(requests):
            began = time.perf_counter()
            prompt, first = self._prefill(slot, request, lengths[slot])
            prompts.append(prompt)
            firsts.append(int(first))
            seconds.append(time.perf_counter() - began)
        self._fork(lengths)
        rows = self._rows(requests, lengths, hold, firsts)
        self._begin(prompts, rows, max(lengths))
        self._wait()
        extra = [[0.0] * self.slots for _ in self.methods]
        for m, slot, span in self.spans:
            extra[m][slot] += self.clock.seconds(span)
        began = time.perf_counter()
        traces = [self._trace() for _ in self.methods]
        audit = Audit(self.audit, len(rows.lens), rows.lens.device) if self.audit else None
        transcript = Transcript(self.model, requests, hold, firsts, len(self.methods))

        def ended(sampled: torch.Tensor) -> list[int]:
            transcript.hear(sampled, rows.made)
            return transcript.ended()

        def answers(sampled: torch.Tensor) -> list[list[Answer]]:
            transcript.hear(sampled, rows.made)
            decode_s = time.perf_counter() - began
            said = [
                line.answer(
                    traces[row // self.slots].fetch(row % self.slots)
                    | (audit.fetch(row) if audit is not None else {}),
                    seconds[row % self.slots],
                    decode_s,
                )
                for row, line in enumerate(transcript.lines)
            ]
            for row, answer in enumerate(said):
                answer.begin_s = extra[row // self.slots][row % self.slots]
            return [said[m : m + self.slots] for m in range(0, len(said), self.slots)]

        loop = build(
            self.model,
            self.cache,
            rows,
            self.methods,
            traces,
            self.decoding,
            max(lengths),
            self.longest,
            max(h + r.max_new - 1 for r, h in zip(requests, hold, strict=True)),
            audit,
        )
        sampled = decode(
            loop,
            every,
            None if pause is None else lambda sampled: pause(answers(sampled)),
            ended if any(r.stop for r in requests) else None,
        )
        said = answers(sampled)
        for method in self.methods:
            for slot in range(self.slots):
                method.end(slot)
        return said

    def sharing(self, requests: Sequence[Request]) -> dict[str, float]:
        """What decoding all methods together saves, measured after `run` on the same requests.

        Seconds per sample and step: `shared`, all methods in one batch; `alone`, the sum over
        methods of each one's own best, at one row per sample or at as many rows as the shared
        batch. Timing only: the methods' state is overwritten.
        """
        count = len(self.methods)
        together = self._time(self.methods, requests, steps=2) / self.slots
        alone = 0.0
        for method in self.methods:
            narrow = self._time([method], requests, steps=2) / self.slots
            broad = self._time([method] * count, requests, steps=1) / (self.slots * count)
            alone += min(narrow, broad)
        return {"shared": together, "alone": alone}

    def _time(self, methods: list[Method], requests: Sequence[Request], steps: int) -> float:
        """Seconds of one decode step of these methods' rows (mean of `steps`)."""
        lengths = [len(r.tokens) - r.hold for r in requests]
        rows = self._rows(requests, lengths, [0] * self.slots, [0] * self.slots)
        part = slice(0, len(methods) * self.slots)
        rows = Rows(**{name: value[part] for name, value in vars(rows).items()})
        rows.live.fill_(True)
        rows.limit.fill_(steps + 2)
        traces = [self._trace() for _ in methods]
        began = time.perf_counter()
        loop = build(
            self.model,
            self.cache,
            rows,
            methods,
            traces,
            self.decoding,
            max(lengths),
            self.longest,
            steps,
        )
        decode(loop)
        self._wait()
        return (time.perf_counter() - began) / steps

    def _wait(self) -> None:
        device = self.geometry.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def _trace(self) -> Trace:
        g = self.geometry
        return Trace(g.layers, self.slots, g.q_heads, g.kv_heads, g.device, self.span)

    def _prefill(self, slot: int, request: Request, length: int) -> tuple[Prompt, torch.Tensor]:
        """Prefill all but the held tokens; the first generated token where nothing is held."""
        device = self.geometry.device
        tokens = torch.tensor(request.tokens[:length], device=device)
        watching: dict[type, list[int]] = {}
        for m, method in enumerate(self.methods):
            if method.needs.observe:
                watching.setdefault(type(method), []).append(m)

        def observe(layer, q_pre, q, keys, start):
            for same in watching.values():
                began = self.clock.mark()
                self.methods[same[0]].observe(layer, slot, q_pre, q, keys, start)
                span = began, self.clock.mark()
                self.spans += [(m, slot, span) for m in same]

        regime = self.model.regime(len(request.tokens) + request.max_new)
        hidden, q_pre, q = prefill(
            self.model,
            self.cache,
            slot,
            tokens,
            regime,
            self.chunk,
            self.keep,
            observe if watching else None,
        )
        key, none = torch.tensor([request.key], device=device), torch.zeros(1, device=device).long()
        first = choose(self.model.logits(hidden[None]), self.decoding, key, none)[0]
        self._wait()
        held = len(request.tokens) - length
        question = length if request.question is None else min(request.question, length)
        room = held + request.max_new
        prompt = Prompt(length, room, question, request.key, q_pre, q)
        prompt.decoded, prompt.regime = request.decoded, regime
        prompt.clock = self.clock.mark
        return prompt, first

    def _rows(self, requests, lengths, hold, firsts) -> Rows:
        device = self.geometry.device
        width = max(1, *hold)
        pending = torch.zeros(self.slots, width, dtype=torch.int64)
        for slot, request in enumerate(requests):
            if hold[slot]:
                pending[slot, : hold[slot]] = torch.tensor(request.tokens[-hold[slot] :])
            else:
                pending[slot, 0] = firsts[slot]
        made = [r.made + (0 if h else 1) for r, h in zip(requests, hold, strict=True)]
        limit = [r.made + r.max_new for r in requests]
        stop = set(self.model.stop_ids)
        live = [
            bool(h) or (r.max_new > 1 and f not in stop)
            for h, r, f in zip(hold, requests, firsts, strict=True)
        ]
        regimes = [self.model.regime(len(r.tokens) + r.max_new) for r in requests]

        def every(values) -> torch.Tensor:  # the same for each method's rows
            one = torch.as_tensor(values)
            return one.repeat(len(self.methods), *[1] * (one.dim() - 1)).to(device)

        return Rows(
            table=self.cache.table,
            lens=every(lengths),
            step=every([r.steps for r in requests]),
            live=every(live),
            pending=every(pending),
            waiting=every([max(h, 1) for h in hold]),
            made=every(made),
            limit=every(limit),
            regimes=every(regimes),
            keys=every([r.key for r in requests]),
        )

    def _fork(self, lengths: list[int]) -> None:
        for row in range(self.slots * len(self.methods)):
            slot = row % self.slots
            self.cache.fork(row, slot, lengths[slot])

    def _begin(self, prompts: list[Prompt], rows: Rows, longest: int) -> None:
        forks = views(self.cache, rows, len(self.methods), self.slots, longest)
        for slot, prompt in enumerate(prompts):
            began = self.clock.mark()
            for layer in range(self.geometry.layers):
                for m, (method, fork) in enumerate(zip(self.methods, forks, strict=True)):
                    prompt.borrowed = []
                    method.begin(layer, slot, prompt, fork)
                    ended = self.clock.mark()
                    self.spans += [(m, slot, span) for span in ((began, ended), *prompt.borrowed)]
                    began = ended
                prompt.shared.clear()
            prompt.q_pre, prompt.q = [], []  # large: K queries of every layer
