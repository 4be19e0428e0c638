"""Generation: with a cache it is the full forward, and what cannot be generated is refused."""

import dataclasses
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lipzoo
from lipzoo.data import DataConfig, TextConfig, TokensConfig
from lipzoo.data.bpe import BPE, END, TOKENS
from lipzoo.data.text import Characters
from lipzoo.models import GPT, GPTConfig, MLPConfig
from lipzoo.models.decoder import Decoder
from lipzoo.recipe.recipe import Recipe
from lipzoo.sample import CHUNK, LARGEST_FIRST_ROOM, PIECE, _follow, choose, chunks, draw, generate, text_model
from lipzoo.sample import _main as main
from lipzoo.system.errors import UserError
from lipzoo.system.terminal import guarded
from lipzoo.train.checkpoint import Loaded, save_model

ALPHABET = "\nabcdefghij"
VARIANTS = {
    "heads": GPTConfig(width=16, heads=2, softmax_scale=6.0, zero_init=False),
    "matrix": GPTConfig(width=16, depth=2, heads=2, granularity="matrix", zero_init=False),
    "bias": GPTConfig(width=16, depth=2, heads=4, softmax_scale=0.5, relative_bias=5, zero_init=False),
    "distance": GPTConfig(width=16, depth=2, heads=4, softmax_scale=0.0, relative_bias=5, zero_init=False),
    "window": GPTConfig(width=16, depth=2, heads=2, window=3, zero_init=False),
    "baseline": GPTConfig(width=16, depth=2, heads=2, norm="rms", residual="plain", qk_norm=True, zero_init=False),
    "unrotated": GPTConfig(width=16, depth=2, heads=2, rotary=False, relative_bias=3, zero_init=False),
    "lipsformer": GPTConfig("lipsformer", width=16, depth=2, heads=2, softmax_scale=12.0, zero_init=False),
}


def make(config):
    return GPT(len(ALPHABET), config, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "parts"), [*((name, (4, 1, 1, 3)) for name in VARIANTS), ("bias", (9,)), ("window", (1,) * 9)]
)
def test_tokens_in_parts_with_a_cache_give_the_full_forward(name, parts):
    gpt, tokens = make(VARIANTS[name]), jnp.arange(9) * 7 % len(ALPHABET)
    decoder, first, logits = Decoder.of(gpt), 0, []
    caches = decoder.empty(12)
    for size in parts:
        part, caches = decoder.extend(tokens[first : first + size], caches, jnp.int32(first))
        logits.append(part)
        first += size
    np.testing.assert_allclose(jnp.concatenate(logits), gpt(tokens), atol=2e-5)


