"""`srp4ctr serve`: run the service, and a Redis of its own where none is configured."""

import argparse
import contextlib
import signal
import socket
import time
from collections.abc import Iterator, Sequence

import structlog
import uvicorn
from pydantic import BaseModel

from srp4ctr.contract.errors import ConfigError, StoreUnavailable
from srp4ctr.runtime.cpus import usable_cpus
from srp4ctr.runtime.local_redis import LocalRedis
from srp4ctr.runtime.redis_client import connect, shown, store_errors
from srp4ctr.runtime.redis_supervisor import Supervisor
from srp4ctr.runtime.settings import ENV_PREFIX, read_settings
from srp4ctr_service import logs
from srp4ctr_service.app import create_app
from srp4ctr_service.server import server_config
from srp4ctr_service.settings import Settings
from srp4ctr_service.workers import run_workers

log = structlog.get_logger()

WAIT_S = 0.5

DESCRIPTION = """\
Answer POST /score until Ctrl-C.

Reads the active version and user states from Redis, and that version's bundle below var/bundles; follows when another
version is activated. Until Redis answers, it does not listen. Writes JSON log lines to standard output. Without SRP4CTR_REDIS_URL it starts a redis-server of
its own, with its data under var/redis, and restarts it when it dies.
"""


def main(argv: Sequence[str]) -> int:
    """Serve until SIGINT or SIGTERM; 0 after an orderly stop. Raises ConfigError where it cannot listen."""
    parser = argparse.ArgumentParser(
        prog="srp4ctr serve",
        description=DESCRIPTION,
        epilog=settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in ("host", "port", "workers", "log_level"):
        field = Settings.model_fields[name]
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            help=f"{field.description} ({ENV_PREFIX}{name.upper()}; {field.default})",
        )
    arguments = parser.parse_args(argv)
    settings = read_settings(Settings, **vars(arguments))
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(settings))
        logs.configure(settings.log_level)
        url = settings.redis_url or stack.enter_context(Supervisor(LocalRedis(settings)))
        host, port = listener.getsockname()[:2]
        workers = settings.workers or usable_cpus()
        where = f"http://{host}:{port}"
        _wait_for(settings, url)
        log.info("serving", address=where, workers=workers, redis=shown(url), var_dir=str(settings.var_dir))
        with _signals_end_only_the_server():
            if workers > 1:
                # What is wrong with the files that settings name is said once, and not by each worker again and again.
                create_app(settings, url)
                return 0 if run_workers(settings, url, listener, workers) else 1
            uvicorn.Server(server_config(create_app(settings, url), settings)).run(sockets=[listener])
    return 0


def _wait_for(settings: Settings, url: str) -> None:
    """Return when Redis answers: a service without a model would take connections, and could refuse only."""
    told = False
    with connect(settings, url, retries=0) as client:
        while True:
            try:
                with store_errors():
                    client.ping()
            except StoreUnavailable as error:
                if not told:
                    log.warning("waiting_for_redis", redis=shown(url), reason=str(error))
                told = True
                time.sleep(WAIT_S)
            else:
                return


def settings_help(settings: type[BaseModel] = Settings) -> str:
    """Every setting's variable with its default, and below it what it is."""
    lines = ["all settings, by environment variable (default):"]
    for name, field in settings.model_fields.items():
        default = "unset" if field.default is None else field.default
        lines += [f"  {ENV_PREFIX}{name.upper()} ({default})", f"      {field.description}"]
    return "\n".join(lines)


def listen(settings: Settings) -> socket.socket:
    """A socket with the configured address, on which uvicorn listens once a model is loaded.

    Until then connections are refused, so that a balancer asks another replica at once, instead of waiting for this one.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen at {settings.host}:{settings.port}: {error.strerror}; "
            "choose another SRP4CTR_HOST or SRP4CTR_PORT"
        ) from error
    return listener


@contextlib.contextmanager
def _signals_end_only_the_server() -> Iterator[None]:
    # uvicorn raises the signal that stopped it once more when it is done, which by default would end this process
    # before it has stopped its Redis.
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
