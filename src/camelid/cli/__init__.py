"""The command line: one file per verb, each imported only when it is called."""

from camelid.base.registry import Registry

VERBS: Registry[object] = Registry(
    "verb",
    "camelid.verbs",
    {
        "chat": "camelid.cli.chat:app",
        "data": "camelid.cli.data:app",
        "models": "camelid.cli.models:app",
        "prepare": "camelid.cli.prepare:app",
        "pretrain": "camelid.cli.pretrain:app",
        "pull": "camelid.cli.pull:app",
        "tokenizer": "camelid.cli.tokenizer:app",
    },
)
