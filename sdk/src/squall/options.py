"""Options: what `with_options`, `with_concurrency` and `with_batching` change, checked and turned into spec parts.

Loaded when a handle with options is made; containers that only run a function never load it.
"""

from __future__ import annotations

from typing import Any

from squall import config, hosted
from squall.declaration import Declaration
from squall.errors import InvalidError
from squall.http_api.protocol import MAX_HEADER_OPTIONS_BYTES, encode_options
from squall.markers import check_batch, check_concurrency
from squall.spec import BatchPolicy, BucketMount, Options, SecretRef, VolumeMount
from squall.unimplemented import refuse_keywords

NAMES = (
    *("cpu", "memory", "gpu", "env", "secrets", "volumes", "retries", "timeout"),
    *("max_containers", "buffer_containers", "scaledown_window"),
)


def from_keywords(keywords: dict[str, Any]) -> Options:
    """The options of `with_options(...)`. Raises `InvalidError`, or `TypeError` for an unknown one."""
    given = {name: keywords.pop(name) for name in NAMES if keywords.get(name) is not None}
    if not given.get("volumes", True):  # an empty one means the declared ones, as the default of other platforms
        del given["volumes"]
    for name in [name for name in keywords if name in NAMES]:
        del keywords[name]
    if "min_containers" in keywords:
        raise InvalidError(
            "with_options cannot set min_containers: nothing is kept warm for the calls of one handle",
            fix="Use `update_autoscaler(min_containers=...)`, or declare it.",
        )
    hosted.take_out("with_options", keywords, hosted.OF_OPTIONS)
    refuse_keywords("with_options", keywords, {})
    declared = Declaration(**{"timeout": 300, **given})
    declared.check(is_generator=False)
    volumes, buckets = _mounts(declared) if "volumes" in given else (None, None)
    resources, scaling = declared.resources(), declared.scaling()
    return Options(
        cpu=resources.cpu if "cpu" in given else None,
        cpu_limit=resources.cpu_limit if "cpu" in given else None,
        memory_mib=resources.memory_mib if "memory" in given else None,
        memory_limit_mib=resources.memory_limit_mib if "memory" in given else None,
        gpus=resources.gpus if "gpu" in given else None,
        env=declared.variables() if "env" in given else None,
        secrets=_secrets(declared) if "secrets" in given else None,
        volumes=volumes,
        buckets=buckets,
        retry=declared.retry() if "retries" in given else None,
        timeout_s=declared.timeout_s() if "timeout" in given else None,
        max_containers=scaling.max_containers,
        buffer_containers=scaling.buffer_containers if "buffer_containers" in given else None,
        scaledown_window_s=scaling.scaledown_window_s if "scaledown_window" in given else None,
    )


def _secrets(declared: Declaration) -> tuple[SecretRef, ...]:
    """References: values go to the server now, since the options of a handle are part of its name."""
    from squall import session

    chosen = declared.check_secrets("with_options")
    if not chosen:
        return ()
    here = session.current() if any(secret.name is None for secret in chosen) else None
    environment = here.environment if here else config.load().environment
    return tuple(secret.reference(here, environment) for secret in chosen)


def _mounts(declared: Declaration) -> tuple[tuple[VolumeMount, ...], tuple[BucketMount, ...]]:
    """Volumes are named by their ids, which the server is asked for now."""
    from squall import session

    here = session.current()
    place = here.environment
    volumes = tuple(each.mount_at(path, here, place) for path, each in declared.mounted_volumes().items())
    buckets = declared.mounted_buckets().items()
    return volumes, tuple(each.mount_at(path, lambda secret: secret.reference(here, place)) for path, each in buckets)


def of_concurrency(max_inputs: Any, target_inputs: Any) -> Options:
    """The options of `with_concurrency(...)`."""
    max_inputs, target = check_concurrency(max_inputs, target_inputs, "with_concurrency")
    return Options(max_inputs=max_inputs, target_inputs=target)


def of_batching(max_batch_size: Any, wait_ms: Any) -> Options:
    """The options of `with_batching(...)`."""
    check_batch(max_batch_size, wait_ms, "with_batching")
    return Options(batching=BatchPolicy(max_batch_size, wait_ms))


def together(earlier: str, later: Options) -> str:
    """Options on top of encoded ones, encoded. Raises `InvalidError` if they are too large for a request."""
    from squall.http_api.protocol import decode_options

    encoded = encode_options(later.over(decode_options(earlier)) if earlier else later)
    if len(encoded) > MAX_HEADER_OPTIONS_BYTES:
        raise InvalidError(
            f"the options take {len(encoded)} bytes, at most {MAX_HEADER_OPTIONS_BYTES} are possible",
            fix="Give large values as arguments.",
        )
    return encoded
