"""Grafana dashboards as code; the chart ships the JSON that they make."""
