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
from lipzoo.recipe.recipe import Recipe
from lipzoo.sample import _main as main
from lipzoo.sample import choose, empty_cache, generate, text_model
from lipzoo.system.errors import UserError
from lipzoo.system.terminal import guarded
from lipzoo.train.checkpoint import Loaded, save_model

ALPHABET = "\nabcdefghij"
VARIANTS = {
    "heads": GPTConfig(width=16, heads=2, softmax_scale=6.0, zero_init=False),
    "matrix": GPTConfig(width=16, depth=2, heads=2, granularity="matrix", zero_init=False),
    "bias": GPTConfig(width=16, depth=2, heads=4, softmax_scale=0.5, relative_bias=5, zero_init=False),
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
    cache, first, logits = empty_cache(gpt, 12), 0, []
    for size in parts:
        part, cache = gpt.extend(tokens[first : first + size], cache, jnp.int32(first))
        logits.append(part)
        first += size
    np.testing.assert_allclose(jnp.concatenate(logits), gpt(tokens), atol=2e-5)


@pytest.mark.parametrize("prompt", [[3], [1, 2, 3, 4, 5]])
def test_greedy_generation_is_the_argmax_of_the_full_forward_also_beyond_the_first_cache(prompt):
    gpt = make(VARIANTS["bias"])
    got = list(itertools.islice(generate(gpt, np.array(prompt, np.int32), temperature=0.0), 80))
    text, forward = list(prompt), jax.jit(lambda tokens: gpt(tokens))
    padded = np.zeros(90, np.int32)
    for token in got:
        padded[: len(text)] = text
        assert token == int(forward(jnp.asarray(padded))[len(text) - 1].argmax())
        text.append(token)


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
    keys = jax.random.split(jax.random.key(0), draws)

    def frequencies(logits=logits, **options):
        chosen = jax.vmap(lambda key: choose(logits, key, **options))(keys)
        return np.bincount(chosen, minlength=4) / draws

    np.testing.assert_allclose(frequencies(temperature=1.0, top_k=0), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    np.testing.assert_allclose(frequencies(temperature=1.0, top_k=2), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(frequencies(temperature=0.5, top_k=9)[0], 0.25 / 0.365, atol=0.03)
    assert frequencies(temperature=0.0, top_k=0)[0] == 1
    assert frequencies(temperature=1e-38, top_k=0)[0] == 1
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
    result = sample(text_run, "--prompt", "abc", "--length", 20, "--temperature", 0.8, "--top-k", 5)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("abc")
    assert len(result.stdout) == 3 + 20 + 1
    assert set(result.stdout) <= set(ALPHABET)
    assert "characters a second" in result.stderr


def test_without_a_prompt_a_text_begins_with_a_new_line(text_run):
    result = sample(text_run, "--length", 5)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("\n")
    assert len(result.stdout) == 1 + 5 + 1


@pytest.fixture(scope="module")
def tokens_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "tokens"
    recipe = Recipe("tokens", dataclasses.replace(VARIANTS["heads"], depth=1), TokensConfig("wikipedia_gpt2"))
    save_model(run, 3, recipe.build_model(jax.random.key(0)), recipe)
    return run


@pytest.mark.parametrize("prompt", ["The history of", "Jaźwiny 🙂", ""])
def test_a_model_of_tokens_streams_words(wikipedia_dir, tokens_run, prompt):
    result = sample(tokens_run, "--prompt", prompt, "--length", 30, "--seed", 2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(prompt)
    assert len(result.stdout) > len(prompt) + 30
    assert "tokens a second" in result.stderr
    loaded = lipzoo.load(tokens_run)
    assert loaded.recipe.data == TokensConfig("wikipedia_gpt2")
    gpt, tokenizer = text_model(loaded)
    assert (tokenizer, tokenizer.size, gpt.head.weight.array.shape[0]) == (BPE(), TOKENS, 50304)
    tokens = list(itertools.islice(generate(gpt, tokenizer.prompt(prompt), size=TOKENS, seed=2), 30))
    assert result.stdout == "".join(BPE().decode([*BPE().encode(prompt).tolist(), *tokens])) + "\n"


@pytest.mark.parametrize(("end", "expected"), [(END, "The history"), (None, "The history a a")])
def test_generation_stops_at_the_end_of_a_document(wikipedia_dir, tokens_run, monkeypatch, capsys, end, expected):
    follow = BPE().encode(" a").tolist()
    drawn = iter([END, *follow]) if end else iter(2 * follow)
    monkeypatch.setattr("lipzoo.sample.generate", lambda *arguments, **options: drawn)
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
