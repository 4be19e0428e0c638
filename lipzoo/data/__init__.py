"""Data sources: one a file."""

from lipzoo.data.augment import Augment as Augment
from lipzoo.data.batches import Split as Split
from lipzoo.data.batches import iterate as iterate
from lipzoo.data.config import AbstractDataConfig as AbstractDataConfig
from lipzoo.data.config import Data as Data
from lipzoo.data.image_config import DataConfig as DataConfig
from lipzoo.data.images import Form as Form
from lipzoo.data.images import Images as Images
from lipzoo.data.images import ShuffledBatches as ShuffledBatches
from lipzoo.data.text import Text as Text
from lipzoo.data.text import TextConfig as TextConfig
from lipzoo.data.tokenizer import Tokenizer as Tokenizer
from lipzoo.data.tokens import Tokens as Tokens
from lipzoo.data.tokens import TokensConfig as TokensConfig

DATA_KINDS: dict[str, type[AbstractDataConfig]] = {
    "images": DataConfig,
    "text": TextConfig,
    "tokens": TokensConfig,
}
"""The kinds of data, by the names that are stored in recipes."""
