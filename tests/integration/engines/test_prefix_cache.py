"""What the prefix cache saves reaches the bill: engine, agent and router together."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from data_plane.router.exchange import Call, Finished
from fairlead.engine.v1 import engine_pb2
from fairlead.inference.v1 import inference_pb2 as pb
from tests.integration.engines.agent_process import AgentProcess, agent
from tests.support.etcd import EtcdServer
from tests.support.router_lab import KEY, MODEL, RouterLab, prompt_request


class AgentUpstream:
    """Reaches one real agent; see Upstream."""

    def __init__(self, replica: AgentProcess) -> None:
        self._replica = replica

    async def generate(
        self,
        replica: engine_pb2.Replica,
        request: engine_pb2.EngineGenerateRequest,
        *,
        deadline_ns: int,
        metadata: Sequence[tuple[str, str]],
    ) -> AsyncGenerator[engine_pb2.EngineGenerateResponse, None]:
        """See Upstream."""
        async for message in self._replica.stub.Generate(request, metadata=tuple(metadata)):
            yield message


async def finished(lab: RouterLab, prompt: str) -> Finished:
    sampling = pb.SamplingParameters(max_tokens=4, ignore_end_token=True)
    exchange = lab.router.flow.open(Call(prompt_request(prompt, sampling=sampling), f"Bearer {KEY}"))
    events = [event async for event in exchange.events()]
    assert isinstance(events[-1], Finished)
    return events[-1]


async def test_the_same_prompt_again_costs_less(shared_etcd: EtcdServer) -> None:
    """Proves that a prompt the replica has just computed is reported as cached and charged without that part, that one
    which begins otherwise is not, and that what is charged is what leaves the lease.
    """
    prompt = "".join(f"{number:8}" for number in range(1_000))  # 2,000 tokens: 31 pieces of 64 and 16 tokens
    async with agent(shared_etcd.endpoint, f"--model-id={MODEL}") as replica:
        lab = RouterLab(("r1",), upstream=AgentUpstream(replica))
        first = await finished(lab, prompt)
        again = await finished(lab, prompt)
        other = await finished(lab, "x" + prompt)
        assert (first.usage.input_tokens, first.usage.cached_input_tokens) == (2_000, 0)
        assert (again.usage.input_tokens, again.usage.cached_input_tokens) == (2_000, 31 * 64)
        assert other.usage.cached_input_tokens == 0
        assert again.cost.decode_milli_mu == first.cost.decode_milli_mu
        assert again.cost.prefill_milli_mu < first.cost.prefill_milli_mu / 10
        assert other.cost.prefill_milli_mu >= first.cost.prefill_milli_mu
        charged = sum(each.cost.settled_milli_mu for each in (first, again, other))
        assert sum(lab.router.accounts.settled_milli_mu.values()) == charged
        assert lab.received_equals_finished()
