"""Several processes that train one model: who they are, collectives between them, sharded item tables."""
