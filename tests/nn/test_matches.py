"""Attribute matches: a hidden item's logits rise for items that share what the shown events have, and for those alone."""

import torch

from srp4ctr.contract.transforms import Field
from srp4ctr.contract.vocabulary import FIRST_VALUE, PADDING, UNKNOWN
from srp4ctr.nn.matches import AttributeMatches, Matched

WIDTH, VALUES = 8, 5
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


def matched(events: list[torch.Tensor], shift: int = 0) -> Matched:
    """What is said of items for the one hidden position, the last of the events; all before it are encoded `shift` places later."""
    torch.manual_seed(1)
    matches = AttributeMatches((BRAND, SUBJECTS), WIDTH, 2, CATALOGUE)
    shown = torch.stack(events)[None]
    hidden = torch.zeros(shown.shape[:2], dtype=torch.bool)
    hidden[:, -1] = True
    encoded = 3 * torch.randn(1, len(events), WIDTH)
    encoded[:, :-1] = encoded[:, :-1].roll(shift, 1)
    with torch.no_grad():
        return matches(encoded, shown, hidden)


def test_items_that_share_a_value_gain_and_no_others() -> None:
    same_brand_and_subject, a_subject, unknown, nothing = matched([CATALOGUE[0], MASK]).logits()[0].tolist()
    assert same_brand_and_subject > a_subject > 0
    assert unknown == nothing == 0.0


def test_what_is_hidden_unknown_or_padding_is_pointed_at_by_none() -> None:
    padding = torch.full((4,), PADDING)
    assert matched([padding, CATALOGUE[2], MASK]).logits()[0].tolist() == [0.0] * 4


def test_the_encoding_says_which_event_is_pointed_at() -> None:
    """Two events that swap their encodings swap what their values are worth."""
    by_first, by_second = (matched([CATALOGUE[1], CATALOGUE[3], MASK], shift).bags[0][0] for shift in (0, 1))
    assert abs(by_first[B] - by_first[C]) > 0.1
    torch.testing.assert_close(by_first[[B, C]], by_second[[C, B]])


def test_some_items_have_the_logits_that_they_have_among_all() -> None:
    values = torch.tensor([3, 0, 0, 1])
    said = matched([CATALOGUE[1], CATALOGUE[0], MASK])
    torch.testing.assert_close(said.logits(values), said.logits()[:, values])


def test_each_position_has_the_logit_of_its_own_item() -> None:
    said = Matched((BRAND, SUBJECTS), CATALOGUE, [torch.randn(4, BRAND.size), torch.randn(4, SUBJECTS.size)])
    own = torch.tensor([3, 0, 2, 1])
    torch.testing.assert_close(said.own(own), said.logits(own).diagonal())
    some = torch.tensor([True, False, False, True])
    torch.testing.assert_close(said.at(some).own(own[some]), said.own(own)[some])
