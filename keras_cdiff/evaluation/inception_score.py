"""The Inception Score."""

import itertools

import numpy as np

from keras_cdiff.common.checks import check_integer
from keras_cdiff.evaluation.checks import block_rows, check_features


def inception_score(
    logits: object,
    splits: int = 10,
    split_size: int | None = None,
    seed: int | None = None,
) -> tuple[float, float]:
    """Returns the Inception Score: images that are each clearly of a class, all classes alike.

        IS = exp(mean_i KL(p_i || mean_i p_i)),   p_i = softmax(logits_i)

    averaged over parts of the set, each with the same weight, in float64.

    Args:
        logits: (N, K), of an ImageNet classifier. The score is that of the FID tools if they are
            those of their Inception network, without bias.
        splits: S, number of contiguous parts: part i is the rows [i N // S, (i + 1) N // S), as
            torch-fidelity cuts them. In [1, N].
        split_size: rows of a part instead, >= 1, the last part being shorter if need be, as
            guided-diffusion cuts them (5,000 there); `splits` is then ignored.
        seed: of a random order in which the rows are taken, a non-negative integer; None for the
            order given. Images that come class by class need one.

    Returns:
        mean and standard deviation (divisor S) over the parts.

    Raises:
        ValueError: if the logits are not finite floats (N, K), N >= 2, or a number is out of range.

    Source: Salimans et al., "Improved Techniques for Training GANs", 2016.
    """
    logits = check_features("logits", logits)
    num_rows = len(logits)
    if split_size is None:
        splits = check_integer("splits", splits, 1, num_rows, "a part needs a row")
        edges = [i * num_rows // splits for i in range(splits + 1)]
    else:
        split_size = check_integer("split_size", split_size, 1, None, "the rows of a part")
        edges = [*range(0, num_rows, split_size), num_rows]
    rows = np.arange(num_rows)
    if seed is not None:
        seed = check_integer("seed", seed, 0, None, "of the order, or None for the order given")
        rows = np.random.default_rng(seed).permutation(num_rows)
    scores = [_score(logits, rows[start:end]) for start, end in itertools.pairwise(edges)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(logits: np.ndarray, rows: np.ndarray) -> float:
    """The score of some rows: exp(sum_k (mean_i p_ik log p_ik - q_k log q_k)), q = mean_i p_i."""
    width = logits.shape[1]
    negative_entropy, total = 0.0, np.zeros(width)
    size = block_rows(width, 2**18)  # fit for the cache
    for start in range(0, len(rows), size):
        log_p = logits[rows[start : start + size]].astype(np.float64)
        log_p -= log_p.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        total += p.sum(axis=0)
        negative_entropy += np.vdot(p, log_p)
    marginal = total / len(rows)
    marginal = marginal[marginal > 0]  # 0 log 0 = 0
    return float(np.exp(negative_entropy / len(rows) - (marginal * np.log(marginal)).sum()))
