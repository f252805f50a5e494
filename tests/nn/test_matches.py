"""Attribute matches: a hidden item's logits rise for items that share what the shown events have, and for those alone."""

import math

import torch
import torch.nn.functional as F

from srp4ctr.contract.transforms import Field
from srp4ctr.contract.vocabulary import FIRST_VALUE, PADDING, UNKNOWN
from srp4ctr.nn.matches import KEY_WIDTH, AttributeMatches, Matched

WIDTH, HEADS, VALUES = 8, 2, 5
BRAND = Field(name="brand", type="categorical", start=1, width=1, size=FIRST_VALUE + VALUES)
SUBJECTS = Field(name="subjects", type="multi_valued", start=2, width=2, size=FIRST_VALUE + VALUES)
A, B, C = FIRST_VALUE, FIRST_VALUE + 1, FIRST_VALUE + 2
# Id, brand, two subjects.
CATALOGUE = torch.tensor(
    [
        [FIRST_VALUE, A, A, B],
        [FIRST_VALUE + 1, B, B, PADDING],
        [FIRST_VALUE + 2, UNKNOWN, PADDING, PADDING],
        [FIRST_VALUE + 3, C, C, PADDING],
    ]
)
MASK = torch.tensor([0, BRAND.size, SUBJECTS.size, PADDING])


def new_matches() -> AttributeMatches:
    """Two heads of given weights; values are worth more or less, by head."""
    torch.manual_seed(1)
    matches = AttributeMatches((BRAND, SUBJECTS), WIDTH, HEADS, CATALOGUE)
    with torch.no_grad():
        for worth in matches.worth:
            worth.uniform_(0.5, 2.0)
    return matches


def match(events: list[torch.Tensor]) -> Matched:
    """The matches of one hidden position, the last of the events."""
    matches = new_matches()
    shown = torch.stack(events)[None]
    hidden = torch.zeros(shown.shape[:2], dtype=torch.bool)
    hidden[:, -1] = True
    with torch.no_grad():
        return matches(torch.randn(1, len(events), WIDTH), shown, hidden)


def test_items_that_share_a_value_gain_and_no_others() -> None:
    same_brand_and_subject, a_subject, unknown, nothing = (
        match([CATALOGUE[0], MASK]).item_logits()[0].tolist()
    )
    assert same_brand_and_subject > a_subject > 0
    assert unknown == nothing == 0.0


def test_what_is_hidden_unknown_or_padding_is_pointed_at_by_none() -> None:
    padding = torch.full((4,), PADDING)
    assert match([padding, CATALOGUE[2], MASK]).item_logits()[0].tolist() == [0.0] * 4


def test_matches_are_attention_to_values() -> None:
    """Of each attribute and head: a softmax over events that show a value and one that shows none, shared by an event's values."""
    matches = new_matches()
    generator = torch.Generator().manual_seed(2)
    shown = torch.stack([CATALOGUE[[0, 1, 3, 1]], torch.stack([MASK, CATALOGUE[2], CATALOGUE[0], MASK])])
    hidden = torch.tensor([[False, True, False, True], [True, False, False, True]])
    encoded = torch.randn(2, 4, WIDTH, generator=generator)
    with torch.no_grad():
        got = matches(encoded, shown, hidden)
        of_heads = (len(matches.attributes), HEADS)
        for place, (user, position) in enumerate(hidden.nonzero().tolist()):
            h = encoded[user, position]
            query = matches.query(h).view(*of_heads, KEY_WIDTH)
            key = matches.key(encoded[user]).view(-1, *of_heads, KEY_WIDTH)
            strength = F.softplus(matches.strength(h)).view(of_heads)
            for a, field in enumerate(matches.attributes):
                values = [
                    [code for code in codes if FIRST_VALUE <= code < field.size]
                    for codes in shown[user][:, field.columns].tolist()
                ]
                bag = torch.zeros(field.size)
                for head in range(HEADS):
                    score = [
                        math.exp(query[a, head] @ key[event, a, head] / math.sqrt(KEY_WIDTH))
                        if values[event]
                        else 0.0
                        for event in range(4)
                    ]
                    for event, codes in enumerate(values):
                        for code in codes:
                            weight = score[event] / (1 + sum(score)) / len(codes)
                            bag[code] += strength[a, head] * weight * matches.worth[a][head, code]
                torch.testing.assert_close(got.bags[a][place], bag)


def test_some_items_have_the_logits_that_they_have_among_all() -> None:
    values = torch.tensor([3, 0, 0, 1])
    found = match([CATALOGUE[1], CATALOGUE[0], MASK])
    torch.testing.assert_close(found.item_logits(values), found.item_logits()[:, values])


def test_targets_have_the_logits_that_they_have_among_all() -> None:
    found = Matched((BRAND, SUBJECTS), CATALOGUE, (torch.randn(4, BRAND.size), torch.randn(4, SUBJECTS.size)))
    target = torch.tensor([3, 0, 2, 1])
    torch.testing.assert_close(found.target_logits(target), found.item_logits(target).diagonal())
    some = torch.tensor([True, False, False, True])
    torch.testing.assert_close(
        found.select(some).target_logits(target[some]), found.target_logits(target)[some]
    )
