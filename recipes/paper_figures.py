"""The frontiers of the paper, measured anew: see `lipzoo.experiments.paper_figures`.

python -m recipes.paper_figures 2                # an MLP on CIFAR-10, twelve pairs of optimizer and constraint
python -m recipes.paper_figures 3                # soft cap against AdamW at equal accuracy, under attack
python -m recipes.paper_figures 4 --size full    # a character GPT, at the size of the paper: for a GPU
"""

import sys

from lipzoo.experiments.paper_figures import make
from lipzoo.system.terminal import guarded

if __name__ == "__main__":
    sys.exit(guarded(lambda: make(sys.argv[1:])))
