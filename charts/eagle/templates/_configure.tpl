{{/* Where `eagle configure` looks for the files of a runtime. Takes its name. */}}
{{- define "eagle.runtimeDirectory" -}}
{{- get (dict "containerd" "/etc/containerd" "crio" "/etc/containers" "docker" "/etc/docker") . -}}
{{- end -}}

{{/* What the proxies' init containers configure: the runtime, the directory of its files on the node, and whether it is told. */}}
{{- define "eagle.configured" -}}
{{- with .Values.proxy.configure -}}
runtime: {{ .runtime }}
directory: {{ default (include "eagle.runtimeDirectory" .runtime) .directory | toJson }}
activate: {{ .activate }}
{{- end -}}
{{- end -}}

{{/* The same of the proxies that are in the cluster by now; nothing without a look into it, or where they configure nothing. */}}
{{- define "eagle.configuredBefore" -}}
{{- $pod := dig "spec" "template" "spec" dict (lookup "apps/v1" "DaemonSet" .Release.Namespace (printf "%s-proxy" (include "eagle.fullname" .))) -}}
{{- $directory := "" -}}
{{- range $pod.volumes -}}
{{- if eq .name "runtime" }}{{ $directory = .hostPath.path }}{{ end -}}
{{- end -}}
{{- range $pod.initContainers -}}
{{- if eq .name "configure-runtime" -}}
runtime: {{ index .args 1 }}
directory: {{ $directory | toJson }}
activate: {{ has "--activate" .args }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
What the container that points a runtime at the proxy has in common with the one that undoes it. Takes (dict "root" $) with what
"eagle.configured" says.
*/}}
{{- define "eagle.configureContainer" -}}
{{- $usual := include "eagle.runtimeDirectory" .runtime -}}
securityContext:
  {{- toYaml .root.Values.proxy.configure.securityContext | nindent 2 }}
resources:
  {{- toYaml .root.Values.proxy.configure.resources | nindent 2 }}
volumeMounts:
  {{- if .activate }}
  # For the node's systemctl, and the socket below /run that it talks to.
  - name: host
    mountPath: /host
    readOnly: true
  {{- end }}
  - name: runtime
    mountPath: /host{{ $usual }}
  {{- if ne .directory $usual }}
  # config_path of the runtime's configuration names files by the node's own paths.
  - name: runtime
    mountPath: /host{{ .directory }}
  {{- end }}
  # What the files were before, for undoing it.
  - name: record
    mountPath: /host/var/lib/eagle/configure
{{- end -}}

{{/* Takes what "eagle.configured" says. */}}
{{- define "eagle.configureVolumes" -}}
{{- if .activate }}
- name: host
  hostPath:
    path: /
    type: Directory
{{- end }}
- name: runtime
  hostPath:
    path: {{ .directory }}
    type: DirectoryOrCreate
- name: record
  hostPath:
    path: /var/lib/eagle/configure
    type: DirectoryOrCreate
{{- end -}}

{{/* Annotations of an object that lives while the release is being removed or upgraded. Takes (dict "root" $ "hook" "..." "weight" "..."). */}}
{{- define "eagle.undoAnnotations" -}}
helm.sh/hook: {{ .hook }}
helm.sh/hook-weight: {{ .weight | quote }}
# What an earlier removal has left, because a node was away, makes room for this one.
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- with .root.Values.commonAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}
