"""Decoding many rows at once: prompts enter, every row takes one token per step, rows that ended leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from grpo_bench import kernels
from grpo_bench.kernels import sampling as compiled
from grpo_bench.policy import rotary_table
from grpo_bench.policy.attention import planned
from grpo_bench.rollout import Sampling, pages
from grpo_bench.rollout.cache import SharedPrefixCache
from grpo_bench.rollout.graph import CapturedSteps
from grpo_bench.rollout.plans import DecodePlan, PrefillPlan, Shape, Where
from grpo_bench.rollout.sampling import draw
from grpo_bench.rollout.taped import TapedSteps

if TYPE_CHECKING:
    from grpo_bench.policy import Policy

PREFILL_TOKENS = {"cpu": 4096, "cuda": 16384}  # of one forward of prompts
LEAVE_SHARE = 8  # rows that ended stay, computed in vain, until they are one in so many
SIZES = 4  # where steps are recorded, rows are rounded up to a quarter of the next half, quarter, eighth of all
PROMPT_STEP = 64  # room for prompts comes in so many tokens: the next rollout's fit into it more often
WIDTH_STEP, REACH_STEP = 64, 128  # static shapes read so many columns more at a time


@dataclass(slots=True)
class Held:
    """What the host knows of a row that the decoder holds."""

    row: int  # its number in the rollout
    prompt: int  # its prompt's number
    born: int  # the step in which it entered
    running: bool = True


def _up(x: int, step: int, most: int) -> int:
    return min(-(-x // step) * step, most)


class Decoder:
    """Rows 0..N-1 of its tensors are the N rows it holds; which ones these are does not change what they sample.

    ``step`` is a function of tensors in fixed places and of a ``Shape`` alone, without a look at any of their values:
    with ``static`` shapes, which come in few sizes, it can be captured and replayed.
    """

    def __init__(
        self, policy: Policy, sampling: Sampling, ends: set[int], rows: int, prompts: int, width: int, total: int,
        static: bool,
    ) -> None:  # fmt: skip
        """Room for ``rows`` of ``total`` completions and ``prompts`` prompts of at most ``width`` tokens at once."""
        device, length = policy.device, sampling.max_new_tokens
        self.policy, self.sampling, self.static = policy, sampling, static
        self.captured: CapturedSteps | None = CapturedSteps() if static and device.type == "cuda" else None
        self.taped: TapedSteps | None = TapedSteps() if device.type == "cpu" else None
        # the latest logits were computed at the shape's width and reach, as the compiled attention's are not: expected
        # before the first, so that a rollout does not depend on whether there was one before
        self.sized = not kernels.take(next(policy.model.parameters()))
        step = WIDTH_STEP if static else PROMPT_STEP
        width = -(-width // step) * step
        self.cache = SharedPrefixCache(prompts, width, rows, length)
        self.columns = length + 1  # a row that ended goes on writing behind its end
        self.held: list[Held] = []
        self.alive = 0  # rows held that had not ended at the last look
        self.prompts: list[int] = []  # numbers of the prompts in the cache, by place
        self.lengths: list[int] = []  # and their lengths
        self.now = 0
        self.ends = ends
        self.is_end: Tensor | None = None  # (V,)

        def whole(value: int, size: int = rows) -> Tensor:
            return torch.full((size,), value, dtype=torch.long, device=device)

        # of the rows held; those behind them write to a row ``total`` that nobody reads
        self.tokens, self.counts, self.prompt_lengths = whole(0), whole(1), whole(1)
        self.limits, self.rows, self.places, self.cells = whole(1), whole(total), whole(0), whole(0)
        self.running = torch.zeros(rows, dtype=torch.bool, device=device)
        # of all rows of the rollout
        self.out = torch.zeros(total + 1, self.columns, dtype=torch.long, device=device)
        self.logps = torch.zeros(total + 1, self.columns, dtype=torch.float64, device=device)
        self.uniforms = torch.zeros(total + 1, self.columns, dtype=torch.float64, device=device)
        self.first_states: Tensor | None = None  # (prompts,h): what each prompt's first tokens are drawn from
        self._grids: dict[int, Tensor] = {}  # by members: what was captured of a step keeps its place
        self._members, self.is_grid = 1, False
        self._oldest, self._one_age = 0, True

    def begin(self, uniforms: Tensor | None) -> None:
        """Start a rollout: (total, tokens) uniform numbers, None when nothing is drawn."""
        self.held, self.prompts, self.lengths, self.now, self.alive = [], [], [], 0, 0
        rotary_table.prepare(self.policy.model, self.cache.width + self.columns)
        if self.taped is not None:
            self.taped.begin(self.policy.model)
        self.running.zero_()
        self.counts.fill_(1)  # a rollout that broke off may have left anything
        self.rows.fill_(len(self.out) - 1)
        if uniforms is not None:
            self.uniforms[:-1, :-1] = uniforms

    # --- entering and leaving ---

    def prefill(self, numbers: list[int], prompts: list[list[int]]) -> None:
        """Compute prompts once; their rows may enter from now on, at once or later."""
        device, first = self.policy.device, len(self.prompts)
        most, start = PREFILL_TOKENS[device.type], 0
        while start < len(prompts):
            end, tokens = start + 1, len(prompts[start])
            while end < len(prompts) and tokens + len(prompts[end]) <= most:
                tokens += len(prompts[end])
                end += 1
            part = prompts[start:end]
            plan = PrefillPlan([len(p) for p in part], self.cache, first + start, device)
            ids = torch.tensor([token for prompt in part for token in prompt], device=device)
            states = self.policy.trunk(input_ids=ids[None], **planned(plan, plan.positions)).last_hidden_state[0]
            if self.first_states is None:
                self.first_states = states.new_zeros(self.cache.prompts, states.shape[-1])
            self.first_states[first + start : first + end] = states[plan.last]
            start = end
        self.prompts += numbers
        self.lengths += map(len, prompts)

    def enter(self, rows: list[int], prompts: list[int], limits: list[int]) -> None:
        """Take rows of prompts that were computed, and draw the first token of each."""
        assert self.first_states is not None
        device, start, end = self.policy.device, len(self.held), len(self.held) + len(rows)
        place = {number: i for i, number in enumerate(self.prompts)}
        places = [place[number] for number in prompts]
        self.alive += len(rows)
        self.held += [Held(row, number, self.now) for row, number in zip(rows, prompts, strict=True)]
        self.rows[start:end] = torch.tensor(rows, device=device)
        self.limits[start:end] = torch.tensor(limits, device=device)
        self.prompt_lengths[start:end] = torch.tensor([self.lengths[i] for i in places], device=device)
        self.counts[start:end] = 0
        self.running[start:end] = True
        new = list(dict.fromkeys(places))
        index = {i: n for n, i in enumerate(new)}
        logits = self.policy.logits(self.first_states[torch.tensor(new, device=device)])
        self._choose(logits[torch.tensor([index[i] for i in places], device=device)], slice(start, end))
        self._arrange()

    def ended(self) -> list[int]:
        """Rows, as places in ``held``, that ended since the last look; waits for the device."""
        running = self.running[: len(self.held)]
        if int(running.sum()) == self.alive:
            return []
        flags = running.tolist()
        found = [i for i, on in enumerate(flags) if not on and self.held[i].running]
        for i in found:
            self.held[i].running = False
        self.alive -= len(found)
        return found

    def stop(self, places: list[int]) -> None:
        """End rows, given as places in ``held``; ``ended`` names them at its next look."""
        self.running[torch.tensor(places, device=self.policy.device)] = False

    def release(self, waiting: set[int]) -> None:
        """Let rows that ended go, and the prompts without a row, held or ``waiting``."""
        alive = self.alive
        if alive == len(self.held):
            return
        source, target = _fill([h.running for h in self.held])
        if source:
            src, dst = self._index(source), self._index(target)
            self.cache.move_rows(src, dst, self._reach())
            for x in (self.tokens, self.counts, self.prompt_lengths, self.limits, self.rows, self.running):
                x[dst] = x[src]
            for a, b in zip(source, target, strict=True):
                self.held[b] = self.held[a]
        del self.held[alive:]
        self.running[alive:] = False
        self.rows[alive:] = len(self.out) - 1  # a static step computes them still: not into a row that moved
        needed = waiting | {h.prompt for h in self.held}
        keep = [number in needed for number in self.prompts]
        source, target = _fill(keep)
        if source:
            src, dst = self._index(source), self._index(target)
            self.cache.move_prompts(src, dst)
            assert self.first_states is not None
            self.first_states[dst] = self.first_states[src]
            for a, b in zip(source, target, strict=True):
                self.prompts[b], self.lengths[b] = self.prompts[a], self.lengths[a]
        del self.prompts[sum(keep) :], self.lengths[sum(keep) :]
        self._arrange()

    def _index(self, places: list[int]) -> Tensor:
        return torch.tensor(places, dtype=torch.long, device=self.policy.device)

    def _arrange(self) -> None:
        """Give each row its cell in the grid of prompts and their members."""
        place = {number: i for i, number in enumerate(self.prompts)}
        seen = [0] * len(self.prompts)
        cells = []
        for h in self.held:
            cells.append((place[h.prompt], seen[place[h.prompt]]))
            seen[place[h.prompt]] += 1
        self.places[: len(cells)] = self._index([prompt for prompt, _ in cells])
        self._members = members = max(seen, default=1) or 1
        if self.static:
            self._members = members = 1 << (members - 1).bit_length()
        flat = [prompt * members + member for prompt, member in cells]
        whole = not self.static and self._size(len(flat)) == len(flat)
        self.is_grid = whole and flat == list(range(len(self.prompts) * members))
        self._oldest = min((h.born for h in self.held), default=self.now)
        self._one_age = all(h.born == self._oldest for h in self.held)
        if self.is_grid:
            return
        if members not in self._grids:
            size = self.cache.prompts * members
            self._grids[members] = torch.zeros(size, dtype=torch.long, device=self.policy.device)
        where = self._index(flat)
        self.cells.zero_()
        self.cells[: len(flat)] = where
        grid = self._grids[members].zero_()  # an empty cell repeats row 0, and nobody reads what it gives
        grid[where] = torch.arange(len(flat), device=where.device)

    # --- one token more ---

    def _reach(self) -> int:
        """Own tokens of the oldest row, the one that the next step writes included."""
        return min(self.now - self._oldest + 1, self.cache.length)

    def _size(self, rows: int) -> int:
        """Rows that a step computes for so many: rounded up where steps of few sizes are captured or recorded."""
        most = self.cache.rows
        if self.static:
            return _up(rows, -(-most // LEAVE_SHARE), most)
        if self.sized:
            return rows
        while most > 1 and rows <= -(-most // 2):
            most = -(-most // 2)
        return _up(rows, -(-most // SIZES), most)

    def is_loose(self) -> bool:
        """Whether enough rows ended for those left to be cheaper by themselves."""
        if self.static or self.sized:
            return (len(self.held) - self.alive) * LEAVE_SHARE >= len(self.held)
        return self._size(self.alive) < self._size(len(self.held))

    def shape(self) -> Shape:
        """The sizes of the next step."""
        rows, prompts, width, reach = self._size(len(self.held)), len(self.prompts), max(self.lengths), self._reach()
        cache = self.cache
        if self.static and not self.sized:  # compiled attention reads its sizes from tensors: one shape for all of them
            return Shape(rows, cache.prompts, self._members, cache.width, cache.length, False)
        if self.static:
            prompts = _up(prompts, -(-cache.prompts // 4), cache.prompts)
            width, reach = _up(width, WIDTH_STEP, cache.width), _up(reach, REACH_STEP, cache.length)
            return Shape(rows, prompts, self._members, width, reach, False)
        even = min(self.lengths) == width and self._one_age
        return Shape(rows, prompts, self._members, width, reach, even)

    def logits(self, shape: Shape) -> Tensor:
        """(N,V): what each row's next token is drawn from; its latest one is written to the cache."""
        rows, cells = shape.rows, shape.prompts * shape.members
        counts, lengths = self.counts[:rows], self.prompt_lengths[:rows]
        where = Where(
            counts, lengths, self.places[:rows],
            None if self.is_grid else self.cells[:rows],
            None if self.is_grid else self._grids[shape.members][:cells],
        )  # fmt: skip
        plan = DecodePlan(self.cache, shape, where)
        given = planned(plan, lengths + counts - 1)
        rotary_table.bounded(given["position_ids"], self.cache.width + self.columns)
        trunk = self.policy.trunk(input_ids=self.tokens[None, :rows], **given)
        self.sized = plan.sized
        hidden = trunk.last_hidden_state[0]
        return self.policy.logits(hidden, wide=not kernels.take(hidden))  # ``draw`` reads bfloat16 too

    def step(self, shape: Shape) -> Tensor:
        """One token more of each row, written in place; (N,V) what they were drawn from."""
        logits = self.logits(shape)
        self._choose(logits, slice(0, shape.rows))
        return logits

    def advance(self) -> None:
        """The next step of all rows held; ``captured`` and ``taped`` ones are replayed."""
        shape = self.shape()
        if self.captured is not None:
            self.captured(self, shape)
        elif self.taped is not None:
            self.taped(self, shape)
        else:
            self.step(shape)
        self.now += 1

    def records(self) -> bool:
        """Whether its steps are recorded, or will be."""
        return self.taped is not None and self.taped.allowed and not self.sized

    def give_back(self) -> None:
        """Between rollouts: give the memory of keys, values and steps' results back to the system."""
        pages.give_back(self.cache.slabs + ([] if self.taped is None else self.taped.memory()))

    def size_bytes(self) -> int:
        """Memory of what it holds, the model aside."""
        layers = [x for held in self.cache.layers.values() for x in held.tensors()]
        own = [x for x in vars(self).values() if isinstance(x, Tensor)]
        taped = 0 if self.taped is None else self.taped.size_bytes()
        return sum(x.nbytes for x in [*layers, *own, *self._grids.values()]) + taped

    def _choose(self, logits: Tensor, part: slice) -> None:
        counts, running, numbers, limits = self.counts[part], self.running[part], self.rows[part], self.limits[part]
        if self.is_end is None:
            self.is_end = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            self.is_end[[i for i in sorted(self.ends) if i < logits.shape[-1]]] = True
        if logits.device.type == "cpu" and kernels.take(logits):
            tokens, logps = draw(logits, self.sampling, compiled.look_up(self.uniforms, numbers, counts))
            compiled.settle(
                tokens, logps, numbers, limits, self.is_end, counts, running, self.out, self.logps, self.tokens[part]
            )
            return
        flat = numbers * self.columns + counts
        tokens, logps = draw(logits, self.sampling, self.uniforms.view(-1).index_select(0, flat))
        self.out.view(-1).index_copy_(0, flat, tokens)
        self.logps.view(-1).index_copy_(0, flat, logps.double())
        counts += running
        running &= ~self.is_end.index_select(0, tokens) & (counts < limits)
        self.tokens[part] = tokens


def _fill(keep: list[bool]) -> tuple[list[int], list[int]]:
    """Which entries move where so that those kept come to stand first: sources behind, targets in the holes."""
    count = sum(keep)
    return [i for i in range(count, len(keep)) if keep[i]], [i for i in range(count) if not keep[i]]
