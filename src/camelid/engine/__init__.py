"""The engine: token ids in, token ids out. Text, stop strings and templates belong to `camelid.llm`.

`Engine` (engine.py) joins the parts: `Scheduler` says which tokens run next, `ModelRunner` runs them over a
`PagedKVCache` whose blocks `BlockManager` hands out, and `sample` chooses the next tokens.
"""
