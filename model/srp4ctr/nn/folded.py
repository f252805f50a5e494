"""The model as it is served: what depends on an item alone is computed when the bundle is made, what depends on the user
alone once a request, and only their interaction for every candidate.

It computes what `Srp4Ctr.score` does, for one user, from the same parameters; the export compares the two.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srp4ctr.nn.attention import Block
from srp4ctr.nn.model import Srp4Ctr, State


class ItemVectors(nn.Module):
    """An item's codes to all that the scorer needs of it: its normed embedding, and what it first asks of a user."""

    def __init__(self, model: Srp4Ctr) -> None:
        super().__init__()
        self.model = model

    @property
    def width(self) -> int:
        """V: D, and as many again where candidates attend."""
        return self.model.config.width * (2 if len(self.model.cross) else 1)

    def forward(self, codes_XW: Tensor) -> Tensor:
        """[X, V]: embeddings, then the scaled queries of a candidate's first block."""
        model = self.model
        e_XD: Tensor = model.norm_candidate(model.items(codes_XW))
        if not len(model.cross):
            return e_XD
        first = model.cross[0]
        assert isinstance(first, Block)
        return torch.cat([e_XD, first.attention.scaled_query(first.norm_attention(e_XD))], dim=-1)


class UserScorer(nn.Module):
    """One user's state, the vectors of C candidates and a context for all or for each to calibrated probabilities."""

    def __init__(self, model: Srp4Ctr) -> None:
        super().__init__()
        self.model = model

    def forward(self, state: State, vectors_CV: Tensor, context_codes_KW: Tensor | None) -> Tensor:
        """Probabilities [C]; the state's arrays are [...], without a dimension of users, and K is 1 or C."""
        model, width = self.model, self.model.config.width
        e_CD = vectors_CV[:, :width]
        z_CD = self._attended(state, e_CD, vectors_CV[:, width:])
        first, *rest, last = model.tower
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        # The first layer's weights, apart for what differs between candidates and what does not.
        each, user, context = torch.split(first.weight, [3 * width, width, width], dim=1)
        shared_KX = F.linear(model.users(state["user_codes"][None]), user, first.bias)
        if context_codes_KW is not None:
            shared_KX = torch.addmm(shared_KX, model.contexts(context_codes_KW), context.T)
        x_CX = torch.addmm(shared_KX, torch.cat([e_CD, z_CD, e_CD * z_CD], dim=-1), each.T)
        for layer in rest:
            x_CX = layer(x_CX)
        scale, bias = model.calibration_scale, model.calibration_bias
        logit_C1 = F.linear(x_CX, scale * last.weight, scale * last.bias + bias)
        return torch.sigmoid(logit_C1).squeeze(-1)

    def _attended(self, state: State, e_CD: Tensor, q_CD: Tensor) -> Tensor:
        """What the candidates find in the user's state [C, D]."""
        model = self.model
        if not len(model.cross):
            return state["tokens"].mean(0, keepdim=True).expand_as(e_CD)
        z_CD = e_CD
        for index, (block, memory) in enumerate(zip(model.cross, model.memories(state), strict=True)):
            assert isinstance(block, Block)
            y_YD, bias_Y = memory
            if model.config.state == "sequence":
                # One user's is not padded, so that nothing is to be hidden.
                bias_Y = None
            if index:
                q_CD = block.attention.scaled_query(block.norm_attention(z_CD))
            z_CD = z_CD + block.attention.of_one(q_CD, y_YD, bias_Y)
            z_CD = z_CD + block.feed_forward(block.norm_feed_forward(z_CD))
        attended_CD: Tensor = model.norm_cross(z_CD)
        return attended_CD
