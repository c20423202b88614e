"""Compiled attention of one new token of each row, with and without matrix tiles, equals its definition in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from kernel_data import kernels_on, needs_compiler, needs_tiles  # noqa: F401
from torch import Tensor

from grpo_bench import kernels
from grpo_bench.kernels import sampling


@dataclass(frozen=True)
class Step:
    """What one call is given; cells of the cache that no row sees are NaN."""

    query: Tensor
    key: Tensor
    value: Tensor
    own: tuple[Tensor, Tensor]
    prompts: tuple[Tensor, Tensor]
    counts: Tensor
    sizes: Tensor
    places: Tensor
    window: int | None = None
    softcap: float | None = None

    def attention(self) -> Tensor:
        own = tuple(x.clone() for x in self.own)
        out = sampling.decode_attention(
            self.query, self.key, self.value, own, self.prompts, self.counts, self.sizes, self.places, None, None, 1,
            0.3, self.window, self.softcap,
        )  # fmt: skip
        for held, new in zip(own, (self.key, self.value), strict=True):
            for n, count in enumerate(self.counts.tolist()):
                assert torch.equal(held[n, :, count - 1], new[0, :, n])
        return out

    def defined(self) -> Tensor:
        rows, heads, kv = len(self.counts), self.query.shape[1], self.key.shape[1]
        out = torch.empty(1, rows, heads, self.query.shape[3], dtype=torch.float64)
        for n in range(rows):
            count, size, place = int(self.counts[n]), int(self.sizes[n]), int(self.places[n])
            keys, values = (
                torch.cat([prompt[place, :, :size], own[n, :, : count - 1], new[0, :, n, None]], 1).double()
                for prompt, own, new in zip(self.prompts, self.own, (self.key, self.value), strict=True)
            )
            first = max(size + count - self.window, 0) if self.window else 0
            keys, values = (x[:, first:].repeat_interleave(heads // kv, 0) for x in (keys, values))
            scores = (keys @ self.query[0, :, n, :, None].double()).squeeze(-1) * 0.3
            if self.softcap:
                scores = self.softcap * torch.tanh(scores / self.softcap)
            out[0, n] = (scores.softmax(-1)[:, None] @ values).squeeze(1)
        return out

    def of(self, rows: Tensor) -> Step:
        """Some of the rows, in that order."""
        return replace(
            self, query=self.query[:, :, rows], key=self.key[:, :, rows], value=self.value[:, :, rows],
            own=(self.own[0][rows], self.own[1][rows]), counts=self.counts[rows], sizes=self.sizes[rows],
            places=self.places[rows],
        )  # fmt: skip


def step(
    heads: int, kv: int, width: int, members: list[int], sizes: list[int], most: int, dtype: torch.dtype, **kind: float
) -> Step:
    """``members`` rows of each prompt, which has ``sizes`` tokens; rows are in no order."""
    torch.manual_seed(heads * width + most)
    places = torch.tensor([p for p, count in enumerate(members) for _ in range(count)], dtype=torch.long)
    places = places[torch.randperm(len(places))]
    rows, lengths = len(places), torch.tensor(sizes)
    counts = torch.randint(1, most + 1, (rows,))
    counts[0] = most
    prompts = torch.randn(2, len(members), kv, max(sizes) + 3, width).to(dtype)
    own = torch.randn(2, rows, kv, most, width).to(dtype)
    for p, size in enumerate(sizes):
        prompts[:, p, :, size:] = torch.nan
    for n, count in enumerate(counts.tolist()):
        own[:, n, :, count - 1 :] = torch.nan  # the last of them is to be written
    query = torch.randn(1, rows, heads, width).to(dtype).transpose(1, 2)  # as modules give it: strided
    key, value = (torch.randn(1, rows, kv, width).to(dtype).transpose(1, 2) for _ in range(2))
    return Step(query, key, value, (own[0], own[1]), (prompts[0], prompts[1]), counts, lengths[places], places, **kind)  # type: ignore[arg-type]


SHAPES = [  # heads, of keys, width, rows of each prompt, tokens of each, most own
    (9, 3, 64, [8, 0, 3, 6], [70, 5, 33, 129], 40),
    (4, 4, 64, [17, 1], [31, 32], 17),
    (4, 2, 32, [3, 2], [1, 40], 3),
    (14, 2, 64, [5], [100], 65),
    (5, 1, 96, [3, 4], [20, 3], 16),
    (20, 1, 128, [2, 3], [47, 64], 33),  # more heads than a tile has rows
    (32, 2, 32, [3], [9], 9),
    (1, 1, 256, [1], [50], 1),
    (6, 3, 64, [4, 4], [0, 12], 6),  # a prompt without tokens
    (6, 2, 40, [4, 4], [10, 12], 6),  # no whole tiles
]
KINDS = [{}, {"window": 1}, {"window": 6}, {"window": 45}, {"softcap": 2.0}, {"window": 20, "softcap": 1.5}]


@needs_compiler
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tiles"),
    [(torch.float32, False), (torch.bfloat16, False), pytest.param(torch.bfloat16, True, marks=needs_tiles)],
)
def test_attention_is_what_it_is_defined_as(monkeypatch, dtype, tiles, shape, kind):
    if not tiles:
        monkeypatch.setattr(sampling, "_has_tiled_attention", lambda: False)
    given = step(*shape, dtype, **kind)
    exact, out = given.defined(), given.attention()
    near = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.01, "rtol": 2**-7}
    torch.testing.assert_close(out.double(), exact, **near)
    if tiles:  # weights are rounded to 9 bits, sums are not
        assert (out.double() - exact).square().mean().sqrt() < 0.004 * exact.square().mean().sqrt()


@needs_tiles
@pytest.mark.parametrize("kind", [{}, {"window": 20}], ids=str)
def test_a_row_does_not_depend_on_others_or_on_threads(monkeypatch, kind):
    monkeypatch.setattr(kernels, "SMALL", 0)
    given = step(9, 3, 64, [8, 0, 3, 6], [70, 5, 33, 129], 40, torch.bfloat16, **kind)
    torch.set_num_threads(1)
    one = given.attention()
    torch.set_num_threads(2)
    assert torch.equal(given.attention(), one)
    for rows in (torch.randperm(17), torch.tensor([4]), torch.arange(9)):
        assert torch.equal(given.of(rows).attention(), one[:, rows])


@needs_tiles
def test_rows_of_one_place_and_other_sizes():
    """Rows that ended keep the size of a prompt that stood at their place before."""
    given = step(4, 2, 64, [5, 4], [30, 60], 9, torch.bfloat16)
    alive = given.places == 1
    stale = torch.where(torch.arange(9) % 2 == 0, given.sizes.clamp(max=20), given.sizes)
    mixed = replace(given, sizes=torch.where(alive, stale, given.sizes))
    torch.testing.assert_close(mixed.attention().double(), mixed.defined(), atol=0.01, rtol=2**-7)


@needs_tiles
def test_what_is_not_a_number_stays_in_its_row():
    given = step(4, 2, 64, [8], [30], 9, torch.bfloat16)
    clean = given.attention()
    given.own[0][3], given.own[1][3] = torch.nan, torch.nan
    given = replace(given, counts=given.counts.clone())
    given.counts[3] = 9
    out = given.attention()
    others = torch.arange(8) != 3
    assert out[0, 3].isnan().all()
    assert torch.equal(out[:, others], clean[:, others])
