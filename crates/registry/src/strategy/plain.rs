//! Kinds that differ from the generic strategy in a few switches only.

use apiserver::strategy::{generic_prepare_create, generic_prepare_update};
use apiserver::{Ctx, DefaultGc, Strategy};
use serde_json::Value;

use crate::util::{object, text};

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

/// Volumes and claims begin as pending; of a volume is noted since when it is what it is.
pub(crate) struct Volumes;

impl Volumes {
    fn note_phase(ctx: &Ctx, volume: &mut Value, old: Option<&Value>) {
        let phase = |v: &Value| v["status"]["phase"].as_str().unwrap_or_default().to_owned();
        let given = |v: &Value| v["status"]["lastPhaseTransitionTime"].as_str().map(str::to_owned);
        let changed = old.is_none_or(|old| phase(old) != phase(volume));
        let renewed = old.is_some_and(|old| given(volume).is_some() && given(old) != given(volume));
        let time = match old.and_then(given) {
            _ if changed && !renewed => Some(ctx.now_string()),
            before if given(volume).is_none() => before,
            _ => return,
        };
        if let Some(time) = time {
            object(volume, "status").insert("lastPhaseTransitionTime".into(), time.into());
        }
    }
}

impl Strategy for Volumes {
    fn prepare_create(&self, ctx: &Ctx, volume: &mut Value) {
        generic_prepare_create(ctx, volume);
        object(volume, "status").insert("phase".into(), "Pending".into());
        Self::note_phase(ctx, volume, None);
    }

    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        generic_prepare_update(ctx, new, old);
        if ctx.subresource == "status" {
            Self::note_phase(ctx, new, Some(old));
        }
    }
}

/// Claims: the two fields that say where the data come from agree.
pub(crate) struct Claims;

impl Claims {
    /// `dataSource` alone is for claims and snapshots; anything else there was always let drop.
    fn drop_foreign(claim: &mut Value, old: Option<&Value>) {
        let given = |spec: &Value| ["dataSource", "dataSourceRef"].iter().any(|k| !spec[*k].is_null());
        if old.is_some_and(|o| given(&o["spec"])) {
            return;
        }
        let spec = object(claim, "spec");
        let source = spec.get("dataSource").unwrap_or(&Value::Null);
        let usual = matches!(
            (text(source, "/apiGroup"), text(source, "/kind")),
            ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
        );
        if !usual && spec.get("dataSourceRef").is_none_or(Value::is_null) {
            spec.remove("dataSource");
        }
    }

    fn agree(claim: &mut Value) {
        let spec = object(claim, "spec");
        let given = |v: Option<&Value>| v.is_some_and(|v| !v.is_null());
        let (from, to) = match (given(spec.get("dataSource")), given(spec.get("dataSourceRef"))) {
            (true, false) => ("dataSource", "dataSourceRef"),
            (false, true) if spec["dataSourceRef"]["namespace"].as_str().is_none_or(str::is_empty) => ("dataSourceRef", "dataSource"),
            _ => return,
        };
        let source = spec[from].clone();
        spec.insert(to.into(), source);
    }
}

impl Strategy for Claims {
    fn prepare_create(&self, ctx: &Ctx, claim: &mut Value) {
        generic_prepare_create(ctx, claim);
        object(claim, "status").insert("phase".into(), "Pending".into());
        Self::drop_foreign(claim, None);
        Self::agree(claim);
    }

    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        generic_prepare_update(ctx, new, old);
        Self::drop_foreign(new, Some(old));
        Self::agree(new);
    }
}

/// CSI drivers: the generation counts changes, from none on.
pub(crate) struct Drivers;

impl Strategy for Drivers {
    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        generic_prepare_update(ctx, new, old);
        let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
        let now = before + i64::from(new["spec"] != old["spec"]);
        if now > 0 {
            object(new, "metadata").insert("generation".into(), now.into());
        }
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

/// Priority classes are not counted once they are there.
pub(crate) struct PriorityClasses;

impl Strategy for PriorityClasses {
    fn prepare_update(&self, _ctx: &Ctx, new: &mut Value, old: &Value) {
        if let Some(generation) = old["metadata"].get("generation") {
            object(new, "metadata").insert("generation".into(), generation.clone());
        }
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
    ("storage.k8s.io", "csistoragecapacities", false, false),
    ("storage.k8s.io", "volumeattachments", false, false),
    ("storage.k8s.io", "csinodes", false, false),
];
