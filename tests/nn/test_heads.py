"""Heads of the pre-training objective: each loss is the textbook's, and a sample of the catalogue estimates the whole."""

import math

import pytest
import torch
import torch.nn.functional as F

from srp4ctr.contract.transforms import Field
from srp4ctr.contract.vocabulary import FIRST_VALUE, PADDING, UNKNOWN
from srp4ctr.nn.heads import FieldHead, ItemHead
from srp4ctr.nn.matches import Matched


def head_of(kind: str, *, tied: bool = False) -> FieldHead:
    """A head of three values whose weights can be followed by hand."""
    head = FieldHead(Field("x", kind, 0, 3 if kind == "multi_valued" else 1, 5), 2, tied=tied)
    with torch.no_grad():
        head.bias.copy_(torch.tensor([0.0, 0.5, 0.0]))
        (head.transform if tied else head).weight.copy_(
            torch.eye(2) if tied else torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        )
        if tied:
            head.transform.bias.zero_()
    return head


HIDDEN = torch.tensor([[1.0, 2.0], [-1.0, 0.0], [9.0, 9.0]])
LOGITS = ((1.0, 2.5, 3.0), (-1.0, 0.5, -1.0))


@pytest.mark.parametrize("kind", ["categorical", "numeric"])
def test_one_of_many_is_a_softmax(kind) -> None:
    """A field of one value has cross-entropy over its values; unknown values neither count nor can be chosen."""
    loss = head_of(kind)(HIDDEN, torch.tensor([[3], [2], [UNKNOWN]], dtype=torch.int32))
    by_hand = [math.log(sum(map(math.exp, row))) - row[at] for row, at in zip(LOGITS, (1, 0), strict=True)]
    assert loss.item() == pytest.approx(sum(by_hand) / 2, rel=1e-5)


def test_several_of_many_is_a_logistic_each() -> None:
    """A multi-valued field has binary cross-entropy over all values; unknowns and padding in a list do not count."""
    codes = torch.tensor([[4, 2, PADDING], [UNKNOWN, 3, 3], [UNKNOWN, PADDING, PADDING]], dtype=torch.int32)
    loss = head_of("multi_valued")(HIDDEN, codes)
    present = ((1, 0, 1), (0, 1, 0))
    by_hand = [
        math.log1p(math.exp(-logit if has else logit))
        for row, flags in zip(LOGITS, present, strict=True)
        for logit, has in zip(row, flags, strict=True)
    ]
    assert loss.item() == pytest.approx(sum(by_hand) / 6, rel=1e-5)


def test_tied_heads_teach_the_embeddings() -> None:
    """A tied head scores a value by its embedding, so that the embedding of the value itself learns."""
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], requires_grad=True)
    head = head_of("categorical", tied=True)
    loss = head(HIDDEN[:1], torch.tensor([[3]], dtype=torch.int32), embeddings)
    x, y = (value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in (1.0, 2.0))
    row = (x, y + 0.5, x + y)
    assert loss.item() == pytest.approx(math.log(sum(map(math.exp, row))) - row[1], rel=1e-5)
    loss.backward()
    assert (embeddings.grad != 0).any(1).all()


WIDTH = 4


def item_head(counts: torch.Tensor, sample: int) -> tuple[ItemHead, torch.Tensor]:
    """A head of given weights with the embeddings of the items, whose logits differ by about 1."""
    torch.manual_seed(3)
    head = ItemHead(counts, WIDTH, sample)
    with torch.no_grad():
        head.bias.normal_()
    return head, torch.randn(len(counts), WIDTH).requires_grad_()


def item_loss(
    head: ItemHead, embeddings: torch.Tensor, h: torch.Tensor, codes, matched: Matched | None = None
) -> torch.Tensor:
    """The head's loss of codes; the embeddings are looked up as the objective does it."""
    return head(
        h,
        torch.as_tensor(codes),
        lambda values: embeddings if values is None else embeddings[values],
        matched,
    )


SKEWED = torch.cat([torch.tensor([6000, 900, 0, 300]), torch.arange(296) % 5])


@pytest.mark.parametrize("target", [0, 1, 2, 250], ids=["most popular", "popular", "never seen", "rare"])
def test_a_sample_estimates_the_sum_over_the_catalogue(target) -> None:
    """Over many draws the mean of exp(loss), the partition over the target's own part, is that of the full softmax.

    Popular items are drawn a thousand times as often as rare ones, and here they are far from the average item; it
    must not show, whether the target is popular itself or not.
    """
    h = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(5))
    codes = [target + FIRST_VALUE]
    full, embeddings = item_head(SKEWED, len(SKEWED))
    sampling, _ = item_head(SKEWED, 60)
    with torch.no_grad():
        for head in (full, sampling):
            head.bias[0] += 2.0
            head.bias[1] -= 2.0
        whole = item_loss(full, embeddings, h, codes).exp().item()
        torch.manual_seed(0)
        drawn = torch.stack([item_loss(sampling, embeddings, h, codes) for _ in range(1200)]).exp().double()
    standard_error = (drawn.std() / len(drawn) ** 0.5).item()
    assert standard_error < 0.02 * whole
    assert drawn.mean().item() == pytest.approx(whole, abs=4 * standard_error)


