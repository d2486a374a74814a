"""The real openai client on the whole platform."""

from __future__ import annotations

import openai
import pytest

from tests.e2e.make_run import MakeRun


async def test_the_openai_client_streams_and_lists(sim_platform: MakeRun) -> None:
    """An unmodified openai client lists models, streams a chat with usage and cost, and gets typed errors."""
    facts = sim_platform.document()
    tenant = facts["tenants"]["acme"]
    async with openai.AsyncOpenAI(api_key=tenant["key"], base_url=facts["http"] + "/v1", max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == [tenant["model"]]
        stream = await client.chat.completions.create(
            model=tenant["model"],
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        usage = chunks[-1].usage
        assert usage is not None
        assert 0 < usage.completion_tokens <= 12
        assert (usage.model_extra or {})["fairlead"]["settled_milli_mu"] > 0
        with pytest.raises(openai.NotFoundError) as refused:
            await client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "Hello"}])
        assert refused.value.code == "model_not_found"
