"""Variants: a declaration with the options of one handle in place of its own. Pure."""

from __future__ import annotations

from dataclasses import replace

from squall.errors import InvalidError
from squall.spec import BucketMount, FunctionSpec, Options, Resources, ScalingPolicy, validate


def applied(spec: FunctionSpec, options: Options) -> FunctionSpec:
    """The declaration of the variant. Raises `InvalidError` naming the first value that does not fit."""
    return validate(
        replace(
            spec,
            resources=_resources(spec.resources, options),
            scaling=_scaling(spec, options),
            retry=spec.retry if options.retry is None else options.retry,
            timeout_s=spec.timeout_s if options.timeout_s is None else options.timeout_s,
            env={**spec.env, **(options.env or {})},
            secrets=spec.secrets if options.secrets is None else options.secrets,
            volumes=spec.volumes if options.volumes is None else options.volumes,
            buckets=spec.buckets if options.buckets is None else _buckets(spec, options.buckets),
            batching=options.batching or spec.batching,
        )
    )


def _buckets(spec: FunctionSpec, wanted: tuple[BucketMount, ...]) -> tuple[BucketMount, ...]:
    """Whoever calls may be a container without a network: it must not have one by a bucket of its own choice."""
    if wanted and (spec.block_network or spec.outbound_cidr_allowlist is not None):
        raise InvalidError(
            f"{spec.name!r} may not use the network: options add no buckets to it",
            fix="Declare the bucket in its `volumes=`.",
        )
    return wanted


def _resources(declared: Resources, options: Options) -> Resources:
    resources = declared
    if options.cpu is not None:
        resources = replace(resources, cpu=options.cpu, cpu_limit=options.cpu_limit)
    if options.memory_mib is not None:
        resources = replace(resources, memory_mib=options.memory_mib, memory_limit_mib=options.memory_limit_mib)
    return resources if options.gpus is None else replace(resources, gpus=options.gpus)


def _scaling(spec: FunctionSpec, options: Options) -> ScalingPolicy:
    """min_containers is never inherited: a pool that exists for some calls keeps nothing warm."""
    declared, batching = spec.scaling, options.batching or spec.batching
    declared_size = spec.batching.max_batch_size if spec.batching else 1
    size = batching.max_batch_size if batching else 1
    at_once = options.max_inputs or spec.batches_at_once
    target = options.target_inputs or options.max_inputs or declared.target_inputs // declared_size
    window_s = declared.scaledown_window_s if options.scaledown_window_s is None else options.scaledown_window_s
    buffer = declared.buffer_containers if options.buffer_containers is None else options.buffer_containers
    return ScalingPolicy(
        min_containers=0,
        max_containers=options.max_containers or declared.max_containers,
        buffer_containers=buffer,
        scaledown_window_s=window_s,
        max_inputs=at_once * size,
        target_inputs=min(target, at_once) * size,
    )
