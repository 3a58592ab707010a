"""From raw text to batches: sources, cleaning, token shards, mixtures and conversations.

for document in read_documents(["texts/"]):
    ...
report = prepare(load_recipe(CleanRecipe, Path("clean.toml")))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from camelid.base.lazy import lazy_exports

if TYPE_CHECKING:
    from camelid.data.batch import Batch, BatchSource
    from camelid.data.clean import CleanRecipe, kept_documents, prepare
    from camelid.data.document import Document
    from camelid.data.report import CleaningReport
    from camelid.data.sources import ReadOptions, read_documents

__all__ = [
    "Batch",
    "BatchSource",
    "CleanRecipe",
    "CleaningReport",
    "Document",
    "ReadOptions",
    "kept_documents",
    "prepare",
    "read_documents",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Batch": "camelid.data.batch",
        "BatchSource": "camelid.data.batch",
        "CleanRecipe": "camelid.data.clean",
        "CleaningReport": "camelid.data.report",
        "Document": "camelid.data.document",
        "ReadOptions": "camelid.data.sources",
        "kept_documents": "camelid.data.clean",
        "prepare": "camelid.data.clean",
        "read_documents": "camelid.data.sources",
    },
)
