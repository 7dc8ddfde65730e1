"""Files on their way in through a network that loses, repeats and reorders, to a server that is killed meanwhile.

`python -m bench.chaos_uploads --files 50 --kills 6` sends half of the files in chunks (`/v1/audio`) and half by tus
(`/v1/uploads`), several at a time. Chunks are left out, sent again, sent in any order, and requests are cut in the
middle; the server is killed by SIGKILL and started again. In the end every file has to be there bit for bit, as its
upload, its job and the store itself say, each as one job. It prints what happened, and exits with 1 on a difference.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import hashlib
import itertools
import json
import random
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from bench.chaos.supervisor import HOST, Supervisor

DROPPED: Final = 0.2
CUT: Final = 0.15
REPEATED: Final = 0.3
"""Shares of the requests."""
SENDERS: Final = 8
"""Files on their way at once."""
GIVE_UP_SECONDS: Final = 180.0
RETRY_SECONDS: Final = 0.2
TUS: Final = {"tus-resumable": "1.0.0"}
APPEND: Final = TUS | {"content-type": "application/offset+octet-stream"}


@dataclass(frozen=True)
class Sample:
    """A file to send."""

    name: str
    data: bytes
    way: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass
class Chaos:
    """One run. `differences` are sentences; there should be none."""

    server: Supervisor
    store: Path
    samples: Sequence[Sample]
    kills: int
    rng: random.Random
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    differences: list[str] = field(default_factory=list)
    _addresses: dict[str, str] = field(default_factory=dict)
    _requests: int = 0
    _over: bool = False
    _moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server.port}"

    async def run(self) -> None:
        """Send everything, then look at what has come."""
        killing = asyncio.create_task(self._kill())
        places = asyncio.Semaphore(SENDERS)

        async def one(sample: Sample) -> None:
            async with places, httpx.AsyncClient(base_url=self.url, timeout=30, trust_env=False) as client:
                try:
                    async with asyncio.timeout(GIVE_UP_SECONDS):
                        await (self._send_chunks if sample.way == "chunks" else self._send_tus)(client, sample)
                except (TimeoutError, Refused) as exc:
                    self.differences.append(f"{sample.name}: {type(exc).__name__} {exc}")

        await asyncio.gather(*(one(sample) for sample in self.samples))
        self._over = True
        async with self._moved:
            self._moved.notify_all()
        await killing  # a server that was killed is up again
        async with httpx.AsyncClient(base_url=self.url, timeout=30, trust_env=False) as client:
            await self._compare(client)

    async def _kill(self) -> None:
        """Kill the server after equal shares of the requests that it takes at least."""
        expected = sum(len(cut(sample.data, random.Random(sample.name))) for sample in self.samples)
        for kill in range(1, self.kills + 1):
            await self._until(kill * expected // (self.kills + 1))
            if self._over:
                return
            await asyncio.sleep(self.rng.uniform(0, 0.05))
            await self.server.kill()
            self.counts["kills"] += 1
            await self.server.start()

    async def _until(self, requests: int) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: self._over or self._requests >= requests)

    async def _send_chunks(self, client: httpx.AsyncClient, sample: Sample) -> None:
        parts = cut(sample.data, random.Random(sample.name))
        order = [number for number in range(len(parts)) if self.rng.random() >= DROPPED]
        self.counts["chunks dropped"] += len(parts) - len(order)
        order += self.rng.choices(order, k=int(len(order) * REPEATED)) if order else []
        self.counts["chunks repeated"] += max(0, len(order) - len(set(order)))
        self.rng.shuffle(order)
        self.counts["chunks out of order"] += sum(a > b for a, b in itertools.pairwise(order))
        for number in order:
            await self._chunk(client, sample, parts, number)
        while True:
            state = await self._asked(client, "GET", f"/v1/audio/{sample.name}")
            if state.status_code == 200 and state.json()["complete"]:
                return
            if state.status_code == 404 or state.json()["last"] is None:
                await self._chunk(client, sample, parts, len(parts) - 1)
                continue
            missing = state.json()["missing"]
            self.counts["chunks named as missing"] += len(missing)
            self.rng.shuffle(missing)
            for number in missing:
                await self._chunk(client, sample, parts, number)

    async def _chunk(self, client: httpx.AsyncClient, sample: Sample, parts: list[bytes], number: int) -> None:
        request = client.build_request(
            "POST",
            "/v1/audio",
            data={"session_id": sample.name, "seq": str(number), "is_last": str(number == len(parts) - 1).lower()},
            files={"chunk": ("blob", parts[number], "application/octet-stream")},
        )
        if self.rng.random() < CUT:
            await self._cut(request)
            return  # its sender knows nothing of it; what is missing is asked for later
        answer = await self._sent(client, request)
        if answer is not None and answer.status_code not in {200, 409, 503}:
            raise Refused(answer.text)
        if answer is not None and answer.status_code == 409 and answer.json()["error"]["code"] != "upload_incomplete":
            raise Refused(answer.text)

    async def _send_tus(self, client: httpx.AsyncClient, sample: Sample) -> None:
        begun = await self._asked(client, "POST", "/v1/uploads", TUS | {"upload-length": str(len(sample.data))})
        if begun.status_code != 201:
            raise Refused(begun.text)
        address = self._addresses[sample.name] = begun.headers["location"]
        while True:
            head = await self._asked(client, "HEAD", address, TUS)
            if head.status_code == 404:
                raise Refused("the upload is gone")
            at = int(head.headers["upload-offset"]) if head.status_code == 200 else 0
            if at == len(sample.data):
                if (await self._asked(client, "GET", address)).json()["complete"]:
                    return
                continue
            piece = sample.data[at : at + self.rng.randint(1, max(1, len(sample.data) // 4))]
            request = client.build_request("PATCH", address, content=piece, headers=APPEND | {"upload-offset": str(at)})
            if self.rng.random() < CUT:
                await self._cut(request)
            else:
                answer = await self._sent(client, request)
                if answer is not None and answer.status_code not in {204, 409, 503}:
                    raise Refused(answer.text)

    async def _asked(
        self, client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """The answer to a request that changes nothing if it is made twice (or begins an upload that is left)."""
        while True:
            answer = await self._sent(client, client.build_request(method, path, headers=headers))
            if answer is not None and answer.status_code < 500:
                return answer

    async def _sent(self, client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response | None:
        """The answer; None if the server has gone meanwhile."""
        try:
            answer = await client.send(request)
        except httpx.TransportError:
            self.counts["requests without an answer"] += 1
            await asyncio.sleep(RETRY_SECONDS)
            return None
        await self._count(f"answers {answer.status_code}")
        return answer

    async def _cut(self, request: httpx.Request) -> None:
        """Send a part of the request, and hang up."""
        body = request.read()
        lines = [f"{request.method} {request.url.raw_path.decode()} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(HOST, self.server.port)
            writer.write("\r\n".join([*lines, "", ""]).encode() + body[: self.rng.randrange(len(body) + 1)])
            await writer.drain()
            if self.rng.random() < 0.5:
                writer.transport.abort()
            else:
                writer.close()
            del reader
        await self._count("requests cut")

    async def _count(self, what: str) -> None:
        self.counts[what] += 1
        async with self._moved:
            self._requests += 1
            self._moved.notify_all()

    async def _compare(self, client: httpx.AsyncClient) -> None:
        jobs = set()
        for sample in self.samples:
            path = self._addresses.get(sample.name) if sample.way == "tus" else f"/v1/audio/{sample.name}"
            if path is None:
                self.differences.append(f"{sample.name}: never begun")
                continue
            state = (await client.get(path)).json()
            if not state.get("complete"):
                self.differences.append(f"{sample.name}: {state}")
                continue
            job = state["job"]["id"]
            jobs.add(job)
            source = (await client.get(state["job"]["url"])).json()["source"]
            stored = await asyncio.to_thread((self.store / "files" / job).read_bytes)
            for what, size, digest in (
                ("the upload", state["bytes"], state["sha256"]),
                ("the job", source["bytes"], source["sha256"]),
                ("the store", len(stored), hashlib.sha256(stored).hexdigest()),
            ):
                if (size, digest) != (len(sample.data), sample.sha256):
                    self.differences.append(f"{sample.name}: {what} has {size} bytes, {digest}")
            if stored != sample.data:
                self.differences.append(f"{sample.name}: other bytes in the store")
        known = {job["id"] async for job in pages(client)}
        if known != jobs or len(jobs) != len(self.samples):
            self.differences.append(f"{len(known)} jobs, {len(jobs)} of uploads, for {len(self.samples)} files")
        self.counts["jobs"] = len(known)


class Refused(Exception):  # noqa: N818 - what the server said
    """The server refused what it should take."""


async def pages(client: httpx.AsyncClient) -> AsyncIterator[dict[str, Any]]:
    """All jobs."""
    after: str | None = None
    while True:
        found = (await client.get("/v1/jobs", params={"limit": 100} | ({"after": after} if after else {}))).json()
        for job in found["jobs"]:
            yield job
        if (after := found["next"]) is None:
            return


def cut(data: bytes, rng: random.Random) -> list[bytes]:
    """The chunks of a file, always the same ones; some of them are empty."""
    count = rng.randint(4, 30)
    ends = sorted(rng.choices(range(len(data) + 1), k=count - 1))
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


def samples(count: int, seed: int, largest: int) -> list[Sample]:
    """WAV files of noise, from 20 kB on; every second one goes by tus."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        pcm = rng.randbytes(2 * rng.randint(10_000, largest // 2))
        head = struct.pack(
            "<4sI8sIHHIIHH4sI", b"RIFF", 36 + len(pcm), b"WAVEfmt ", 16, 1, 1, 16_000, 32_000, 2, 16, b"data", len(pcm)
        )
        found.append(Sample(f"file-{seed}-{number}", head + pcm, "tus" if number % 2 else "chunks"))
    return found


