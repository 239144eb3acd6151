"""Several processes that train one model: who they are, and the collectives between them."""
