"""Trained models that come with the library: `lipzoo.load("zoo:NAME")`."""
