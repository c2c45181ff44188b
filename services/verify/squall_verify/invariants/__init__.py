"""The invariants of docs/reliability.md, each a pure function over the evidence of a run."""

from squall_verify.invariants import attempts, clients, ending, executions, platform, tenants
from squall_verify.invariants.verdict import Invariant

INVARIANTS: tuple[Invariant, ...] = (
    Invariant("I1", "no acknowledged call is lost", ending.no_loss),
    Invariant("I2", "nothing runs or ends that was not accepted", ending.no_phantom),
    Invariant("I3", "one recorded result, and everybody reads it", ending.one_result),
    Invariant("I4", "a success has been executed", ending.at_least_once),
    Invariant("I4b", "what has ended does not run again", executions.over_is_over),
    Invariant("I5", "a stale attempt records success and nothing else", attempts.fencing),
    Invariant("I5b", "two executions at once only after a lost lease", executions.one_at_a_time),
    Invariant("I6", "recorded before it leaves the queue", ending.record_before_ack),
    Invariant("I7", "what drops out of its queue comes back", ending.no_orphan),
    Invariant("I8", "user failures use up retries, losses do not", attempts.retries),
    Invariant("I10", "code over its timeout is gone", attempts.timeout),
    Invariant("I11", "past its deadline nothing starts", attempts.deadline),
    Invariant("I12", "nothing starts after a cancel", attempts.cancel),
    Invariant("I13", "preempted inputs run again", attempts.preemption),
    Invariant("I14", "a repeated request makes one call", clients.repeated_request),
    Invariant("I15", "what ended badly is a dead letter", clients.dead_letter),
    Invariant("I16", "an unreadable call ends and blocks nobody", attempts.poison),
    Invariant("I17", "maps and generators in order, each once", clients.order),
    Invariant("I18", "refused before acknowledged", clients.back_pressure),
    Invariant("I19", "records name blobs that are there", platform.blobs),
    Invariant("I21", "history is law", platform.history_is_law),
    Invariant("I22", "after healing everything ends", platform.liveness),
    Invariant("I43", "never more containers than allowed", platform.max_containers),
    Invariant("I45", "idle pools go to zero", platform.to_zero),
    Invariant("I48", "no busy container is scaled down", platform.no_busy_kill),
    Invariant("I57", "one call, one version", clients.atomic_deploy),
    Invariant("L10", "no workspace starves another", tenants.fairness),
    Invariant("T12", "no workspace sees another's calls", tenants.privacy),
)
