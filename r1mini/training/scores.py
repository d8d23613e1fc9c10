"""The score that a reward model gives to each row of a batch.

The last token of a row is found by its length, never by token identity: a padding token may be the
end token, and may occur in a text.
"""

import torch
from torch import Tensor

from r1mini.model.attention import PackedAttention
from r1mini.model.reward_model import RewardModel
from r1mini.records import Batch


def row_scores(model: RewardModel, batch: Batch) -> Tensor:
    """[B], fp32: the scalar head at the last target token of each row."""
    tokens = batch.tokens_BT.flatten()
    token_of_flat_M, T = batch.token_of_flat_M, batch.tokens_BT.shape[1]
    attend = PackedAttention(batch.lengths, batch.parent, device=tokens.device)
    last_B1 = (batch.target_BT * torch.arange(T, device=tokens.device)).amax(-1, keepdim=True)
    flat_B = batch.flat_of_token_BT.gather(1, last_B1)[:, 0]

    # A callback: FSDP gathers the head only inside the model's forward methods.
    def head(hidden_MD, weight_1D):
        with torch.autocast(tokens.device.type, enabled=False):
            return (hidden_MD.index_select(0, flat_B).float() @ weight_1D.float().T)[:, 0].clone()

    return model.forward_with_head(tokens[token_of_flat_M], token_of_flat_M % T, attend, head)
