"""Okapi BM25 over products, in the order of operations that makes every last bit the same.

A word in more than half of the products would weigh less than nothing: it weighs a quarter of the
mean weight of all words instead.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

_SATURATION = 1.5  # k1
_LENGTH_SHARE = 0.75  # b: how far a long text is marked down
_COMMON_SHARE = 0.25  # epsilon: of the mean weight, for a common word


class SearchIndex:
    """Texts by the words in them.

    Args:
        texts: [N] words of every text.

    Raises:
        ZeroDivisionError: there is no word at all.
    """

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        self._lengths = [len(words) for words in texts]
        self._mean_length = sum(self._lengths) / len(texts)
        # Of every word: which texts have it, and how often.
        self._found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, words in enumerate(texts):
            for word, times in Counter(words).items():
                self._found[word].append((number, times))
        self._weights = {
            word: math.log(len(texts) - len(found) + 0.5) - math.log(len(found) + 0.5)
            for word, found in self._found.items()
        }
        total = 0.0
        # Not sum(), which from Python 3.12 on rounds otherwise.
        for weight in self._weights.values():
            total += weight
        common = _COMMON_SHARE * (total / len(self._weights))
        self._weights = {
            word: common if weight < 0 else weight for word, weight in self._weights.items()
        }

    def scores(self, query: Sequence[str]) -> list[float]:
        """[N] the score of every text; a word that is asked twice counts twice."""
        scores = [0.0] * len(self._lengths)
        for word in query:
            weight = self._weights.get(word, 0.0)
            for number, times in self._found.get(word, ()):
                relative = _LENGTH_SHARE * self._lengths[number] / self._mean_length
                damped = times + _SATURATION * (1 - _LENGTH_SHARE + relative)
                scores[number] += weight * (times * (_SATURATION + 1) / damped)
        return scores
