"""`python -m recgrela.serve RUN`: serve a run's model over HTTP."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recgrela.settings import command_line
from recgrela.settings.command_line import Parser
from recgrela.settings.fields import MAX_THREADS, Option
from recgrela.system.errors import ConfigError
from recgrela.system.files import expand_path

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")

OPTIONS = [
    Option(
        "store", None, "File of the store, or its URL, as redis://HOST:PORT/DB; by default RUN/serve.sqlite."
    ),
    Option(
        "import", None, "File of events to store before serving; events of an earlier import are skipped."
    ),
    Option("host", "127.0.0.1", "Address to listen on."),
    Option("port", 8000, "Port to listen on; 0 for a free one.", kind=int, min=0, max=65535),
    Option(
        "token_file", None, "File of the token that requests must have; else RECGRELA_SERVE_TOKEN, if set."
    ),
    Option("without_token", False, "Serve without a token on a host that is not loopback.", kind=bool),
    Option("max_batch", 256, "Events and queries that are computed together.", kind=int, min=1, max=1 << 16),
    Option("max_wait_ms", 0.0, "Milliseconds that a request waits for others.", kind=float, min=0, max=1000),
    Option("max_queue", 1024, "Requests that may wait; more are refused.", kind=int, min=1, max=1 << 20),
    Option(
        "checkpoint", "auto", "Checkpoint; auto: that of the final table.", choices=("auto", "best", "last")
    ),
    Option("poll", 2.0, "Seconds between looks for a new checkpoint; 0: never.", kind=float, min=0),
    Option("device", "auto", "Device: cpu, cuda, cuda:N, or auto for the GPU if there is one."),
    Option("threads", None, "Number of CPU threads.", kind=int, min=1, max=MAX_THREADS),
    Option("state_dtype", "float32", "Format of stored states.", choices=("float32", "bfloat16")),
    Option("precision", "float32", "Precision of the search for items.", choices=("float32", "int8")),
]


def command(argv: Sequence[str]) -> int:
    """Parse, load, serve until a stop signal."""
    parser = Parser("serve", "Serve a run's model over HTTP.")
    parser.add_argument("run", metavar="RUN", help="Run folder.")
    parser.add(OPTIONS)
    options = parser.read(argv)
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)} is not installed; run: pip install 'recgrela[serve]'")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    run_server(options)
    return 0


def run_server(options: dict[str, Any]) -> None:
    """Serves until SIGTERM or SIGINT."""
    import torch

    from recgrela.serve.access import read_token
    from recgrela.serve.app import create_app
    from recgrela.serve.batching import Batcher
    from recgrela.serve.metrics import Metrics
    from recgrela.serve.reload import Reloader, Source, checkpoint_name
    from recgrela.serve.server import is_loopback, listen, names_of, serve, url_of
    from recgrela.serve.service import Service
    from recgrela.store import open_store

    log = logging.getLogger(__name__)
    host = options["host"]
    token = read_token(options["token_file"])
    if token is None and not is_loopback(host) and not options["without_token"]:
        raise ConfigError(
            f"host: {host} is reached by other machines; give --token_file FILE, or --without_token true"
        )
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    run = expand_path(options["run"], "run")
    checkpoint = None if options["checkpoint"] == "auto" else options["checkpoint"]
    source = Source(run, checkpoint, options["device"], options["precision"], options["state_dtype"])
    identity = source.identity()
    with open_store(options["store"] or _beside(run)) as store, listen(host, options["port"]) as sock:
        engine = source.load(store)
        metrics = Metrics()
        if options["import"]:
            _import(log, engine, options["import"])
        batcher = Batcher(
            engine,
            metrics,
            max_batch=options["max_batch"],
            max_wait=options["max_wait_ms"] / 1000,
            max_queue=options["max_queue"],
        )
        reloader = Reloader(source, identity, batcher, store, metrics, options["poll"])
        service = Service(store, batcher, metrics, reloader, token, names_of(host))
        metrics.watch_states(lambda: batcher.engine)
        metrics.set_model(engine.key, checkpoint_name(engine))
        log.info("%s serves %s", checkpoint_name(engine), url_of(sock))
        if token is None and not is_loopback(host):
            log.warning("anybody who reaches %s may read and add events", url_of(sock))
        serve(create_app(service), sock, reloader.reload)
        log.info("stopped")


def _beside(run: Path) -> Path:
    """The default store of a run."""
    return run / "serve.sqlite"


def _import(log: logging.Logger, engine: Any, path: str) -> None:
    from recgrela.serve.importing import import_events

    stored, events = import_events(engine.store, path, engine.recommender.run.config.data)
    log.info("%s: %d of %d events are new", path, stored, events)
    users = engine.rebuild(lambda done: log.info("states of %d users", done))
    log.info("states of %d users are up to date", users)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command_line.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
