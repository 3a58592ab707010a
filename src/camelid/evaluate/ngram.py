"""An n-gram model with interpolated modified Kneser-Ney smoothing: what a model has to beat on a text.

    baseline = KneserNey(ids_N, starts_D, vocab_size=4096, order=5)
    nats = baseline.nats(other_ids_N, other_starts_D)

Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling", §3: every order's counts are
discounted by one of three amounts and the mass so freed goes to the next lower order; below the highest order a count
is the number of different tokens seen before the n-gram. With a(h w) such a count, D its discount, h' the history h
without its first token, N_c(h) the number of tokens seen c times after h (N_3: three times or more):

    p(w | h) = (a(h w) − D(a(h w)) + (D_1 N_1(h) + D_2 N_2(h) + D_3 N_3(h)) · p(w | h')) / Σ_v a(h v)

below order 1 lies the uniform distribution. An n-gram at the start of a document has nothing before it and keeps its
plain count.

The n-grams of order k are numbered by rank; a key of order k + 1 is `number of the first k · V + last token`, which
fits 64 bits for every vocabulary. All of it is sorting and counting of arrays.

Shape suffixes: N tokens, D documents, U different n-grams of one order, H those of the order below (histories), V
vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ids = NDArray[np.int64]
    Floats = NDArray[np.float64]

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""Where a corpus is so small that its counts of counts allow no estimate (no n-gram seen exactly once, say)."""
MAX_ORDER = 8


@dataclass(frozen=True)
class _Order:
    """The n-grams of one order, what they add to the interpolation, and what histories leave to the order below."""

    keys_U: Ids
    """Ascending; at order 1 the tokens themselves, all V of them."""
    discounted_U: Floats
    """(a − D(a)) / Σ a, of each n-gram."""
    backoff_H: Floats
    """The weight of the order below, for each history; 1 where nothing was seen after it."""
    discounts: tuple[float, float, float]


