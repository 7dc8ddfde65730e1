"""Jobs, as the settings say: a part of the composition root."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bridge.jobs.addresses import WebhookHosts
from bridge.jobs.desk import JobDesk
from bridge.jobs.service import JobService
from bridge.jobs.store import Rules
from bridge.jobs.urls import open_jobs
from bridge.jobs.webhooks import Webhooks, WebhookSecret
from bridge.jobs.worker import Worker
from bridge.observe.metrics import Metrics
from bridge.observe.trace import Tracing
from bridge.session.batch import Batch
from bridge.session.eventlog.urls import MissingPackageError
from bridge.settings import Settings, SettingsError
from bridge.uploads.blobs import BlobStore


def make_jobs(
    settings: Settings,
    blobs: BlobStore,
    batch: Batch,
    metrics: Metrics,
    tracing: Tracing,
    models: Callable[[str | None], str | None],
    env: Mapping[str, str] | None = None,
    *,
    loopback: bool = False,
) -> JobService:
    """One process's; not opened yet. `models`: the backend of a model's name. `env`: where the state folder is named.

    `loopback`: webhooks of jobs that are handed in here may go to the machine itself.

    Raises:
        SettingsError: a URL that means no store, or its package is missing.
    """
    rules = Rules(
        lease_seconds=settings.job_lease_seconds,
        attempts=settings.job_attempts,
        waiting=settings.max_jobs,
        retention_seconds=settings.job_retention_seconds,
    )
    try:
        store = open_jobs(settings.store, rules, env)
    except (ValueError, MissingPackageError) as exc:
        raise SettingsError(f"STT_STORE: {exc}") from None
    secret = None if settings.webhook_secret is None else WebhookSecret(settings.webhook_secret)
    hosts = WebhookHosts(settings.webhook_hosts, loopback=loopback)
    backend = ",".join(settings.backends)  # however it is written
    return JobService(
        store=store,
        desk=JobDesk(store, blobs, backend, loopback=loopback),
        worker=Worker(store, blobs, batch, backend, settings.job_workers, metrics.jobs, tracing, models),
        webhooks=Webhooks(store, secret, hosts, metrics.jobs, tracing),
        metrics=metrics.jobs,
    )