def likeliest(gpt, prompt, count):
    """What a full forward pass chooses after every beginning."""
    text, forward = list(prompt), jax.jit(lambda tokens: gpt(tokens))
    padded = np.zeros(len(prompt) + count, np.int32)
    for _ in range(count):
        padded[: len(text)] = text
        text.append(int(forward(jnp.asarray(padded))[len(text) - 1].argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("length", [80, None])
@pytest.mark.parametrize("prompt", [[3], [1, 2, 3, 4, 5], [4] * CHUNK, [*range(10)] * 5, [*range(10)] * 30])
def test_greedy_generation_is_the_argmax_of_the_full_forward_in_chunks_and_after_pieces(prompt, length):
    gpt = make(VARIANTS["bias"])
    found = generate(gpt, np.array(prompt, np.int32), temperature=0.0, length=length)
    assert list(itertools.islice(found, 80)) == likeliest(gpt, prompt, 80)


def test_a_cache_that_is_full_is_doubled(monkeypatch):
    gpt, prompt = make(VARIANTS["heads"]), np.array([1], np.int32)
    expected = list(generate(gpt, prompt, length=3 * PIECE))
    monkeypatch.setattr("lipzoo.sample.LARGEST_FIRST_ROOM", PIECE)
    assert list(generate(gpt, prompt, length=3 * PIECE)) == expected
    assert list(itertools.islice(generate(gpt, prompt), 3 * PIECE)) == expected


def test_one_compilation_is_enough_for_a_length_that_is_known():
    gpt, prompt = make(VARIANTS["heads"]), np.array([1], np.int32)
    _follow.clear_cache()
    for options in ({}, {"seed": 3}, {"temperature": 0.5}):
        assert len(list(generate(gpt, prompt, length=LARGEST_FIRST_ROOM - 1, **options))) == LARGEST_FIRST_ROOM - 1
    assert _follow._cache_size() == 1


def test_large_models_are_asked_for_fewer_tokens_at_once(monkeypatch):
    gpt, prompt = make(VARIANTS["heads"]), np.array([1], np.int32)
    sizes, texts = [], []
    for work in (1, 1 << 26):
        monkeypatch.setattr("lipzoo.sample.WORK", work)
        found = list(itertools.islice(chunks(gpt, prompt), 40))
        sizes.append([len(chunk) for chunk in found])
        texts.append(list(itertools.chain.from_iterable(found))[:40])
    assert sizes == [[1] * 40, [CHUNK] * 40]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_randomness_depends_on_seed_and_position_alone(seed):
    """As jax draws it for one position at a time."""
    logits = jax.random.normal(jax.random.key(5), (11,))
    noise = jax.jit(draw, static_argnums=2)(np.uint32(seed), jnp.arange(3, 9), 11)
    for position, row in zip(range(3, 9), noise, strict=True):
        key = jax.random.fold_in(jax.random.key(seed), position)
        assert choose(logits, row, temperature=1.0, top_k=0) == jax.random.categorical(key, logits)


def test_a_seed_gives_the_same_text_and_another_seed_another():
    gpt = make(VARIANTS["heads"])
    texts = [list(itertools.islice(generate(gpt, np.array([1], np.int32), seed=s), 30)) for s in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_rows_that_only_pad_the_vocabulary_are_never_generated():
    gpt = make(dataclasses.replace(VARIANTS["heads"], final_scale=50.0))
    for options in ({}, {"temperature": 0.0}, {"top_k": 5}):
        whole, few = (
            set(itertools.islice(generate(gpt, np.array([1], np.int32), size=size, **options), 60))
            for size in (None, 3)
        )
        assert max(few) < 3
        assert options.get("temperature") == 0 or max(whole) >= 3


def test_choices_follow_the_probabilities_of_the_top_k():
    logits, draws = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), 4000

    def frequencies(logits=logits, **options):
        noise = draw(jnp.uint32(0), jnp.arange(draws), min(options["top_k"] or 4, 4))
        chosen = jax.vmap(lambda noise: choose(logits, noise, **options))(noise)
        return np.bincount(chosen, minlength=4) / draws

    np.testing.assert_allclose(frequencies(temperature=1.0, top_k=0), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    np.testing.assert_allclose(frequencies(temperature=1.0, top_k=2), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(frequencies(temperature=0.5, top_k=9)[0], 0.25 / 0.365, atol=0.03)
    assert frequencies(temperature=2e-38, top_k=0)[0] == 1
    assert choose(logits, None, temperature=0.0, top_k=0) == 0
    assert frequencies(jnp.zeros(4), temperature=1.0, top_k=1).max() == 1


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "text"
    recipe = Recipe("text", VARIANTS["bias"], TextConfig("pydoc", alphabet=ALPHABET))
    save_model(run, 3, recipe.build_model(jax.random.key(0)), recipe)
    return run


def sample(*arguments):
    command = [sys.executable, "-m", "lipzoo.sample", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_streams_the_prompt_and_what_follows(text_run):
    result = sample(text_run, "--prompt", "abc", "--length", 90, "--temperature", 0.8, "--top-k", 5)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("abc")
    assert len(result.stdout) == 3 + 90 + 1
    assert set(result.stdout) <= set(ALPHABET)
    assert "characters a second" in result.stderr


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 64])
def test_a_text_has_the_length_that_is_asked_for_and_begins_with_a_new_line(text_run, length, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sample", str(text_run), "--length", str(length)])
    assert main() == 0
    told = capsys.readouterr().out
    assert told.startswith("\n")
    assert len(told) == 1 + length + 1


@pytest.fixture(scope="module")
def tokens_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "tokens"
    recipe = Recipe("tokens", dataclasses.replace(VARIANTS["heads"], depth=1), TokensConfig("wikipedia_gpt2"))
    save_model(run, 3, recipe.build_model(jax.random.key(0)), recipe)
    return run


@pytest.mark.parametrize("prompt", ["The history of", "Jaźwiny 🙂", ""])
def test_a_model_of_tokens_streams_words(wikipedia_dir, tokens_run, prompt):
    result = sample(tokens_run, "--prompt", prompt, "--length", 60, "--seed", 2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(prompt)
    assert len(result.stdout) > len(prompt) + 60
    assert "tokens a second" in result.stderr
    loaded = lipzoo.load(tokens_run)
    assert loaded.recipe.data == TokensConfig("wikipedia_gpt2")
    gpt, tokenizer = text_model(loaded)
    assert (tokenizer, tokenizer.size, gpt.head.weight.array.shape[0]) == (BPE(), TOKENS, 50304)
    tokens = list(itertools.islice(generate(gpt, tokenizer.prompt(prompt), size=TOKENS, seed=2), 60))
    assert result.stdout == "".join(BPE().decode([*BPE().encode(prompt).tolist(), *tokens])) + "\n"


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        ([[END, 257]], "The history"),
        ([[257], [257, END, 257], [257]], "The history a a"),
        ([[257], [257]], "The history a a"),
    ],
)
def test_generation_stops_at_the_end_of_a_document(wikipedia_dir, tokens_run, monkeypatch, capsys, drawn, expected):
    assert BPE().encode(" a").tolist() == [257]
    monkeypatch.setattr("lipzoo.sample.chunks", lambda *arguments, **options: iter(drawn))
    monkeypatch.setattr("sys.argv", ["sample", str(tokens_run), "--prompt", "The history"])
    assert main() == 0
    assert capsys.readouterr().out == expected + "\n"


def test_a_tokenizer_of_characters():
    characters = Characters(ALPHABET)
    assert "".join(characters.decode(characters.encode("abcj").tolist())) == "abcj"
    assert characters.prompt("abc").tolist() == [1, 2, 3]
    assert characters.prompt("").tolist() == [0]
    assert (characters.size, characters.end) == (11, None)


REFUSED = [
    (["--prompt", "abZ"], "does not know the characters 'Z'"),
    (["--temperature", "-1"], "--temperature must lie between 0 and 1,000,000"),
    (["--top-k", "-1"], "--top-k must be at least 0"),
    (["--seed", "-1"], "--seed must lie between 0 and 4,294,967,295"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_cannot_be_generated_is_refused(text_run, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sample", str(text_run), *arguments])
    assert guarded(main) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        next(generate(make(VARIANTS["heads"]), np.zeros(0, np.int32)))


def test_a_model_of_images_generates_nothing(tmp_path):
    recipe = Recipe(model=MLPConfig(width=8), data=DataConfig())
    loaded = Loaded(recipe.build_model(jax.random.key(0)), recipe, tmp_path, 0, "")
    with pytest.raises(UserError, match="holds no model of text: it was trained on digits"):
        text_model(loaded)
    other = dataclasses.replace(loaded, model=make(VARIANTS["heads"]))
    with pytest.raises(UserError):
        text_model(other)