class KneserNey:
    """An n-gram model over token ids.

    The first token of a document is only a context (begin of sequence); every other one is predicted.

    Args:
        ids_N: the training documents end to end.
        starts_D: where each begins; ascending, the first at 0.
        vocab_size: V; every id is below it. The uniform distribution is over all of them.
        order: n; a token is predicted from the n − 1 before it.
    """

    def __init__(self, ids_N: Ids, starts_D: Ids, *, vocab_size: int, order: int = 5) -> None:
        assert 1 <= order <= MAX_ORDER
        self.vocab_size = vocab_size
        self.order = order
        ids_N = np.asarray(ids_N, dtype=np.int64)
        offsets_N = _offsets(len(ids_N), starts_D)
        predicted_N = offsets_N > 0
        numbers_N, keys_U = ids_N, np.arange(vocab_size, dtype=np.int64)
        orders: list[_Order] = []
        for k in range(1, order + 1):
            # `numbers_N[i]` is the n-gram of order k that ends at token i; it exists where offset ≥ k − 1.
            at_start = numbers_N[(offsets_N == k - 1) & predicted_N]
            if k < order:
                higher_N, higher_keys_U, first_U = self._extend(ids_N, numbers_N, offsets_N, k + 1)
                counts_U = np.bincount(numbers_N[first_U], minlength=len(keys_U))
                counts_U += np.bincount(at_start, minlength=len(keys_U))
            else:
                ends_N = predicted_N & (offsets_N >= k - 1)
                counts_U = np.bincount(numbers_N[ends_N], minlength=len(keys_U))
            num_histories = 1 if k == 1 else vocab_size if k == 2 else len(orders[-1].keys_U)
            orders.append(self._discounted(keys_U, counts_U, num_histories))
            if k < order:
                numbers_N, keys_U = higher_N, higher_keys_U
        self._orders = tuple(orders)

    @property
    def discounts(self) -> tuple[tuple[float, float, float], ...]:
        """D_1, D_2 and D_3+ of each order, from order 1."""
        return tuple(order.discounts for order in self._orders)

    def nats(self, ids_N: Ids, starts_D: Ids) -> Floats:
        """−ln p of every token after those before it in its document; 0 for each document's first, which is given.

        Args:
            ids_N: documents end to end.
            starts_D: where each begins; ascending, the first at 0.
        """
        ids_N = np.asarray(ids_N, dtype=np.int64)
        offsets_N = _offsets(len(ids_N), starts_D)
        lowest = self._orders[0]
        probs_N = lowest.discounted_U[ids_N] + lowest.backoff_H[0] / self.vocab_size
        numbers_N = ids_N
        for k, order in enumerate(self._orders[1:], start=2):
            histories_N = np.full(len(ids_N), -1, dtype=np.int64)
            histories_N[1:] = numbers_N[:-1]
            histories_N[offsets_N < k - 1] = -1
            known_N = histories_N >= 0
            found_N = _look_up(order.keys_U, histories_N * self.vocab_size + ids_N, known_N)
            seen_N = found_N >= 0
            probs_N[known_N] *= order.backoff_H[histories_N[known_N]]
            probs_N[seen_N] += order.discounted_U[found_N[seen_N]]
            numbers_N = found_N
        nats_N: Floats = -np.log(probs_N)
        nats_N[offsets_N == 0] = 0.0
        return nats_N

    def probs(self, history: Ids) -> Floats:
        """The distribution of the token after a document's beginning, begin-of-sequence token included: [V]."""
        ids_VN = np.empty((self.vocab_size, len(history) + 1), dtype=np.int64)
        ids_VN[:, :-1] = history
        ids_VN[:, -1] = np.arange(self.vocab_size)
        starts_V = np.arange(self.vocab_size) * (len(history) + 1)
        probs_V: Floats = np.exp(-self.nats(ids_VN.ravel(), starts_V).reshape(self.vocab_size, -1)[:, -1])
        return probs_V

    def _extend(self, ids_N: Ids, numbers_N: Ids, offsets_N: Ids, k: int) -> tuple[Ids, Ids, Ids]:
        """The n-grams of order k: their number at each token (−1: none), their keys, and where each first ends."""
        ends = np.flatnonzero(offsets_N >= k - 1)
        keys = numbers_N[ends - 1] * self.vocab_size + ids_N[ends]
        keys_U, first_U, inverse = np.unique(keys, return_index=True, return_inverse=True)
        extended_N = np.full(len(ids_N), -1, dtype=np.int64)
        extended_N[ends] = inverse
        return extended_N, keys_U, ends[first_U]

    def _discounted(self, keys_U: Ids, counts_U: Ids, num_histories: int) -> _Order:
        histories_U = keys_U // self.vocab_size if num_histories > 1 else np.zeros_like(keys_U)
        discounts = estimate_discounts(np.bincount(np.minimum(counts_U, 5), minlength=6)[1:5])
        discounts_U = np.array((0.0, *discounts))[np.minimum(counts_U, 3)]
        totals_H = np.bincount(histories_U, weights=counts_U, minlength=num_histories)
        freed_H = np.bincount(histories_U, weights=discounts_U, minlength=num_histories)
        seen_H = totals_H > 0
        backoff_H = np.divide(freed_H, totals_H, out=np.ones(num_histories), where=seen_H)
        discounted_U = np.divide(
            counts_U - discounts_U, totals_H[histories_U], out=np.zeros(len(keys_U)), where=seen_H[histories_U]
        )
        return _Order(keys_U, discounted_U, backoff_H, discounts)


def estimate_discounts(num_with_count: Ids) -> tuple[float, float, float]:
    """D_1, D_2 and D_3+ from how many n-grams have the counts 1, 2, 3 and 4 (Chen and Goodman 1999, eq. 26).

    `FALLBACK_DISCOUNTS` where the estimate does not exist, or would take more than there is or give instead of taking.
    """
    n1, n2, n3, n4 = (float(n) for n in num_with_count)
    if not (n1 and n2 and n3):
        return FALLBACK_DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    estimate = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return estimate if all(0 < d <= c for c, d in enumerate(estimate, start=1)) else FALLBACK_DISCOUNTS


def _offsets(num_tokens: int, starts_D: Ids) -> Ids:
    """How far each token is from the beginning of its document."""
    starts_D = np.asarray(starts_D, dtype=np.int64)
    assert len(starts_D) > 0
    assert starts_D[0] == 0
    lengths_D = np.diff(starts_D, append=num_tokens)
    return np.arange(num_tokens) - np.repeat(starts_D, lengths_D)


def _look_up(keys_U: Ids, wanted_N: Ids, known_N: NDArray[np.bool_]) -> Ids:
    """The place of each wanted key among the sorted keys; −1 where it is not there or its history is not known."""
    found_N = np.full(len(wanted_N), -1, dtype=np.int64)
    if len(keys_U) == 0:
        return found_N
    wanted = wanted_N[known_N]
    places = np.minimum(np.searchsorted(keys_U, wanted), len(keys_U) - 1)
    found_N[known_N] = np.where(keys_U[places] == wanted, places, -1)
    return found_N
