"""`python -m lipzoo.sample checkpoint_dir --prompt "ROMEO:"`: text from a trained transformer, as it is generated."""

import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, Int, UInt

from lipzoo.config.fields import field_refusal
from lipzoo.config.ranges import Count, Range, Seed, Whole
from lipzoo.data import Tokenizer
from lipzoo.models import GPT
from lipzoo.models.decoder import Caches, Decoder
from lipzoo.system.errors import UserError
from lipzoo.system.paths import UserPath
from lipzoo.system.terminal import guarded, program
from lipzoo.theory.weight import weights
from lipzoo.train.load import Loaded, load

CHUNK, WORK = 32, 1 << 26
"""Tokens of one dispatch: at most so many, and products with at most so many weights, so that text comes smoothly."""
PIECE = 128
"""Tokens of a long prompt that are read together. Rooms are multiples of it, so that there are few compilations."""
LARGEST_FIRST_ROOM = 1024
"""Tokens that the first cache has room for, at most, where text is to be longer than that. It is doubled when full,
which is a compilation, but each token costs work for the whole room."""
SMALLEST = float(np.finfo(np.float32).tiny)
"""Temperatures below it are 0 in float32."""


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    checkpoint_dir: Annotated[UserPath, tyro.conf.Positional]
    """A run, its checkpoints folder, or one step in it; the newest step is taken. Or an exported file, or zoo:NAME."""
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


def choose(
    logits: Float[Array, " vocabulary"],
    noise: Float[Array, " choices"] | None,
    *,
    temperature: float | Float[Array, ""] | None,
    top_k: Whole,
) -> Int[Array, ""]:
    """A token drawn from softmax(logits/temperature), of the `top_k` likeliest ones (0: of all), by Gumbel noise: the
    largest entry of logits/temperature + noise has that distribution. Without noise it is the likeliest one."""
    if noise is None or temperature is None:
        return logits.argmax()
    logits = (logits - logits.max()) / temperature
    if noise.size == logits.size:
        return (logits + noise).argmax()
    likeliest, tokens = jax.lax.top_k(logits, top_k)
    return tokens[(likeliest + noise).argmax()]


def draw(seed: UInt[Array, ""], positions: Int[Array, " time"], choices: Count) -> Float[Array, "time choices"]:
    """The noise at these positions, which depends on seed and position alone."""
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(positions)
    return jax.vmap(lambda key: jax.random.gumbel(key, (choices,), jnp.float32))(keys)


@functools.partial(jax.jit, static_argnames=("top_k", "size"), donate_argnames="caches")
def _follow(
    decoder: Decoder,
    given: Int[Array, " chunk"],
    token: Int[Array, ""],
    caches: Caches,
    first: Int[Array, ""],
    seed: UInt[Array, ""],
    temperature: Float[Array, ""] | None,
    top_k: Whole,
    size: Count,
) -> tuple[Int[Array, " chunk"], Caches]:
    """What is chosen after each of a chunk of tokens: those `given`, and where these are negative, what was chosen
    before; at first `token`. A temperature of None always takes the likeliest."""
    positions = first + jnp.arange(len(given), dtype=jnp.int32)
    noise = None if temperature is None else draw(seed, positions + 1, top_k if 0 < top_k < size else size)

    def step(carry: tuple[Array, Caches], each: Any) -> tuple[tuple[Array, Caches], Array]:
        (token, caches), (given, position, noise) = carry, each
        logits, caches = decoder.extend(jnp.where(given < 0, token, given)[None], caches, position)
        token = choose(logits[0, :size], noise, temperature=temperature, top_k=top_k).astype(jnp.int32)
        return (token, caches), token

    (_, caches), chosen = jax.lax.scan(step, (token, caches), (given, positions, noise))
    return chosen, caches


@functools.partial(jax.jit, donate_argnames="caches")
def _read(decoder: Decoder, tokens: Int[Array, " piece"], caches: Caches, first: Int[Array, ""]) -> Caches:
    """Keys and values of tokens after which nothing is chosen."""
    return decoder.extend(tokens, caches, first)[1]


def _begin(decoder: Decoder, prompt: Int[np.ndarray, " n"], room: int) -> Caches:
    """Keys and values of a prompt, which is whole pieces, with room for more."""
    caches = decoder.empty(room)
    for first in range(0, len(prompt), PIECE):
        caches = _read(decoder, prompt[first : first + PIECE], caches, np.int32(first))
    return caches


def _larger(caches: Caches) -> Caches:
    """Twice the room."""

    def twice(x: Array) -> Array:
        return jax.device_put(np.pad(np.asarray(x), [(0, 0), (0, 0), (0, x.shape[2])]), x.sharding)

    return jax.tree.map(twice, caches)


