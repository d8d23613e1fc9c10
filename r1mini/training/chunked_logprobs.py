"""log_softmax(logits)[target] and its entropy, a chunk of the logits at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor

MAX_LOGITS = 2**25  # in a chunk: 128 MiB in fp32, a few times over


class ChunkedLogprobs(torch.autograd.Function):
    """Log-probability of one token, and on request the entropy, from each of Q hidden states.

    Computes logits chunk by chunk, and again for the gradient: [Q, V] at once would be by far the
    largest tensor of training [Cut Cross-Entropy].
    """

    @staticmethod
    def forward(
        ctx,
        hidden_QD: Tensor,
        weight_VD: Tensor,
        target_ids_Q: Tensor,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        device = hidden_QD.device.type
        hidden_QD = hidden_QD / temperature
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            hidden_QD, weight_VD = hidden_QD.to(dtype), weight_VD.to(dtype)
        ctx.save_for_backward(hidden_QD, weight_VD, target_ids_Q)
        ctx.temperature, ctx.with_entropy = temperature, with_entropy
        logp, entropy = [], []
        for hidden_qD, target_ids_q in chunks(len(weight_VD), hidden_QD, target_ids_Q):
            logits_qV = (hidden_qD @ weight_VD.T).float()
            logsumexp_q1 = logits_qV.logsumexp(-1, keepdim=True)
            logp_q1 = logits_qV.gather(-1, target_ids_q[:, None]) - logsumexp_q1
            logp.append(logp_q1[:, 0])
            if with_entropy:
                mean_logit_q = (logits_qV.softmax(-1) * logits_qV).sum(-1)
                entropy.append(logsumexp_q1[:, 0] - mean_logit_q)
        return torch.cat(logp), torch.cat(entropy) if with_entropy else None

    @staticmethod
    def backward(
        ctx, grad_logp_Q: Tensor, grad_entropy_Q: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden_QD, weight_VD, target_ids_Q = ctx.saved_tensors
        if not ctx.with_entropy:
            grad_entropy_Q = grad_logp_Q  # not read
        grad_hidden, grad_weight_VD = [], None
        if ctx.needs_input_grad[1]:  # not of a frozen head
            grad_weight_VD = torch.zeros(weight_VD.shape, device=weight_VD.device)
        for hidden_qD, target_ids_q, grad_logp_q, grad_entropy_q in chunks(
            len(weight_VD), hidden_QD, target_ids_Q, grad_logp_Q, grad_entropy_Q
        ):
            logits_qV = (hidden_qD @ weight_VD.T).float()
            p_qV = logits_qV.softmax(-1)
            if ctx.with_entropy:
                # d entropy / d logits = -p (log p + entropy) = -p (logits - their mean)
                centered_qV = logits_qV - (p_qV * logits_qV).sum(-1, keepdim=True)
                inner_qV = centered_qV.mul_(grad_entropy_q[:, None]).add_(grad_logp_q[:, None])
                grad_qV = p_qV * inner_qV.neg_()
            else:
                grad_qV = p_qV.mul_(-grad_logp_q[:, None])  # d logp / d logits = onehot - p
            grad_qV.scatter_add_(-1, target_ids_q[:, None], grad_logp_q[:, None])
            grad_qV = grad_qV.to(hidden_qD.dtype)
            grad_hidden.append(grad_qV @ weight_VD)
            if grad_weight_VD is not None:
                grad_weight_VD += grad_qV.T @ hidden_qD
        return torch.cat(grad_hidden) / ctx.temperature, grad_weight_VD, None, None, None


def chunks(vocabulary: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors in equal chunks, each of at most MAX_LOGITS logits."""
    size = max(1, MAX_LOGITS // vocabulary)
    return zip(*(x.split(size) for x in tensors))
