"""The platform's configuration as one router sees it: keys, tenants, models, policies and assignments."""

from __future__ import annotations

from collections.abc import Mapping

from common.logs import get_logger
from common.shard_map import Generation, ShardMap, tenant_keys
from data_plane.router.assignments import Assignments
from data_plane.router.core.waiting_group import Subset
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import NotFoundError, PermissionDeniedError, Reason, UnauthenticatedError, UnavailableError
from model_units.cost import CostProfile
from model_units.profiles import ProfileCatalogue

# Unions of a tenant's subsets that are kept per model; there is one per tenant whose batch waits.
_UNIONS_MAX = 4_096

log = get_logger(__name__)


class _Priced:
    """What a model was priced with last.

    Args:
        model: The model as it was then, where its profile cannot change as long as it stays so; else None.
        profile: Its cost profile.
    """

    __slots__ = ("model", "profile")

    def __init__(self, model: admin_pb2.Model | None, profile: CostProfile) -> None:
        self.model = model
        self.profile = profile


class Tables:
    """Look-ups over live mappings; whoever owns the mappings changes them in place, but no message in them.

    Args:
        keys: admin.ApiKey by key id.
        tenants: admin.Tenant by tenant id.
        models: admin.Model by model id.
        policies: admin.Reservation by "model/tenant".
        assignments: The newest assignments.
        profiles: Cost profiles.
    """

    def __init__(
        self,
        *,
        keys: Mapping[str, admin_pb2.ApiKey],
        tenants: Mapping[str, admin_pb2.Tenant],
        models: Mapping[str, admin_pb2.Model],
        policies: Mapping[str, admin_pb2.Reservation],
        assignments: Assignments,
        profiles: ProfileCatalogue,
    ) -> None:
        self.keys = keys
        self._tenants = tenants
        self._models = models
        self._policies = policies
        self.assignments = assignments
        self._profiles = profiles
        self._priced_with: dict[str, _Priced] = {}
        self._stood_in: dict[str, str] = {}
        self._unions: dict[str, tuple[ShardMap, dict[str, Subset]]] = {}

    def check_tenant(self, tenant_id: str) -> None:
        """Refuses a tenant that is gone or suspended.

        Raises:
            UnauthenticatedError: The key outlived its tenant.
            PermissionDeniedError: Reason TENANT_SUSPENDED.
        """
        tenant = self._tenants.get(tenant_id)
        if tenant is None:
            raise UnauthenticatedError("the key's tenant does not exist any more", reason=Reason.UNKNOWN_TENANT)
        if tenant.suspended:
            raise PermissionDeniedError(
                "this tenant is suspended; ask the platform's operators", reason=Reason.TENANT_SUSPENDED
            )

    def model(self, tenant_id: str, model_id: str) -> admin_pb2.Model:
        """A model the tenant may use.

        Raises:
            NotFoundError: There is no such model; reason UNKNOWN_MODEL.
            PermissionDeniedError: The tenant has no reservation on it; reason MODEL_NOT_ALLOWED.
        """
        model = self._models.get(model_id)
        if model is None:
            raise NotFoundError(
                f"there is no model {model_id[:128]!r}; list the models to see yours",
                reason=Reason.UNKNOWN_MODEL,
                field="model",
            )
        if f"{model_id}/{tenant_id}" not in self._policies:
            raise PermissionDeniedError(
                f"this tenant has no reservation on {model_id!r}; ask the platform's operators for one",
                reason=Reason.MODEL_NOT_ALLOWED,
            )
        return model

    def routing_policy(self, model_id: str) -> admin_pb2.RoutingPolicy.ValueType:
        """The rule by which a model's replicas are picked now; unspecified where there is no such model any more."""
        model = self._models.get(model_id)
        return admin_pb2.ROUTING_POLICY_UNSPECIFIED if model is None else model.routing_policy

    def models_of(self, tenant_id: str) -> list[admin_pb2.Model]:
        """The models a tenant may use, sorted by id."""
        return [
            model for model_id, model in sorted(self._models.items()) if f"{model_id}/{tenant_id}" in self._policies
        ]

    def profile(self, model: admin_pb2.Model) -> CostProfile:
        """The model's cost profile.

        Where it names one that this router has not seen (yet), what it was priced with before stands in for it: a
        price that is a little old beats a refusal.

        Raises:
            UnavailableError: There never was another one; that is for the operators to mend.
        """
        known = self._priced_with.get(model.model_id)
        if known is not None and known.model is model:
            return known.profile
        try:
            profile = self._profiles.resolve(model.profile_id, model.engine.hardware)
        except NotFoundError as error:
            return self._stand_in(model, error)
        fixed = self._profiles.is_built_in(profile.profile_id)
        self._priced_with[model.model_id] = _Priced(model if fixed else None, profile)
        return profile

    def _stand_in(self, model: admin_pb2.Model, missing: NotFoundError) -> CostProfile:
        known = self._priced_with.get(model.model_id)
        if known is not None:
            profile = known.profile
        else:
            try:
                profile = self._profiles.get(model.previous_profile_id)
            except NotFoundError:
                raise UnavailableError(f"model {model.model_id!r} cannot be priced: {missing.message}") from missing
        if self._stood_in.get(model.model_id) != model.profile_id:
            self._stood_in[model.model_id] = model.profile_id
            log.error("profile unknown", model=model.model_id, wanted=model.profile_id, used=profile.profile_id)
        return profile

    def subset(self, model_id: str, key: int) -> Subset:
        """The replicas assigned to a request.

        Args:
            model_id: The model.
            key: Where the request lies in the key space; see `common.shard_map`.

        Returns:
            The same tuple as long as the assignment is in force; empty where there is no assignment.
        """
        shard_map = self.assignments.get(model_id)
        return shard_map.subset(key) if shard_map is not None else ()

    def subset_of(self, model_id: str, tenant_id: str) -> Subset:
        """The replicas assigned to any of a tenant's requests; as `subset`."""
        shard_map = self.assignments.get(model_id)
        if shard_map is None:
            return ()
        kept = self._unions.get(model_id)
        if kept is None or kept[0] is not shard_map:
            kept = self._unions[model_id] = (shard_map, {})
        union = kept[1].get(tenant_id)
        if union is None:
            subsets = shard_map.subsets(*tenant_keys(tenant_id))
            union = subsets[0] if len(set(subsets)) == 1 else tuple(sorted({each for one in subsets for each in one}))
            if len(kept[1]) >= _UNIONS_MAX:
                kept[1].clear()
            kept[1][tenant_id] = union
        return union

    def generation(self, model_id: str) -> Generation:
        """The generation of the assignment that `subset` answers from; the zero generation where there is none."""
        return self.assignments.generation(model_id)
