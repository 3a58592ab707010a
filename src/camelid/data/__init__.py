"""From raw text to batches: sources, cleaning, token shards, mixtures and conversations.

for document in read_documents(["texts/"]):
    ...
report = camelid.data.clean.prepare(load_recipe(CleanRecipe, Path("clean.toml")))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from camelid.base.lazy import lazy_exports

if TYPE_CHECKING:
    from camelid.data.batch import Batch, BatchSource
    from camelid.data.clean import CleanRecipe, kept_documents
    from camelid.data.conversation_batches import ConversationBatches
    from camelid.data.conversations import read_conversations
    from camelid.data.document import Document
    from camelid.data.loader import PretrainBatches
    from camelid.data.mixture import Mixture, MixturePart
    from camelid.data.report import CleaningReport
    from camelid.data.shards import TokenShards, write_shards
    from camelid.data.sources import ReadOptions, read_documents

__all__ = [
    "Batch",
    "BatchSource",
    "CleanRecipe",
    "CleaningReport",
    "ConversationBatches",
    "Document",
    "Mixture",
    "MixturePart",
    "PretrainBatches",
    "ReadOptions",
    "TokenShards",
    "kept_documents",
    "read_conversations",
    "read_documents",
    "write_shards",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Batch": "camelid.data.batch",
        "BatchSource": "camelid.data.batch",
        "CleanRecipe": "camelid.data.clean",
        "CleaningReport": "camelid.data.report",
        "ConversationBatches": "camelid.data.conversation_batches",
        "Document": "camelid.data.document",
        "Mixture": "camelid.data.mixture",
        "MixturePart": "camelid.data.mixture",
        "PretrainBatches": "camelid.data.loader",
        "ReadOptions": "camelid.data.sources",
        "TokenShards": "camelid.data.shards",
        "kept_documents": "camelid.data.clean",
        "read_conversations": "camelid.data.conversations",
        "read_documents": "camelid.data.sources",
        "write_shards": "camelid.data.shards",
    },
)
