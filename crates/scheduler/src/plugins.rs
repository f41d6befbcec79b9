//! The plug-ins with state of their own, in upstream's order.

use std::sync::Arc;

use kube::Client;
use reconcile::{Informers, Tasks};

use crate::config::Config;
use crate::plugin::Plugin;
use crate::shell::Handle;

/// Makes them; they follow what they need by themselves.
pub(crate) fn all(_client: &Client, _informers: &Informers, _tasks: &Tasks, _config: &Config, _handle: &Handle) -> Vec<Arc<dyn Plugin>> {
    Vec::new()
}
