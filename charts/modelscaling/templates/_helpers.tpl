{{/* The chart's name. */}}
{{- define "modelscaling.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The full name of what the release creates; at most 50 characters, for the suffixes. */}}
{{- define "modelscaling.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* The name of what belongs to the whole cluster: two releases of one name must not share it. */}}
{{- define "modelscaling.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "modelscaling.fullname" .) }}
{{- end }}

{{/* Labels of everything in the chart. */}}
{{- define "modelscaling.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "modelscaling.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: modelscaling
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Labels of the release. */}}
{{- define "modelscaling.selectorLabels" -}}
app.kubernetes.io/name: {{ include "modelscaling.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels that select the operator's pods. */}}
{{- define "modelscaling.operatorLabels" -}}
{{ include "modelscaling.selectorLabels" . }}
app.kubernetes.io/component: operator
{{- end }}

{{/* The name of the operator's ServiceAccount. */}}
{{- define "modelscaling.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "modelscaling.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* An image's reference, from (list CONTEXT IMAGE). */}}
{{- define "modelscaling.image" -}}
{{- $context := index . 0 }}
{{- $image := index . 1 }}
{{- if $image.digest }}
{{- printf "%s@%s" $image.repository $image.digest }}
{{- else }}
{{- printf "%s:%s" $image.repository (default $context.Chart.AppVersion $image.tag) }}
{{- end }}
{{- end }}

{{/* The Pod Security Standard "restricted", for a pod. */}}
{{- define "modelscaling.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* The Pod Security Standard "restricted", for a container, with a read-only root. */}}
{{- define "modelscaling.securityContext" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
{{- end }}

{{/* Environment of every container: the user may have no entry in /etc/passwd, and HOME is where
     libraries look for their files. */}}
{{- define "modelscaling.environment" -}}
- name: HOME
  value: /tmp
- name: USER
  value: modelscaling
{{- end }}

{{/* Namespaces in which pods of runs are protected, as a JSON list. */}}
{{- define "modelscaling.runNamespaces" -}}
{{- if .Values.networkPolicy.runNamespaces }}
{{- .Values.networkPolicy.runNamespaces | toJson }}
{{- else if .Values.watchNamespaces }}
{{- .Values.watchNamespaces | toJson }}
{{- else }}
{{- list .Release.Namespace | toJson }}
{{- end }}
{{- end }}

{{/* Peers that may read metrics, as a YAML list. */}}
{{- define "modelscaling.metricsPeers" -}}
{{- if .Values.networkPolicy.metricsFrom }}
{{- toYaml .Values.networkPolicy.metricsFrom }}
{{- else -}}
- namespaceSelector: {}
{{- end }}
{{- end }}
