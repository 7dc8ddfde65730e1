"""Jobs while servers and workers are killed: each has one result, none is lost.

    python -m bench.chaos_jobs --store redis --workers 2
    python -m bench.chaos_jobs --store sqlite

Jobs are handed in with an `Idempotency-Key` and again until they are accepted, meanwhile processes are killed (SIGKILL)
and started again. Each file holds another number of words, so that its transcript is known. That a job has ended once
is counted apart from the store: by what the processes log, and by webhooks, whose receiver refuses some.

Exits with 1 if a job is missing, has another transcript than its file, or has ended twice.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import contextlib
import hashlib
import hmac
import io
import json
import random
import sys
import tempfile
import time
import wave
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from backends.markers import MARKER_SECONDS, marker_audio
from bench.chaos.nodes import Redis
from bench.chaos.supervisor import HOST, Supervisor

RATE: Final = 16_000
SECRET: Final = "of-nobody-but-this-benchmark"  # noqa: S105
LEASE_SECONDS: Final = 2.0
SUBMITTERS: Final = 4
REFUSED: Final = 0.2
"""Share of webhooks that are answered with 500 when they come first."""
RETRY_SECONDS: Final = 0.2
HTTP_SECONDS: Final = 10.0
LEFT_SECONDS: Final = 60.0
"""For jobs to end, and be told, after the last kill."""
LOOK_SECONDS: Final = 0.2
PAGE: Final = 100

Json = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How much of it. `least_words`: of the shortest file; each is a word longer than the one before."""

    jobs: int = 200
    kills: int = 20
    workers: int = 2
    redis: bool = False
    least_words: int = 200
    pause: tuple[float, float] = (0.3, 1.5)
    seed: int = 1


@dataclass
class Report:
    """What came of it."""

    submitted: int = 0
    again: int = 0
    """Requests that were made again."""
    kills: collections.Counter[str] = field(default_factory=collections.Counter)
    states: collections.Counter[str] = field(default_factory=collections.Counter)
    attempts: int = 0
    webhooks: int = 0
    """Received, of them `told` different jobs."""
    told: int = 0
    logged: int = 0
    """Ends that were logged."""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        killed = ", ".join(f"{count} of {name}" for name, count in sorted(self.kills.items()))
        return [
            f"{self.submitted} jobs submitted ({self.again} requests made again), {sum(self.kills.values())} kills "
            f"({killed}), {self.seconds:.0f} s",
            f"results: {dict(self.states)}, {self.attempts} attempts, {self.logged} ends logged",
            f"webhooks: {self.webhooks} received for {self.told} jobs",
            *(f"PROBLEM: {problem}" for problem in self.problems),
            "each job has one result" if not self.problems else f"{len(self.problems)} problems",
        ]


class Receiver:
    """Takes webhooks, checks their signatures, and refuses some."""

    def __init__(self, chance: random.Random) -> None:
        self.events: list[tuple[str, Json]] = []
        self.problems: list[str] = []
        self._chance = chance

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncGenerator[str]:
        """Its address."""
        server = await asyncio.start_server(self._serve, HOST, 0)
        async with server:
            yield f"http://{HOST}:{server.sockets[0].getsockname()[1]}/hook?secret=1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            body = await reader.readexactly(int(headers["content-length"]))
            new = headers["webhook-id"] not in {name for name, _ in self.events}
            self._take(headers, body)
            status = "500 Not Now" if new and self._chance.random() < REFUSED else "204 No Content"
            writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
            await writer.drain()

    def _take(self, headers: Mapping[str, str], body: bytes) -> None:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        digest = hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()
        if headers["webhook-signature"] != "v1," + base64.b64encode(digest).decode():
            self.problems.append(f"{headers['webhook-id']}: wrong signature")
        self.events.append((headers["webhook-id"], json.loads(body)))


def words(count: int) -> str:
    """The transcript of so many words."""
    return " ".join(f"w{number}" for number in range(count))


