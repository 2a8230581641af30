"""How far a student is from its teacher: forward KL of next-token distributions, in nats a token.

    loss = (1 − mix) · T² · KL(teacher ‖ student, both at temperature T) + mix · cross-entropy + hidden · distance

T² keeps gradients of one size whatever T is (Hinton et al. 2015). The distance is that of the residual streams behind
the last layers, squared, as a share of the teacher's.
"""

from __future__ import annotations

import dataclasses

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
            apart = divergence(scores / self.temperature, told).mean()
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
    total = scores.logsumexp(-1)
    ours = scores.gather(-1, told.tokens) - total[..., None]
    theirs = told.log_probabilities
    found = (theirs.exp() * (theirs - ours)).sum(-1)
    if told.rest is not None:
        rest = scores.scatter(-1, told.tokens, -torch.inf).logsumexp(-1) - total
        found = found + told.rest.exp() * (told.rest - rest)
    return found
