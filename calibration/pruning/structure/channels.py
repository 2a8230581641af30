"""Which inputs of a linear map to do without, and how the others make up for them.

A neuron of a feed-forward, or a head, is an input of the map behind it, or a group of inputs. With ``H = E[x·xᵀ]``
of the inputs and ``P = H⁻¹``, taking the group g away from the map W costs ``tr(W_g · P_gg⁻¹ · W_gᵀ)`` of mean
square error, after the other inputs have taken over what they can: ``W −= W_g · P_gg⁻¹ · P_g``, and P loses the
group likewise. The cheapest go first, a few at a time. Kurtic et al. 2023, ZipLM (arXiv 2302.04089), after Hassibi
& Stork 1993; what is left is the least-squares map.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from calibration.pruning.second_order import DAMPING, damped_inverse

STEPS = 128
"""Parts of the inputs that go at once, where a group is one input: costs are taken anew after each."""


@dataclasses.dataclass(frozen=True)
class Removal:
    """In which order groups of inputs go, and what it costs.

    Attributes:
        order: groups, the first to go first; those that must stay are left out.
        cost: ``[len(order) + 1]``, mean square error of the outputs after the first n have gone, in total.
    """

    order: np.ndarray
    cost: np.ndarray

    def kept(self, groups: int, count: int) -> np.ndarray:
        """The groups that are left when ``count`` of so many have gone, rising."""
        return np.setdiff1d(np.arange(groups), self.order[:count])


def removal(weight: np.ndarray, hessian: np.ndarray, group: int, most: int, name: str) -> Removal:
    """The order in which groups of a map's inputs are best taken away.

    Args:
        weight: ``[R, K]``.
        hessian: second moment of the inputs, float64 ``[K, K]``.
        group: neighbouring inputs that go together.
        most: groups that may go.

    Raises:
        OnnxGptError: ``activations-not-finite``.
    """
    _, P = damped_inverse(hessian, name)
    W = weight.astype(np.float64)
    units = len(P) // group
    at_once = max(1, units // STEPS) if group == 1 else 1
    order: list[int] = []
    cost = [0.0]
    while len(order) < most:
        prices = _prices(W, P, group, np.array(order, np.int64))
        going = np.argsort(prices, kind="stable")[: min(at_once, most - len(order))]
        columns = (going[:, None] * group + np.arange(group)).reshape(-1)
        lost, own = W[:, columns], P[np.ix_(columns, columns)]
        taken = np.linalg.solve(own, P[columns])
        spent = float((lost * np.linalg.solve(own, lost.T).T).sum())
        cost += list(np.linspace(cost[-1], cost[-1] + spent, len(going) + 1)[1:])
        order += going.tolist()
        W -= lost @ taken
        P -= P[columns].T @ taken
    return Removal(np.array(order, np.int64), np.array(cost))


def _prices(W: np.ndarray, P: np.ndarray, group: int, gone: np.ndarray) -> np.ndarray:
    """What taking each group away costs; infinite for those that are gone, whose rows of P have become zero."""
    if group == 1:
        sizes = np.diag(P).copy()
        sizes[gone] = 1
        prices: np.ndarray = (W**2).sum(0) / sizes
    else:
        G = len(P) // group
        blocks = P.reshape(G, group, G, group)[np.arange(G), :, np.arange(G)]
        blocks[gone] = np.eye(group)
        by_group = W.reshape(len(W), G, group).transpose(1, 2, 0)  # [G, group, R]
        prices = (by_group * np.linalg.solve(blocks, by_group)).sum((1, 2))
    prices[gone] = np.inf
    return prices


def fitted(
    inputs: np.ndarray, cross: np.ndarray, kept: np.ndarray, near: np.ndarray, ridge: float = DAMPING
) -> np.ndarray:
    """The map of some inputs that is nearest to a target in mean square, drawn a little to one that is known.

    Args:
        inputs: ``E[x·xᵀ]``, ``[K, K]``.
        cross: ``E[t·xᵀ]``, ``[R, K]``.
        kept: inputs that are there, ``[S]``.
        near: ``[R, S]``, the map that it is drawn to.
        ridge: how firmly, of the mean of the diagonal.

    Returns:
        float64 ``[R, S]``.
    """
    H = inputs[np.ix_(kept, kept)]
    damped = H + ridge * max(float(np.diag(H).mean()), float(np.finfo(np.float32).tiny)) * np.eye(len(H))
    rest = cross[:, kept] - near @ H
    fit: np.ndarray = near + np.linalg.solve(damped, rest.T).T
    return fit
