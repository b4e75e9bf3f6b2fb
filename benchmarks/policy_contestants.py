"""The same policy behind other servers, for `policy_server.py`.

Usage: python benchmarks/policy_contestants.py NAME PORT POLICY_FOLDER

Each answers `POST /v1/act` with the same JSON, one decision a request, as its own documentation shows:
`floor` is our HTTP alone with an answer that is always the same, `uvicorn` a bare ASGI application on uvloop
and httptools, `fastapi` the same with models, `ray` one replica of Ray Serve that may hold a thousand
requests and writes no access log, `ray-defaults` the same as Ray Serve comes. `numpy` and `torch` are our own
server with what computes the policy chosen for it, whatever would be faster.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ratchet.policies.artifact import read_folder

DETERMINISTIC, TEMPERATURE = np.zeros(1, bool), np.ones(1, np.float32)


class Decider:
    """What every contestant does with an observation."""

    def __init__(self, folder: str) -> None:
        self.policy = read_folder(Path(folder)).policy()

    def __call__(self, observation: list[float]) -> dict[str, Any]:
        decided = self.policy.decide(
            np.array([observation], np.float32),
            deterministic=DETERMINISTIC,
            temperature=TEMPERATURE,
            seeds=[None],
        )
        return {
            "action": decided.action.tolist()[0],
            "logProbability": float(decided.log_probability[0]),
            "digest": self.policy.digest,
        }


def floor(port: int, _folder: str) -> None:
    import uvloop
    from ratchet_inference.exchange import Exchange
    from ratchet_inference.http import Limits, Listener

    answer = b'{"action":0,"logProbability":-0.6931471805599453,"digest":"' + b"0" * 64 + b'"}'

    def handle(exchange: Exchange) -> None:
        exchange.respond(200, answer)

    async def serve() -> None:
        await Listener(handle, Limits()).listen("127.0.0.1", port)
        await asyncio.Event().wait()

    uvloop.run(serve())


def uvicorn(port: int, folder: str) -> None:
    import orjson
    import uvicorn

    decide = Decider(folder)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        answer = orjson.dumps(decide(orjson.loads(body)["observation"]))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    uvicorn.run(
        application, port=port, loop="uvloop", http="httptools", log_level="warning", access_log=False
    )


def _fastapi_application(decide: Any) -> Any:
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Request(BaseModel):
        observation: list[float]

    class Answer(BaseModel):
        action: int
        logProbability: float  # noqa: N815 - as it is on the wire
        digest: str

    application = FastAPI()

    @application.post("/v1/act")
    async def act(request: Request) -> Answer:
        return Answer(**decide(request.observation))

    return application


def fastapi(port: int, folder: str) -> None:
    import uvicorn

    application = _fastapi_application(Decider(folder))
    uvicorn.run(
        application, port=port, loop="uvloop", http="httptools", log_level="warning", access_log=False
    )


def ray(port: int, folder: str, **options: Any) -> None:
    import time

    import ray as runtime
    from ray import serve as its
    from starlette.requests import Request

    serve: Any = its
    engine: Any = runtime

    @serve.deployment(**options)
    class Policy:
        def __init__(self) -> None:
            self.decide = Decider(folder)

        async def __call__(self, request: Request) -> dict[str, Any]:
            return self.decide((await request.json())["observation"])

    engine.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Policy.bind(), route_prefix="/v1/act")
    time.sleep(3600)


def ray_with_room(port: int, folder: str) -> None:
    # With 5, the default, the proxy asks the full replica again and again for each request beyond.
    ray(port, folder, max_ongoing_requests=1000, logging_config={"enable_access_log": False})


def ours(port: int, folder: str, library: str) -> None:
    from ratchet_inference.main import main

    from ratchet.policies import artifact, networks

    def chosen(spec: Any, parameters: Any, weights: Any) -> list[Any]:
        if library == "numpy":
            return [networks.NumpyNetwork(spec, parameters)]
        from ratchet.policies.torchnetwork import TorchNetwork

        return [TorchNetwork(spec, parameters, weights)]

    artifact.by_speed = chosen
    sys.argv[1:] = ["--host", "127.0.0.1", "--port", str(port), "--policy", folder]
    main()


if __name__ == "__main__":
    name, port, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if name in ("numpy", "torch"):
        ours(port, folder, name)
    else:
        start = {
            "floor": floor,
            "uvicorn": uvicorn,
            "fastapi": fastapi,
            "ray": ray_with_room,
            "ray-defaults": ray,
        }
        start[name](port, folder)
