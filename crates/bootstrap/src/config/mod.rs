//! The configuration files of `init`, `join` and `reset`: read, brought to the newest version, completed, checked.

mod defaults;
mod load;
mod types;
mod validate;

pub use defaults::{CRI_SOCKET, Facts, complete_cluster, complete_init, complete_join, complete_reset, control_plane_taint, duration};
pub use load::{Documents, GROUP_VERSION, InitConfig, to_yaml};
pub use types::*;
pub use validate::{cluster as validate_cluster, host_port, init as validate_init, join as validate_join};
