"""Attribute matches: a hidden item's logits rise for items that share what the shown events have, and for those alone."""

import torch

from srp4ctr.contract.transforms import Field
from srp4ctr.contract.vocabulary import FIRST_VALUE, PADDING, UNKNOWN
from srp4ctr.nn.matches import AttributeMatches

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


def added(events: list[torch.Tensor], values: torch.Tensor | None = None) -> torch.Tensor:
    """What is added for the one hidden position, the last of the events."""
    torch.manual_seed(1)
    matches = AttributeMatches((BRAND, SUBJECTS), WIDTH, 2, CATALOGUE)
    shown = torch.stack(events)[None]
    hidden = torch.zeros(shown.shape[:2], dtype=torch.bool)
    hidden[:, -1] = True
    encoded = torch.randn(1, len(events), WIDTH)
    with torch.no_grad():
        return matches.logits(matches.bags(encoded, shown, hidden), values)[0]


def test_items_that_share_a_value_gain_and_no_others() -> None:
    same_brand_and_subject, a_subject, unknown, nothing = added([CATALOGUE[0], MASK]).tolist()
    assert same_brand_and_subject > a_subject > 0
    assert unknown == nothing == 0.0


def test_what_is_hidden_unknown_or_padding_is_pointed_at_by_none() -> None:
    padding = torch.full((4,), PADDING)
    assert added([padding, CATALOGUE[2], MASK]).tolist() == [0.0] * 4


def test_some_items_have_the_logits_that_they_have_among_all() -> None:
    values = torch.tensor([3, 0, 0, 1])
    events = [CATALOGUE[1], CATALOGUE[0], MASK]
    torch.testing.assert_close(added(events, values), added(events)[values])
