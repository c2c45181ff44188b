"""The process that serves one mounted bucket: reads what it is to serve from stdin, says on stdout when it can.

It ends when nothing has the bucket mounted any more and what was written is stored; or when the agent is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import os
import resource
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from squall_gpu_agent.buckets.server import Server
from squall_gpu_agent.buckets.store import Bucket, BucketConfig, first_line
from squall_images.egress import EgressRules, networks, on_this_machine, own_addresses

LEFT_S = 600.0
"""To store what is left once the container has ended, or the agent."""
MEMORY_BYTES = 2 << 30
"""Most that it takes, whatever a container asks of it: names, listings and what is being stored are outside of that
container's limit. Beyond this one requests fail, or it ends, and only that container's mount with it."""
FIRST_TO_GO = 500
"""For the kernel, when the machine's memory is short: before the agent and what else keeps it running."""
AMAZON = "https://s3.amazonaws.com"


class Unusable(Exception):
    """The bucket cannot be mounted: (code of the error, what is wrong, what to do)."""


def main() -> None:
    """Serve. The settings hold keys, so they are neither arguments nor variables."""
    _limit_memory()
    settings = json.loads(sys.stdin.readline())
    try:
        with _way_out(settings) as proxy:
            bucket = _bucket(settings, proxy)
            _serve(bucket, settings)
    except Unusable as error:
        _tell({"error": list(error.args)})
        sys.exit(1)


def _limit_memory() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MEMORY_BYTES, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(FIRST_TO_GO))


def _serve(bucket: Bucket, settings: dict[str, Any]) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        folder = os.open(os.path.dirname(settings["socket"]), os.O_PATH | os.O_DIRECTORY)
        listener.bind(f"/proc/self/fd/{folder}/{os.path.basename(settings['socket'])}")
        os.close(folder)
        listener.listen()
        _tell({"ready": True})
        threading.Thread(target=_end_with_the_agent, args=(listener,), daemon=True).start()
        try:
            link, _ = listener.accept()
        except OSError:
            return
    os.unlink(settings["socket"])
    with link:
        _, descriptors, _, _ = socket.recv_fds(link, 1, 1)
    if descriptors:
        Server(descriptors[0], bucket, Path(settings["spool"]), _say).run()


def _end_with_the_agent(listener: socket.socket) -> None:
    """It holds the other end of stdin; its containers end with it, and so does their mount."""
    while sys.stdin.readline():
        pass
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    threading.Event().wait(LEFT_S)
    _say(f"files that were open when the container ended were LOST: they could not be stored within {LEFT_S:g} s")
    os._exit(1)


def _bucket(settings: dict[str, Any], proxy: str) -> Bucket:
    config = BucketConfig(**settings["bucket"], proxy=proxy)
    where = f"bucket {config.bucket!r}" + (f" at {config.endpoint}" if config.endpoint else "")
    try:
        bucket = Bucket(config, _say)
        bucket.check()
    except ValueError as error:
        raise Unusable("invalid", f"{where} cannot be mounted: {first_line(error)}", "Correct its mount.") from error
    except OSError as error:
        raise _unusable(where, config, error) from error
    return bucket


def _unusable(where: str, config: BucketConfig, error: OSError) -> Unusable:
    said = error.strerror or ""
    if error.errno == errno.ENOENT:
        return Unusable("not_found", f"there is no {where}", "Make it, or correct the name.")
    if error.errno == errno.EACCES:
        who = "the keys of its secret may not" if config.variables else "without keys nobody may"
        fix = "Correct the secret (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), or let it list the bucket."
        return Unusable("permission_denied", f"{who} list {where}: {said}", fix)
    fix = "See that it is up; a region other than us-east-1 is named by AWS_REGION in its secret."
    return Unusable("service", f"{where} cannot be reached: {said}", fix)


@contextlib.contextmanager
def _way_out(settings: dict[str, Any]) -> Iterator[str]:
    """A proxy that goes where containers of this machine may go; "" where they may go everywhere.

    The mount would else be a way for them to ask services that they cannot reach."""
    said = settings["rules"]
    if said is None:
        yield ""
        return
    own = own_addresses()
    rules = EgressRules(allowed=networks(said["allowed"]), denied=networks(said["denied"]), own=own)
    endpoint = settings["bucket"]["endpoint"] or AMAZON
    _check_reachable(endpoint, rules)
    ready: list[str] = []
    started, ended = threading.Event(), threading.Event()

    async def serve() -> None:
        async with on_this_machine(rules) as variables:
            ready.append(variables["http_proxy"])
            started.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="proxy")
    thread.start()
    started.wait(10)
    try:
        yield ready[0]
    finally:
        ended.set()


def _check_reachable(endpoint: str, rules: EgressRules) -> None:
    """For the sake of the message: the proxy refuses, too."""
    host = urlsplit(endpoint).hostname or ""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unusable("invalid", f"the endpoint {endpoint} has no address: {error}", "Correct its mount.") from error
    addresses = {ipaddress.ip_address(str(place[0]).partition("%")[0]) for *_, place in found}
    if all(rules.refusal(address) for address in addresses):
        listed = ", ".join(map(str, addresses))
        raise Unusable(
            "permission_denied",
            f"containers of this machine may not reach the endpoint {endpoint} ({listed})",
            "The operator can allow private networks with SQUALL_GPU_AGENT_SANDBOX_ALLOWED.",
        )


def _say(text: str) -> None:
    _tell({"said": text})


def _tell(words: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(1, (json.dumps(words) + "\n").encode())


if __name__ == "__main__":
    main()
