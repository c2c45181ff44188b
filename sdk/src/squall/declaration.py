"""What a decorator says about a function or class: the values as they were given, checked, and turned into spec parts.

Decorators run again in every container before user code does anything. There the values are not checked a second
time, and the spec (20 ms of dataclasses) is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Union

from squall.errors import InvalidError

if TYPE_CHECKING:
    from squall.bucket import CloudBucketMount
    from squall.image import Image
    from squall.mounts import Mount
    from squall.retries import Retries
    from squall.schedules import Schedule
    from squall.secret import Secret
    from squall.spec import BatchPolicy, GpuRequest, ImageSpec, Resources, RetryPolicy, ScalingPolicy
    from squall.volume import Volume

Cpu = Union[float, tuple[float, float], None]
Memory = Union[int, tuple[int, int], None]
Gpu = Union[str, Sequence[str], None]

CO_COROUTINE, CO_GENERATOR, CO_ASYNC_GENERATOR = 0x80, 0x20, 0x200
CO_VARIADIC = 0x04 | 0x08
"""*args or **kwargs."""
RESERVED_ENV = "SQUALL_"
DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")


class Declaration(NamedTuple):
    """The keywords of `@app.function` and `@app.cls`, and what `@concurrent` added."""

    image: Optional[Image] = None
    env: Optional[dict[str, Optional[str]]] = None
    gpu: Gpu = None
    cpu: Cpu = None
    memory: Memory = None
    min_containers: Optional[int] = None
    max_containers: Optional[int] = None
    buffer_containers: Optional[int] = None
    scaledown_window: Optional[int] = None
    retries: Union[int, Retries, None] = None
    timeout: Optional[float] = 300
    startup_timeout: Optional[float] = None
    include_source: Optional[bool] = None
    nonpreemptible: Optional[bool] = None
    max_inputs: int = 1
    """Of `@concurrent`; with `@batched` the batches that run at once."""
    target_inputs: int = 1
    serialized: bool = False
    """Its code travels by value."""
    single_use: bool = False
    """A container ends after one input."""
    batch: Optional[tuple[int, int]] = None
    """max_batch_size and wait_ms of `@batched`."""
    snapshot: Optional[bool] = False
    """`enable_memory_snapshot`."""
    use_template: Optional[bool] = None
    """False: every container imports for itself."""
    isolation: Optional[str] = None
    block_network: bool = False
    outbound_cidr_allowlist: Optional[Sequence[str]] = None
    secrets: Sequence[Secret] = ()
    schedule: Optional[Schedule] = None
    mounts: Sequence[Mount] = ()
    """The old form of local files."""
    webhook: Optional[str] = None
    volumes: Optional[Mapping[Any, Any]] = None
    """Mount points and volumes."""
    ephemeral_disk: Optional[int] = None
    """MiB."""

    def check(self, is_generator: bool) -> None:
        """Raise `InvalidError` for what is wrong whatever the server can offer."""
        from squall.spec import CodeRef, FunctionSpec, Resources, validate

        if self.timeout is None:
            raise InvalidError("timeout must be a number of seconds, got None", fix="Leave it out for 300 seconds.")
        if self.retries and is_generator:
            raise InvalidError("retries= is not possible for generators", fix="Remove retries=, or return a list.")
        self.must_stay()
        self.snapshots()
        self.variables()
        self.check_secrets("the function")
        self.mounted_volumes()
        self.mounted_buckets()
        validate(
            FunctionSpec(
                name="checked",
                code=CodeRef("", "", ""),
                scaling=self.scaling(),
                resources=Resources(gpus=gpus(self.gpu)),
                retry=self.retry(),
                timeout_s=self.timeout_s(),
                startup_timeout_s=self.startup_timeout_s(),
                batching=self.batching(),
                single_use=self.single_use,
                use_template=self.templates(),
                memory_snapshot=self.snapshots(),
                isolation=self.least_isolation(),
                block_network=self.blocks_network(),
                outbound_cidr_allowlist=self.outbound(),
                webhook=self.told(),
            )
        )

    def told(self) -> str:
        """The URL that is told of ends of calls; empty for none."""
        url: Any = self.webhook
        if url is None:
            return ""
        if not isinstance(url, str) or not url:
            raise InvalidError(f"webhook must be a URL, got {url!r}", fix="Leave it out for none.")
        return url

    def variables(self) -> dict[str, str]:
        """The environment variables. Names of the platform cannot be set."""
        check_variables("env", {name: value for name, value in (self.env or {}).items() if value is not None})
        return {name: value for name, value in (self.env or {}).items() if value is not None}

    def check_secrets(self, where: str) -> tuple[Secret, ...]:
        """The secrets. Raises `InvalidError` for what is none."""
        if not self.secrets:
            return ()
        from squall.secret import checked

        return checked(where, self.secrets)

    def mounted_volumes(self) -> dict[str, Volume]:
        """The volumes by the folder that each is seen as. Raises `InvalidError`."""
        if not self.volumes:
            return {}
        from squall.volume import Volume

        return {path: each for path, each in self.mounted().items() if isinstance(each, Volume)}

    def mounted_buckets(self) -> dict[str, CloudBucketMount]:
        """The buckets likewise."""
        if not self.volumes:
            return {}
        from squall.bucket import CloudBucketMount

        return {path: each for path, each in self.mounted().items() if isinstance(each, CloudBucketMount)}

    def mounted(self) -> dict[str, Union[Volume, CloudBucketMount]]:
        """Both. Raises `InvalidError`."""
        if not self.volumes:
            return {}
        from squall.volume import checked_mounts

        return checked_mounts(self.volumes)

    def scaling(self) -> ScalingPolicy:
        """How many containers, and how many inputs at once."""
        from squall.spec import DEFAULT_SCALEDOWN_WINDOW_S, ScalingPolicy

        window, size = self.scaledown_window, self.batch[0] if self.batch else 1
        return ScalingPolicy(
            min_containers=_count("min_containers", self.min_containers) or 0,
            max_containers=_count("max_containers", self.max_containers),
            buffer_containers=_count("buffer_containers", self.buffer_containers) or 0,
            scaledown_window_s=DEFAULT_SCALEDOWN_WINDOW_S if window is None else _number("scaledown_window", window),
            max_inputs=self.max_inputs * size,
            target_inputs=self.target_inputs * size,
        )

    def batching(self) -> Optional[BatchPolicy]:
        """How inputs are collected; None if they are not."""
        from squall.spec import BatchPolicy

        return BatchPolicy(*self.batch) if self.batch else None

    def retry(self) -> RetryPolicy:
        """When failed attempts are repeated."""
        from squall.retries import Retries
        from squall.spec import RetryPolicy

        if self.retries is None:
            return RetryPolicy()
        if isinstance(self.retries, Retries):
            return self.retries.policy()
        if not is_whole(self.retries):
            raise InvalidError(f"retries must be a number or squall.Retries, got {self.retries!r}")
        return RetryPolicy(max_retries=self.retries, backoff_coefficient=1.0, initial_delay_s=1.0)

    def timeout_s(self) -> float:
        """Seconds for each attempt."""
        return _number("timeout", self.timeout)

    def startup_timeout_s(self) -> float:
        """Seconds for import and @enter; the call's own timeout unless said."""
        chosen = self.timeout if self.startup_timeout is None else self.startup_timeout
        return _number("startup_timeout", chosen)

    def must_stay(self) -> bool:
        """Whether its containers must not be on machines that can be taken away."""
        return bool(_yes_or_no("nonpreemptible", self.nonpreemptible))

    def snapshots(self) -> bool:
        """Whether templates also run what `@enter(snap=True)` marks."""
        return bool(_yes_or_no("enable_memory_snapshot", self.snapshot))

    def templates(self) -> bool:
        """Whether containers may be forked from a template."""
        return _yes_or_no("use_template", self.use_template) is not False

    def least_isolation(self, image: Optional[ImageSpec] = None) -> str:
        """What a node must offer at least. Only one that isolates can keep rules about the network, and has images with
        files of their own."""
        least = self.isolation
        if least is None:
            least = "sandbox" if self.blocks_network() or self.outbound() is not None else "process"
        return "sandbox" if least == "process" and image is not None and image.needs_isolation else least

    def blocks_network(self) -> bool:
        """Whether its containers reach nothing but the platform."""
        return bool(_yes_or_no("block_network", self.block_network))

    def outbound(self) -> Optional[tuple[str, ...]]:
        """The only networks that its containers reach; None for no such rule."""
        given = self.outbound_cidr_allowlist
        if given is None:
            return None
        if isinstance(given, str) or not all(isinstance(network, str) for network in given):
            raise InvalidError(
                f"outbound_cidr_allowlist must be a list of networks, got {given!r}",
                fix='Write `outbound_cidr_allowlist=["203.0.113.0/24"]`.',
            )
        return tuple(given)

    def resources(self) -> Resources:
        """What one container asks for."""
        from squall.spec import Resources

        cpu, cpu_limit = _request_and_limit("cpu", self.cpu, 0.125)
        memory, memory_limit = _request_and_limit("memory", self.memory, 128)
        return Resources(
            cpu=cpu,
            cpu_limit=cpu_limit,
            memory_mib=_whole("memory", memory),
            memory_limit_mib=None if memory_limit is None else _whole("memory", memory_limit),
            gpus=gpus(self.gpu),
            ephemeral_disk_mib=None if self.ephemeral_disk is None else _whole("ephemeral_disk", self.ephemeral_disk),
        )