async def chaos(folder: Path, *, files: int, kills: int, seed: int, largest: int) -> Chaos:
    """One run, with everything in this folder."""
    store = folder / "uploads"
    settings = {
        "STT_BACKEND": "scripted",
        "STT_UPLOADS": str(store),
        "STT_STORE": f"sqlite:{folder / 'jobs.db'}",
        "STT_EVENT_LOG": "off",
        "STT_JOB_WORKERS": "0",  # a job that is done deletes its file
    }
    async with Supervisor.running(settings, folder / "log") as server:
        run = Chaos(server, store, samples(files, seed, largest), kills, random.Random(seed))
        await run.run()
        run.differences += [f"the server's log: {line[:300]}" for line in server.surprises]
    return run


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=50)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--largest", type=int, default=3_000_000, help="bytes of the largest file, about")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-uploads-") as folder:
        run = asyncio.run(chaos(Path(folder), **vars(options)))
    figures = {
        **vars(options),
        "bytes": sum(len(sample.data) for sample in run.samples),
        "seconds": round(time.monotonic() - began, 1),
        **dict(sorted(run.counts.items())),
        "differences": run.differences,
    }
    print(json.dumps(figures, indent=2))
    return 1 if run.differences else 0


if __name__ == "__main__":
    raise SystemExit(main())
