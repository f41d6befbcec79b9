//! Kinds that differ from the generic strategy in a few switches only.

use apiserver::strategy::{generic_prepare_create, generic_prepare_update};
use apiserver::{Ctx, DefaultGc, Strategy};
use serde_json::Value;

use crate::util::object;

/// The switches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plain {
    /// PUT may create.
    pub create_on_update: bool,
    /// PUT without resourceVersion is accepted.
    pub unconditional_update: bool,
    /// What happens to dependents when the client does not say.
    pub gc: DefaultGc,
    /// `status.phase` of a new object.
    pub phase: &'static str,
}

impl Plain {
    pub const DEFAULT: Self =
        Self { create_on_update: false, unconditional_update: true, gc: DefaultGc::Background, phase: "" };
}

impl Strategy for Plain {
    fn prepare_create(&self, ctx: &Ctx, object_: &mut Value) {
        generic_prepare_create(ctx, object_);
        if !self.phase.is_empty() {
            object(object_, "status").insert("phase".into(), self.phase.into());
        }
    }

    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        generic_prepare_update(ctx, new, old);
    }

    fn allow_create_on_update(&self) -> bool {
        self.create_on_update
    }

    fn allow_unconditional_update(&self) -> bool {
        self.unconditional_update
    }

    fn default_gc(&self) -> DefaultGc {
        self.gc
    }
}

/// (group, plural, PUT may create, PUT without resourceVersion).
pub(crate) const SWITCHES: &[(&str, &str, bool, bool)] = &[
    ("", "limitranges", true, true),
    ("", "endpoints", true, true),
    ("coordination.k8s.io", "leases", true, false),
    ("node.k8s.io", "runtimeclasses", true, false),
    ("certificates.k8s.io", "clustertrustbundles", false, false),
    ("policy", "poddisruptionbudgets", false, false),
    ("storage.k8s.io", "csidrivers", false, false),
    ("storage.k8s.io", "csistoragecapacities", false, false),
    ("storage.k8s.io", "volumeattachments", false, false),
    ("storage.k8s.io", "csinodes", false, false),
];
