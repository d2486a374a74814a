"""The rivals' configurations: one worker, streaming without buffers, no log lines, no limit the load could run into."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.relay.messages import MODEL
from deploy.local.ports import HOST

_MANY: Final = 1_000_000
_HTTP: Final = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_MANAGER: Final = (
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
)
_ROUTER: Final = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


def envoy(grpc_port: int, http_port: int, upstreams: Sequence[str]) -> str:
    """Envoy's bootstrap, in JSON, which is YAML too."""
    return json.dumps(
        {
            "static_resources": {
                "listeners": [_listener("grpc", grpc_port), _listener("http", http_port)],
                "clusters": [_cluster("grpc", upstreams), _cluster("http", upstreams)],
            }
        },
        indent=1,
    )


def _listener(name: str, port: int) -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}}
    manager = {
        "@type": _MANAGER,
        "stat_prefix": name,
        "codec_type": "AUTO",
        "stream_idle_timeout": "0s",
        # A client that is slow for a moment would be taken for a flood by frames that wait for it.
        "http2_protocol_options": {"max_concurrent_streams": 100_000, "max_outbound_frames": _MANY},
        "route_config": {"virtual_hosts": [{"name": name, "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": _ROUTER}}],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    return {"name": name, "address": _address(port), "filter_chains": [{"filters": filters}]}


def _cluster(name: str, upstreams: Sequence[str]) -> dict[str, Any]:
    ports = [int(each.rpartition(":")[2]) for each in upstreams]
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), _MANY)
    protocol = {"http2_protocol_options": {"max_concurrent_streams": 100_000}} if name == "grpc" else {}
    explicit = protocol or {"http_protocol_options": {}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [limits]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {"@type": _HTTP, "explicit_http_config": explicit}
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(port)}} for port in ports]}],
        },
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": HOST, "port_value": port}}


def nginx(folder: Path, grpc_port: int, http_port: int, upstreams: Sequence[str]) -> str:
    """nginx.conf."""
    servers = "\n".join(f"    server {each};" for each in upstreams)
    temporary = "\n".join(
        f"  {kind}_temp_path {folder}/nginx-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""\
daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {folder}/nginx.pid;
events {{ worker_connections 30000; }}
http {{
  access_log off;
{temporary}
  keepalive_requests {_MANY};
  keepalive_timeout 600s;
  upstream grpc_engines {{
{servers}
    keepalive 1024; keepalive_requests {_MANY};
  }}
  upstream http_engines {{
{servers}
    keepalive 1024; keepalive_requests {_MANY};
  }}
  server {{
    listen {HOST}:{grpc_port} http2;
    http2_max_concurrent_streams 10000;
    location / {{ grpc_pass grpc://grpc_engines; grpc_read_timeout 600s; grpc_socket_keepalive on; }}
  }}
  server {{
    listen {HOST}:{http_port};
    location / {{
      proxy_pass http://http_engines;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""


def litellm(urls: Sequence[str]) -> str:
    """LiteLLM's config.yaml, in JSON, which is YAML too."""
    models = [
        {
            "model_name": MODEL,
            "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"},
        }
        for url in urls
    ]
    settings = {"dangerously_permit_weak_or_unset_master_key": True}  # nobody authenticates here: less work for it
    return json.dumps({"model_list": models, "general_settings": settings, "litellm_settings": {"telemetry": False}})
