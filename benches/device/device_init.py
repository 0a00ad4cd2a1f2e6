"""edgesmith's own session and timing files, unchanged, as a bundle carries them to a device.

Becomes `__init__.py` of the bundle's package. Before Python 3.10 dataclasses know no `kw_only`; every field is given by
its name all the same, so that leaving the word out changes nothing.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

if sys.version_info < (3, 10):  # this package's own process, where nothing else asks for `kw_only`
    _dataclass: Any = dataclasses.dataclass

    def _without_kw_only(cls: Any = None, **options: Any) -> Any:
        options.pop("kw_only", None)
        return _dataclass(cls, **options)

    dataclasses.dataclass = _without_kw_only