def gpus(wanted: Gpu) -> tuple[GpuRequest, ...]:
    """The acceptable GPU choices in order. Raises `InvalidError` naming the one that is not valid."""
    if wanted is None:
        return ()
    from squall import gpu_types

    return gpu_types.requests(wanted)


def _request_and_limit(what: str, given: Any, default: float) -> tuple[float, Optional[float]]:
    if given is None:
        return default, None
    if isinstance(given, (tuple, list)):
        if len(given) != 2:
            raise InvalidError(f"{what} must be a number or (request, limit), got {given!r}")
        return _number(what, given[0]), _number(what, given[1])
    return _number(what, given), None


def _yes_or_no(what: str, value: Any) -> Optional[bool]:
    if value not in (None, True, False):
        raise InvalidError(f"{what} must be True or False, got {value!r}")
    return None if value is None else bool(value)


def is_whole(value: Any) -> bool:
    """Whether it is a whole number (True and False are not)."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a number (True and False are not)."""
    return is_whole(value) or isinstance(value, float)


def _number(what: str, value: Any) -> float:
    if not is_number(value):
        raise InvalidError(f"{what} must be a number, got {value!r}")
    return float(value)


def _whole(what: str, value: float) -> int:
    if value != int(value):
        raise InvalidError(f"{what} must be a whole number of MiB, got {value!r}")
    return int(value)


