# SPDX-License-Identifier: Apache-2.0
"""The server as a deployment of Ray Serve, with two replicas:

    pip install 'ray[serve]' 'rwkv-edge[server]'
    RWKV_MODEL=model.gguf serve run --working-dir examples/ray serving:app

OpenAI's API is then at http://127.0.0.1:8000/v1, streams included. Beyond one machine, give
`create_app` the `keys` and `hosts` that docs/server.md describes. A stored state is known to the
replica that made it only.
"""

from __future__ import annotations

import os

from ray import serve
from rwkv_edge import Model
from rwkv_edge.server.app import create_app
from rwkv_edge.server.service import Service
from starlette.types import ASGIApp

THREADS = 1
MODEL = {"RWKV_MODEL": os.environ.get("RWKV_MODEL", "")}  # "": the demo model


def build() -> ASGIApp:
    """The app of a replica, which runs in its own process."""
    return create_app(Service(Model(os.environ["RWKV_MODEL"] or None, threads=THREADS)))


@serve.deployment(
    num_replicas=2,
    max_ongoing_requests=32,
    ray_actor_options={"num_cpus": THREADS, "runtime_env": {"env_vars": MODEL}},
)
@serve.ingress(build)
class Server:
    """Answers what the app answers."""


app = Server.bind()
