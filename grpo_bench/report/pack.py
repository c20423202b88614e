"""What a page carries in itself: the plotting library and its data, compressed and as text that HTML leaves alone."""

from __future__ import annotations

import base64
import gzip
import json
import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from grpo_bench.types import UserError


def packed(content: bytes) -> str:
    """Gzip, then base64: what a browser's DecompressionStream reads; the same bytes give the same text."""
    return base64.b64encode(gzip.compress(content, compresslevel=9, mtime=0)).decode("ascii")


def packed_json(value: Any) -> str:
    """JSON, packed. Raises ValueError on NaN, which JSON does not have."""
    return packed(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode())


def unpacked_json(text: str) -> Any:
    """What ``packed_json`` packed. Raises ValueError, OSError, EOFError or zlib.error on other text."""
    return json.loads(gzip.decompress(base64.b64decode(text, validate=True)))


@lru_cache(maxsize=1)
def library() -> tuple[str, str]:
    """(plotly.js packed, its version), as the Python package plotly ships it; UserError where that is not installed.

    The package itself is not imported: it would take longer than the page.
    """
    spec = find_spec("plotly")
    places = list(spec.submodule_search_locations or []) if spec else []
    bundle = Path(places[0]) / "package_data" / "plotly.min.js" if places else None
    if bundle is None or not bundle.is_file():
        raise UserError("the page's curves need plotly's JavaScript: pip install plotly")
    content = bundle.read_bytes()
    version = re.search(rb"plotly\.js v([\d.]+)", content[:400])
    return packed(content), version[1].decode() if version else "?"
