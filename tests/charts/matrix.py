"""Sets of values that between them take every branch of the chart's templates."""

from __future__ import annotations

from typing import Any

EVERYTHING: dict[str, Any] = {
    "imagePullSecrets": [{"name": "registry"}],
    "image": {"digest": f"sha256:{'0' * 64}"},
    "trainer": {"image": {"digest": f"sha256:{'1' * 64}"}},
    "serviceAccount": {"annotations": {"team": "training"}},
    "networkPolicy": {
        "metricsFrom": [
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
        ],
        "runNamespaces": ["research", "production"],
    },
    "metrics": {
        "podMonitor": {"enabled": True, "interval": "15s", "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboards": {"enabled": True, "annotations": {"grafana_folder": "Training"}},
    },
    "podAnnotations": {"note": "hello"},
    "podLabels": {"team": "training"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "system", "operator": "Exists"}],
    "affinity": {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 1,
                    "podAffinityTerm": {
                        "topologyKey": "topology.kubernetes.io/zone",
                        "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "x"}},
                    },
                }
            ]
        }
    },
    "priorityClassName": "system-cluster-critical",
}

NOTHING: dict[str, Any] = {
    "crds": {"enabled": False},
    "cleanup": {"enabled": False},
    "serviceAccount": {"create": False, "name": "given"},
    "rbac": {"create": False},
    "podDisruptionBudget": {"enabled": False},
    "networkPolicy": {"enabled": False},
    "replicaCount": 1,
    "resources": {},
}

MATRIX: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "with everything on": EVERYTHING,
    "with everything off": NOTHING,
    "in two namespaces": {"watchNamespaces": ["research", "production"]},
    "in two namespaces with everything on": {
        **EVERYTHING,
        "watchNamespaces": ["research", "production"],
    },
    "under another name": {"fullnameOverride": "x" * 60, "nameOverride": "scaler"},
    "with a definition that goes with the release": {"crds": {"keep": False}},
}
