"""A small language drawn from a seed: nothing to download, and learned in seconds."""

import bisect
import functools

import numpy as np

LETTERS = "abcdefghijkl"
LENGTH = 20_000
CONCENTRATION = 0.1
"""Of the Dirichlet distribution that each row of probabilities is drawn from: below 1, few letters are likely."""


@functools.cache
def load_synthetic(seed: int = 0) -> str:
    """A Markov chain of order 2: the last two letters decide how likely each letter is to come next.

    So a model without a look at the letter before the last cannot learn it. NumPy's RandomState has a frozen stream:
    the text is the same on every version and machine.
    """
    random = np.random.RandomState(seed)
    size = len(LETTERS)
    steps = random.dirichlet(np.full(size, CONCENTRATION), (size, size)).cumsum(-1).tolist()
    text = [0, 0]
    for chance in random.random_sample(LENGTH - 2).tolist():
        row = steps[text[-2]][text[-1]]
        text.append(min(bisect.bisect_right(row, chance), size - 1))  # A sum may round below 1.
    return "".join(LETTERS[letter] for letter in text)
