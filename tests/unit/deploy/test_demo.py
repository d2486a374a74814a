"""The demo model, tenants, quotas and keys: made once, kept, and renewed where they must be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from common.rpc import channel
from deploy.local import secret_files
from deploy.local.demo import AdminApi, demo_model, seed
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import UnauthenticatedError
from tests.support.fake_platform.server import FakePlatform


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    with FakePlatform() as platform:
        yield platform


@pytest.fixture
async def api(platform: FakePlatform) -> AsyncIterator[AdminApi]:
    async with channel(platform.admin_address) as connection:
        yield AdminApi(connection, platform.control.token)


@pytest.fixture
def files(tmp_path: Path) -> secret_files.SecretFiles:
    return secret_files.prepare(tmp_path)


async def test_second_start_changes_nothing(
    platform: FakePlatform, api: AdminApi, files: secret_files.SecretFiles
) -> None:
    """Two tenants with different quotas; started again, keys and quotas are the same and nothing was made twice."""
    first = await seed(api, demo_model("sim", 8), files)
    reserved = {key[1]: entry for key, entry in platform.control.reservations.items()}
    assert first.keys() == reserved.keys() == {"acme", "globex"}
    assert reserved["acme"].reserved_milli_mu_per_minute == 320_000
    assert reserved["globex"].reserved_milli_mu_per_minute == 160_000
    reserved["acme"].reserved_milli_mu_per_minute = 1
    assert await seed(api, demo_model("sim", 8), files) == first
    assert platform.control.reservations["llama-3.1-8b", "acme"].reserved_milli_mu_per_minute == 1
    assert len(platform.control.keys) == 2


async def test_other_number_of_replicas_moves_the_quotas(
    platform: FakePlatform, api: AdminApi, files: secret_files.SecretFiles
) -> None:
    """Quotas are shares of the fleet: they follow its size."""
    await seed(api, demo_model("sim", 8), files)
    await seed(api, demo_model("sim", 2), files)
    model = platform.control.models["llama-3.1-8b"]
    assert (model.replicas_min, model.replicas_max) == (2, 2)
    assert platform.control.reservations["llama-3.1-8b", "acme"].reserved_milli_mu_per_minute == 80_000


async def test_other_engine_retires_the_model_before(
    platform: FakePlatform, api: AdminApi, files: secret_files.SecretFiles
) -> None:
    """After a run on simulated replicas, one on Triton serves its own model only, to the same keys."""
    first = await seed(api, demo_model("sim", 8), files)
    assert await seed(api, demo_model("triton", 2), files) == first
    assert list(platform.control.models) == ["tiny-llama"]
    assert {key[0] for key in platform.control.reservations} == {"tiny-llama"}


async def test_lost_keys_are_replaced(platform: FakePlatform, api: AdminApi, files: secret_files.SecretFiles) -> None:
    """Secrets are shown once: without the file new keys are made and the unusable ones revoked, a person's are not."""
    await seed(api, demo_model("sim", 2), files)
    own = admin_pb2.ApiKey(key_id="mine", tenant_id="acme", display_name="by hand")
    platform.control.keys["mine"] = own
    before = set(platform.control.keys)
    files.demo_keys.unlink()
    renewed = await seed(api, demo_model("sim", 2), files)
    assert {key.split("-")[1] for key in renewed.values()} == set(platform.control.keys) - {"mine"}
    assert set(platform.control.keys) & before == {"mine"}


async def test_key_the_platform_forgot_is_replaced(
    platform: FakePlatform, api: AdminApi, files: secret_files.SecretFiles
) -> None:
    """Where the store was removed and the secrets kept, the kept keys open nothing and are renewed."""
    await seed(api, demo_model("sim", 2), files)
    platform.control.keys.clear()
    renewed = await seed(api, demo_model("sim", 2), files)
    assert {key.split("-")[1] for key in renewed.values()} == set(platform.control.keys)


async def test_wrong_token_is_an_error(platform: FakePlatform, files: secret_files.SecretFiles) -> None:
    """An admin API of somebody else's platform is not waited for."""
    async with channel(platform.admin_address) as connection:
        with pytest.raises(UnauthenticatedError):
            await seed(AdminApi(connection, "wrong"), demo_model("sim", 2), files)
