"""How far a student is from its teacher: forward KL of next-token distributions, in nats a token.

    loss = (1 − mix) · T² · KL(teacher ‖ student, both at temperature T) + mix · cross-entropy + hidden · distance

T² keeps gradients of one size whatever T is (Hinton et al. 2015). The distance is that of the residual streams behind
the last layers, squared, as a share of the teacher's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from calibration.distillation.running import Weights, logits, residual
from calibration.distillation.teaching import Told
from exporter.decoder import Decoder


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is trained on.

    Attributes:
        mix: share of the cross-entropy with the text's own next tokens; 1 is training without a teacher.
        temperature: T.
        hidden: weight of the residual streams' distance.
    """

    mix: float = 0.0
    temperature: float = 1.0
    hidden: float = 0.0

    def loss(self, decoder: Decoder, weights: Weights, told: Told) -> Tensor:
        """Mean over the positions of some windows."""
        x = residual(decoder, weights, told.windows)
        scores = logits(decoder, weights, x)
        loss = torch.zeros((), device=scores.device)
        if self.mix < 1:
            apart = divergence(scores if self.temperature == 1 else scores / self.temperature, told).mean()
            loss = loss + (1 - self.mix) * self.temperature**2 * apart
        if self.mix > 0:
            known = F.cross_entropy(scores[:, :-1].flatten(0, 1), told.windows[:, 1:].flatten())
            loss = loss + self.mix * known
        if self.hidden and told.residual is not None:
            square = (x - told.residual).square().sum(-1) / told.residual.square().sum(-1)
            loss = loss + self.hidden * square.mean()
        return loss


def divergence(scores: Tensor, told: Told) -> Tensor:
    """KL(teacher ‖ student) of each position, ``[B, S]``, of the student's logits ``[B, S, V]``.

    What the teacher's files do not name is one outcome for both.
    """
    found: Tensor = _Divergence.apply(scores, told.tokens, told.log_probabilities, told.rest)
    return found


class _Divergence(torch.autograd.Function):  # type: ignore[misc]
    """With a gradient of its own: logits are the largest tensor of a step, and automatic ones copy it ten times.

    Of the teacher's probabilities t and the student's q, r standing for all tokens that are not named::

        ∂/∂z_j = q_j − t_j where token j is named, else q_j · (1 − t_r / q_r)
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, tokens: Tensor, theirs: Tensor, their_rest: Tensor | None
    ) -> Tensor:
        """Of logits ``[B, S, V]`` and of what `Told` has: tokens, their log probabilities, that of the rest."""
        others = (scores - scores.amax(-1, keepdim=True)).exp_()
        named = others.gather(-1, tokens)
        rest = others.scatter_(-1, tokens, 0).sum(-1).clamp(min=torch.finfo(scores.dtype).tiny)
        total = named.sum(-1) if their_rest is None else named.sum(-1) + rest
        ours = (named / total[..., None]).clamp(min=torch.finfo(scores.dtype).tiny)
        given = theirs.exp()
        found = (given * (theirs - ours.log())).sum(-1)
        factor = 1 / total
        if their_rest is not None:
            found = found + their_rest.exp() * (their_rest - (rest / total).log())
            factor = factor - their_rest.exp() / rest
        ctx.save_for_backward(others, tokens, ours - given, factor)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        others, tokens, named, factor = ctx.saved_tensors
        found = others * (factor * gradient)[..., None]
        return found.scatter_(-1, tokens, named * gradient[..., None]), None, None, None