def recording(count: int) -> bytes:
    """A WAV file of them."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(marker_audio(count))
    return file.getvalue()


class Run:
    """One run."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.report = Report()
        self._chance = random.Random(plan.seed)
        self._ids: dict[int, set[str]] = {}
        """The jobs that each file became: one, if all is well."""
        self._left = iter(range(plan.jobs))

    async def make(self, folder: Path) -> Report:
        """All of it."""
        began = time.monotonic()
        receiver = Receiver(self._chance)
        async with contextlib.AsyncExitStack() as stack:
            hook = await stack.enter_async_context(receiver.listening())
            server, others = await self._start(stack, folder)
            client = await stack.enter_async_context(
                httpx.AsyncClient(base_url=f"http://{HOST}:{server.port}", timeout=HTTP_SECONDS, trust_env=False)
            )
            async with asyncio.TaskGroup() as group:
                for _ in range(SUBMITTERS):
                    group.create_task(self._submit(client, hook))
                group.create_task(self._kill(server, others))
            jobs = await self._ended(client)
            await self._told(receiver)
            await self._check(client, jobs)
            self._check_told(receiver)
            self._check_logs([server, *others])
        self.report.seconds = time.monotonic() - began
        return self.report

    async def _start(self, stack: contextlib.AsyncExitStack, folder: Path) -> tuple[Supervisor, Sequence[Supervisor]]:
        settings = {
            "STT_BACKEND": "scripted",
            "STT_SCRIPTED_MODE": "markers",
            "STT_EVENT_LOG": "off",
            "STT_VAD": "off",
            "STT_UPLOADS": str(folder / "files"),
            "STT_STORE": f"sqlite:{folder / 'jobs.db'}",
            "STT_JOB_LEASE_SECONDS": str(LEASE_SECONDS),
            "STT_JOB_ATTEMPTS": "1000",
            "STT_WEBHOOK_SECRET": SECRET,
        }
        others = []
        if self.plan.redis:
            redis = await stack.enter_async_context(Redis.running(folder / "redis"))
            settings["STT_STORE"] = redis.url
            for number in range(self.plan.workers):
                log = folder / f"worker-{number}.log"
                others.append(await stack.enter_async_context(Supervisor.running(settings, log, command="worker")))
            settings = settings | {"STT_JOB_WORKERS": "0"}
        return await stack.enter_async_context(Supervisor.running(settings, folder / "server.log")), others

    async def _submit(self, client: httpx.AsyncClient, hook: str) -> None:
        for number in self._left:
            data = await asyncio.to_thread(recording, self.plan.least_words + number)
            accepted = False
            while not accepted:
                accepted = await self._hand_in(client, hook, number, data)
                if not accepted:
                    self.report.again += 1
                    await asyncio.sleep(RETRY_SECONDS)
            self.report.submitted += 1
            await asyncio.sleep(self._chance.uniform(0, 2 * self._pace))

    @property
    def _pace(self) -> float:
        """Seconds between two jobs of one submitter, so that they come about as long as processes are killed."""
        return SUBMITTERS * self.plan.kills * (sum(self.plan.pause) / 2 + 1.5) / self.plan.jobs / 2

    async def _hand_in(self, client: httpx.AsyncClient, hook: str, number: int, data: bytes) -> bool:
        try:
            answer = await client.post(
                "/v1/jobs",
                files={"file": (f"{number}.wav", data)},
                data={"webhook": hook, "webhook_result": "true"},
                headers={"idempotency-key": f"job-{number}"},
            )
        except httpx.TransportError:
            return False
        if answer.status_code >= 500:
            return False
        answer.raise_for_status()
        self._ids.setdefault(number, set()).add(answer.json()["id"])
        # Whoever did not hear the answer asks again: sometimes that is done here, too.
        return self._chance.random() > 0.1

    async def _kill(self, server: Supervisor, others: Sequence[Supervisor]) -> None:
        for _ in range(self.plan.kills):
            await asyncio.sleep(self._chance.uniform(*self.plan.pause))
            victim = self._chance.choice([server, *others])
            self.report.kills["the server" if victim is server else "workers"] += 1
            await victim.kill()
            await victim.start()

    async def _ended(self, client: httpx.AsyncClient) -> list[Json]:
        """All jobs, when they have ended, or when the time for that is over."""
        end = time.monotonic() + LEFT_SECONDS
        while True:
            jobs = await self._listed(client)
            if all(job["finished"] for job in jobs) or time.monotonic() > end:
                return jobs
            await asyncio.sleep(LOOK_SECONDS)

    async def _listed(self, client: httpx.AsyncClient) -> list[Json]:
        jobs: list[Json] = []
        after: dict[str, str] = {}
        while True:
            answer = await client.get("/v1/jobs", params={"limit": str(PAGE), **after})
            answer.raise_for_status()
            page = answer.json()
            jobs += page["jobs"]
            if page["next"] is None:
                return jobs
            after = {"after": page["next"]}

    async def _told(self, receiver: Receiver) -> None:
        end = time.monotonic() + LEFT_SECONDS
        while len({name for name, _ in receiver.events}) < self.plan.jobs and time.monotonic() < end:  # noqa: ASYNC110 - other processes
            await asyncio.sleep(LOOK_SECONDS)

    async def _check(self, client: httpx.AsyncClient, jobs: Sequence[Json]) -> None:
        problems = self.report.problems
        if len(jobs) != self.plan.jobs:
            problems.append(f"{len(jobs)} jobs are there, not {self.plan.jobs}")
        known = {job["id"]: job for job in jobs}
        for number, ids in self._ids.items():
            if len(ids) != 1:
                problems.append(f"file {number} became {len(ids)} jobs")
        for number, job_id in ((number, job_id) for number, ids in self._ids.items() for job_id in ids):
            job = known.get(job_id)
            if job is None:
                problems.append(f"job {job_id} is missing")
                continue
            self.report.states[job["state"]] += 1
            self.report.attempts += job["attempts"]
            count = self.plan.least_words + number
            if job["state"] != "succeeded":
                problems.append(f"job {job_id} is {job['state']}: {job['error']}")
                continue
            answer = await client.get(f"/v1/jobs/{job_id}")
            if answer.json()["result"]["text"] != words(count):
                problems.append(f"job {job_id} has another transcript than its file")
            if abs(job["progress"]["audio_seconds"] - 2 * count * MARKER_SECONDS) > 1:
                problems.append(f"job {job_id}: {job['progress']['audio_seconds']} s of audio")

    def _check_told(self, receiver: Receiver) -> None:
        """Each webhook says the same however often it comes: a second end would be at another time."""
        self.report.problems += receiver.problems
        said: dict[str, set[str]] = {}
        for name, event in receiver.events:
            said.setdefault(name, set()).add(json.dumps([event["data"]["finished"], event["data"]["result"]]))
        self.report.webhooks, self.report.told = len(receiver.events), len(said)
        if len(said) != self.plan.jobs:
            self.report.problems.append(f"{len(said)} jobs were told of, not {self.plan.jobs}")
        self.report.problems += [f"{name} ended {len(ends)} times" for name, ends in said.items() if len(ends) > 1]

    def _check_logs(self, processes: Sequence[Supervisor]) -> None:
        ends: collections.Counter[str] = collections.Counter()
        for process in processes:
            for line in process.log.splitlines():
                if line.startswith("{") and (said := json.loads(line))["message"] == "job succeeded":
                    ends[said["job"]] += 1
            self.report.problems += [f"a surprise: {line[:300]}" for line in process.surprises]
        self.report.logged = sum(ends.values())
        self.report.problems += [f"job {job} ended {count} times" for job, count in ends.items() if count > 1]


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=("sqlite", "redis"), default="sqlite")
    parser.add_argument("--workers", type=int, default=2, help="worker processes beside the server (redis only)")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--words", type=int, default=200, help="in the shortest file, 0.6 s each")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    plan = Plan(args.jobs, args.kills, args.workers, args.store == "redis", args.words, seed=args.seed)
    with tempfile.TemporaryDirectory(prefix="chaos-jobs-") as folder:
        report = asyncio.run(Run(plan).make(Path(folder)))
    sys.stdout.write("\n".join(report.lines()) + "\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
