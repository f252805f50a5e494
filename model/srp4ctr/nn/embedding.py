"""Code matrices to vectors: one table a field, summed (SRP4CTR, claim 3: side information beside the item id)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srp4ctr.contract.transforms import Field
from srp4ctr.contract.vocabulary import FIRST_VALUE, PADDING


class FieldEmbeddings(nn.Module):
    """The sum of the embeddings of one group's fields; a multi-valued field gives the mean of its values.

    Each table has one row more than the field has codes: the mask, by which pre-training hides a field.
    """

    def __init__(self, fields: tuple[Field, ...], width: int) -> None:
        super().__init__()
        self.fields = fields
        self.width = width
        self.tables = nn.ModuleList(
            nn.Embedding(field.size + 1, width, padding_idx=PADDING) for field in fields
        )
        for table in self.tables:
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=0.05)
            nn.init.zeros_(table.weight.data[PADDING])

    def forward(self, codes_XW: Tensor) -> Tensor:
        """[..., D] of codes [..., W]; a group without fields gives zeros."""
        shape = (*codes_XW.shape[:-1], self.width)
        total_XD: Tensor | None = None
        for field, table in zip(self.fields, self.tables, strict=True):
            assert isinstance(table, nn.Embedding)
            codes_XV = codes_XW[..., field.columns]
            if field.width == 1:
                vector_XD = table(codes_XV.squeeze(-1))
            elif torch.compiler.is_exporting():
                # Value by value: ONNX Runtime takes half as long again to lay all of them out and add them up.
                count_X1 = (codes_XV != PADDING).sum(-1, keepdim=True).clamp(min=1)
                vector_XD = table(codes_XV[..., 0])
                for value in range(1, field.width):
                    vector_XD = vector_XD + table(codes_XV[..., value])
                vector_XD = vector_XD / count_X1
            else:
                # The same, without laying out every value's vector.
                codes_RV = codes_XV.reshape(-1, field.width)
                vector_XD = F.embedding_bag(codes_RV, table.weight, mode="mean", padding_idx=PADDING).view(
                    shape
                )
            total_XD = vector_XD if total_XD is None else total_XD + vector_XD
        return codes_XW.new_zeros(shape, dtype=torch.float32) if total_XD is None else total_XD

    def values(self, index: int) -> Tensor:
        """Embeddings [size - 2, D] of the values of field `index`, for output layers tied to them."""
        table = self.tables[index]
        assert isinstance(table, nn.Embedding)
        return table.weight[FIRST_VALUE : self.fields[index].size]


def mask_codes(fields: tuple[Field, ...], like_XW: Tensor) -> Tensor:
    """Codes [W] that hide every field of the group."""
    codes_W = torch.zeros(like_XW.shape[-1], dtype=like_XW.dtype, device=like_XW.device)
    for field in fields:
        codes_W[field.start] = field.size
    return codes_W
