//! nf_tables transactions over netlink. Knows no Kubernetes.
