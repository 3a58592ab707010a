"""One file per task; `camelid.evaluate.TASKS` names them."""
