//! Links, addresses, routes and neighbours over rtnetlink. Knows no Kubernetes.
