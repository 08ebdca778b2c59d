"""Will the session go on? A predictor from the text of its last message, whose output is the hint ``continues``.

Hashed word pairs, lengths and the request's other hints go through a logistic regression, trained on earlier requests
of which it is known. It needs no vocabulary, so it can be fitted where text must not be stored. With it the text itself
stays on the server's front end; the cache is told a number. ``with_continuation`` does all this for a trace.

Learned Prefix Caching (NeurIPS 2025) predicts continuation from text as well, by a sentence encoder.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kvpredict.core.errors import KvpredictError, MissingExtra
from kvpredict.llm.hints import FINISH
from kvpredict.llm.requests import RequestTrace

__all__ = ["Continuation", "fit_continuation", "with_continuation"]

BUCKETS = 2**14


class Continuation:
    """A fitted predictor; call it with texts and, where known, finish codes.

    Parameters
    ----------
    weights : float64 [BUCKETS + 7]
    bias : float
    """

    def __init__(self, weights: np.ndarray, bias: float) -> None:
        self.weights, self.bias = weights, bias

    def __call__(self, text: str, finish: float = math.nan) -> float:
        """Return the probability that the session goes on after this message."""
        return float(self.predict([text], np.array([finish]))[0])

    def predict(self, texts: Sequence[str], finish: np.ndarray | None = None) -> np.ndarray:
        """Return probabilities, float64 ``[n]``."""
        scores = _features(texts, finish) @ self.weights + self.bias
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(scores, -30, 30))))

    def hinted(self, trace: RequestTrace) -> RequestTrace:
        """Return the trace with the hint ``continues`` predicted from its texts, where no request says one itself."""
        predicted = self.predict(_texts(trace), trace.hints.get("finish"))
        given = trace.hints.get("continues", np.full(len(trace), np.nan))
        return trace.with_hints(continues=np.where(np.isnan(given), predicted, given))


def with_continuation(trace: RequestTrace, cut: int) -> tuple[RequestTrace, int]:
    """Train a predictor on the requests before ``cut`` and return the trace with its hints, and how many taught it.

    Whether a session goes on is told by those requests alone, and only of requests old enough that nearly every next
    turn (95 in 100 of those seen) would have come before ``cut``: where the next turn is yet to come, none has ended.

    Parameters
    ----------
    trace : RequestTrace
        With ``texts``: generated, or a chat log read with ``texts=True``.
    cut : int
        A number of requests.

    Raises
    ------
    KvpredictError
        On a trace without texts, and where too few requests are old enough, or all of them go on or none.
    """
    texts = _texts(trace)
    past = trace.head(cut)
    if not len(past):
        raise KvpredictError(
            f"{trace.name}: no request comes before {cut}, so there is nothing to train the predictor on"
        )
    waits = past.next_turn
    known = past.times + np.quantile(waits[np.isfinite(waits)], 0.95) if past.continued.any() else past.times
    old = np.flatnonzero(known <= past.times[-1]).tolist()
    finish = past.hints.get("finish")
    model = fit_continuation([texts[i] for i in old], past.continued[old], None if finish is None else finish[old])
    return model.hinted(trace), len(old)


def _texts(trace: RequestTrace) -> Sequence[str]:
    if trace.texts is None:
        raise KvpredictError(
            f"{trace.name} carries no text: chat logs do, read with read_requests(texts=True), and generated requests"
        )
    return trace.texts


def fit_continuation(
    texts: Sequence[str], continued: np.ndarray, finish: np.ndarray | None = None, *, strength: float = 1.0
) -> Continuation:
    """Train on messages of which it is known whether the session went on.

    Parameters
    ----------
    texts : sequence of str, [n]
        The last message of each request.
    continued : bool [n]
    finish : float [n], optional
        Codes of ``hints.FINISH``, nan where unknown.
    strength : float, default 1.0
        Inverse of the regularisation (scikit-learn's ``C``).
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(t, str) for t in texts):
        raise KvpredictError(f"fit_continuation: texts must be a list of texts, got {texts!r:.60}")
    continued = np.atleast_1d(np.asarray(continued, bool))
    if len(texts) != len(continued) or len(texts) < 20 or continued.min() == continued.max():
        raise KvpredictError(
            f"fit_continuation: needs 20 texts and more, as many answers, and both answers among them; got "
            f"{len(texts)} texts and {len(continued)} answers"
        )
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingExtra(f'the predictor needs scikit-learn: pip install "kvpredict[train]" ({error})') from error
    model = LogisticRegression(C=strength, max_iter=300).fit(_features(texts, finish), continued)
    return Continuation(model.coef_[0], float(model.intercept_[0]))


def _features(texts: Sequence[str], finish: np.ndarray | None) -> Any:
    """Return hashed words and word pairs, and the dense rest, as a sparse matrix ``[n, BUCKETS + 7]``."""
    try:
        from scipy.sparse import csr_matrix, hstack
        from sklearn.feature_extraction.text import HashingVectorizer
    except ImportError as error:
        raise MissingExtra(f'the predictor needs scikit-learn: pip install "kvpredict[train]" ({error})') from error
    words = HashingVectorizer(n_features=BUCKETS, ngram_range=(1, 2), norm="l2").transform(texts)
    codes = np.full(len(texts), np.nan) if finish is None else np.asarray(finish, np.float64)
    dense = np.zeros((len(texts), 7))
    dense[:, 0] = [math.log1p(len(text)) / 10 for text in texts]
    dense[:, 1] = [text.count("?") > 0 for text in texts]
    dense[:, 2] = [text.rstrip().endswith((".", "!")) for text in texts]
    for k in range(len(FINISH)):
        dense[:, 3 + k] = codes == k
    return hstack([words, csr_matrix(dense)]).tocsr()
