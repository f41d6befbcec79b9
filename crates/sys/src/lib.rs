//! Mounts, namespaces, cgroups, pidfds and safe path opening. Knows neither Kubernetes nor containers.
