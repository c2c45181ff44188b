"""Which declarations are consistent: limits of values, networks, mounts, buckets, batches, webhooks.

Every refusal is an `InvalidError` that says the rule and the value.
"""

from __future__ import annotations

from typing import Any

from squall.errors import InvalidError
from squall.function_spec import (
    ISOLATIONS,
    MAX_DISK_MIB,
    MAX_WEBHOOK_CHARACTERS,
    MIN_DISK_MIB,
    BucketMount,
    FunctionSpec,
    VolumeMount,
)


def validate(spec: FunctionSpec) -> FunctionSpec:
    """The spec itself if its values are consistent. Raises `InvalidError` naming the first value that is not."""
    scaling, retry, resources = spec.scaling, spec.retry, spec.resources
    _check(scaling.min_containers >= 0, "min_containers must be 0 or more", scaling.min_containers)
    _check(
        scaling.max_containers is None or scaling.max_containers >= 1,
        "max_containers must be 1 or more",
        scaling.max_containers,
    )
    _check(
        scaling.max_containers is None or scaling.max_containers >= scaling.min_containers,
        f"max_containers must not be less than min_containers ({scaling.min_containers})",
        scaling.max_containers,
    )
    _check(scaling.buffer_containers >= 0, "buffer_containers must be 0 or more", scaling.buffer_containers)
    _check(
        2 <= scaling.scaledown_window_s <= 3600,
        "scaledown_window must be 2 to 3600 seconds",
        scaling.scaledown_window_s,
    )
    _check(scaling.max_inputs >= 1, "max_inputs must be 1 or more", scaling.max_inputs)
    _check(
        1 <= scaling.target_inputs <= scaling.max_inputs,
        "target_inputs must be 1 to max_inputs",
        scaling.target_inputs,
    )
    _check_batching(spec)
    if spec.webhook:
        check_webhook(spec.webhook)
    _check(
        not spec.single_use or scaling.max_inputs == 1,
        "single_use_containers take one input: max_inputs must be 1, without batches",
        scaling.max_inputs,
    )
    _check(1 <= spec.timeout_s <= 86400, "timeout must be 1 to 86400 seconds", spec.timeout_s)
    _check(
        1 <= spec.startup_timeout_s <= 86400,
        "startup_timeout must be 1 to 86400 seconds",
        spec.startup_timeout_s,
    )
    _check(retry.max_retries >= 0, "max_retries must be 0 or more", retry.max_retries)
    _check(1 <= retry.backoff_coefficient <= 10, "backoff_coefficient must be 1 to 10", retry.backoff_coefficient)
    _check(0 <= retry.initial_delay_s <= 60, "initial_delay must be 0 to 60 seconds", retry.initial_delay_s)
    _check(1 <= retry.max_delay_s <= 60, "max_delay must be 1 to 60 seconds", retry.max_delay_s)
    _check(resources.cpu > 0, "cpu must be positive", resources.cpu)
    _check(
        resources.cpu_limit is None or resources.cpu_limit >= resources.cpu,
        "the cpu limit must not be less than the request",
        resources.cpu_limit,
    )
    _check(resources.memory_mib > 0, "memory must be positive", resources.memory_mib)
    _check(
        resources.memory_limit_mib is None or resources.memory_limit_mib >= resources.memory_mib,
        "the memory limit must not be less than the request",
        resources.memory_limit_mib,
    )
    _check(
        resources.ephemeral_disk_mib is None or MIN_DISK_MIB <= resources.ephemeral_disk_mib <= MAX_DISK_MIB,
        f"ephemeral_disk must be {MIN_DISK_MIB} to {MAX_DISK_MIB} MiB",
        resources.ephemeral_disk_mib,
    )
    _check(
        spec.use_template or not spec.memory_snapshot,
        "enable_memory_snapshot=True needs a template: use_template must not be False",
        spec.use_template,
    )
    _check(spec.isolation in ISOLATIONS, f"isolation must be one of {', '.join(ISOLATIONS)}", spec.isolation)
    _check(
        spec.isolation != ISOLATIONS[0] or not (spec.block_network or spec.outbound_cidr_allowlist is not None),
        'block_network and outbound_cidr_allowlist need isolation="sandbox" or more',
        spec.isolation,
    )
    _check(
        spec.isolation != "gvisor" or not resources.gpus,
        'containers in gVisor have no GPUs: with gpu= use isolation="sandbox", or leave gpu= out',
        spec.isolation,
    )
    _check_networks(spec)
    check_mounts(spec.volumes, spec.buckets)
    for gpu in resources.gpus:
        _check(gpu.count >= 1, "a number of GPUs must be 1 or more", gpu.count)
    return spec


