{{/* The chart's name, or its override. */}}
{{- define "eagle.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The start of every object's name: 52 characters leave room for the longest suffix. */}}
{{- define "eagle.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "eagle.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "eagle.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "eagle.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the pods of a role: never change between releases. Takes (dict "root" $ "role" "..."). */}}
{{- define "eagle.selectorLabels" -}}
app.kubernetes.io/name: {{ include "eagle.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end -}}

{{- define "eagle.labels" -}}
{{ include "eagle.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "eagle.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
The URL of every tracker or seeder, each by its own name and not hidden behind one address: nodes agree on the tracker and on the
seeder of a blob by hashing it over this list. Takes (dict "root" $ "role" "...").
*/}}
{{- define "eagle.urls" -}}
{{- $values := get .root.Values .role -}}
{{- $service := printf "%s-%s" (include "eagle.fullname" .root) .role -}}
{{- $urls := list -}}
{{- range $index := until (int $values.replicas) -}}
{{- $urls = append $urls (printf "http://%s-%d.%s.%s.svc:%d" $service $index $service $.root.Release.Namespace (int $values.ports.http)) -}}
{{- end -}}
{{- toJson $urls -}}
{{- end -}}

{{/* The Secret with the cluster key. */}}
{{- define "eagle.keySecret" -}}
{{- default (printf "%s-cluster" (include "eagle.fullname" .)) .Values.cluster.keySecret.name -}}
{{- end -}}

{{/*
`helm upgrade --reuse-values` renders this chart with the values of the one before, defaults and all, so those that are new
are not there.
*/}}
{{- define "eagle.checkValues" -}}
{{- if not (hasKey .Values "probes") -}}
{{- fail "these are the values of an older version of the chart; upgrade with --reset-then-reuse-values in place of --reuse-values" -}}
{{- end -}}
{{- if not .Values.image.repository -}}
{{- fail "image.repository is not given: Eagle's image is in no public registry; build and push it, in the root of Eagle's sources: docker buildx build --file charts/eagle/image/Dockerfile --tag REGISTRY/eagle:VERSION --push . (charts/eagle/README.md, \"The image\"), and give it: --set image.repository=REGISTRY/eagle" -}}
{{- end -}}
{{- if and .Values.redis.enabled .Values.redis.url -}}
{{- fail "redis.enabled and redis.url are both given: the chart's own Redis or yours" -}}
{{- end -}}
{{- range $key := list "store" "store_password_file" -}}
{{- if and (or $.Values.redis.enabled $.Values.redis.url) (hasKey $.Values.tracker.config $key) -}}
{{- fail (printf "tracker.config.%s is given beside redis; give one of them" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What every role reads. */}}
{{- define "eagle.clusterConfig" -}}
cluster:
  key_file: /etc/eagle-cluster/{{ .Values.cluster.keySecret.key }}
  {{- with .Values.cluster.tls }}
  {{- if .secret }}
  tls:
    certificate: /etc/eagle-tls/{{ .certificate }}
    key: /etc/eagle-tls/{{ .key }}
    ca: /etc/eagle-tls/{{ .ca }}
  {{- end }}
  {{- end }}
{{- with .Values.extraConfig }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What seeder and proxy read besides their own section. Empty topology labels are absent ones. */}}
{{- define "eagle.sharedConfig" -}}
p2p:
  encryption: {{ .Values.p2p.encryption }}
  {{- $topology := dict -}}
  {{- range $label, $value := .Values.p2p.topology -}}
  {{- if $value }}{{ $_ := set $topology $label $value }}{{ end -}}
  {{- end }}
  {{- with $topology }}
  topology:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- with .Values.registries }}
registries:
  {{- range . }}
  {{- list (omit . "passwordSecret") | toYaml | nindent 2 }}
  {{- end }}
{{- end }}
{{- with .Values.dockerConfigSecrets }}
credentials:
  docker_configs:
    {{- range . }}
    - /etc/eagle-docker/{{ . }}/.dockerconfigjson
    {{- end }}
{{- end }}
{{- end -}}

{{- define "eagle.logConfig" -}}
log:
  {{- toYaml .Values.log | nindent 2 }}
{{- end -}}

{{/*
The configuration of each role. The chart's own keys are laid over `config`, whose schema leaves them out.
*/}}
{{- define "eagle.section" -}}
{{- range $key, $value := . }}
{{- /* Helm reads every number as a float, and would write a million as 1e+06. */}}
{{ $key }}: {{ if kindIs "float64" $value }}{{ int64 $value }}{{ else }}{{ toJson $value }}{{ end }}
{{- end }}
{{- end -}}

{{/*
A role's configuration with the administrator's `extraConfig` laid over it, which goes key by key. Written as JSON, which is YAML:
helm would write a large number as 1e+06. Takes (dict "root" $ "role" "...").
*/}}
{{- define "eagle.roleConfig" -}}
{{- $config := include (printf "eagle.%sConfig" .role) .root -}}
{{- with (get .root.Values .role).extraConfig -}}
{{- range $section, $keys := mergeOverwrite (fromYaml $config) (deepCopy .) }}
{{- if kindIs "map" $keys }}
{{ $section }}:
  {{- range $key, $value := $keys }}
  {{ $key }}: {{ toJson $value }}
  {{- end }}
{{- else }}
{{ $section }}: {{ toJson $keys }}
{{- end }}
{{- end }}
{{- else -}}
{{ $config }}
{{- end -}}
{{- end -}}

{{/* Name of the chart's own Redis. */}}
{{- define "eagle.redis" -}}
{{- printf "%s-redis" (include "eagle.fullname" .) -}}
{{- end -}}

{{/* The Secret with the password of the shared store; nothing when it has none. */}}
{{- define "eagle.redisSecret" -}}
{{- with .Values.redis -}}
{{- if or .enabled .url -}}
{{- default (ternary (include "eagle.redis" $) "" .enabled) .passwordSecret.name -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "eagle.trackerConfig" -}}
{{- $ports := .Values.tracker.ports -}}
{{- $own := dict "listen" (printf "0.0.0.0:%d" (int $ports.http)) "admin" (printf "0.0.0.0:%d" (int $ports.admin)) -}}
{{- $redis := .Values.redis -}}
{{- if $redis.enabled -}}
{{- $_ := set $own "store" (printf "redis://%s.%s.svc:6379" (include "eagle.redis" .) .Release.Namespace) -}}
{{- else if $redis.url -}}
{{- $_ := set $own "store" $redis.url -}}
{{- end -}}
{{- if include "eagle.redisSecret" . -}}
{{- $_ := set $own "store_password_file" (printf "/etc/eagle-redis/%s" $redis.passwordSecret.key) -}}
{{- end -}}
{{ include "eagle.logConfig" . }}
{{ include "eagle.clusterConfig" . }}
tracker:
  {{- include "eagle.section" (merge $own (deepCopy .Values.tracker.config)) | trim | nindent 2 }}
{{- end -}}

{{- define "eagle.seederConfig" -}}
{{- $ports := .Values.seeder.ports -}}
{{- $own := dict
  "listen" (printf "0.0.0.0:%d" (int $ports.http))
  "admin" (printf "0.0.0.0:%d" (int $ports.admin))
  "p2p_listen" (printf "0.0.0.0:%d" (int $ports.p2p))
  "data_listen" (printf "0.0.0.0:%d" (int $ports.data))
  "data_dir" "/var/lib/eagle/seeder"
  "trackers" (include "eagle.urls" (dict "root" . "role" "tracker") | fromJsonArray)
-}}
{{ include "eagle.logConfig" . }}
{{ include "eagle.clusterConfig" . }}
{{ include "eagle.sharedConfig" . }}
seeder:
  {{- include "eagle.section" (merge $own (deepCopy .Values.seeder.config)) | trim | nindent 2 }}
{{- end -}}

{{- define "eagle.proxyConfig" -}}
{{- $ports := .Values.proxy.ports -}}
{{- /* Only this node's runtime may talk to the proxy: on the node's network it listens on loopback; in a pod's own
       network it has to listen on all, and the host port is bound to loopback. */ -}}
{{- $host := ternary "127.0.0.1" "0.0.0.0" .Values.proxy.hostNetwork -}}
{{- $own := dict
  "listen" (printf "%s:%d" $host (int $ports.registry))
  "admin" (printf "0.0.0.0:%d" (int $ports.admin))
  "p2p_listen" (printf "0.0.0.0:%d" (int $ports.p2p))
  "data_listen" (printf "0.0.0.0:%d" (int $ports.data))
  "data_dir" "/var/lib/eagle/proxy"
  "trackers" (include "eagle.urls" (dict "root" . "role" "tracker") | fromJsonArray)
  "seeders" (include "eagle.urls" (dict "root" . "role" "seeder") | fromJsonArray)
-}}
{{ include "eagle.logConfig" . }}
{{ include "eagle.clusterConfig" . }}
{{ include "eagle.sharedConfig" . }}
proxy:
  {{- include "eagle.section" (merge $own (deepCopy .Values.proxy.config)) | trim | nindent 2 }}
{{- end -}}

{{/* Annotations of a role's pods. Takes (dict "root" $ "role" "..." "values" .Values.ROLE). */}}
{{- define "eagle.podAnnotations" -}}
{{- /* A changed configuration starts the pods of the roles that read it anew. */ -}}
checksum/config: {{ include "eagle.roleConfig" . | sha256sum }}
{{- if .root.Values.metrics.annotations }}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .values.ports.admin | quote }}
prometheus.io/path: /metrics
{{- end }}
{{- with .values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Where pods of a role may run. Takes the role's values. */}}
{{- define "eagle.scheduling" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
terminationGracePeriodSeconds: {{ .terminationGracePeriodSeconds }}
{{- end -}}

{{- define "eagle.podSecurityContext" -}}
{{- $own := dict
  "runAsNonRoot" true
  "runAsUser" (int64 .Values.securityContext.runAsUser)
  "runAsGroup" (int64 .Values.securityContext.runAsGroup)
  "fsGroup" (int64 .Values.securityContext.runAsGroup)
  "fsGroupChangePolicy" "OnRootMismatch"
  "seccompProfile" (dict "type" "RuntimeDefault")
-}}
{{- toYaml (mergeOverwrite $own (deepCopy .Values.podSecurityContext)) -}}
{{- end -}}

{{- define "eagle.containerSecurityContext" -}}
{{- $own := dict
  "allowPrivilegeEscalation" false
  "readOnlyRootFilesystem" true
  "capabilities" (dict "drop" (list "ALL"))
-}}
{{- toYaml (mergeOverwrite $own (deepCopy .Values.containerSecurityContext)) -}}
{{- end -}}

{{/* The address that peers are told, and the passwords that must not stand in a ConfigMap. */}}
{{- define "eagle.nodeEnv" -}}
- name: EAGLE_{{ upper .role }}__ADVERTISE
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
{{- if .root.Values.p2p.topologyFromPodLabels }}
{{- $given := .root.Values.p2p.topology }}
{{- range $label := list "region" "zone" }}
{{- if not (get $given $label) }}
- name: EAGLE_P2P__TOPOLOGY__{{ upper $label }}
  valueFrom:
    fieldRef:
      # Empty where the pod has no such label, which Eagle takes for not given.
      fieldPath: metadata.labels['topology.kubernetes.io/{{ $label }}']
{{- end }}
{{- end }}
{{- end }}
{{- range $index, $registry := .root.Values.registries }}
{{- with $registry.passwordSecret }}
- name: EAGLE_REGISTRIES__{{ $index }}__PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ .name }}
      key: {{ .key }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "eagle.probes" -}}
startupProbe:
  httpGet:
    path: /healthz
    port: admin
  {{- toYaml .Values.probes.startup | nindent 2 }}
livenessProbe:
  httpGet:
    path: /healthz
    port: admin
  {{- toYaml .Values.probes.liveness | nindent 2 }}
readinessProbe:
  httpGet:
    path: /readyz
    port: admin
  {{- toYaml .Values.probes.readiness | nindent 2 }}
{{- end -}}

{{/* Labels of objects that are no pods. */}}
{{- define "eagle.metadata" -}}
labels:
  {{- include "eagle.labels" . | nindent 2 }}
{{- with .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Constraints of a role, each with the role's own pods selected. Takes (dict "root" $ "role" "..." "values" .Values.ROLE). */}}
{{- define "eagle.spread" -}}
{{- with .values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- $selector := dict "labelSelector" (dict "matchLabels" (include "eagle.selectorLabels" $ | fromYaml)) }}
  {{- range . }}
  {{- list (merge (deepCopy .) $selector) | toYaml | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Further arguments, variables and mounts of a role's container. */}}
{{- define "eagle.args" -}}
args:
  - {{ .role }}
  - --config
  - /etc/eagle/eagle.yaml
  {{- with .values.extraArgs }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "eagle.configMounts" -}}
- name: config
  mountPath: /etc/eagle
  readOnly: true
- name: cluster
  mountPath: /etc/eagle-cluster
  readOnly: true
{{- if .Values.cluster.tls.secret }}
- name: tls
  mountPath: /etc/eagle-tls
  readOnly: true
{{- end }}
{{- range .Values.caBundles }}
- name: ca-{{ .name }}
  mountPath: /etc/eagle-ca/{{ .name }}
  readOnly: true
{{- end }}
{{- range .Values.dockerConfigSecrets }}
- name: docker-{{ . }}
  mountPath: /etc/eagle-docker/{{ . }}
  readOnly: true
{{- end }}
{{- end -}}

{{/* Takes (dict "root" $ "role" "..." "values" .Values.ROLE). Each role is given its own file alone. */}}
{{- define "eagle.configVolumes" -}}
- name: config
  configMap:
    name: {{ include "eagle.fullname" .root }}
    items:
      - key: {{ .role }}.yaml
        path: eagle.yaml
- name: cluster
  secret:
    secretName: {{ include "eagle.keySecret" .root }}
    # For the group of the containers (fsGroup) and nobody else.
    defaultMode: 0440
    items:
      - key: {{ .root.Values.cluster.keySecret.key }}
        path: {{ .root.Values.cluster.keySecret.key }}
{{- with .root.Values.cluster.tls }}
{{- if .secret }}
- name: tls
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
    items:
      {{- range uniq (list .certificate .key .ca) }}
      - key: {{ . }}
        path: {{ . }}
      {{- end }}
{{- end }}
{{- end }}
{{- range .root.Values.caBundles }}
- name: ca-{{ .name }}
  {{- if .secret }}
  secret:
    secretName: {{ .secret }}
  {{- else }}
  configMap:
    name: {{ .configMap }}
  {{- end }}
{{- end }}
{{- range .root.Values.dockerConfigSecrets }}
- name: docker-{{ . }}
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
