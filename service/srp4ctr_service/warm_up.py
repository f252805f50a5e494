"""Runs recorded requests through a model before it serves, so that no real one pays for what is slow at first."""

import itertools
import time
from pathlib import Path

import structlog

from srp4ctr.contract.errors import ConfigError, DataError, InvalidRequest, StateError
from srp4ctr.contract.records import Record, read_records
from srp4ctr.contract.state import UserState
from srp4ctr_service.model import ServedModel

log = structlog.get_logger()

MAX_REQUESTS = 300


def check(records: Path) -> None:
    """Raises ConfigError where the file has no records to warm up with."""
    try:
        found = sum(1 for _ in itertools.islice(read_records([records]), MAX_REQUESTS))
    except DataError as error:
        raise ConfigError(f"SRP4CTR_WARMUP_FILE: {error}") from error
    if not found:
        raise ConfigError(f"SRP4CTR_WARMUP_FILE: {records} has no records")


def warm_up(model: ServedModel, records: Path, limit: int = MAX_REQUESTS) -> int:
    """Score the file's first `limit` requests, each with the state that was used; gives how many were scored.

    Records may be of another version: its states are not this model's, so that the cold one stands in for them, and a
    request that does not fit this model is left out. A file that has gone since the service started is logged, and no more:
    the model serves without.
    """
    began = time.perf_counter()
    scored = 0
    try:
        for record in itertools.islice(read_records([records]), limit):
            try:
                question = model.question(record.request)
            except InvalidRequest:
                continue
            model.score(_state(model, record), question, model.rows(question))
            scored += 1
    except DataError as error:
        log.warning("not_warmed_up", version=model.version, reason=str(error))
    seconds = round(time.perf_counter() - began, 3)
    log.info("warmed_up", version=model.version, requests=scored, seconds=seconds)
    return scored


def _state(model: ServedModel, record: Record) -> UserState:
    if record.state is not None:
        try:
            return model.bundle.manifest.decode_state(record.state)
        except StateError:
            pass
    return model.bundle.cold_state
