"""The visual Turing test: people choose between a photograph and its colorization.

`trials` holds the pairs, each person's order of them and their answers on disk; `window` and `web` (with page.html) ask;
`score` counts; `session` is the run that joins them.
"""

from src.turing.session import run

__all__ = ["run"]
