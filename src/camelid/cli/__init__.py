"""The command line: one file per verb, each imported only when it is called."""

from camelid.base.registry import Registry

VERBS: Registry[object] = Registry(
    "verb",
    "camelid.verbs",
    {
        "chat": "camelid.cli.chat:app",
        "convert": "camelid.cli.convert:app",
        "data": "camelid.cli.data:app",
        "eval": "camelid.cli.eval:app",
        "models": "camelid.cli.models:app",
        "plan": "camelid.cli.plan:app",
        "prepare": "camelid.cli.prepare:app",
        "pretrain": "camelid.cli.pretrain:app",
        "pull": "camelid.cli.pull:app",
        "run": "camelid.cli.run:app",
        "sft": "camelid.cli.sft:app",
        "tokenizer": "camelid.cli.tokenizer:app",
        "verify": "camelid.cli.verify:app",
    },
)
