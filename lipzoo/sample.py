"""`python -m lipzoo.sample checkpoint_dir --prompt "ROMEO:"`: text from a trained transformer, as it is generated."""

import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, Int, Key

from lipzoo.config.fields import field_refusal
from lipzoo.config.ranges import Range, Seed, Whole
from lipzoo.data import Tokenizer
from lipzoo.layers.base import Cache
from lipzoo.models import GPT
from lipzoo.system.errors import UserError
from lipzoo.system.paths import UserPath
from lipzoo.system.terminal import guarded, program
from lipzoo.train.checkpoint import Loaded, load

FIRST_ROOM = 64
"""Tokens that the first cache has room for. It is doubled when full, so that there are few compilations."""
SMALLEST = float(np.finfo(np.float32).tiny)
"""Temperatures below it are 0 in float32."""


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    checkpoint_dir: Annotated[UserPath, tyro.conf.Positional]
    """A run, its checkpoints folder, or one step in it. The newest step is taken."""
    prompt: str = ""
    """Text to go on from; by default what begins a document, or the first character of the alphabet, a new line."""
    length: Whole = 500
    """Tokens to generate: characters, or pieces of words. The end of a document comes before."""
    temperature: Annotated[float, Range(0, 1e6)] = 1.0
    """Divides the logits: below 1 the likely becomes likelier; 0 always takes the likeliest."""
    top_k: Whole = 0
    """Choose among this many likeliest tokens; 0 for all."""
    seed: Seed = 0
    """Seed of the choices."""

    def check(self) -> None:
        """Raises UserError, naming the flag, if nothing can be generated like this."""
        if refusal := field_refusal(self):
            raise UserError(refusal)


def empty_cache(gpt: GPT, room: int) -> Cache:
    """Keys and values of all blocks, with room for so many tokens."""
    config = gpt.config
    shape = (config.depth, room, config.heads, config.width // config.heads)
    return jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)


def choose(
    logits: Float[Array, " vocabulary"], key: Key[Array, ""], *, temperature: float, top_k: int
) -> Int[Array, ""]:
    """A token drawn from softmax(logits/temperature), of the `top_k` likeliest ones (0: of all)."""
    if temperature < SMALLEST:
        return logits.argmax()
    logits = (logits - logits.max()) / temperature
    if not 0 < top_k < logits.size:
        return jax.random.categorical(key, logits)
    likeliest, tokens = jax.lax.top_k(logits, top_k)
    return tokens[jax.random.categorical(key, likeliest)]


@functools.partial(jax.jit, static_argnames=("temperature", "top_k", "size"), donate_argnames="cache")
def _next(
    gpt: GPT,
    tokens: Int[Array, " time"],
    count: Int[Array, ""],
    cache: Cache,
    first: Int[Array, ""],
    key: Key[Array, ""],
    temperature: float,
    top_k: Whole,
    size: int | None,
) -> tuple[Int[Array, ""], Cache]:
    """The token after `count` of `tokens`; whatever pads `tokens` is written over before anything looks at it."""
    logits, cache = gpt.extend(tokens, cache, first)
    key = jax.random.fold_in(key, first + count)
    chosen = choose(logits[count - 1, :size], key, temperature=temperature, top_k=top_k)
    return chosen.astype(jnp.int32), cache


def generate(
    gpt: GPT,
    prompt: Int[np.ndarray, " n"],
    *,
    size: int | None = None,
    temperature: Annotated[float, Range(0, 1e6)] = 1.0,
    top_k: Whole = 0,
    seed: Seed = 0,
) -> Iterator[int]:
    """Tokens after `prompt`, without end, of the first `size` ones: what the model has beyond pads its arrays.

    Each costs the work of one token: keys and values of the others are kept. The randomness at a position depends on
    the seed and the position alone.

    **Raises:** ValueError if the prompt is empty: a token can only follow another.
    """
    if not len(prompt):
        raise ValueError("the prompt must hold at least one token")
    room = max(FIRST_ROOM, 1 << (2 * len(prompt) - 1).bit_length())
    padded = np.zeros(1 << (len(prompt) - 1).bit_length(), np.int32)  # Few lengths are few compilations.
    padded[: len(prompt)] = prompt
    cache, key = empty_cache(gpt, room), jax.random.key(seed)
    follow = functools.partial(_next, gpt, key=key, temperature=temperature, top_k=top_k, size=size)
    token, cache = follow(jnp.asarray(padded), jnp.int32(len(prompt)), cache, jnp.int32(0))
    position = len(prompt)
    while True:
        yield int(token)
        if position == room:
            cache, room = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x)], axis=-3), cache), 2 * room
        token, cache = follow(token[None], jnp.int32(1), cache, jnp.int32(position))
        position += 1


def text_model(loaded: Loaded) -> tuple[GPT, Tokenizer]:
    """The transformer of a checkpoint and its tokenizer. Raises UserError if it is not a model of text."""
    model, tokenizer = loaded.model, loaded.recipe.data.tokenizer()
    if not isinstance(model, GPT) or tokenizer is None:
        raise UserError(f"{loaded.path} holds no model of text: it was trained on {loaded.recipe.data.data}")
    return model, tokenizer


def _timed(tokens: Iterable[int], unit: str) -> Iterator[int]:
    """`tokens`, and after the last one how fast they came, on stderr. The first one waits for the compilation."""
    start, count = 0.0, -1
    for token in tokens:
        start, count = start or time.perf_counter(), count + 1
        yield token
    if count > 0:
        print(f"\n{count / (time.perf_counter() - start):,.0f} {unit} a second", end="", file=sys.stderr)


def _main() -> int:
    line = tyro.cli(CommandLine, prog=program(), description="Generates text with a trained transformer.")
    line.check()
    gpt, tokenizer = text_model(load(line.checkpoint_dir))
    prompt = tokenizer.prompt(line.prompt)
    tokens = generate(gpt, prompt, size=tokenizer.size, temperature=line.temperature, top_k=line.top_k, seed=line.seed)
    document = itertools.takewhile(lambda token: token != tokenizer.end, itertools.islice(tokens, line.length))
    for text in tokenizer.decode(itertools.chain(prompt.tolist(), _timed(document, tokenizer.unit))):
        print(text, end="", flush=True)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(guarded(_main))
