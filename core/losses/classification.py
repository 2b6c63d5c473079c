"""Classification of queries for both heads: costs of the matching, losses, and what is only logged.

Softmax heads (DETR): C classes and "no object" as the last logit. Sigmoid heads (Conditional DETR): C logits,
each a detector of its own, trained with the focal loss (Lin et al. 2017).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

FOCAL_GAMMA = 2.0
_FOCAL_COST_EPS = 1e-8


def full_precision(values: Tensor) -> Tensor:
    """Return half-precision values as float32, which costs and losses are computed in; others as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def softmax_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Return minus the probability of each target's class; (L, B, Q, C + 1), (B, N) -> (L, B, Q, N)."""
    return -_at_labels(logits.softmax(-1), labels)


def focal_cost(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Return what the focal loss changes by when a query takes a target's class (Conditional DETR).

    (L, B, Q, C), (B, N) -> (L, B, Q, N).
    """
    prob = _at_labels(logits.sigmoid(), labels)
    positive = alpha * (1 - prob) ** FOCAL_GAMMA * -(prob + _FOCAL_COST_EPS).log()
    negative = (1 - alpha) * prob**FOCAL_GAMMA * -(1 - prob + _FOCAL_COST_EPS).log()
    return positive - negative


def _at_labels(scores: Tensor, labels: Tensor) -> Tensor:
    """Pick, for every query, the scores of each target's class; (L, B, Q, K), (B, N) -> (L, B, Q, N)."""
    num_layers, _, num_queries, _ = scores.shape
    return scores.gather(-1, labels[None, :, None, :].expand(num_layers, -1, num_queries, -1))


def cross_entropy_sum(logits: Tensor, classes: Tensor, class_weights: Tensor) -> Tensor:
    """Return the weighted cross-entropy of each layer, summed over its queries.

    Args:
        logits: (L, B, Q, C + 1).
        classes: (L, B, Q) int64 in 0..C, C for "no object".
        class_weights: (C + 1,).

    Returns:
        (L,), not yet divided by the sum of weights.
    """
    losses = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), class_weights.to(logits), reduction="none")
    return losses.view(len(logits), -1).sum(1)


def focal_sum(logits: Tensor, classes: Tensor, alpha: float) -> Tensor:
    """Return the sigmoid focal loss of each layer, summed over its queries and classes.

    Args:
        logits: (L, B, Q, C).
        classes: (L, B, Q) int64 in 0..C, C for none of the classes.
        alpha: weight of the positive class.

    Returns:
        (L,), not yet divided by the number of boxes.
    """
    is_class = classes[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    losses: Tensor = sigmoid_focal_loss(logits, is_class.to(logits), alpha=alpha, gamma=FOCAL_GAMMA, reduction="none")
    return losses.flatten(1).sum(1)


def class_error(matched_logits: Tensor, matched_labels: Tensor) -> Tensor:
    """Return the share of matched queries that name another class, in percent; 100 without any.

    (M, K), (M,) -> scalar.
    """
    if len(matched_labels) == 0:
        return matched_logits.new_full((), 100.0)
    correct = matched_logits.argmax(-1) == matched_labels
    return 100 - 100 * correct.to(matched_logits).mean()


def cardinality_error(logits: Tensor, num_targets: Tensor) -> Tensor:
    """Return how far the number of detected objects is from the number of targets, averaged over images.

    A query detects an object if its highest logit is not the last one; with a sigmoid head, where the last
    logit is a class like the others, this is kept as the reference logs it.

    (L, B, Q, K), (B,) -> (L,).
    """
    num_detected = (logits.argmax(-1) != logits.shape[-1] - 1).sum(-1)
    return (num_detected - num_targets).abs().to(logits).mean(-1)
