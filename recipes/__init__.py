"""Ready-made runs: `python -m recipes.NAME`."""
