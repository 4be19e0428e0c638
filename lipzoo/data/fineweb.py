"""FineWeb10B as GPT-2 tokens: the published shards, 100 million tokens each, downloaded into the cache."""

from lipzoo.data.download import cache_dir, download, lfs_sha256

URL = "https://huggingface.co/datasets/kjj0/fineweb10B-gpt2"
FOLDER = "fineweb10B"
TRAIN_SHARDS = 103
"""Training shards that are published."""


def fetch_shards(train_shards: int) -> None:
    """Downloads the validation shard and the first `train_shards` training shards that are not in the cache.

    Their checksums are those of the source itself (`lfs_sha256`): a damaged download is told, a changed source is not.

    **Raises:** UserError without a network, or if a download is damaged.
    """
    train = (f"fineweb_train_{index:06d}.bin" for index in range(1, min(train_shards, TRAIN_SHARDS) + 1))
    for name in ("fineweb_val_000000.bin", *train):
        path = cache_dir() / FOLDER / name
        if not path.is_file():
            download(f"{URL}/resolve/main/{name}", path, lfs_sha256(f"{URL}/raw/main/{name}", path))
