//! Seccomp profiles in a pod's annotations, where clients put them before 1.19 (KEP-135). Nothing follows them any more.

/// The annotation for the whole pod.
pub const POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
/// What a container's annotation begins with; its name follows.
pub const CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
