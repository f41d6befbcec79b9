//! The controllers of storage: binding of claims, protection of what is in use, claims of ephemeral
//! volumes, expansion, and the provisioner of local directories.

pub mod attach;
pub mod binder;
pub mod ephemeral;
pub mod expand;
pub mod local_path;
pub mod protection;

use kube::Client;
use reconcile::{Informers, Tasks};

use crate::Context;

/// Starts the provisioner of local directories: no controller of upstream's, so none of the table.
pub fn start_local_path(client: Client, informers: &Informers, tasks: &Tasks) {
    local_path::start(&Context { client, informers: informers.clone(), tasks: tasks.clone(), concurrency: None });
}
