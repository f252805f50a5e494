"""Follows the active version in Redis and has its model loaded."""

import asyncio
import contextlib
import gc
import re
import time
from collections.abc import AsyncIterator

import structlog
from pydantic import ValidationError

from srp4ctr.contract.errors import BundleError, NoActiveModel, Srp4ctrError, StoreError, StoreUnavailable
from srp4ctr.contract.schema import FeatureSchema
from srp4ctr.contract.transforms import SCHEMA
from srp4ctr.runtime.async_state_store import AsyncStateStore
from srp4ctr.runtime.bundle import open_revision
from srp4ctr.runtime.version_records import Active
from srp4ctr_service.background import every
from srp4ctr_service.model import ServedModel
from srp4ctr_service.settings import Settings
from srp4ctr_service.telemetry import Telemetry
from srp4ctr_service.warm_up import warm_up

log = structlog.get_logger()

# A version becomes a path, so it must be the name of a folder and nothing else.
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_RETRY_S = 30.0
COMING_KEPT_S = 60.0
"""How long a version that was about to be active is kept loaded after that was said last."""


class Versions:
    """Holds the model to score with: one reference, switched in one step."""

    def __init__(self, settings: Settings, store: AsyncStateStore, telemetry: Telemetry) -> None:
        self._settings = settings
        self._store = store
        self._telemetry = telemetry
        self._model: ServedModel | None = None
        self._left: ServedModel | None = None
        """That served before, and is the one to roll back to: going back to it reads and verifies no bundle."""
        self._coming: ServedModel | None = None
        """That is about to be active: the switch then takes its pointer alone."""
        self._coming_until = 0.0
        self._not_coming: tuple[str, str] | None = None
        self._ahead: tuple[Active, asyncio.Task[None]] | None = None
        """What is being loaded ahead; the pointer is followed meanwhile."""
        self._before: tuple[str | None, frozenset[str]] = None, frozenset()
        self._pointer_away = False
        """Whether the look before this one found Redis away when it came to the version's items."""
        self._refused: tuple[Active, str | None] | None = None
        self._retry_s = 0.0
        self._retry_at = 0.0
        self.trouble: str | None = "the active version has not been looked up yet"
        """Why the model is not the active one; None where it is."""

    def current(self) -> ServedModel:
        """The model to score with; raises NoActiveModel until the first one is loaded."""
        if self._model is None:
            raise NoActiveModel(f"no model is loaded: {self.trouble}")
        return self._model

    def behaviours_before(self) -> frozenset[str]:
        """Names of the behaviour features of the version before the active one; none where its bundle is not here."""
        return self._before[1]

    @contextlib.asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Follow the active version while entered; the first look is over on entering."""
        await self._look()
        # What would be loaded when the service stops serves nobody.
        async with every(
            self._settings.version_poll_ms / 1000, self._look, "follow-active-version", last=False
        ):
            yield

    async def _look(self) -> None:
        """Load what is active now unless it is loaded; whatever fails leaves the current model in place."""
        limit_s = self._settings.redis_read_timeout_ms / 1000
        active = await self._active(limit_s)
        if active is None:
            self._pointer_away = False
            return
        if active.previous != self._before[0]:
            names = await asyncio.to_thread(_behaviours, self._settings, active.previous)
            self._before = active.previous, names
        model = self._model
        there = model is not None and _is(model, active)
        known, revision = await self._revision(active, there, limit_s)
        if not known:
            return
        if model is not None and there and model.revision == revision:
            self.trouble = None
            await self._look_ahead(limit_s)
            return
        if (active, revision) == self._refused and time.monotonic() < self._retry_at:
            return
        await self._load(active, revision)

    async def _active(self, limit_s: float) -> Active | None:
        """The active version; None where there is none or it is not known, which is trouble where no model is served."""
        reason = "no version has been activated; run: srp4ctr activate"
        try:
            active = await self._store.active(limit_s)
        except StoreError as error:
            active, reason = None, str(error)
        # The model in place goes on; without Redis nothing can have been activated.
        if active is None and self._model is None:
            self._say(reason)
        return active

    async def _revision(self, active: Active, there: bool, limit_s: float) -> tuple[bool, str | None]:
        """Whether the revision of the active version's items is known, and that one; `there`: the version is served already.

        Where it is not known, what is served goes on: the version may have other items than its own.
        """
        before, self._pointer_away = self._pointer_away, False
        try:
            return True, await self._store.items_revision(active.version, limit_s)
        except StoreError as error:
            self._pointer_away = away = isinstance(error, StoreUnavailable)
            if there and away and not before:
                # Redis went between two reads: the next look finds it gone, and that is no trouble of the model's.
                return False, None
            if there or away:
                self._say(f"which items {active.version} has is not known: {error}")
                return False, None
            # A pointer that is spoilt does not hold up a version.
            return True, None

    async def _look_ahead(self, limit_s: float) -> None:
        """Load what is about to be active, while there is time for it."""
        try:
            upcoming = await self._store.upcoming(limit_s)
        except StoreError:
            return
        now = time.monotonic()
        if upcoming is None:
            self._not_coming = None
            if now > self._coming_until:
                self._coming = None
            return
        self._coming_until = now + COMING_KEPT_S
        version, fingerprint = upcoming
        wanted = Active(version, fingerprint, None, 0)
        there = (self._model, self._left, self._coming)
        if upcoming == self._not_coming or any(one is not None and _is(one, wanted) for one in there):
            return
        if self._ahead is None:
            self._ahead = wanted, asyncio.create_task(self._load_ahead(wanted), name="load-ahead")

    async def _load_ahead(self, wanted: Active) -> None:
        try:
            self._coming = await asyncio.to_thread(_open, self._settings, wanted)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is told again, and tried again, when the version is active
            log.warning("version_not_loaded_ahead", version=wanted.version, reason=str(error))
            self._not_coming = wanted.version, wanted.fingerprint
        finally:
            self._ahead = None

    async def _load(self, active: Active, revision: str | None) -> None:
        """Serve the version with that revision of its items, which both are there from the first answer on.

        Where the revision cannot be had, the version's table that is there.
        """
        model, wanted = self._model, (active, revision)
        try:
            # Reading and hashing takes seconds; requests are answered meanwhile.
            if model is None or not _is(model, active):
                if self._ahead is not None and self._ahead[0].version == active.version:
                    await self._ahead[1]
                loaded = [one for one in (self._left, self._coming) if one is not None and _is(one, active)]
                model = loaded[0] if loaded else await asyncio.to_thread(_open, self._settings, active)
            if model.revision != revision:
                model = await asyncio.to_thread(_with_items, model, revision)
        except Srp4ctrError as error:
            self._say(str(error))
            self._retry_s = min(2 * self._retry_s or 1.0, MAX_RETRY_S) if wanted == self._refused else 1.0
            self._retry_at = time.monotonic() + self._retry_s
            self._refused = wanted
            self._telemetry.version_loads["failed"].inc()
        else:
            self._refused = None
            self.trouble = None
        if model is not None and model is not self._model:
            self._serve(model)

    def _serve(self, model: ServedModel) -> None:
        if self._model is not None and self._model.version != model.version:
            self._left = self._model
        self._model, self._coming = model, None
        # What is loaded now stays: the garbage collector need not look through it again and again.
        gc.freeze()
        self._telemetry.serve_version(model.version)
        self._telemetry.version_loads["loaded"].inc()
        log.info(
            "model_loaded",
            version=model.version,
            fingerprint=model.bundle.manifest.fingerprint,
            items_revision=model.revision,
        )

    def _say(self, trouble: str) -> None:
        if trouble != self.trouble:
            log.warning("model_not_loaded", reason=trouble, serving=self._model and self._model.version)
        self.trouble = trouble


def _is(model: ServedModel, active: Active) -> bool:
    # Versions may share a fingerprint: the same weights with a newer catalogue.
    manifest = model.bundle.manifest
    return (manifest.version, manifest.fingerprint) == (active.version, active.fingerprint)


def _with_items(model: ServedModel, revision: str | None) -> ServedModel:
    """The model with that revision of its item table; a table that is there stays as it is for whoever uses it."""
    try:
        return model.with_items(open_revision(model.bundle, revision), revision)
    except Srp4ctrError:
        raise
    except Exception as error:
        # As of a bundle: nothing must end the loop that would mend it.
        raise BundleError(f"the items {revision or 'of the bundle'} cannot be loaded: {error}") from error


def _behaviours(settings: Settings, version: str | None) -> frozenset[str]:
    if version is None or not _VERSION.fullmatch(version):
        return frozenset()
    try:
        schema = (settings.bundles_dir / version / SCHEMA).read_bytes()
        return frozenset(one.name for one in FeatureSchema.model_validate_json(schema).behaviour_features)
    except (OSError, ValidationError) as error:
        log.warning("version_before_not_known", version=version, reason=str(error))
        return frozenset()


def _open(settings: Settings, active: Active) -> ServedModel:
    if not _VERSION.fullmatch(active.version):
        raise BundleError(f"{active.version!r} is active, and is not the name of a bundle")
    try:
        model = ServedModel.load(settings.bundles_dir / active.version, settings.onnx_threads)
    except Srp4ctrError:
        raise
    except Exception as error:
        # Whatever a damaged bundle makes ONNX Runtime or numpy raise must not end the loop that would mend it.
        raise BundleError(f"the bundle {active.version} cannot be loaded: {error}") from error
    if not _is(model, active):
        raise BundleError(
            f"{active.version} is active with the fingerprint {active.fingerprint[:12]}, and the bundle here is "
            f"{model.version} with {model.bundle.manifest.fingerprint[:12]}; copy the right one here, or publish and "
            "activate this one"
        )
    if settings.warmup_file is not None:
        warm_up(model, settings.warmup_file)
    return model
