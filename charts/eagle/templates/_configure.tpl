{{/* The directory of the runtime's files on the node, and where `eagle configure` looks for it. */}}
{{- define "eagle.runtimeDirectory" -}}
{{- get (dict "containerd" "/etc/containerd" "crio" "/etc/containers" "docker" "/etc/docker") .Values.proxy.configure.runtime -}}
{{- end -}}

{{/* What the container that points a runtime at the proxy has in common with the one that undoes it. */}}
{{- define "eagle.configureContainer" -}}
securityContext:
  {{- toYaml .Values.proxy.configure.securityContext | nindent 2 }}
resources:
  {{- toYaml .Values.proxy.configure.resources | nindent 2 }}
volumeMounts:
  {{- if .Values.proxy.configure.activate }}
  # For the node's systemctl, and the socket below /run that it talks to.
  - name: host
    mountPath: /host
    readOnly: true
  {{- end }}
  - name: runtime
    mountPath: /host{{ include "eagle.runtimeDirectory" . }}
  {{- with .Values.proxy.configure.directory }}
  {{- if ne . (include "eagle.runtimeDirectory" $) }}
  # config_path of the runtime's configuration names files by the node's own paths.
  - name: runtime
    mountPath: /host{{ . }}
  {{- end }}
  {{- end }}
  # What the files were before, for undoing it.
  - name: record
    mountPath: /host/var/lib/eagle/configure
{{- end -}}

{{- define "eagle.configureVolumes" -}}
{{- if .Values.proxy.configure.activate }}
- name: host
  hostPath:
    path: /
    type: Directory
{{- end }}
- name: runtime
  hostPath:
    path: {{ default (include "eagle.runtimeDirectory" .) .Values.proxy.configure.directory }}
    type: DirectoryOrCreate
- name: record
  hostPath:
    path: /var/lib/eagle/configure
    type: DirectoryOrCreate
{{- end -}}

{{/* Annotations of an object that lives while the release is being removed. Takes (dict "root" $ "weight" "..."). */}}
{{- define "eagle.undoAnnotations" -}}
helm.sh/hook: post-delete
helm.sh/hook-weight: {{ .weight | quote }}
# What an earlier removal has left, because a node was away, makes room for this one.
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- with .root.Values.commonAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}
