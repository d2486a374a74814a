"""Which replica is measured. Taking one must not leave tenants without any, unless somebody said so."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from fairlead.admin.v1 import admin_pb2
from fairlead.admin.v1 import calibration_pb2 as pb
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FailedPreconditionError, FairleadError, NotFoundError, Reason


def engine_label(replica: engine_pb2.Replica) -> str:
    """Engine and its version, as profiles and calibrations name it: "simulated 1"."""
    return f"{replica.engine} {replica.engine_version}".strip()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What kind of replica a calibration needs.

    Attributes:
        model_id: Of this model.
        replica_id: This very one; empty means any.
        hardware: Of this hardware label; empty means any.
        engine: Of this engine and version; empty means any.
        limits: Sequences at once, KV cache and context it must have, tokens; None means any.
        take_last: Even if it is the only one that is READY.
    """

    model_id: str
    replica_id: str = ""
    hardware: str = ""
    engine: str = ""
    limits: tuple[int, int, int] | None = None
    take_last: bool = False

    @staticmethod
    def of(calibration: pb.Calibration, model: admin_pb2.Model) -> Wanted:
        """What a calibration needs: once it has measured, more of the same hardware and engine."""
        measured = len(calibration.experiments) > 0
        return Wanted(
            calibration.model_id,
            calibration.options.replica_id,
            calibration.hardware if measured else model.engine.hardware,
            calibration.engine if measured else "",
            _limits(calibration) if measured else None,
            calibration.options.take_last_replica,
        )


def _limits(of: engine_pb2.Replica | pb.Calibration) -> tuple[int, int, int]:
    return of.sequences_max, of.kv_capacity_tokens, of.context_tokens


def candidates(
    wanted: Wanted, replicas: Sequence[engine_pb2.Replica], avoid: Set[str] = frozenset()
) -> list[engine_pb2.Replica]:
    """The replicas that may be taken now, sorted by id; at least one.

    Args:
        wanted: What is needed.
        replicas: All replicas that are registered.
        avoid: Those that failed.

    Raises:
        NotFoundError: The replica that was named is not registered for the model.
        FailedPreconditionError: None may be taken; the message says why and what to do.
    """
    mine = [replica for replica in replicas if replica.model_id == wanted.model_id]
    named = [replica for replica in mine if wanted.replica_id in ("", replica.replica_id)]
    if wanted.replica_id and not named:
        raise NotFoundError(
            f"model {wanted.model_id!r} has no replica {wanted.replica_id!r}; `fairlead replicas` lists them",
            reason=Reason.UNKNOWN_REPLICA,
        )
    fitting = [replica for replica in named if not _mismatch(wanted, replica)]
    if named and not fitting:
        raise FailedPreconditionError(_mismatch(wanted, named[0]))
    ready = [replica for replica in fitting if replica.state == engine_pb2.REPLICA_STATE_READY]
    free = [replica for replica in ready if replica.replica_id not in avoid]
    if not free:
        raise _none_free(wanted, fitting, avoid)
    serving = sum(replica.state == engine_pb2.REPLICA_STATE_READY for replica in mine)
    if serving < 2 and not wanted.take_last:
        raise FailedPreconditionError(
            f"replica {free[0].replica_id!r} is the only one of {wanted.model_id!r} that is READY: tenants would get "
            "nothing while it is measured. Start another one first, or set take_last_replica to take it all the same"
        )
    return sorted(free, key=lambda replica: replica.replica_id)


def _mismatch(wanted: Wanted, replica: engine_pb2.Replica) -> str:
    """Why a replica does not fit; empty when it does."""
    if wanted.hardware and replica.hardware != wanted.hardware:
        return (
            f"replica {replica.replica_id!r} runs on {replica.hardware!r} and not on {wanted.hardware!r}: a profile "
            "belongs to one hardware. Name another replica, or start with fresh to measure anew"
        )
    if wanted.engine and engine_label(replica) != wanted.engine:
        return (
            f"replica {replica.replica_id!r} runs {engine_label(replica)!r} and not {wanted.engine!r}, on which this "
            "calibration has measured: start with fresh to measure anew"
        )
    if wanted.limits is not None and _limits(replica) != wanted.limits:
        return (
            f"replica {replica.replica_id!r} has other limits (sequences, KV cache, context) than the one this "
            "calibration has measured: start with fresh to measure anew"
        )
    return ""


def _none_free(wanted: Wanted, fitting: Sequence[engine_pb2.Replica], avoid: Set[str]) -> FairleadError:
    if not fitting:
        return FailedPreconditionError(
            f"model {wanted.model_id!r} has no replica: start one (`fairlead doctor` says what is missing)"
        )
    states = ", ".join(
        f"{replica.replica_id} {'failed' if replica.replica_id in avoid else _state(replica)}"
        for replica in fitting[:5]
    )
    return FailedPreconditionError(
        f"no replica of {wanted.model_id!r} can be taken ({states}): a READY one is needed; wait or start another"
    )


def _state(replica: engine_pb2.Replica) -> str:
    return "is " + engine_pb2.ReplicaState.Name(replica.state).removeprefix("REPLICA_STATE_")
