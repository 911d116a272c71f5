"""AdamW for an embedding table whose rows are brought up to date when they are read.

A batch touches a few hundred of tens of thousands of rows. The others have a gradient of zero, but dense AdamW still
moves them at every step: weight decay, and what is left of their moments. Such steps can wait and be taken at once. A
row with the moments m, v after step a has moved, when it is read after step t, with j = s - a, by

    w_t = w_a prod_{s=a+1..t} (1 - lr_s decay) - m sum_s c_s / (sqrt(v) + e_s)
    c_s = lr_s sqrt(1 - b2^s) / (1 - b1^s) (b1 / sqrt(b2))^j prod_{r=s+1..t} (1 - lr_r decay)
    e_s = eps sqrt(1 - b2^s) b2^(-j/2)
    m_t = m b1^(t-a), v_t = v b2^(t-a)

(torch.optim.AdamW's update with m b1^j and v b2^j put in, numerator and denominator divided by b2^(j/2)). The sums of
c, c e and c e^2 are kept in float64 for every a since all rows were last up to date, so that the sum over s is two
terms of a series around the mean of e, and where sqrt(v) is not large against the spread of e it is summed up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

LONGEST = 1024  # steps that a row can be behind
CHUNK = 1024  # rows that are brought up to date together: more at once do not stay in a cache
SPREAD = 1e-2  # of e against sqrt(v) + e, from which on the sum is computed term by term: its cube is left out
NEGLIGIBLE = 1e-12  # (b1 / sqrt(b2))^j, of terms that are left out there
DECAY, SUM, FIRST, SECOND = range(4)  # rows of ``sums``


class LazyRows:
    """The table of ``embedding``, its moments, and for each row the step after which it stands.

    While it is attached, the rows of a batch are up to date when the embedding is called in training, and all rows
    when it is called in evaluation; gradients of the table are sparse.

    Args:
        settings: a parameter group of torch.optim.AdamW; its betas, eps and weight_decay stay as they are.
    """

    def __init__(self, embedding: nn.Embedding, settings: dict[str, Any]) -> None:
        self.embedding, self.table = embedding, embedding.weight
        (self.beta1, self.beta2), self.eps = settings["betas"], settings["eps"]
        self.weight_decay = settings["weight_decay"]
        self.mean = torch.zeros_like(self.table, requires_grad=False)
        self.square = torch.zeros_like(self.table, requires_grad=False)
        self.stands = torch.zeros(len(self.table), dtype=torch.long)
        self.moved = torch.zeros(len(self.table), dtype=torch.bool)  # rows that had a gradient; others only decay
        self.step = self.start = 0  # done; and when all rows were last up to date
        self.sums = torch.zeros(4, LONGEST + 1, dtype=torch.float64)  # at a - start
        self.sums[DECAY] = 1.0
        self.steps = torch.zeros(2, LONGEST, dtype=torch.float64)  # lr_s sqrt(1 - b2^s) / (1 - b1^s), sqrt(1 - b2^s)
        gaps = torch.arange(LONGEST + 1, dtype=torch.float64)
        ratio = self.beta1 / math.sqrt(self.beta2)
        self.falls, self.rises = ratio**gaps, self.beta2 ** (-gaps / 2)  # of c and of e, by j
        self.left = torch.stack([self.beta1**gaps, self.beta2**gaps]).float()  # of m and v
        self.reach = min(LONGEST, math.ceil(math.log(NEGLIGIBLE) / math.log(ratio)))
        embedding.sparse = True
        self.hook = embedding.register_forward_pre_hook(self.before_reading)

    def detach(self) -> None:
        """Leaves the embedding as any other, all its rows up to date."""
        self.flush()
        self.hook.remove()
        self.embedding.sparse = False

    def before_reading(self, embedding: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if embedding.training:
            self.catch_up(torch.unique(inputs[0]))
        else:
            self.flush()

    @torch.no_grad()
    def flush(self) -> None:
        """All rows up to date."""
        if self.start == self.step:
            return
        for rows in torch.split(self.moved.nonzero()[:, 0], CHUNK):
            self.catch_up(rows)
        fall = 1 - self.sums[DECAY].index_select(0, self.stands - self.start)  # 0 of those that are up to date
        self.table.addcmul_(self.table, fall.float()[:, None], value=-1)
        self.stands.fill_(self.step)
        self.start = self.step
        self.sums.zero_()[DECAY] = 1.0

    @torch.no_grad()
    def catch_up(self, rows: Tensor) -> None:
        """Takes the steps that different ``rows`` have missed."""
        rows = rows[self.stands.index_select(0, rows) < self.step]
        if not len(rows):
            return
        stands = self.stands.index_select(0, rows)
        since, gaps = stands - self.start, self.step - stands
        weight, mean, square = (whole.index_select(0, rows) for whole in (self.table, self.mean, self.square))
        fall, total, middle, spread = self.missed(since, mean)
        below = square.sqrt().add_(middle)
        ratio = spread / below
        moved = mean.mul(total).div_(below)
        small = (ratio > SPREAD).flatten().nonzero()[:, 0]
        moved.mul_(ratio.square_().add_(1))
        if len(small):
            chosen = mean.flatten()[small], square.flatten()[small], since[small // mean.shape[1]]
            moved.view(-1)[small] = self.summed_up(*chosen)
        weight.sub_(moved.addcmul_(weight, fall))
        left = self.left.index_select(1, gaps)[:, :, None]
        self.put(rows, weight, mean.mul_(left[0]), square.mul_(left[1]))

    def missed(self, since: Tensor, mean: Tensor) -> tuple[Tensor, ...]:
        """Of rows, ``[R, 1]`` each: what decay took, the sum of c, its mean of e and the spread of e around it."""
        kept, total, first, second = self.sums.index_select(1, since)
        middle, second = ((part / total).masked_fill(total == 0, 1.0) for part in (first, second))  # 0: rates of 0
        spread = (second - middle.square()).clamp(min=0).sqrt()
        spread *= mean.any(1)  # a row that never had a gradient only decays
        return tuple(each[:, None].float() for each in (1 - kept, total, self.eps * middle, self.eps * spread))

    def summed_up(self, mean: Tensor, square: Tensor, since: Tensor) -> Tensor:
        """The move of single elements, term by term: ``[N]`` each."""
        gaps = torch.arange(1, min(self.reach, self.step - self.start) + 1)
        found = []
        for one in torch.split(torch.arange(len(mean)), CHUNK):
            places = since[one, None] + gaps - 1
            missed = places < self.step - self.start
            places = places.where(missed, 0)
            sizes = self.steps[0][places] * self.falls[gaps] * self.sums[DECAY][places + 1] * missed
            floors = self.eps * self.steps[1][places] * self.rises[gaps]
            found.append((sizes / (square[one, None].double().sqrt() + floors)).sum(1) * mean[one])
        return torch.cat(found).float()

    def put(self, rows: Tensor, weight: Tensor, mean: Tensor, square: Tensor) -> None:
        for whole, part in ((self.table, weight), (self.mean, mean), (self.square, square)):
            whole.index_copy_(0, rows, part)
        self.stands[rows] = self.step

    def touched(self) -> list[Tensor]:
        """The gradient's rows as that of a parameter which has no others, for clipping in place; none without one."""
        if self.table.grad is None:
            return []
        self.table.grad = self.table.grad.coalesce()
        values = self.table.grad.values()
        rows = torch.empty_like(values, requires_grad=True)
        rows.grad = values
        return [rows]

    @torch.no_grad()
    def update(self, gradient: Tensor, rate: float) -> None:
        """A step with a coalesced sparse ``gradient``; the rows that it does not have will take it later."""
        if self.step - self.start == LONGEST:
            self.flush()
        rows, values = gradient.indices()[0], gradient.values()
        self.catch_up(rows)  # those that only other ranks have read
        self.moved[rows] = True
        self.note(rate)
        unbiased = 1 - self.beta1**self.step, math.sqrt(1 - self.beta2**self.step)
        weight, mean, square = (whole.index_select(0, rows) for whole in (self.table, self.mean, self.square))
        weight.mul_(1 - rate * self.weight_decay)
        mean.lerp_(values, 1 - self.beta1)
        square.mul_(self.beta2).addcmul_(values, values, value=1 - self.beta2)
        below = square.sqrt().div_(unbiased[1]).add_(self.eps)
        self.put(rows, weight.addcdiv_(mean, below, value=-rate / unbiased[0]), mean, square)

    def note(self, rate: float) -> None:
        """One more step that rows can have missed."""
        self.step += 1
        count = self.step - self.start  # of such steps
        root = math.sqrt(1 - self.beta2**self.step)
        size = rate * root / (1 - self.beta1**self.step)
        self.steps[:, count - 1] = torch.tensor([size, root], dtype=torch.float64)
        falls, rises = (each[1 : count + 1].flip(0) for each in (self.falls, self.rises))
        sums = self.sums[:, :count].mul_(1 - rate * self.weight_decay)
        term = size * falls
        for row in (SUM, FIRST, SECOND):
            sums[row] += term
            term = term * root * rises

    def state_dict(self) -> dict[str, Any]:
        """Rows as they stand: saving changes no bit of what follows."""
        return {
            "mean": self.mean, "square": self.square, "stands": self.stands, "step": self.step, "start": self.start,
            "sums": self.sums, "steps": self.steps,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("mean", "square", "stands", "sums", "steps"):
            getattr(self, name).copy_(state[name])
        self.step, self.start = state["step"], state["start"]
        self.moved = self.mean.any(1) | self.square.any(1)


class LazyAdamW(torch.optim.AdamW):
    """torch.optim.AdamW, but for a table whose steps are taken by ``rows`` once it is attached."""

    rows: LazyRows | None = None

    def attach(self, embedding: nn.Embedding) -> LazyRows:
        """Raises StopIteration if the table is in no group."""
        self.group = next(g for g in self.param_groups if any(p is embedding.weight for p in g["params"]))
        self.rows = LazyRows(embedding, self.group)
        return self.rows

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        assert self.rows is not None
        table = self.rows.table
        gradient, table.grad = table.grad, None  # AdamW passes over what has no gradient
        super().step()
        if gradient is not None:
            self.rows.update(gradient.coalesce(), self.group["lr"])
        return loss

    def state_dict(self) -> dict[str, Any]:
        assert self.rows is not None
        return super().state_dict() | {"rows": self.rows.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.rows is not None
        super().load_state_dict(state_dict)
        self.group = next(g for g in self.param_groups if any(p is self.rows.table for p in g["params"]))
        self.rows.load_state_dict(state_dict["rows"])