def _chunk_of(decoder: Decoder) -> int:
    """Tokens of a dispatch: a power of two, which divides every piece."""
    parameters = sum(weight.array.size for weight in weights(decoder))
    return 1 << (min(CHUNK, max(WORK // parameters, 1)).bit_length() - 1)


def chunks(
    gpt: GPT,
    prompt: Int[np.ndarray, " n"],
    *,
    length: Whole | None = None,
    size: Count | None = None,
    temperature: Annotated[float, Range(0, 1e6)] = 1.0,
    top_k: Whole = 0,
    seed: Seed = 0,
) -> Iterator[list[int]]:
    """What `generate` gives, as it comes: without end. For `length` tokens one compilation is enough, if that is known
    and the text not long."""
    if not len(prompt):
        raise ValueError("the prompt must hold at least one token")
    decoder, count, token = Decoder.of(gpt), len(prompt), np.int32(0)
    chunk, first = _chunk_of(decoder), (count - 1) // PIECE * PIECE
    known = LARGEST_FIRST_ROOM if length is None else min(count + length, LARGEST_FIRST_ROOM)
    room = -(-max(count + 1, known) // PIECE) * PIECE
    caches = _begin(decoder, prompt[:first], room)
    warmth = None if temperature < SMALLEST else np.float32(temperature)
    follow = functools.partial(_follow, top_k=top_k, size=size or gpt.head.weight.array.shape[0])
    while True:
        if first == room:
            caches, room = _larger(caches), 2 * room
        given = np.full(chunk, -1, np.int32)
        given[: max(count - first, 0)] = prompt[first : first + chunk]
        chosen, caches = follow(decoder, given, token, caches, np.int32(first), np.uint32(seed), warmth)
        told = np.asarray(chosen)
        if first + chunk >= count:
            yield told[max(count - 1 - first, 0) :].tolist()
        token, first = told[-1], first + chunk


def generate(
    gpt: GPT,
    prompt: Int[np.ndarray, " n"],
    *,
    length: Whole | None = None,
    size: Count | None = None,
    temperature: Annotated[float, Range(0, 1e6)] = 1.0,
    top_k: Whole = 0,
    seed: Seed = 0,
) -> Iterator[int]:
    """`length` tokens after `prompt`, by default without end, of the first `size` ones: what the model has beyond pads
    its arrays.

    Each costs the work of one token: keys and values of the others are kept. The randomness at a position depends on
    the seed and the position alone.

    **Raises:** ValueError if the prompt is empty: a token can only follow another.
    """
    found = chunks(gpt, prompt, length=length, size=size, temperature=temperature, top_k=top_k, seed=seed)
    return itertools.islice(itertools.chain.from_iterable(found), length)


def _document(found: Iterable[list[int]], length: Whole, end: int | None) -> Iterator[list[int]]:
    """The first `length` tokens, or those before the one that ends a document."""
    chunks = iter(found)
    while length and (chunk := next(chunks, [])):
        whole = chunk[: chunk.index(end)] if end in chunk else chunk
        yield whole[:length]
        length = max(length - len(chunk), 0) if whole is chunk else 0


def text_model(loaded: Loaded) -> tuple[GPT, Tokenizer]:
    """The transformer of a checkpoint and its tokenizer. Raises UserError if it is not a model of text."""
    model, tokenizer = loaded.model, loaded.recipe.data.tokenizer()
    if not isinstance(model, GPT) or tokenizer is None:
        raise UserError(f"{loaded.path} holds no model of text: it was trained on {loaded.recipe.data.data}")
    return model, tokenizer


def _timed(found: Iterable[list[int]], unit: str) -> Iterator[int]:
    """The tokens, and after the last one how fast those came, on stderr, that did not wait for the compilation."""
    start, count = 0.0, 0
    for chunk in found:
        count += len(chunk) if start else 0
        start = start or time.perf_counter()
        yield from chunk
    if count:
        print(f"\n{count / (time.perf_counter() - start):,.0f} {unit} a second", end="", file=sys.stderr)


def _main() -> int:
    line = tyro.cli(CommandLine, prog=program(), description="Generates text with a trained transformer.")
    line.check()
    gpt, tokenizer = text_model(load(line.checkpoint_dir))
    prompt = tokenizer.prompt(line.prompt)
    options = {"temperature": line.temperature, "top_k": line.top_k, "seed": line.seed}
    found = _document(
        chunks(gpt, prompt, length=line.length, size=tokenizer.size, **options), line.length, tokenizer.end
    )
    for text in tokenizer.decode(itertools.chain(prompt.tolist(), _timed(found, tokenizer.unit))):
        print(text, end="", flush=True)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(guarded(_main))