def _check_networks(spec: FunctionSpec) -> None:
    _check(
        not (spec.block_network and spec.outbound_cidr_allowlist is not None),
        "block_network and outbound_cidr_allowlist exclude each other",
        spec.block_network,
    )
    if spec.outbound_cidr_allowlist is None:
        return
    import ipaddress  # 10 ms, for the few that need it

    for network in spec.outbound_cidr_allowlist:
        try:
            ipaddress.IPv4Network(network)
        except ValueError as error:
            raise InvalidError(
                f"outbound_cidr_allowlist has {network!r}: {error}", fix='Write networks such as "203.0.113.0/24".'
            ) from None


NO_MOUNT_POINTS = ("/", "/root", "/tmp")
PLATFORM_FOLDERS = ("/proc", "/sys", "/dev", "/run/squall")


def check_mounts(volumes: tuple[VolumeMount, ...], buckets: tuple[BucketMount, ...]) -> None:
    """Raise `InvalidError` for what cannot be mounted, or not together."""
    paths = [volume.path for volume in volumes] + [bucket.path for bucket in buckets]
    for path in paths:
        check_mount_point(path)
    for path in paths:
        inside = [other for other in paths if path.startswith(other + "/")]
        _check(not inside and paths.count(path) == 1, "volumes must not be mounted at or in one another", path)
    for bucket in buckets:
        check_bucket(bucket)
    for mount in volumes:
        twice = [other.path for other in volumes if other.volume == mount.volume]
        _check(len(twice) == 1, "a function can mount a volume at one place only", sorted(twice))


def check_bucket(mount: BucketMount) -> None:
    """Raise `InvalidError` for what cannot be a bucket."""
    from urllib.parse import urlsplit

    name = mount.bucket
    named = 3 <= len(name) <= 63 and name.isascii() and not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789.-_")
    _check(named and name[0].isalnum(), "a bucket's name has 3 to 63 of a-z, 0-9, '.', '_' and '-'", name[:100])
    if mount.endpoint:
        try:
            parts = urlsplit(mount.endpoint)
            whole = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            parts, whole = urlsplit(""), False
        plain = mount.endpoint.isascii() and mount.endpoint.isprintable() and " " not in mount.endpoint
        rest = parts.path.strip("/") or parts.query or parts.fragment or parts.username
        whole = whole and plain and parts.scheme in ("http", "https") and not rest and len(mount.endpoint) <= 1000
        _check(whole, "bucket_endpoint_url must be an http(s) URL without a path or keys", mount.endpoint[:200])
    prefix = mount.prefix
    inside = all(part not in ("", ".", "..") for part in prefix[:-1].split("/")) and prefix.isprintable()
    _check(
        not prefix or (prefix.endswith("/") and inside and len(prefix.encode(errors="replace")) <= 900),
        'key_prefix must end with "/" and begin without; it has no "//", "." or ".."',
        prefix[:200],
    )


def check_mount_point(path: str) -> None:
    """Raise `InvalidError` unless a volume can be mounted there."""
    import posixpath

    _check(
        path.startswith("/")
        and not path.startswith("//")
        and "\0" not in path
        and path.encode(errors="replace").decode() == path
        and posixpath.normpath(path) == path,
        'volumes= needs absolute paths without "..", "//" and a slash at the end',
        path,
    )
    taken = path in NO_MOUNT_POINTS or any(
        path == own or path.startswith(own + "/") or own.startswith(path + "/") for own in PLATFORM_FOLDERS
    )
    _check(not taken, "volumes cannot be mounted there: the container needs that folder itself", path)


def _check_batching(spec: FunctionSpec) -> None:
    batching = spec.batching
    if batching is None:
        return
    size, slots = batching.max_batch_size, spec.scaling.max_inputs
    _check(1 <= size <= 1000, "max_batch_size must be 1 to 1000", size)
    _check(0 <= batching.wait_ms <= 600_000, "wait_ms must be 0 to 600000", batching.wait_ms)
    _check(slots >= size and slots % size == 0, f"max_inputs must be a multiple of max_batch_size ({size})", slots)
    _check(len(spec.methods) == 1, "a class with a batched method can have no other method", len(spec.methods))
    _check(not spec.methods[0].is_generator, "a batched function cannot be a generator", spec.name)


def check_webhook(url: str) -> str:
    """`url` itself if it can be a receiver's. Raises `InvalidError`."""
    from urllib.parse import urlsplit

    whole = (
        len(url) <= MAX_WEBHOOK_CHARACTERS and url.isascii() and url.isprintable() and not set(url) & set(' "<>\\^`{|}')
    )
    _check(whole, f"webhook must be a URL of at most {MAX_WEBHOOK_CHARACTERS} ASCII characters, escaped", url[:200])
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    _check(bool(host) and url.startswith(("https://", "http://")), "webhook must be an http(s) URL", url)
    _check(port is None or port > 0, "webhook must have a port above 0", url)
    _check("@" not in parts.netloc, "webhook must have no user and password (requests are signed instead)", host)
    _check(not parts.fragment, "webhook must have no fragment", url)
    return url


def _check(valid: bool, rule: str, value: Any) -> None:
    if not valid:
        raise InvalidError(f"{rule}, got {value!r}")
