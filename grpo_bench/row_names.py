"""Names by which a study may declare rows that it cannot call by their own; read by the schema and by the tables."""

from __future__ import annotations

import re

# models before RL, which no run of a sweep makes, with the key of a record's evaluations
BEFORE_RL = {"warm-started": "base", "pretrained": "pretrained"}
# a model by its place among the study's, by their recorded parameters, so that one claim serves any models; "each" is
# all of them in increasing size
PLACE = re.compile(r"(?<= model=)(smallest|largest|each)(?= |$)")
EACH = "each"


def is_each(name: str) -> bool:
    """Whether ``name`` stands for a row of every model, a list by itself."""
    return (found := PLACE.search(name)) is not None and found[0] == EACH
