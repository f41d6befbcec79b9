//! As many pods of a template as are wanted, adopted or created, and the status that tells of them: for
//! replica sets, and for what they were before, replication controllers. [`plan`] decides, `sync` acts.

mod kinds;
pub mod plan;
mod sync;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;

use crate::Context;

/// Starts the controller of replica sets.
pub fn start(context: &Context) {
    sync::start::<ReplicaSet>(context, "replicaset", "replicaset-controller");
}

/// Starts the controller of replication controllers.
pub fn start_replication_controllers(context: &Context) {
    sync::start::<ReplicationController>(context, "replicationcontroller", "replication-controller");
}
