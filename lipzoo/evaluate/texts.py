"""A checkpoint of text evaluated around a prompt: how far the next token's prediction can be moved."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from lipzoo.evaluate.prompts import Moved, Prompt
from lipzoo.report import page
from lipzoo.report.tables import terminal_table
from lipzoo.sample import text_model
from lipzoo.system.errors import UserError
from lipzoo.system.files import write_text
from lipzoo.system.progress import waiting
from lipzoo.system.version import VERSION
from lipzoo.train.load import Loaded, load

LIKELIEST = 5
"""Next tokens that are shown."""


Change = tuple[str, Moved, Moved | None]


@dataclasses.dataclass(frozen=True, eq=False)
class PromptEvaluation:
    """What is proved of the next token after a prompt.

    **Attributes:**

    - `loaded`: the model and where it came from. `prompt`: the text; `tokens`: how many it has.
    - `changes`: for each change, its name and what is proved around the prompt, and everywhere (None where that has no
      global counterpart).
    - `reach`, `reach_global`: the largest ε found under which the likeliest next token stays so, around and everywhere.
    - `likeliest`: the likeliest next tokens, as texts, with their numbers.
    """

    loaded: Loaded
    prompt: str
    tokens: int
    changes: tuple[Change, ...]
    reach: float
    reach_global: float
    likeliest: tuple[tuple[str, int], ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object, laid out as docs/schema.md says."""
        return {
            "schema": 1,
            "lipzoo": VERSION,
            "checkpoint": str(self.loaded.path.absolute()),
            "step": self.loaded.step,
            "weights_sha256": self.loaded.sha256,
            "prompt": self.prompt,
            "tokens": self.tokens,
            "changes": [
                {
                    "change": name,
                    "local": _numbers(local),
                    "global": None if other is None else _numbers(other),
                }
                for name, local, other in self.changes
            ],
            "largest_epsilon_rms": self.reach,
            "largest_epsilon_rms_global": self.reach_global,
        }

    @property
    def columns(self) -> dict[str, list[str]]:
        """The table of changes."""
        rows = self.changes
        return {
            "change": [name for name, _, _ in rows],
            "logit": [_short(local.change.max()) for _, local, _ in rows],
            "log p": [_short(local.range) for _, local, _ in rows],
            "KL, nats": [_short(local.kl) for _, local, _ in rows],
            "log p, globally": ["" if other is None else _short(other.range) for _, _, other in rows],
            "likeliest stays": ["yes" if local.certain else "not proved" for _, local, _ in rows],
        }

    @property
    def token_columns(self) -> dict[str, list[str]]:
        """The table of the likeliest next tokens: between what their probabilities stay."""
        p = self.changes[0][1].probabilities[0]
        columns = {"next": [repr(text) for text, _ in self.likeliest], "p": [f"{p[i]:.3f}" for _, i in self.likeliest]}
        for name, local, _ in self.changes:
            _, low, high = local.probabilities
            columns[name] = [f"{low[i]:.3f}–{high[i]:.3f}" for _, i in self.likeliest]
        return columns

    @property
    def summary(self) -> str:
        """What the numbers are about."""
        return (
            "At most, whatever the change: by ε, every embedded token moves by up to ε in RMS norm, all at once; by so "
            "many tokens, these are replaced by any others. The likeliest next token is proved to stay so up to "
            f"ε = {self.reach:.3g} around this prompt, {self.reach_global:.3g} by the global bound. Computed exactly "
            "with the stored weights: the rounding of the network's own forward pass is not covered."
        )

    @property
    def _tables(self) -> dict[str, dict[str, list[str]]]:
        return {f"After {self.prompt[-40:]!r}": self.columns, "Next token": self.token_columns}

    def __rich__(self) -> Group:
        tables = (terminal_table(columns, title) for title, columns in self._tables.items())
        return Group(*tables, Text(self.summary, style="dim"))

    def _repr_html_(self) -> str:
        tables = (page.table(columns, title) for title, columns in self._tables.items())
        return "".join((*tables, page.note(self.summary)))


def evaluate_prompt(directory: Path, text: str, epsilons: Sequence[float], substitutions: int) -> PromptEvaluation:
    """Bounds around a prompt, by the newest checkpoint under `directory`.

    **Raises:** UserError if it is no model of text, cannot be bounded, or the prompt cannot be read or is too long.
    """
    loaded = load(directory)
    model, tokenizer = text_model(loaded)
    tokens = tokenizer.prompt(text).tolist()
    try:
        with waiting("bounding around the prompt", None):
            prompt = Prompt(model, tokens, loaded.recipe.training.temperature)
            changes: list[Change] = [
                (f"ε = {e:g}", prompt.near([e] * len(tokens)), prompt.anywhere(e)) for e in epsilons
            ]
            if substitutions:
                moved, _ = prompt.substituted(substitutions)
                changes.append((f"any {substitutions} of {len(tokens)} tokens", moved, None))
            reach = prompt.reach(), prompt.reach(local=False)
    except ValueError as error:
        raise UserError(f"{loaded.path} cannot be bounded around this prompt: {error}") from error
    logits = changes[0][1].logits[: tokenizer.size]
    best = (-logits).argsort()[:LIKELIEST].tolist()
    texts = [("".join(tokenizer.decode([index])), int(index)) for index in best]
    return PromptEvaluation(loaded, text, len(tokens), tuple(changes), *reach, tuple(texts))


def write_prompt(evaluation: PromptEvaluation, run: Path) -> Path:
    """Writes prompt.json into a folder."""
    run.mkdir(parents=True, exist_ok=True)
    write_text(run / "prompt.json", json.dumps(evaluation.to_json(), indent=2, allow_nan=False) + "\n")
    return run / "prompt.json"


def _numbers(moved: Moved) -> dict[str, Any]:
    values = {"logit": float(moved.change.max()), "log_probability": moved.range, "kl_nats": moved.kl}
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return finite | {"likeliest_stays": moved.certain}


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "∞"
