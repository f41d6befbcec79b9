//! The plug-ins with state of their own, in upstream's order.

use std::sync::Arc;

use kube::Client;
use reconcile::{Informers, Tasks};

use crate::config::Config;
use crate::plugin::Plugin;
use crate::shell::Handle;

/// Makes them; they follow what they need by themselves.
pub(crate) fn all(client: &Client, informers: &Informers, tasks: &Tasks, config: &Config, handle: &Handle) -> Vec<Arc<dyn Plugin>> {
    // The longest that a profile waits: it bounds tasks, and no pod waits less for it.
    let timeout = config.profiles.iter().map(|p| p.bind_timeout).max().unwrap_or_default();
    let mut all = crate::storage::plugins::all(client, informers, tasks, timeout, handle);
    all.push(Arc::new(crate::devices::follow::start(client, informers, tasks, config, handle, crate::devices::selectors::standard())));
    all
}