def _count(what: str, value: Any) -> Optional[int]:
    if value is not None and not is_whole(value):
        raise InvalidError(f"{what} must be a whole number, got {value!r}")
    return None if value is None else int(value)


def check_variables(where: str, variables: dict[Any, Any]) -> None:
    """Raise `InvalidError` unless it maps text to text and leaves the platform's names alone."""
    for name, value in variables.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidError(f"{where} must map text to text, got {name!r}: {value!r}")
        if not name or "=" in name or "\0" in name + value:
            raise InvalidError(f"{where} cannot set {name!r}: no environment variable can be called or contain that")
        if name in DEVICE_VARIABLES:
            raise InvalidError(f"{where} cannot set {name}: a container sees the devices that `gpu=` asks for")
        if name.startswith(RESERVED_ENV):
            raise InvalidError(f"{where} cannot set {name}: names starting with {RESERVED_ENV} belong to the platform")


# --- what a function is ----------------------------------------------------------------------------------------------


def code_flags(function: Any) -> int:
    """Flags of the function's code; 0 for callables without any. (inspect would cost every container 8 ms.)"""
    while hasattr(function, "func") and not hasattr(function, "__code__"):  # functools.partial
        function = function.func
    return int(getattr(getattr(function, "__code__", None), "co_flags", 0))


def is_generator(function: Any) -> bool:
    """Whether calling it gives a generator, sync or async."""
    return bool(code_flags(function) & (CO_GENERATOR | CO_ASYNC_GENERATOR))


def is_async(function: Any) -> bool:
    """Whether it is `async def`."""
    return bool(code_flags(function) & (CO_COROUTINE | CO_ASYNC_GENERATOR))


def parameter_names(function: Any) -> list[str]:
    """Names of the positional parameters, `self` left out."""
    code = getattr(function, "__code__", None)
    if code is None:
        return []
    names: list[str] = list(code.co_varnames[: code.co_argcount])
    return names[1:] if names[:1] == ["self"] else names
