"""Recordings of any kind behind one interface: `open_source` recognises what lies at a path and reads its frames.

`interface` says what a source is; each other module knows one layout; `recognise` chooses among them.
"""

from coopnet_core.data.sources.interface import Source, SourceOptions
from coopnet_core.data.sources.recognise import open_source

__all__ = ["Source", "SourceOptions", "open_source"]