def test_a_large_sample_gives_the_full_loss() -> None:
    """With many draws one step's loss and gradients are close to those of the softmax over all items."""
    h = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(6))
    counts = torch.cat([SKEWED, torch.zeros(20_000, dtype=torch.int64)])
    codes = torch.randint(len(SKEWED), (40,), generator=torch.Generator().manual_seed(7)) + FIRST_VALUE
    found = []
    for sample in (len(counts), len(counts) - 1):
        head, embeddings = item_head(counts, sample)
        loss = item_loss(head, embeddings, h, codes)
        loss.backward()
        found.append((loss.item(), head.transform.weight.grad))
    (full, full_gradient), (sampled, sampled_gradient) = found
    assert sampled != full
    assert sampled == pytest.approx(full, abs=0.03)
    assert (sampled_gradient - full_gradient).norm() < 0.05 * full_gradient.norm()


def test_a_target_is_never_its_own_negative() -> None:
    """Of two items one is drawn: the other one counts by its corrected logit, and the target not again."""
    counts = torch.tensor([3, 1])
    head, embeddings = item_head(counts, 1)
    h = torch.randn(1, WIDTH)
    with torch.no_grad():
        query = F.gelu(head.transform(h))
        own, other = (query @ embeddings.T + head.bias)[0].tolist()
        # Half by popularity, half uniform.
        chance = (1 / 4 + 1 / 2) / 2
        torch.manual_seed(0)
        losses = [item_loss(head, embeddings, h, [FIRST_VALUE]).item() for _ in range(400)]
    with_other = math.log1p(math.exp(other - own) / chance)
    alone = sum(loss == 0.0 for loss in losses)
    assert sum(loss == pytest.approx(with_other, rel=1e-5) for loss in losses) + alone == len(losses)
    assert alone / len(losses) == pytest.approx(1 - chance, abs=0.08)


@pytest.mark.parametrize("sample", [300, 60], ids=["full", "sampled"])
def test_item_heads_learn(sample) -> None:
    """Gradients reach what is compared: all items, or those drawn and the targets, which alone are pulled upwards."""
    head, embeddings = item_head(SKEWED, sample)
    h = torch.randn(3, WIDTH).requires_grad_()
    targets = torch.tensor([2, 7, 250])
    item_loss(head, embeddings, h, targets + FIRST_VALUE).backward()
    assert h.grad.any(1).all()
    assert all(parameter.grad.any() for parameter in (head.transform.weight, head.transform.bias))
    assert torch.equal(embeddings.grad.any(1), head.bias.grad != 0)
    assert (head.bias.grad[targets] < 0).all()
    rest = torch.ones(len(SKEWED), dtype=torch.bool)
    rest[targets] = False
    assert (head.bias.grad[rest] >= 0).all()
    moved = (head.bias.grad[rest] > 0).sum()
    assert moved == rest.sum() if sample == 300 else 3 < moved <= sample


@pytest.mark.parametrize("sample", [300, 60], ids=["full", "sampled"])
def test_unknown_items_are_no_targets(sample) -> None:
    """Positions whose item has no id of its own do not count; where there is no other, the loss is a harmless 0."""
    head, embeddings = item_head(SKEWED, sample)
    h = torch.randn(4, WIDTH).requires_grad_()
    losses = []
    for codes in ([FIRST_VALUE, UNKNOWN, 9, PADDING], [FIRST_VALUE, 9]):
        torch.manual_seed(1)
        losses.append(item_loss(head, embeddings, h[[0, 2]] if len(codes) == 2 else h, codes).item())
    assert losses[0] == losses[1] > 0
    nothing = item_loss(head, embeddings, h, [UNKNOWN, PADDING, UNKNOWN, UNKNOWN])
    nothing.backward()
    assert nothing.item() == 0
    assert not h.grad.any()
    assert item_loss(head, embeddings, h[:0], torch.empty(0, dtype=torch.int32)).item() == 0


@pytest.mark.parametrize("sample", [300, 60], ids=["full", "sampled"])
def test_matches_are_added_to_logits(sample) -> None:
    """The same for all items changes nothing; more for the target alone makes it likelier by as much.

    What a position whose target is unknown adds changes no other position.
    """
    head, embeddings = item_head(SKEWED, sample)
    h, codes = torch.randn(2, WIDTH), torch.tensor([UNKNOWN, 7 + FIRST_VALUE])
    # An attribute by which each item is known: what is added for a value is added for one item.
    field = Field("kind", "categorical", 0, 1, len(SKEWED))

    def loss(by_item: torch.Tensor) -> float:
        torch.manual_seed(5)
        bag = torch.stack([torch.randn(len(SKEWED)), by_item])
        matched = Matched((field,), torch.arange(len(SKEWED))[:, None], (bag,))
        return item_loss(head, embeddings, h, codes, matched).item()

    nothing = torch.zeros(len(SKEWED))
    torch.manual_seed(5)
    torch.randn(len(SKEWED))
    without = item_loss(head, embeddings, h, codes).item()
    assert loss(nothing) == without
    assert loss(nothing + 3) == pytest.approx(without, rel=1e-4)
    more = loss(nothing.index_fill(0, torch.tensor([7]), 1.5))
    odds, odds_more = (1 / math.expm1(one) for one in (without, more))
    assert odds_more / odds == pytest.approx(math.exp(1.5), rel=1e-3)


def test_a_linear_query_is_compared_as_it_is() -> None:
    head = ItemHead(torch.ones(3), 2, 10, linear=True)
    with torch.no_grad():
        head.transform.weight.copy_(torch.eye(2))
        head.transform.bias.zero_()
    h, items = torch.tensor([[-1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert head.logits(h, lambda _: items).tolist() == [[-1.0, 2.0, 1.0]]
