"""Prometheus, which scrapes the pods of ModelScaling every second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from devcluster import pki
from devcluster.control_plane import answers
from devcluster.files import write
from devcluster.layout import PROMETHEUS_PORT
from devcluster.processes import Program

if TYPE_CHECKING:
    from pathlib import Path

    from devcluster.layout import Layout

_ADDRESS = "127.0.0.1"
_PART_OF = "modelscaling"
_METRICS_PORT = "metrics"
_META = "__meta_kubernetes_pod"


def prometheus(layout: Layout, build: str) -> Program:
    """Return Prometheus; it has the chart's alerts, and starts anew when they change."""
    file = layout.config / "prometheus.yaml"
    rules = layout.root / "charts/modelscaling/files/rules"
    content = configuration(
        rules=rules / "*.yaml", kubeconfig=pki.kubeconfig(layout, pki.PROMETHEUS)
    )
    write(file, yaml.safe_dump(content, sort_keys=False))
    return Program(
        name="prometheus",
        binaries=layout.bin,
        build=build,
        arguments=(
            f"--config.file={file}",
            f"--storage.tsdb.path={layout.data / 'prometheus'}",
            f"--web.listen-address={_ADDRESS}:{PROMETHEUS_PORT}",
            "--log.level=warn",
        ),
        inputs=(file, *sorted(rules.glob("*.yaml"))),
        listens=((_ADDRESS, PROMETHEUS_PORT),),
        is_ready=lambda: answers(f"http://{_ADDRESS}:{PROMETHEUS_PORT}/-/ready"),
    )


def configuration(*, rules: Path, kubeconfig: Path) -> dict[str, Any]:
    """Return the content of Prometheus' configuration file."""
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "5s"},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {
                "job_name": "modelscaling",
                # A run's own `namespace` and `name` win over what discovery says.
                "honor_labels": True,
                "kubernetes_sd_configs": [
                    {
                        "role": "pod",
                        "kubeconfig_file": str(kubeconfig),
                        "selectors": [
                            {"role": "pod", "label": f"app.kubernetes.io/part-of={_PART_OF}"}
                        ],
                    }
                ],
                "relabel_configs": [
                    _keep(f"{_META}_container_port_name", _METRICS_PORT),
                    _keep(f"{_META}_phase", "Running"),
                    _copy(f"{_META}_name", "pod"),
                    _copy(f"{_META}_node_name", "node"),
                ],
            }
        ],
    }


def _keep(label: str, value: str) -> dict[str, Any]:
    return {"action": "keep", "source_labels": [label], "regex": value}


def _copy(label: str, target: str) -> dict[str, Any]:
    return {"action": "replace", "source_labels": [label], "target_label": target}
